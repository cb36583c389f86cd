//! Optimal placement of a small case, proved by enumeration.
//!
//! In: batches with the weight of a token in each, a cluster. Out: the placement with the lowest weighted sum
//! of exact peaks over the batches.
//!
//! **Formula of the peak.** At least one expert of a set `X` lives on each of `n(X)` ranks. So the peak of a
//! batch is at least `ceil(load(X) / n(X))`. The maximum over all `X` is the peak itself. This is the
//! max-flow theorem of [`evenkeel_solver`], read from the experts' side.
//!
//! **Enumeration.** The search first chooses the number of replicas of each expert. `n(X)` is then at most
//! the number of replicas in `X`, which rules most choices out at once. The others are visited in the order
//! of that bound. Then the search chooses the part of each rank. Permutations of equal ranks make no
//! difference, so equal ranks get their parts in ascending order. A branch ends when the parts so far, with
//! the remaining replicas, prove that it cannot win.

mod table;

use super::{PlaceError, Placement};
use crate::cluster::Cluster;
use table::PeakTable;

/// Highest number of experts, because the search visits all their subsets.
const MAX_EXPERTS: usize = 10;
/// Highest number of possible parts of a rank.
const MAX_PARTS: usize = 1 << 12;

/// Proved optimum.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProvedOptimum {
    /// Placement that reaches the optimum.
    pub placement: Placement,
    /// Weighted sum of its peaks over all batches. No placement has a lower one.
    pub score: u64,
    /// Number of visited partial placements.
    pub visited: u64,
}

/// Finds the optimal placement of a layer, if that takes no more than `limit` partial placements.
///
/// `weights` holds the weight of a token of the peak in each batch. 1 each yields the sum of peaks. Weights
/// in proportion to 1 / total yield the mean imbalance.
///
/// `start` is any placement. A better one rules out others sooner. Returns `None`, which proves nothing, if
/// the limit was reached or the case is too large. Cases are limited to 10 experts and tables of 4 million
/// entries.
///
/// # Errors
/// Fails if the solver refuses the loads.
pub fn find_optimum(
    batches: &[&[u64]],
    weights: &[u64],
    start: &Placement,
    cluster: &Cluster,
    limit: u64,
) -> Result<Option<ProvedOptimum>, PlaceError> {
    let experts = start.experts();
    let peaks = super::PeakEvaluator::from_batches(batches.to_vec()).peaks(start.hosts()?)?;
    let first = peaks
        .iter()
        .zip(weights)
        .fold(0u64, |sum, (&peak, &weight)| sum.saturating_add(peak.saturating_mul(weight)));
    // Heavy experts come first because they decide most.
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by_key(|&e| std::cmp::Reverse(batches.iter().map(|batch| batch[e]).sum::<u64>()));
    let Some(mut search) = ExhaustiveSearch::new((batches, weights), &order, cluster, first, limit) else {
        return Ok(None);
    };
    search.visit_all();
    if search.visited > limit {
        return Ok(None);
    }
    let placement = match &search.best_parts {
        None => start.clone(),
        Some(parts) => {
            let mut slots = vec![None; cluster.slots()];
            for (rank, &part) in parts.iter().enumerate() {
                let held = (0..experts).filter(|bit| part >> bit & 1 == 1);
                for (slot, bit) in held.enumerate() {
                    slots[rank * cluster.slots_per_rank() + slot] = Some(order[bit] as u32);
                }
            }
            Placement::new(experts, cluster.ranks(), slots)?
        }
    };
    Ok(Some(ProvedOptimum { placement, score: search.best, visited: search.visited }))
}

/// State of the enumeration. Parts are sets of experts as bits in the order of weight, and bit 0 is the
/// heaviest.
struct ExhaustiveSearch {
    experts: usize,
    ranks: usize,
    /// All parts of each size, in the order of the search. A size is the number of usable slots of some
    /// ranks.
    parts: Vec<Vec<u32>>,
    /// Index into `parts` for each rank.
    kind_of_rank: Vec<usize>,
    table: PeakTable,
    /// Number of ranks with a part that holds one of the set's experts, `[X]`.
    touched: Vec<u8>,
    /// Number of replicas of the set's experts that are not placed yet, `[X]`.
    left: Vec<u16>,
    chosen_parts: Vec<usize>,
    best: u64,
    best_parts: Option<Vec<u32>>,
    visited: u64,
    limit: u64,
}

