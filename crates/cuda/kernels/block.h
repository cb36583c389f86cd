// A blocking flow along the levels of a search (solver/src/exact/blocking_flow.rs). Its walks depend on each
// other, so one lane executes them. Most batches never need it.
#pragma once
#include "search.h"

template <class N> struct Walks {
  Net net;
  const Memory& m;
  const Flow<N>& flow;
  u32 length;

  // Finds the next step one level up from a rank, by its current arcs. Does not advance past the step that it
  // finds.
  EK_FN_MEMBER bool next_step(u32 rank) {
    const u32 *bounds = net.table(SEAT_BOUNDS), *seats = net.table(SEATS), two_places = 2 * net[TWO];
    const u32 above = m.level[rank] + 1;
    EK_LOOP for (u32 arc = m.rank_arc[rank]; arc < bounds[rank + 1]; ++arc) {
      m.rank_arc[rank] = arc;
      u32 place = seats[2 * arc], other = seats[2 * arc + 1];
      if (flow.quota[place] <= 0) continue;
      if (place < two_places) {
        if (m.level[other] == above) return step(place, place ^ 1u, other);
      } else if (m.item_level[other] + 1 == above) {
        const u32 *from = net.table(MANY_BOUNDS) + other, *ranks = net.table(MANY_RANKS) + from[0];
        const u32 count = from[1] - from[0];
        EK_LOOP for (u32 host = m.item_arc[other]; host < count; ++host) {
          m.item_arc[other] = host;
          if (m.level[ranks[host]] == above) return step(place, two_places + from[0] + host, ranks[host]);
        }
        m.item_arc[other] = count;
      }
    }
    m.rank_arc[rank] = bounds[rank + 1];
    return false;
  }

  EK_FN_MEMBER bool step(u32 from, u32 to, u32 rank) {
    m.path_from[length] = from;
    m.path_to[length] = to;
    m.path_rank[length] = rank;
    ++length;
    return true;
  }

  // Extends the path, depth first, until it ends at a rank with slack. Returns false if there is no such
  // path.
  EK_FN_MEMBER bool walk(u32 source) {
    EK_LOOP for (;;) {
      u32 at = length > 0 ? m.path_rank[length - 1] : source;
      if (flow.excess[at] < 0) return true;
      if (next_step(at)) continue;
      // A dead end, which later walks must avoid.
      if (length == 0) return false;
      --length;
      m.level[at] = EK_NEVER;
    }
  }

  // Moves as much as the path allows, then shortens the path to before its first exhausted step.
  EK_FN_MEMBER void push(u32 source) {
    if (length == 0) return;
    u32 sink = m.path_rank[length - 1];
    N amount = least<N>(flow.excess[source], -flow.excess[sink]);
    EK_LOOP for (u32 at = 0; at < length; ++at) amount = least<N>(amount, flow.quota[m.path_from[at]]);
    u32 keep = length;
    EK_LOOP for (u32 at = 0; at < length; ++at) {
      flow.quota[m.path_from[at]] -= amount;
      flow.quota[m.path_to[at]] += amount;
      if (flow.quota[m.path_from[at]] == 0 && at < keep) keep = at;
    }
    flow.excess[source] -= amount;
    flow.excess[sink] += amount;
    length = keep;
  }
};

// Pushes load from the overloaded ranks along rising levels until no path to slack is left.
template <class N>
EK_CALL void block(Warp team, Net net, const Memory& m, const Flow<N>& flow, const Reach& reach) {
  EK_FOR(team, rank, net[RANKS]) m.rank_arc[rank] = net.table(SEAT_BOUNDS)[rank];
  EK_FOR(team, item, net[MANY]) {
    u32 claim = m.item_claim[item];
    m.item_level[item] = claim == EK_NEVER ? EK_NEVER : m.level[m.queue[claim]];
    m.item_arc[item] = 0;
  }
  EK_ONE(team) {
    EK_LOOP for (u32 at = 0; at < reach.sources; ++at) {
      u32 source = m.queue[at];
      Walks<N> walks = {net, m, flow, 0};
      EK_LOOP while (flow.excess[source] > 0 && walks.walk(source)) walks.push(source);
    }
  }
}
