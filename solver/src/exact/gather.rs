//! Counts in, quotas out: everything that touches all items, in the two passes that must.
//!
//! In: one count per item. Out: per rank the load that leaves no choice; and at the end, quotas and rank loads
//! in the caller's numbering. Items with one host are most of them: they are summed rank by rank through an
//! index list, so that the sum stays in a register, and their quotas are copied run by run.

use super::Flow;
use super::count::{Count, Whole};
use crate::{Problem, Split};

/// Base loads plus the items that have no second host, into the split's rank loads.
pub(super) fn fixed_loads<C: Count>(problem: &Problem, loads: &[C], split: &mut Split) {
    let of = |item: u32| loads[item as usize].to_u64();
    let rows = problem.hosts().net().single.iter();
    for ((rank, items), &base) in split.rank_loads.iter_mut().zip(rows).zip(problem.base()) {
        let (fours, rest) = items.as_chunks::<4>();
        let sum = fours.iter().fold(base, |sum, &[a, b, c, d]| sum + (of(a) + of(b)) + (of(c) + of(d)));
        *rank = rest.iter().fold(sum, |sum, &item| sum + of(item));
    }
}

/// The quotas of items with one host, and all others from the flow; rank loads likewise.
pub(super) fn write<C: Count, N: Whole>(problem: &Problem, loads: &[C], flow: &Flow<N>, split: &mut Split) {
    let net = problem.hosts().net();
    for run in &net.runs {
        let (item, pair, count) = (run.item as usize, run.pair as usize, run.count as usize);
        for (quota, load) in split.quotas[pair..pair + count].iter_mut().zip(&loads[item..item + count]) {
            *quota = load.to_u64();
        }
    }
    for (&pair, quota) in net.pair_of.iter().zip(&flow.quota) {
        split.quotas[pair as usize] = quota.to_u64();
    }
    for ((rank, &excess), &room) in split.rank_loads.iter_mut().zip(&flow.excess).zip(&flow.room) {
        *rank = (excess + room).to_u64();
    }
}
