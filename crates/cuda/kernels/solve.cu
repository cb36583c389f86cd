// The exact split: counts in; quotas, rank loads, peak and certificate out. The results equal those of
// solver/src/exact bit for bit (docs/kernels.md). One block solves one problem; one warp of it computes the
// flow.
#include "block.h"
#include "fill.h"
#include "forest.h"
#include "search.h"

// The output addresses of one problem.
struct Answer {
  u64* quotas;      // [pairs]
  u64* rank_loads;  // [ranks]
  u64* peak;        // [1]
  u32* certificate; // a bit per rank
};

// Raises the ranks of the cut to the lowest peak at which they can carry their load. The cut becomes the
// certificate.
template <class N>
EK_CALL N raise(Warp team, Net net, const Memory& m, const Flow<N>& flow, const Reach& reach) {
  const u32 cut = reach.reached;
  u64 mine = 0;
  EK_EACH(team, at, cut) mine += (u64)(flow.excess[m.queue[at]] + flow.room[m.queue[at]]);
  u64 must = team.sum(mine);
  N peak = (N)((must + cut - 1) / cut);
  EK_FOR(team, word, (net[RANKS] + 31) / 32) m.certificate[word] = 0;
  EK_FOR(team, at, cut) {
    u32 rank = m.queue[at];
    flow.excess[rank] -= peak - flow.room[rank];
    flow.room[rank] = peak;
    atomic_or(&m.certificate[rank / 32], 1u << (rank % 32));
  }
  return peak;
}

// Computes the optimal peak from the first one. Loads and fixed loads must be known.
template <class N> EK_CALL void improve(Warp team, Net net, const u32* program, const Memory& m, u64 total) {
  const u32 ranks = net[RANKS], two = net[TWO], many = net[MANY];
  Flow<N> flow(m);
  u64 mine = 0;
  EK_EACH(team, rank, ranks) mine = most<u64>(mine, m.fixed[rank]);
  const u64 fixed = team.highest(mine);
  const u64 mean = total / ranks + (total % ranks != 0);
  N peak = (N)most<u64>(mean, fixed);
  u32 lowest = 0;
  if (fixed > mean) {
    u32 first = EK_NEVER;
    EK_EACH(team, rank, ranks) {
      if (m.fixed[rank] == fixed) first = least<u32>(first, rank);
    }
    lowest = team.lowest(first);
  }
  EK_FOR(team, word, (ranks + 31) / 32) {
    u32 rest = ranks - 32 * word;
    if (fixed > mean) m.certificate[word] = lowest / 32 == word ? 1u << (lowest % 32) : 0;
    else m.certificate[word] = rest >= 32 ? 0xffffffffu : (1u << rest) - 1;
  }
  EK_FOR(team, rank, ranks) {
    flow.room[rank] = peak;
    flow.excess[rank] = (N)m.fixed[rank] - peak;
  }
  // The load of an item waits at its first place.
  EK_FOR(team, item, two) flow.quota[2 * item] = (N)m.load[program[program[TWO_ITEMS] + item]];
  EK_FOR(team, item, many) {
    flow.quota[2 * two + net.table(MANY_BOUNDS)[item]] = (N)m.load[program[program[MANY_ITEMS] + item]];
  }

  fill_pass(team, net, flow, false);
  if (many > 0) pour(team, net, m, flow);
  bool over = any_overload(team, flow, ranks);
  EK_LOOP for (u32 pass = 0; over && pass < net[PASSES]; ++pass) {
    fill_pass(team, net, flow, true);
    over = any_overload(team, flow, ranks);
  }
  EK_LOOP for (u32 forest = 0; over && forest < net[FORESTS]; ++forest) {
    settle(team, net, flow, forest);
    over = any_overload(team, flow, ranks);
  }
  u32 drains = net[DRAINS];
  EK_LOOP while (over) {
    Reach reach = {};
    Found found = search(team, net, m, flow, reach);
    if (found == NOTHING_OVERLOADED) break;
    if (found == CUT) {
      peak = raise(team, net, m, flow, reach);
      settle(team, net, flow, 0);
    } else if (drains > 0) {
      --drains;
      drain(team, net, m, flow, reach.levels);
    } else {
      block(team, net, m, flow, reach);
    }
  }
  EK_ONE(team) {
    m.result[0] = (u32)(u64)peak;
    m.result[1] = (u32)((u64)peak >> 32);
    m.result[2] = sizeof(N) == sizeof(i64);
  }
}

