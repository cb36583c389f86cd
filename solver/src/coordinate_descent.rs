//! `edge`: coordinate descent on coloured edges, for comparison.
//!
//! In: a problem with equal speeds whose items have at most two hosts, and one count per item. Out: whole
//! quotas that conserve every count. They are feasible by construction after every single step.
//!
//! **Source.** The "edge balance" proposal for DeepSeek's LPLB (2025), restated from its description. Ranks
//! are nodes, and two-hosted items are edges. Edges of one colour share no rank, so that they could be
//! processed at the same time. In the proposal the lanes of a warp do so. One step levels the two ranks of an
//! edge as far as its load allows. A sweep does so colour by colour.
//!
//! **Improvements.** Whole tokens replace fractions, so that "nothing moved" is exact. A greedy first sweep
//! replaces the start at half. The method ends when a sweep moves nothing, or when the peak meets the lower
//! bound (mean and fixed loads). It makes up to [`MAX_SWEEPS`] sweeps instead of a few. Levelling converges
//! to the least-squares balance, which has the lowest peak. In whole tokens it may stop a few tokens above.

use crate::exact::Count;
use crate::{Problem, SolverError};

/// Highest number of sweeps over all edges.
pub const MAX_SWEEPS: usize = 64;

/// Edges of a problem, and scratch memory.
#[derive(Debug, Clone)]
pub struct DescentWorkspace {
    /// Edges, colour by colour.
    edges: Vec<RankEdge>,
    /// Items with one host.
    fixed: Vec<FixedItem>,
}

#[derive(Debug, Clone, Copy)]
struct RankEdge {
    item: u32,
    pair: u32,
    low: u32,
    high: u32,
}

#[derive(Debug, Clone, Copy)]
struct FixedItem {
    item: u32,
    pair: u32,
    rank: u32,
}

/// Whole quotas, not necessarily of lowest peak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DescentQuotas {
    /// Quota of every (item, host) pair, in the numbering of [`Hosts`](crate::Hosts).
    pub quotas: Vec<u64>,
    /// Load of every rank.
    pub rank_loads: Vec<u64>,
    /// Number of sweeps.
    pub sweeps: usize,
}

impl DescentWorkspace {
    /// Colours the edges of a problem. Each edge takes the lowest colour that its two ranks leave free.
    ///
    /// # Errors
    /// Returns [`SolverError::EdgeUnsupported`] for the first item with three hosts or more. Returns
    /// [`SolverError::AffineUnsupported`] if speeds differ.
    pub fn new(problem: &Problem) -> Result<DescentWorkspace, SolverError> {
        let hosts = problem.hosts();
        if let Some(rank) = problem.speeds().iter().position(|&speed| speed != problem.speeds()[0]) {
            return Err(SolverError::AffineUnsupported { rank });
        }
        let mut used: Vec<Vec<bool>> = vec![Vec::new(); hosts.ranks()];
        let mut coloured = Vec::new();
        let mut fixed = Vec::new();
        for index in 0..hosts.items() {
            let (item, pair) = (index as u32, hosts.offset(index) as u32);
            match *hosts.ranks_of(index) {
                [rank] => fixed.push(FixedItem { item, pair, rank }),
                [low, high] => {
                    let taken = |rank: u32, colour: usize| used[rank as usize].get(colour) == Some(&true);
                    let colour = (0..=index).take_while(|&c| taken(low, c) || taken(high, c)).count();
                    for rank in [low, high] {
                        let used = &mut used[rank as usize];
                        used.resize(used.len().max(colour + 1), false);
                        used[colour] = true;
                    }
                    coloured.push((colour, RankEdge { item, pair, low, high }));
                }
                _ => return Err(SolverError::EdgeUnsupported { item: index }),
            }
        }
        coloured.sort_by_key(|&(colour, _)| colour);
        Ok(DescentWorkspace { edges: coloured.into_iter().map(|(_, edge)| edge).collect(), fixed })
    }
}

/// Splits one batch of counts.
///
/// # Errors
/// Returns [`SolverError::Length`] and [`SolverError::Overflow`] as [`solve`](crate::solve) does, the latter
/// also if the total exceeds 63 bits.
pub fn solve_counts_into(
    problem: &Problem,
    counts: &[u32],
    workspace: &DescentWorkspace,
    out: &mut DescentQuotas,
) -> Result<(), SolverError> {
    let total = problem.checked_total(counts)?;
    if i64::try_from(total).is_err() {
        return Err(SolverError::Overflow);
    }
    let DescentQuotas { quotas, rank_loads, sweeps } = out;
    quotas.resize(problem.hosts().len(), 0);
    rank_loads.clear();
    rank_loads.extend_from_slice(problem.base_loads());
    for single in &workspace.fixed {
        let load = counts[single.item as usize].to_u64();
        quotas[single.pair as usize] = load;
        rank_loads[single.rank as usize] += load;
    }
    let bound = rank_loads.iter().copied().fold(total.div_ceil(rank_loads.len() as u64), u64::max);
    for edge in &workspace.edges {
        quotas[edge.pair as usize] = 0;
        quotas[edge.pair as usize + 1] = 0;
        level_edge(*edge, counts[edge.item as usize].to_u64(), quotas, rank_loads);
    }
    *sweeps = 1;
    while *sweeps < MAX_SWEEPS && rank_loads.iter().any(|&load| load > bound) {
        *sweeps += 1;
        let mut moved = false;
        for edge in &workspace.edges {
            moved |= level_edge(*edge, counts[edge.item as usize].to_u64(), quotas, rank_loads);
        }
        if !moved {
            break;
        }
    }
    Ok(())
}

/// Levels the two ranks of an edge. Returns true if that moved tokens.
fn level_edge(edge: RankEdge, load: u64, quotas: &mut [u64], rank_loads: &mut [u64]) -> bool {
    let (pair, low, high) = (edge.pair as usize, edge.low as usize, edge.high as usize);
    let without = [rank_loads[low] - quotas[pair], rank_loads[high] - quotas[pair + 1]];
    // All loads are below 2^63, as the total is.
    let [low_load, high_load, load_here] = [without[0], without[1], load].map(u64::cast_signed);
    let give = ((high_load - low_load + load_here + 1) >> 1).clamp(0, load_here).cast_unsigned();
    let moved = quotas[pair] != give;
    quotas[pair] = give;
    quotas[pair + 1] = load - give;
    rank_loads[low] = without[0] + give;
    rank_loads[high] = without[1] + load - give;
    moved
}
