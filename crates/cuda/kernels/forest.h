// Maximum flows on forests (solver/src/exact/forest.rs): two passes, no search.
#pragma once
#include "problem.h"

// Moves as much as a spanning forest allows: offers on the way up, excess on the way down. A rank is the
// child of at most one branch, which stores its offer.
template <class N> EK_CALL void settle(Warp team, Net net, const Flow<N>& flow, u32 forest) {
  const u32* up = net.words + FOREST + 6 * forest;
  const u32* down = up + 3;
  EK_FOR(team, rank, net[RANKS]) flow.subtree[rank] = flow.excess[rank];
  EK_LOOP for (u32 wave = 0; wave < up[0]; ++wave) {
    const u32* bounds = net.words + up[1] + wave;
    EK_FOR(team, at, bounds[1] - bounds[0]) {
      const u32* op = net.words + up[2] + 3 * (bounds[0] + at);
      u32 parent = op[0] & 0xffffu, child = op[0] >> 16;
      N parent_quota = flow.quota[op[1]], child_quota = flow.quota[op[2]];
      // A positive amount goes up now. A negative one is reserved, because it may come down later.
      N moved = most<N>(least<N>(flow.subtree[child], child_quota), -parent_quota);
      N rises = most<N>(moved, 0);
      flow.offer[child] = rises - moved;
      flow.quota[op[2]] = child_quota - rises;
      flow.quota[op[1]] = parent_quota + moved;
      flow.excess[child] -= rises;
      flow.excess[parent] += rises;
      flow.subtree[parent] += moved;
    }
  }
  EK_LOOP for (u32 wave = 0; wave < down[0]; ++wave) {
    const u32* bounds = net.words + down[1] + wave;
    EK_FOR(team, at, bounds[1] - bounds[0]) {
      const u32* op = net.words + down[2] + 3 * (bounds[0] + at);
      u32 parent = op[0] & 0xffffu, child = op[0] >> 16;
      N offer = flow.offer[child];
      N falls = least<N>(most<N>(flow.excess[parent], 0), offer);
      flow.quota[op[2]] += falls;
      flow.quota[op[1]] += offer - falls;
      flow.excess[child] += falls;
      flow.excess[parent] -= falls;
    }
  }
}

// Moves as much as the forest of a search allows, over two-hosted items only. A rank's children are
// consecutive in the queue, and one lane serves them in that order.
template <class N> EK_CALL void drain(Warp team, Net net, const Memory& m, const Flow<N>& flow, u32 levels) {
  EK_FOR(team, rank, net[RANKS]) flow.subtree[rank] = most<N>(-flow.excess[rank], 0);
  // The last level has no children.
  const u32 parents = levels - 1;
  EK_LOOP for (u32 level = parents; level-- > 0;) {
    u32 begin = m.begin[level];
    EK_FOR(team, at, m.begin[level + 1] - begin) {
      u32 parent = m.queue[begin + at];
      N below = flow.subtree[parent];
      EK_LOOP for (u32 next = m.child[begin + at]; next < m.child[begin + at + 1]; ++next) {
        u32 child = m.queue[next], place = m.place[next];
        N offer = least<N>(flow.subtree[child], flow.quota[place]);
        flow.offer[child] = offer;
        flow.quota[place] -= offer;
        below += offer;
      }
      flow.subtree[parent] = below;
    }
  }
  EK_LOOP for (u32 level = 0; level < parents; ++level) {
    u32 begin = m.begin[level];
    EK_FOR(team, at, m.begin[level + 1] - begin) {
      u32 parent = m.queue[begin + at];
      N excess = flow.excess[parent];
      EK_LOOP for (u32 next = m.child[begin + at]; next < m.child[begin + at + 1]; ++next) {
        u32 child = m.queue[next], place = m.place[next];
        N offer = flow.offer[child];
        N falls = least<N>(most<N>(excess, 0), offer);
        flow.quota[place ^ 1u] += falls;
        flow.quota[place] += offer - falls;
        flow.excess[child] += falls;
        excess -= falls;
      }
      flow.excess[parent] = excess;
    }
  }
}
