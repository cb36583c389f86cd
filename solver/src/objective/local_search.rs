//! Local search over pieces of items, for costs that are no flow.
//!
//! In: tiles per item, a start, the price of a piece by its tiles. Out: tiles per (item, host) pair such that no move lowers the
//! larger ratio of the two ranks, and from a busiest rank no exchange of two pieces and no move onward does.
//!
//! Every accepted change makes the vector of ratios, sorted descending, lexicographically less, so the search ends; a cap
//! on the number of changes bounds its time.

use super::balance::busiest;
use super::graph::Graph;
use crate::{Peak, Problem};

/// More changes than this are not made from one start.
const CHANGES: usize = 4096;

/// Some tiles go from one place to another of the same item.
#[derive(Debug, Clone, Copy)]
struct Shift {
    from: usize,
    to: usize,
    tiles: u64,
}

/// The pieces at hand, and the best found so far.
#[derive(Debug, Clone)]
pub(super) struct Search {
    graph: Graph,
    /// Tiles of every (item, host) pair, and of every place.
    quotas: Vec<u64>,
    tiles: Vec<u64>,
    cost: Vec<u64>,
    fixed: Vec<u64>,
    best: Option<(Vec<Peak>, Vec<u64>, Vec<u64>)>,
    /// How many tiles of a piece a read pays for anyway.
    free: u64,
}

/// The price of a piece by its tiles.
pub(super) trait Price: Fn(u64) -> u64 {}
impl<F: Fn(u64) -> u64> Price for F {}

