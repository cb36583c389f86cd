//! Score of a placement for dynamic slots: copies that its batches need, and peaks that copies cannot lower.
//!
//! In: scenarios, a placement, a number of dynamic slots per rank. Out: one integer per scenario. Every batch
//! finds empty slots and is planned by the copy solver: the fewest copies with which the busiest rank is
//! within 1 % of the mean. A copy scores as much as that tolerance. A token of the busiest rank above it
//! scores as it does in the objective of the exact split.

use super::incumbent::SearchPlacement;
use super::scenarios::{IMBALANCE_UNIT, ScenarioSet};
use crate::split::{ONE_PERCENT, peak_limit};
use evenkeel_solver::SolverError;
use evenkeel_solver::copies::{CopyGoal, CopyPlan, CopyProblem, CopySolver, ItemCopy};

/// Score of a copy: as much as the load above the mean that needs no copy.
const COPY_SCORE: u64 = IMBALANCE_UNIT / 100;

/// Copy solver of one placement.
#[derive(Debug)]
pub(crate) struct CopyScorer {
    ranks: usize,
    solver: CopySolver,
    empty: Vec<u32>,
    plan: CopyPlan,
}

impl CopyScorer {
    /// Prepares a placement with `dynamic` slots more on every rank.
    ///
    /// # Errors
    /// Fails if an expert has no host.
    pub(crate) fn new(seating: &SearchPlacement, dynamic: u32) -> Result<CopyScorer, SolverError> {
        let problem = CopyProblem::new(seating.solver_hosts()?, vec![dynamic; seating.ranks()])?;
        Ok(CopyScorer {
            ranks: seating.ranks(),
            solver: CopySolver::new(&problem),
            empty: problem.empty_slots(),
            plan: CopyPlan::default(),
        })
    }

    /// Returns the score of one scenario. Lower is better, and 0 needs no copy.
    ///
    /// # Errors
    /// Succeeds for scenarios with the placement's number of experts.
    pub(crate) fn score(&mut self, scenarios: &ScenarioSet, scenario: usize) -> Result<u64, SolverError> {
        let loads = scenarios.loads(scenario);
        let total: u64 = loads.iter().map(|&load| u64::from(load)).sum();
        let peak = peak_limit(ONE_PERCENT, total, self.ranks);
        self.solver.solve_into(loads, &self.empty, CopyGoal::FewestCopies { peak }, &mut self.plan)?;
        let above = u64::from(self.plan.peak.saturating_sub(peak)) * scenarios.weights()[scenario];
        Ok(above + self.plan.copies.len() as u64 * COPY_SCORE)
    }

    /// Returns the copies of the scenario that was scored last.
    pub(crate) fn copies(&self) -> &[ItemCopy] {
        &self.plan.copies
    }
}

/// Returns the score of a placement in every scenario, `[B]`.
///
/// # Errors
/// Fails if an expert has no host.
pub(crate) fn copy_scores(
    seating: &SearchPlacement,
    scenarios: &ScenarioSet,
    dynamic: u32,
) -> Result<Vec<u64>, SolverError> {
    let mut scorer = CopyScorer::new(seating, dynamic)?;
    (0..scenarios.len()).map(|scenario| scorer.score(scenarios, scenario)).collect()
}
