//! The best placement of a small case, proved by trying them all.
//!
//! In: batches and what a token of each counts, a cluster. Out: the placement whose exact peaks, weighted and added up over
//! the batches, are least.
//!
//! **What decides a peak.** For every set `X` of experts, `n(X)` ranks hold one of them at least, so the peak of a batch is
//! `ceil(load(X) / n(X))` at least; over all `X` that bound is the peak itself (the max-flow theorem of
//! [`evenkeel_solver`], read from the experts' side).
//!
//! **How all are tried.** First how many copies each expert has: `n(X)` is then at most the copies in `X`, which rules most
//! choices out at once; the others are taken in the order of that bound. Then what each rank holds. Which of several equal
//! ranks has which part makes no difference, so their parts are dealt out in ascending order; a branch is left as soon as
//! what is dealt out, with the copies that are still to come, proves that it cannot win.

mod table;

use super::{PlaceError, Placement};
use crate::cluster::Cluster;
use table::Table;

/// Most experts: all their subsets are looked at.
const MAX_EXPERTS: usize = 10;
/// Most parts that a rank can have.
const MAX_PARTS: usize = 1 << 12;

/// A proved optimum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Optimum {
    /// A placement that reaches it.
    pub placement: Placement,
    /// The weighted sum of its peaks over all batches: no placement has less.
    pub score: u64,
    /// Partial placements looked at.
    pub visited: u64,
}

/// Finds the best placement of a layer, if that takes no more than `limit` partial placements.
///
/// `weights`, one per batch, say what a token of its peak counts: 1 each for the sum of peaks, in proportion to 1 / total for
/// the mean imbalance.
///
/// `start` is any placement; the better it is, the sooner others are ruled out. `None` where the case is too large (more
/// than 10 experts, or tables beyond 4 million entries) or the limit was reached: nothing is proved then.
///
/// # Errors
/// When the solver refuses the loads.
pub fn optimum(
    batches: &[&[u64]],
    weights: &[u64],
    start: &Placement,
    cluster: &Cluster,
    limit: u64,
) -> Result<Option<Optimum>, PlaceError> {
    let experts = start.experts();
    let peaks = super::Scenarios::of(batches.to_vec()).peaks(start.hosts()?)?;
    let first = peaks
        .iter()
        .zip(weights)
        .fold(0u64, |sum, (&peak, &weight)| sum.saturating_add(peak.saturating_mul(weight)));
    // Heavy experts first: they decide most.
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by_key(|&e| std::cmp::Reverse(batches.iter().map(|batch| batch[e]).sum::<u64>()));
    let Some(mut search) = Search::new((batches, weights), &order, cluster, first, limit) else {
        return Ok(None);
    };
    search.run();
    if search.visited > limit {
        return Ok(None);
    }
    let placement = match &search.found {
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
    Ok(Some(Optimum { placement, score: search.best, visited: search.visited }))
}

/// Parts are sets of experts as bits, in the order of their weight: bit 0 is the heaviest.
struct Search {
    experts: usize,
    ranks: usize,
    /// For each number of usable slots that some ranks have: all parts of that size, in the order in which they are dealt.
    parts: Vec<Vec<u32>>,
    /// Which of these each rank has.
    kind: Vec<usize>,
    table: Table,
    /// Ranks dealt out so far that hold one of the set's experts, `[X]`.
    touched: Vec<u8>,
    /// Copies of the set's experts that are still to be dealt out, `[X]`.
    left: Vec<u16>,
    dealt: Vec<usize>,
    best: u64,
    found: Option<Vec<u32>>,
    visited: u64,
    limit: u64,
}

impl Search {
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
            let size = cluster.usable(rank).min(experts);
            let at = sizes.iter().position(|&known| known == size).unwrap_or(sizes.len());
            if at == sizes.len() {
                sizes.push(size);
                parts.push(parts_of(experts, size));
            }
            kind.push(at);
        }
        if parts.iter().any(|parts| parts.len() > MAX_PARTS) {
            return None;
        }
        let table = Table::new(batches, order, ranks)?;
        let sets = 1 << experts;
        Some(Self {
            experts,
            ranks,
            parts,
            kind,
            table,
            touched: vec![0; sets],
            left: vec![0; sets],
            dealt: Vec::with_capacity(ranks),
            best,
            found: None,
            visited: 0,
            limit,
        })
    }

    /// All numbers of copies, the most promising first; for each, all ways of dealing them out.
    fn run(&mut self) {
        let slots: usize = self.kind.iter().map(|&kind| self.size(kind)).sum();
        if slots < self.experts {
            return;
        }
        let mut choices = Vec::new();
        self.count(&mut Vec::new(), slots, &mut choices);
        choices.sort();
        for (bound, copies) in choices {
            if bound >= self.best || self.visited > self.limit {
                break;
            }
            for set in 0..self.left.len() {
                self.left[set] = total(&copies, set);
            }
            self.deal(0);
        }
    }

    /// Slots of the ranks of a kind.
    fn size(&self, kind: usize) -> usize {
        self.parts[kind].first().map_or(0, |part| part.count_ones() as usize)
    }

    /// All numbers of copies from 1 to the ranks that add up to the slots, with their bounds.
    fn count(&mut self, copies: &mut Vec<u16>, slots: usize, choices: &mut Vec<(u64, Vec<u16>)>) {
        let to_come = self.experts - copies.len();
        if to_come == 0 {
            self.visited += 1;
            let n = |set: usize| usize::from(total(copies, set));
            let bound = self.table.bound(1 << self.experts, n, self.best);
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
            self.count(copies, slots - own, choices);
            copies.pop();
        }
    }

    /// Deals out the part of every further rank in turn.
    fn deal(&mut self, rank: usize) {
        self.visited += 1;
        if self.visited > self.limit {
            return;
        }
        let (touched, left, ranks_left) = (&self.touched, &self.left, self.ranks - rank);
        let n = |set: usize| usize::from(touched[set]) + usize::from(left[set]).min(ranks_left);
        let bound = self.table.bound(self.left.len(), n, self.best);
        if bound >= self.best {
            return;
        }
        if rank == self.ranks {
            self.best = bound;
            self.found = Some((0..rank).map(|rank| self.parts[self.kind[rank]][self.dealt[rank]]).collect());
            return;
        }
        let kind = self.kind[rank];
        let last_of_its_kind = self.kind[rank..].iter().all(|&other| other == kind);
        // Equal ranks get their parts in order.
        let from = if rank > 0 && self.kind[rank - 1] == kind { self.dealt[rank - 1] } else { 0 };
        for at in from..self.parts[kind].len() {
            let part = self.parts[kind][at];
            if last_of_its_kind && self.left[1] > 0 && part & 1 == 0 {
                // No later part holds the heaviest expert, which has copies left.
                break;
            }
            if !self.fits(part, ranks_left) {
                continue;
            }
            self.take(part, true);
            self.dealt.push(at);
            self.deal(rank + 1);
            self.dealt.pop();
            self.take(part, false);
        }
    }

    /// Has every expert of the part a copy left, and can those that it leaves behind still go to different ranks?
    fn fits(&self, part: u32, ranks_left: usize) -> bool {
        (0..self.experts).all(|bit| {
            let left = usize::from(self.left[1 << bit]);
            if part >> bit & 1 == 1 { left > 0 } else { left < ranks_left }
        })
    }

    fn take(&mut self, part: u32, dealt: bool) {
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

/// Copies of the experts of a set.
fn total(copies: &[u16], set: usize) -> u16 {
    copies.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1).map(|(_, &own)| own).sum()
}

