//! Re-planning from the current placement with as few moves as suffice.
//!
//! In: a layer, the previous placement, and optionally a limit on moves or their price. Out: a placement
//! within the limit in which every expert that stays keeps its slot. The search starts from the previous
//! placement with a limit of few moves, and continues with higher limits. All placements are compared on
//! scenarios that no search has used.
//!
//! If no search holds against EPLB under the split that runs, and moves are unlimited, the result is EPLB's
//! placement. Its ranks and slots are renamed so that the fewest experts move. The current placement stays if
//! it is as good.
//!
//! Without a price ([`replan`]), the limits are one move, two, four and so on. If moves are unlimited, a
//! search from scratch is added, with ranks renamed so that the fewest experts move. The result is the
//! placement with the fewest moves among those as good as the best within noise, so that noise moves nothing.
//!
//! If moves are limited, two more placements are candidates: the greedy choice of moves, and the moves
//! towards EPLB's placement. After a noticed break the result is the best candidate, whatever its moves.
//! Noise is then no reason to keep a placement that was made for other loads.
//!
//! With a price ([`replan_priced`]), the price is part of the objective. No step is taken whose gain is below
//! the cost of its moves, and a step without gain is taken back. The gain of moves must then be known without
//! bias. So there are more scenarios, drawn from residuals of the whole known past ([`residual_bootstrap`])
//! if there is one.

use super::incumbent::SearchPlacement;
use super::model_selection::{self, ScenarioModel};
use super::residual_bootstrap;
use super::rule_loads::placement_peaks;
use super::scenarios::{IMBALANCE_UNIT, ScenarioSet};
use super::score::ScenarioObjective;
use super::search::{INITIAL_THRESHOLD, MoveLimits, SearchLimits, moves_between, search};
use super::search_aim::SearchAim;
use super::{COMPARISON_FACTOR, LayerProblem, RNG_STREAM, Recourse, against_eplb, initial};
use crate::cluster::Cluster;
use crate::place::evaluate::PeakEvaluator;
use crate::place::refine::{MAX_JUDGED_BATCHES, RefineLimits, refine_on_batches};
use crate::place::{PlaceError, PlaceResponse, Placement, relabel};
use crate::rng::SeededRng;
use evenkeel_solver::SolverError;

/// Number of searches if moves have a price.
const PRICED_SEARCHES: usize = 2;

/// Factor on scenarios and iterations if moves have a price. Among a thousand steps without gain, some seem
/// to gain on few scenarios.
const PRICED_EFFORT_FACTOR: usize = 2;

/// Candidate placement.
struct ReplanCandidate {
    seating: SearchPlacement,
    moves: usize,
}

/// Plans again from `previous`.
pub(super) fn replan(
    layer: &LayerProblem<'_>,
    cluster: &Cluster,
    previous: &Placement,
    max_moves: Option<usize>,
) -> Result<Placement, PlaceError> {
    let failed = |error: SolverError| layer.policy.shape_error(error.to_string());
    let from = current_placement(layer, cluster, previous)?;
    let mut dice = SeededRng::new(layer.policy.seed, RNG_STREAM);
    let trust = layer.scenario_model(&mut dice).map_err(failed)?;
    let again = Replanner::from_model(layer, from, &trust, 1, &mut dice);
    if let (ScenarioModel::Eplb, None) = (&trust, max_moves) {
        return eplb_or_current(&again, previous, &mut dice);
    }
    let mut tried =
        again.search_within_limits(&move_limits(max_moves, again.from.slots()), None).map_err(failed)?;
    if max_moves.is_none() {
        let scratch = layer.place_from_scratch(&trust, &mut dice)?;
        let mut seating =
            SearchPlacement::from_placement(&relabel(previous, &scratch, cluster)?, &layer.slots);
        // EPLB's placement may hold an expert twice on a rank. The second slot is free for another expert.
        initial::fill_empty_slots(&mut seating, layer.totals);
        tried.push(ReplanCandidate { moves: moves_between(&again.from, &seating), seating });
    }
    if let Some(limit) = max_moves {
        tried.extend(greedy_candidates(&again, previous, limit)?);
    }
    tried.sort_by_key(|tried| tried.moves);
    let best = if max_moves.is_some() && again.layer.follows_break() {
        let scores = again.comparison_scores(&tried).map_err(failed)?;
        // Of equals, the first has the fewest moves.
        (0..tried.len()).min_by_key(|&at| scores[at]).unwrap_or(0)
    } else {
        fewest_moves(&tried, &again).map_err(failed)?
    };
    tried[best].seating.placement_keeping_slots(previous)
}

