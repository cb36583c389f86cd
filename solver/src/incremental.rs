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

use crate::{Hosts, SolverError};

/// Slots of all ranks, and the item in each.
#[derive(Debug, Clone)]
struct SlotTable {
    /// First slot of every rank, `[ranks + 1]`.
    starts: Vec<u32>,
    /// Rank of every slot, `[slots]`.
    rank_of: Vec<u32>,
    /// Item in every slot, `[slots]`. The number of items stands for an empty slot.
    item_in: Vec<u32>,
    /// Slots of every item, `[items + 1]`. The last list, of empty slots, stays empty.
    slots_of: Vec<Vec<u32>>,
    /// True if the item in a slot has other slots, `[slots]`. Tokens leave no other slot.
    is_shared: Vec<bool>,
}

/// Change of the items in the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotChange {
    /// The items of two slots change places.
    Swap(usize, usize),
    /// A slot receives another item. The number of items stands for none.
    Replace(usize, u32),
}

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

/// Memory of the search for residual paths.
#[derive(Debug, Clone, Default)]
struct ResidualPaths {
    queue: Vec<u32>,
    /// Number of the search that reached a rank last, `[ranks]`.
    reached: Vec<u32>,
    search: u32,
    /// Slot that gives and slot that takes on the way to a rank, `[ranks]`.
    via: Vec<(u32, u32)>,
    certificate: Vec<u32>,
}

impl IncrementalSplits {
    /// Creates the splits of batches, `[items]` each, over slots that hold the items `item_in`, `[slots]`.
    /// The number of items stands for an empty slot.
    ///
    /// # Errors
    /// Returns [`SolverError::RankCount`] unless there are 1 to [`Hosts::MAX_RANKS`] ranks. Returns
    /// [`SolverError::Length`] for a vector of the wrong length, and [`SolverError::NoHost`] for an item
    /// without a slot. Returns [`SolverError::Overflow`] if a batch has more than 2³² − 1 tokens.
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
            paths: ResidualPaths { reached: vec![0; ranks], via: vec![(0, 0); ranks], ..Default::default() },
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

impl SlotTable {
    fn new(slots_per_rank: &[usize], items: usize, item_in: &[u32]) -> Result<SlotTable, SolverError> {
        let ranks = slots_per_rank.len();
        if ranks == 0 || ranks > Hosts::MAX_RANKS {
            return Err(SolverError::RankCount { ranks });
        }
        let (mut starts, mut rank_of) = (vec![0u32], vec![]);
        for (rank, &slots) in slots_per_rank.iter().enumerate() {
            rank_of.resize(rank_of.len() + slots, rank as u32);
            starts.push(rank_of.len() as u32);
        }
        if item_in.len() != rank_of.len() {
            return Err(SolverError::Length { what: "slots", expected: rank_of.len(), got: item_in.len() });
        }
        let mut slots_of = vec![vec![]; items + 1];
        for (slot, &item) in item_in.iter().enumerate() {
            if (item as usize) < items {
                slots_of[item as usize].push(slot as u32);
            }
        }
        if let Some(item) = slots_of[..items].iter().position(Vec::is_empty) {
            return Err(SolverError::NoHost { item });
        }
        let item_in: Vec<u32> = item_in.iter().map(|&item| item.min(items as u32)).collect();
        let is_shared = item_in.iter().map(|&item| slots_of[item as usize].len() > 1).collect();
        Ok(SlotTable { starts, rank_of, item_in, slots_of, is_shared })
    }

    fn ranks(&self) -> usize {
        self.starts.len() - 1
    }

    fn row_len(&self) -> usize {
        self.rank_of.len() + self.ranks()
    }

    /// Gives the tokens of every item, item by item, to the rank of its slots with the lowest load.
    fn place_greedily(&self, batch: &[u32], row: &mut [u32]) -> Result<(), SolverError> {
        let items = self.slots_of.len() - 1;
        if batch.len() != items {
            return Err(SolverError::Length { what: "loads", expected: items, got: batch.len() });
        }
        batch.iter().try_fold(0u32, |sum, &load| sum.checked_add(load)).ok_or(SolverError::Overflow)?;
        row.fill(0);
        let (tokens, loads) = row.split_at_mut(self.rank_of.len());
        for (slots, &load) in self.slots_of.iter().zip(batch) {
            let least = slots.iter().min_by_key(|&&slot| loads[self.rank_of[slot as usize] as usize]);
            if let Some(&slot) = least {
                tokens[slot as usize] = load;
                loads[self.rank_of[slot as usize] as usize] += load;
            }
        }
        Ok(())
    }

    fn inverse(&self, change: SlotChange) -> SlotChange {
        match change {
            SlotChange::Swap(..) => change,
            SlotChange::Replace(slot, _) => SlotChange::Replace(slot, self.item_in[slot]),
        }
    }

    fn apply(&mut self, change: SlotChange) {
        match change {
            SlotChange::Swap(a, b) => {
                let (e, f) = (self.item_in[a], self.item_in[b]);
                self.put(a, f);
                self.put(b, e);
            }
            SlotChange::Replace(slot, item) => self.put(slot, item),
        }
    }

