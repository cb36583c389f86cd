//! Balance of a placement: rows and times of the slowest rank, on batches of the trace.
//!
//! In: a layer's batches, a placement, a split and the kernel of the experts. Out: a [`BalanceFigures`], in
//! which the ranks' imbalance is already time.

use crate::batches::{BatchPool, TracePart};
use evenkeel::cluster::Cluster;
use evenkeel::forecast::History;
use evenkeel::place::{Contiguous, Eplb, PlaceError, PlaceRequest, Placement, Policy, Recourse, TieBreak};
use evenkeel::split::{CostModel, Split, SplitError, SplitMethod, Splitter};
use evenkeel::trace::{Trace, TraceError};
use thiserror::Error;

/// Rule by which a deployment places experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BalancePolicy {
    /// Experts in order, no replica: nothing is planned.
    Nothing,
    /// EPLB's placement.
    Eplb,
    /// Recourse's placement.
    Recourse,
}

impl BalancePolicy {
    /// Returns the name of the placement policy.
    pub fn name(self) -> &'static str {
        match self {
            BalancePolicy::Nothing => "contiguous",
            BalancePolicy::Eplb => "eplb",
            BalancePolicy::Recourse => "recourse",
        }
    }

    fn policy(self, split: SplitMethod) -> Box<dyn Policy> {
        match self {
            BalancePolicy::Nothing => Box::new(Contiguous),
            BalancePolicy::Eplb => Box::new(Eplb::new(1, TieBreak::LowestExpert)),
            BalancePolicy::Recourse => {
                Box::new(Recourse::default().for_split(split).with_iterations(SEARCH_ITERATIONS))
            }
        }
    }
}

/// Figures of the slowest rank, as means over batches and layers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct BalanceFigures {
    /// Time of the slowest rank's experts, microseconds per layer.
    pub(crate) experts_us: f64,
    /// Standard error of that time over the batches, microseconds.
    pub(crate) error_us: f64,
    /// Time of the experts if every rank had the mean load, microseconds per layer.
    pub(crate) even_us: f64,
    /// Rows of the rank with the most, over the mean.
    pub(crate) imbalance: f64,
    /// Rows of the node with the most, over the mean.
    pub(crate) node_imbalance: f64,
}

impl BalanceFigures {
    /// Figures of equal loads that take no time.
    pub(crate) const EVEN: Self =
        Self { experts_us: 0.0, error_us: 0.0, even_us: 0.0, imbalance: 1.0, node_imbalance: 1.0 };
}

/// Error of planning or judging a placement.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BalanceError {
    /// A placement could not be planned.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A batch could not be split.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The batches of a plan exceed the limits of a trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// Iterations of recourse while deployments are compared. The plan of the advised one takes the default.
const SEARCH_ITERATIONS: u64 = 2_000;
/// Number of batches on which a placement is planned.
const PLANNED_BATCHES: usize = 12;
/// Number of batches on which a placement is judged.
const JUDGED_BATCHES: usize = 6;

/// Plans the experts of one layer (by index) for batches of `tokens` tokens, on a part of the trace.
///
/// # Errors
/// Fails if the policy does not support the cluster.
pub(crate) fn place_layer(
    pool: &BatchPool<'_>,
    (experts, layer): (usize, usize),
    (policy, split): (BalancePolicy, SplitMethod),
    cluster: &Cluster,
    (part, tokens): (TracePart, u64),
) -> Result<Placement, BalanceError> {
    let loads = pool.batches(layer, part, tokens, PLANNED_BATCHES).concat();
    let steps = (0..PLANNED_BATCHES).map(|step| step.to_string()).collect();
    let trace = Trace::from_loads(experts, vec![0], steps, loads)?;
    let history = History::from_trace(&trace, 0);
    Ok(policy.policy(split).place(&PlaceRequest::new(&history, cluster))?.placement)
}

/// Batches of some layers on which placements are judged.
#[derive(Debug)]
pub(crate) struct JudgedBatches {
    /// Layer (by index) and its batches of loads, `[count][E]`.
    layers: Vec<(usize, Vec<Vec<u64>>)>,
}

impl JudgedBatches {
    /// Draws batches of `tokens` tokens from the second half of the trace.
    pub(crate) fn new(pool: &BatchPool<'_>, layers: &[usize], tokens: u64) -> Self {
        let of = |&layer: &usize| (layer, pool.batches(layer, TracePart::Second, tokens, JUDGED_BATCHES));
        Self { layers: layers.iter().map(of).collect() }
    }
}

