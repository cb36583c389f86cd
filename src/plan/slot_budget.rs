//! Planning all layers within one budget of redundant slots.
//!
//! In: a trace, a policy, how many redundant slots all layers may have together. Out: the plan, in which layers have as many
//! slots as they make use of. Every layer is placed with 0, 1, 2, .. redundant slots per rank and judged exactly; [`spend`]
//! then buys the slots that save most tokens.

use super::{Level, Made, Origin, Plan, spend};
use crate::cluster::{Cluster, ClusterError};
use crate::forecast::History;
use crate::place::{PlaceError, Placement, Policy, Scenarios};
use crate::simulate::{Progress, SimulateError, busy_layers};
use crate::trace::Trace;
use rayon::prelude::*;

/// Most redundant slots per rank that are tried.
const MOST_PER_RANK: usize = 8;

impl Plan {
    /// Places every layer that routed tokens so that all redundant slots together are at most `budget`, where they lower
    /// the peaks most. Layers get whole slots per rank. Returns the redundant slots of each planned layer beside the plan,
    /// whose ranks have as many slots as the layer with most; elsewhere they are empty.
    ///
    /// # Errors
    /// As [`Plan::make`]; and where the policy needs more redundant slots at least than the budget has.
    pub fn make_within(
        trace: &Trace,
        (ranks, nodes): (usize, usize),
        policy: &dyn Policy,
        budget: usize,
        origin: Origin,
        progress: &dyn Progress,
    ) -> Result<(Made, Vec<usize>), SimulateError> {
        let (busy, experts) = (busy_layers(trace)?, trace.experts());
        let named =
            |layer: usize| move |source| SimulateError::Place { layer: trace.layers()[layer], source };
        let clusters = clusters(ranks, nodes, experts, budget).map_err(|source| {
            let reason = format!("--memory-budget: {source}");
            named(busy[0])(PlaceError::Shape { policy: policy.name(), reason })
        })?;
        let tried: Vec<(Vec<Level>, Vec<Placement>)> = busy
            .par_iter()
            .map(|&layer| levels(&History::whole(trace, layer), &clusters, policy).map_err(named(layer)))
            .collect::<Result<_, _>>()?;
        let curves: Vec<Vec<Level>> = tried.iter().map(|(levels, _)| levels.clone()).collect();
        let Some(chosen) = spend(&curves, budget) else {
            let least: usize = curves.iter().map(|levels| levels[0].cost).sum();
            let reason =
                format!("--memory-budget {budget}: needs {least} redundant slots at least in all layers");
            return Err(named(busy[0])(PlaceError::Shape { policy: policy.name(), reason }));
        };
        let redundant: Vec<usize> = chosen.iter().zip(&curves).map(|(&at, levels)| levels[at].cost).collect();
        let most = redundant.iter().copied().max().unwrap_or(0);
        let cluster =
            clusters.iter().copied().find(|cluster| cluster.slots() - experts == most).unwrap_or(clusters[0]);
        let width = cluster.slots_per_rank();
        let policy_name = format!("{}, {budget} redundant slots in all layers", policy.name());
        let made = Self::make_by(trace, &cluster, &policy_name, origin, progress, |layer, history| {
            let at = busy.iter().position(|&other| other == layer).unwrap_or(0);
            match tried[at].1[chosen[at]].widened(width) {
                Some(placement) => Ok(placement),
                None => policy.place(history, &cluster),
            }
        })?;
        Ok((made, redundant))
    }
}

/// The clusters to try: the fewest redundant slots that divide, and one more per rank each time.
fn clusters(ranks: usize, nodes: usize, experts: usize, budget: usize) -> Result<Vec<Cluster>, ClusterError> {
    let least = (ranks - experts.checked_rem(ranks).unwrap_or(0)) % ranks.max(1);
    let mut all = vec![Cluster::new(ranks, nodes, experts, least)?];
    for more in 1..=MOST_PER_RANK {
        let redundant = least + more * ranks;
        let cluster = Cluster::new(ranks, nodes, experts, redundant)?;
        if redundant > budget || cluster.slots_per_rank() > experts {
            break;
        }
        all.push(cluster);
    }
    Ok(all)
}

/// What a layer's peaks add up to on each cluster that the policy can serve.
fn levels(
    history: &History<'_>,
    clusters: &[Cluster],
    policy: &dyn Policy,
) -> Result<(Vec<Level>, Vec<Placement>), PlaceError> {
    let mut scenarios = Scenarios::recent(history, usize::MAX);
    let (mut levels, mut placements, mut refused) = (Vec::new(), Vec::new(), None);
    for cluster in clusters {
        match policy.place(history, cluster) {
            Ok(placement) => {
                let cost = cluster.slots() - history.experts();
                levels.push(Level { cost, peaks: scenarios.of_placement(&placement)? });
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