template <class N> EK_FN void write_flow(Block team, Net net, const u32* program, const Memory& m, Answer answer) {
  Flow<N> flow(m);
  EK_FOR(team, place, net[PLACES]) answer.quotas[program[program[PAIR_OF] + place]] = (u64)flow.quota[place];
  EK_FOR(team, rank, net[RANKS]) answer.rank_loads[rank] = (u64)(flow.excess[rank] + flow.room[rank]);
}

// Splits one problem. `counts` is [sources][items]. `shared` has room for Memory and, if `hot`, for the
// program up to HOT_END after it. `wide` selects 64-bit numbers even if 32 bits would suffice; the results
// are equal.
EK_FN void split(Block block, u32* shared, const u32* program, const u32* counts, u32 sources, bool hot, bool wide,
                 Answer answer) {
  Warp warp;
  Memory m(shared, Net{program});
  Net net = {program};
  const u32 items = net[ITEMS], ranks = net[RANKS], parts = net[PARTS];
  if (hot) {
    u32* copy = shared + m.words;
    const u32 words = program[HOT_END];
    EK_EACH(block, word, words) copy[word] = program[word];
    net.words = copy;
  }
  // The barrier after this section also completes the copy.
  EK_FOR(block, item, items) {
    u64 load = 0;
    EK_LOOP for (u32 source = 0; source < sources; ++source) load += counts[(u64)source * items + item];
    m.load[item] = load;
  }
  EK_FOR(block, at, ranks * parts) {
    const u32* bounds = program + program[SINGLE_BOUNDS] + at / parts;
    const u32* single = program + program[SINGLE];
    u64 sum = 0;
    EK_LOOP for (u32 item = bounds[0] + at % parts; item < bounds[1]; item += parts) sum += m.load[single[item]];
    m.partial[at] = sum;
  }
  EK_FIRST_WARP {
    EK_FOR(warp, rank, ranks) {
      const u32* base = program + program[BASE] + 2 * rank;
      u64 sum = (u64)base[1] << 32 | base[0];
      EK_LOOP for (u32 part = 0; part < parts; ++part) sum += m.partial[rank * parts + part];
      m.fixed[rank] = sum;
    }
    u64 mine = 0;
    EK_EACH(warp, rank, ranks) mine += m.fixed[rank];
    EK_EACH(warp, item, program[TWO]) mine += m.load[program[program[TWO_ITEMS] + item]];
    EK_EACH(warp, item, program[MANY]) mine += m.load[program[program[MANY_ITEMS] + item]];
    u64 total = warp.sum(mine);
    // The limit leaves room for one token, because levelling adds one to a sum of loads.
    if (total < 0x7fffffffull && !wide) improve<i32>(warp, net, program, m, total);
    else improve<i64>(warp, net, program, m, total);
  }
  // The other warps write these while the first one computes. It joins them at the barrier after this
  // section.
  EK_FOR(block, item, items) {
    const u32* pairs = program + program[OFFSETS] + item;
    if (pairs[1] - pairs[0] == 1) answer.quotas[pairs[0]] = m.load[item];
  }
  if (m.result[2]) write_flow<i64>(block, net, program, m, answer);
  else write_flow<i32>(block, net, program, m, answer);
  EK_FOR(block, word, (ranks + 31) / 32) answer.certificate[word] = m.certificate[word];
  EK_ONE(block) answer.peak[0] = (u64)m.result[1] << 32 | m.result[0];
}

// Block b splits layer first + b. Per layer: `programs` is the offset of its program in `words`. The other
// arrays have rows of counts [sources][items], quotas [quota_stride], rank loads [ranks], peaks [1],
// certificates [certificate_stride].
EK_KERNEL(256)
ek_solve(const u32* words, const u32* programs, u32 first, const u32* counts, u32 sources, u32 items, u32 ranks,
         u32 hot, u64* quotas, u32 quota_stride, u64* rank_loads, u64* peaks, u32* certificates,
         u32 certificate_stride) {
  EK_SHARED(u64, shared);
  u64 layer = first + blockIdx.x, row = blockIdx.x;
  Answer answer = {quotas + row * quota_stride, rank_loads + row * ranks, peaks + row,
                   certificates + row * certificate_stride};
  split(Block(), (u32*)shared, words + programs[layer], counts + row * sources * items, sources, hot != 0, false,
        answer);
}
