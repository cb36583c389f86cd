//! Load on the roofline: a rank pays a constant to read an item's weights, or a multiple of its tiles,
//! whichever is more.
//!
//! In: a problem, loads in tokens, a [`Roofline`]. Out: quotas whose highest rank cost (per speed) is as low
//! as the method finds, and a proved lower bound. `q > 0` tokens of an item cost a rank
//! `f(q) = max(w, k·b·⌈q/b⌉)` units, and no tokens cost nothing. A base load counts as one more item of as
//! many tokens.
//!
//! **Complexity.** The problem is NP-hard. With items of different size and expensive reads, no split of an
//! item gains. This is scheduling on unrelated machines with restricted assignment. At the two extremes it is
//! easy and the start is optimal: only reads ([`ActiveSplitter`]) or only tiles ([`TileSplitter`]).
//!
//! **Method.** Only tiles matter, so an item has as many tiles as it begins. There are three starts: the
//! split in tiles, the split in active items, and a greedy one. The greedy one places whole items by
//! descending cost where they add least. From each start a local search moves pieces. The amounts are all of
//! a piece, a tile, half the difference, and down or up to the tiles that a read covers. A piece moves alone,
//! against another item, or on from rank to rank. The highest ratio among the ranks of a move has to fall.
//! The best of the three results stays.
//!
//! **Bounds.** The highest of four is reported ([`RooflineBound`]). All costs are whole numbers, so the
//! certificates of the exact split hold.
//!
//! - *Work*: the pieces of an item together cost at least `f(load)`, so no split beats the exact split of
//!   these costs. (It is no less than the split of a linear envelope of `f`, which gives
//!   `load · min f(q)/q`.)
//! - *Tiles*: `k·b` for each of the tiles of the exact split in tiles.
//! - *Active*: `w` for each of the items on the rank with the most.
//! - *Item*: some host serves its share of the tiles, rounded up.

use super::local_search::PieceSearch;
use super::{ActiveSplitter, TileSplitter};
use crate::{Peak, Problem, RankSplit, SolverError, solve_into};

/// Cost of a piece: `max(read, token · tile · ⌈q / tile⌉)` units for `q > 0` tokens. The caller chooses the
/// unit, for example nanoseconds times 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roofline {
    /// Units to read the weights of one item.
    pub read: u64,
    /// Units to compute one token.
    pub token: u64,
    /// Tokens of a tile, positive.
    pub tile: u64,
}

impl Roofline {
    /// Returns the cost of a piece with this number of tokens, or `None` beyond 64 bits.
    pub fn piece_cost(&self, tokens: u64) -> Option<u64> {
        if tokens == 0 { Some(0) } else { self.tiles_cost(tokens.div_ceil(self.tile.max(1))) }
    }

    fn tiles_cost(&self, tiles: u64) -> Option<u64> {
        let work = self.token.checked_mul(self.tile)?.checked_mul(tiles)?;
        Some(if tiles == 0 { 0 } else { work.max(self.read) })
    }
}

/// Argument that proves the lower bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RooflineBound {
    /// All items of some ranks, each at its cost in one piece.
    #[default]
    Work,
    /// Tiles of some ranks' items, regardless of the reads.
    Tiles,
    /// Reads of active items.
    Active,
    /// One item alone, split over all its hosts.
    Item(usize),
}

/// Split for the roofline.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RooflineSplit {
    /// Quota of every (item, host) pair in tokens.
    pub quotas: Vec<u64>,
    /// Cost of every rank, base load included.
    pub rank_costs: Vec<u64>,
    /// Highest ratio of cost to speed.
    pub peak: Peak,
    /// Lower bound of all peaks.
    pub bound: Peak,
    /// Proof of the bound.
    pub kind: RooflineBound,
}

impl RooflineSplit {
    /// Returns the limit by which the peak may exceed the optimum: `peak / bound − 1`.
    pub fn gap(&self) -> f64 {
        if self.bound.load == 0 { 0.0 } else { self.peak.as_f64() / self.bound.as_f64() - 1.0 }
    }
}

/// Splitter for the roofline, for one problem and successive batches.
#[derive(Debug, Clone)]
pub struct RooflineSplitter {
    problem: Problem,
    cost: Roofline,
    tiles: TileSplitter,
    active: ActiveSplitter,
    /// Problem with base loads in units.
    in_units: Problem,
    exact: crate::Workspace,
    search: PieceSearch,
}

impl RooflineSplitter {
    /// Creates the splitter for a problem in tokens and a roofline.
    ///
    /// # Errors
    /// Returns [`SolverError::ZeroTile`] if a tile has no token. Returns [`SolverError::Overflow`] if the
    /// cost of a base load exceeds 64 bits.
    pub fn new(problem: Problem, cost: Roofline) -> Result<RooflineSplitter, SolverError> {
        let tiles = TileSplitter::new(problem.clone(), cost.tile)?;
        let reads = problem.base_loads().iter().map(|&base| u64::from(base > 0)).collect();
        let active = ActiveSplitter::new(problem.clone()).with_base_counts(reads)?;
        let units: Option<Vec<u64>> =
            problem.base_loads().iter().map(|&base| cost.piece_cost(base)).collect();
        let in_units = problem.clone().with_base_loads(units.ok_or(SolverError::Overflow)?)?;
        let (exact, search) = (crate::Workspace::default(), PieceSearch::new(&problem));
        Ok(RooflineSplitter { problem, cost, tiles, active, in_units, exact, search })
    }

