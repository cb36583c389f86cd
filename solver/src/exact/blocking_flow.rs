//! A blocking flow along the levels of a search (Dinic 1970), the reliable method after the quick drains.
//!
//! In: the levels of a search that found slack. Out: load moved until no path from an overloaded rank to
//! slack rises one level per step. Depth-first walks push load, and *current arcs* remember exhausted steps.
//! All steps that the walks add to the residual graph lead down one level. The shortest path therefore grows
//! from search to search, at most as often as there are ranks.
//!
//! A drain costs a fraction of this if items have two hosts and a handful of drains suffices. It sends all
//! load of an item with many hosts through the one rank that reached it first, which can take very long.

use super::SplitFlow;
use super::count::Whole;
use super::search::{self, UNREACHED};
use crate::network::FlowNetwork;

/// Scratch memory of the walks.
#[derive(Debug, Clone, Default)]
pub(super) struct BlockingScratch {
    /// Current arcs: the next seat of each rank, and the next host of each item with many hosts.
    rank_arc: Vec<u32>,
    item_arc: Vec<u32>,
    path: Vec<PathStep>,
}

/// Step of a walk: some of an item moves from the place `from` to the place `to`, on rank `rank`.
#[derive(Debug, Clone, Copy)]
struct PathStep {
    from: u32,
    to: u32,
    rank: u32,
}

impl BlockingScratch {
    pub(super) fn resize_for(&mut self, ranks: usize, net: &FlowNetwork) {
        self.rank_arc.resize(ranks, 0);
        self.item_arc.resize(net.many_items.len(), 0);
        self.path.clear();
        self.path.reserve(ranks);
    }
}

/// Pushes load from the overloaded ranks along rising levels, until no path to slack is left.
pub(super) fn push_blocking_flow<N: Whole>(
    net: &FlowNetwork,
    flow: &mut SplitFlow<N>,
    levels: &mut search::SearchScratch,
    scratch: &mut BlockingScratch,
) {
    let ranks = scratch.rank_arc.len();
    scratch.rank_arc.copy_from_slice(&net.seats.bounds()[..ranks]);
    scratch.item_arc.fill(0);
    for source in 0..levels.sources {
        let source = levels.queue[source];
        scratch.path.clear();
        while flow.excess[source as usize] > N::ZERO && extend_path(source, net, flow, levels, scratch) {
            push_along_path(source, flow, scratch);
        }
    }
}

/// Extends the path, depth first, until it ends at a rank with slack. Returns false if there is no such path.
fn extend_path<N: Whole>(
    source: u32,
    net: &FlowNetwork,
    flow: &SplitFlow<N>,
    levels: &mut search::SearchScratch,
    scratch: &mut BlockingScratch,
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
        // The rank is a dead end, so no later walk visits it.
        if scratch.path.pop().is_none() {
            return false;
        }
        levels.rank_level[at as usize] = UNREACHED;
    }
}

/// Returns the next step one level up from a rank, by its current arcs. The arcs do not advance past that
/// step.
fn next_step<N: Whole>(
    rank: u32,
    net: &FlowNetwork,
    flow: &SplitFlow<N>,
    levels: &search::SearchScratch,
    scratch: &mut BlockingScratch,
) -> Option<PathStep> {
    let above = levels.rank_level[rank as usize] + 1;
    let two_places = 2 * net.two.len() as u32;
    let arc = &mut scratch.rank_arc[rank as usize];
    while *arc < net.seats.bounds()[rank as usize + 1] {
        let seat = net.seats.values()[*arc as usize];
        if flow.quota[seat.place as usize] > N::ZERO {
            if seat.place < two_places {
                if levels.rank_level[seat.other as usize] == above {
                    return Some(PathStep { from: seat.place, to: seat.place ^ 1, rank: seat.other });
                }
            } else if levels.item_level[seat.other as usize] + 1 == above {
                let item = seat.other as usize;
                let hosts = net.many.row(item);
                let to = &mut scratch.item_arc[item];
                while let Some(&host) = hosts.get(*to as usize) {
                    if levels.rank_level[host as usize] == above {
                        let place = net.many_place(item) as u32 + *to;
                        return Some(PathStep { from: seat.place, to: place, rank: host });
                    }
                    *to += 1;
                }
            }
        }
        *arc += 1;
    }
    None
}

/// Moves the largest amount that the path allows, then cuts the path back to before its first exhausted step.
fn push_along_path<N: Whole>(source: u32, flow: &mut SplitFlow<N>, scratch: &mut BlockingScratch) {
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
