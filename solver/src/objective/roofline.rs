//! Load on the roofline: reading an item's weights costs a constant, computing with them a multiple of its tiles, and
//! whichever is more is what a rank pays.
//!
//! In: a problem, loads in tokens, a [`Roofline`]. Out: quotas whose largest rank cost (per speed) is as small as the
//! method finds, and a proved lower bound. `q > 0` tokens of an item cost a rank `f(q) = max(w, k·b·⌈q/b⌉)` units, none
//! cost nothing. A base load counts as one more item of so many tokens.
//!
//! **How hard.** NP-hard: with items of different size and dear reads no item is split with gain, which is scheduling on
//! unrelated machines of restricted assignment. At the ends it is easy and the start is optimal: all reads
//! ([`Active`]) or all tiles ([`Tiles`]).
//!
//! **Method.** Only tiles matter, so an item is as many tiles as it begins. From three starts (the split in tiles, that in
//! active items, whole items by descending cost to where they add least) a local search moves pieces: all of one, a tile,
//! half the difference, down or up to the tiles that a read pays for anyway; alone, against another item, or on from rank
//! to rank; each time so that the largest ratio among the ranks concerned falls. The best of the three stays.
//!
//! **Bounds**, of which the largest is reported ([`Bound`]). All costs are whole numbers, so the certificates of the exact
//! split hold. *Work*: however an item is split, its pieces cost at least `f(load)` together, so the exact split of these
//! costs cannot be beaten. (It is no less than the split of a linear envelope of `f`, which gives `load · min f(q)/q`.)
//! *Tiles*: `k·b` for each of the tiles of the exact split in tiles. *Active*: `w` for each of the items on the rank with the most. *Item*: some host serves its share of the tiles, rounded
//! up.

use super::local::Search;
use super::{Active, Tiles};
use crate::{Error, Peak, Problem, Split, solve_into};

/// What a piece costs: `max(read, token · tile · ⌈q / tile⌉)` units for `q > 0` tokens. Units are the caller's, for example
/// nanoseconds times 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roofline {
    /// Units to read the weights of one item.
    pub read: u64,
    /// Units to compute one token.
    pub token: u64,
    /// Tokens of a tile; positive.
    pub tile: u64,
}

impl Roofline {
    /// The cost of a piece of so many tokens; `None` beyond 64 bits.
    pub fn cost(&self, tokens: u64) -> Option<u64> {
        if tokens == 0 { Some(0) } else { self.of_tiles(tokens.div_ceil(self.tile.max(1))) }
    }

    fn of_tiles(&self, tiles: u64) -> Option<u64> {
        let work = self.token.checked_mul(self.tile)?.checked_mul(tiles)?;
        Some(if tiles == 0 { 0 } else { work.max(self.read) })
    }
}

/// Which argument proves the lower bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bound {
    /// All items of some ranks, each at the cost it has in one piece.
    #[default]
    Work,
    /// The tiles of some ranks' items, whatever is read.
    Tiles,
    /// The reads of active items.
    Active,
    /// One item alone, shared out over all its hosts.
    Item(usize),
}

/// A split for the roofline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RooflineSplit {
    /// The quota of every (item, host) pair in tokens.
    pub quotas: Vec<u64>,
    /// The cost of every rank, base load included.
    pub rank_costs: Vec<u64>,
    /// The largest ratio of cost to speed.
    pub peak: Peak,
    /// No split has a lower one.
    pub bound: Peak,
    /// Why not.
    pub kind: Bound,
}

impl RooflineSplit {
    /// By how much the peak may exceed the optimum: `peak / bound − 1`.
    pub fn gap(&self) -> f64 {
        if self.bound.load == 0 { 0.0 } else { self.peak.as_f64() / self.bound.as_f64() - 1.0 }
    }
}

/// Splits for the roofline for one problem, batch after batch.
#[derive(Debug, Clone)]
pub struct Rooflines {
    problem: Problem,
    cost: Roofline,
    tiles: Tiles,
    active: Active,
    /// Base loads in units.
    in_units: Problem,
    exact: crate::Workspace,
    search: Search,
}

impl Rooflines {
    /// A problem in tokens, seen through a roofline.
    ///
    /// # Errors
    /// [`Error::ZeroTile`] if a tile has no token; [`Error::Overflow`] if a base load costs more than 64 bits hold.
    pub fn new(problem: Problem, cost: Roofline) -> Result<Rooflines, Error> {
        let tiles = Tiles::new(problem.clone(), cost.tile)?;
        let reads = problem.base().iter().map(|&base| u64::from(base > 0)).collect();
        let active = Active::new(problem.clone()).with_base_counts(reads)?;
        let units: Option<Vec<u64>> = problem.base().iter().map(|&base| cost.cost(base)).collect();
        let in_units = problem.clone().with_base(units.ok_or(Error::Overflow)?)?;
        let (exact, search) = (crate::Workspace::default(), Search::new(&problem));
        Ok(Rooflines { problem, cost, tiles, active, in_units, exact, search })
    }

