//! The whole load vector: among all splits, one whose ratios `load_r / s_r`, sorted descending, are
//! lexicographically least.
//!
//! In: a problem, loads. Out: a [`RankSplit`] of lowest peak, with the certificate of the exact split. Its
//! second-busiest rank also carries as little as possible, and so on down (*decreasingly minimal*). At equal
//! speeds that is equivalent to the least sum of squares. The method is exact for any hosts, speeds and base
//! loads.
//!
//! **Method.** It starts from the exact split and decomposes the ranks into classes (`decomposition`). Frank
//! and Murota, *Decreasing minimization on M-convex sets*, Math. Programming 195 (2022).
//!
//! **Check.** A split is decreasingly minimal exactly under one condition. No residual path may lead from a
//! rank to another whose next token has a lower [`Level`] than the first one's last token:
//! [`verify_balanced`](super::verify_balanced).

use super::decomposition::LevelClasses;
use super::graph::PlaceGraph;
use super::load_levels::Level;
use super::residual::BoundedFlow;
use crate::{Peak, Problem, RankSplit, SolverError, solve_into};

/// Memory that is reused for all batches and any problem. It allocates nothing after the first batch of a
/// problem.
#[derive(Debug, Clone, Default)]
pub struct BalanceWorkspace {
    pub(super) exact: crate::Workspace,
    pub(super) graph: PlaceGraph,
    pub(super) flow: BoundedFlow,
    pub(super) classes: LevelClasses,
}

impl BalanceWorkspace {
    /// Returns the level that every rank's load may reach, after a call of [`balance_into`]. The levels
    /// describe exactly the decreasingly minimal splits. In them, a rank has all tokens up to its level. If
    /// the level is one of its own tokens, it may lack that one. Items use only those of their hosts whose
    /// level is lowest.
    pub fn levels(&self) -> &[Level] {
        &self.classes.level
    }
}

/// Splits one batch of loads, one per item, so that the vector of ratios is decreasingly minimal.
///
/// # Errors
/// Fails as [`solve`](crate::solve) does.
pub fn balance(
    problem: &Problem,
    loads: &[u64],
    workspace: &mut BalanceWorkspace,
) -> Result<RankSplit, SolverError> {
    let mut split = RankSplit::default();
    balance_into(problem, loads, workspace, &mut split)?;
    Ok(split)
}

/// Splits as [`balance`] does, into memory that is reused from call to call.
///
/// # Errors
/// Fails as [`solve`](crate::solve) does, and then leaves `split` as it was.
pub fn balance_into(
    problem: &Problem,
    loads: &[u64],
    workspace: &mut BalanceWorkspace,
    split: &mut RankSplit,
) -> Result<(), SolverError> {
    solve_into(problem, loads, &mut workspace.exact, split)?;
    let BalanceWorkspace { graph, flow, classes, .. } = workspace;
    graph.build_for(problem.hosts());
    flow.resize_for(graph, problem.hosts().ranks());
    flow.read(graph, &split.quotas, &split.rank_loads);
    classes.settle_classes(graph, problem.speeds(), flow);
    flow.write(graph, &mut split.quotas, &mut split.rank_loads);
    split.peak = busiest_ratio(problem, &split.rank_loads);
    Ok(())
}

/// Returns the highest ratio of load to speed, as that of the lowest rank that attains it.
pub(super) fn busiest_ratio(problem: &Problem, rank_loads: &[u64]) -> Peak {
    let mut busiest = Peak { load: 0, speed: problem.speeds()[0] };
    for (&load, &speed) in rank_loads.iter().zip(problem.speeds()) {
        busiest = if (Peak { load, speed }) > busiest { Peak { load, speed } } else { busiest };
    }
    busiest
}
