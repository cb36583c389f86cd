//! Decreasingly minimal loads by decomposition into classes.
//!
//! In: any flow (quotas within their bounds, rank loads). Out: a flow whose load vector is decreasingly
//! minimal, and the *class* of every rank, the level that its load may reach.
//!
//! **Method** (Fujishige 1980 and Groenevelt 1991 for separable convex cost on a base polyhedron; in whole
//! tokens, Frank and Murota 2022). Take a set of ranks and the lowest [`Level`] `k` at which together they
//! have room for their load. Cap every rank there, and move load from above the caps to below.
//!
//! - Load that stays above its cap reaches a set `S` of ranks that no load can leave. `S` must rise above
//!   `k`, and the rest stays at or below it. Both are settled independently.
//! - If nothing stays above, cap every rank just below `k`. The total does not fit there, so some load stays
//!   above. It reaches a set `S` in which every rank lies at `k` or just below. No exchange within `S` gains
//!   anything, and nothing leaves it. `S` is a class. The rest lies below `k` and is settled independently.
//!
//! Before this, neighbours are levelled a few times, so that little is left to move.
//!
//! Each step splits a set in two or finishes one. There are thus at most twice as many maximum flows as
//! ranks, each within its own set. All loads move in bulk, so the size of the numbers does not matter.

use super::graph::PlaceGraph;
use super::load_levels::{Level, LevelHeap, lowest_level};
use super::residual::BoundedFlow;

/// Number of passes that level neighbours before the search for classes begins.
const LEVELLING_PASSES: usize = 4;

/// Classes, and the memory to find them.
#[derive(Debug, Clone, Default)]
pub(super) struct LevelClasses {
    /// Level that the load of every rank may reach. Ranks of one level form one or more classes.
    pub(super) level: Vec<Level>,
    order: Vec<u32>,
    /// Bounds into `order` of the sets that are not settled yet.
    open: Vec<(u32, u32)>,
    rest: Vec<u32>,
    heap: LevelHeap,
}

impl LevelClasses {
    /// Makes the loads of a flow decreasingly minimal.
    pub(super) fn settle_classes(&mut self, graph: &PlaceGraph, speeds: &[u32], flow: &mut BoundedFlow) {
        let ranks = speeds.len();
        for _ in 0..LEVELLING_PASSES {
            level_hosts(graph, speeds, flow);
        }
        self.level.clear();
        self.level.resize(ranks, Level::ZERO);
        self.order.clear();
        self.order.extend(0..ranks as u32);
        self.rest.clear();
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
            if let [only] = *members {
                self.level[only as usize] = Level { load: total, speed: speeds[only as usize] };
                continue;
            }
            let level = lowest_level(speeds, members, total, &mut self.heap);
            for &rank in members {
                flow.cap[rank as usize] = level.room(speeds[rank as usize]);
            }
            if flow.move_below_caps(graph, members, set) {
                let middle = self.partition_reached(begin, end, flow);
                self.open.extend([(middle, end), (begin, middle)]);
                continue;
            }
            for &rank in members {
                flow.cap[rank as usize] = level.room_below(speeds[rank as usize]);
            }
            let left = flow.move_below_caps(graph, members, set);
            debug_assert!(left, "the ranks have no room for the total below the level");
            let middle = self.partition_reached(begin, end, flow);
            for &rank in &self.order[begin as usize..middle as usize] {
                self.level[rank as usize] = level;
            }
            if middle < end {
                self.open.push((middle, end));
            }
        }
    }

    /// Puts the reached ranks before the others and keeps the order within both. Returns the bound.
    fn partition_reached(&mut self, begin: u32, end: u32, flow: &BoundedFlow) -> u32 {
        let members = &mut self.order[begin as usize..end as usize];
        self.rest.clear();
        let mut middle = 0;
        for index in 0..members.len() {
            let rank = members[index];
            if flow.is_reached(rank) {
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

/// Levels two hosts of each item in turn: the busiest that can give, and the least busy that can take. They
/// reach the same ratio as far as the item allows. After this start, little is left to move, over short
/// paths.
fn level_hosts(graph: &PlaceGraph, speeds: &[u32], flow: &mut BoundedFlow) {
    for index in 0..graph.items.len() {
        let places = graph.item_places(index);
        let (mut from, mut to) = (places.start, places.start + 1);
        if places.len() == 2 {
            if is_busier(graph, speeds, flow, to, from) {
                (from, to) = (to, from);
            }
        } else {
            let (mut busiest, mut idlest) = (None, None);
            for place in places {
                let gives = flow.quota[place] > flow.floor[place];
                if gives && busiest.is_none_or(|best| is_busier(graph, speeds, flow, place, best)) {
                    busiest = Some(place);
                }
                let takes = flow.quota[place] < flow.ceiling[place];
                if takes && idlest.is_none_or(|best| is_busier(graph, speeds, flow, best, place)) {
                    idlest = Some(place);
                }
            }
            let (Some(busiest), Some(idlest)) = (busiest, idlest) else { continue };
            (from, to) = (busiest, idlest);
        }
        let (here, there) = (graph.rank_of[from] as usize, graph.rank_of[to] as usize);
        let (high, low) = (flow.load[here], flow.load[there]);
        let even = if speeds[here] == speeds[there] {
            high.saturating_sub(low) / 2
        } else {
            let (fast, slow) = (u128::from(speeds[here]), u128::from(speeds[there]));
            let gap = (u128::from(high) * slow).saturating_sub(u128::from(low) * fast);
            (gap / (fast + slow)) as u64
        };
        let amount = even.min(flow.quota[from] - flow.floor[from]).min(flow.ceiling[to] - flow.quota[to]);
        flow.quota[from] -= amount;
        flow.quota[to] += amount;
        flow.load[here] -= amount;
        flow.load[there] += amount;
    }
}

/// Returns true if the rank of one place has a higher ratio of load to speed than that of another.
fn is_busier(graph: &PlaceGraph, speeds: &[u32], flow: &BoundedFlow, place: usize, other: usize) -> bool {
    let (one, two) = (graph.rank_of[place] as usize, graph.rank_of[other] as usize);
    if speeds[one] == speeds[two] {
        return flow.load[one] > flow.load[two];
    }
    u128::from(flow.load[one]) * u128::from(speeds[two])
        > u128::from(flow.load[two]) * u128::from(speeds[one])
}
