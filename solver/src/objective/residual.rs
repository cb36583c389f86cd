//! Load that moves between ranks: the residual graph of a split, within bounds on every quota.
//!
//! In: hosts, quotas, a cap per rank. Out: load moved from ranks above their cap to ranks below it, as much as can
//! be, and if not all of it, the set of ranks that what is left can reach.
//!
//! **Method.** Breadth-first levels from the ranks above their cap. Where all items have two hosts, load first drains
//! along the forest of that search, a few times; else, and then, a blocking flow along paths that rise one level per step
//! (Dinic 1970). Each move is in bulk, and everything is confined to one set of ranks at a time.

use super::graph::Graph;

/// How many quick drains are tried before blocking flows take over.
const DRAINS: usize = 16;

/// The level of what was not reached.
const NEVER: u32 = u32::MAX;

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
    /// By which step every rank of the queue but the sources was first reached.
    forest: Vec<Step>,
    /// What a rank and those reached through it can take.
    want: Vec<u64>,
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
        self.forest.clear();
        self.forest.reserve(ranks);
        self.want.resize(ranks, 0);
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
        let mut drains = if graph.pairs_only { DRAINS } else { 0 };
        loop {
            match self.search(graph, members, set) {
                Found::Nothing => return false,
                Found::Cut => return true,
                Found::Slack if drains > 0 => {
                    drains -= 1;
                    self.drain(graph);
                }
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
        self.forest.clear();
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
                        self.forest.push(Step { index: index as u32, from: place as u32, to: to as u32 });
                        if self.load[there] < self.cap[there] {
                            found = Found::Slack;
                        }
                    }
                }
            }
        }
        found
    }

    /// Sends what is above the caps down the forest of the last search: one pass up for what every branch can take, one
    /// down to hand it out. For items with two hosts only, whose places belong to one step each.
    fn drain(&mut self, graph: &Graph) {
        for &rank in &self.queue {
            let rank = rank as usize;
            self.want[rank] = self.cap[rank].saturating_sub(self.load[rank]);
        }
        let children = &self.queue[self.sources..];
        for (&rank, step) in children.iter().zip(&self.forest).rev() {
            let (from, to) = (step.from as usize, step.to as usize);
            let spare = (self.quota[from] - self.floor[from]).min(self.ceiling[to] - self.quota[to]);
            self.want[rank as usize] = self.want[rank as usize].min(spare);
            self.want[graph.rank_of[from] as usize] += self.want[rank as usize];
        }
        for (&rank, step) in children.iter().zip(&self.forest) {
            let (rank, from) = (rank as usize, step.from as usize);
            let parent = graph.rank_of[from] as usize;
            let amount = self.load[parent].saturating_sub(self.cap[parent]).min(self.want[rank]);
            self.quota[from] -= amount;
            self.quota[step.to as usize] += amount;
            self.load[parent] -= amount;
            self.load[rank] += amount;
        }
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
