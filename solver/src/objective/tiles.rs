//! Load in tiles: a grouped matrix product computes whole tiles of rows, so a rank pays for every tile that
//! it begins.
//!
//! In: a problem, loads in tokens, the tokens of a tile. Out: quotas in tokens for which the highest number
//! of tiles on a rank (per speed) is as low as possible. The method is exact for any hosts and speeds. A base
//! load in tokens counts as the tiles that it begins, rounded up.
//!
//! **Equivalence to the exact split.** Quotas of an item begin at least `⌈load / tile⌉` tiles together. Any
//! distribution of exactly this many tiles over the hosts belongs to some quotas, with all tiles full except
//! one. So the exact split of the loads in tiles is the optimum, and its certificate proves it. If that
//! leaves a choice, the vector of tiles is decreasingly minimal (`balance`). The tile that is not full goes
//! to the host that carries most tokens, items with the most missing tokens first. This is a heuristic for
//! tokens within the optimum in tiles.

use super::balance::{BalanceWorkspace, balance_into};
use crate::{Peak, Problem, RankSplit, SolverError, Violation, verify};

/// Split in whole tiles.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TileSplit {
    /// Split in tiles: peak, quotas, rank loads and certificate count tiles.
    pub in_tiles: RankSplit,
    /// Quota of every (item, host) pair in tokens. Every tile is full except at most one per item.
    pub quotas: Vec<u64>,
    /// Tokens of every rank, base load included.
    pub rank_loads: Vec<u64>,
}

/// Splitter in tiles for one problem and successive batches.
#[derive(Debug, Clone)]
pub struct TileSplitter {
    tokens: Problem,
    units: Problem,
    tile: u64,
    workspace: BalanceWorkspace,
    loads: Vec<u64>,
    order: Vec<u32>,
}

impl TileSplitter {
    /// Creates the splitter for a problem in tokens, with tiles of `tile` tokens.
    ///
    /// # Errors
    /// Returns [`SolverError::ZeroTile`] if a tile has no token.
    pub fn new(problem: Problem, tile: u64) -> Result<TileSplitter, SolverError> {
        let units = tile_problem(&problem, tile)?;
        let workspace = BalanceWorkspace::default();
        Ok(TileSplitter { tokens: problem, units, tile, workspace, loads: Vec::new(), order: Vec::new() })
    }

    /// Splits one batch of loads in tokens, one per item.
    ///
    /// # Errors
    /// Fails as [`solve`](crate::solve) does.
    pub fn solve(&mut self, loads: &[u64]) -> Result<TileSplit, SolverError> {
        let mut answer = TileSplit::default();
        self.solve_into(loads, &mut answer)?;
        Ok(answer)
    }

    /// Splits as [`solve`](Self::solve) does, into memory that is reused from call to call.
    ///
    /// # Errors
    /// Fails as [`solve`](crate::solve) does, and then leaves `answer` as it was.
    pub fn solve_into(&mut self, loads: &[u64], answer: &mut TileSplit) -> Result<(), SolverError> {
        self.tokens.checked_total(loads)?;
        self.loads.clear();
        self.loads.extend(loads.iter().map(|load| load.div_ceil(self.tile)));
        balance_into(&self.units, &self.loads, &mut self.workspace, &mut answer.in_tiles)?;
        self.convert_to_tokens(loads, answer);
        Ok(())
    }