/// Plans again from `previous`, where a move has to lower the mean imbalance by `price`.
pub(super) fn replan_priced(
    layer: &LayerProblem<'_>,
    cluster: &Cluster,
    previous: &Placement,
    max_moves: Option<usize>,
    price: f64,
) -> Result<PlaceResponse, PlaceError> {
    let failed = |error: SolverError| layer.policy.shape_error(error.to_string());
    let from = current_placement(layer, cluster, previous)?;
    let mut dice = SeededRng::new(layer.policy.seed, RNG_STREAM);
    let again =
        if layer.known.len() < model_selection::MIN_BATCHES_TO_HOLD_OUT || layer.policy.spread.is_some() {
            let trust = layer.scenario_model(&mut dice).map_err(failed)?;
            Replanner::from_model(layer, from, &trust, PRICED_EFFORT_FACTOR, &mut dice)
        } else {
            let shape = (layer.experts, layer.slots.len());
            let mut draw = |count| {
                residual_bootstrap::draw_scenarios(shape, &layer.known, layer.batches.len(), count, &mut dice)
            };
            Replanner::with_scenarios(layer, (from, layer.default_aim()), PRICED_EFFORT_FACTOR, &mut draw)
        };
    // If each move has to pay, few moves remain even under a high limit.
    let rungs = move_limits(Some(max_moves.unwrap_or(usize::MAX)), again.from.slots());
    let last = &rungs[rungs.len().saturating_sub(PRICED_SEARCHES)..];
    let mut tried = again.search_within_limits(last, Some(price)).map_err(failed)?;
    tried.sort_by_key(|tried| tried.moves);
    let scores = again.comparison_scores(&tried).map_err(failed)?;
    let unit = unit_score(&again.comparison_scenarios, layer.policy.objective, again.aim);
    let toll = price_to_score(price, unit);
    let cost = |&at: &usize| scores[at].saturating_add(toll.saturating_mul(tried[at].moves as u64));
    let best = (0..tried.len()).min_by_key(cost).unwrap_or(0);
    // The first candidate is the current placement.
    let gain = (scores[0] as f64 - scores[best] as f64) / unit;
    let placement = tried[best].seating.placement_keeping_slots(previous)?;
    Ok(PlaceResponse { placement, expected_gain: Some(gain) })
}

impl LayerProblem<'_> {
    /// Returns true if the loads have broken: the window is short, although more batches are known.
    fn follows_break(&self) -> bool {
        self.known.len() > self.batches.len()
    }
}

/// Layer that is planned again.
struct Replanner<'a> {
    layer: &'a LayerProblem<'a>,
    /// Current placement.
    from: SearchPlacement,
    /// Objective of the searches.
    aim: SearchAim,
    /// Scenarios of the searches.
    search_scenarios: ScenarioSet,
    /// Scenarios of the comparison.
    comparison_scenarios: ScenarioSet,
    /// Factor on the scenarios and iterations of the policy.
    effort_factor: usize,
}

impl<'a> Replanner<'a> {
    /// Prepares scenarios by the trust in the history.
    fn from_model(
        layer: &'a LayerProblem<'_>,
        from: SearchPlacement,
        trust: &ScenarioModel,
        care: usize,
        dice: &mut SeededRng,
    ) -> Self {
        let (spread, aim) = match trust {
            ScenarioModel::Search(spread, aim) => (spread.clone(), *aim),
            ScenarioModel::Eplb => (model_selection::NARROW_SPREAD.to_vec(), against_eplb::rule_aim(layer)),
        };
        Self::with_scenarios(layer, (from, aim), care, &mut |count| {
            layer.draw_scenarios(&spread, count, dice)
        })
    }

