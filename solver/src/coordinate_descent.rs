//! `edge`: coordinate descent on coloured edges, for comparison.
//!
//! In: a problem with equal speeds whose items have at most two hosts, and one count per item. Out: whole quotas
//! that conserve every count: feasible by construction, after every single step.
//!
//! **Source.** The "edge balance" proposal for DeepSeek's LPLB (2025), restated from its description. Ranks are
//! nodes, two-hosted items are edges. Edges are coloured so that those of one colour share no rank and could be
//! worked on at once (there: by the lanes of a warp). One step takes an edge and levels its two ranks as far
//! as its load goes; a sweep does so colour by colour.
//!
//! **Strong here.** Whole tokens instead of fractions, so that "nothing moved" is exact; a greedy first sweep
//! in place of a start at half; an end as soon as a sweep moves nothing, or the peak meets the lower bound
//! (mean and fixed loads); and [`SWEEPS`] sweeps instead of a few. Levelling converges to the least-squares
//! balance, which has the least peak; in whole tokens it may stop a few tokens above.

use crate::exact::Count;
use crate::{Error, Problem};

/// The most sweeps over all edges.
pub const SWEEPS: usize = 64;

/// The edges of a problem, and scratch memory.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// Colour by colour.
    edges: Vec<Edge>,
    /// Items with one host.
    fixed: Vec<Fixed>,
}

#[derive(Debug, Clone, Copy)]
struct Edge {
    item: u32,
    pair: u32,
    low: u32,
    high: u32,
}

#[derive(Debug, Clone, Copy)]
struct Fixed {
    item: u32,
    pair: u32,
    rank: u32,
}

/// Whole quotas, not necessarily of least peak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quotas {
    /// The quota of every (item, host) pair, in the numbering of [`Hosts`](crate::Hosts).
    pub quotas: Vec<u64>,
    /// The load of every rank.
    pub rank_loads: Vec<u64>,
    /// Sweeps that were made.
    pub sweeps: usize,
}

impl Workspace {
    /// Colours the edges of a problem: each takes the lowest colour that its two ranks leave free.
    ///
    /// # Errors
    /// [`Error::EdgeUnsupported`] for the first item with three hosts or more;
    /// [`Error::AffineUnsupported`] if speeds differ.
    pub fn new(problem: &Problem) -> Result<Workspace, Error> {
        let hosts = problem.hosts();
        if let Some(rank) = problem.speeds().iter().position(|&speed| speed != problem.speeds()[0]) {
            return Err(Error::AffineUnsupported { rank });
        }
        let mut used: Vec<Vec<bool>> = vec![Vec::new(); hosts.ranks()];
        let mut coloured = Vec::new();
        let mut fixed = Vec::new();
        for index in 0..hosts.items() {
            let (item, pair) = (index as u32, hosts.offset(index) as u32);
            match *hosts.of(index) {
                [rank] => fixed.push(Fixed { item, pair, rank }),
                [low, high] => {
                    let taken = |rank: u32, colour: usize| used[rank as usize].get(colour) == Some(&true);
                    let colour = (0..=index).take_while(|&c| taken(low, c) || taken(high, c)).count();
                    for rank in [low, high] {
                        let used = &mut used[rank as usize];
                        used.resize(used.len().max(colour + 1), false);
                        used[colour] = true;
                    }
                    coloured.push((colour, Edge { item, pair, low, high }));
                }
                _ => return Err(Error::EdgeUnsupported { item: index }),
            }
        }
        coloured.sort_by_key(|&(colour, _)| colour);
        Ok(Workspace { edges: coloured.into_iter().map(|(_, edge)| edge).collect(), fixed })
    }
}

/// Splits one batch of counts.
///
/// # Errors
/// [`Error::Length`] and [`Error::Overflow`] as [`solve`](crate::solve); also if the total exceeds 63 bits.
pub fn solve_counts_into(
    problem: &Problem,
    counts: &[u32],
    workspace: &Workspace,
    out: &mut Quotas,
) -> Result<(), Error> {
    let total = problem.total(counts)?;
    if i64::try_from(total).is_err() {
        return Err(Error::Overflow);
    }
    let Quotas { quotas, rank_loads, sweeps } = out;
    quotas.resize(problem.hosts().len(), 0);
    rank_loads.clear();
    rank_loads.extend_from_slice(problem.base());
    for single in &workspace.fixed {
        let load = counts[single.item as usize].to_u64();
        quotas[single.pair as usize] = load;
        rank_loads[single.rank as usize] += load;
    }
    let bound = rank_loads.iter().copied().fold(total.div_ceil(rank_loads.len() as u64), u64::max);
    for edge in &workspace.edges {
        quotas[edge.pair as usize] = 0;
        quotas[edge.pair as usize + 1] = 0;
        level(*edge, counts[edge.item as usize].to_u64(), quotas, rank_loads);
    }
    *sweeps = 1;
    while *sweeps < SWEEPS && rank_loads.iter().any(|&load| load > bound) {
        *sweeps += 1;
        let mut moved = false;
        for edge in &workspace.edges {
            moved |= level(*edge, counts[edge.item as usize].to_u64(), quotas, rank_loads);
        }
        if !moved {
            break;
        }
    }
    Ok(())
}

/// Levels the two ranks of an edge; whether that moved anything.
fn level(edge: Edge, load: u64, quotas: &mut [u64], rank_loads: &mut [u64]) -> bool {
    let (pair, low, high) = (edge.pair as usize, edge.low as usize, edge.high as usize);
    let without = [rank_loads[low] - quotas[pair], rank_loads[high] - quotas[pair + 1]];
    // All below 2^63, as the total is.
    let [low_load, high_load, load_here] = [without[0], without[1], load].map(u64::cast_signed);
    let give = ((high_load - low_load + load_here + 1) >> 1).clamp(0, load_here).cast_unsigned();
    let moved = quotas[pair] != give;
    quotas[pair] = give;
    quotas[pair + 1] = load - give;
    rank_loads[low] = without[0] + give;
    rank_loads[high] = without[1] + load - give;
    moved
}
