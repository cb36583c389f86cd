//! Re-planning of all layers together under a budget for the links of the ranks.
//!
//! In: a trace, a policy, the previous plan, the bytes that a rank may receive. Out: a plan that moves the
//! experts with the largest gain. Every layer is planned again with limits of 1, 2, 4, .. moves and without a
//! limit. Each choice is judged by its exact peaks. Then moves are bought while every receiver has room
//! ([`select_moves`]). Without a cost model, a token of the peak counts as one unit of time.

use super::layer_stage::{LayerStage, PlacedLayer};
use super::{ConstraintError, LayerChange, Plan, PlanReport, PlanRequest, PlanRequestError};
use crate::economics::{MoveBudget, MoveJudge, MoveOption, select_moves};
use crate::evaluate::{EvaluateError, Progress, busy_layers};
use crate::forecast::History;
use crate::place::{PeakEvaluator, PlaceError, Placement};
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Limit on the transfers of one re-planning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkBudget {
    /// Bytes that any one rank may receive over all layers.
    pub bytes: u64,
    /// Bytes of one expert's weights in one layer.
    pub expert_bytes: u64,
}

/// Use of a [`LinkBudget`] by a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkUse {
    /// Bytes that each rank receives over all layers, `[R]`.
    pub received: Vec<u64>,
    /// Sum of the exact peaks of all batches and layers with the fewest moves, in tokens.
    pub peaks_before: u64,
    /// Sum of the exact peaks of all batches and layers as planned, in tokens.
    pub peaks_after: u64,
}

/// Candidate placement of one layer.
#[derive(Debug)]
struct CandidatePlacement {
    placement: Placement,
    change: LayerChange,
    /// Sum of the exact peaks of the layer's batches.
    peaks: u64,
    /// Time of the layer's batches by the cost model, or `peaks` without one.
    time: u64,
}

