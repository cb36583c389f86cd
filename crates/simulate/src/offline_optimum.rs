//! The cheapest sequence of placements of a small layer, with all batches known.
//!
//! Input is a trace, a layer, a cluster and the price of a move. Output is the least sum of imbalances and
//! moves that any sequence of placements reaches. An online policy does not know later batches, so its sum
//! over this one is its competitive ratio (Borodin and El-Yaniv, Online Computation and Competitive Analysis,
//! 1998).
//!
//! The method is a dynamic programme over all placements (a metrical task system). A placement is one set of
//! experts per rank, so the move costs of ranks add up. The cheapest way into every placement is then found
//! rank by rank. The peak of a batch is the largest mean load of a set of ranks by the experts that live
//! within it alone, which equals the exact split. It shares no code with the solver.

use evenkeel::cluster::Cluster;
use evenkeel::trace::Trace;
use std::ops::Range;

/// The most placements that are considered.
const MAX_STATES: usize = 1 << 15;

/// The most ranks: their subsets are enumerated for every batch.
const MAX_RANKS: usize = 6;

/// The unit of costs: an imbalance of 2^-24.
const COST_UNIT: f64 = (1u64 << 24) as f64;

/// The cheapest sequence of placements.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct OfflineOptimum {
    /// The mean imbalance over the batches.
    pub imbalance: f64,
    /// The mean bound over the batches: ceil(total / ranks) over the mean.
    pub bound: f64,
    /// The number of moves after the first placement.
    pub moves: usize,
    /// The number of batches with tokens.
    pub batches: usize,
}

impl OfflineOptimum {
    /// Returns the optimum of these batches and those of another layer together.
    #[must_use]
    pub fn merge_with(&self, other: &Self) -> Self {
        let batches = self.batches + other.batches;
        let mean = |own: f64, others: f64| {
            (own * self.batches as f64 + others * other.batches as f64) / batches.max(1) as f64
        };
        OfflineOptimum {
            imbalance: mean(self.imbalance, other.imbalance),
            bound: mean(self.bound, other.bound),
            moves: self.moves + other.moves,
            batches,
        }
    }
}

/// A sum of imbalances and prices, with the moves in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PathCost {
    cost: u64,
    moves: u32,
}

/// Returns the cheapest sequence of placements for the batches of one layer (by index), where a move costs
/// as much as an imbalance of `price` in one batch. The first placement is free. Returns `None` if no step
/// holds a token, or if there are too many placements, ranks, or unequal slots.
pub fn offline_optimum(
    trace: &Trace,
    (layer, steps): (usize, Range<usize>),
    cluster: &Cluster,
    price: f64,
) -> Option<OfflineOptimum> {
    let (ranks, per_rank, experts) = (cluster.ranks(), cluster.slots_per_rank(), trace.experts());
    let sets = expert_sets(experts, per_rank).filter(|_| ranks <= MAX_RANKS)?;
    let states = sets.len().checked_pow(u32::try_from(ranks).ok()?)?;
    if states > MAX_STATES || cluster.usable_slots() != cluster.slots() {
        return None;
    }
    let batches: Vec<&[u64]> = steps
        .map(|step| trace.loads(step, layer))
        .filter(|batch| batch.iter().any(|&load| load > 0))
        .collect();
    let hosts = (0..states).map(|state| expert_hosts(state, &sets, experts, ranks)).collect::<Vec<_>>();
    let toll = (price.max(0.0) * COST_UNIT) as u64;
    let mut best: Vec<PathCost> = vec![PathCost { cost: 0, moves: 0 }; states];
    for (number, batch) in batches.iter().enumerate() {
        if number > 0 {
            (0..ranks).for_each(|rank| move_rank(&mut best, &sets, rank, toll));
        }
        let total: u64 = batch.iter().sum();
        for (path, hosts) in best.iter_mut().zip(&hosts) {
            path.cost = match hosts {
                Some(hosts) => {
                    let imbalance = batch_peak(batch, hosts, ranks) as f64 * ranks as f64 / total as f64;
                    path.cost.saturating_add((imbalance * COST_UNIT) as u64)
                }
                // An expert without a rank cannot be served.
                None => u64::MAX,
            };
        }
    }
    let path = best.into_iter().min().filter(|path| path.cost < u64::MAX && !batches.is_empty())?;
    let bound = batches.iter().map(|batch| {
        let total: u64 = batch.iter().sum();
        total.div_ceil(ranks as u64) as f64 * ranks as f64 / total as f64
    });
    let count = batches.len() as f64;
    let imbalances = path.cost.saturating_sub(toll.saturating_mul(u64::from(path.moves)));
    Some(OfflineOptimum {
        imbalance: imbalances as f64 / COST_UNIT / count,
        bound: bound.sum::<f64>() / count,
        moves: path.moves as usize,
        batches: batches.len(),
    })
}

/// Returns all sets of `size` experts as bits, or `None` if they are too many.
fn expert_sets(experts: usize, size: usize) -> Option<Vec<u32>> {
    let all = 1u32.checked_shl(u32::try_from(experts).ok()?)?;
    (experts <= 16 && size <= experts)
        .then(|| (0..all).filter(|set| set.count_ones() as usize == size).collect())
}

