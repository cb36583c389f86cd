//! EPLB's peak on recorded totals, as a limit of placements that are planned from totals.
//!
//! In: a layer whose batches were drawn from totals, or that has nothing but totals. Out: [`TotalsLimit`]. A
//! search sees drawn batches, but totals are the only recorded fact. A placement must not be above EPLB's
//! placement on them, where both are split exactly.
//!
//! If the result of a search is above EPLB's placement, short searches follow, from the result and from
//! EPLB's placement. The totals are one more scenario there. Its peak counts only above the limit, but then
//! more than all other scenarios ([`ScenarioSet`]). Loads of scenarios are rounded, so results are judged on
//! the totals themselves. If both searches end above the limit, EPLB's placement remains.

use super::incumbent::SearchPlacement;
use super::scenarios::ScenarioSet;
use super::score::ScenarioObjective;
use super::search::{SearchLimits, search};
use super::search_aim::SearchAim;
use super::{LayerProblem, RNG_STREAM, against_eplb, initial};
use crate::place::evaluate::PeakEvaluator;
use crate::place::{PlaceError, Placement};
use crate::rng::SeededRng;

/// Weight of the peak above the limit, in weights of all scenarios together.
const LIMIT_WEIGHT: u64 = 64;

/// Iterations of the last search per iteration of one that follows.
const REPAIR_PART: u64 = 4;

/// Highest peak of a placement on the totals of a layer.
pub(super) struct TotalsLimit<'a> {
    layer: &'a LayerProblem<'a>,
    eplb: Placement,
    /// Lowest peak of EPLB's placement on the totals.
    peak: u64,
}

impl<'a> TotalsLimit<'a> {
    /// Returns the limit if only totals of the layer are recorded, exact splits count, and EPLB supports the
    /// shape. An objective for the worst scenarios has no limit, because totals have no tail.
    ///
    /// # Errors
    /// Fails if the solver refuses the totals.
    pub(super) fn of_layer(
        layer: &'a LayerProblem<'a>,
        aim: SearchAim,
    ) -> Result<Option<TotalsLimit<'a>>, PlaceError> {
        let policy = layer.policy;
        let counts = aim.counts_exact()
            && policy.objective == ScenarioObjective::Mean
            && policy.spread.is_none()
            && layer.holds_totals;
        let Some(eplb) = counts.then(|| against_eplb::eplb_for_totals(layer, layer.totals)).flatten() else {
            return Ok(None);
        };
        let peak = exact_peak(&eplb, layer.totals)?;
        Ok(Some(TotalsLimit { layer, eplb, peak }))
    }

    /// Returns true if a placement is within the limit.
    ///
    /// # Errors
    /// Fails if an expert has no rank.
    fn holds(&self, seating: &SearchPlacement) -> Result<bool, PlaceError> {
        Ok(exact_peak(&seating.placement()?, self.layer.totals)? <= self.peak)
    }

    /// Returns `found` if it is within the limit. Else returns a placement within it, searched from `found`
    /// or from EPLB's placement. If neither search ends within the limit, returns EPLB's placement, without
    /// second replicas on a rank.
    ///
    /// # Errors
    /// Fails if an expert has no rank.
    pub(super) fn search_within(
        &self,
        found: SearchPlacement,
        scenarios: ScenarioSet,
        aim: SearchAim,
    ) -> Result<SearchPlacement, PlaceError> {
        if self.holds(&found)? {
            return Ok(found);
        }
        let layer = self.layer;
        let weight = LIMIT_WEIGHT * scenarios.len() as u64;
        let scenarios = scenarios.with_limited_batch(layer.slots.len(), layer.totals, self.peak, weight);
        let iterations = layer.policy.iterations(&layer.slots) / REPAIR_PART;
        let mut eplb = SearchPlacement::from_placement(&self.eplb, &layer.slots);
        initial::fill_empty_slots(&mut eplb, layer.totals);
        for (number, start) in [found, eplb.clone()].into_iter().enumerate() {
            let dice = SeededRng::new(layer.policy.seed, RNG_STREAM + 2 + number as u64);
            let aim = (layer.policy.objective, aim, layer.cluster);
            let limits = SearchLimits { iterations, moves: None };
            let found = search(&scenarios, aim, start, limits, dice)
                .map_err(|error| layer.policy.shape_error(error.to_string()))?;
            if self.holds(&found.seating)? {
                return Ok(found.seating);
            }
        }
        Ok(eplb)
    }
}

/// Returns the lowest peak of a placement on one batch.
fn exact_peak(placement: &Placement, batch: &[u64]) -> Result<u64, PlaceError> {
    Ok(PeakEvaluator::from_batches(vec![batch]).sum_for_placement(placement)?)
}