impl PlanRequest<'_> {
    /// Plans so that no rank receives more than the budget's bytes over all layers. It chooses the moves that
    /// lower the peaks most. The limit of moves also applies per layer.
    ///
    /// A larger budget never yields a larger sum of peaks. With an unlimited budget each layer takes the best
    /// of the evaluated placements. On these batches it is never worse than the policy's own plan, and has no
    /// more moves.
    pub(super) fn run_within_links(
        &self,
        stage: &LayerStage<'_>,
        budget: LinkBudget,
        progress: &dyn Progress,
    ) -> Result<PlanReport, PlanRequestError> {
        let (trace, ranks) = (self.trace, self.cluster.ranks());
        let busy = busy_layers(trace)?;
        let id = |layer: usize| trace.layers()[layer];
        if let Some(&layer) = busy.iter().find(|&&layer| stage.previous_layer(layer).is_none()) {
            return Err(ConstraintError::NewLayer(id(layer)).into());
        }
        let done = AtomicUsize::new(0);
        let tried: Vec<(Vec<CandidatePlacement>, Duration)> = busy
            .par_iter()
            .map(|&layer| {
                let begun = Instant::now();
                let choices = self
                    .layer_candidates(stage, layer)
                    .map_err(|source| EvaluateError::Place { layer: id(layer), source })?;
                progress.report_layers(done.fetch_add(1, Ordering::Relaxed) + 1, busy.len());
                Ok((choices, begun.elapsed()))
            })
            .collect::<Result<_, EvaluateError>>()?;
        let time: Duration = tried.iter().map(|(_, time)| *time).sum();
        let layers: Vec<Vec<CandidatePlacement>> = tried.into_iter().map(|(choices, _)| choices).collect();
        let copies = budget.bytes.checked_div(budget.expert_bytes).unwrap_or(u64::MAX);
        let received = |chosen: &mut dyn Iterator<Item = &CandidatePlacement>| {
            let mut received = vec![0u64; ranks];
            chosen.flat_map(|choice| &choice.change.moves).for_each(|m| received[m.to as usize] += 1);
            received
        };
        let necessary = received(&mut layers.iter().map(|choices| &choices[0]));
        let (most, rank) = (0..ranks).map(|rank| (necessary[rank], rank)).max().unwrap_or((0, 0));
        if most > copies {
            let needed = most.saturating_mul(budget.expert_bytes);
            return Err(ConstraintError::LinkBudget { rank, needed, budget: budget.bytes }.into());
        }
        let options: Vec<Vec<MoveOption<'_>>> = layers
            .iter()
            .map(|choices| {
                choices.iter().map(|c| MoveOption { moves: &c.change.moves, time: c.time }).collect()
            })
            .collect();
        let limit = MoveBudget { per_receiver: Some(copies), moves: None };
        let chosen = select_moves(&options, &limit);
        let place = |layer: usize, history: &History<'_>| match busy.iter().position(|&other| other == layer)
        {
            Some(at) => Ok(layers[at][chosen[at]].placement.clone()),
            None => Ok(stage.place_layer(layer, history, &self.cluster, Some(0))?.placement),
        };
        let mut report =
            Plan::evaluate_layers(trace, &self.cluster, &stage.name(), &self.origin, &(), place)?;
        report.plan_time += time;
        let bought = || chosen.iter().zip(&layers).map(|(&at, choices)| &choices[at]);
        let sum = |peaks: &mut dyn Iterator<Item = u64>| peaks.fold(0, u64::saturating_add);
        report.links = Some(LinkUse {
            received: received(&mut bought())
                .into_iter()
                .map(|count| count.saturating_mul(budget.expert_bytes))
                .collect(),
            peaks_before: sum(&mut layers.iter().map(|choices| choices[0].peaks)),
            peaks_after: sum(&mut bought().map(|choice| choice.peaks)),
        });
        report.changes = bought().map(|choice| choice.change.clone()).collect();
        Ok(report)
    }

    /// Returns the candidates of a layer by ascending moves: the one with the fewest, those within 1, 2, 4,
    /// .. moves, and the unlimited one.
    fn layer_candidates(
        &self,
        stage: &LayerStage<'_>,
        layer: usize,
    ) -> Result<Vec<CandidatePlacement>, PlaceError> {
        let (history, cluster) = (History::from_trace(self.trace, layer), &self.cluster);
        let mut scenarios =
            PeakEvaluator::from_history(&history, usize::MAX).with_speeds(&self.constraints.speeds);
        let speeds = &self.constraints.speeds;
        let economics = self.constraints.economics.as_ref();
        let judge = economics.map(|economics| MoveJudge::new(economics, cluster, history.batches(), speeds));
        let mut choice = |placed: PlacedLayer| -> Result<CandidatePlacement, PlaceError> {
            let peaks = scenarios.sum_for_placement(&placed.placement)?;
            let time = match &judge {
                Some(judge) => u64::try_from(judge.figures(&placed.placement)?.time_ps).unwrap_or(u64::MAX),
                None => peaks,
            };
            Ok(CandidatePlacement { change: placed.change, placement: placed.placement, peaks, time })
        };
        let last = choice(stage.place_layer(layer, &history, cluster, self.constraints.max_moves)?)?;
        let least = choice(stage.place_with_fewest_moves(layer, &history, cluster)?)?;
        let (fewest, most) = (least.change.moves.len(), last.change.moves.len());
        let mut all = vec![least];
        let limits = std::iter::successors(Some(1usize), |limit| limit.checked_mul(2));
        for limit in limits.take_while(|&limit| limit < most).filter(|&limit| limit > fewest) {
            match stage.place_layer(layer, &history, cluster, Some(limit)) {
                Err(PlaceError::TooFewMoves { .. }) => {}
                placed => all.push(choice(placed?)?),
            }
        }
        all.push(last);
        // The sort is stable, so the current placement stays before any other without a move.
        all.sort_by_key(|choice| (choice.change.moves.len(), choice.time));
        all.dedup_by_key(|choice| choice.change.moves.len());
        Ok(all)
    }
}
