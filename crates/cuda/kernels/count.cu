// Counts tokens per expert from top-k ids: a histogram per chunk, then, expert by expert, the sum of the
// chunks before each. The sums over all chunks are the counts. With the sums before a chunk, `map` numbers an
// expert's tokens in order.
#include "tokens.h"

// Computes the histogram of one chunk, [experts]. Ids that are neither an expert nor -1 are faults. `shared`
// has room for one number per expert.
template <class Id>
EK_FN void count_chunk(Block team, u32* shared, const Id* ids, u64 n, u64 chunk, u32 experts, u32* histogram,
                       u32* faults) {
  EK_FOR(team, expert, experts) shared[expert] = 0;
  EK_FOR(team, at, chunk_length(n, chunk)) {
    Id id = ids[chunk * EK_CHUNK + at];
    u32 expert = expert_of(id, experts);
    if (expert != EK_NEVER) atomic_add(&shared[expert], 1);
    else if (id != -1) atomic_add(faults, 1);
  }
  EK_FOR(team, expert, experts) histogram[expert] = shared[expert];
}

// Replaces the histograms [chunks][experts] of one expert by sums over the chunks before, and writes the
// total. `shared` has room for TILE numbers.
EK_FN void count_before(Warp team, u32* shared, u32* histograms, u64 chunks, u32 experts, u32 expert, u32* counts) {
  u32 sum = 0;
  EK_LOOP for (u64 first = 0; first < chunks; first += EK_TILE) {
    const u64 rest = chunks - first;
    const u32 here = rest < EK_TILE ? (u32)rest : EK_TILE;
    EK_FOR(team, at, here) shared[at] = histograms[(first + at) * experts + expert];
    const u32 all = team.scan(shared, here);
    EK_FOR(team, at, here) histograms[(first + at) * experts + expert] = sum + shared[at];
    sum += all;
  }
  EK_ONE(team) counts[expert] = sum;
}

template <class Id>
EK_FN void count_block(const Id* ids, u64 n, u32 experts, u32* histograms, u32* faults) {
  EK_SHARED(u32, shared_counts);
  u64 chunk = blockIdx.x;
  count_chunk(Block(), shared_counts, ids, n, chunk, experts, histograms + chunk * experts, faults);
}

EK_KERNEL(256) ek_count_i32(const i32* ids, u64 n, u32 experts, u32* histograms, u32* faults) {
  count_block(ids, n, experts, histograms, faults);
}

EK_KERNEL(256) ek_count_i64(const i64* ids, u64 n, u32 experts, u32* histograms, u32* faults) {
  count_block(ids, n, experts, histograms, faults);
}

EK_KERNEL(32) ek_count_before(u32* histograms, u64 chunks, u32 experts, u32* counts) {
  EK_SHARED_ARRAY(u32, shared, EK_TILE);
  count_before(Warp(), shared, histograms, chunks, experts, blockIdx.x, counts);
}
