//! What no placement can be below, on the batches that it is planned on.
//!
//! In: the batches of a history, a cluster. Out: a lower bound on the mean peak, and how it is proved. The mean load is
//! one; copies may run out before it is reached (an expert of load `N` needs `ceil(N / T)` copies for a peak of `T`, and
//! there are only so many slots); a small case is solved to proof. Batches of unequal size are weighed in 1/65536 there.

use super::{Contiguous, PlaceError, Placement, optimum};
use crate::cluster::Cluster;
use crate::forecast::History;
use std::fmt;

/// Partial placements that a proof by enumeration may take.
const LIMIT: u64 = 200_000;
/// Most batches of a case that is solved to proof.
const MOST_BATCHES: usize = 64;
/// Resolution of the weights of batches.
const UNIT: u128 = 1 << 16;

/// How a bound is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// The mean load: ceil(total / ranks) of every batch.
    Mean,
    /// There are too few slots for the copies that heavy experts would need.
    Copies,
    /// All placements were tried: this is the optimum.
    Enumerated,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Proof::Mean => "= mean",
            Proof::Copies => "copies counted",
            Proof::Enumerated => "all placements tried",
        })
    }
}

/// A proved lower bound.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// Mean over the batches of the least conceivable peak over mean.
    pub imbalance: f64,
    /// The batches.
    pub batches: usize,
    /// How it is proved.
    pub proof: Proof,
}

/// The best bound that is proved for placements of this history. `start`, where there is one, is a placement in this cluster:
/// the better it is, the sooner others are ruled out.
///
/// # Errors
/// When the solver refuses the loads.
pub fn placement_bound(
    history: &History<'_>,
    cluster: &Cluster,
    start: Option<&Placement>,
) -> Result<Bound, PlaceError> {
    let batches: Vec<&[u64]> = history.batches().filter(|batch| batch.iter().any(|&load| load > 0)).collect();
    let ranks = cluster.ranks() as u64;
    let totals: Vec<u64> = batches.iter().map(|batch| batch.iter().sum()).collect();
    let summary = |peaks: &[u64], proof: Proof| {
        let over_mean = |(&total, &peak): (&u64, &u64)| peak as f64 * ranks as f64 / total as f64;
        let sum: f64 = totals.iter().zip(peaks).map(over_mean).sum();
        Bound { imbalance: sum / totals.len().max(1) as f64, batches: totals.len(), proof }
    };
    let means: Vec<u64> = totals.iter().map(|total| total.div_ceil(ranks)).collect();
    let counted: Vec<u64> = batches.iter().map(|batch| counting(batch, cluster)).collect();
    let bound = summary(&counted, if counted == means { Proof::Mean } else { Proof::Copies });
    if batches.is_empty() || batches.len() > MOST_BATCHES {
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
    // Every batch counts alike, whatever its size.
    let most = totals.iter().copied().max().unwrap_or(1);
    let weights: Vec<u64> =
        totals.iter().map(|&total| (u128::from(most) * UNIT / u128::from(total)) as u64).collect();
    let Some(best) = optimum(&batches, &weights, start, cluster, LIMIT)? else { return Ok(bound) };
    let peaks = super::Scenarios::of(batches.clone()).peaks(best.placement.hosts()?)?;
    Ok(summary(&peaks, Proof::Enumerated))
}

/// The least `T` from ceil(mean) on for which all experts together have slots enough: `ceil(load / T)` each, one at least.
fn counting(batch: &[u64], cluster: &Cluster) -> u64 {
    let total: u64 = batch.iter().sum();
    let slots = cluster.usable_slots() as u64;
    let enough = |peak: u64| {
        let copies = batch.iter().map(|&load| load.div_ceil(peak).max(1));
        copies.fold(0u64, u64::saturating_add) <= slots
    };
    let (mut low, mut high) = (total.div_ceil(cluster.ranks() as u64).max(1), total.max(1));
    // As a rule there are enough.
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

impl Bound {
    /// The bound of several layers together, each batch counting alike, and in how many more than the mean is proved.
    pub fn of_all(bounds: &[Bound]) -> (f64, usize) {
        let batches: usize = bounds.iter().map(|bound| bound.batches).sum();
        let sum: f64 = bounds.iter().map(|bound| bound.imbalance * bound.batches as f64).sum();
        let better = bounds.iter().filter(|bound| bound.proof != Proof::Mean).count();
        (sum / batches.max(1) as f64, better)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;

    fn bound(experts: usize, loads: Vec<u64>, ranks: usize, redundant: usize) -> Bound {
        let steps = (0..loads.len() / experts).map(|s| s.to_string()).collect();
        let trace = Trace::from_loads(experts, vec![0], steps, loads).unwrap();
        let cluster = Cluster::new(ranks, 1, experts, redundant).unwrap();
        placement_bound(&History::whole(&trace, 0), &cluster, None).unwrap()
    }

    #[test]
    fn each_proof_where_it_applies() {
        // 16 experts are too many to try; equal loads are perfect.
        let even = bound(16, vec![10; 16], 8, 8);
        assert_eq!((even.proof, even.batches), (Proof::Mean, 1));
        assert!((even.imbalance - 1.0).abs() < 1e-12);
        // Without redundant slots the heavy expert stays in one piece.
        let mut loads = vec![1; 16];
        loads[3] = 100;
        let heavy = bound(16, loads, 8, 0);
        assert_eq!(heavy.proof, Proof::Copies);
        assert!((heavy.imbalance - 100.0 * 8.0 / 115.0).abs() < 1e-12);
        let small = bound(4, vec![9, 1, 1, 1, 1, 9, 1, 1], 4, 4);
        assert_eq!(small.proof, Proof::Enumerated);
        assert!(small.imbalance >= 1.0);
    }
}
