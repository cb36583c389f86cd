//! Load that moves between ranks: the residual graph of a split, within bounds on every quota.
//!
//! In: hosts, quotas, a cap per rank. Out: as much load as possible moved from ranks above their cap to ranks
//! below it. If some load stays above, the result is also the set of ranks that it can reach.
//!
//! **Method.** The search computes breadth-first levels from the ranks above their cap. If all items have two
//! hosts, load first drains along the forest of that search, a few times. Otherwise, and afterwards, a
//! blocking flow follows paths that rise one level per step (Dinic 1970). Each move is in bulk, and
//! everything is confined to one set of ranks at a time.

use super::graph::PlaceGraph;

/// Highest number of quick drains before blocking flows take over.
const MAX_DRAINS: usize = 16;

/// Level of ranks and items that were not reached.
const UNREACHED: u32 = u32::MAX;

/// Quotas, loads and caps, and the scratch memory of searches.
#[derive(Debug, Clone, Default)]
pub(super) struct BoundedFlow {
    /// For every place: its tokens, and their lowest and highest number.
    pub(super) quota: Vec<u64>,
    pub(super) floor: Vec<u64>,
    pub(super) ceiling: Vec<u64>,
    /// For every rank: its load, the load that it should not exceed, and its set.
    pub(super) load: Vec<u64>,
    pub(super) cap: Vec<u64>,
    pub(super) set: Vec<u32>,
    rank_level: Vec<u32>,
    item_level: Vec<u32>,
    rank_arc: Vec<u32>,
    item_arc: Vec<u32>,
    queue: Vec<u32>,
    sources: usize,
    /// Step by which every rank of the queue except the sources was first reached.
    forest: Vec<PlaceMove>,
    /// Tokens that a rank and those reached through it can take.
    capacity: Vec<u64>,
    path: Vec<PlaceMove>,
}

/// Move of some of an item from one place to another.
#[derive(Debug, Clone, Copy)]
struct PlaceMove {
    index: u32,
    from: u32,
    to: u32,
}

/// Result of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CapSearchResult {
    NothingAbove,
    Slack,
    Cut,
}

impl BoundedFlow {
    /// Gives every vector its size, and removes the bounds on quotas.
    pub(super) fn resize_for(&mut self, graph: &PlaceGraph, ranks: usize) {
        let places = graph.rank_of.len();
        self.quota.resize(places, 0);
        self.floor.clear();
        self.floor.resize(places, 0);
        self.ceiling.clear();
        self.ceiling.resize(places, u64::MAX);
        self.load.resize(ranks, 0);
        self.cap.resize(ranks, 0);
        self.set.resize(ranks, 0);
        self.rank_level.resize(ranks, UNREACHED);
        self.rank_arc.resize(ranks, 0);
        self.item_level.resize(graph.items.len(), UNREACHED);
        self.item_arc.resize(graph.items.len(), 0);
        self.queue.clear();
        self.queue.reserve(ranks);
        self.forest.clear();
        self.forest.reserve(ranks);
        self.capacity.resize(ranks, 0);
        self.path.clear();
        self.path.reserve(ranks);
    }

    /// Copies quotas and rank loads from the caller's numbering.
    pub(super) fn read(&mut self, graph: &PlaceGraph, quotas: &[u64], rank_loads: &[u64]) {
        for (quota, &pair) in self.quota.iter_mut().zip(&graph.pair_of) {
            *quota = quotas[pair as usize];
        }
        self.load.copy_from_slice(rank_loads);
    }

    /// Copies quotas and rank loads back.
    pub(super) fn write(&self, graph: &PlaceGraph, quotas: &mut [u64], rank_loads: &mut [u64]) {
        for (&quota, &pair) in self.quota.iter().zip(&graph.pair_of) {
            quotas[pair as usize] = quota;
        }
        rank_loads.copy_from_slice(&self.load);
    }

    /// Moves load within one set of ranks from above the caps to below them. Returns false if nothing remains
    /// above its cap. Returns true if the remaining load can reach no room. In this case
    /// [`is_reached`](Self::is_reached) is the cut.
    pub(super) fn move_below_caps(&mut self, graph: &PlaceGraph, members: &[u32], set: u32) -> bool {
        let mut drains = if graph.pairs_only { MAX_DRAINS } else { 0 };
        loop {
            match self.search_levels(graph, members, set) {
                CapSearchResult::NothingAbove => return false,
                CapSearchResult::Cut => return true,
                CapSearchResult::Slack if drains > 0 => {
                    drains -= 1;
                    self.drain_forest(graph);
                }
                CapSearchResult::Slack => self.send_blocking_flow(graph, set),
            }
        }
    }

    /// Returns true if the last search reached this rank.
    pub(super) fn is_reached(&self, rank: u32) -> bool {
        self.rank_level[rank as usize] != UNREACHED
    }

