//! Load that moves between ranks: the residual graph of a split, within bounds on every quota.
//!
//! In: hosts, quotas, a cap per rank. Out: load moved from ranks above their cap to ranks below it, as much as can
//! be, and if not all of it, the set of ranks that what is left can reach.
//!
//! **Method.** Dinic's (1970): breadth-first levels from the ranks above their cap, then a blocking flow along paths
//! that rise one level per step, each move in bulk. Everything is confined to one set of ranks at a time.

use std::sync::Arc;

use crate::Hosts;

/// The level of what was not reached.
const NEVER: u32 = u32::MAX;

/// The items with a choice, and where load can move. A *place* is such an item on one of its hosts.
#[derive(Debug, Clone, Default)]
pub(super) struct Graph {
    /// The item, and its places `bounds[k]..bounds[k + 1]`.
    pub(super) items: Vec<u32>,
    pub(super) bounds: Vec<u32>,
    /// Of every place: its rank, its (item, host) pair.
    pub(super) rank_of: Vec<u32>,
    pub(super) pair_of: Vec<u32>,
    /// Rank by rank, the places there with the index of their item.
    seat_bounds: Vec<u32>,
    seats: Vec<(u32, u32)>,
    made_for: Option<Arc<[u32]>>,
}

impl Graph {
    /// Makes the lists for these hosts, unless they are there already.
    pub(super) fn fit(&mut self, hosts: &Hosts) {
        if self.made_for.as_ref().is_some_and(|offsets| Arc::ptr_eq(offsets, hosts.offsets())) {
            return;
        }
        self.made_for = Some(Arc::clone(hosts.offsets()));
        self.items.clear();
        self.rank_of.clear();
        self.pair_of.clear();
        self.bounds.clear();
        self.bounds.push(0);
        let mut counts = vec![0u32; hosts.ranks() + 1];
        for &item in hosts.shared() {
            self.items.push(item);
            for (&rank, pair) in hosts.of(item as usize).iter().zip(hosts.offset(item as usize)..) {
                self.rank_of.push(rank);
                self.pair_of.push(pair as u32);
                counts[rank as usize + 1] += 1;
            }
            self.bounds.push(self.rank_of.len() as u32);
        }
        for rank in 0..hosts.ranks() {
            counts[rank + 1] += counts[rank];
        }
        self.seat_bounds.clone_from(&counts);
        self.seats.clear();
        self.seats.resize(self.rank_of.len(), (0, 0));
        for index in 0..self.items.len() {
            for place in self.places(index) {
                let next = &mut counts[self.rank_of[place] as usize];
                self.seats[*next as usize] = (place as u32, index as u32);
                *next += 1;
            }
        }
    }

    /// The places of an item, by its index in `items`.
    pub(super) fn places(&self, index: usize) -> std::ops::Range<usize> {
        self.bounds[index] as usize..self.bounds[index + 1] as usize
    }

    /// The places on a rank, each with the index of its item.
    pub(super) fn seats(&self, rank: usize) -> &[(u32, u32)] {
        &self.seats[self.seat_bounds[rank] as usize..self.seat_bounds[rank + 1] as usize]
    }
}

/// Quotas, loads and caps, and the scratch memory of searches.
#[derive(Debug, Clone, Default)]
pub(super) struct Flow {
    /// Of every place: tokens served there, and how few and how many may be.
    pub(super) quota: Vec<u64>,
    pub(super) floor: Vec<u64>,
    pub(super) ceiling: Vec<u64>,
    /// Of every rank: its load, the load it should not exceed, the set it belongs to.
    pub(super) load: Vec<u64>,
    pub(super) cap: Vec<u64>,
    pub(super) set: Vec<u32>,
    rank_level: Vec<u32>,
    item_level: Vec<u32>,
    rank_arc: Vec<u32>,
    item_arc: Vec<u32>,
    queue: Vec<u32>,
    sources: usize,
    path: Vec<Step>,
}

/// Some of an item moves from one place to another.
#[derive(Debug, Clone, Copy)]
struct Step {
    index: u32,
    from: u32,
    to: u32,
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Slack,
    Cut,
}

impl Flow {
    /// Gives every vector its size; no bounds on quotas.
    pub(super) fn fit(&mut self, graph: &Graph, ranks: usize) {
        let places = graph.rank_of.len();
        self.quota.resize(places, 0);
        self.floor.clear();
        self.floor.resize(places, 0);
        self.ceiling.clear();
        self.ceiling.resize(places, u64::MAX);
        self.load.resize(ranks, 0);
        self.cap.resize(ranks, 0);
        self.set.resize(ranks, 0);
        self.rank_level.resize(ranks, NEVER);
        self.rank_arc.resize(ranks, 0);
        self.item_level.resize(graph.items.len(), NEVER);
        self.item_arc.resize(graph.items.len(), 0);
        self.queue.clear();
        self.queue.reserve(ranks);
        self.path.clear();
        self.path.reserve(ranks);
    }

