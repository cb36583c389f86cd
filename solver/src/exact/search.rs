//! The residual search: from overloaded ranks to slack, or to a cut.
//!
//! In: quotas and excesses. Out: whether slack is in reach, with the forest of steps that lead there; if it is not,
//! the set of reached ranks, which is then a cut.
//!
//! **Method.** Load can move from rank `r` to rank `t` if a shared item has a quota on `r` and `t` among its
//! hosts. A breadth-first search from all overloaded ranks at once notes for every rank the first step that
//! reached it; an item with many hosts is expanded once, by the first rank that carries it, because all its
//! hosts are then reached. The search does not stop at the first rank with slack: the forest goes on to all.
//!
//! **How often.** Every path in the forest is a shortest one, so a drain ([`forest`](super::forest)) adds only
//! residual steps that lead one level down, and no rank ever comes nearer to the overloaded ones. Each drain
//! exhausts a step, a source or a sink, and a step that is exhausted must be two levels further out before it
//! is exhausted again (Edmonds and Karp 1972). In practice it is a handful of drains; where it is not, and for
//! items with many hosts, blocking flows take over ([`block`](super::block)): at most as many as ranks.

use super::count::Whole;
use super::{Flow, any_overload};
use crate::net::{Branch, Net};

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Every rank is within its room.
    NothingOverloaded,
    /// Load can reach slack along [`Scratch::forest`].
    Slack,
    /// No slack in reach: [`Scratch::reached`] is a cut.
    Cut,
}

/// The level of what was not reached.
pub(super) const NEVER: u32 = u32::MAX;

/// Scratch memory of the search.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    /// Steps from the nearest overloaded rank.
    pub(super) rank_level: Vec<u32>,
    /// Of the items with many hosts: the level of the first rank that carries it.
    pub(super) item_level: Vec<u32>,
    /// Ranks in the order they were reached; the first `sources` are the overloaded ones.
    pub(super) queue: Vec<u32>,
    pub(super) sources: usize,
    forest: Vec<Branch>,
}

impl Scratch {
    pub(super) fn fit(&mut self, ranks: usize, net: &Net) {
        self.rank_level.resize(ranks, NEVER);
        self.item_level.resize(net.many_items.len(), NEVER);
        self.queue.clear();
        self.queue.reserve(ranks);
        self.forest.clear();
        self.forest.reserve(ranks);
    }

    /// The ranks that the last search reached.
    pub(super) fn reached(&self) -> &[u32] {
        &self.queue
    }

    /// The steps by which the last search first reached them.
    pub(super) fn forest(&self) -> &[Branch] {
        &self.forest
    }
}

/// Breadth-first search from all overloaded ranks.
pub(super) fn search<N: Whole>(net: &Net, flow: &Flow<N>, scratch: &mut Scratch) -> Found {
    let Scratch { rank_level, item_level, queue, forest, sources } = scratch;
    if !any_overload(&flow.excess) {
        return Found::NothingOverloaded;
    }
    queue.clear();
    forest.clear();
    // Filling nothing is a call of memset at a dangling address, whose masked store takes a slow path on some processors.
    if !item_level.is_empty() {
        item_level.fill(NEVER);
    }
    for ((rank, &excess), level) in (0u32..).zip(&flow.excess).zip(rank_level.iter_mut()) {
        *level = if excess > N::ZERO { 0 } else { NEVER };
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
            if *child_level == NEVER {
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
            } else if item_level[seat.other as usize] == NEVER {
                let item = seat.other as usize;
                item_level[item] = level;
                for (&host, host_place) in net.many.row(item).iter().zip(net.many_place(item) as u32..) {
                    reach(host, place, host_place);
                }
            }
        }
    }
    if slack { Found::Slack } else { Found::Cut }
}
