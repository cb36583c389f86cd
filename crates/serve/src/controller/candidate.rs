//! The re-planning of one layer, compared with its current placement.
//!
//! Input is a [`PhaseState`], a request, and a layer. Output is [`LayerCandidate`]: another placement, its
//! moves, and the verdict on them by [`MoveJudge`] on exact splits of the latest batches.

use super::propose::{LayerEstimate, PhaseCommand};
use super::state::PhaseState;
use evenkeel::cluster::Cluster;
use evenkeel::economics::{MoveJudge, MoveVerdict, PlacementFigures, PricedPlacement};
use evenkeel::forecast::{History, HistoryWindow};
use evenkeel::place::{
    Constrained, Contiguous, PlaceError, PlaceRequest, Placement, Policy, ReplannedPlacement, rank_origins,
};
use evenkeel::split::SplitError;
use evenkeel::trace::Trace;
use std::ops::Range;

/// The standard errors that the gain of a layer has to exceed.
const SIGNIFICANCE: f64 = 2.0;

/// The request of a decision, and the common input of the planning of all layers.
pub(super) struct LayerPlanner<'a> {
    pub(super) command: &'a PhaseCommand,
    /// The window.
    pub(super) trace: &'a Trace,
    /// The cluster after the request.
    pub(super) cluster: &'a Cluster,
    pub(super) policy: &'a dyn Policy,
    /// The steps of the gains: the horizon, calibrated.
    pub(super) horizon: u64,
    /// The number of steps since a break that has just been noticed, on which alone the planning relies.
    pub(super) since_break: Option<u64>,
}

/// One layer, re-planned and compared.
pub(super) struct LayerCandidate {
    pub(super) replanned: ReplannedPlacement,
    pub(super) verdict: MoveVerdict,
    pub(super) estimate: LayerEstimate,
    pub(super) ranks_before: Vec<f32>,
    pub(super) ranks_after: Vec<f32>,
    /// The imbalance to expect with the moves. It is higher than the one on the steps of the planning.
    pub(super) expected: f64,
    /// Flag that is set if the layer has to change, whatever it gains.
    pub(super) forced: bool,
    /// Candidates with fewer moves, in ascending order of moves. They serve if a budget prevents this one.
    pub(super) smaller: Vec<LayerCandidate>,
}

impl LayerCandidate {
    /// Returns whether the layer changes, unless a budget prevents it.
    pub(super) fn is_accepted(&self) -> bool {
        self.forced || (!self.replanned.moves.is_empty() && self.verdict.accepted)
    }

    /// Returns the accepted candidates, those with fewer moves first.
    pub(super) fn accepted_options(&self) -> impl Iterator<Item = &Self> {
        self.smaller.iter().chain([self]).filter(|one| one.is_accepted())
    }

    /// Replaces the candidate by an accepted one, by its number from 1. 0 changes nothing.
    pub(super) fn take_option(&mut self, number: usize) {
        let smaller = self.smaller.iter().filter(|one| one.is_accepted()).count();
        if (1..=smaller).contains(&number) {
            let mut accepted = std::mem::take(&mut self.smaller);
            accepted.retain(Self::is_accepted);
            *self = accepted.swap_remove(number - 1);
        }
    }

    fn from_priced(priced: PricedPlacement, forced: bool) -> Self {
        let PricedPlacement { replanned, verdict, before, after, .. } = priced;
        let ranks = |figures: &PlacementFigures| figures.rank_loads.iter().map(|&load| load as f32).collect();
        let estimate = LayerEstimate {
            before: before.imbalance,
            after: after.imbalance,
            bound: after.bound,
            batches: after.batches,
        };
        let (ranks_before, ranks_after) = (ranks(&before), ranks(&after));
        let expected = replanned
            .expected_gain
            .map_or(after.imbalance, |gain| (before.imbalance - gain).max(after.bound));
        Self { replanned, verdict, estimate, ranks_before, ranks_after, expected, forced, smaller: vec![] }
    }
}

