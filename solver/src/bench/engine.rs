//! Linear programming engines of this build, or none.

use super::measure::TimedSolver;
use crate::Problem;

/// Engine of [`crate::lp`].
#[cfg(feature = "lp")]
#[derive(Debug, Clone, Copy)]
pub(super) struct TimedEngine(crate::lp::LpEngine);

#[cfg(feature = "lp")]
impl TimedEngine {
    pub(super) fn from_solver(solver: TimedSolver) -> Option<TimedEngine> {
        use crate::lp::LpEngine as Lp;
        Some(TimedEngine(match solver {
            TimedSolver::Clarabel => Lp::Clarabel,
            TimedSolver::Microlp => Lp::Microlp,
            #[cfg(feature = "highs")]
            TimedSolver::HighsSimplex => Lp::HighsSimplex,
            #[cfg(feature = "highs")]
            TimedSolver::HighsIpm => Lp::HighsIpm,
            _ => return None,
        }))
    }

    /// States the programme and solves it. Engines keep nothing from batch to batch.
    pub(super) fn solve(self, problem: &Problem, loads: &[u64]) -> Option<Vec<f64>> {
        crate::lp::solve(problem, loads, self.0).ok().map(|split| split.quotas)
    }
}

/// Stand-in for the engines that this build lacks.
#[cfg(not(feature = "lp"))]
#[derive(Debug, Clone, Copy)]
pub(super) enum TimedEngine {}

#[cfg(not(feature = "lp"))]
impl TimedEngine {
    pub(super) fn from_solver(_: TimedSolver) -> Option<TimedEngine> {
        None
    }

    pub(super) fn solve(self, _: &Problem, _: &[u64]) -> Option<Vec<f64>> {
        match self {}
    }
}
