//! Local search over pieces of items, for costs that are no flow.
//!
//! In: tiles per item, a start, the price of a piece by its tiles. Out: tiles per (item, host) pair. No move
//! lowers the larger ratio of its two ranks. From a busiest rank, neither an exchange of two pieces nor a
//! move onward does.
//!
//! Every accepted change makes the sorted vector of ratios lexicographically less, so the search ends. A cap
//! on the number of changes limits its time.

use super::balance::busiest_ratio;
use super::graph::PlaceGraph;
use crate::{Peak, Problem};

/// Highest number of changes from one start.
const MAX_CHANGES: usize = 4096;

/// Move of some tiles from one place to another of the same item.
#[derive(Debug, Clone, Copy)]
struct TileShift {
    from: usize,
    to: usize,
    tiles: u64,
}

/// Current pieces, and the best result so far.
#[derive(Debug, Clone)]
pub(super) struct PieceSearch {
    graph: PlaceGraph,
    /// Tiles of every (item, host) pair, and of every place.
    quotas: Vec<u64>,
    tiles: Vec<u64>,
    cost: Vec<u64>,
    fixed: Vec<u64>,
    best: Option<(Vec<Peak>, Vec<u64>, Vec<u64>)>,
    /// Number of tiles of a piece that cost no more than its read.
    free: u64,
}

/// Price of a piece by its tiles.
pub(super) trait PiecePrice: Fn(u64) -> u64 {}
impl<F: Fn(u64) -> u64> PiecePrice for F {}

