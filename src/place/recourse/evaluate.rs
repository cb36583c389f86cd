//! Exact peaks of a placement, scenario by scenario, each with its certificate.

use super::incumbent::SearchPlacement;
use super::scenarios::ScenarioSet;
use super::score::ScenarioObjective;
use evenkeel_solver::{Problem, RankSplit, SolverError, Workspace, solve_counts_into};

/// Memory for exact splits, reused for all placements.
#[derive(Debug, Default)]
pub(crate) struct ExactEvaluator {
    workspace: Workspace,
    split: RankSplit,
}

impl ExactEvaluator {
    /// Returns the placement in the form of the solver.
    ///
    /// # Errors
    /// Fails if an expert has no host.
    pub(crate) fn build_problem(seating: &SearchPlacement) -> Result<Problem, SolverError> {
        Ok(Problem::new(seating.solver_hosts()?))
    }

    /// Returns the lowest peak of one scenario in tokens, and the ranks that prove it.
    ///
    /// # Errors
    /// Succeeds for a problem with the same number of experts.
    pub(crate) fn peak(
        &mut self,
        problem: &Problem,
        scenarios: &ScenarioSet,
        scenario: usize,
    ) -> Result<(f32, &[u32]), SolverError> {
        solve_counts_into(problem, scenarios.loads(scenario), &mut self.workspace, &mut self.split)?;
        Ok((self.split.peak.load as f32, &self.split.certificate))
    }

    /// Returns the peaks of a placement in all scenarios, `[padded B]`.
    ///
    /// # Errors
    /// Fails if an expert has no host.
    pub(crate) fn peaks(
        &mut self,
        seating: &SearchPlacement,
        scenarios: &ScenarioSet,
    ) -> Result<Vec<f32>, SolverError> {
        let problem = Self::build_problem(seating)?;
        let mut peaks = vec![0.0; scenarios.padded_len()];
        for (scenario, to) in peaks.iter_mut().enumerate().take(scenarios.len()) {
            *to = self.peak(&problem, scenarios, scenario)?.0;
        }
        Ok(peaks)
    }

    /// Returns the score of a placement over all scenarios. Returns `None` if it is above `at_most`.
    ///
    /// # Errors
    /// Fails if an expert has no host.
    pub(crate) fn score_up_to(
        &mut self,
        seating: &SearchPlacement,
        scenarios: &ScenarioSet,
        objective: ScenarioObjective,
        at_most: u64,
    ) -> Result<Option<u64>, SolverError> {
        if objective != ScenarioObjective::Mean {
            let score = objective.score(scenarios, &self.peaks(seating, scenarios)?);
            return Ok((score <= at_most).then_some(score));
        }
        let problem = Self::build_problem(seating)?;
        let mut score = objective.score(scenarios, scenarios.peak_floors());
        for scenario in 0..scenarios.len() {
            let above = self.peak(&problem, scenarios, scenario)?.0 - scenarios.peak_floors()[scenario];
            // A peak below the limit of its scenario counts as the limit.
            score += above.max(0.0) as u64 * scenarios.weights()[scenario];
            if score > at_most {
                return Ok(None);
            }
        }
        Ok(Some(score))
    }
}