    /// Takes quotas and rank loads over from the caller's numbering.
    pub(super) fn read(&mut self, graph: &Graph, quotas: &[u64], rank_loads: &[u64]) {
        for (quota, &pair) in self.quota.iter_mut().zip(&graph.pair_of) {
            *quota = quotas[pair as usize];
        }
        self.load.copy_from_slice(rank_loads);
    }

    /// Hands quotas and rank loads back.
    pub(super) fn write(&self, graph: &Graph, quotas: &mut [u64], rank_loads: &mut [u64]) {
        for (&quota, &pair) in self.quota.iter().zip(&graph.pair_of) {
            quotas[pair as usize] = quota;
        }
        rank_loads.copy_from_slice(&self.load);
    }

    /// Moves load within one set of ranks from above the caps to below them until nothing is above its cap
    /// (false) or what is above can reach no room (true: [`reached`](Self::reached) is the cut).
    pub(super) fn relieve(&mut self, graph: &Graph, members: &[u32], set: u32) -> bool {
        loop {
            match self.search(graph, members, set) {
                Found::Nothing => return false,
                Found::Cut => return true,
                Found::Slack => self.block(graph, set),
            }
        }
    }

    /// Whether the last search reached this rank.
    pub(super) fn reached(&self, rank: u32) -> bool {
        self.rank_level[rank as usize] != NEVER
    }

    fn search(&mut self, graph: &Graph, members: &[u32], set: u32) -> Found {
        self.queue.clear();
        for &rank in members {
            let above = self.load[rank as usize] > self.cap[rank as usize];
            self.rank_level[rank as usize] = if above { 0 } else { NEVER };
            if above {
                self.queue.push(rank);
            }
        }
        if self.queue.is_empty() {
            return Found::Nothing;
        }
        self.sources = self.queue.len();
        self.item_level.fill(NEVER);
        let mut found = Found::Cut;
        let mut done = 0;
        while let Some(&rank) = self.queue.get(done) {
            done += 1;
            let level = self.rank_level[rank as usize];
            for &(place, index) in graph.seats(rank as usize) {
                let (place, index) = (place as usize, index as usize);
                if self.item_level[index] != NEVER || self.quota[place] <= self.floor[place] {
                    continue;
                }
                self.item_level[index] = level;
                for to in graph.places(index) {
                    let host = graph.rank_of[to];
                    let there = host as usize;
                    let open = self.rank_level[there] == NEVER && self.set[there] == set;
                    if open && self.quota[to] < self.ceiling[to] {
                        self.rank_level[there] = level + 1;
                        self.queue.push(host);
                        if self.load[there] < self.cap[there] {
                            found = Found::Slack;
                        }
                    }
                }
            }
        }
        found
    }

    fn block(&mut self, graph: &Graph, set: u32) {
        for &rank in &self.queue {
            self.rank_arc[rank as usize] = 0;
        }
        self.item_arc.fill(0);
        for index in 0..self.sources {
            let source = self.queue[index];
            while self.load[source as usize] > self.cap[source as usize] && self.walk(graph, source, set) {}
        }
    }

    /// Moves load along one path from this rank to slack; false if there is none.
    fn walk(&mut self, graph: &Graph, source: u32, set: u32) -> bool {
        self.path.clear();
        let mut rank = source as usize;
        while self.load[rank] >= self.cap[rank] {
            if let Some(step) = self.advance(graph, rank, set) {
                self.path.push(step);
                rank = graph.rank_of[step.to as usize] as usize;
            } else if let Some(step) = self.path.pop() {
                // A dead end for everyone who comes through this item.
                self.item_arc[step.index as usize] += 1;
                rank = graph.rank_of[step.from as usize] as usize;
            } else {
                return false;
            }
        }
        let slack = self.cap[rank] - self.load[rank];
        let above = self.load[source as usize] - self.cap[source as usize];
        let spare = |step: &Step| {
            let (from, to) = (step.from as usize, step.to as usize);
            (self.quota[from] - self.floor[from]).min(self.ceiling[to] - self.quota[to])
        };
        let amount = self.path.iter().map(spare).fold(slack.min(above), u64::min);
        for step in &self.path {
            self.quota[step.from as usize] -= amount;
            self.quota[step.to as usize] += amount;
        }
        self.load[source as usize] -= amount;
        self.load[rank] += amount;
        true
    }

    /// The next step up one level from a rank; arcs found exhausted are not looked at again.
    fn advance(&mut self, graph: &Graph, rank: usize, set: u32) -> Option<Step> {
        let level = self.rank_level[rank];
        let seats = graph.seats(rank);
        while let Some(&(from, index)) = seats.get(self.rank_arc[rank] as usize) {
            let item = index as usize;
            if self.item_level[item] == level && self.quota[from as usize] > self.floor[from as usize] {
                let places = graph.places(item);
                while places.start + (self.item_arc[item] as usize) < places.end {
                    let to = places.start + self.item_arc[item] as usize;
                    let there = graph.rank_of[to] as usize;
                    let up = self.set[there] == set && self.rank_level[there] == level + 1;
                    if up && self.quota[to] < self.ceiling[to] {
                        return Some(Step { index, from, to: to as u32 });
                    }
                    self.item_arc[item] += 1;
                }
            }
            self.rank_arc[rank] += 1;
        }
        None
    }
}
