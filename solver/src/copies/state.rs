//! Slots, tokens and copies while a plan is built.
//!
//! In: the static slots of all items, the content of the dynamic slots, one batch of loads and the highest
//! load that a rank may carry. Out: copies that were added and taken back, and the tokens in every slot.

use crate::residual_paths::ResidualPaths;
use crate::slot_table::SlotTable;

/// Origin of a slot that holds no copy of this batch.
pub(super) const NO_ORIGIN: u32 = u32::MAX;

/// Tokens in all slots, for one target of the rank loads.
#[derive(Debug, Clone)]
pub(super) struct CopyState {
    pub(super) table: SlotTable,
    /// Tokens of every slot, `[slots]`.
    pub(super) tokens: Vec<u32>,
    /// Load of every rank, `[ranks]`.
    pub(super) loads: Vec<u32>,
    /// First dynamic slot of every rank, `[ranks]`. The dynamic slots follow the static ones.
    pub(super) first_dynamic: Vec<u32>,
    /// Number of static slots of every item, `[items]`. They come first among its slots.
    static_slots: Vec<u32>,
    /// Item that every slot held before the batch, `[slots]`. The number of items stands for none.
    pub(super) before: Vec<u32>,
    /// Static slot from which the copy in a slot was taken, `[slots]`.
    pub(super) origin: Vec<u32>,
    /// Highest load of a rank.
    pub(super) target: u32,
    /// Number of copies.
    pub(super) copies: u32,
    /// Highest number of copies.
    pub(super) limits: CopyLimits,
    pub(super) paths: ResidualPaths,
    /// True if an item has several hosts before any copy is made.
    pub(super) shares_items: bool,
    /// True if a rank was served that has no item as large as its excess.
    pub(super) has_small_items: bool,
    /// Copies received and sent by every rank, `[ranks]`.
    pub(super) received: Vec<u32>,
    pub(super) sent: Vec<u32>,
    /// Ranks that can take a copy and tokens: slack in the upper half, rank in the lower half, ascending.
    pub(super) receivers: Vec<u64>,
    /// Slack under which a rank is listed in `receivers`, 0 if it is not, `[ranks]`.
    listed: Vec<u32>,
    /// Changes since the last call of [`mark`](Self::mark), for taking them back.
    log: Vec<LoggedChange>,
    pub(super) logging: bool,
}

/// Highest numbers of copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CopyLimits {
    /// Copies in all.
    pub(super) total: u32,
    /// Copies that one rank may receive.
    pub(super) received: u32,
    /// Copies that one rank may send.
    pub(super) sent: u32,
}

impl CopyLimits {
    pub(super) const NONE: CopyLimits = CopyLimits { total: u32::MAX, received: u32::MAX, sent: u32::MAX };
}

#[derive(Debug, Clone, Copy)]
enum LoggedChange {
    /// A slot received a copy from another slot.
    Added { slot: u32 },
    /// A slot lost its copy, and its tokens went back to the origin.
    Removed { slot: u32, item: u32, origin: u32, tokens: u32 },
    /// Tokens moved from a slot to another slot of the same item.
    Moved { from: u32, to: u32, tokens: u32 },
}

impl CopyState {
    /// Creates the state of a table whose slots from `first_dynamic` on may receive copies.
    pub(super) fn new(table: SlotTable, first_dynamic: Vec<u32>) -> CopyState {
        let (slots, ranks) = (table.rank_of.len(), table.ranks());
        CopyState {
            tokens: vec![0; slots],
            loads: vec![0; ranks],
            first_dynamic,
            static_slots: table.slots_of[..table.slots_of.len() - 1].iter().map(|s| s.len() as u32).collect(),
            before: table.item_in.clone(),
            origin: vec![NO_ORIGIN; slots],
            target: 0,
            copies: 0,
            limits: CopyLimits::NONE,
            paths: ResidualPaths::new(ranks),
            shares_items: false,
            has_small_items: false,
            received: vec![0; ranks],
            sent: vec![0; ranks],
            receivers: Vec::with_capacity(ranks),
            listed: vec![0; ranks],
            log: vec![],
            logging: false,
            table,
        }
    }

    /// Puts items into the dynamic slots, in the order of ranks, and forgets all copies.
    pub(super) fn set_contents(&mut self, present: &[u32]) {
        let mut next = present.iter();
        for rank in 0..self.loads.len() {
            for slot in self.dynamic_slots(rank) {
                if let Some(&item) = next.next() {
                    self.before[slot] = item;
                }
            }
        }
        self.clear_copies();
    }

    /// Takes all copies back, without regard to tokens.
    pub(super) fn clear_copies(&mut self) {
        self.empty_slots();
        for rank in 0..self.loads.len() {
            for slot in self.dynamic_slots(rank) {
                self.fill_slot(slot, self.before[slot], NO_ORIGIN);
            }
        }
    }

    /// Puts items and origins into all slots, without regard to tokens.
    pub(super) fn set_copies(&mut self, items: &[u32], origins: &[u32]) {
        self.empty_slots();
        for rank in 0..self.loads.len() {
            for slot in self.dynamic_slots(rank) {
                self.fill_slot(slot, items[slot], origins[slot]);
            }
        }
    }

