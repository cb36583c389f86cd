//! EPLB's peak on recorded totals, as a limit of placements that are planned from totals.
//!
//! In: a layer whose batches were drawn from totals, or that has nothing but totals. Out: [`TotalsLimit`]. A
//! search sees drawn batches, but totals are the only recorded fact. A placement must not be above EPLB's
//! placement on them, where both are split exactly.
//!
//! If the result of a search is above EPLB's placement, the search goes on from it. The totals are one more
//! scenario then, whose peak counts only above the limit ([`ScenarioSet`]). Loads of scenarios are rounded,
//! so every result is judged on the totals themselves. Shorter searches follow in which the excess counts
//! more, and the last of them starts from EPLB's placement. If they fail too, that placement remains.

use super::incumbent::SearchPlacement;
use super::scenarios::ScenarioSet;
use super::score::ScenarioObjective;
use super::search::{INITIAL_THRESHOLD, SearchLimits, search};
use super::search_aim::SearchAim;
use super::{LayerProblem, RNG_STREAM, against_eplb, initial};
use crate::place::evaluate::PeakEvaluator;
use crate::place::{PlaceError, Placement};
use crate::rng::SeededRng;

/// Search for a placement within the limit.
struct LimitedSearch {
    /// Weight of the peak above the limit, in weights of all scenarios together.
    weight: u64,
    /// Iterations of the policy per iteration of this search.
    part: u64,
    initial_threshold: u64,
    /// True if it starts from EPLB's placement instead of the result before.
    starts_from_eplb: bool,
}

/// Searches in this order. The first may go far from its start, because the placements within the limit that
/// are best on batches may be far from one above it. The others take no step that is worse.
const SEARCHES: [LimitedSearch; 4] = [
    LimitedSearch { weight: 1, part: 1, initial_threshold: INITIAL_THRESHOLD / 4, starts_from_eplb: false },
    LimitedSearch { weight: 8, part: 4, initial_threshold: 0, starts_from_eplb: false },
    LimitedSearch { weight: 64, part: 4, initial_threshold: 0, starts_from_eplb: false },
    LimitedSearch { weight: 64, part: 4, initial_threshold: 0, starts_from_eplb: true },
];

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
    /// or from EPLB's placement. If no search ends within the limit, returns EPLB's placement, without second
    /// replicas on a rank.
    ///
    /// # Errors
    /// Fails if an expert has no rank.
    pub(super) fn search_within(
        &self,
        found: SearchPlacement,
        scenarios: &ScenarioSet,
        aim: SearchAim,
    ) -> Result<SearchPlacement, PlaceError> {
        if self.holds(&found)? {
            return Ok(found);
        }
        let layer = self.layer;
        let mut eplb = SearchPlacement::from_placement(&self.eplb, &layer.slots);
        initial::fill_empty_slots(&mut eplb, layer.totals);
        let mut start = found;
        for (number, how) in SEARCHES.iter().enumerate() {
            if how.starts_from_eplb {
                start.clone_from(&eplb);
            }
            let weight = how.weight * scenarios.len() as u64;
            let scenarios =
                scenarios.with_limited_batch((layer.totals, layer.slots.len()), self.peak, weight);
            let limits = SearchLimits {
                iterations: layer.policy.iterations(&layer.slots) / how.part,
                moves: None,
                initial_threshold: how.initial_threshold,
            };
            let aim = (layer.policy.objective, aim, layer.cluster);
            let dice = SeededRng::new(layer.policy.seed, RNG_STREAM + 2 + number as u64);
            let found = search(&scenarios, aim, start, limits, dice)
                .map_err(|error| layer.policy.shape_error(error.to_string()))?;
            if self.holds(&found.seating)? {
                return Ok(found.seating);
            }
            start = found.seating;
        }
        Ok(eplb)
    }
}

/// Returns the lowest peak of a placement on one batch.
fn exact_peak(placement: &Placement, batch: &[u64]) -> Result<u64, PlaceError> {
    Ok(PeakEvaluator::from_batches(vec![batch]).sum_for_placement(placement)?)
}