impl Search {
    pub(super) fn new(problem: &Problem) -> Search {
        let mut graph = Graph::default();
        graph.fit(problem.hosts());
        let (quotas, tiles, cost, fixed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Search { graph, quotas, tiles, cost, fixed, best: None, free: 0 }
    }

    /// Forgets what was found.
    pub(super) fn begin(&mut self, problem: &Problem, free: u64) {
        self.best = None;
        self.free = free;
        self.fixed.clear();
        self.fixed.extend_from_slice(problem.base());
    }

    /// Starts from tiles per (item, host) pair.
    pub(super) fn start(&mut self, problem: &Problem, tiles: &[u64], start: &[u64], price: &impl Price) {
        self.quotas.clear();
        self.quotas.extend_from_slice(start);
        self.tiles.clear();
        self.tiles.extend(self.graph.pair_of.iter().map(|&pair| start[pair as usize]));
        self.fix(problem, tiles, price);
        for (&rank, &tiles) in self.graph.rank_of.iter().zip(&self.tiles) {
            self.cost[rank as usize] += price(tiles);
        }
    }

    /// Starts with whole items, the dearest first, each where it adds least.
    pub(super) fn start_greedily(&mut self, problem: &Problem, tiles: &[u64], price: &impl Price) {
        self.tiles.fill(0);
        self.fix(problem, tiles, price);
        let mut order: Vec<usize> = (0..self.graph.items.len()).collect();
        let tiles_of = |index: usize| tiles[self.graph.items[index] as usize];
        order.sort_by_key(|&index| (std::cmp::Reverse(tiles_of(index)), index));
        for index in order {
            let after = |&place: &usize| {
                let rank = self.graph.rank_of[place] as usize;
                Peak { load: self.cost[rank] + price(tiles_of(index)), speed: problem.speeds()[rank] }
            };
            let Some(place) = self.graph.places(index).min_by_key(after) else { continue };
            self.tiles[place] = tiles_of(index);
            self.cost[self.graph.rank_of[place] as usize] += price(tiles_of(index));
        }
    }

    /// Costs of base loads and of items with one host; quotas of the latter.
    fn fix(&mut self, problem: &Problem, tiles: &[u64], price: &impl Price) {
        self.cost.clone_from(&self.fixed);
        for (item, &tiles) in tiles.iter().enumerate() {
            if let [only] = problem.hosts().of(item) {
                self.cost[*only as usize] += price(tiles);
                self.quotas[problem.hosts().offset(item)] = tiles;
            }
        }
    }

    /// Tiles per (item, host) pair and costs per rank of the best split found.
    pub(super) fn best(&mut self) -> (Vec<u64>, Vec<u64>) {
        let (_, quotas, cost) = self.best.take().unwrap_or_default();
        (quotas, cost)
    }

    /// Improves the pieces at hand until nothing gains or the bound is met, and notes them if they are the best.
    pub(super) fn run(&mut self, problem: &Problem, price: &impl Price, bound: Peak) {
        let mut order: Vec<usize> = (0..problem.hosts().ranks()).collect();
        for _ in 0..CHANGES {
            let peak = busiest(problem, &self.cost);
            if peak <= bound {
                break;
            }
            order.sort_by_key(|&rank| (std::cmp::Reverse(self.ratio(problem, rank)), rank));
            // Single moves anywhere make room; two at a time are worth their price at the peak only.
            let single = order.iter().any(|&rank| self.relieve(problem, rank, price, Search::attempt_alone));
            if single {
                continue;
            }
            let count = order.partition_point(|&rank| self.ratio(problem, rank) == peak);
            if !order[..count].iter().any(|&rank| self.relieve(problem, rank, price, Search::attempt_onward))
            {
                break;
            }
        }
        let mut ratios: Vec<Peak> = (0..order.len()).map(|rank| self.ratio(problem, rank)).collect();
        ratios.sort_unstable_by(|a, b| b.cmp(a));
        if self.best.as_ref().is_none_or(|(best, ..)| ratios < *best) {
            for (&pair, &tiles) in self.graph.pair_of.iter().zip(&self.tiles) {
                self.quotas[pair as usize] = tiles;
            }
            self.best = Some((ratios, self.quotas.clone(), self.cost.clone()));
        }
    }

    fn ratio(&self, problem: &Problem, rank: usize) -> Peak {
        Peak { load: self.cost[rank], speed: problem.speeds()[rank] }
    }

    fn rank_at(&self, place: usize) -> usize {
        self.graph.rank_of[place] as usize
    }

    /// Makes the first change that gains and begins with a shift from this rank.
    fn relieve<P: Price>(
        &mut self,
        problem: &Problem,
        rank: usize,
        price: &P,
        attempt: impl Fn(&mut Search, &Problem, Shift, &P) -> bool,
    ) -> bool {
        for seat in 0..self.graph.seats(rank).len() {
            let (from, index) = self.graph.seats(rank)[seat];
            let from = from as usize;
            for to in self.graph.places(index as usize) {
                if self.tiles[from] == 0 || to == from {
                    continue;
                }
                let amounts = self.amounts(from, to, price);
                for (tried, &tiles) in amounts.iter().enumerate() {
                    let again = amounts[..tried].contains(&tiles);
                    if !again && attempt(self, problem, Shift { from, to, tiles }, price) {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// The amounts worth trying: all, half the difference, what a read pays for on either side, one.
    fn amounts(&self, from: usize, to: usize, price: &impl Price) -> [u64; 5] {
        let all = self.tiles[from];
        let (here, there) = (self.cost[self.rank_at(from)], self.cost[self.rank_at(to)]);
        let per_tile = price(self.free + 2).saturating_sub(price(self.free + 1)).max(1);
        let half = (here.saturating_sub(there) / 2 / per_tile).clamp(1, all);
        let down = all.saturating_sub(self.free).clamp(1, all);
        let up = self.free.saturating_sub(self.tiles[to]).clamp(1, all);
        [all, half, down, up, 1]
    }

    /// One shift by itself.
    fn attempt_alone(&mut self, problem: &Problem, shift: Shift, price: &impl Price) -> bool {
        self.attempt(problem, &[shift], price)
    }

    /// After a first shift, a second one from where it went: the same way back (an exchange) or onward.
    fn attempt_onward(&mut self, problem: &Problem, first: Shift, price: &impl Price) -> bool {
        let there = self.rank_at(first.to);
        for seat in 0..self.graph.seats(there).len() {
            let (from, index) = self.graph.seats(there)[seat];
            let from = from as usize;
            if from == first.to || self.tiles[from] == 0 {
                continue;
            }
            for to in self.graph.places(index as usize) {
                if to == from {
                    continue;
                }
                let whole = Shift { from, to, tiles: self.tiles[from] };
                let half = Shift { tiles: self.tiles[from].div_ceil(2), ..whole };
                if self.attempt(problem, &[first, whole], price)
                    || self.attempt(problem, &[first, half], price)
                {
                    return true;
                }
            }
        }
        false
    }

    /// Makes these shifts if the largest ratio of the ranks concerned falls.
    fn attempt(&mut self, problem: &Problem, shifts: &[Shift], price: &impl Price) -> bool {
        let before = self.largest(problem, shifts);
        for &shift in shifts {
            self.shift(shift, price);
        }
        if self.largest(problem, shifts) < before {
            return true;
        }
        for &Shift { from, to, tiles } in shifts.iter().rev() {
            self.shift(Shift { from: to, to: from, tiles }, price);
        }
        false
    }

    fn largest(&self, problem: &Problem, shifts: &[Shift]) -> Option<Peak> {
        let ranks = shifts.iter().flat_map(|shift| [self.rank_at(shift.from), self.rank_at(shift.to)]);
        ranks.map(|rank| self.ratio(problem, rank)).max()
    }

    fn shift(&mut self, Shift { from, to, tiles }: Shift, price: &impl Price) {
        let (here, there) = (self.rank_at(from), self.rank_at(to));
        self.cost[here] -= price(self.tiles[from]);
        self.cost[there] -= price(self.tiles[to]);
        self.tiles[from] -= tiles;
        self.tiles[to] += tiles;
        self.cost[here] += price(self.tiles[from]);
        self.cost[there] += price(self.tiles[to]);
    }
}
