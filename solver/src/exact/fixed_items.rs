//! Counts in, quotas out: everything that touches all items, in the few passes that must.
//!
//! In: one count per item. Out: per rank the load that leaves no choice; and at the end, quotas and rank loads
//! in the caller's numbering. Items with one host are most of them: they are summed rank by rank through an
//! index list, so that the sum stays in a register, and their quotas are copied run by run.
//!
//! **The table.** Most batches are of few items and few tokens. Their counts are first copied into a table of fixed
//! size, in the pass that adds them up: an index of as many bits as the table has then needs no check, and sums of 32
//! bits hold what the total is known to. Other batches take the general way; the answers are the same.

use super::Flow;
use super::count::{Count, Whole};
use crate::net::{Block, Net, Rows, Short};
use crate::{Problem, Split};

/// Entries of the table: the most items that it holds.
pub(crate) const TABLE: usize = 512;

/// Counts that are copied at a time.
pub(crate) const BLOCK: usize = 8;

/// The counts of a batch, if they are few and small.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    counts: Box<[u32; TABLE + BLOCK]>,
}

impl Default for Table {
    fn default() -> Table {
        Table { counts: Box::new([0; TABLE + BLOCK]) }
    }
}

impl Table {
    /// Takes a batch in, if it has at most [`TABLE`] items and, with base loads, fewer than 2^31 - 1 tokens by a bound that
    /// costs no branch per item. Returns the total.
    pub(crate) fn take_in<C: Count>(&mut self, problem: &Problem, loads: &[C]) -> Option<u64> {
        if loads.len() != problem.hosts().items() {
            return None;
        }
        let sum = C::tabulate(loads, self.counts[..TABLE].get_mut(..loads.len())?)?;
        let total = problem.base_sum()?.checked_add(u64::from(sum))?;
        // One token of room: levelling out adds one to a sum of loads.
        (total < i32::MAX as u64).then_some(total)
    }

    /// The load of every rank that leaves no choice: base loads, and the items that have no second host.
    pub(crate) fn fixed_loads(&self, problem: &Problem, rank_loads: &mut [u64]) {
        match &problem.hosts().net().short {
            Some(Short::Bytes(rows)) => self.sum_rows(rows, problem.base(), rank_loads),
            Some(Short::Words(rows)) => self.sum_rows(rows, problem.base(), rank_loads),
            None => {}
        }
    }

    fn sum_rows<I: Copy + Default + Into<usize>>(
        &self,
        rows: &Rows<I>,
        base: &[u64],
        rank_loads: &mut [u64],
    ) {
        // The mask costs nothing where the index has no more bits.
        let of = |item: I| self.counts[item.into() % TABLE];
        for ((rank, items), &base) in rank_loads.iter_mut().zip(rows.iter()).zip(base) {
            let (fours, rest) = items.as_chunks::<4>();
            let mut sums = [0u32; 4];
            for four in fours {
                for (sum, &item) in sums.iter_mut().zip(four) {
                    *sum += of(item);
                }
            }
            let rest = rest.iter().fold(0, |sum, &item| sum + of(item));
            *rank = base + u64::from(sums.iter().sum::<u32>() + rest);
        }
    }

    /// The quotas of items with one host, and anything at all for the others.
    pub(crate) fn write_runs(&self, net: &Net, quotas: &mut [u64]) {
        // Over the ends of runs: what lies there is written later, by the next blocks and the flow.
        for block in &net.blocks {
            let from = self.counts[block.item as usize % TABLE..].first_chunk::<BLOCK>();
            let to = quotas[block.pair as usize..].first_chunk_mut::<BLOCK>();
            if let (Some(from), Some(to)) = (from, to) {
                *to = from.map(u64::from);
            }
        }
        for &Block { item, pair } in &net.ends {
            quotas[pair as usize] = u64::from(self.counts[item as usize % TABLE]);
        }
    }
}

/// As [`Table::fixed_loads`], for any batch.
pub(super) fn fixed_loads<C: Count>(problem: &Problem, loads: &[C], rank_loads: &mut [u64]) {
    let rows = problem.hosts().net().single.iter();
    for ((rank, items), &base) in rank_loads.iter_mut().zip(rows).zip(problem.base()) {
        *rank = items.iter().fold(base, |sum, &item| sum + loads[item as usize].to_u64());
    }
}

/// As [`Table::write_runs`], for any batch.
pub(super) fn write_runs<C: Count>(net: &Net, loads: &[C], quotas: &mut [u64]) {
    for run in &net.runs {
        let (item, pair, count) = (run.item as usize, run.pair as usize, run.count as usize);
        for (quota, load) in quotas[pair..pair + count].iter_mut().zip(&loads[item..item + count]) {
            *quota = load.to_u64();
        }
    }
}

/// The quotas of all other items, from the flow; rank loads likewise.
pub(super) fn write<N: Whole>(net: &Net, flow: &Flow<N>, split: &mut Split) {
    for (&pair, quota) in net.pair_of.iter().zip(&flow.quota) {
        split.quotas[pair as usize] = quota.to_u64();
    }
    for ((rank, &excess), &room) in split.rank_loads.iter_mut().zip(&flow.excess).zip(&flow.room) {
        *rank = (excess + room).to_u64();
    }
}