    /// Splits one batch of loads in tokens, one per item.
    ///
    /// # Errors
    /// Returns [`SolverError::Length`] and [`SolverError::Overflow`] as [`solve`](crate::solve) does. The
    /// latter also occurs if the cost of all hosts together could exceed 64 bits.
    pub fn solve(&mut self, loads: &[u64]) -> Result<RooflineSplit, SolverError> {
        let tiled = self.tiles.solve(loads)?;
        let whole = self.active.solve(loads)?;
        self.check_sum(loads)?;
        let tile = self.cost.tile;
        let tiles: Vec<u64> = loads.iter().map(|load| load.div_ceil(tile)).collect();
        let (bound, kind) = self.lower_bound(loads, &tiles, &tiled.in_tiles, &whole.active)?;

        let pairs = |item: usize| self.problem.hosts().offset(item)..self.problem.hosts().offset(item + 1);
        let mut in_one = whole.active.quotas.clone();
        for (item, &count) in tiles.iter().enumerate() {
            in_one[pairs(item)].iter_mut().for_each(|quota| *quota *= count);
        }
        let cost = self.cost;
        // The sum of all costs was checked, so no cost overflows.
        let price = move |tiles: u64| cost.tiles_cost(tiles).unwrap_or(u64::MAX);
        let free = (cost.read / cost.token.saturating_mul(tile).max(1)).min(u64::MAX / 2);
        let search = &mut self.search;
        search.start_batch(&self.in_units, free);
        for start in [&tiled.in_tiles.quotas, &in_one] {
            search.start_from_tiles(&self.in_units, &tiles, start, &price);
            search.run(&self.in_units, &price, bound);
        }
        search.start_greedily(&self.in_units, &tiles, &price);
        search.run(&self.in_units, &price, bound);

        let (mut quotas, rank_costs) = search.take_best_split();
        for (item, &load) in loads.iter().enumerate() {
            let own = &mut quotas[pairs(item)];
            // All tiles are full except one. It belongs to the largest piece, which is the last to fall below
            // its read.
            let mut largest = 0;
            let mut others = 0;
            for index in 0..own.len() {
                if own[index] > own[largest] {
                    largest = index;
                }
            }
            for (index, quota) in own.iter_mut().enumerate() {
                if index != largest {
                    *quota *= tile;
                    others += *quota;
                }
            }
            own[largest] = load - others;
        }
        let peak = super::balance::busiest_ratio(&self.in_units, &rank_costs);
        Ok(RooflineSplit { quotas, rank_costs, peak, bound, kind })
    }

    /// Checks that the full cost of its items on every host fits 64 bits. Then no sum of pieces overflows.
    fn check_sum(&self, loads: &[u64]) -> Result<(), SolverError> {
        let mut sum: u64 = self
            .in_units
            .base_loads()
            .iter()
            .try_fold(0u64, |sum, &c| sum.checked_add(c))
            .ok_or(SolverError::Overflow)?;
        for (item, &load) in loads.iter().enumerate() {
            let all = self
                .cost
                .piece_cost(load)
                .and_then(|cost| cost.checked_mul(self.problem.hosts().ranks_of(item).len() as u64));
            sum = all.and_then(|all| sum.checked_add(all)).ok_or(SolverError::Overflow)?;
        }
        Ok(())
    }

    /// Returns the highest of the lower bounds.
    fn lower_bound(
        &mut self,
        loads: &[u64],
        tiles: &[u64],
        tiled: &RankSplit,
        active: &RankSplit,
    ) -> Result<(Peak, RooflineBound), SolverError> {
        let units: Option<Vec<u64>> = loads.iter().map(|&load| self.cost.piece_cost(load)).collect();
        let mut work = RankSplit::default();
        solve_into(&self.in_units, &units.ok_or(SolverError::Overflow)?, &mut self.exact, &mut work)?;
        let mut best = (work.peak, RooflineBound::Work);
        let computed = self.cost.token.saturating_mul(self.cost.tile);
        for (split, each, kind) in
            [(tiled, computed, RooflineBound::Tiles), (active, self.cost.read, RooflineBound::Active)]
        {
            // Some rank has at least this cost in any split, so it is within 64 bits.
            let peak = Peak { load: split.peak.load.saturating_mul(each), speed: split.peak.speed };
            if peak > best.0 {
                best = (peak, kind);
            }
        }
        for (item, &count) in tiles.iter().enumerate().filter(|&(_, &count)| count > 0) {
            let hosts = self.problem.hosts().ranks_of(item);
            // Some host serves at least that many tiles, and none is faster than the fastest.
            let share =
                self.cost.tiles_cost(count.div_ceil(hosts.len() as u64)).ok_or(SolverError::Overflow)?;
            let speed = hosts.iter().map(|&rank| self.problem.speeds()[rank as usize]).max().unwrap_or(1);
            if (Peak { load: share, speed }) > best.0 {
                best = (Peak { load: share, speed }, RooflineBound::Item(item));
            }
        }
        Ok(best)
    }
}
