//! Counts in, quotas out: the few passes that touch all items.
//!
//! In: one count per item. Out: at first the fixed load of each rank, and at the end quotas and rank loads in
//! the caller's numbering. Most items have one host. They are summed rank by rank through an index list, so
//! that the sum stays in a register. Their quotas are copied run by run.
//!
//! **The table.** Most batches have few items and few tokens. Their counts are first copied into a table of
//! fixed size, in the pass that adds them up. An index with as many bits as the table then needs no check,
//! and sums of 32 bits hold the known total. Other batches take the general path, with the same results.

use super::SplitFlow;
use super::count::{Count, Whole};
use crate::network::{FlowNetwork, ItemBlock, NarrowRows, SparseRows};
use crate::{Problem, RankSplit};

/// Number of entries of the table, the highest number of items that it holds.
pub(crate) const TABLE_ITEMS: usize = 512;

/// Number of counts that are copied at a time.
pub(crate) const BLOCK_ITEMS: usize = 8;

/// Counts of a batch with few items and few tokens.
#[derive(Debug, Clone)]
pub(crate) struct CountTable {
    counts: Box<[u32; TABLE_ITEMS + BLOCK_ITEMS]>,
}

impl Default for CountTable {
    fn default() -> CountTable {
        CountTable { counts: Box::new([0; TABLE_ITEMS + BLOCK_ITEMS]) }
    }
}

impl CountTable {
    /// Copies a batch into the table if it fits. It may have at most [`TABLE_ITEMS`] items and, with base
    /// loads, fewer than 2^31 - 1 tokens. The bound on the tokens costs no branch per item. Returns the
    /// total.
    pub(crate) fn load_batch<C: Count>(&mut self, problem: &Problem, loads: &[C]) -> Option<u64> {
        if loads.len() != problem.hosts().items() {
            return None;
        }
        let sum = C::copy_to_table(loads, self.counts[..TABLE_ITEMS].get_mut(..loads.len())?)?;
        let total = problem.base_sum()?.checked_add(u64::from(sum))?;
        // One token stays free, because levelling adds one to a sum of loads.
        (total < i32::MAX as u64).then_some(total)
    }

    /// Computes the fixed load of every rank: base loads, and the items that have no second host.
    pub(crate) fn fixed_loads(&self, problem: &Problem, rank_loads: &mut [u64]) {
        match &problem.hosts().flow_network().narrow {
            Some(NarrowRows::Bytes(rows)) => self.sum_rows(rows, problem.base_loads(), rank_loads),
            Some(NarrowRows::Words(rows)) => self.sum_rows(rows, problem.base_loads(), rank_loads),
            None => {}
        }
    }

    fn sum_rows<I: Copy + Default + Into<usize>>(
        &self,
        rows: &SparseRows<I>,
        base: &[u64],
        rank_loads: &mut [u64],
    ) {
        // The mask costs nothing if the index has no more bits.
        let of = |item: I| self.counts[item.into() % TABLE_ITEMS];
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

    /// Writes the quotas of items with one host. The quotas of the others are undefined.
    pub(crate) fn write_runs(&self, net: &FlowNetwork, quotas: &mut [u64]) {
        // Blocks exceed the ends of runs. Later blocks and the flow overwrite the quotas there.
        for block in &net.blocks {
            let from = self.counts[block.item as usize % TABLE_ITEMS..].first_chunk::<BLOCK_ITEMS>();
            let to = quotas[block.pair as usize..].first_chunk_mut::<BLOCK_ITEMS>();
            if let (Some(from), Some(to)) = (from, to) {
                *to = from.map(u64::from);
            }
        }
        for &ItemBlock { item, pair } in &net.ends {
            quotas[pair as usize] = u64::from(self.counts[item as usize % TABLE_ITEMS]);
        }
    }
}

/// Computes the loads as [`CountTable::fixed_loads`] does, for any batch.
pub(super) fn fixed_loads<C: Count>(problem: &Problem, loads: &[C], rank_loads: &mut [u64]) {
    let rows = problem.hosts().flow_network().single.iter();
    for ((rank, items), &base) in rank_loads.iter_mut().zip(rows).zip(problem.base_loads()) {
        *rank = items.iter().fold(base, |sum, &item| sum + loads[item as usize].to_u64());
    }
}

/// Writes the quotas as [`CountTable::write_runs`] does, for any batch.
pub(super) fn write_runs<C: Count>(net: &FlowNetwork, loads: &[C], quotas: &mut [u64]) {
    for run in &net.runs {
        let (item, pair, count) = (run.item as usize, run.pair as usize, run.count as usize);
        for (quota, load) in quotas[pair..pair + count].iter_mut().zip(&loads[item..item + count]) {
            *quota = load.to_u64();
        }
    }
}

/// Writes the quotas of all other items, and the rank loads, from the flow.
pub(super) fn write_flow<N: Whole>(net: &FlowNetwork, flow: &SplitFlow<N>, split: &mut RankSplit) {
    for (&pair, quota) in net.pair_of.iter().zip(&flow.quota) {
        split.quotas[pair as usize] = quota.to_u64();
    }
    for ((rank, &excess), &room) in split.rank_loads.iter_mut().zip(&flow.excess).zip(&flow.room) {
        *rank = (excess + room).to_u64();
    }
}
