// Maps slots to rows: packs tokens per destination, and computes every visit's place among the rows of the
// rank that serves it.
//
// A visit is one choice of one token. Visits of a slot are numbered source by source, and within a source in
// the order of its choices. The rows of a rank are those of its slots, one slot after the other. Every source
// computes the places of its own visits from the tokens per slot of all sources, which `count` counts and an
// all-gather distributes. It sends the places together with its tokens, so no rank has to sort.
#include "bf16.h"
#include "tokens.h"

// The addresses at which a rank reads one source's data.
struct Inbox {
  const i32* slots;     // [tokens * k], global slots; -1 for none
  const u32* places;    // [tokens * k]
  const float* weights; // [tokens * k]
  const u32* rows;      // [tokens]: row of each token in the parcel; null if rows are the tokens themselves
  const u16* tokens;    // the rows
};

// Without a plan the first replica of an expert serves it.
EK_FN void first_copy(u64 at, const i32* ids, const i32* first, i32* slots) {
  slots[at] = ids[at] < 0 ? -1 : first[ids[at]];
}

// Computes one source's first place in every slot, and the first row of every slot of this rank, [per_rank +
// 1]. `all` is [ranks][slots]. `shared` has room for two numbers per slot.
EK_FN void bases(Block team, u32* shared, const u32* all, u32 ranks, u32 per_rank, u32 own, u32* base, u32* offsets) {
  const u32 slots = ranks * per_rank;
  u32 *begins = shared, *before = shared + slots;
  EK_FOR(team, slot, slots) {
    u32 sum = 0;
    for (u32 source = 0; source < ranks; ++source) {
      if (source == own) before[slot] = sum;
      sum += all[(u64)source * slots + slot];
    }
    begins[slot] = sum;
  }
  // Turns the rows of each slot into the rows before it.
  EK_FOR(team, rank, ranks) {
    u32 sum = 0;
    for (u32 slot = rank * per_rank; slot < (rank + 1) * per_rank; ++slot) {
      const u32 here = begins[slot];
      begins[slot] = sum;
      sum += here;
    }
    if (rank == own) offsets[per_rank] = sum;
  }
  EK_FOR(team, slot, slots) {
    base[slot] = begins[slot] + before[slot];
    if (slot / per_rank == own) offsets[slot - own * per_rank] = begins[slot];
  }
}

// Computes the places of one chunk of visits. `before` is this chunk's row of [chunks][slots]; `shared` has
// room for CHUNK numbers.
EK_FN void place_chunk(Block team, u32* shared, const i32* slots, u64 n, u64 chunk, u32 all, const u32* before,
                       const u32* base, u32* places) {
  const u32 length = chunk_length(n, chunk);
  EK_FOR(team, at, length) shared[at] = expert_of(slots[chunk * EK_CHUNK + at], all);
  EK_FOR(team, at, length) {
    const u32 slot = shared[at];
    u32 place = EK_NEVER;
    if (slot != EK_NEVER) {
      place = base[slot] + before[slot];
      for (u32 other = 0; other < at; ++other) place += shared[other] == slot;
    }
    places[chunk * EK_CHUNK + at] = place;
  }
}

EK_FN bool visits(const i32* slots, u32 token, u32 top_k, u32 first, u32 end) {
  for (u32 choice = 0; choice < top_k; ++choice) {
    const i32 slot = slots[(u64)token * top_k + choice];
    if (slot >= (i32)first && slot < (i32)end) return true;
  }
  return false;
}

// Numbers the tokens that visit one rank, in their order, as rows of the parcel for it, and counts them.
// `shared` has room for TILE + 1 numbers.
EK_FN void number_rows(Block team, u32* shared, const i32* slots, u32 tokens, u32 top_k, u32 first_slot, u32 end_slot,
                       u32* rows, u32* size) {
  u32 before = 0;
  EK_LOOP for (u32 first = 0; first < tokens; first += EK_TILE) {
    const u32 here = tokens - first < EK_TILE ? tokens - first : EK_TILE;
    EK_FOR(team, at, here) shared[at] = visits(slots, first + at, top_k, first_slot, end_slot);
    EK_FIRST_WARP {
      const Warp warp;
      const u32 all = warp.scan(shared, here);
      EK_ONE(warp) shared[EK_TILE] = all;
    }
    team.sync();
    EK_FOR(team, at, here) rows[first + at] = before + shared[at];
    before += shared[EK_TILE];
    team.sync();
  }
  EK_ONE(team) *size = before;
}