    /// Converts tiles to tokens: all tiles are full except one per item.
    fn convert_to_tokens(&mut self, loads: &[u64], answer: &mut TileSplit) {
        let hosts = self.tokens.hosts();
        let missing = |item: usize| (self.tile - loads[item] % self.tile) % self.tile;
        let TileSplit { in_tiles: tiles, quotas, rank_loads } = answer;
        // These are the loads if all tiles are full. They exceed 64 bits only until the last tiles are cut
        // below.
        let mut sums: Vec<u128> = self.tokens.base_loads().iter().map(|&base| u128::from(base)).collect();
        quotas.clear();
        self.order.clear();
        for (item, &load) in loads.iter().enumerate() {
            if let [only] = hosts.ranks_of(item) {
                quotas.push(load);
                sums[*only as usize] += u128::from(load);
                continue;
            }
            if missing(item) > 0 {
                self.order.push(item as u32);
            }
            for (&rank, &count) in hosts.ranks_of(item).iter().zip(tiles.quotas_of(item)) {
                quotas.push(count.saturating_mul(self.tile));
                sums[rank as usize] += u128::from(count) * u128::from(self.tile);
            }
        }
        self.order.sort_by_key(|&item| (std::cmp::Reverse(missing(item as usize)), item));
        for &item in &self.order {
            let item = item as usize;
            let mut busiest: Option<(usize, usize)> = None;
            for (&rank, pair) in hosts.ranks_of(item).iter().zip(hosts.offset(item)..) {
                let rank = rank as usize;
                let ratio = |rank: usize| {
                    let load = u64::try_from(sums[rank]).unwrap_or(u64::MAX);
                    Peak { load, speed: self.tokens.speeds()[rank] }
                };
                if tiles.quotas[pair] > 0 && busiest.is_none_or(|(best, _)| ratio(rank) > ratio(best)) {
                    busiest = Some((rank, pair));
                }
            }
            if let Some((rank, pair)) = busiest {
                sums[rank] -= u128::from(missing(item));
                let full = u128::from(tiles.quotas[pair]) * u128::from(self.tile);
                // The quota is at most the item's load.
                quotas[pair] = (full - u128::from(missing(item))) as u64;
            }
        }
        rank_loads.clear();
        // The sums are at most the total.
        rank_loads.extend(sums.into_iter().map(|sum| sum as u64));
    }
}

/// Returns the problem with base loads in tiles.
fn tile_problem(problem: &Problem, tile: u64) -> Result<Problem, SolverError> {
    if tile == 0 {
        return Err(SolverError::ZeroTile);
    }
    problem.clone().with_base_loads(problem.base_loads().iter().map(|base| base.div_ceil(tile)).collect())
}

/// Checks a split in tiles. It must be feasible and certified to have the lowest peak in tiles, and tokens
/// and tiles must agree.
///
/// # Errors
/// Returns the first [`Violation`]: those of [`verify`] for the problem in tiles, then [`Violation::Tile`]
/// and those of tokens that do not add up. A tile without tokens is [`Violation::Tile`] of item 0.
pub fn verify_tiles(
    problem: &Problem,
    tile: u64,
    loads: &[u64],
    answer: &TileSplit,
) -> Result<(), Violation> {
    let Ok(in_tiles) = tile_problem(problem, tile) else { return Err(Violation::Tile { item: 0 }) };
    let hosts = problem.hosts();
    let tile_loads: Vec<u64> = loads.iter().map(|load| load.div_ceil(tile)).collect();
    verify(&in_tiles, &tile_loads, &answer.in_tiles)?;
    for (what, expected, got) in
        [("quotas", hosts.len(), answer.quotas.len()), ("rank loads", hosts.ranks(), answer.rank_loads.len())]
    {
        if expected != got {
            return Err(Violation::Length { what, expected, got });
        }
    }
    let mut actual: Vec<u128> = problem.base_loads().iter().map(|&base| u128::from(base)).collect();
    for (item, &load) in loads.iter().enumerate() {
        let quotas = &answer.quotas[hosts.offset(item)..hosts.offset(item + 1)];
        let sum: u128 = quotas.iter().map(|&quota| u128::from(quota)).sum();
        if sum != u128::from(load) {
            return Err(Violation::Conservation { item, load, quotas: sum });
        }
        let tiles = quotas.iter().zip(answer.in_tiles.quotas_of(item));
        let agree = tiles.clone().all(|(&quota, &count)| quota.div_ceil(tile) == count);
        if !agree || tiles.filter(|&(quota, _)| quota % tile != 0).count() > 1 {
            return Err(Violation::Tile { item });
        }
        for (&rank, &quota) in hosts.ranks_of(item).iter().zip(quotas) {
            actual[rank as usize] += u128::from(quota);
        }
    }
    for (rank, (&recorded, actual)) in answer.rank_loads.iter().zip(actual).enumerate() {
        if u128::from(recorded) != actual {
            return Err(Violation::RankLoad { rank, recorded, actual });
        }
    }
    Ok(())
}
