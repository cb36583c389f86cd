//! Check that a split has least traffic, independent of the method that found it.
//!
//! In: a problem, nodes, counts and a result with its prices. Out: nothing, or the violation. The check
//! computes all sums and comparisons again.
//!
//! **Proof by prices** (linear programming duality). Let a token of room on rank `r` cost `p_r`. Let `p_r` be
//! positive only if no other allowed split can carry more there, and negative only if none can carry less.
//! Then no allowed split pays less for room than this one. If in addition no item can be cheaper with room
//! paid for, no allowed split is cheaper. The cost of an item is separable and convex on a tree (ranks in
//! nodes). An item is therefore cheapest if no exchange of one token between two hosts makes it cheaper.
//!
//! For [`PrimaryObjective::Vector`] the levels prove in the same way, one order of magnitude higher, that the
//! load vector is decreasingly minimal. Every rank has the tokens below its level and none above, and every
//! item is served at its lowest level.

use std::cmp::Ordering;

use super::check::compare_levels;
use super::{Level, PrimaryObjective, TrafficSplit, node_cost};
use crate::{Problem, RankSplit, Violation, verify};

/// Checks that a split is feasible, has the lowest peak (or a decreasingly minimal vector), and among these
/// least traffic. `nodes` holds the node of every rank, and `counts` is `[source][item]`.
///
/// # Errors
/// Returns the first [`Violation`]: those of [`verify`], then [`Violation::Traffic`], [`Violation::Level`],
/// [`Violation::Price`], [`Violation::Exchange`].
pub fn verify_traffic(
    problem: &Problem,
    nodes: &[u32],
    counts: &[u64],
    keep: PrimaryObjective,
    answer: &TrafficSplit,
) -> Result<(), Violation> {
    let (ranks, items) = (problem.hosts().ranks(), problem.hosts().items());
    let levels = if keep == PrimaryObjective::Vector { ranks } else { 0 };
    for (what, expected, got) in [
        ("nodes", ranks, nodes.len()),
        ("counts", ranks * items, counts.len()),
        ("prices", ranks, answer.prices.len()),
        ("levels", levels, answer.levels.len()),
    ] {
        if expected != got {
            return Err(Violation::Length { what, expected, got });
        }
    }
    let mut loads = Vec::with_capacity(items);
    for item in 0..items {
        let sum: u128 = (0..ranks).map(|source| u128::from(counts[source * items + item])).sum();
        loads.push(u64::try_from(sum).unwrap_or(u64::MAX));
    }
    verify(problem, &loads, &answer.split)?;
    let check = TrafficCheck { problem, nodes, counts, split: &answer.split, prices: &answer.prices };
    check.check_totals(answer)?;
    match keep {
        PrimaryObjective::Peak => check.check_room_prices()?,
        PrimaryObjective::Vector => check.check_levels(answer)?,
    }
    (0..items).try_for_each(|item| check.check_exchanges(item, answer))
}

struct TrafficCheck<'a> {
    problem: &'a Problem,
    nodes: &'a [u32],
    counts: &'a [u64],
    split: &'a RankSplit,
    prices: &'a [i64],
}