    fn with_scenarios(
        layer: &'a LayerProblem<'_>,
        (from, aim): (SearchPlacement, SearchAim),
        effort_factor: usize,
        draw: &mut dyn FnMut(usize) -> ScenarioSet,
    ) -> Self {
        let count = layer.policy.scenarios(layer.policy.replan_iterations(&layer.slots));
        let count = count.saturating_mul(effort_factor);
        let comparison_scenarios = draw(count.saturating_mul(COMPARISON_FACTOR));
        Replanner { layer, from, aim, search_scenarios: draw(count), comparison_scenarios, effort_factor }
    }

    /// Returns the current placement, and those found by searches with each of the limits in turn.
    fn search_within_limits(
        &self,
        rungs: &[usize],
        price: Option<f64>,
    ) -> Result<Vec<ReplanCandidate>, SolverError> {
        let Recourse { objective, seed, .. } = *self.layer.policy;
        let iterations =
            self.layer.policy.replan_iterations(&self.layer.slots).saturating_mul(self.effort_factor as u64);
        let iterations = iterations / rungs.len().max(1) as u64;
        let price = price.map_or(0, |price| {
            price_to_score(price, unit_score(&self.search_scenarios, objective, self.aim))
        });
        let mut tried = vec![ReplanCandidate { seating: self.from.clone(), moves: 0 }];
        for (number, &most) in rungs.iter().enumerate() {
            let limits = SearchLimits {
                iterations,
                moves: Some(MoveLimits { from: &self.from, most, price }),
                initial_threshold: INITIAL_THRESHOLD,
            };
            let start = tried[tried.len() - 1].seating.clone();
            let dice = SeededRng::new(seed, RNG_STREAM + 1 + number as u64);
            let seating = search(
                &self.search_scenarios,
                (objective, self.aim, self.layer.cluster),
                start,
                limits,
                dice,
            )?
            .seating;
            let moves = moves_between(&self.from, &seating);
            tried.push(ReplanCandidate { seating, moves });
        }
        Ok(tried)
    }

    /// Returns the score of each candidate on the scenarios of the comparison.
    fn comparison_scores(&self, tried: &[ReplanCandidate]) -> Result<Vec<u64>, SolverError> {
        let score =
            |one: &ReplanCandidate| self.layer.score(&one.seating, &self.comparison_scenarios, self.aim);
        tried.iter().map(score).collect()
    }
}

/// Returns the score of a mean imbalance of 1 on these scenarios.
fn unit_score(scenarios: &ScenarioSet, objective: ScenarioObjective, aim: SearchAim) -> f64 {
    let one = IMBALANCE_UNIT * objective.counted_scenarios(scenarios) as u64;
    aim.total_score(one, one) as f64
}

/// Converts a price in mean imbalance to a score, where an imbalance of 1 scores `unit`.
fn price_to_score(price: f64, unit: f64) -> u64 {
    (price.max(0.0) * unit) as u64
}

/// Returns the previous placement in the form of the search, without second replicas on a rank.
fn current_placement(
    layer: &LayerProblem<'_>,
    cluster: &Cluster,
    previous: &Placement,
) -> Result<SearchPlacement, PlaceError> {
    let (ranks, per_rank) = (previous.ranks(), previous.slots_per_rank());
    let expected = (layer.experts, cluster.ranks(), cluster.slots_per_rank());
    if (previous.experts(), ranks, per_rank) != expected {
        return Err(layer.policy.shape_error(format!(
            "the previous placement has {} experts on {ranks} ranks x {per_rank} slots: expected {} on {} x {}",
            previous.experts(),
            expected.0,
            expected.1,
            expected.2
        )));
    }
    let from = SearchPlacement::from_placement(previous, &layer.slots);
    match (0..layer.experts as u32).find(|&expert| from.hosts(expert).is_empty()) {
        Some(expert) => Err(layer.policy.shape_error(format!(
            "the previous placement holds expert {expert} only in a slot that this cluster does not use"
        ))),
        None => Ok(from),
    }
}