/// All sets of `size` of `experts`, those with the lowest experts first.
fn parts_of(experts: usize, size: usize) -> Vec<u32> {
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

    /// Every placement of distinct experts on each rank, without any cleverness.
    fn try_all(batches: &[&[u64]], experts: usize, ranks: usize, size: usize) -> u64 {
        let parts = parts_of(experts, size);
        let mut best = u64::MAX;
        for mut code in 0..parts.len().pow(ranks as u32) {
            let mut slots = Vec::new();
            for _ in 0..ranks {
                let part = parts[code % parts.len()];
                code /= parts.len();
                slots.extend((0..experts as u32).filter(|e| part >> e & 1 == 1).map(Some));
            }
            if let Ok(placement) = Placement::new(experts, ranks, slots) {
                let sum = super::super::Scenarios::of(batches.to_vec()).of_placement(&placement).unwrap();
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
            let found = optimum(&batches, &ones, &start, &cluster, u64::MAX).unwrap().unwrap();
            let mut scenarios = super::super::Scenarios::of(batches.clone());
            prop_assert_eq!(scenarios.of_placement(&found.placement).unwrap(), found.score);
            prop_assert_eq!(found.score, try_all(&batches, 4, 4, 2));
            // What was found cannot be improved, and a proof cut short is none.
            let again = optimum(&batches, &ones, &found.placement, &cluster, u64::MAX).unwrap().unwrap();
            prop_assert_eq!(again.score, found.score);
            prop_assert!(optimum(&batches, &ones, &start, &cluster, 0).unwrap().is_none());
        }
    }

    #[test]
    fn unequal_ranks_have_parts_of_their_own_size() {
        let cluster = Cluster::uneven(3, 1, 4, 1).unwrap();
        let start = Contiguous::placement(4, &cluster).unwrap();
        let batch = [60, 30, 20, 10];
        let found = optimum(&[&batch], &[1], &start, &cluster, u64::MAX).unwrap().unwrap();
        // 5 slots for 120 tokens on ranks of 2, 2 and 1: {0, 2} {1, 3} {0} has 40 everywhere.
        assert_eq!(found.score, 40);
        assert_eq!(found.placement.slots().iter().flatten().count(), 5);
    }
}