impl TrafficCheck<'_> {
    fn own_count(&self, rank: u32, item: usize) -> u64 {
        self.counts[rank as usize * self.problem.hosts().items() + item]
    }

    /// Returns the tokens of an item that start on one node, and those that are served there.
    fn node_tokens(&self, node: u32, item: usize) -> (u128, u128) {
        let sources = (0u32..).zip(self.nodes).filter(|&(_, &other)| other == node);
        let come = sources.map(|(rank, _)| u128::from(self.own_count(rank, item))).sum();
        let hosts = self.problem.hosts().ranks_of(item).iter().zip(self.split.quotas_of(item));
        let here = hosts.filter(|&(&rank, _)| self.nodes[rank as usize] == node);
        (come, here.map(|(_, &quota)| u128::from(quota)).sum())
    }

    /// Returns the nodes that host an item.
    fn nodes_of(&self, item: usize) -> Vec<u32> {
        let hosts = self.problem.hosts().ranks_of(item);
        let mut nodes: Vec<u32> = hosts.iter().map(|&rank| self.nodes[rank as usize]).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    fn check_totals(&self, answer: &TrafficSplit) -> Result<(), Violation> {
        let (mut off_node, mut off_rank) = (0u128, 0u128);
        for item in 0..self.problem.hosts().items() {
            for (&rank, &quota) in self.problem.hosts().ranks_of(item).iter().zip(self.split.quotas_of(item))
            {
                off_rank += u128::from(quota.saturating_sub(self.own_count(rank, item)));
            }
            for node in self.nodes_of(item) {
                let (come, served) = self.node_tokens(node, item);
                off_node += served.saturating_sub(come);
            }
        }
        if (u128::from(answer.off_node), u128::from(answer.off_rank)) == (off_node, off_rank) {
            return Ok(());
        }
        Err(Violation::Traffic { off_node, off_rank })
    }

    /// Checks that a rank has a price only if the lowest peak leaves it no more room.
    fn check_room_prices(&self) -> Result<(), Violation> {
        let peak = self.split.peak;
        for (rank, (&price, &load)) in self.prices.iter().zip(&self.split.rank_loads).enumerate() {
            let more = (u128::from(load) + 1) * u128::from(peak.speed);
            let full = more > u128::from(peak.load) * u128::from(self.problem.speeds()[rank]);
            if price < 0 || (price > 0 && !full) {
                return Err(Violation::Price { rank, price });
            }
        }
        Ok(())
    }

    /// Checks that every rank lies at its level or one token below, and that items lie at their lowest level.
    /// The signs of prices must fit.
    fn check_levels(&self, answer: &TrafficSplit) -> Result<(), Violation> {
        for (rank, level) in answer.levels.iter().enumerate() {
            let (load, speed) = (u128::from(self.split.rank_loads[rank]), self.problem.speeds()[rank]);
            let level = (u128::from(level.load), level.speed);
            let last = if load == 0 { Ordering::Less } else { compare_levels((load, speed), level) };
            let next = compare_levels((load + 1, speed), level);
            if level.1 == 0 || last == Ordering::Greater || next == Ordering::Less {
                return Err(Violation::Level { rank });
            }
            let price = self.prices[rank];
            if (price < 0 && last == Ordering::Equal) || (price > 0 && next == Ordering::Equal) {
                return Err(Violation::Price { rank, price });
            }
        }
        for item in 0..self.problem.hosts().items() {
            let hosts = self.problem.hosts().ranks_of(item);
            let Some(lowest) = lowest_level(answer, hosts) else { continue };
            for (&rank, &quota) in hosts.iter().zip(self.split.quotas_of(item)) {
                if quota > 0 && answer.levels[rank as usize] != lowest {
                    return Err(Violation::Level { rank: rank as usize });
                }
            }
        }
        Ok(())
    }

    /// Checks that no token of this item is cheaper elsewhere, with room paid for.
    fn check_exchanges(&self, item: usize, answer: &TrafficSplit) -> Result<(), Violation> {
        let hosts = self.problem.hosts().ranks_of(item);
        let lowest = lowest_level(answer, hosts);
        // The most expensive token that is served, and the cheapest possible one, within a node and over all.
        let mut dearest: Option<(i64, u32)> = None;
        let mut cheapest: Option<(i64, u32)> = None;
        for node in self.nodes_of(item) {
            let (come, served) = self.node_tokens(node, item);
            let (mut remove, mut add) = (None, None);
            for (&rank, &quota) in hosts.iter().zip(self.split.quotas_of(item)) {
                let price = self.prices[rank as usize];
                if self.nodes[rank as usize] != node || answer.levels.get(rank as usize).copied() != lowest {
                    continue;
                }
                if quota > 0 {
                    let saved = price + i64::from(quota > self.own_count(rank, item));
                    remove = remove.max(Some((saved, rank)));
                }
                let paid = price + i64::from(quota >= self.own_count(rank, item));
                add = Some(add.map_or((paid, rank), |best| (paid, rank).min(best)));
            }
            check_token_prices(item, remove, add)?;
            let beyond = |tokens: bool| if tokens { node_cost(self.nodes.len()) } else { 0 };
            dearest = dearest.max(remove.map(|(saved, rank)| (saved + beyond(served > come), rank)));
            if let Some((paid, rank)) = add {
                let paid = (paid + beyond(served >= come), rank);
                cheapest = Some(cheapest.map_or(paid, |best| paid.min(best)));
            }
        }
        check_token_prices(item, dearest, cheapest)
    }
}

/// Returns the lowest level among these ranks, if there are levels.
fn lowest_level(answer: &TrafficSplit, ranks: &[u32]) -> Option<Level> {
    let levels = ranks.iter().filter_map(|&rank| answer.levels.get(rank as usize).copied());
    levels.min_by(|a, b| compare_levels((u128::from(a.load), a.speed), (u128::from(b.load), b.speed)))
}

/// Returns an error if the most expensive token costs more than the cheapest possible one.
fn check_token_prices(
    item: usize,
    out: Option<(i64, u32)>,
    into: Option<(i64, u32)>,
) -> Result<(), Violation> {
    match (out, into) {
        (Some((saved, from)), Some((paid, to))) if saved > paid => {
            Err(Violation::Exchange { item, from: from as usize, to: to as usize })
        }
        _ => Ok(()),
    }
}