    fn search_levels(&mut self, graph: &PlaceGraph, members: &[u32], set: u32) -> CapSearchResult {
        self.queue.clear();
        for &rank in members {
            let above = self.load[rank as usize] > self.cap[rank as usize];
            self.rank_level[rank as usize] = if above { 0 } else { UNREACHED };
            if above {
                self.queue.push(rank);
            }
        }
        if self.queue.is_empty() {
            return CapSearchResult::NothingAbove;
        }
        self.sources = self.queue.len();
        self.forest.clear();
        self.item_level.fill(UNREACHED);
        let mut found = CapSearchResult::Cut;
        let mut done = 0;
        while let Some(&rank) = self.queue.get(done) {
            done += 1;
            let level = self.rank_level[rank as usize];
            for &(place, index) in graph.seats(rank as usize) {
                let (place, index) = (place as usize, index as usize);
                if self.item_level[index] != UNREACHED || self.quota[place] <= self.floor[place] {
                    continue;
                }
                self.item_level[index] = level;
                for to in graph.item_places(index) {
                    let host = graph.rank_of[to];
                    let there = host as usize;
                    let open = self.rank_level[there] == UNREACHED && self.set[there] == set;
                    if open && self.quota[to] < self.ceiling[to] {
                        self.rank_level[there] = level + 1;
                        self.queue.push(host);
                        self.forest.push(PlaceMove {
                            index: index as u32,
                            from: place as u32,
                            to: to as u32,
                        });
                        if self.load[there] < self.cap[there] {
                            found = CapSearchResult::Slack;
                        }
                    }
                }
            }
        }
        found
    }

    /// Sends load above the caps down the forest of the last search. One pass up computes the capacity of
    /// every branch, and one pass down distributes the load. It is for items with two hosts only, whose
    /// places belong to one step each.
    fn drain_forest(&mut self, graph: &PlaceGraph) {
        for &rank in &self.queue {
            let rank = rank as usize;
            self.capacity[rank] = self.cap[rank].saturating_sub(self.load[rank]);
        }
        let children = &self.queue[self.sources..];
        for (&rank, step) in children.iter().zip(&self.forest).rev() {
            let (from, to) = (step.from as usize, step.to as usize);
            let spare = (self.quota[from] - self.floor[from]).min(self.ceiling[to] - self.quota[to]);
            self.capacity[rank as usize] = self.capacity[rank as usize].min(spare);
            self.capacity[graph.rank_of[from] as usize] += self.capacity[rank as usize];
        }
        for (&rank, step) in children.iter().zip(&self.forest) {
            let (rank, from) = (rank as usize, step.from as usize);
            let parent = graph.rank_of[from] as usize;
            let amount = self.load[parent].saturating_sub(self.cap[parent]).min(self.capacity[rank]);
            self.quota[from] -= amount;
            self.quota[step.to as usize] += amount;
            self.load[parent] -= amount;
            self.load[rank] += amount;
        }
    }

    fn send_blocking_flow(&mut self, graph: &PlaceGraph, set: u32) {
        for &rank in &self.queue {
            self.rank_arc[rank as usize] = 0;
        }
        self.item_arc.fill(0);
        for index in 0..self.sources {
            let source = self.queue[index];
            while self.load[source as usize] > self.cap[source as usize]
                && self.move_along_path(graph, source, set)
            {}
        }
    }

    /// Moves load along one path from this rank to slack. Returns false if there is none.
    fn move_along_path(&mut self, graph: &PlaceGraph, source: u32, set: u32) -> bool {
        self.path.clear();
        let mut rank = source as usize;
        while self.load[rank] >= self.cap[rank] {
            if let Some(step) = self.next_step(graph, rank, set) {
                self.path.push(step);
                rank = graph.rank_of[step.to as usize] as usize;
            } else if let Some(step) = self.path.pop() {
                // The host is a dead end for every path through this item.
                self.item_arc[step.index as usize] += 1;
                rank = graph.rank_of[step.from as usize] as usize;
            } else {
                return false;
            }
        }
        let slack = self.cap[rank] - self.load[rank];
        let above = self.load[source as usize] - self.cap[source as usize];
        let spare = |step: &PlaceMove| {
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

    /// Returns the next step one level up from a rank. Exhausted arcs are not visited again.
    fn next_step(&mut self, graph: &PlaceGraph, rank: usize, set: u32) -> Option<PlaceMove> {
        let level = self.rank_level[rank];
        let seats = graph.seats(rank);
        while let Some(&(from, index)) = seats.get(self.rank_arc[rank] as usize) {
            let item = index as usize;
            if self.item_level[item] == level && self.quota[from as usize] > self.floor[from as usize] {
                let places = graph.item_places(item);
                while places.start + (self.item_arc[item] as usize) < places.end {
                    let to = places.start + self.item_arc[item] as usize;
                    let there = graph.rank_of[to] as usize;
                    let up = self.set[there] == set && self.rank_level[there] == level + 1;
                    if up && self.quota[to] < self.ceiling[to] {
                        return Some(PlaceMove { index, from, to: to as u32 });
                    }
                    self.item_arc[item] += 1;
                }
            }
            self.rank_arc[rank] += 1;
        }
        None
    }
}
