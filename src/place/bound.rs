//! Proved lower bounds for all placements, on the batches of the planning.
//!
//! In: the batches of a history, a cluster. Out: a lower bound of the mean peak, and its proof. Four proofs
//! exist. The mean load is always a bound. Slots may run out before the mean is reached, because an expert of
//! load `N` needs `ceil(N / T)` replicas for a peak of `T`. They run out sooner if batches with different
//! heavy experts share them (`shared_replicas`). A small case is solved to proof. Batches of unequal size are
//! weighted in units of 1/65536.

use super::shared_replicas::{ReplicaLimits, bound_weighted_peaks};
use super::{Contiguous, PlaceError, Placement, find_optimum};
use crate::cluster::Cluster;
use crate::forecast::History;
use std::fmt;

/// Highest number of partial placements that a proof by enumeration visits. It limits the time per layer.
const MAX_VISITS: u64 = 200_000;
/// Highest number of batches of a case that is solved to proof.
const MAX_BATCHES: usize = 64;
/// Resolution of the weights of batches.
const WEIGHT_UNIT: u128 = 1 << 16;

/// Proof of a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BoundProof {
    /// The mean load: ceil(total / ranks) of every batch.
    Mean,
    /// There are fewer slots than heavy experts need for their replicas.
    ReplicaCount,
    /// The same slots serve all batches, whose heavy experts differ.
    SharedReplicas,
    /// All placements were enumerated, so the bound is the optimum.
    Enumerated,
}

impl fmt::Display for BoundProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            BoundProof::Mean => "= mean",
            BoundProof::ReplicaCount => "copies counted",
            BoundProof::SharedReplicas => "copies shared by batches",
            BoundProof::Enumerated => "all placements tried",
        })
    }
}

/// Proved lower bound.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct PlacementBound {
    /// Mean over the batches of the lowest possible peak over mean.
    pub imbalance: f64,
    /// Number of batches.
    pub batches: usize,
    /// Proof of the bound.
    pub proof: BoundProof,
}

/// Returns the best proved bound for placements of this history. `start` is an optional placement in this
/// cluster. A better one rules out others sooner.
///
/// # Errors
/// Fails if the solver refuses the loads.
pub fn placement_bound(
    history: &History<'_>,
    cluster: &Cluster,
    start: Option<&Placement>,
) -> Result<PlacementBound, PlaceError> {
    let batches: Vec<&[u64]> = history.batches().filter(|batch| batch.iter().any(|&load| load > 0)).collect();
    let ranks = cluster.ranks() as u64;
    let totals: Vec<u64> = batches.iter().map(|batch| batch.iter().sum()).collect();
    let summary = |peaks: &[u64], proof: BoundProof| {
        let over_mean = |(&total, &peak): (&u64, &u64)| peak as f64 * ranks as f64 / total as f64;
        let sum: f64 = totals.iter().zip(peaks).map(over_mean).sum();
        PlacementBound { imbalance: sum / totals.len().max(1) as f64, batches: totals.len(), proof }
    };
    let means: Vec<u64> = totals.iter().map(|total| total.div_ceil(ranks)).collect();
    let counted: Vec<u64> = batches.iter().map(|batch| replica_bound(batch, cluster)).collect();
    let bound = summary(&counted, if counted == means { BoundProof::Mean } else { BoundProof::ReplicaCount });
    // The weights make every batch count alike, regardless of its size.
    let most = totals.iter().copied().max().unwrap_or(1);
    let weights: Vec<u64> =
        totals.iter().map(|&total| (u128::from(most) * WEIGHT_UNIT / u128::from(total)) as u64).collect();
    let shared = bound_shared_replicas(&batches, (&weights, &counted), cluster).map(|imbalance| {
        PlacementBound { imbalance, batches: totals.len(), proof: BoundProof::SharedReplicas }
    });
    let bound = shared.filter(|shared| shared.imbalance > bound.imbalance).unwrap_or(bound);
    if batches.is_empty() || batches.len() > MAX_BATCHES {
        return Ok(bound);
    }
    let contiguous;
    let start = match start {
        Some(start) => start,
        None => match Contiguous::placement(history.experts(), cluster) {
            Ok(placement) => {
                contiguous = placement;
                &contiguous
            }
            Err(_) => return Ok(bound),
        },
    };
    let Some(best) = find_optimum(&batches, &weights, start, cluster, MAX_VISITS)? else { return Ok(bound) };
    let peaks = super::PeakEvaluator::from_batches(batches.clone()).peaks(best.placement.hosts()?)?;
    Ok(summary(&peaks, BoundProof::Enumerated))
}