impl PhaseState {
    /// Plans one layer and compares the result. Returns `None` if the layer needs no planning.
    pub(super) fn plan_layer(
        &self,
        planner: &LayerPlanner<'_>,
        layer: usize,
    ) -> Result<Option<LayerCandidate>, PlaceError> {
        let &LayerPlanner { command, trace, cluster, policy, horizon, .. } = planner;
        let before = &self.placements[layer];
        let history = self.planning_history(planner, layer);
        let idle = history.totals().iter().all(|&tokens| tokens == 0);
        let batches = self.comparison_batches(trace, layer, &history.steps());
        let economics = self.copy_budget.layer_economics(horizon, &batches, cluster);
        let judge = MoveJudge::new(&economics, cluster, batches, &[]);
        let first = !self.core.planned[layer] && (self.core.version == 0 || !idle);
        let (from, replanned) = match command {
            // No loads are known yet, so place the experts in order on the available ranks.
            _ if first && (idle || (command.is_rank_change() && self.core.version == 0)) => {
                let placement = Contiguous::placement(self.core.experts, cluster)?;
                (placement.clone(), ReplannedPlacement::without_moves(placement))
            }
            _ if first => {
                let placement = policy.place(&PlaceRequest::new(&history, cluster))?.placement;
                (before.clone(), ReplannedPlacement::without_moves(placement))
            }
            PhaseCommand::Replan { .. } if idle => return Ok(None),
            PhaseCommand::Replan { .. } => {
                if !self.copy_budget.is_priced() {
                    return self.replan_within_budget(planner, (layer, &history), &judge).map(Some);
                }
                let request = PlaceRequest::new(&history, cluster).max_moves(self.options.max_moves);
                let priced = judge.replan(policy, &request, before)?;
                return Ok(Some(LayerCandidate::from_priced(priced, false)));
            }
            PhaseCommand::Down(rank) => {
                let at = self.active_ranks().iter().position(|&r| r as usize == *rank).unwrap_or(0);
                let origins = rank_origins(before.ranks(), &[at], cluster.ranks());
                let request = PlaceRequest::new(&history, cluster).previous(before);
                let found = Constrained::new(policy).place_on_changed_ranks(&origins, &request)?;
                (before.clone(), found)
            }
            PhaseCommand::Up(rank) => {
                // The returned rank has no experts, and is inserted among those that stay.
                let at = self.active_ranks().iter().filter(|&&left| (left as usize) < *rank).count();
                let mut origins = rank_origins(before.ranks(), &[], before.ranks());
                origins.insert(at, None);
                let room = if idle { 0 } else { cluster.slots_per_rank() };
                let request = PlaceRequest::new(&history, cluster).previous(before).max_moves(room);
                let found = if idle {
                    Constrained::new(Contiguous).place_on_changed_ranks(&origins, &request)
                } else {
                    Constrained::new(policy).place_on_changed_ranks(&origins, &request)
                }?;
                (before.clone(), found)
            }
        };
        let replanned = if self.core.planned[layer] {
            replanned
        } else {
            ReplannedPlacement::without_moves(replanned.placement)
        };
        let forced = command.is_rank_change() || !self.core.planned[layer];
        let priced = judge.compare(&ReplannedPlacement::without_moves(from), replanned)?;
        Ok(Some(LayerCandidate::from_priced(priced, forced)))
    }