impl ExhaustiveSearch {
    fn new(
        batches: (&[&[u64]], &[u64]),
        order: &[usize],
        cluster: &Cluster,
        best: u64,
        limit: u64,
    ) -> Option<Self> {
        let (experts, ranks) = (order.len(), cluster.ranks());
        if experts > MAX_EXPERTS || ranks > usize::from(u8::MAX) {
            return None;
        }
        let (mut sizes, mut parts, mut kind) = (Vec::new(), Vec::new(), Vec::new());
        for rank in 0..ranks {
            let size = cluster.slots_of(rank).min(experts);
            let at = sizes.iter().position(|&known| known == size).unwrap_or(sizes.len());
            if at == sizes.len() {
                sizes.push(size);
                parts.push(parts_of_size(experts, size));
            }
            kind.push(at);
        }
        if parts.iter().any(|parts| parts.len() > MAX_PARTS) {
            return None;
        }
        let table = PeakTable::new(batches, order, ranks)?;
        let sets = 1 << experts;
        Some(Self {
            experts,
            ranks,
            parts,
            kind_of_rank: kind,
            table,
            touched: vec![0; sets],
            left: vec![0; sets],
            chosen_parts: Vec::with_capacity(ranks),
            best,
            best_parts: None,
            visited: 0,
            limit,
        })
    }

    /// Visits all numbers of replicas, the most promising first. For each, it visits all ways to place them.
    fn visit_all(&mut self) {
        let slots: usize = self.kind_of_rank.iter().map(|&kind| self.part_size(kind)).sum();
        if slots < self.experts {
            return;
        }
        let mut choices = Vec::new();
        self.collect_counts(&mut Vec::new(), slots, &mut choices);
        choices.sort();
        for (bound, copies) in choices {
            if bound >= self.best || self.visited > self.limit {
                break;
            }
            for set in 0..self.left.len() {
                self.left[set] = replicas_in_set(&copies, set);
            }
            self.visit_rank(0);
        }
    }

    /// Returns the number of slots of the ranks of a kind.
    fn part_size(&self, kind: usize) -> usize {
        self.parts[kind].first().map_or(0, |part| part.count_ones() as usize)
    }

    /// Collects all numbers of replicas, from 1 to the number of ranks, that add up to the slots, with their
    /// bounds.
    fn collect_counts(&mut self, copies: &mut Vec<u16>, slots: usize, choices: &mut Vec<(u64, Vec<u16>)>) {
        let to_come = self.experts - copies.len();
        if to_come == 0 {
            self.visited += 1;
            let n = |set: usize| usize::from(replicas_in_set(copies, set));
            let bound = self.table.sum_bound(1 << self.experts, n, self.best);
            if bound < self.best {
                choices.push((bound, copies.clone()));
            }
            return;
        }
        let most = self.ranks.min((slots + 1).saturating_sub(to_come));
        let least = slots.saturating_sub((to_come - 1) * self.ranks).max(1);
        for own in least..=most {
            if self.visited > self.limit {
                return;
            }
            copies.push(own as u16);
            self.collect_counts(copies, slots - own, choices);
            copies.pop();
        }
    }

    /// Visits all parts of this rank, and recursively of every further rank.
    fn visit_rank(&mut self, rank: usize) {
        self.visited += 1;
        if self.visited > self.limit {
            return;
        }
        let (touched, left, ranks_left) = (&self.touched, &self.left, self.ranks - rank);
        let n = |set: usize| usize::from(touched[set]) + usize::from(left[set]).min(ranks_left);
        let bound = self.table.sum_bound(self.left.len(), n, self.best);
        if bound >= self.best {
            return;
        }
        if rank == self.ranks {
            self.best = bound;
            self.best_parts = Some(
                (0..rank).map(|rank| self.parts[self.kind_of_rank[rank]][self.chosen_parts[rank]]).collect(),
            );
            return;
        }
        let kind = self.kind_of_rank[rank];
        let last_of_its_kind = self.kind_of_rank[rank..].iter().all(|&other| other == kind);
        // Equal ranks get their parts in order, because permutations make no difference.
        let from =
            if rank > 0 && self.kind_of_rank[rank - 1] == kind { self.chosen_parts[rank - 1] } else { 0 };
        for at in from..self.parts[kind].len() {
            let part = self.parts[kind][at];
            if last_of_its_kind && self.left[1] > 0 && part & 1 == 0 {
                // No later part holds the heaviest expert, which has replicas left.
                break;
            }
            if !self.can_hold(part, ranks_left) {
                continue;
            }
            self.toggle_part(part, true);
            self.chosen_parts.push(at);
            self.visit_rank(rank + 1);
            self.chosen_parts.pop();
            self.toggle_part(part, false);
        }
    }

