//! The linear programming engines of this build, or none.

use super::measure::Solver;
use crate::Problem;

/// An engine of [`crate::lp`].
#[cfg(feature = "lp")]
#[derive(Debug, Clone, Copy)]
pub(super) struct Engine(crate::lp::Engine);

#[cfg(feature = "lp")]
impl Engine {
    pub(super) fn of(solver: Solver) -> Option<Engine> {
        use crate::lp::Engine as Lp;
        Some(Engine(match solver {
            Solver::Clarabel => Lp::Clarabel,
            Solver::Microlp => Lp::Microlp,
            #[cfg(feature = "highs")]
            Solver::HighsSimplex => Lp::HighsSimplex,
            #[cfg(feature = "highs")]
            Solver::HighsIpm => Lp::HighsIpm,
            _ => return None,
        }))
    }

    /// States the programme and solves it: engines keep nothing from batch to batch.
    pub(super) fn solve(self, problem: &Problem, loads: &[u64]) -> Option<Vec<f64>> {
        crate::lp::solve(problem, loads, self.0).ok().map(|split| split.quotas)
    }
}

/// No engine in this build.
#[cfg(not(feature = "lp"))]
#[derive(Debug, Clone, Copy)]
pub(super) enum Engine {}

#[cfg(not(feature = "lp"))]
impl Engine {
    pub(super) fn of(_: Solver) -> Option<Engine> {
        None
    }

    pub(super) fn solve(self, _: &Problem, _: &[u64]) -> Option<Vec<f64>> {
        match self {}
    }
}