/// Returns the bound of `shared_replicas` in units of the mean. Weights are rounded down, so the result
/// stays a bound.
fn bound_shared_replicas(
    batches: &[&[u64]],
    (weights, counted): (&[u64], &[u64]),
    cluster: &Cluster,
) -> Option<f64> {
    let limits = ReplicaLimits { slots: cluster.usable_slots(), ranks: cluster.ranks() };
    let sum = bound_weighted_peaks(batches, (weights, counted), limits)?;
    let most = batches.iter().map(|batch| batch.iter().sum::<u64>()).max()?;
    let unit = most as f64 * WEIGHT_UNIT as f64 / cluster.ranks() as f64;
    Some(sum as f64 / unit / batches.len() as f64)
}

/// Returns the lowest `T` from ceil(mean) on for which the slots suffice. Each expert needs `ceil(load / T)`
/// slots, and at least one.
fn replica_bound(batch: &[u64], cluster: &Cluster) -> u64 {
    let total: u64 = batch.iter().sum();
    let slots = cluster.usable_slots() as u64;
    let enough = |peak: u64| {
        let copies = batch.iter().map(|&load| load.div_ceil(peak).max(1));
        copies.fold(0u64, u64::saturating_add) <= slots
    };
    let (mut low, mut high) = (total.div_ceil(cluster.ranks() as u64).max(1), total.max(1));
    // The slots suffice in most cases.
    if enough(low) {
        return low;
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if enough(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// Bound of several layers together.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct MeanBound {
    /// Mean of the layers' bounds on peak over mean. Each batch counts alike.
    pub imbalance: f64,
    /// Number of layers whose bound exceeds the mean load.
    pub layers_above_mean: usize,
}

impl PlacementBound {
    /// Returns the bound of several layers together.
    pub fn mean_of_layers(bounds: &[PlacementBound]) -> MeanBound {
        let batches: usize = bounds.iter().map(|bound| bound.batches).sum();
        let sum: f64 = bounds.iter().map(|bound| bound.imbalance * bound.batches as f64).sum();
        let layers_above_mean = bounds.iter().filter(|bound| bound.proof != BoundProof::Mean).count();
        MeanBound { imbalance: sum / batches.max(1) as f64, layers_above_mean }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;

    fn bound(experts: usize, loads: Vec<u64>, ranks: usize, redundant: usize) -> PlacementBound {
        let steps = (0..loads.len() / experts).map(|s| s.to_string()).collect();
        let trace = Trace::from_loads(experts, vec![0], steps, loads).unwrap();
        let cluster = Cluster::new(ranks, 1, experts, redundant).unwrap();
        placement_bound(&History::from_trace(&trace, 0), &cluster, None).unwrap()
    }

    #[test]
    fn each_proof_where_it_applies() {
        // 16 experts are too many to enumerate. Equal loads can be split perfectly.
        let even = bound(16, vec![10; 16], 8, 8);
        assert_eq!((even.proof, even.batches), (BoundProof::Mean, 1));
        assert!((even.imbalance - 1.0).abs() < 1e-12);
        // Without redundant slots the heavy expert stays in one piece.
        let mut loads = vec![1; 16];
        loads[3] = 100;
        let heavy = bound(16, loads, 8, 0);
        assert_eq!(heavy.proof, BoundProof::ReplicaCount);
        assert!((heavy.imbalance - 100.0 * 8.0 / 115.0).abs() < 1e-12);
        let small = bound(4, vec![9, 1, 1, 1, 1, 9, 1, 1], 4, 4);
        assert_eq!(small.proof, BoundProof::Enumerated);
        assert!(small.imbalance >= 1.0);
    }
}