    fn put(&mut self, slot: usize, item: u32) {
        let empty = self.slots_of.len() as u32 - 1;
        let before = std::mem::replace(&mut self.item_in[slot], item.min(empty));
        let slots = &mut self.slots_of[before as usize];
        if let Some(at) = slots.iter().position(|&own| own as usize == slot) {
            slots.swap_remove(at);
        }
        if let [last] = slots[..] {
            self.is_shared[last as usize] = false;
        }
        self.is_shared[slot] = false;
        if item < empty {
            let slots = &mut self.slots_of[item as usize];
            slots.push(slot as u32);
            if slots.len() > 1 {
                self.is_shared[slots[0] as usize] = true;
                self.is_shared[slot] = true;
            }
        }
    }

    /// Moves the tokens of a row as the applied change with this inverse demands. Swapped items take their
    /// tokens along. A replaced item leaves its tokens to its other slot with the lowest load.
    fn move_tokens(&self, inverse: SlotChange, row: &mut [u32]) {
        let (tokens, loads) = row.split_at_mut(self.rank_of.len());
        let rank_of = |slot: usize| self.rank_of[slot] as usize;
        match inverse {
            SlotChange::Swap(a, b) => {
                tokens.swap(a, b);
                if rank_of(a) != rank_of(b) {
                    loads[rank_of(a)] += tokens[a];
                    loads[rank_of(a)] -= tokens[b];
                    loads[rank_of(b)] += tokens[b];
                    loads[rank_of(b)] -= tokens[a];
                }
            }
            SlotChange::Replace(slot, item) => {
                let left = std::mem::take(&mut tokens[slot]);
                loads[rank_of(slot)] -= left;
                let others = self.slots_of[item as usize].iter();
                if let Some(&other) = others.min_by_key(|&&other| loads[rank_of(other as usize)]) {
                    tokens[other as usize] += left;
                    loads[rank_of(other as usize)] += left;
                }
            }
        }
    }
}

impl ResidualPaths {
    /// Lowers the highest load to the lowest peak that is at least `at_least`, and returns it. If the peak is
    /// higher than `at_least`, the certificate holds the ranks that prove it.
    fn lower_peak(&mut self, table: &SlotTable, tokens: &mut [u32], loads: &mut [u32], at_least: u32) -> u32 {
        self.certificate.clear();
        let mut target = at_least;
        for rank in 0..loads.len() {
            while loads[rank] > target {
                if let Some(end) = self.find_path(table, (tokens, loads), rank, target) {
                    self.push(table, (tokens, loads), (rank, end), target);
                } else {
                    // The items on the reached ranks have no other hosts.
                    let sum: u64 = self.queue.iter().map(|&rank| u64::from(loads[rank as usize])).sum();
                    target = sum.div_ceil(self.queue.len() as u64) as u32;
                    std::mem::swap(&mut self.certificate, &mut self.queue);
                }
            }
        }
        self.certificate.sort_unstable();
        target
    }

    /// Returns the nearest rank below the target that tokens of a rank can reach. If there is none, `queue`
    /// holds all ranks that they can reach.
    fn find_path(
        &mut self,
        table: &SlotTable,
        (tokens, loads): (&[u32], &[u32]),
        from: usize,
        target: u32,
    ) -> Option<usize> {
        self.search = self.search.wrapping_add(1);
        if self.search == 0 {
            self.reached.fill(0);
            self.search = 1;
        }
        self.queue.clear();
        self.queue.push(from as u32);
        self.reached[from] = self.search;
        let mut next = 0;
        while let Some(&rank) = self.queue.get(next) {
            next += 1;
            let slots = table.starts[rank as usize]..table.starts[rank as usize + 1];
            let leave = |slot: &u32| table.is_shared[*slot as usize] && tokens[*slot as usize] > 0;
            for slot in slots.filter(leave) {
                for &other in &table.slots_of[table.item_in[slot as usize] as usize] {
                    let to = table.rank_of[other as usize] as usize;
                    if self.reached[to] == self.search {
                        continue;
                    }
                    self.reached[to] = self.search;
                    self.via[to] = (slot, other);
                    if loads[to] < target {
                        return Some(to);
                    }
                    self.queue.push(to as u32);
                }
            }
        }
        None
    }

    /// Sends as many tokens along the path found as the target demands and the path allows.
    fn push(
        &self,
        table: &SlotTable,
        (tokens, loads): (&mut [u32], &mut [u32]),
        (from, end): (usize, usize),
        target: u32,
    ) {
        let steps = |mut rank: usize| {
            std::iter::from_fn(move || {
                (rank != from).then(|| {
                    let (slot, other) = self.via[rank];
                    rank = table.rank_of[slot as usize] as usize;
                    (slot as usize, other as usize)
                })
            })
        };
        let wanted = (loads[from] - target).min(target - loads[end]);
        let sent = steps(end).fold(wanted, |sent, (slot, _)| sent.min(tokens[slot]));
        for (slot, other) in steps(end) {
            tokens[slot] -= sent;
            tokens[other] += sent;
        }
        loads[from] -= sent;
        loads[end] += sent;
    }
}