    /// Empties all dynamic slots. Slots are filled in ascending order afterwards, so that the order of an
    /// item's slots does not depend on the batches before.
    fn empty_slots(&mut self) {
        let none = self.static_slots.len() as u32;
        for rank in 0..self.loads.len() {
            for slot in self.dynamic_slots(rank) {
                let item = self.table.item_in[slot];
                if item < none {
                    self.table.empty_slot(slot, self.static_slots[item as usize] as usize);
                }
                self.origin[slot] = NO_ORIGIN;
            }
        }
        self.copies = 0;
        self.received.fill(0);
        self.sent.fill(0);
        self.log.clear();
        self.logging = false;
    }

    fn fill_slot(&mut self, slot: usize, item: u32, origin: u32) {
        if item < self.static_slots.len() as u32 {
            self.table.fill_slot(slot, item);
        }
        if origin != NO_ORIGIN {
            self.count_copy(slot, origin);
        }
    }

    fn count_copy(&mut self, slot: usize, origin: u32) {
        let (from, to) = (self.rank_of(origin as usize), self.rank_of(slot));
        self.origin[slot] = origin;
        self.copies += 1;
        self.received[to] += 1;
        self.sent[from] += 1;
    }

    /// Returns the static slot from which the item of a slot is copied. Only static slots send, because a
    /// dynamic slot may receive another item in the same batch.
    pub(super) fn static_slot(&self, slot: usize) -> usize {
        let rank = self.rank_of(slot);
        if slot < self.first_dynamic[rank] as usize {
            return slot;
        }
        self.table.slots_of[self.table.item_in[slot] as usize][0] as usize
    }

    /// Sets the target, and lists the ranks that can take tokens.
    pub(super) fn set_target(&mut self, target: u32, limits: CopyLimits) {
        self.target = target;
        self.limits = limits;
        self.list_receivers();
    }

    pub(super) fn list_receivers(&mut self) {
        self.receivers.clear();
        for rank in 0..self.loads.len() {
            let slack = self.receivable(rank);
            self.listed[rank] = slack;
            if slack > 0 {
                self.receivers.push(receiver_key(slack, rank));
            }
        }
        self.receivers.sort_unstable();
    }

    pub(super) fn dynamic_slots(&self, rank: usize) -> std::ops::Range<usize> {
        self.first_dynamic[rank] as usize..self.table.starts[rank + 1] as usize
    }

    pub(super) fn slots(&self, rank: usize) -> std::ops::Range<usize> {
        self.table.starts[rank] as usize..self.table.starts[rank + 1] as usize
    }

    pub(super) fn rank_of(&self, slot: usize) -> usize {
        self.table.rank_of[slot] as usize
    }

    /// Returns true if no token needs the content of a dynamic slot, and no copy of this batch is in it.
    fn is_open(&self, slot: usize) -> bool {
        self.origin[slot] == NO_ORIGIN && self.tokens[slot] == 0
    }

    /// Returns a slot of a rank that can take a copy: an empty one, or else one without tokens.
    pub(super) fn find_open_slot(&self, rank: usize) -> Option<usize> {
        let none = self.table.slots_of.len() as u32 - 1;
        let mut open = None;
        for slot in self.dynamic_slots(rank).filter(|&slot| self.is_open(slot)) {
            if self.table.item_in[slot] == none {
                return Some(slot);
            }
            open = open.or(Some(slot));
        }
        open
    }

    /// Returns the tokens that a copy on this rank could take.
    fn receivable(&self, rank: usize) -> u32 {
        let slack = self.target.saturating_sub(self.loads[rank]);
        if slack == 0 || !self.may_receive(rank) || self.find_open_slot(rank).is_none() {
            return 0;
        }
        slack
    }

    pub(super) fn update_receiver(&mut self, rank: usize) {
        let (old, new) = (self.listed[rank], self.receivable(rank));
        if old == new {
            return;
        }
        let (leaves, enters) = (receiver_key(old, rank), receiver_key(new, rank));
        let place = |key: u64| self.receivers.partition_point(|&other| other < key);
        match (old > 0, new > 0) {
            (true, true) => {
                let mut at = place(leaves);
                // The other entries between the two places move by one.
                while at > 0 && self.receivers[at - 1] > enters {
                    self.receivers[at] = self.receivers[at - 1];
                    at -= 1;
                }
                while self.receivers.get(at + 1).is_some_and(|&next| next < enters) {
                    self.receivers[at] = self.receivers[at + 1];
                    at += 1;
                }
                self.receivers[at] = enters;
            }
            (true, false) => {
                let from = place(leaves);
                self.receivers.remove(from);
            }
            (false, _) => {
                let to = place(enters);
                self.receivers.insert(to, enters);
            }
        }
        self.listed[rank] = new;
    }

    /// Returns true if a rank has a slot with the item, now or before the batch. An item that a copy
    /// displaced comes back when that copy is removed, so another copy of it would be a second one.
    pub(super) fn hosts(&self, rank: usize, item: u32) -> bool {
        self.table.slots_of[item as usize].iter().any(|&slot| self.rank_of(slot as usize) == rank)
            || self.shares_items && self.dynamic_slots(rank).any(|slot| self.before[slot] == item)
    }