/// Returns the limits of successive searches: powers of two up to a quarter of the slots, or up to the limit.
fn move_limits(max_moves: Option<usize>, slots: usize) -> Vec<usize> {
    let last = max_moves.unwrap_or(slots / 4).min(slots);
    let mut rungs: Vec<usize> =
        std::iter::successors(Some(1), |most| Some(2 * most)).take_while(|&most| most < last).collect();
    rungs.extend((last > 0).then_some(last));
    rungs
}

/// Returns EPLB's placement, against which no search holds. Returns the current one if it is as good within a
/// thousandth.
fn eplb_or_current(
    again: &Replanner<'_>,
    previous: &Placement,
    dice: &mut SeededRng,
) -> Result<Placement, PlaceError> {
    let layer = again.layer;
    let eplb = relabel(previous, &layer.place_from_scratch(&ScenarioModel::Eplb, dice)?, layer.cluster)?;
    let Some(mut rule) = again.aim.share_rule(layer.cluster) else { return Ok(eplb) };
    let mut score = |placement: &Placement| {
        let peaks = placement_peaks(&again.comparison_scenarios, &mut rule, placement);
        layer.policy.objective.score(&again.comparison_scenarios, &peaks)
    };
    let (new, old) = (score(&eplb), score(previous));
    Ok(if old <= new.saturating_add(new / 1000) { previous.clone() } else { eplb })
}

/// Returns the greedy choice of at most `limit` moves, and the moves towards EPLB's placement. Both are
/// chosen on the latest batches as they were.
fn greedy_candidates(
    again: &Replanner<'_>,
    previous: &Placement,
    limit: usize,
) -> Result<Vec<ReplanCandidate>, PlaceError> {
    let layer = again.layer;
    let latest = layer.batches.len().saturating_sub(MAX_JUDGED_BATCHES);
    let mut batches = PeakEvaluator::from_batches(layer.batches[latest..].to_vec());
    let mut found =
        vec![refine_on_batches(previous, &mut batches, layer.cluster, &RefineLimits::of_moves(limit))?];
    if let Some(eplb) = against_eplb::eplb_for_totals(layer, layer.totals) {
        let eplb = relabel(previous, &eplb, layer.cluster)?;
        found.push(if eplb.moves_from(previous) > limit {
            let how = RefineLimits { towards: Some(&eplb), ..RefineLimits::of_moves(limit) };
            refine_on_batches(previous, &mut batches, layer.cluster, &how)?
        } else {
            eplb
        });
    }
    let candidate = |placement: Placement| {
        let seating = SearchPlacement::from_placement(&placement, &layer.slots);
        ReplanCandidate { moves: moves_between(&again.from, &seating), seating }
    };
    Ok(found.into_iter().map(candidate).collect())
}

/// Returns the first placement, in ascending order of moves, that is as good as the best. The tolerance is
/// noise if every batch is split exactly. Otherwise it is a thousandth, because the result is compared with
/// EPLB planned from scratch.
fn fewest_moves(tried: &[ReplanCandidate], again: &Replanner<'_>) -> Result<usize, SolverError> {
    let objective = again.layer.policy.objective;
    let mut rows = vec![];
    for one in tried {
        rows.push(again.layer.score_rows(&one.seating, &again.comparison_scenarios, again.aim)?);
    }
    if matches!(again.aim, SearchAim::Exact | SearchAim::Copies(_)) {
        return Ok(objective.within_noise(&rows).iter().position(|&good| good).unwrap_or(0));
    }
    let scores: Vec<u64> = rows.iter().map(|row| objective.tail_sum(row)).collect();
    let least = scores.iter().copied().min().unwrap_or(0);
    Ok(scores.iter().position(|&score| score <= least.saturating_add(least / 1000)).unwrap_or(0))
}
