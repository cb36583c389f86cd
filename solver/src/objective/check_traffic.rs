//! The check that a split has least traffic, independent of how it was found.
//!
//! In: a problem, nodes, counts and an answer with its prices. Out: nothing, or what is wrong. Everything is summed and
//! compared here again.
//!
//! **Why prices prove optimality** (linear programming duality). Let a token of room on rank `r` cost `p_r`. If `p_r` is
//! positive only where no other allowed split can carry more, and negative only where none can carry less, then no
//! allowed split pays less for room than this one. If besides no item can be cheaper with room paid for, no allowed split
//! is cheaper. The cost of an item is separable and convex on a tree (ranks in nodes), so an item that no exchange of one
//! token between two hosts makes cheaper is cheapest.
//!
//! For [`Keep::Vector`] the levels prove in the same way, one order of magnitude higher, that the load vector is
//! decreasingly minimal: every rank has the tokens below its level and none above, and every item is served at its lowest
//! level.

use std::cmp::Ordering;

use super::check::order;
use super::{Keep, Level, TrafficSplit, node_cost};
use crate::{Problem, Split, Violation, verify};

/// Checks that a split is feasible, has least peak (or a decreasingly minimal vector), and among these least traffic.
/// `nodes` holds the node of every rank, `counts` is `[source][item]`.
///
/// # Errors
/// The first [`Violation`] met: those of [`verify`], then [`Violation::Traffic`], [`Violation::Level`],
/// [`Violation::Price`], [`Violation::Exchange`].
pub fn verify_traffic(
    problem: &Problem,
    nodes: &[u32],
    counts: &[u64],
    keep: Keep,
    answer: &TrafficSplit,
) -> Result<(), Violation> {
    let (ranks, items) = (problem.hosts().ranks(), problem.hosts().items());
    let levels = if keep == Keep::Vector { ranks } else { 0 };
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
    let check = Check { problem, nodes, counts, split: &answer.split, prices: &answer.prices };
    check.costs(answer)?;
    match keep {
        Keep::Peak => check.room()?,
        Keep::Vector => check.levels(answer)?,
    }
    (0..items).try_for_each(|item| check.exchanges(item, answer))
}

struct Check<'a> {
    problem: &'a Problem,
    nodes: &'a [u32],
    counts: &'a [u64],
    split: &'a Split,
    prices: &'a [i64],
}

