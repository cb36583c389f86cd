// The greedy start (solver/src/exact/fill.rs), wave by wave.
#pragma once
#include "problem.h"

// Distributes one two-hosted item over its hosts, whatever its previous distribution.
template <class N> EK_FN void level_pair(const u32* op, const Flow<N>& flow, bool placed) {
  u32 low = op[0] & 0xffffu, high = op[0] >> 16, place = op[1];
  N before = flow.quota[place], other = placed ? flow.quota[place + 1] : 0;
  N load = before + other;
  if (!placed) before = 0;
  N bias = flow.excess[high] - other - (flow.excess[low] - before);
  N give = clamp<N>((load + bias + 1) >> 1, 0, load);
  N keep = load - give;
  flow.quota[place] = give;
  flow.quota[place + 1] = keep;
  flow.excess[low] += give - before;
  flow.excess[high] += keep - other;
}

// Processes all two-hosted items once. The first pass places them, later ones level them.
template <class N> EK_CALL void fill_pass(Warp team, Net net, const Flow<N>& flow, bool placed) {
  const u32 waves = net[FILL];
  const u32 *bounds = net.words + net.words[FILL + 1], *ops = net.words + net.words[FILL + 2];
  EK_LOOP for (u32 wave = 0; wave < waves; ++wave) {
    u32 begin = bounds[wave];
    EK_FOR(team, at, bounds[wave + 1] - begin) level_pair(ops + 2 * (begin + at), flow, placed);
  }
}

// Pours load like water into sorted basins: the emptiest first, and all wet basins end at one level. One lane
// runs it.
template <class N>
EK_FN void pour_sorted(N load, u32 count, const u32* ranks, const u32* basin, N* quota, N* excess) {
  u32 wet = 1;
  N left = load, level = excess[ranks[basin[0]]];
  EK_LOOP for (u32 host = 0; host < count; ++host) quota[host] = 0;
  EK_LOOP while (wet < count) {
    N step = excess[ranks[basin[wet]]] - level;
    // Tests step * wet > left without the product, which could overflow.
    if (step > left / (N)wet) break;
    left -= step * (N)wet;
    level += step;
    ++wet;
  }
  N each = left / (N)wet;
  u32 over = (u32)(left % (N)wet);
  EK_LOOP for (u32 index = 0; index < wet; ++index) {
    u32 host = basin[index], rank = ranks[host];
    N give = level + each + (index < over ? 1 : 0) - excess[rank];
    quota[host] = give;
    excess[rank] += give;
  }
}

// Places every item with three hosts or more; its load waits at its first place. Items of a wave with few
// hosts take a lane each. All lanes together sort the items with more hosts than one lane should sort, one
// after the other.
template <class N> EK_CALL void pour(Warp team, Net net, const Memory& m, const Flow<N>& flow) {
  const u32 waves = net[POUR], first = 2 * net[TWO];
  const u32 *ends = net.words + net.words[POUR + 1], *ops = net.words + net.words[POUR + 2];
  const u32 *bounds = net.table(MANY_BOUNDS), *all_ranks = net.table(MANY_RANKS);
  u32 begin = 0;
  EK_LOOP for (u32 wave = 0; wave < waves; ++wave) {
    u32 narrow = ends[2 * wave], end = ends[2 * wave + 1];
    EK_FOR(team, at, narrow - begin) {
      u32 from = bounds[ops[begin + at]], count = bounds[ops[begin + at] + 1] - from;
      const u32* ranks = all_ranks + from;
      u32* basin = m.basin + from;
      // Insertion sort keeps ties in the order of ranks.
      EK_LOOP for (u32 host = 0; host < count; ++host) {
        N own = flow.excess[ranks[host]];
        u32 to = host;
        EK_LOOP for (; to > 0 && flow.excess[ranks[basin[to - 1]]] > own; --to) basin[to] = basin[to - 1];
        basin[to] = host;
      }
      N* quota = flow.quota + first + from;
      pour_sorted(quota[0], count, ranks, basin, quota, flow.excess);
    }
    EK_LOOP for (u32 op = narrow; op < end; ++op) {
      u32 from = bounds[ops[op]], count = bounds[ops[op] + 1] - from;
      const u32* ranks = all_ranks + from;
      u32* basin = m.basin + from;
      EK_FOR(team, host, count) {
        N own = flow.excess[ranks[host]];
        u32 before = 0;
        EK_LOOP for (u32 other = 0; other < count; ++other) {
          N excess = flow.excess[ranks[other]];
          before += excess < own || (excess == own && other < host);
        }
        basin[before] = host;
      }
      N* quota = flow.quota + first + from;
      EK_ONE(team) pour_sorted(quota[0], count, ranks, basin, quota, flow.excess);
    }
    begin = end;
  }
}
