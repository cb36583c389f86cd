// A compiled problem: one array of 32-bit words, written by crates/cuda/src/tables/program.rs.
//
// Words 0..HEADER are the header. The *hot* tables follow up to HOT_END, then the cold ones. Hot tables are
// read repeatedly, so they are copied to shared memory with the header if there is room. A header word that
// names a table is its offset in words from the beginning.
//
// A sweep is a list of operations in *waves*: bounds[w]..bounds[w + 1] is wave w, whose operations touch no
// rank in common. So executing the waves in turn has the same result as the operations in their original
// order.
#pragma once
#include "team.h"

enum Word {
  RANKS,        // ranks
  ITEMS,        // items
  PAIRS,        // (item, host) pairs
  PLACES,       // (item, host) pairs of items with a choice
  TWO,          // two-hosted items
  MANY,         // items with three hosts or more
  MANY_PLACES,  // their places
  PASSES,       // largest number of levelling passes
  DRAINS,       // drains before blocking flows take over
  FORESTS,      // spanning forests: 1 or 2
  PARTS,        // lanes that share the sum of a rank's fixed load
  HOT_END,
  // Hot tables: [waves, bounds, operations] of each sweep.
  FILL,              // operation: low | high << 16, place of low
  POUR = FILL + 3,   // two bounds per wave: end of the narrow items, end of the wide; operation: item with many hosts
  FOREST = POUR + 3, // per forest up, then down; operation: parent | child << 16, parent's place, child's place
  SEAT_BOUNDS = FOREST + 12, // per rank
  SEATS,       // place; other rank, or index of the item with many hosts
  MANY_BOUNDS, // per item with many hosts
  MANY_RANKS,  // their ranks
  // Cold tables.
  BASE,          // per rank: low word, high word
  SINGLE_BOUNDS, // per rank
  SINGLE,        // items whose only host is the rank
  OFFSETS,       // bounds of every item's pairs
  TWO_ITEMS,     // the item of every two places
  MANY_ITEMS,
  PAIR_OF, // the pair of every place
  HEADER
};

// Header and hot tables, in global or shared memory.
struct Net {
  const u32* words;
  EK_FN_MEMBER u32 operator[](Word word) const { return words[word]; }
  EK_FN_MEMBER const u32* table(u32 word) const { return words + words[word]; }
};

// The working memory of a split, in shared memory. Numbers of the flow take 8 bytes each, used as i64 or i32.
struct Memory {
  u64* load;    // [items] summed over the sources
  u64* fixed;   // [ranks] base load and items with one host
  u64* partial; // [ranks][parts]
  u64 *quota, *excess, *room, *subtree, *offer; // [places], [ranks] x 4
  // The search: [ranks] each unless stated otherwise.
  u32 *level, *claim, *queue, *child /* [ranks + 1] */, *parent, *place, *begin /* [ranks + 1] */;
  // Walks of blocking flows: current arcs and the path.
  u32 *rank_arc, *path_from, *path_to, *path_rank;
  u32 *basin;                              // [many places]
  u32 *item_claim, *item_level, *item_arc; // [many]
  u32* certificate;                        // a bit per rank
  u32* result;                             // [4]: peak (two words), whether numbers had 64 bits
  u64 words;                               // total number of 32-bit words

  EK_FN_MEMBER Memory(u32* at, Net net) {
    u64 ranks = net[RANKS], many = net[MANY], used = 0;
    auto take = [&](u64 count) {
      u32* here = at + used;
      used += count;
      return here;
    };
    auto take_wide = [&](u64 count) { return (u64*)take(2 * count); };
    load = take_wide(net[ITEMS]);
    fixed = take_wide(ranks);
    partial = take_wide(ranks * net[PARTS]);
    quota = take_wide(net[PLACES]);
    excess = take_wide(ranks);
    room = take_wide(ranks);
    subtree = take_wide(ranks);
    offer = take_wide(ranks);
    level = take(ranks);
    claim = take(ranks);
    queue = take(ranks);
    child = take(ranks + 1);
    parent = take(ranks);
    place = take(ranks);
    begin = take(ranks + 1);
    rank_arc = take(ranks);
    path_from = take(ranks);
    path_to = take(ranks);
    path_rank = take(ranks);
    basin = take(net[MANY_PLACES]);
    item_claim = take(many);
    item_level = take(many);
    item_arc = take(many);
    certificate = take((ranks + 31) / 32);
    result = take(4);
    words = used;
  }
};

// The numbers of a flow in one width.
template <class N> struct Flow {
  N *quota, *excess, *room, *subtree, *offer;
  EK_FN_MEMBER explicit Flow(const Memory& m)
      : quota((N*)m.quota), excess((N*)m.excess), room((N*)m.room), subtree((N*)m.subtree), offer((N*)m.offer) {}
};

template <class N> EK_FN N clamp(N value, N low, N high) {
  return value < low ? low : value > high ? high : value;
}
template <class N> EK_FN N least(N a, N b) { return a < b ? a : b; }
template <class N> EK_FN N most(N a, N b) { return a > b ? a : b; }

template <class N> EK_FN bool any_overload(Warp team, const Flow<N>& flow, u32 ranks) {
  bool mine = false;
  EK_EACH(team, rank, ranks) mine |= flow.excess[rank] > 0;
  return team.any(mine);
}
