//! Trust in the history, chosen on held-out batches.
//!
//! In: the batches of a window. Out: [`ScenarioModel`]. It is the spread of the scenarios, or a replica graph
//! if not even the widest search holds. Every spread is searched on one half of the window and judged on the
//! other, and then the halves are exchanged. Halves are blocks of time, so that a change of domains within
//! the window shows in the other half. Fixed replica graphs compete with the spreads. They need only the
//! order of the experts from the batches. Among the spreads as good as the best within noise, the widest is
//! chosen. Caution decides if the batches cannot.

use super::overdispersion;
use super::perturb::{self, Perturbation, PerturbationPart};
use super::score::scenario_scores;
use super::search_aim::SearchAim;
use super::{ExactEvaluator, LayerProblem, Recourse, ScenarioSet, SeededRng, against_eplb, initial};
use evenkeel_solver::SolverError;

pub(super) const fn plain_part(share: u8, tilt: u8, new: u8) -> PerturbationPart {
    PerturbationPart { share, tilt, new, pooled: false }
}

/// Candidate spreads, narrowest first.
pub(super) const PERTURBATION_LADDER: [&[PerturbationPart]; 3] = [
    &[plain_part(50, 0, 0), plain_part(50, 100, 0)],
    &[plain_part(25, 0, 0), plain_part(50, 100, 0), plain_part(25, 0, 15)],
    &[plain_part(75, 100, 0), plain_part(25, 0, 100)],
];

/// Index of the spread if no batches can be held out.
const DEFAULT_STRENGTH: usize = PERTURBATION_LADDER.len() - 1;

/// Index of the spread if the batches before a change show their variation.
const STRENGTH_AFTER_CHANGE: usize = 1;

/// Number of batches below which none can be held out.
pub(super) const MIN_BATCHES_TO_HOLD_OUT: usize = 8;

/// Highest number of batches of a half on which a search is judged.
pub(super) const MAX_HELD_OUT_BATCHES: usize = 128;

/// Number of scenarios of a search for the choice.
pub(super) const MAX_SELECTION_SCENARIOS: usize = 64;

/// Basis of the planning.
pub(super) enum ScenarioModel {
    /// Search on scenarios of this spread, for this aim.
    Search(Perturbation, SearchAim),
    /// The start of this number, which is a replica graph.
    Graph(usize),
    /// EPLB's placement.
    Eplb,
}

/// Returns the widest spread.
pub(super) fn widest_perturbation() -> Perturbation {
    PERTURBATION_LADDER[PERTURBATION_LADDER.len() - 1].to_vec()
}

/// Returns the narrowest spread.
pub(super) fn narrowest_perturbation() -> Perturbation {
    PERTURBATION_LADDER[0].to_vec()
}

/// Returns the generator of the random graphs, which are the same for every window.
pub(super) fn graph_rng(policy: &Recourse) -> SeededRng {
    SeededRng::new(policy.seed, u64::MAX)
}

/// Returns the number of iterations of one search for the choice.
pub(super) fn selection_iterations(layer: &LayerProblem<'_>) -> u64 {
    layer.policy.iterations(&layer.slots) / (2 * PERTURBATION_LADDER.len() as u64)
}

/// Chooses the basis of the planning for the batches of a layer and the split that will run.
///
/// # Errors
/// Fails if an expert has no rank. The caller has checked that all fit.
pub(super) fn choose_model(
    layer: &LayerProblem<'_>,
    dice: &mut SeededRng,
) -> Result<ScenarioModel, SolverError> {
    match layer.policy.split {
        None => against_eplb::choose_for_unknown(layer, dice),
        Some(_) if layer.policy.is_for_exact_split() => choose_for_exact(layer, dice),
        Some(rule) => against_eplb::choose_for_rule(layer, rule, dice),
    }
}

fn choose_for_exact(layer: &LayerProblem<'_>, dice: &mut SeededRng) -> Result<ScenarioModel, SolverError> {
    if layer.batches.len() < MIN_BATCHES_TO_HOLD_OUT {
        // Earlier batches show the variation. The window is short because they are out of date in other
        // respects.
        let known = if layer.has_earlier_batches { STRENGTH_AFTER_CHANGE } else { DEFAULT_STRENGTH };
        return Ok(ScenarioModel::Search(PERTURBATION_LADDER[known].to_vec(), SearchAim::Exact));
    }
    let (first, second) = layer.batches.split_at(layer.batches.len() / 2);
    let (experts, ranks) = (layer.experts, layer.slots.len());
    let iterations = selection_iterations(layer);
    let mut exact = ExactEvaluator::default();
    let mut rows: Vec<Vec<u64>> = vec![];
    for (seen, unseen) in [(first, second), (second, first)] {
        let judged =
            perturb::even_indices(unseen.len(), unseen.len().min(MAX_HELD_OUT_BATCHES)).map(|b| unseen[b]);
        let held = ScenarioSet::new(experts, ranks, judged);
        let mut seatings = vec![];
        let strays = if seen.len() < MIN_BATCHES_TO_HOLD_OUT { overdispersion::fit_rho(seen) } else { 0.0 };
        for spread in PERTURBATION_LADDER {
            let count = layer.policy.scenarios(iterations).min(MAX_SELECTION_SCENARIOS);
            let scenarios = perturb::draw_scenarios(experts, ranks, (seen, strays), spread, count, dice);
            seatings.push(
                layer.search_best_start(&scenarios, SearchAim::Exact, iterations, dice.clone())?.seating,
            );
        }
        let shares = ScenarioSet::new(experts, ranks, seen.iter().copied()).expert_shares();
        seatings.extend(initial::initial_placements(&shares, &layer.slots, &mut graph_rng(layer.policy)));
        rows.resize(seatings.len(), vec![]);
        for (row, seating) in rows.iter_mut().zip(&seatings) {
            row.extend(scenario_scores(&held, &exact.peaks(seating, &held)?));
        }
    }
    let good = layer.policy.objective.within_noise(&rows);
    // A graph wins only if no spread is as good.
    let widest = good.iter().take(PERTURBATION_LADDER.len()).rposition(|&good| good);
    let graph = good.iter().position(|&good| good).map(|at| at - PERTURBATION_LADDER.len().min(at));
    Ok(match (widest, graph) {
        (Some(at), _) => ScenarioModel::Search(PERTURBATION_LADDER[at].to_vec(), SearchAim::Exact),
        (None, Some(at)) => ScenarioModel::Graph(at),
        (None, None) => {
            ScenarioModel::Search(PERTURBATION_LADDER[DEFAULT_STRENGTH].to_vec(), SearchAim::Exact)
        }
    })
}