    /// Returns true if another copy may leave a rank.
    pub(super) fn may_send(&self, rank: usize) -> bool {
        self.copies < self.limits.total && self.sent[rank] < self.limits.sent
    }

    /// Returns true if this number of further copies may be made.
    pub(super) fn may_copy(&self, more: usize) -> bool {
        self.limits.total.saturating_sub(self.copies) as usize >= more
    }

    /// Returns true if a rank may receive another copy.
    pub(super) fn may_receive(&self, rank: usize) -> bool {
        self.received[rank] < self.limits.received
    }

    /// Copies the item of a slot to a rank, with some of its tokens. Returns false if the rank has no
    /// open slot or hosts the item.
    pub(super) fn add_copy(&mut self, from: usize, to: usize, tokens: u32) -> bool {
        let Some(slot) = self.find_open_slot(to).filter(|_| !self.hosts(to, self.table.item_in[from])) else {
            return false;
        };
        self.put_copy(slot, self.table.item_in[from], self.static_slot(from) as u32);
        if self.logging {
            self.log.push(LoggedChange::Added { slot: slot as u32 });
        }
        self.move_tokens(from, slot, tokens);
        true
    }

    fn put_copy(&mut self, slot: usize, item: u32, origin: u32) {
        self.table.put(slot, item);
        self.count_copy(slot, origin);
    }

    /// Removes the copy in a slot. Its tokens return to its origin, and the slot holds its item of before.
    pub(super) fn remove_copy(&mut self, slot: usize) {
        let (item, origin, tokens) = (self.table.item_in[slot], self.origin[slot], self.tokens[slot]);
        self.drop_copy(slot);
        if self.logging {
            self.log.push(LoggedChange::Removed { slot: slot as u32, item, origin, tokens });
        }
    }

    fn drop_copy(&mut self, slot: usize) {
        let origin = self.origin[slot] as usize;
        let (from, to) = (self.rank_of(origin), self.rank_of(slot));
        self.origin[slot] = NO_ORIGIN;
        self.copies -= 1;
        self.received[to] -= 1;
        self.sent[from] -= 1;
        self.shift(slot, origin, self.tokens[slot]);
        self.table.put(slot, self.before[slot]);
        self.update_receiver(to);
    }

    /// Moves tokens between two slots of an item.
    pub(super) fn move_tokens(&mut self, from: usize, to: usize, tokens: u32) {
        self.shift(from, to, tokens);
        if self.logging {
            self.log.push(LoggedChange::Moved { from: from as u32, to: to as u32, tokens });
        }
    }

    fn shift(&mut self, from: usize, to: usize, tokens: u32) {
        let (source, end) = (self.rank_of(from), self.rank_of(to));
        self.tokens[from] -= tokens;
        self.tokens[to] += tokens;
        self.loads[source] -= tokens;
        self.loads[end] += tokens;
        self.update_receiver(source);
        self.update_receiver(end);
    }

    /// Remembers the present state. [`take_back`](Self::take_back) returns to it.
    pub(super) fn mark(&mut self) {
        self.log.clear();
        self.logging = true;
    }

    /// Takes all changes since the last mark back.
    pub(super) fn take_back(&mut self) {
        while let Some(change) = self.log.pop() {
            match change {
                LoggedChange::Added { slot } => self.drop_copy(slot as usize),
                LoggedChange::Removed { slot, item, origin, tokens } => {
                    self.put_copy(slot as usize, item, origin);
                    self.shift(origin as usize, slot as usize, tokens);
                }
                LoggedChange::Moved { from, to, tokens } => self.shift(to as usize, from as usize, tokens),
            }
        }
    }

    /// Moves tokens along residual paths until no rank above the target has one, and lists the ranks that can
    /// take tokens.
    pub(super) fn lower_loads(&mut self) {
        self.lower_tokens(u64::MAX);
        self.list_receivers();
    }

    /// Moves tokens as [`lower_loads`](Self::lower_loads) does, and returns the tokens that stay above the
    /// target. Stops when they are at least `enough`. The list of receivers stays as it was.
    pub(super) fn lower_tokens(&mut self, enough: u64) -> u64 {
        self.paths.lower_to(&self.table, (&mut self.tokens, &mut self.loads), self.target, enough)
    }

    /// Lowers the highest load to the lowest peak of these contents that is at least `at_least`.
    pub(super) fn lower_peak(&mut self, at_least: u32) -> u32 {
        let (tokens, loads) = (&mut self.tokens, &mut self.loads);
        self.paths.lower_peak(&self.table, tokens, loads, at_least);
        loads.iter().copied().max().unwrap_or(0)
    }

    /// Returns the tokens above the target.
    pub(super) fn overflow(&self) -> u64 {
        self.loads.iter().map(|&load| u64::from(load.saturating_sub(self.target))).sum()
    }
}

fn receiver_key(slack: u32, rank: usize) -> u64 {
    u64::from(slack) << 32 | rank as u64
}
