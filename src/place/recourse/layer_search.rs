//! Search of a layer from its best start, and the scores of its placements.
//!
//! In: a layer, scenarios, an objective. Out: the best placement found, or the score of a placement.

use super::copy_score::copy_scores;
use super::evaluate::ExactEvaluator;
use super::incumbent::SearchPlacement;
use super::rule_loads::search_placement_peaks;
use super::scenarios::ScenarioSet;
use super::score::{ScenarioObjective, scenario_scores};
use super::search::{INITIAL_THRESHOLD, SearchLimits, SearchResult, search};
use super::search_aim::SearchAim;
use super::share_rule::ShareRule;
use super::{LayerProblem, initial, perturb};
use crate::rng::SeededRng;
use evenkeel_solver::SolverError;

/// Iterations of a search per split of a scenario with one of its starts.
const ITERATIONS_PER_START_SPLIT: u64 = 8;

/// Iterations of a search for copies per iteration of the search for peaks before it.
const COPY_EFFORT_FACTOR: u64 = 3;

/// Lowest number of scenarios on which starts are compared.
const MIN_START_SCENARIOS: usize = 8;

impl LayerProblem<'_> {
    /// Returns the best placement for these scenarios, searched from the best start.
    pub(super) fn search_best_start(
        &self,
        scenarios: &ScenarioSet,
        aim: SearchAim,
        iterations: u64,
        mut dice: SeededRng,
    ) -> Result<SearchResult, SolverError> {
        let objective = self.policy.objective;
        if let SearchAim::Copies(_) = aim {
            // Peaks guide from afar, where every batch needs copies. Copies then decide.
            let near = self.search_best_start(scenarios, SearchAim::Exact, iterations, dice.clone())?;
            let iterations = iterations.saturating_mul(COPY_EFFORT_FACTOR);
            let limits = SearchLimits { iterations, moves: None, initial_threshold: 0 };
            return search(scenarios, (objective, aim, self.cluster), near.seating, limits, dice);
        }
        let start = self.choose_start(scenarios, aim, iterations, &mut dice)?;
        let limits = SearchLimits { iterations, moves: None, initial_threshold: INITIAL_THRESHOLD };
        let near =
            search(scenarios, (ScenarioObjective::Mean, aim, self.cluster), start, limits, dice.clone())?;
        if objective == ScenarioObjective::Mean {
            return Ok(near);
        }
        // A tail does not change by most steps, so a search for the mean comes first. A policy for the mean
        // makes the same search, so this one can only lower its tail.
        search(scenarios, (objective, aim, self.cluster), near.seating, limits, dice)
    }

    /// Returns the start with the best mean. Few iterations pay for few splits, so the starts of a short
    /// search are compared on a part of the scenarios.
    fn choose_start(
        &self,
        scenarios: &ScenarioSet,
        aim: SearchAim,
        iterations: u64,
        dice: &mut SeededRng,
    ) -> Result<SearchPlacement, SolverError> {
        let starts = initial::initial_placements(&scenarios.expert_shares(), &self.slots, dice);
        let splits = iterations / ITERATIONS_PER_START_SPLIT / starts.len().max(1) as u64;
        let count = (splits as usize).clamp(MIN_START_SCENARIOS, scenarios.len().max(MIN_START_SCENARIOS));
        let part = (count < scenarios.len())
            .then(|| scenarios.select(perturb::even_indices(scenarios.len(), count)));
        let compared = part.as_ref().unwrap_or(scenarios);
        let mut best: Option<SearchResult> = None;
        let mut rule = aim.share_rule(self.cluster);
        for start in starts {
            let at_most = best.as_ref().map_or(u64::MAX, |best| best.score.saturating_sub(1));
            if let Some(score) =
                Self::score_up_to(&start, (compared, &mut rule), (ScenarioObjective::Mean, aim), at_most)?
            {
                best = Some(SearchResult { seating: start, score });
            }
        }
        Ok(best.map_or_else(
            || SearchPlacement::with_empty_slots(self.experts, &self.slots),
            |best| best.seating,
        ))
    }

    /// Returns the score of a placement.
    pub(super) fn score(
        &self,
        seating: &SearchPlacement,
        scenarios: &ScenarioSet,
        aim: SearchAim,
    ) -> Result<u64, SolverError> {
        let mut rule = aim.share_rule(self.cluster);
        let aim = (self.policy.objective, aim);
        Ok(Self::score_up_to(seating, (scenarios, &mut rule), aim, u64::MAX)?.unwrap_or(u64::MAX))
    }

    /// Returns the score of a placement, or `None` if it is above `at_most`.
    fn score_up_to(
        seating: &SearchPlacement,
        (scenarios, rule): (&ScenarioSet, &mut Option<ShareRule>),
        (objective, aim): (ScenarioObjective, SearchAim),
        at_most: u64,
    ) -> Result<Option<u64>, SolverError> {
        let rule = rule
            .as_mut()
            .map_or(0, |rule| objective.score(scenarios, &search_placement_peaks(scenarios, rule, seating)));
        if let SearchAim::Copies(dynamic) = aim {
            let score = objective.tail_sum(&copy_scores(seating, scenarios, dynamic)?);
            return Ok((score <= at_most).then_some(score));
        }
        let rule = aim.weighted_rule_score(rule);
        let Some(at_most) = at_most.checked_sub(rule) else { return Ok(None) };
        if !aim.counts_exact() {
            return Ok(Some(rule));
        }
        let exact = ExactEvaluator::default().score_up_to(seating, scenarios, objective, at_most)?;
        Ok(exact.map(|exact| exact.saturating_add(rule)))
    }

    /// Returns the contribution of every scenario to the score of a placement.
    pub(super) fn score_rows(
        &self,
        seating: &SearchPlacement,
        scenarios: &ScenarioSet,
        aim: SearchAim,
    ) -> Result<Vec<u64>, SolverError> {
        if let SearchAim::Copies(dynamic) = aim {
            return copy_scores(seating, scenarios, dynamic);
        }
        let none = || vec![0; scenarios.len()];
        let exact = if aim.counts_exact() {
            scenario_scores(scenarios, &ExactEvaluator::default().peaks(seating, scenarios)?).collect()
        } else {
            none()
        };
        let rule = aim.share_rule(self.cluster).map_or_else(none, |mut rule| {
            scenario_scores(scenarios, &search_placement_peaks(scenarios, &mut rule, seating)).collect()
        });
        Ok(exact.iter().zip(&rule).map(|(&exact, &rule)| aim.total_score(exact, rule)).collect())
    }
}
