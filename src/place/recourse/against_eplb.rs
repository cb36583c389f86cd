//! Choice of a search whose placements EPLB does not beat under the split that will run, on held-out batches.
//!
//! In: the batches of a window. Out: [`ScenarioModel`]. A placement for exact splits can be far worse than
//! EPLB's if a stack splits evenly. A search for even splits fits its own batches. So every candidate search
//! runs on one half of the window and is compared with EPLB, placed on the same half, on the other half. Then
//! the halves are exchanged. If no search holds, EPLB's own placement remains.
//!
//! Two cases are distinguished. In [`choose_for_rule`] the split is a fixed rule, and a search has to be
//! better than EPLB beyond noise. In [`choose_for_unknown`] the split is unknown. The searches weight the
//! even split more and more, until one holds against EPLB under it. Among those with the same weight that
//! hold, the best under the exact split is chosen.

use super::evaluate::ExactEvaluator;
use super::incumbent::SearchPlacement;
use super::model_selection::{
    MIN_BATCHES_TO_HOLD_OUT, NARROW_SPREAD, ScenarioModel, WIDE_SPREAD, plain_part,
};
use super::perturb::{self, PerturbationPart};
use super::rule_loads::{placement_peaks, search_placement_peaks};
use super::scenarios::ScenarioSet;
use super::score::{scenario_scores, standard_error};
use super::search_aim::SearchAim;
use super::share_rule::ShareRule;
use super::{LayerProblem, SeededRng, initial, overdispersion};
use crate::place::{Eplb, Placement, TieBreak};
use crate::split::{SplitMethod, StackDispatch};
use evenkeel_solver::SolverError;

/// Candidate search if the split is unknown.
struct SearchCandidate {
    /// Weight of the even split's score, in sixteenths of the exact one's.
    weight: u64,
    /// Spreads of the search.
    spreads: &'static [&'static [PerturbationPart]],
    /// Standard errors by which its mean under the even split has to be below EPLB's, if there are many
    /// batches. Searches with a high weight are at worst a little above EPLB's. The others may be far above.
    errors: f64,
}

/// Candidate searches, evaluated until one holds. Wide spreads dilute averages, so only the lowest weight
/// uses them.
const CANDIDATES: [SearchCandidate; 4] = [
    SearchCandidate {
        weight: MIN_EVEN_WEIGHT,
        spreads: &[POOLED_PARTS, NARROW_SPREAD, MOSTLY_SEEN_SPREAD, WIDE_SPREAD],
        errors: 1.5,
    },
    SearchCandidate { weight: 8, spreads: &[POOLED_PARTS, NARROW_SPREAD], errors: 0.75 },
    SearchCandidate { weight: 64, spreads: &[POOLED_PARTS], errors: 0.0 },
    SearchCandidate { weight: 512, spreads: &[POOLED_PARTS], errors: 0.0 },
];

/// Standard errors by which a search for a fixed rule alone has to be below EPLB, if there are many batches.
const RULE_ERRORS: f64 = 1.5;

/// Standard errors if there are few batches. The comparison is between two placements made on halves of the
/// window, so the error between batches is only a part of its error.
const FEW_ERRORS: f64 = 3.0;

/// Number of batches below which a window has few.
const MIN_BATCHES_FOR_ERRORS: usize = 64;

/// Lowest weight of the even split's score.
pub(super) const MIN_EVEN_WEIGHT: u64 = 2;

/// Single batches, and their average. If experts vary independently, the average predicts better than any
/// batch.
const POOLED_PARTS: &[PerturbationPart] = &[
    plain_part(30, 0, 0),
    plain_part(30, 100, 0),
    PerturbationPart { share: 40, tilt: 0, new: 0, pooled: true },
];

/// Recorded batches, tilted ones, and a few new roles.
const MOSTLY_SEEN_SPREAD: &[PerturbationPart] =
    &[plain_part(25, 0, 0), plain_part(50, 100, 0), plain_part(25, 0, 15)];

/// Spreads for a fixed rule. A placement that balances an average need not guard against changes of roles
/// that were never observed.
const RULE_SPREADS: [&[PerturbationPart]; 3] = [POOLED_PARTS, NARROW_SPREAD, MOSTLY_SEEN_SPREAD];

/// Highest number of batches of a half on which a search is judged.
const MAX_HELD_OUT_BATCHES: usize = 128;

/// Number of scenarios of a search for the choice. Every part of a spread is rounded up, and all of them fit
/// two blocks.
const MAX_SELECTION_SCENARIOS: usize = 62;

/// Iterations of the last search per iteration of one search for the choice.
const SELECTION_PART: u64 = 6;

/// Batches of a search, and held-out batches of the comparison.
struct HoldoutFold<'a> {
    search_batches: Vec<&'a [u64]>,
    held_out: ScenarioSet,
    /// Contributions of EPLB, placed on `seen`, to the score in each scenario of `held`. Empty if EPLB does
    /// not support the shape.
    eplb: Vec<u64>,
}

