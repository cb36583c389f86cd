//! The best placement of a small case, proved by trying them all.
//!
//! In: batches, a cluster. Out: the placement whose exact peaks, added up over the batches, are least. Which rank has which
//! part makes no difference, so parts are dealt out in order; a branch is left as soon as what is dealt out proves that it
//! cannot win: for every set `X` of experts, whatever else comes, at most `n(X)` ranks will hold one of them, so the peak
//! is `ceil(load(X) / n(X))` at least. With all parts dealt out that bound, over all `X`, is the peak itself (the
//! max-flow theorem of [`evenkeel_solver`]).

use super::{PlaceError, Placement};
use crate::cluster::Cluster;

/// Most experts: all their subsets are looked at.
const MAX_EXPERTS: usize = 10;
/// Most parts that a rank can have.
const MAX_PARTS: usize = 1 << 12;

/// A proved optimum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Optimum {
    /// A placement that reaches it.
    pub placement: Placement,
    /// The sum of its peaks over all batches: no placement has less.
    pub sum_of_peaks: u64,
    /// Partial placements looked at.
    pub visited: u64,
}

/// Finds the best placement of a layer, if that takes no more than `limit` partial placements.
///
/// `start` is any placement; the better it is, the sooner others are ruled out. `None` where the case is too large (more
/// than 10 experts) or the limit was reached: nothing is proved then.
///
/// # Errors
/// When the solver refuses the loads.
pub fn optimum(
    batches: &[&[u64]],
    start: &Placement,
    cluster: &Cluster,
    limit: u64,
) -> Result<Option<Optimum>, PlaceError> {
    let experts = start.experts();
    if experts > MAX_EXPERTS || cluster.ranks() > usize::from(u8::MAX) {
        return Ok(None);
    }
    let mut scenarios = super::Scenarios::of(batches.to_vec());
    let first = scenarios.of_placement(start)?;
    // Heavy experts first: they decide most.
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by_key(|&e| std::cmp::Reverse(batches.iter().map(|batch| batch[e]).sum::<u64>()));
    let Some(mut search) = Search::new(batches, &order, cluster, first, limit) else { return Ok(None) };
    search.deal(0);
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
    Ok(Some(Optimum { placement, sum_of_peaks: search.best, visited: search.visited }))
}

/// Parts are sets of experts as bits, in the order of their weight: bit 0 is the heaviest.
struct Search {
    ranks: usize,
    /// For each rank, what it may hold, in the order in which parts are dealt out.
    parts: Vec<std::rc::Rc<Vec<u32>>>,
    /// The last part in the order of each rank that holds one of the set's experts, `[rank][X]`; -1 where none does.
    last: Vec<std::rc::Rc<Vec<i32>>>,
    /// `ceil(load(X) / n)` in every batch: `[batch][n][X]`; a large number for n = 0 and a load.
    peaks: Vec<Vec<u32>>,
    sets: usize,
    /// Ranks dealt out so far that hold one of the set's experts, `[X]`.
    touched: Vec<u8>,
    dealt: Vec<usize>,
    best: u64,
    found: Option<Vec<u32>>,
    visited: u64,
    limit: u64,
}

impl Search {
    fn new(batches: &[&[u64]], order: &[usize], cluster: &Cluster, best: u64, limit: u64) -> Option<Self> {
        let (experts, ranks, sets) = (order.len(), cluster.ranks(), 1usize << order.len());
        let mut kinds: Vec<(usize, std::rc::Rc<Vec<u32>>, std::rc::Rc<Vec<i32>>)> = Vec::new();
        let (mut parts, mut last) = (Vec::new(), Vec::new());
        for rank in 0..ranks {
            let size = cluster.usable(rank).min(experts);
            if !kinds.iter().any(|kind| kind.0 == size) {
                let all = parts_of(experts, size);
                let touches = |set: usize| all.iter().rposition(|&part| part as usize & set != 0);
                let last = (0..sets).map(|set| touches(set).map_or(-1, |at| at as i32)).collect();
                kinds.push((size, all.into(), std::rc::Rc::new(last)));
            }
            let kind = kinds.iter().find(|kind| kind.0 == size)?;
            parts.push(kind.1.clone());
            last.push(kind.2.clone());
        }
        if parts.iter().any(|parts| parts.len() > MAX_PARTS) {
            return None;
        }
        let mut peaks = Vec::with_capacity(batches.len());
        for batch in batches {
            if batch.iter().sum::<u64>() > u64::from(u32::MAX / 2) {
                return None;
            }
            let mut table = Vec::with_capacity((ranks + 1) * sets);
            for n in 0..=ranks {
                for set in 0..sets {
                    let load: u64 =
                        (0..experts).filter(|bit| set >> bit & 1 == 1).map(|bit| batch[order[bit]]).sum();
                    table.push(match (load, n) {
                        (0, _) => 0,
                        (_, 0) => u32::MAX / 2,
                        _ => load.div_ceil(n as u64) as u32,
                    });
                }
            }
            peaks.push(table);
        }
        Some(Self {
            ranks,
            parts,
            last,
            peaks,
            sets,
            touched: vec![0; sets],
            dealt: Vec::with_capacity(ranks),
            best,
            found: None,
            visited: 0,
            limit,
        })
    }

