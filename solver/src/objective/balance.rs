//! The whole load vector: among all splits, one whose ratios `load_r / s_r`, sorted descending, are
//! lexicographically least.
//!
//! In: a problem, loads. Out: a [`Split`] of least peak, with the certificate of the exact split, whose second-busiest
//! rank also carries as little as can be, and so on down (*decreasingly minimal*). At equal speeds that is the same as
//! the least sum of squares. Exact for any hosts, speeds and base loads.
//!
//! **Method.** From the exact split, by decomposition into classes (`classes`). Frank and Murota, *Decreasing
//! minimization on M-convex sets*, Math. Programming 195 (2022).
//!
//! **Check.** A split is decreasingly minimal exactly if no residual path leads from a rank to another whose next token
//! has a lower [`Level`] than the first one's last token: [`verify_balanced`](super::verify_balanced).

use super::classes::Classes;
use super::graph::Graph;
use super::level::Level;
use super::residual::Flow;
use crate::{Error, Peak, Problem, Split, solve_into};

/// Memory that is kept from batch to batch. Reusable for any problem; after the first batch of a problem nothing is
/// allocated.
#[derive(Debug, Clone, Default)]
pub struct Workspace {
    pub(super) exact: crate::Workspace,
    pub(super) graph: Graph,
    pub(super) flow: Flow,
    pub(super) classes: Classes,
}

impl Workspace {
    /// Of every rank after a call of [`balance_into`]: the level its load may reach. In every decreasingly minimal
    /// split, and in no other, a rank has either all tokens up to its level or, where the level is one of its own
    /// tokens, all but that one, and items keep to those of their hosts whose level is lowest.
    pub fn levels(&self) -> &[Level] {
        &self.classes.level
    }
}

/// Splits one batch of loads, one per item, so that the vector of ratios is decreasingly minimal.
///
/// # Errors
/// As [`solve`](crate::solve).
pub fn balance(problem: &Problem, loads: &[u64], workspace: &mut Workspace) -> Result<Split, Error> {
    let mut split = Split::default();
    balance_into(problem, loads, workspace, &mut split)?;
    Ok(split)
}

/// As [`balance`], into memory that is kept from call to call.
///
/// # Errors
/// As [`solve`](crate::solve); `split` is then left as it was.
pub fn balance_into(
    problem: &Problem,
    loads: &[u64],
    workspace: &mut Workspace,
    split: &mut Split,
) -> Result<(), Error> {
    solve_into(problem, loads, &mut workspace.exact, split)?;
    let Workspace { graph, flow, classes, .. } = workspace;
    graph.fit(problem.hosts());
    flow.fit(graph, problem.hosts().ranks());
    flow.read(graph, &split.quotas, &split.rank_loads);
    classes.settle(graph, problem.speeds(), flow);
    flow.write(graph, &mut split.quotas, &mut split.rank_loads);
    split.peak = busiest(problem, &split.rank_loads);
    Ok(())
}

/// The largest ratio of load to speed: that of the lowest rank which attains it.
pub(super) fn busiest(problem: &Problem, rank_loads: &[u64]) -> Peak {
    let mut busiest = Peak { load: 0, speed: problem.speeds()[0] };
    for (&load, &speed) in rank_loads.iter().zip(problem.speeds()) {
        busiest = if (Peak { load, speed }) > busiest { Peak { load, speed } } else { busiest };
    }
    busiest
}