    /// Returns the steps on which a layer is planned. Soon after a break, they are those since.
    fn planning_history<'a>(&self, planner: &LayerPlanner<'a>, layer: usize) -> History<'a> {
        let window = match planner.since_break {
            Some(since) => HistoryWindow::Last(usize::try_from(since).unwrap_or(usize::MAX)),
            None => HistoryWindow::Auto { ahead: self.options.forecast_steps() },
        };
        window.history(planner.trace, layer, planner.trace.steps().len()).with_past_since(0)
    }

    /// Plans a layer again from its current placement, without a stated link or price.
    ///
    /// Every move has to gain more than the noise, and all of them together twice their standard error.
    fn replan_within_budget(
        &self,
        planner: &LayerPlanner<'_>,
        (layer, history): (usize, &History<'_>),
        judge: &MoveJudge<'_>,
    ) -> Result<LayerCandidate, PlaceError> {
        let before = &self.placements[layer];
        let stays = ReplannedPlacement::without_moves(before.clone());
        let price = self.noise_price(history.steps().len().min(self.options.judged));
        let place = |limit: usize| -> Result<LayerCandidate, PlaceError> {
            let request = PlaceRequest::new(history, planner.cluster).previous(before);
            let found = planner.policy.place(&request.max_moves(limit).move_price(price))?;
            let mut found = judge.compare(&stays, ReplannedPlacement::from_response(before, found))?;
            let error = gain_error(&found) * self.expected_horizon() as f64;
            let gain = found.verdict.gain_ps;
            found.verdict.accepted = gain > 0 && gain as f64 > SIGNIFICANCE * error;
            Ok(LayerCandidate::from_priced(found, false))
        };
        let most = self.move_limit(planner.since_break);
        let mut best = place(most)?;
        // The moves of all layers together may exceed what a rank may receive.
        let limits = if planner.since_break.is_some() { [most / 4, most / 2] } else { [0; 2] };
        for limit in limits.into_iter().filter(|&limit| (1..best.replanned.moves.len()).contains(&limit)) {
            best.smaller.push(place(limit)?);
        }
        // More room does not always lead to more moves.
        best.smaller.sort_by_key(|one| one.replanned.moves.len());
        Ok(best)
    }

    /// Returns the most moves of a layer in a decision: `max_moves`, or the layer's share of the transfers
    /// for which there is time.
    fn move_limit(&self, since_break: Option<u64>) -> usize {
        let most = self.options.max_moves;
        let Some(received) = self.affordable_transfers(since_break) else { return most };
        let share =
            received.saturating_mul(self.cluster.ranks() as u64) / self.core.layers.len().max(1) as u64;
        most.min(usize::try_from(share).unwrap_or(usize::MAX).max(1))
    }

    /// Returns the picoseconds that other placements, `[L]`, save within the horizon if all of its steps are
    /// like these steps of a trace. Negative if they lose time.
    ///
    /// # Errors
    /// Fails if a batch cannot be split.
    pub(crate) fn saved_ps(
        &self,
        trace: &Trace,
        steps: Range<usize>,
        after: &[Placement],
    ) -> Result<i64, SplitError> {
        let mut saved = 0i64;
        for (layer, (before, after)) in self.placements.iter().zip(after).enumerate() {
            if before == after {
                continue;
            }
            let batches: Vec<&[u64]> = steps.clone().map(|step| trace.loads(step, layer)).collect();
            let economics =
                self.copy_budget.layer_economics(self.expected_horizon(), &batches, &self.cluster);
            let judge = MoveJudge::new(&economics, &self.cluster, batches, &[]);
            let [before, after] =
                [before, after].map(|placement| ReplannedPlacement::without_moves(placement.clone()));
            saved = saved.saturating_add(judge.compare(&before, after)?.verdict.gain_ps);
        }
        Ok(saved)
    }

    /// Returns the batches on which both placements are compared: the latest ones of the steps that are
    /// planned on.
    fn comparison_batches<'a>(
        &self,
        trace: &'a Trace,
        layer: usize,
        planned: &Range<usize>,
    ) -> Vec<&'a [u64]> {
        let judged = self.options.judged.min(planned.len());
        (planned.end - judged..planned.end).map(|step| trace.loads(step, layer)).collect()
    }
}

/// Returns the standard error of the mean time that the moves save in a batch, in picoseconds.
fn gain_error(priced: &PricedPlacement) -> f64 {
    let saved = priced.before.batch_ps.iter().zip(&priced.after.batch_ps);
    let saved: Vec<f64> = saved.map(|(&before, &after)| before as f64 - after as f64).collect();
    let count = saved.len() as f64;
    let mean = saved.iter().sum::<f64>() / count;
    let squares: f64 = saved.iter().map(|one| (one - mean) * (one - mean)).sum();
    // A single batch says nothing about its error.
    if saved.len() > 1 { (squares / (count - 1.0) / count).sqrt() } else { 0.0 }
}
