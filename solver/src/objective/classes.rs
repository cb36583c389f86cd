//! Decreasingly minimal loads by decomposition into classes.
//!
//! In: any flow (quotas within their bounds, rank loads). Out: a flow whose load vector is decreasingly minimal, and
//! the *class* of every rank: the level its load may reach.
//!
//! **Method** (Fujishige 1980 and Groenevelt 1991 for separable convex cost on a base polyhedron; in whole tokens,
//! Frank and Murota 2022). Take a set of ranks and the least [`Level`] `k` at which together they have room for what
//! they carry. Cap every rank there and move load from above the caps to below.
//!
//! - What is left above its cap reaches a set `S` of ranks that no load can leave: `S` must rise above `k`, the rest
//!   stays at or below it, and both are settled by themselves.
//! - If nothing is left, cap every rank just below `k`. The total does not fit there, so something is left: it reaches
//!   a set `S` in which every rank lies at `k` or just below. No exchange within `S` gains anything and nothing leaves
//!   it. `S` is a class; the rest lies below `k` and is settled by itself.
//!
//! Each step splits a set in two or finishes one, so there are at most twice as many maximum flows as ranks, each within
//! its own set. All loads move in bulk; the size of the numbers does not matter.

use super::graph::{Flow, Graph};
use super::level::{Heap, Level, least};

/// Classes, and the memory to find them.
#[derive(Debug, Clone, Default)]
pub(super) struct Classes {
    /// Of every rank: the level that its load may reach. Ranks of one level form one or more classes.
    pub(super) level: Vec<Level>,
    order: Vec<u32>,
    /// Bounds into `order` of the sets still to be settled.
    open: Vec<(u32, u32)>,
    rest: Vec<u32>,
    heap: Heap,
}

impl Classes {
    /// Makes the loads of a flow decreasingly minimal.
    pub(super) fn settle(&mut self, graph: &Graph, speeds: &[u32], flow: &mut Flow) {
        let ranks = speeds.len();
        self.level.clear();
        self.level.resize(ranks, Level::ZERO);
        self.order.clear();
        self.order.extend(0..ranks as u32);
        self.rest.reserve(ranks);
        self.heap.clear();
        self.heap.reserve(ranks);
        self.open.clear();
        self.open.reserve(ranks);
        self.open.push((0, ranks as u32));
        let mut set = 0;
        while let Some((begin, end)) = self.open.pop() {
            set += 1;
            let members = &self.order[begin as usize..end as usize];
            for &rank in members {
                flow.set[rank as usize] = set;
            }
            let total: u64 = members.iter().map(|&rank| flow.load[rank as usize]).sum();
            if total == 0 {
                continue;
            }
            let level = least(speeds, members, total, &mut self.heap);
            for &rank in members {
                flow.cap[rank as usize] = level.room(speeds[rank as usize]);
            }
            if flow.relieve(graph, members, set) {
                let middle = self.divide(begin, end, flow);
                self.open.extend([(middle, end), (begin, middle)]);
                continue;
            }
            for &rank in members {
                flow.cap[rank as usize] = level.room_below(speeds[rank as usize]);
            }
            let left = flow.relieve(graph, members, set);
            debug_assert!(left, "below the level there is no room for the total");
            let middle = self.divide(begin, end, flow);
            for &rank in &self.order[begin as usize..middle as usize] {
                self.level[rank as usize] = level;
            }
            if middle < end {
                self.open.push((middle, end));
            }
        }
    }

    /// Puts the ranks that were reached before the others, both in the order they were in; returns the bound.
    fn divide(&mut self, begin: u32, end: u32, flow: &Flow) -> u32 {
        let members = &mut self.order[begin as usize..end as usize];
        self.rest.clear();
        let mut middle = 0;
        for index in 0..members.len() {
            let rank = members[index];
            if flow.reached(rank) {
                members[middle] = rank;
                middle += 1;
            } else {
                self.rest.push(rank);
            }
        }
        members[middle..].copy_from_slice(&self.rest);
        begin + middle as u32
    }
}
