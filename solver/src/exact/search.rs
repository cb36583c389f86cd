//! The residual search: from overloaded ranks to slack, or to a cut.
//!
//! In: quotas and excesses. Out: the forest of steps that lead to slack. If no slack is in reach, the set of
//! reached ranks, which is then a cut.
//!
//! **Method.** Load can move from rank `r` to rank `t` if a shared item has a quota on `r` and `t` among its
//! hosts. A breadth-first search from all overloaded ranks at once records the first step that reached each
//! rank. An item with many hosts is expanded once, by the first rank that carries it, because all its hosts
//! are then reached. The search does not stop at the first rank with slack, so that the forest leads to all
//! of them.
//!
//! **Number of searches.** Every path in the forest is a shortest one. A drain ([`forest`](super::forest))
//! therefore adds only residual steps that lead one level down, and no rank ever comes nearer to the
//! overloaded ones. Each drain exhausts a step, a source or a sink. A step must be two levels further out
//! before it is exhausted again (Edmonds and Karp 1972). In practice a handful of drains suffices. Otherwise,
//! and for items with many hosts, blocking flows take over ([`blocking_flow`](super::blocking_flow)), at most
//! as many as ranks.

use super::count::Whole;
use super::{SplitFlow, any_overload};
use crate::network::{Branch, FlowNetwork};

/// Result of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ResidualResult {
    /// Every rank is within its room.
    NothingOverloaded,
    /// Load can reach slack along [`SearchScratch::forest`].
    Slack,
    /// No slack is in reach, so [`SearchScratch::reached_ranks`] is a cut.
    Cut,
}

/// Level of ranks and items that were not reached.
pub(super) const UNREACHED: u32 = u32::MAX;

/// Scratch memory of the search.
#[derive(Debug, Clone, Default)]
pub(super) struct SearchScratch {
    /// Number of steps from the nearest overloaded rank.
    pub(super) rank_level: Vec<u32>,
    /// Level of the first rank that carries the item, for items with many hosts.
    pub(super) item_level: Vec<u32>,
    /// Ranks in the order in which they were reached. The first `sources` are the overloaded ones.
    pub(super) queue: Vec<u32>,
    pub(super) sources: usize,
    forest: Vec<Branch>,
}

impl SearchScratch {
    pub(super) fn resize_for(&mut self, ranks: usize, net: &FlowNetwork) {
        self.rank_level.resize(ranks, UNREACHED);
        self.item_level.resize(net.many_items.len(), UNREACHED);
        self.queue.clear();
        self.queue.reserve(ranks);
        self.forest.clear();
        self.forest.reserve(ranks);
    }

    /// Returns the ranks that the last search reached.
    pub(super) fn reached_ranks(&self) -> &[u32] {
        &self.queue
    }

    /// Returns the steps by which the last search first reached these ranks.
    pub(super) fn forest(&self) -> &[Branch] {
        &self.forest
    }
}

/// Searches breadth-first from all overloaded ranks.
pub(super) fn search_residual<N: Whole>(
    net: &FlowNetwork,
    flow: &SplitFlow<N>,
    scratch: &mut SearchScratch,
) -> ResidualResult {
    let SearchScratch { rank_level, item_level, queue, forest, sources } = scratch;
    if !any_overload(&flow.excess) {
        return ResidualResult::NothingOverloaded;
    }
    queue.clear();
    forest.clear();
    // For an empty slice, `fill` calls memset at a dangling address. Its masked store takes a slow path on
    // some processors.
    if !item_level.is_empty() {
        item_level.fill(UNREACHED);
    }
    for ((rank, &excess), level) in (0u32..).zip(&flow.excess).zip(rank_level.iter_mut()) {
        *level = if excess > N::ZERO { 0 } else { UNREACHED };
        if *level == 0 {
            queue.push(rank);
        }
    }
    *sources = queue.len();

    let two_places = 2 * net.two.len() as u32;
    let mut slack = false;
    let mut done = 0;
    while let Some(&parent) = queue.get(done) {
        done += 1;
        let level = rank_level[parent as usize];
        let mut reach = |child: u32, parent_place: u32, child_place: u32| {
            let child_level = &mut rank_level[child as usize];
            if *child_level == UNREACHED {
                *child_level = level + 1;
                slack |= flow.excess[child as usize] < N::ZERO;
                queue.push(child);
                forest.push(Branch { parent, child, parent_place, child_place });
            }
        };
        for seat in net.seats.row(parent as usize) {
            let place = seat.place;
            if flow.quota[place as usize] == N::ZERO {
                continue;
            }
            if place < two_places {
                reach(seat.other, place, place ^ 1);
            } else if item_level[seat.other as usize] == UNREACHED {
                let item = seat.other as usize;
                item_level[item] = level;
                for (&host, host_place) in net.many.row(item).iter().zip(net.many_place(item) as u32..) {
                    reach(host, place, host_place);
                }
            }
        }
    }
    if slack { ResidualResult::Slack } else { ResidualResult::Cut }
}