/// Placements of one way to search, one of every fold.
struct JudgedSearch {
    seatings: Vec<SearchPlacement>,
    /// Contributions to the score under the rule in every held-out scenario.
    rule: Vec<u64>,
}

impl JudgedSearch {
    /// Returns the contributions to the score of exact splits in every held-out scenario.
    fn exact_rows(&self, folds: &[HoldoutFold<'_>]) -> Result<Vec<u64>, SolverError> {
        let mut rows = vec![];
        for (fold, seating) in folds.iter().zip(&self.seatings) {
            let peaks = ExactEvaluator::default().peaks(seating, &fold.held_out)?;
            rows.extend(scenario_scores(&fold.held_out, &peaks));
        }
        Ok(rows)
    }
}

/// Returns the placement of EPLB for these batches.
fn eplb_for_batches(layer: &LayerProblem<'_>, batches: &[&[u64]]) -> Option<Placement> {
    eplb_for_totals(layer, &perturb::sum_batches(layer.experts, batches))
}

/// Returns the placement of EPLB for these totals, `[E]`, if the slots divide over the ranks.
pub(super) fn eplb_for_totals(layer: &LayerProblem<'_>, totals: &[u64]) -> Option<Placement> {
    if !layer.cluster.is_even() {
        return None;
    }
    let loads: Vec<f32> = totals.iter().map(|&load| load as f32).collect();
    let (slots, ranks) = (layer.cluster.slots(), layer.cluster.ranks());
    let held = Eplb::new(1, TieBreak::LowestExpert).physical_to_logical(&loads, slots, 1, ranks).ok()?;
    let placement = Placement::new(layer.experts, ranks, held.into_iter().map(Some).collect()).ok()?;
    if layer.policy.split != Some(SplitMethod::Stack(StackDispatch::VllmAscend))
        || placement.same_rank_duplicates() == 0
    {
        return Some(placement);
    }
    // vllm-ascend refuses a rank that holds an expert twice.
    let mut seating = SearchPlacement::from_placement(&placement, &layer.slots);
    initial::fill_empty_slots(&mut seating, totals);
    seating.placement().ok()
}

/// Returns the objective of a search if EPLB's placement is the best and cannot be used as it is.
pub(super) fn rule_aim(layer: &LayerProblem<'_>) -> SearchAim {
    match layer.default_aim() {
        SearchAim::Both(_) | SearchAim::Exact | SearchAim::Copies(_) => SearchAim::Rule(SplitMethod::Even),
        rule @ SearchAim::Rule(_) => rule,
    }
}

/// Returns true if a placement found on the whole window is not worse than EPLB's on it, under the rule of
/// its aim. The choice of the search rests on halves of the window, so that a search on the whole may be
/// worse.
pub(super) fn holds_on_window_batches(
    layer: &LayerProblem<'_>,
    seating: &SearchPlacement,
    aim: SearchAim,
) -> bool {
    let (Some(mut rule), Some(eplb)) = (aim.share_rule(layer.cluster), eplb_for_totals(layer, layer.totals))
    else {
        return true;
    };
    let (experts, ranks, objective) = (layer.experts, layer.slots.len(), layer.policy.objective);
    let batches = perturb::even_indices(layer.batches.len(), layer.batches.len().min(MAX_HELD_OUT_BATCHES))
        .map(|b| layer.batches[b]);
    let window = ScenarioSet::new(experts, ranks, batches);
    let eplb = objective.score(&window, &placement_peaks(&window, &mut rule, &eplb));
    objective.score(&window, &search_placement_peaks(&window, &mut rule, seating)) <= eplb
}

/// Chooses the planning if a fixed rule splits the batches.
///
/// # Errors
/// Fails if an expert has no rank. The caller has checked that all fit.
pub(super) fn choose_for_rule(
    layer: &LayerProblem<'_>,
    method: SplitMethod,
    dice: &mut SeededRng,
) -> Result<ScenarioModel, SolverError> {
    let folds = holdout_folds(layer, method, dice);
    let aim = SearchAim::Rule(method);
    let mut best: Option<(&[PerturbationPart], u64, Vec<u64>)> = None;
    for spread in RULE_SPREADS {
        let rows = evaluate_search(layer, &folds, spread, aim, dice)?;
        let score = layer.policy.objective.tail_sum(&rows.rule);
        if best.as_ref().is_none_or(|(_, least, _)| score < *least) {
            best = Some((spread, score, rows.rule));
        }
    }
    let Some((spread, _, rows)) = best else { return Ok(ScenarioModel::Eplb) };
    let eplb: Vec<u64> = folds.iter().flat_map(|fold| fold.eplb.iter().copied()).collect();
    let better = beats_eplb(&rows, &eplb, if has_few_batches(layer) { FEW_ERRORS } else { RULE_ERRORS });
    Ok(if better { ScenarioModel::Search(spread.to_vec(), aim) } else { ScenarioModel::Eplb })
}

/// Chooses the planning if the split is unknown.
///
/// # Errors
/// Fails as [`choose_for_rule`] does.
pub(super) fn choose_for_unknown(
    layer: &LayerProblem<'_>,
    dice: &mut SeededRng,
) -> Result<ScenarioModel, SolverError> {
    let folds = holdout_folds(layer, SplitMethod::Even, dice);
    let objective = layer.policy.objective;
    let eplb: Vec<u64> = folds.iter().flat_map(|fold| fold.eplb.iter().copied()).collect();
    for SearchCandidate { weight, spreads, errors } in CANDIDATES {
        let aim = SearchAim::Both(weight);
        let errors = if has_few_batches(layer) { FEW_ERRORS } else { errors };
        let (mut held, mut rows) = (vec![], vec![]);
        for &spread in spreads {
            let judged = evaluate_search(layer, &folds, spread, aim, dice)?;
            if beats_eplb(&judged.rule, &eplb, errors) {
                held.push(spread);
                rows.push(judged.exact_rows(&folds)?);
            }
        }
        if let Some(widest) = objective.within_noise(&rows).iter().rposition(|&good| good) {
            return Ok(ScenarioModel::Search(held[widest].to_vec(), aim));
        }
    }
    choose_for_rule(layer, SplitMethod::Even, dice)
}

/// Returns true if the mean of a row of scores is below EPLB's by a number of standard errors.
fn beats_eplb(row: &[u64], eplb: &[u64], errors: f64) -> bool {
    let (mean, error) = standard_error(row, eplb);
    eplb.is_empty() || mean <= -errors * error
}

/// Returns true if the batches are too few to trust the errors between them.
fn has_few_batches(layer: &LayerProblem<'_>) -> bool {
    layer.batches.len() < MIN_BATCHES_FOR_ERRORS
}

/// Returns both halves of the window in blocks of time, each judged on the other. Few batches cannot be
/// halved, so they are judged on random variations of themselves.
fn holdout_folds<'a>(
    layer: &LayerProblem<'a>,
    method: SplitMethod,
    dice: &mut SeededRng,
) -> Vec<HoldoutFold<'a>> {
    let (experts, ranks) = (layer.experts, layer.slots.len());
    let fold = |seen: &[&'a [u64]], held: ScenarioSet| {
        let peaks = eplb_for_batches(layer, seen)
            .map(|placement| placement_peaks(&held, &mut ShareRule::new(method, layer.cluster), &placement));
        let eplb = peaks.map_or_else(Vec::new, |peaks| scenario_scores(&held, &peaks).collect());
        HoldoutFold { search_batches: seen.to_vec(), held_out: held, eplb }
    };
    if layer.batches.len() < MIN_BATCHES_TO_HOLD_OUT {
        let strayed = (&layer.batches[..], layer.rho);
        return vec![fold(
            &layer.batches,
            perturb::draw_scenarios(
                (layer.totals, ranks),
                strayed,
                NARROW_SPREAD,
                MAX_HELD_OUT_BATCHES,
                dice,
            ),
        )];
    }
    let (first, second) = layer.batches.split_at(layer.batches.len() / 2);
    [(first, second), (second, first)]
        .map(|(seen, unseen)| {
            let judged = perturb::even_indices(unseen.len(), unseen.len().min(MAX_HELD_OUT_BATCHES))
                .map(|b| unseen[b]);
            fold(seen, ScenarioSet::new(experts, ranks, judged))
        })
        .into()
}