    /// Splits one batch of loads in tokens, one per item.
    ///
    /// # Errors
    /// [`Error::Length`] and [`Error::Overflow`] as [`solve`](crate::solve), the latter also if all hosts together could
    /// cost more than 64 bits hold.
    pub fn solve(&mut self, loads: &[u64]) -> Result<RooflineSplit, Error> {
        let tiled = self.tiles.solve(loads)?;
        let whole = self.active.solve(loads)?;
        self.check_sum(loads)?;
        let tile = self.cost.tile;
        let tiles: Vec<u64> = loads.iter().map(|load| load.div_ceil(tile)).collect();
        let (bound, kind) = self.bound(loads, &tiles, &tiled.in_tiles, &whole.active)?;

        let pairs = |item: usize| self.problem.hosts().offset(item)..self.problem.hosts().offset(item + 1);
        let mut in_one = whole.active.quotas.clone();
        for (item, &count) in tiles.iter().enumerate() {
            in_one[pairs(item)].iter_mut().for_each(|quota| *quota *= count);
        }
        let cost = self.cost;
        // The sum of all was checked.
        let price = move |tiles: u64| cost.of_tiles(tiles).unwrap_or(u64::MAX);
        let free = (cost.read / cost.token.saturating_mul(tile).max(1)).min(u64::MAX / 2);
        let search = &mut self.search;
        search.begin(&self.in_units, free);
        for start in [&tiled.in_tiles.quotas, &in_one] {
            search.start(&self.in_units, &tiles, start, &price);
            search.run(&self.in_units, &price, bound);
        }
        search.start_greedily(&self.in_units, &tiles, &price);
        search.run(&self.in_units, &price, bound);

        let (mut quotas, rank_costs) = search.best();
        for (item, &load) in loads.iter().enumerate() {
            let own = &mut quotas[pairs(item)];
            // All tiles full but one: that of the largest piece, which is the last to fall below its read.
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
        let peak = super::balance::busiest(&self.in_units, &rank_costs);
        Ok(RooflineSplit { quotas, rank_costs, peak, bound, kind })
    }

    /// Every host at the full cost of its items must fit 64 bits: then no sum of pieces overflows.
    fn check_sum(&self, loads: &[u64]) -> Result<(), Error> {
        let mut sum: u64 = self
            .in_units
            .base()
            .iter()
            .try_fold(0u64, |sum, &c| sum.checked_add(c))
            .ok_or(Error::Overflow)?;
        for (item, &load) in loads.iter().enumerate() {
            let all = self
                .cost
                .cost(load)
                .and_then(|cost| cost.checked_mul(self.problem.hosts().of(item).len() as u64));
            sum = all.and_then(|all| sum.checked_add(all)).ok_or(Error::Overflow)?;
        }
        Ok(())
    }

    /// The largest of the lower bounds.
    fn bound(
        &mut self,
        loads: &[u64],
        tiles: &[u64],
        tiled: &Split,
        active: &Split,
    ) -> Result<(Peak, Bound), Error> {
        let units: Option<Vec<u64>> = loads.iter().map(|&load| self.cost.cost(load)).collect();
        let mut work = Split::default();
        solve_into(&self.in_units, &units.ok_or(Error::Overflow)?, &mut self.exact, &mut work)?;
        let mut best = (work.peak, Bound::Work);
        let computed = self.cost.token.saturating_mul(self.cost.tile);
        for (split, each, kind) in [(tiled, computed, Bound::Tiles), (active, self.cost.read, Bound::Active)]
        {
            // Some rank costs so much in any split, so this is within 64 bits.
            let peak = Peak { load: split.peak.load.saturating_mul(each), speed: split.peak.speed };
            if peak > best.0 {
                best = (peak, kind);
            }
        }
        for (item, &count) in tiles.iter().enumerate().filter(|&(_, &count)| count > 0) {
            let hosts = self.problem.hosts().of(item);
            // Some host serves that many tiles, and none is faster than the fastest.
            let share = self.cost.of_tiles(count.div_ceil(hosts.len() as u64)).ok_or(Error::Overflow)?;
            let speed = hosts.iter().map(|&rank| self.problem.speeds()[rank as usize]).max().unwrap_or(1);
            if (Peak { load: share, speed }) > best.0 {
                best = (Peak { load: share, speed }, Bound::Item(item));
            }
        }
        Ok(best)
    }
}