    /// Deals out the part of every further rank in turn.
    fn deal(&mut self, rank: usize) {
        self.visited += 1;
        if self.visited > self.limit {
            return;
        }
        if rank > 0 {
            let bound = self.bound(rank);
            if bound >= self.best {
                return;
            }
            if rank == self.ranks && self.everyone_is_housed() {
                self.best = bound;
                self.found = Some(self.dealt.iter().zip(&self.parts).map(|(&at, parts)| parts[at]).collect());
            }
        }
        if rank == self.ranks {
            return;
        }
        let parts = self.parts[rank].clone();
        // Equal ranks get their parts in order.
        let from = match rank.checked_sub(1) {
            Some(before) if self.parts[before].len() == parts.len() => self.dealt[before],
            _ => 0,
        };
        for at in from..parts.len() {
            let part = parts[at] as usize;
            for set in 0..self.sets {
                self.touched[set] += u8::from(set & part != 0);
            }
            self.dealt.push(at);
            self.deal(rank + 1);
            self.dealt.pop();
            for set in 0..self.sets {
                self.touched[set] -= u8::from(set & part != 0);
            }
        }
    }

    /// What the peaks add up to at least, with the parts of the ranks below `rank` dealt out.
    fn bound(&self, rank: usize) -> u64 {
        let mut reach = vec![0usize; self.sets];
        for (set, reach) in reach.iter_mut().enumerate() {
            let mut most = usize::from(self.touched[set]);
            for later in rank..self.ranks {
                let same = self.parts[later].len() == self.parts[rank - 1].len();
                let from = if same { self.dealt[rank - 1] as i32 } else { 0 };
                most += usize::from(self.last[later][set] >= from);
            }
            *reach = most * self.sets + set;
        }
        let mut sum = 0;
        for table in &self.peaks {
            sum += u64::from(reach.iter().map(|&at| table[at]).max().unwrap_or(0));
            if sum >= self.best {
                break;
            }
        }
        sum
    }

    fn everyone_is_housed(&self) -> bool {
        (0..self.sets.trailing_zeros()).all(|bit| self.touched[1 << bit] > 0)
    }
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
            let cluster = Cluster::new(4, 1, 4, 4).unwrap();
            let start = Contiguous::placement(4, &cluster).unwrap();
            let found = optimum(&batches, &start, &cluster, u64::MAX).unwrap().unwrap();
            let mut scenarios = super::super::Scenarios::of(batches.clone());
            prop_assert_eq!(scenarios.of_placement(&found.placement).unwrap(), found.sum_of_peaks);
            prop_assert_eq!(found.sum_of_peaks, try_all(&batches, 4, 4, 2));
            // What was found cannot be improved, and a proof cut short is none.
            let again = optimum(&batches, &found.placement, &cluster, u64::MAX).unwrap().unwrap();
            prop_assert_eq!(again.sum_of_peaks, found.sum_of_peaks);
            prop_assert!(optimum(&batches, &start, &cluster, 0).unwrap().is_none());
        }
    }

    #[test]
    fn unequal_ranks_have_parts_of_their_own_size() {
        let cluster = Cluster::uneven(3, 1, 4, 1).unwrap();
        let start = Contiguous::placement(4, &cluster).unwrap();
        let batch = [60, 30, 20, 10];
        let found = optimum(&[&batch], &start, &cluster, u64::MAX).unwrap().unwrap();
        // 5 slots for 120 tokens: {0, 3} {0, 2} {1} have 40 and 40 and 30, {0, 1} {0, 2} .. no better than ceil(mean).
        assert_eq!(found.sum_of_peaks, 45);
        assert_eq!(found.placement.slots().iter().flatten().count(), 5);
    }
}
