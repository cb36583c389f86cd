//! Planning of all layers within one budget of redundant slots.
//!
//! In: a trace, a policy, the total number of redundant slots of all layers. Out: a plan in which each layer
//! has the slots that it uses well. Every layer is placed with 0, 1, 2, .. redundant slots per rank and
//! judged exactly. [`allocate_slots`] then buys the slots that save the most tokens.

use super::{BatchProvenance, Plan, PlanReport, SlotOption, allocate_slots};
use crate::cluster::{Cluster, ClusterError};
use crate::evaluate::{EvaluateError, Progress, busy_layers};
use crate::forecast::History;
use crate::place::{PeakEvaluator, PlaceError, Placement, Policy};
use crate::trace::Trace;
use rayon::prelude::*;

/// Highest number of redundant slots per rank that is evaluated.
const MAX_REDUNDANT_PER_RANK: usize = 8;

impl Plan {
    /// Places every layer that routed tokens, so that all redundant slots together are at most `budget`. It
    /// puts them where they lower the peaks most. Layers get whole slots per rank. Ranks have the slots of
    /// the layer with the most, and the other layers leave some empty. Returns the plan and the redundant
    /// slots of each planned layer.
    ///
    /// # Errors
    /// Fails as [`Plan::build`] does, and if the policy needs more redundant slots than the budget.
    pub fn build_within_slots(
        trace: &Trace,
        (ranks, nodes): (usize, usize),
        policy: &dyn Policy,
        budget: usize,
        origin: BatchProvenance,
        progress: &dyn Progress,
    ) -> Result<(PlanReport, Vec<usize>), EvaluateError> {
        let (busy, experts) = (busy_layers(trace)?, trace.experts());
        let named =
            |layer: usize| move |source| EvaluateError::Place { layer: trace.layers()[layer], source };
        let clusters = candidate_clusters(ranks, nodes, experts, budget).map_err(|source| {
            let reason = format!("--memory-budget: {source}");
            named(busy[0])(PlaceError::Shape { policy: policy.name(), reason })
        })?;
        let tried: Vec<(Vec<SlotOption>, Vec<Placement>)> = busy
            .par_iter()
            .map(|&layer| {
                slot_options(&History::from_trace(trace, layer), &clusters, policy).map_err(named(layer))
            })
            .collect::<Result<_, _>>()?;
        let curves: Vec<Vec<SlotOption>> = tried.iter().map(|(levels, _)| levels.clone()).collect();
        let Some(chosen) = allocate_slots(&curves, budget) else {
            let least: usize = curves.iter().map(|levels| levels[0].cost).sum();
            let reason = format!(
                "--memory-budget {budget}: the layers together need at least {least} redundant slots"
            );
            return Err(named(busy[0])(PlaceError::Shape { policy: policy.name(), reason }));
        };
        let redundant: Vec<usize> = chosen.iter().zip(&curves).map(|(&at, levels)| levels[at].cost).collect();
        let most = redundant.iter().copied().max().unwrap_or(0);
        let cluster =
            clusters.iter().copied().find(|cluster| cluster.slots() - experts == most).unwrap_or(clusters[0]);
        let width = cluster.slots_per_rank();
        let policy_name = format!("{}, {budget} redundant slots in all layers", policy.name());
        let made = Self::build_with(trace, &cluster, &policy_name, origin, progress, |layer, history| {
            let at = busy.iter().position(|&other| other == layer).unwrap_or(0);
            match tried[at].1[chosen[at]].with_slots_per_rank(width) {
                Some(placement) => Ok(placement),
                None => policy.place(history, &cluster),
            }
        })?;
        Ok((made, redundant))
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

/// Returns the sum of a layer's peaks and its placement on each cluster that the policy supports.
fn slot_options(
    history: &History<'_>,
    clusters: &[Cluster],
    policy: &dyn Policy,
) -> Result<(Vec<SlotOption>, Vec<Placement>), PlaceError> {
    let mut scenarios = PeakEvaluator::from_history(history, usize::MAX);
    let (mut levels, mut placements, mut refused) = (Vec::new(), Vec::new(), None);
    for cluster in clusters {
        match policy.place(history, cluster) {
            Ok(placement) => {
                let cost = cluster.slots() - history.experts();
                levels.push(SlotOption { cost, peaks: scenarios.sum_for_placement(&placement)? });
                placements.push(placement);
            }
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(error) if levels.is_empty() => Err(error),
        _ => Ok((levels, placements)),
    }
}