/// Searches on the `seen` batches of every fold, and judges on the held-out ones.
fn evaluate_search(
    layer: &LayerProblem<'_>,
    folds: &[HoldoutFold<'_>],
    spread: &[PerturbationPart],
    aim: SearchAim,
    dice: &mut SeededRng,
) -> Result<JudgedSearch, SolverError> {
    let (experts, ranks) = (layer.experts, layer.slots.len());
    let iterations = layer.policy.iterations(&layer.slots) / SELECTION_PART;
    let mut judged = JudgedSearch { seatings: vec![], rule: vec![] };
    for fold in folds {
        let strays = match fold.search_batches.len() {
            seen if seen >= MIN_BATCHES_TO_HOLD_OUT => 0.0,
            _ if folds.len() == 1 => layer.rho,
            _ => overdispersion::fit_rho(&fold.search_batches),
        };
        let count = layer.policy.scenarios(iterations).min(MAX_SELECTION_SCENARIOS);
        let totals = perturb::sum_batches(experts, &fold.search_batches);
        let batches = (&fold.search_batches[..], strays);
        let scenarios = perturb::draw_scenarios((&totals, ranks), batches, spread, count, dice);
        let seating = layer.search_best_start(&scenarios, aim, iterations, dice.clone())?.seating;
        if let Some(mut rule) = aim.share_rule(layer.cluster) {
            let peaks = search_placement_peaks(&fold.held_out, &mut rule, &seating);
            judged.rule.extend(scenario_scores(&fold.held_out, &peaks));
        }
        judged.seatings.push(seating);
    }
    Ok(judged)
}