impl PieceSearch {
    pub(super) fn new(problem: &Problem) -> PieceSearch {
        let mut graph = PlaceGraph::default();
        graph.build_for(problem.hosts());
        let (quotas, tiles, cost, fixed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        PieceSearch { graph, quotas, tiles, cost, fixed, best: None, free: 0 }
    }

    /// Forgets the best result and sets the base loads.
    pub(super) fn start_batch(&mut self, problem: &Problem, free: u64) {
        self.best = None;
        self.free = free;
        self.fixed.clear();
        self.fixed.extend_from_slice(problem.base_loads());
    }

    /// Starts from tiles per (item, host) pair.
    pub(super) fn start_from_tiles(
        &mut self,
        problem: &Problem,
        tiles: &[u64],
        start: &[u64],
        price: &impl PiecePrice,
    ) {
        self.quotas.clear();
        self.quotas.extend_from_slice(start);
        self.tiles.clear();
        self.tiles.extend(self.graph.pair_of.iter().map(|&pair| start[pair as usize]));
        self.set_fixed_costs(problem, tiles, price);
        for (&rank, &tiles) in self.graph.rank_of.iter().zip(&self.tiles) {
            self.cost[rank as usize] += price(tiles);
        }
    }

    /// Starts with whole items, the most expensive first, each on the host with the lowest resulting ratio.
    pub(super) fn start_greedily(&mut self, problem: &Problem, tiles: &[u64], price: &impl PiecePrice) {
        self.tiles.fill(0);
        self.set_fixed_costs(problem, tiles, price);
        let mut order: Vec<usize> = (0..self.graph.items.len()).collect();
        let tiles_of = |index: usize| tiles[self.graph.items[index] as usize];
        order.sort_by_key(|&index| (std::cmp::Reverse(tiles_of(index)), index));
        for index in order {
            let after = |&place: &usize| {
                let rank = self.graph.rank_of[place] as usize;
                Peak { load: self.cost[rank] + price(tiles_of(index)), speed: problem.speeds()[rank] }
            };
            let Some(place) = self.graph.item_places(index).min_by_key(after) else { continue };
            self.tiles[place] = tiles_of(index);
            self.cost[self.graph.rank_of[place] as usize] += price(tiles_of(index));
        }
    }

    /// Sets the costs of base loads and of items with one host, and the quotas of the latter.
    fn set_fixed_costs(&mut self, problem: &Problem, tiles: &[u64], price: &impl PiecePrice) {
        self.cost.clone_from(&self.fixed);
        for (item, &tiles) in tiles.iter().enumerate() {
            if let [only] = problem.hosts().ranks_of(item) {
                self.cost[*only as usize] += price(tiles);
                self.quotas[problem.hosts().offset(item)] = tiles;
            }
        }
    }

    /// Returns tiles per (item, host) pair and costs per rank of the best split.
    pub(super) fn take_best_split(&mut self) -> (Vec<u64>, Vec<u64>) {
        let (_, quotas, cost) = self.best.take().unwrap_or_default();
        (quotas, cost)
    }

    /// Improves the current pieces until nothing gains or the bound is met. Keeps them if they are the best.
    pub(super) fn run(&mut self, problem: &Problem, price: &impl PiecePrice, bound: Peak) {
        let mut order: Vec<usize> = (0..problem.hosts().ranks()).collect();
        for _ in 0..MAX_CHANGES {
            let peak = busiest_ratio(problem, &self.cost);
            if peak <= bound {
                break;
            }
            order.sort_by_key(|&rank| (std::cmp::Reverse(self.rank_ratio(problem, rank)), rank));
            // Single moves are tried on all ranks. Double moves are expensive, so they are tried at the peak
            // only.
            let single = order
                .iter()
                .any(|&rank| self.relieve_rank(problem, rank, price, PieceSearch::try_single_shift));
            if single {
                continue;
            }
            let count = order.partition_point(|&rank| self.rank_ratio(problem, rank) == peak);
            if !order[..count]
                .iter()
                .any(|&rank| self.relieve_rank(problem, rank, price, PieceSearch::try_double_shift))
            {
                break;
            }
        }
        let mut ratios: Vec<Peak> = (0..order.len()).map(|rank| self.rank_ratio(problem, rank)).collect();
        ratios.sort_unstable_by(|a, b| b.cmp(a));
        if self.best.as_ref().is_none_or(|(best, ..)| ratios < *best) {
            for (&pair, &tiles) in self.graph.pair_of.iter().zip(&self.tiles) {
                self.quotas[pair as usize] = tiles;
            }
            self.best = Some((ratios, self.quotas.clone(), self.cost.clone()));
        }
    }

    fn rank_ratio(&self, problem: &Problem, rank: usize) -> Peak {
        Peak { load: self.cost[rank], speed: problem.speeds()[rank] }
    }

    fn rank_at(&self, place: usize) -> usize {
        self.graph.rank_of[place] as usize
    }

    /// Makes the first change that gains and begins with a shift from this rank.
    fn relieve_rank<P: PiecePrice>(
        &mut self,
        problem: &Problem,
        rank: usize,
        price: &P,
        attempt: impl Fn(&mut PieceSearch, &Problem, TileShift, &P) -> bool,
    ) -> bool {
        for seat in 0..self.graph.seats(rank).len() {
            let (from, index) = self.graph.seats(rank)[seat];
            let from = from as usize;
            for to in self.graph.item_places(index as usize) {
                if self.tiles[from] == 0 || to == from {
                    continue;
                }
                let amounts = self.candidate_amounts(from, to, price);
                for (tried, &tiles) in amounts.iter().enumerate() {
                    let again = amounts[..tried].contains(&tiles);
                    if !again && attempt(self, problem, TileShift { from, to, tiles }, price) {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Returns the candidate amounts: all, half the difference, the tiles that a read covers on either side,
    /// and one.
    fn candidate_amounts(&self, from: usize, to: usize, price: &impl PiecePrice) -> [u64; 5] {
        let all = self.tiles[from];
        let (here, there) = (self.cost[self.rank_at(from)], self.cost[self.rank_at(to)]);
        let per_tile = price(self.free + 2).saturating_sub(price(self.free + 1)).max(1);
        let half = (here.saturating_sub(there) / 2 / per_tile).clamp(1, all);
        let down = all.saturating_sub(self.free).clamp(1, all);
        let up = self.free.saturating_sub(self.tiles[to]).clamp(1, all);
        [all, half, down, up, 1]
    }

    /// Attempts one shift alone.
    fn try_single_shift(&mut self, problem: &Problem, shift: TileShift, price: &impl PiecePrice) -> bool {
        self.try_shifts(problem, &[shift], price)
    }

    /// Attempts a first shift with a second one from its destination: back (an exchange) or onward.
    fn try_double_shift(&mut self, problem: &Problem, first: TileShift, price: &impl PiecePrice) -> bool {
        let there = self.rank_at(first.to);
        for seat in 0..self.graph.seats(there).len() {
            let (from, index) = self.graph.seats(there)[seat];
            let from = from as usize;
            if from == first.to || self.tiles[from] == 0 {
                continue;
            }
            for to in self.graph.item_places(index as usize) {
                if to == from {
                    continue;
                }
                let whole = TileShift { from, to, tiles: self.tiles[from] };
                let half = TileShift { tiles: self.tiles[from].div_ceil(2), ..whole };
                if self.try_shifts(problem, &[first, whole], price)
                    || self.try_shifts(problem, &[first, half], price)
                {
                    return true;
                }
            }
        }
        false
    }

    /// Makes these shifts if the highest ratio of their ranks falls.
    fn try_shifts(&mut self, problem: &Problem, shifts: &[TileShift], price: &impl PiecePrice) -> bool {
        let before = self.largest_ratio(problem, shifts);
        for &shift in shifts {
            self.apply_shift(shift, price);
        }
        if self.largest_ratio(problem, shifts) < before {
            return true;
        }
        for &TileShift { from, to, tiles } in shifts.iter().rev() {
            self.apply_shift(TileShift { from: to, to: from, tiles }, price);
        }
        false
    }

    fn largest_ratio(&self, problem: &Problem, shifts: &[TileShift]) -> Option<Peak> {
        let ranks = shifts.iter().flat_map(|shift| [self.rank_at(shift.from), self.rank_at(shift.to)]);
        ranks.map(|rank| self.rank_ratio(problem, rank)).max()
    }

    fn apply_shift(&mut self, TileShift { from, to, tiles }: TileShift, price: &impl PiecePrice) {
        let (here, there) = (self.rank_at(from), self.rank_at(to));
        self.cost[here] -= price(self.tiles[from]);
        self.cost[there] -= price(self.tiles[to]);
        self.tiles[from] -= tiles;
        self.tiles[to] += tiles;
        self.cost[here] += price(self.tiles[from]);
        self.cost[there] += price(self.tiles[to]);
    }
}
