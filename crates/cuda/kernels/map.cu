// Maps tokens to slots (Planner::redirect): the i-th token of an expert on this source goes to the replica
// whose interval holds i. i is the number of the expert's tokens in the chunks before plus those before it in
// its own chunk.
#include "tokens.h"

// Maps one chunk. `before` is this chunk's row of [chunks][experts]; `layout` is as in share.cu; `shared` has
// room for CHUNK numbers. A token without a place among the shares was not counted: it gets -1 and is a
// fault. Ids that are not an expert get -1; `count` has already recorded them as faults.
template <class Id>
EK_FN void map_chunk(Block team, u32* shared, const Id* ids, u64 n, u64 chunk, u32 experts, const u32* before,
                     const u32* layout, const u64* shares, Id* slots, u32* faults) {
  const u32 length = chunk_length(n, chunk);
  EK_FOR(team, at, length) shared[at] = expert_of(ids[chunk * EK_CHUNK + at], experts);
  EK_FOR(team, at, length) {
    u32 expert = shared[at], slot = EK_NEVER;
    if (expert != EK_NEVER) {
      u32 earlier = 0;
      for (u32 other = 0; other < at; ++other) earlier += shared[other] == expert;
      u64 left = (u64)before[expert] + earlier;
      const u32 end = layout[expert + 1];
      u32 copy = layout[expert];
      while (copy < end && left >= shares[copy]) left -= shares[copy++];
      if (copy < end) slot = layout[experts + 1 + copy];
      else atomic_add(faults, 1);
    }
    slots[chunk * EK_CHUNK + at] = slot == EK_NEVER ? (Id)-1 : (Id)slot;
  }
}

template <class Id>
EK_FN void map_block(const Id* ids, u64 n, u32 experts, const u32* befores, const u32* layout, const u64* shares,
                     Id* slots, u32* faults) {
  EK_SHARED_ARRAY(u32, shared, EK_CHUNK);
  u64 chunk = blockIdx.x;
  map_chunk(Block(), shared, ids, n, chunk, experts, befores + chunk * experts, layout, shares, slots, faults);
}

EK_KERNEL(256) ek_map_i32(const i32* ids, u64 n, u32 experts, const u32* befores, const u32* layout,
                          const u64* shares, i32* slots, u32* faults) {
  map_block(ids, n, experts, befores, layout, shares, slots, faults);
}

EK_KERNEL(256) ek_map_i64(const i64* ids, u64 n, u32 experts, const u32* befores, const u32* layout,
                          const u64* shares, i64* slots, u32* faults) {
  map_block(ids, n, experts, befores, layout, shares, slots, faults);
}
