//! Slots on ranks, and the item in each.
//!
//! In: slots per rank and the items that they hold. Out: the slots of every item, kept up to date while items
//! change slots. The searches of [`crate::IncrementalSplits`] and [`crate::copies`] read it.

use crate::{Hosts, SolverError};

/// Slots of all ranks, and the item in each.
#[derive(Debug, Clone)]
pub(crate) struct SlotTable {
    /// First slot of every rank, `[ranks + 1]`.
    pub(crate) starts: Vec<u32>,
    /// Rank of every slot, `[slots]`.
    pub(crate) rank_of: Vec<u32>,
    /// Item in every slot, `[slots]`. The number of items stands for an empty slot.
    pub(crate) item_in: Vec<u32>,
    /// Slots of every item, `[items + 1]`. The last list, of empty slots, stays empty.
    pub(crate) slots_of: Vec<Vec<u32>>,
    /// True if the item in a slot has other slots, `[slots]`. Tokens leave no other slot.
    pub(crate) is_shared: Vec<bool>,
}

/// Change of the items in the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotChange {
    /// The items of two slots change places.
    Swap(usize, usize),
    /// A slot receives another item. The number of items stands for none.
    Replace(usize, u32),
}

impl SlotTable {
    pub(crate) fn new(
        slots_per_rank: &[usize],
        items: usize,
        item_in: &[u32],
    ) -> Result<SlotTable, SolverError> {
        let ranks = slots_per_rank.len();
        if ranks == 0 || ranks > Hosts::MAX_RANKS {
            return Err(SolverError::RankCount { ranks });
        }
        let slots = slots_per_rank.iter().sum();
        if item_in.len() != slots {
            return Err(SolverError::Length { what: "slots", expected: slots, got: item_in.len() });
        }
        let item_in = item_in.iter().map(|&item| item.min(items as u32)).collect();
        let table = SlotTable::with_hosts(slots_per_rank, items, item_in);
        if let Some(item) = table.slots_of[..items].iter().position(Vec::is_empty) {
            return Err(SolverError::NoHost { item });
        }
        Ok(table)
    }

    /// Creates the table of items that are known to have hosts.
    pub(crate) fn with_hosts(slots_per_rank: &[usize], items: usize, item_in: Vec<u32>) -> SlotTable {
        let (mut starts, mut rank_of) = (vec![0u32], vec![]);
        for (rank, &slots) in slots_per_rank.iter().enumerate() {
            rank_of.resize(rank_of.len() + slots, rank as u32);
            starts.push(rank_of.len() as u32);
        }
        let mut slots_of = vec![vec![]; items + 1];
        for (slot, &item) in item_in.iter().enumerate() {
            if (item as usize) < items {
                slots_of[item as usize].push(slot as u32);
            }
        }
        let is_shared = item_in.iter().map(|&item| slots_of[item as usize].len() > 1).collect();
        SlotTable { starts, rank_of, item_in, slots_of, is_shared }
    }

    pub(crate) fn ranks(&self) -> usize {
        self.starts.len() - 1
    }

    pub(crate) fn row_len(&self) -> usize {
        self.rank_of.len() + self.ranks()
    }

    /// Gives the tokens of every item, item by item, to the rank of its slots with the lowest load.
    pub(crate) fn place_greedily(&self, batch: &[u32], row: &mut [u32]) -> Result<(), SolverError> {
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

    pub(crate) fn inverse(&self, change: SlotChange) -> SlotChange {
        match change {
            SlotChange::Swap(..) => change,
            SlotChange::Replace(slot, _) => SlotChange::Replace(slot, self.item_in[slot]),
        }
    }

    pub(crate) fn apply(&mut self, change: SlotChange) {
        match change {
            SlotChange::Swap(a, b) => {
                let (e, f) = (self.item_in[a], self.item_in[b]);
                self.put(a, f);
                self.put(b, e);
            }
            SlotChange::Replace(slot, item) => self.put(slot, item),
        }
    }

    pub(crate) fn put(&mut self, slot: usize, item: u32) {
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
            self.add_slot(slot, item);
        }
    }

    /// Empties a slot of an item, and with it all slots of the item but the first `kept`.
    pub(crate) fn empty_slot(&mut self, slot: usize, kept: usize) {
        let empty = self.slots_of.len() as u32 - 1;
        let before = std::mem::replace(&mut self.item_in[slot], empty);
        self.is_shared[slot] = false;
        let slots = &mut self.slots_of[before as usize];
        slots.truncate(kept);
        if let [last] = slots[..] {
            self.is_shared[last as usize] = false;
        }
    }

    /// Puts an item into an empty slot.
    pub(crate) fn fill_slot(&mut self, slot: usize, item: u32) {
        self.item_in[slot] = item;
        self.add_slot(slot, item);
    }

    fn add_slot(&mut self, slot: usize, item: u32) {
        let slots = &mut self.slots_of[item as usize];
        slots.push(slot as u32);
        if slots.len() > 1 {
            self.is_shared[slots[0] as usize] = true;
            self.is_shared[slot] = true;
        }
    }

    /// Moves the tokens of a row as the applied change with this inverse demands. Swapped items take their
    /// tokens along. A replaced item leaves its tokens to its other slot with the lowest load.
    pub(crate) fn move_tokens(&self, inverse: SlotChange, row: &mut [u32]) {
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
