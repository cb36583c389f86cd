//! Planning of all layers within one budget of redundant slots.
//!
//! In: a request, and the total number of redundant slots of all layers. Out: a plan in which each layer has
//! the slots that it uses well. Every layer is placed with 0, 1, 2, .. redundant slots per rank and
//! judged exactly. [`allocate_slots`] then buys the slots that save the most tokens.

use super::layer_stage::{LayerStage, PlacedLayer};
use super::{ConstraintError, LayerChange, Plan, PlanReport, PlanRequest, PlanRequestError};
use crate::cluster::{Cluster, ClusterError};
use crate::economics::{LayerOption, allocate_slots};
use crate::evaluate::{EvaluateError, Progress, busy_layers};
use crate::forecast::History;
use crate::place::{PeakEvaluator, PlaceError};
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Highest number of redundant slots per rank that is evaluated.
const MAX_REDUNDANT_PER_RANK: usize = 8;

impl PlanRequest<'_> {
    /// Plans so that all redundant slots together are at most `budget`. It puts them where they lower the
    /// peaks most. Layers get whole slots per rank. Ranks have the slots of the layer with the most, and the
    /// other layers leave some empty.
    pub(super) fn run_within_slots(
        &self,
        stage: &LayerStage<'_>,
        budget: usize,
        progress: &dyn Progress,
    ) -> Result<PlanReport, PlanRequestError> {
        let (trace, experts) = (self.trace, self.trace.experts());
        let busy = busy_layers(trace)?;
        let named =
            |layer: usize| move |source| EvaluateError::Place { layer: trace.layers()[layer], source };
        let (ranks, nodes) = (self.cluster.ranks(), self.cluster.nodes());
        let clusters = candidate_clusters(ranks, nodes, experts, budget).map_err(|source| {
            let reason = format!("--memory-budget: {source}");
            named(busy[0])(PlaceError::Shape { policy: stage.name(), reason })
        })?;
        let done = AtomicUsize::new(0);
        let tried: Vec<(Vec<LayerOption>, Vec<PlacedLayer>)> = busy
            .par_iter()
            .map(|&layer| {
                let options = self.slot_options(stage, layer, &clusters).map_err(named(layer))?;
                progress.report_layers(done.fetch_add(1, Ordering::Relaxed) + 1, busy.len());
                Ok(options)
            })
            .collect::<Result<_, EvaluateError>>()?;
        let curves: Vec<Vec<LayerOption>> = tried.iter().map(|(levels, _)| levels.clone()).collect();
        let Some(chosen) = allocate_slots(&curves, budget) else {
            let least = curves.iter().map(|levels| levels[0].cost).sum();
            return Err(ConstraintError::MemoryBudget { budget, least }.into());
        };
        let redundant: Vec<usize> = chosen.iter().zip(&curves).map(|(&at, levels)| levels[at].cost).collect();
        let most = redundant.iter().copied().max().unwrap_or(0);
        let cluster =
            clusters.iter().copied().find(|cluster| cluster.slots() - experts == most).unwrap_or(clusters[0]);
        let width = cluster.slots_per_rank();
        let name = format!("{}, {budget} redundant slots in all layers", stage.name());
        let place = |layer: usize, history: &History<'_>| {
            let at = busy.iter().position(|&other| other == layer).unwrap_or(0);
            match tried[at].1[chosen[at]].placement.with_slots_per_rank(width) {
                Some(placement) => Ok(placement),
                None => {
                    Ok(stage.place_layer(layer, history, &cluster, self.constraints.max_moves)?.placement)
                }
            }
        };
        let mut report = Plan::evaluate_layers(trace, &cluster, &name, &self.origin, &(), place)?;
        if self.previous.is_some() {
            let chosen = busy.iter().zip(&report.plan.layers).zip(tried.iter().zip(&chosen));
            report.changes = chosen
                .map(|((&layer, planned), ((_, placed), &at))| LayerChange {
                    moves: stage.moves_to(layer, &planned.placement),
                    ..placed[at].change.clone()
                })
                .collect();
        }
        report.redundant = Some(redundant);
        Ok(report)
    }

    /// Returns the sum of a layer's peaks and its placement on each cluster that the policy supports.
    fn slot_options(
        &self,
        stage: &LayerStage<'_>,
        layer: usize,
        clusters: &[Cluster],
    ) -> Result<(Vec<LayerOption>, Vec<PlacedLayer>), PlaceError> {
        let history = History::from_trace(self.trace, layer);
        let mut scenarios =
            PeakEvaluator::from_history(&history, usize::MAX).with_speeds(&self.constraints.speeds);
        let (mut levels, mut placements, mut refused) = (Vec::new(), Vec::new(), None);
        for cluster in clusters {
            match stage.place_layer(layer, &history, cluster, self.constraints.max_moves) {
                Ok(placed) => {
                    let cost = cluster.slots() - history.experts();
                    levels.push(LayerOption { cost, time: scenarios.sum_for_placement(&placed.placement)? });
                    placements.push(placed);
                }
                Err(error) => refused = Some(error),
            }
        }
        match refused {
            Some(error) if levels.is_empty() => Err(error),
            _ => Ok((levels, placements)),
        }
    }
}

/// Returns the clusters to evaluate: the lowest number of redundant slots that divides over the ranks, then
/// one more per rank each time.
fn candidate_clusters(
    ranks: usize,
    nodes: usize,
    experts: usize,
    budget: usize,
) -> Result<Vec<Cluster>, ClusterError> {
    let least = (ranks - experts.checked_rem(ranks).unwrap_or(0)) % ranks.max(1);
    let mut all = vec![Cluster::new(ranks, nodes, experts, least)?];
    for more in 1..=MAX_REDUNDANT_PER_RANK {
        let redundant = least + more * ranks;
        let cluster = Cluster::new(ranks, nodes, experts, redundant)?;
        if redundant > budget || cluster.slots_per_rank() > experts {
            break;
        }
        all.push(cluster);
    }
    Ok(all)
}
