// Maps quotas to sources (src/split/source_shares.rs): the number of one source's tokens that each replica
// serves. One lane per expert.
//
// Tokens are served on their own rank as far as the quotas allow, then in their own node, then anywhere.
// Within a level replicas and sources are matched in ascending order. This matching compares two rows of
// intervals: a share is the overlap of the source's interval with the replica's. So one pass over the sources
// is enough.
#include "team.h"

// Returns the length of the overlap of two intervals.
EK_FN u64 overlap(u64 a_begin, u64 a_end, u64 b_begin, u64 b_end) {
  u64 begin = a_begin > b_begin ? a_begin : b_begin, end = a_end < b_end ? a_end : b_end;
  return end > begin ? end - begin : 0;
}

EK_FN u64 above(u64 value, u64 floor) { return value > floor ? value - floor : 0; }

// The replicas of one expert: rank and pair of each, in ascending slots. A pair of EK_NEVER serves nothing.
struct Copies {
  const u32 *ranks, *pairs;
  u32 count;
};

// Computes the shares of one expert. `counts` is the first source's count of it; the next source's is
// `stride` numbers further.
EK_FN void share(Copies copies, const u32* counts, u64 stride, const u64* quotas, u32 ranks, u32 per_node, u32 source,
                 u64* shares) {
  const u32 own_node = source / per_node;
  u64 own_begin = 0, own_supply = 0, node_match = 0; // the source's interval in its node; the node's matches
  u64 far_begin = 0, far_supply = 0;                 // the source's interval among unmatched tokens
  u64 supply_left = 0, demand_left = 0;              // running ends of both
  u32 copy = 0;
  for (u32 node = 0; node * per_node < ranks; ++node) {
    const u32 first_copy = copy, end_rank = (node + 1) * per_node;
    u64 supply = 0, demand = 0;
    for (u32 rank = node * per_node; rank < end_rank; ++rank) {
      u64 tokens = counts[rank * stride];
      for (; copy < copies.count && copies.ranks[copy] == rank; ++copy) {
        if (copies.pairs[copy] == EK_NEVER) continue;
        u64 quota = quotas[copies.pairs[copy]], local = quota < tokens ? quota : tokens;
        tokens -= local;
        demand += quota - local;
      }
      if (rank == source) {
        own_begin = supply;
        own_supply = tokens;
      }
      supply += tokens;
    }
    const u64 match = supply < demand ? supply : demand;
    if (node == own_node) {
      node_match = match;
      far_begin = supply_left + above(own_begin, match);
      far_supply = above(own_begin + own_supply, match) - above(own_begin, match);
    }
    supply_left += supply - match;
    // For now a replica's share is the end of its interval among the demand of nodes from elsewhere.
    u64 wanted = 0;
    for (u32 at = first_copy; at < copy; ++at) {
      if (copies.pairs[at] != EK_NEVER) {
        u64 quota = quotas[copies.pairs[at]], tokens = counts[copies.ranks[at] * stride];
        wanted += above(quota, tokens);
      }
      shares[at] = demand_left + above(wanted, match);
    }
    demand_left += above(wanted, match);
  }
  u64 begin = 0, wanted = 0;
  for (u32 at = 0; at < copies.count; ++at) {
    u64 end = shares[at], tokens = overlap(far_begin, far_begin + far_supply, begin, end);
    begin = end;
    u32 rank = copies.ranks[at];
    if (rank / per_node == own_node && copies.pairs[at] != EK_NEVER) {
      u64 quota = quotas[copies.pairs[at]], there = counts[rank * stride];
      u64 from = wanted;
      wanted += above(quota, there);
      u64 upto = wanted < node_match ? wanted : node_match;
      tokens += overlap(own_begin, own_begin + own_supply, from, upto);
      if (rank == source) tokens += quota < there ? quota : there;
    }
    shares[at] = tokens;
  }
}

// Computes the shares of all experts of one layer. `layout` contains the bounds of every expert's replicas
// [experts + 1], then the slots, the ranks and the pairs of all replicas.
EK_FN void share_all(Block team, const u32* layout, const u32* counts, const u64* quotas, u32 experts, u32 ranks,
                     u32 per_node, u32 source, u32 first, u32 lanes, u64* shares) {
  const u32 copies = layout[experts];
  const u32 *copy_ranks = layout + experts + 1 + copies, *copy_pairs = copy_ranks + copies;
  EK_FOR(team, lane, lanes) {
    u32 expert = first + lane;
    if (expert < experts) {
      u32 begin = layout[expert];
      Copies own = {copy_ranks + begin, copy_pairs + begin, layout[expert + 1] - begin};
      share(own, counts + expert, experts, quotas, ranks, per_node, source, shares + begin);
    }
  }
}

EK_KERNEL(128)
ek_share(const u32* layout, const u32* counts, const u64* quotas, u32 experts, u32 ranks, u32 per_node, u32 source,
         u64* shares) {
  share_all(Block(), layout, counts, quotas, experts, ranks, per_node, source, blockIdx.x * 128, 128, shares);
}