/// Judges placements of some layers (by index) on batches of the same layers.
///
/// # Errors
/// Fails if a batch cannot be split.
pub(crate) fn judge(
    batches: &JudgedBatches,
    placements: &[(usize, Placement)],
    split: SplitMethod,
    cluster: &Cluster,
    kernel: &dyn CostModel,
) -> Result<BalanceFigures, BalanceError> {
    let ranks = cluster.ranks() as f64;
    let slots = cluster.slots_per_rank().max(1);
    let per_node = (cluster.ranks() / cluster.nodes().max(1)).max(1);
    let mut sum = BalanceFigures::default();
    let mut times = Vec::new();
    let mut found = Split::default();
    for (layer, placement) in placements {
        let of_layer = batches.layers.iter().find(|(at, _)| at == layer).map(|(_, loads)| loads.as_slice());
        let mut splitter =
            Splitter::builder(placement.clone()).method(split).nodes(cluster.nodes()).build()?;
        for loads in of_layer.unwrap_or_default() {
            let visits: u64 = loads.iter().sum();
            if visits == 0 {
                continue;
            }
            splitter.split(loads, &mut found)?;
            let of_ranks: Vec<u64> = found.quotas.chunks(slots).map(|slots| slots.iter().sum()).collect();
            let slowest = found.quotas.chunks(slots).map(|slots| kernel.rank_ps(slots, 1)).max().unwrap_or(0);
            times.push(slowest as f64 / 1e6);
            sum.even_us += even_rank_us(loads, cluster, kernel);
            let mean = visits as f64 / ranks;
            let peak = of_ranks.iter().copied().max().unwrap_or(0);
            let node_peak = of_ranks.chunks(per_node).map(|node| node.iter().sum::<u64>()).max().unwrap_or(0);
            sum.imbalance += peak as f64 / mean;
            sum.node_imbalance += node_peak as f64 / (mean * per_node as f64);
        }
    }
    let count = times.len().max(1) as f64;
    let mean = times.iter().sum::<f64>() / count;
    let square = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    Ok(BalanceFigures {
        experts_us: mean,
        error_us: (square / count).sqrt(),
        even_us: sum.even_us / count,
        imbalance: sum.imbalance / count,
        node_imbalance: sum.node_imbalance / count,
    })
}

/// Returns the time of a rank whose experts share a mean part of a batch's rows evenly. No more experts are
/// active than the batch has rows for.
fn even_rank_us(loads: &[u64], cluster: &Cluster, kernel: &dyn CostModel) -> f64 {
    let visits: u64 = loads.iter().sum();
    let active = loads.iter().filter(|&&load| load > 0).count();
    let rows = visits.div_ceil(cluster.ranks() as u64);
    let experts = active.div_ceil(cluster.ranks()).clamp(1, cluster.slots_per_rank().max(1)) as u64;
    let slots: Vec<u64> = (0..experts).map(|at| rows / experts + u64::from(at < rows % experts)).collect();
    kernel.rank_ps(&slots, 1) as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel::split::Roofline;

    #[test]
    fn a_hot_expert_is_time_and_replicas_save_it() {
        let loads: Vec<u64> = (0..16).flat_map(|step| [400 + step, 100, 100, 100]).collect();
        let steps = (0..16).map(|step| step.to_string()).collect();
        let trace = Trace::from_loads(4, vec![0], steps, loads).unwrap();
        let pool = BatchPool::new(&trace, 1, 0);
        let kernel = Roofline { read: 1_000_000, token: 1_000_000, tile: 1 };
        let figures = |policy, redundant| {
            let cluster = Cluster::new(4, 2, 4, redundant).unwrap();
            let split = SplitMethod::Exact;
            let placement =
                place_layer(&pool, (4, 0), (policy, split), &cluster, (TracePart::First, 700)).unwrap();
            let batches = JudgedBatches::new(&pool, &[0], 700);
            judge(&batches, &[(0, placement)], split, &cluster, &kernel).unwrap()
        };
        let nothing = figures(BalancePolicy::Nothing, 0);
        assert!((nothing.imbalance - 2.3).abs() < 0.1 && nothing.node_imbalance < 1.5, "{nothing:?}");
        assert!((nothing.experts_us / nothing.even_us - nothing.imbalance).abs() < 0.05);
        for policy in [BalancePolicy::Eplb, BalancePolicy::Recourse] {
            let planned = figures(policy, 4);
            assert!(planned.experts_us < 0.6 * nothing.experts_us, "{policy:?} {planned:?}");
        }
    }
}
