//! Basis of the planning of a layer: the spread of the scenarios, and the aim of the search.
//!
//! In: the batches of a window. Out: [`ScenarioModel`]. For exact splits the spread is fixed. It is
//! [`MIXED_SPREAD`] for a window of batches, [`DRAWN_SPREAD`] if they were drawn, and [`WIDE_SPREAD`] if
//! batches do not show their variation. A choice between spreads by searches on halves of a window was worse
//! than this mixture: such searches differ more by chance than by their spread (docs/placement.md has the
//! figures). If a fixed rule splits, or if the split is unknown, `against_eplb` chooses.

use super::perturb::{Perturbation, PerturbationPart};
use super::search_aim::SearchAim;
use super::{LayerProblem, SeededRng, against_eplb};
use evenkeel_solver::SolverError;

pub(super) const fn plain_part(share: u8, tilt: u8, new: u8) -> PerturbationPart {
    PerturbationPart { share, tilt, new, pooled: false }
}

/// Spread that trusts the window: batches as recorded, and tilted ones.
pub(super) const NARROW_SPREAD: &[PerturbationPart] = &[plain_part(50, 0, 0), plain_part(50, 100, 0)];

/// Spread of exact splits: tilted batches, and batches in which part of the roles of experts is new. The new
/// part covers domains that the window does not show.
const MIXED_SPREAD: &[PerturbationPart] =
    &[plain_part(70, 100, 0), plain_part(15, 0, 30), plain_part(15, 0, 60)];

/// Spread for batches that were drawn from totals. The totals are the only recorded fact, so they are a
/// quarter of the scenarios.
const DRAWN_SPREAD: &[PerturbationPart] = &[
    plain_part(50, 100, 0),
    plain_part(12, 0, 30),
    plain_part(13, 0, 60),
    PerturbationPart { share: 25, tilt: 0, new: 0, pooled: true },
];

/// Spread if the batches do not show their variation.
pub(super) const WIDE_SPREAD: &[PerturbationPart] = &[plain_part(75, 100, 0), plain_part(25, 0, 100)];

/// Number of batches below which none can be held out.
pub(super) const MIN_BATCHES_TO_HOLD_OUT: usize = 8;

/// Basis of the planning.
pub(super) enum ScenarioModel {
    /// Search on scenarios of this spread, for this aim.
    Search(Perturbation, SearchAim),
    /// EPLB's placement.
    Eplb,
}

/// Returns the basis of the planning for the batches of a layer and the split that will run.
///
/// # Errors
/// Fails if an expert has no rank. The caller has checked that all fit.
pub(super) fn choose_model(
    layer: &LayerProblem<'_>,
    dice: &mut SeededRng,
) -> Result<ScenarioModel, SolverError> {
    match layer.policy.split {
        None => against_eplb::choose_for_unknown(layer, dice),
        Some(_) if layer.policy.is_for_exact_split() => {
            // Earlier batches show the variation. A window may be short because they are out of date in other
            // respects.
            let shown = layer.batches.len() >= MIN_BATCHES_TO_HOLD_OUT || layer.has_earlier_batches;
            let spread = match (shown, layer.are_batches_drawn) {
                (true, true) => DRAWN_SPREAD,
                (true, false) => MIXED_SPREAD,
                (false, _) => WIDE_SPREAD,
            };
            Ok(ScenarioModel::Search(spread.to_vec(), layer.default_aim()))
        }
        Some(rule) => against_eplb::choose_for_rule(layer, rule, dice),
    }
}