impl Check<'_> {
    fn own(&self, rank: u32, item: usize) -> u64 {
        self.counts[rank as usize * self.problem.hosts().items() + item]
    }

    /// Of one node, the tokens of an item that come from there and that are served there.
    fn at_node(&self, node: u32, item: usize) -> (u128, u128) {
        let sources = (0u32..).zip(self.nodes).filter(|&(_, &other)| other == node);
        let come = sources.map(|(rank, _)| u128::from(self.own(rank, item))).sum();
        let hosts = self.problem.hosts().of(item).iter().zip(self.split.quotas_of(item));
        let here = hosts.filter(|&(&rank, _)| self.nodes[rank as usize] == node);
        (come, here.map(|(_, &quota)| u128::from(quota)).sum())
    }

    /// The nodes that host an item.
    fn nodes_of(&self, item: usize) -> Vec<u32> {
        let hosts = self.problem.hosts().of(item);
        let mut nodes: Vec<u32> = hosts.iter().map(|&rank| self.nodes[rank as usize]).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    fn costs(&self, answer: &TrafficSplit) -> Result<(), Violation> {
        let (mut off_node, mut off_rank) = (0u128, 0u128);
        for item in 0..self.problem.hosts().items() {
            for (&rank, &quota) in self.problem.hosts().of(item).iter().zip(self.split.quotas_of(item)) {
                off_rank += u128::from(quota.saturating_sub(self.own(rank, item)));
            }
            for node in self.nodes_of(item) {
                let (come, served) = self.at_node(node, item);
                off_node += served.saturating_sub(come);
            }
        }
        if (u128::from(answer.off_node), u128::from(answer.off_rank)) == (off_node, off_rank) {
            return Ok(());
        }
        Err(Violation::Traffic { off_node, off_rank })
    }

    /// Room is paid for only where the least peak leaves no more.
    fn room(&self) -> Result<(), Violation> {
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

    /// Every rank lies at its level or one token below, items lie at their lowest level, and prices have the sign that
    /// this allows.
    fn levels(&self, answer: &TrafficSplit) -> Result<(), Violation> {
        for (rank, level) in answer.levels.iter().enumerate() {
            let (load, speed) = (u128::from(self.split.rank_loads[rank]), self.problem.speeds()[rank]);
            let level = (u128::from(level.load), level.speed);
            let last = if load == 0 { Ordering::Less } else { order((load, speed), level) };
            let next = order((load + 1, speed), level);
            if level.1 == 0 || last == Ordering::Greater || next == Ordering::Less {
                return Err(Violation::Level { rank });
            }
            let price = self.prices[rank];
            if (price < 0 && last == Ordering::Equal) || (price > 0 && next == Ordering::Equal) {
                return Err(Violation::Price { rank, price });
            }
        }
        for item in 0..self.problem.hosts().items() {
            let hosts = self.problem.hosts().of(item);
            let Some(lowest) = lowest(answer, hosts) else { continue };
            for (&rank, &quota) in hosts.iter().zip(self.split.quotas_of(item)) {
                if quota > 0 && answer.levels[rank as usize] != lowest {
                    return Err(Violation::Level { rank: rank as usize });
                }
            }
        }
        Ok(())
    }

    /// No token of this item is cheaper elsewhere, with room paid for.
    fn exchanges(&self, item: usize, answer: &TrafficSplit) -> Result<(), Violation> {
        let hosts = self.problem.hosts().of(item);
        let lowest = lowest(answer, hosts);
        // The dearest token there is, and the cheapest that could be, within a node and over all.
        let mut dearest: Option<(i64, u32)> = None;
        let mut cheapest: Option<(i64, u32)> = None;
        for node in self.nodes_of(item) {
            let (come, served) = self.at_node(node, item);
            let (mut remove, mut add) = (None, None);
            for (&rank, &quota) in hosts.iter().zip(self.split.quotas_of(item)) {
                let price = self.prices[rank as usize];
                if self.nodes[rank as usize] != node || answer.levels.get(rank as usize).copied() != lowest {
                    continue;
                }
                if quota > 0 {
                    let saved = price + i64::from(quota > self.own(rank, item));
                    remove = remove.max(Some((saved, rank)));
                }
                let paid = price + i64::from(quota >= self.own(rank, item));
                add = Some(add.map_or((paid, rank), |best| (paid, rank).min(best)));
            }
            compare(item, remove, add)?;
            let beyond = |tokens: bool| if tokens { node_cost(self.nodes.len()) } else { 0 };
            dearest = dearest.max(remove.map(|(saved, rank)| (saved + beyond(served > come), rank)));
            if let Some((paid, rank)) = add {
                let paid = (paid + beyond(served >= come), rank);
                cheapest = Some(cheapest.map_or(paid, |best| paid.min(best)));
            }
        }
        compare(item, dearest, cheapest)
    }
}

/// The lowest level among these ranks, if levels are there.
fn lowest(answer: &TrafficSplit, ranks: &[u32]) -> Option<Level> {
    let levels = ranks.iter().filter_map(|&rank| answer.levels.get(rank as usize).copied());
    levels.min_by(|a, b| order((u128::from(a.load), a.speed), (u128::from(b.load), b.speed)))
}

/// Objects if the dearest token there is costs more than the cheapest there could be.
fn compare(item: usize, out: Option<(i64, u32)>, into: Option<(i64, u32)>) -> Result<(), Violation> {
    match (out, into) {
        (Some((saved, from)), Some((paid, to))) if saved > paid => {
            Err(Violation::Exchange { item, from: from as usize, to: to as usize })
        }
        _ => Ok(()),
    }
}