    /// Returns true if every expert of the part has a replica left, and the remaining replicas of all experts
    /// can go to different ranks.
    fn can_hold(&self, part: u32, ranks_left: usize) -> bool {
        (0..self.experts).all(|bit| {
            let left = usize::from(self.left[1 << bit]);
            if part >> bit & 1 == 1 { left > 0 } else { left < ranks_left }
        })
    }

    fn toggle_part(&mut self, part: u32, dealt: bool) {
        for set in 0..self.left.len() {
            let common = part & set as u32;
            if dealt {
                self.touched[set] += u8::from(common != 0);
                self.left[set] -= common.count_ones() as u16;
            } else {
                self.touched[set] -= u8::from(common != 0);
                self.left[set] += common.count_ones() as u16;
            }
        }
    }
}

/// Returns the number of replicas of the experts of a set.
fn replicas_in_set(copies: &[u16], set: usize) -> u16 {
    copies.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1).map(|(_, &own)| own).sum()
}

/// Returns all sets of `size` of `experts`, those with the lowest experts first.
fn parts_of_size(experts: usize, size: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..1u32 << experts).filter(|part| part.count_ones() as usize == size).collect();
    // Bit 0 is the most significant for the order.
    all.sort_by_key(|part| std::cmp::Reverse(part.reverse_bits()));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Contiguous;
    use proptest::prelude::*;

    /// Enumerates every placement of distinct experts on each rank without pruning.
    fn try_all(batches: &[&[u64]], experts: usize, ranks: usize, size: usize) -> u64 {
        let parts = parts_of_size(experts, size);
        let mut best = u64::MAX;
        for mut code in 0..parts.len().pow(ranks as u32) {
            let mut slots = Vec::new();
            for _ in 0..ranks {
                let part = parts[code % parts.len()];
                code /= parts.len();
                slots.extend((0..experts as u32).filter(|e| part >> e & 1 == 1).map(Some));
            }
            if let Ok(placement) = Placement::new(experts, ranks, slots) {
                let sum = super::super::PeakEvaluator::from_batches(batches.to_vec())
                    .sum_for_placement(&placement)
                    .unwrap();
                best = best.min(sum);
            }
        }
        best
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn nothing_is_better(loads in prop::collection::vec(prop::collection::vec(0u64..40, 4), 1..4)) {
            let batches: Vec<&[u64]> = loads.iter().map(Vec::as_slice).collect();
            let (cluster, ones) = (Cluster::new(4, 1, 4, 4).unwrap(), vec![1; loads.len()]);
            let start = Contiguous::placement(4, &cluster).unwrap();
            let found = find_optimum(&batches, &ones, &start, &cluster, u64::MAX).unwrap().unwrap();
            let mut scenarios = super::super::PeakEvaluator::from_batches(batches.clone());
            prop_assert_eq!(scenarios.sum_for_placement(&found.placement).unwrap(), found.score);
            prop_assert_eq!(found.score, try_all(&batches, 4, 4, 2));
            // The optimum cannot be improved, and an interrupted proof proves nothing.
            let again = find_optimum(&batches, &ones, &found.placement, &cluster, u64::MAX).unwrap().unwrap();
            prop_assert_eq!(again.score, found.score);
            prop_assert!(find_optimum(&batches, &ones, &start, &cluster, 0).unwrap().is_none());
        }
    }

    #[test]
    fn unequal_ranks_have_parts_of_their_own_size() {
        let cluster = Cluster::with_uneven_slots(3, 1, 4, 1).unwrap();
        let start = Contiguous::placement(4, &cluster).unwrap();
        let batch = [60, 30, 20, 10];
        let found = find_optimum(&[&batch], &[1], &start, &cluster, u64::MAX).unwrap().unwrap();
        // 5 slots hold 120 tokens on ranks of 2, 2 and 1 slots. {0, 2} {1, 3} {0} has 40 everywhere.
        assert_eq!(found.score, 40);
        assert_eq!(found.placement.slots().iter().flatten().count(), 5);
    }
}
