//! Splits of many batches that stay optimal while items change slots.
//!
//! In: *slots* on ranks with an item in each, batches of loads, and one change at a time. Out: the lowest
//! peak of every batch after the change, with its certificate. The change is then kept or taken back.
//!
//! **The method.** The quotas of the present slots are a flow in the network of items and ranks. A change of
//! two slots moves the tokens of at most two items, so the flow is nearly optimal afterwards. A caller that
//! knows a lower bound of the peak passes it. Ranks above the bound send tokens along residual paths to ranks
//! below it. If a rank has no such path, the ranks that it reaches hold only items that cannot leave them.
//! Their load proves a higher bound (max-flow min-cut), with which the repair goes on. The last of these sets
//! is the certificate. All numbers are integers. The peaks are a pure function of slots and loads.
//! Certificates also depend on the changes before, because several sets may prove the same peak.

use crate::SolverError;
use crate::residual_paths::ResidualPaths;
use crate::slot_table::{SlotChange, SlotTable};

/// Lowest peak of a batch, and its proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProvedPeak<'a> {
    /// Load of the busiest rank.
    pub load: u32,
    /// Ranks, ascending, whose items have no other hosts and need this peak. Empty if the bound of the caller
    /// needs no proof.
    pub certificate: &'a [u32],
}

/// Split of every batch over slots whose items change.
///
/// ```
/// use evenkeel_solver::{IncrementalSplits, SlotChange};
///
/// // Two ranks with two slots each hold three items. Item 0 has a slot on both ranks.
/// let batches: [&[u32]; 1] = [&[10, 30, 2]];
/// let mut splits = IncrementalSplits::new(&[2, 2], 3, &[0, 1, 0, 2], batches)?;
/// // Item 1 lives on rank 0 alone.
/// let peak = splits.peak(0, 21);
/// assert_eq!((peak.load, peak.certificate), (30, &[0][..]));
/// // Its second replica takes the place of item 0's.
/// splits.change(SlotChange::Replace(2, 1))?;
/// assert_eq!(splits.peak(0, 21).load, 21);
/// splits.keep();
/// # Ok::<(), evenkeel_solver::SolverError>(())
/// ```
#[derive(Debug, Clone)]
pub struct IncrementalSplits {
    table: SlotTable,
    /// Tokens of every slot, then loads of every rank: `[batches][2][slots + ranks]`. One of the two rows is
    /// that of the slots that were kept last, and the other that of the change on trial.
    rows: Vec<u32>,
    /// True if the second row of a batch is the kept one, `[batches]`.
    kept: Vec<bool>,
    /// True if the row on trial is up to date, `[batches]`.
    split: Vec<bool>,
    /// Inverse of the change on trial.
    inverse: Option<SlotChange>,
    paths: ResidualPaths,
}

impl IncrementalSplits {
    /// Creates the splits of batches, `[items]` each, over slots that hold the items `item_in`, `[slots]`.
    /// The number of items stands for an empty slot.
    ///
    /// # Errors
    /// Returns [`SolverError::RankCount`] unless there are 1 to [`MAX_RANKS`](crate::Hosts::MAX_RANKS) ranks.
    /// Returns [`SolverError::Length`] for a vector of the wrong length, and [`SolverError::NoHost`] for an
    /// item without a slot. Returns [`SolverError::Overflow`] if a batch has more than 2³² − 1 tokens.
    pub fn new<'a>(
        slots_per_rank: &[usize],
        items: usize,
        item_in: &[u32],
        batches: impl IntoIterator<Item = &'a [u32]>,
    ) -> Result<IncrementalSplits, SolverError> {
        let table = SlotTable::new(slots_per_rank, items, item_in)?;
        let mut rows = vec![];
        let mut tokens = vec![0; table.row_len()];
        for loads in batches {
            table.place_greedily(loads, &mut tokens)?;
            rows.extend_from_slice(&tokens);
            rows.extend_from_slice(&tokens);
        }
        let batches = rows.len() / (2 * table.row_len());
        let ranks = table.ranks();
        Ok(IncrementalSplits {
            table,
            rows,
            kept: vec![false; batches],
            split: vec![false; batches],
            inverse: None,
            paths: ResidualPaths::new(ranks),
        })
    }

    /// Puts a change on trial. A previous one that was not kept is taken back.
    ///
    /// # Errors
    /// Returns [`SolverError::NoHost`] if an item would lose its last slot. No change is then on trial.
    ///
    /// # Panics
    /// Panics if a slot does not exist, as a slice does.
    pub fn change(&mut self, change: SlotChange) -> Result<(), SolverError> {
        self.take_back();
        let inverse = self.table.inverse(change);
        if let (SlotChange::Replace(_, item), SlotChange::Replace(_, before)) = (change, inverse)
            && item != before
            && self.table.slots_of[before as usize].len() == 1
        {
            return Err(SolverError::NoHost { item: before as usize });
        }
        self.table.apply(change);
        self.inverse = Some(inverse);
        Ok(())
    }

    /// Takes the change on trial back.
    pub fn take_back(&mut self) {
        self.split.fill(false);
        if let Some(inverse) = self.inverse.take() {
            self.table.apply(inverse);
        }
    }

    /// Keeps the change on trial, and the splits of all batches whose peak was computed since.
    pub fn keep(&mut self) {
        for batch in 0..self.kept.len() {
            if !self.split[batch] {
                self.adapt_row(batch);
            }
            self.kept[batch] = !self.kept[batch];
        }
        self.inverse = None;
        self.split.fill(false);
    }

    /// Returns the lowest peak of a batch on the present slots. A peak below `at_least` counts as `at_least`.
    ///
    /// # Panics
    /// Panics if there is no such batch, as a slice does.
    pub fn peak(&mut self, batch: usize, at_least: u32) -> ProvedPeak<'_> {
        self.adapt_row(batch);
        let range = self.trial_row(batch);
        let (tokens, loads) = self.rows[range].split_at_mut(self.table.rank_of.len());
        let load = self.paths.lower_peak(&self.table, tokens, loads, at_least);
        ProvedPeak { load, certificate: &self.paths.certificate }
    }

    /// Writes the kept tokens of a batch, changed as the change on trial demands, into its row on trial.
    fn adapt_row(&mut self, batch: usize) {
        let (kept, trial) = (self.kept_row(batch), self.trial_row(batch));
        let at = trial.start;
        self.rows.copy_within(kept, at);
        self.split[batch] = true;
        if let Some(inverse) = self.inverse {
            self.table.move_tokens(inverse, &mut self.rows[trial]);
        }
    }

    fn kept_row(&self, batch: usize) -> std::ops::Range<usize> {
        let row = self.table.row_len();
        let start = (2 * batch + usize::from(self.kept[batch])) * row;
        start..start + row
    }

    fn trial_row(&self, batch: usize) -> std::ops::Range<usize> {
        let row = self.table.row_len();
        let start = (2 * batch + usize::from(!self.kept[batch])) * row;
        start..start + row
    }
}
