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
}

/// One layer, re-planned and compared.
pub(super) struct LayerCandidate {
    pub(super) replanned: ReplannedPlacement,
    pub(super) verdict: MoveVerdict,
    pub(super) estimate: LayerEstimate,
    pub(super) ranks_before: Vec<f32>,
    pub(super) ranks_after: Vec<f32>,
    /// Flag that is set if the layer has to change, whatever it gains.
    pub(super) forced: bool,
}

impl LayerCandidate {
    /// Returns whether the layer changes, unless a budget prevents it.
    pub(super) fn is_accepted(&self) -> bool {
        self.forced || (!self.replanned.moves.is_empty() && self.verdict.accepted)
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
        Self { replanned, verdict, estimate, ranks_before, ranks_after, forced }
    }
}

impl PhaseState {
    /// Plans one layer and compares the result. Returns `None` if the layer needs no planning.
    pub(super) fn plan_layer(
        &self,
        planner: &LayerPlanner<'_>,
        layer: usize,
    ) -> Result<Option<LayerCandidate>, PlaceError> {
        let &LayerPlanner { command, trace, cluster, policy, horizon } = planner;
        let before = &self.placements[layer];
        let steps = trace.steps().len();
        let history =
            HistoryWindow::Auto { ahead: self.options.forecast_steps() }.history(trace, layer, steps);
        let idle = history.totals().iter().all(|&tokens| tokens == 0);
        let batches = self.comparison_batches(trace, layer, &history);
        let economics = self.copy_budget.layer_economics((horizon, self.usual_excess()), &batches, cluster);
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
            let economics = self.copy_budget.layer_economics(
                (self.options.horizon, self.usual_excess()),
                &batches,
                &self.cluster,
            );
            let judge = MoveJudge::new(&economics, &self.cluster, batches, &[]);
            let [before, after] =
                [before, after].map(|placement| ReplannedPlacement::without_moves(placement.clone()));
            saved = saved.saturating_add(judge.compare(&before, after)?.verdict.gain_ps);
        }
        Ok(saved)
    }

    /// Returns the batches on which both placements are compared: the latest ones, within the history that is
    /// planned on.
    fn comparison_batches<'a>(
        &self,
        trace: &'a Trace,
        layer: usize,
        history: &History<'_>,
    ) -> Vec<&'a [u64]> {
        let steps = trace.steps().len();
        let judged = self.options.judged.min(history.steps().len());
        (steps.saturating_sub(judged)..steps).map(|step| trace.loads(step, layer)).collect()
    }
}