// Copies the token of one choice to the parcel of its destination, unless an earlier choice of the token has
// the same one.
EK_FN void pack_choice(Warp team, const u16* tokens, const i32* slots, u64 at, u32 top_k, u32 per_rank, u32 own, u32 hidden,
                       const u32* rows, u32 room, const u64* parcels) {
  if (slots[at] < 0) return;
  const u32 rank = (u32)slots[at] / per_rank, token = (u32)(at / top_k);
  if (rank == own) return;
  for (u64 other = (u64)token * top_k; other < at; ++other) {
    if (slots[other] >= 0 && (u32)slots[other] / per_rank == rank) return;
  }
  const Quad* from = (const Quad*)(tokens + (u64)token * hidden);
  Quad* to = (Quad*)((u16*)parcels[rank] + (u64)rows[(u64)rank * room + token] * hidden);
  EK_EACH(team, chunk, hidden / 8) to[chunk] = from[chunk];
}

// Records one visit of this rank: the address of its row, and the weight of its result.
EK_FN void accept(const Inbox& inbox, u64 at, u32 top_k, u32 first, u32 end, u32 hidden, u64* rows, float* scales) {
  const i32 slot = inbox.slots[at];
  if (slot < (i32)first || slot >= (i32)end) return;
  const u32 token = (u32)(at / top_k), place = inbox.places[at], row = inbox.rows ? inbox.rows[token] : token;
  rows[place] = (u64)(inbox.tokens + (u64)row * hidden);
  scales[place] = inbox.weights[at];
}

EK_FN void add_eight(float* sum, Quad numbers) {
  EK_SHORT for (u32 i = 0; i < 4; ++i) {
    sum[2 * i] += wide_low(numbers.word[i]);
    sum[2 * i + 1] += wide_high(numbers.word[i]);
  }
}

// Sums the results of one token of another source. They already include the weights.
EK_FN void answer_token(Warp team, const Inbox& inbox, u32 token, u32 top_k, u32 first, u32 end, u32 hidden,
                        const u16* results, u16* answers) {
  if (!visits(inbox.slots, token, top_k, first, end)) return;
  u16* to = answers + (u64)inbox.rows[token] * hidden;
  EK_EACH(team, chunk, hidden / 8) {
    float sum[8] = {};
    for (u64 at = (u64)token * top_k; at < (u64)(token + 1) * top_k; ++at) {
      const i32 slot = inbox.slots[at];
      if (slot < (i32)first || slot >= (i32)end) continue;
      add_eight(sum, ((const Quad*)(results + (u64)inbox.places[at] * hidden))[chunk]);
    }
    Quad pair;
    EK_SHORT for (u32 i = 0; i < 4; ++i) pair.word[i] = narrow_pair(sum[2 * i], sum[2 * i + 1]);
    ((Quad*)to)[chunk] = pair;
  }
}

// Computes a token's output: its local results, its answers from other ranks, and the result of the shared
// expert. Adds the token itself if `residual` is given.
EK_FN void combine_token(Warp team, const i32* slots, const u32* places, u32 token, u32 top_k, u32 per_rank, u32 own,
                         u32 hidden, const u16* results, const u32* rows, u32 room, const u64* answers, const u16* shared,
                         const float* residual, float* out) {
  EK_EACH(team, chunk, hidden / 8) {
    float sum[8] = {};
    for (u64 at = (u64)token * top_k; at < (u64)(token + 1) * top_k; ++at) {
      if (slots[at] < 0) continue;
      const u32 rank = (u32)slots[at] / per_rank;
      if (rank == own) {
        add_eight(sum, ((const Quad*)(results + (u64)places[at] * hidden))[chunk]);
        continue;
      }
      bool again = false;
      for (u64 other = (u64)token * top_k; other < at; ++other) {
        again |= slots[other] >= 0 && (u32)slots[other] / per_rank == rank;
      }
      if (again) continue;
      const u64 row = rows[(u64)rank * room + token];
      add_eight(sum, ((const Quad*)((const u16*)answers[rank] + row * hidden))[chunk]);
    }
    const u64 begin = (u64)token * hidden + 8 * chunk;
    if (shared) add_eight(sum, *(const Quad*)(shared + begin));
    EK_SHORT for (u32 i = 0; i < 8; ++i) out[begin + i] = residual ? residual[begin + i] + sum[i] : sum[i];
  }
}

