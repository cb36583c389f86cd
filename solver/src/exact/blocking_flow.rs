//! A blocking flow along the levels of a search (Dinic 1970): the steady worker behind the quick drain.
//!
//! In: the levels of a search that found slack. Out: load moved until no path that rises one level per step leads
//! from an overloaded rank to slack. Depth-first walks push load; *current arcs* remember what is exhausted. What
//! the walks add to the residual graph leads down one level, so the shortest path grows from search to
//! search, at most as often as there are ranks.
//!
//! A drain costs a fraction of this where items have two hosts and a handful of drains is enough. It sends all
//! load of an item with many hosts through the one rank that reached it first, which can take very long.

use super::Flow;
use super::count::Whole;
use super::search::{self, NEVER};
use crate::net::Net;

/// Scratch memory of the walks.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    /// Current arcs: per rank the next seat to try, per item with many hosts the next host to try.
    rank_arc: Vec<u32>,
    item_arc: Vec<u32>,
    path: Vec<Step>,
}

/// One step of a walk: some of an item moves from the place `from` to the place `to`, on rank `rank`.
#[derive(Debug, Clone, Copy)]
struct Step {
    from: u32,
    to: u32,
    rank: u32,
}

impl Scratch {
    pub(super) fn fit(&mut self, ranks: usize, net: &Net) {
        self.rank_arc.resize(ranks, 0);
        self.item_arc.resize(net.many_items.len(), 0);
        self.path.clear();
        self.path.reserve(ranks);
    }
}

/// Pushes load from the overloaded ranks along rising levels until no path to slack is left.
pub(super) fn block<N: Whole>(
    net: &Net,
    flow: &mut Flow<N>,
    levels: &mut search::Scratch,
    scratch: &mut Scratch,
) {
    let ranks = scratch.rank_arc.len();
    scratch.rank_arc.copy_from_slice(&net.seats.bounds()[..ranks]);
    scratch.item_arc.fill(0);
    for source in 0..levels.sources {
        let source = levels.queue[source];
        scratch.path.clear();
        while flow.excess[source as usize] > N::ZERO && walk(source, net, flow, levels, scratch) {
            push(source, flow, scratch);
        }
    }
}

/// Extends the path, depth first, until it ends at a rank with slack; false if there is no such path.
fn walk<N: Whole>(
    source: u32,
    net: &Net,
    flow: &Flow<N>,
    levels: &mut search::Scratch,
    scratch: &mut Scratch,
) -> bool {
    loop {
        let at = scratch.path.last().map_or(source, |step| step.rank);
        if flow.excess[at as usize] < N::ZERO {
            return true;
        }
        if let Some(step) = next_step(at, net, flow, levels, scratch) {
            scratch.path.push(step);
            continue;
        }
        // A dead end: never go there again.
        if scratch.path.pop().is_none() {
            return false;
        }
        levels.rank_level[at as usize] = NEVER;
    }
}

/// The next step one level up from a rank, by its current arcs; does not advance past the step it returns.
fn next_step<N: Whole>(
    rank: u32,
    net: &Net,
    flow: &Flow<N>,
    levels: &search::Scratch,
    scratch: &mut Scratch,
) -> Option<Step> {
    let above = levels.rank_level[rank as usize] + 1;
    let two_places = 2 * net.two.len() as u32;
    let arc = &mut scratch.rank_arc[rank as usize];
    while *arc < net.seats.bounds()[rank as usize + 1] {
        let seat = net.seats.values()[*arc as usize];
        if flow.quota[seat.place as usize] > N::ZERO {
            if seat.place < two_places {
                if levels.rank_level[seat.other as usize] == above {
                    return Some(Step { from: seat.place, to: seat.place ^ 1, rank: seat.other });
                }
            } else if levels.item_level[seat.other as usize] + 1 == above {
                let item = seat.other as usize;
                let hosts = net.many.row(item);
                let to = &mut scratch.item_arc[item];
                while let Some(&host) = hosts.get(*to as usize) {
                    if levels.rank_level[host as usize] == above {
                        let place = net.many_place(item) as u32 + *to;
                        return Some(Step { from: seat.place, to: place, rank: host });
                    }
                    *to += 1;
                }
            }
        }
        *arc += 1;
    }
    None
}

/// Moves as much as the path allows, then cuts the path back to before its first exhausted step.
fn push<N: Whole>(source: u32, flow: &mut Flow<N>, scratch: &mut Scratch) {
    let Some(last) = scratch.path.last() else { return };
    let (source, sink) = (source as usize, last.rank as usize);
    let mut amount = flow.excess[source].min(N::ZERO - flow.excess[sink]);
    for step in &scratch.path {
        amount = amount.min(flow.quota[step.from as usize]);
    }
    let mut keep = scratch.path.len();
    for (index, step) in scratch.path.iter().enumerate() {
        flow.quota[step.from as usize] -= amount;
        flow.quota[step.to as usize] += amount;
        if flow.quota[step.from as usize] == N::ZERO {
            keep = keep.min(index);
        }
    }
    flow.excess[source] -= amount;
    flow.excess[sink] += amount;
    scratch.path.truncate(keep);
}
