// The residual search (solver/src/exact/search.rs), level by level.
//
// The queue has the order of the sequential search. Every reached rank is claimed by the first place in the
// order (position of the parent in the queue, its seat) that leads to it. An item with many hosts is claimed
// by the first parent that carries it. Claims are minima, so the order of lanes does not matter.
#pragma once
#include "problem.h"

enum Found { NOTHING_OVERLOADED, SLACK, CUT };

// The result of a search: overloaded ranks, reached ranks, levels of the queue.
struct Reach {
  u32 sources, reached, levels;
};

// Calls visit(key, child, place) for every residual step from a rank in the queue, in order. A key consists
// of position + 1 and seat, so that 0 is below all keys. Positions are below 2^10.
template <class N, class Visit>
EK_FN void each_step(Net net, const Memory& m, const Flow<N>& flow, u32 position, Visit visit) {
  const u32 *bounds = net.table(SEAT_BOUNDS), *seats = net.table(SEATS), two_places = 2 * net[TWO];
  u32 rank = m.queue[position];
  EK_LOOP for (u32 seat = bounds[rank]; seat < bounds[rank + 1]; ++seat) {
    u32 place = seats[2 * seat], other = seats[2 * seat + 1];
    if (flow.quota[place] == 0) continue;
    u32 key = (position + 1) << 21 | (seat - bounds[rank]);
    if (place < two_places) {
      visit(key, other, place);
    } else if (m.item_claim[other] == position) {
      const u32 *from = net.table(MANY_BOUNDS) + other, *ranks = net.table(MANY_RANKS);
      EK_LOOP for (u32 host = from[0]; host < from[1]; ++host) visit(key, ranks[host], place);
    }
  }
}

template <class N>
EK_CALL Found search(Warp team, Net net, const Memory& m, const Flow<N>& flow, Reach& reach) {
  const u32 ranks = net[RANKS], many = net[MANY], two_places = 2 * net[TWO];
  // The barrier of the next section completes this loop.
  EK_EACH(team, item, many) m.item_claim[item] = EK_NEVER;
  EK_FOR(team, rank, ranks) {
    bool over = flow.excess[rank] > 0;
    m.level[rank] = over ? 0 : EK_NEVER;
    m.claim[rank] = over ? 0 : EK_NEVER;
    m.child[rank] = over;
  }
  u32 end = team.scan(m.child, ranks);
  if (end == 0) return NOTHING_OVERLOADED;
  EK_FOR(team, rank, ranks) {
    if (m.level[rank] == 0) m.queue[m.child[rank]] = rank;
  }
  reach.sources = end;
  reach.levels = 0;
  bool slack = false;
  EK_LOOP for (u32 begin = 0; begin < end;) {
    u32 count = end - begin, level = reach.levels++;
    if (many > 0) {
      EK_FOR(team, at, count) {
        const u32 *bounds = net.table(SEAT_BOUNDS) + m.queue[begin + at], *seats = net.table(SEATS);
        EK_LOOP for (u32 seat = bounds[0]; seat < bounds[1]; ++seat) {
          u32 place = seats[2 * seat];
          if (place >= two_places && flow.quota[place] != 0) atomic_min(&m.item_claim[seats[2 * seat + 1]], begin + at);
        }
      }
    }
    EK_FOR(team, at, count) {
      each_step(net, m, flow, begin + at, [&](u32 key, u32 child, u32) { atomic_min(&m.claim[child], key); });
    }
    EK_FOR(team, at, count) {
      u32 won = 0;
      each_step(net, m, flow, begin + at, [&](u32 key, u32 child, u32) { won += m.claim[child] == key; });
      m.child[begin + at] = won;
    }
    u32 fresh = team.scan(m.child + begin, count);
    EK_FOR(team, at, count) {
      u32 next = end + m.child[begin + at];
      m.child[begin + at] = next;
      if (at == 0) {
        m.begin[level] = begin;
        m.begin[level + 1] = end;
        m.child[end + fresh] = end + fresh;
      }
      each_step(net, m, flow, begin + at, [&](u32 key, u32 child, u32 place) {
        if (m.claim[child] != key) return;
        m.level[child] = level + 1;
        m.queue[next] = child;
        m.parent[next] = begin + at;
        m.place[next] = place;
        slack |= flow.excess[child] < 0;
        ++next;
      });
    }
    begin = end;
    end += fresh;
  }
  reach.reached = end;
  return team.any(slack) ? SLACK : CUT;
}