/// Returns the ranks of each expert as bits, or `None` if one has no rank.
fn expert_hosts(state: usize, sets: &[u32], experts: usize, ranks: usize) -> Option<Vec<u32>> {
    let mut hosts = vec![0u32; experts];
    let mut rest = state;
    for rank in 0..ranks {
        let set = sets[rest % sets.len()];
        rest /= sets.len();
        (0..experts).filter(|expert| set >> expert & 1 == 1).for_each(|expert| hosts[expert] |= 1 << rank);
    }
    hosts.iter().all(|&hosts| hosts != 0).then_some(hosts)
}

/// Returns the peak of the exact split: the largest mean load that a set of ranks cannot avoid.
fn batch_peak(batch: &[u64], hosts: &[u32], ranks: usize) -> u64 {
    let inside = |set: u32| {
        let own = batch.iter().zip(hosts).filter(|&(_, &hosts)| hosts & !set == 0);
        own.map(|(&load, _)| load).sum::<u64>()
    };
    (1..1u32 << ranks).map(|set| inside(set).div_ceil(u64::from(set.count_ones()))).max().unwrap_or(0)
}

/// Allows one rank to change its experts, at the price of each expert that it newly holds.
fn move_rank(best: &mut [PathCost], sets: &[u32], rank: usize, toll: u64) {
    let stride = sets.len().pow(rank as u32);
    for first in (0..best.len()).filter(|at| (at / stride).is_multiple_of(sets.len())) {
        let old: Vec<PathCost> = (0..sets.len()).map(|set| best[first + set * stride]).collect();
        for (to, &new) in sets.iter().enumerate() {
            let arrive = |(path, &set): (&PathCost, &u32)| {
                let moves = (new & !set).count_ones();
                let cost = path.cost.saturating_add(toll.saturating_mul(u64::from(moves)));
                PathCost { cost, moves: path.moves + moves }
            };
            if let Some(cheapest) = old.iter().zip(sets).map(arrive).min() {
                best[first + to * stride] = cheapest;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel::place::Placement;
    use evenkeel::split::{Split, SplitMethod, Splitter};

    /// Returns a trace of 4 experts whose heavy expert changes every 10 steps.
    fn shifting() -> Trace {
        let loads = (0..40u64).flat_map(|step| {
            (0..4u64).map(move |e| 10 + (step * 7 + e * 5) % 9 + 60 * u64::from(step / 10 == e))
        });
        Trace::from_loads(4, vec![0], (0..40).map(|s| s.to_string()).collect(), loads.collect()).unwrap()
    }

    fn optimum(price: f64) -> OfflineOptimum {
        let cluster = Cluster::new(2, 1, 4, 2).unwrap();
        offline_optimum(&shifting(), (0, 0..40), &cluster, price).unwrap()
    }

    #[test]
    fn a_higher_price_buys_fewer_moves() {
        let optima: Vec<OfflineOptimum> = [0.0, 0.1, 1.0, 1e6].map(optimum).to_vec();
        assert!(
            optima.is_sorted_by(|a, b| a.moves >= b.moves && a.imbalance <= b.imbalance + 1e-6),
            "{optima:?}"
        );
        assert!(optima[0].moves > 0 && optima[3].moves == 0, "{optima:?}");
        assert!(optima[0].imbalance >= optima[0].bound - 1e-6);
    }

    #[test]
    fn no_fixed_placement_is_cheaper() {
        let (trace, fixed) = (shifting(), optimum(1e6));
        let mut least = f64::INFINITY;
        let sets = expert_sets(4, 3).unwrap();
        for state in 0..sets.len().pow(2) {
            if expert_hosts(state, &sets, 4, 2).is_none() {
                continue;
            }
            let experts = |set: u32| (0..4u32).filter(move |expert| set >> expert & 1 == 1).map(Some);
            let slots = experts(sets[state % 4]).chain(experts(sets[state / 4])).collect();
            let placement = Placement::new(4, 2, slots).unwrap();
            let mut splitter = Splitter::builder(placement).method(SplitMethod::Exact).build().unwrap();
            let mut split = Split::default();
            let mut sum = 0.0;
            for step in 0..40 {
                let batch = trace.loads(step, 0);
                splitter.split(batch, &mut split).unwrap();
                sum += split.peak() as f64 * 2.0 / batch.iter().sum::<u64>() as f64;
            }
            least = least.min(sum / 40.0);
        }
        assert!((fixed.imbalance - least).abs() < 1e-6, "{fixed:?} {least}");
    }

    #[test]
    fn large_layers_are_refused() {
        let cluster = Cluster::new(8, 1, 16, 8).unwrap();
        let loads = vec![1; 16];
        let trace = Trace::from_loads(16, vec![0], vec!["0".into()], loads).unwrap();
        assert_eq!(offline_optimum(&trace, (0, 0..1), &cluster, 1.0), None);
    }
}