EK_KERNEL(256) ek_first_copy(const i32* ids, u64 n, const i32* first, i32* slots) {
  EK_SPREAD(at, n) first_copy(at, ids, first, slots);
}

EK_KERNEL(256) ek_bases(const u32* all, u32 ranks, u32 per_rank, u32 own, u32* base, u32* offsets) {
  EK_SHARED(u32, shared);
  bases(Block(), shared, all, ranks, per_rank, own, base, offsets);
}

EK_KERNEL(256)
ek_place(const i32* slots, u64 n, u32 all, const u32* befores, const u32* base, u32* places) {
  EK_SHARED_ARRAY(u32, shared, EK_CHUNK);
  const u64 chunk = blockIdx.x;
  place_chunk(Block(), shared, slots, n, chunk, all, befores + chunk * all, base, places);
}

// One block per destination. The source's own rank needs no parcel and has no rows here.
EK_KERNEL(256)
ek_number_rows(const i32* slots, u32 tokens, u32 top_k, u32 per_rank, u32 own, u32 room, u32* rows, u32* sizes) {
  EK_SHARED_ARRAY(u32, shared, EK_TILE + 1);
  const u32 rank = blockIdx.x;
  if (rank == own) return;
  number_rows(Block(), shared, slots, tokens, top_k, rank * per_rank, (rank + 1) * per_rank, rows + (u64)rank * room,
              sizes + rank);
}

EK_KERNEL(256)
ek_pack(const u16* tokens, const i32* slots, u64 n, u32 top_k, u32 per_rank, u32 own, u32 hidden, const u32* rows, u32 room,
        const u64* parcels) {
  EK_ROWS(at, n) pack_choice(Warp(), tokens, slots, at, top_k, per_rank, own, hidden, rows, room, parcels);
}

// Blocks in x share the visits of source blockIdx.y, `counts[source]` of them.
EK_KERNEL(256)
ek_accept(const Inbox* inboxes, const u32* counts, u32 top_k, u32 per_rank, u32 own, u32 hidden, u64* rows, float* scales) {
  const Inbox inbox = inboxes[blockIdx.y];
  EK_SPREAD(at, counts[blockIdx.y]) {
    accept(inbox, at, top_k, own * per_rank, (own + 1) * per_rank, hidden, rows, scales);
  }
}

// Blocks in x share the tokens of source blockIdx.y.
EK_KERNEL(256)
ek_answer(const Inbox* inboxes, const u32* counts, u32 top_k, u32 per_rank, u32 own, u32 hidden, const u16* results,
          const u64* answers) {
  const u32 source = blockIdx.y;
  if (source == own) return;
  const Inbox inbox = inboxes[source];
  EK_ROWS(token, counts[source] / top_k) {
    answer_token(Warp(), inbox, (u32)token, top_k, own * per_rank, (own + 1) * per_rank, hidden, results,
                 (u16*)answers[source]);
  }
}

EK_KERNEL(256)
ek_combine(const i32* slots, const u32* places, u32 tokens, u32 top_k, u32 per_rank, u32 own, u32 hidden, const u16* results,
           const u32* rows, u32 room, const u64* answers, const u16* shared, const float* residual, float* out) {
  EK_ROWS(token, tokens) {
    combine_token(Warp(), slots, places, (u32)token, top_k, per_rank, own, hidden, results, rows, room, answers, shared,
                  residual, out);
  }
}
