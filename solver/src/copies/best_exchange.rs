//! Search by the best of all exchanges, where few exchanges are possible.
//!
//! In: a state whose ranks stay above the target, because the slots are used up. Out: contents under which
//! none does, if the search finds them. Tokens above the target reach a set of ranks and no others. All items
//! on the set live there alone, so one of them must get a copy outside. Each step tries every such exchange,
//! and keeps the one after which the fewest tokens stay above the target. It may add tokens. For some steps,
//! a new content then stays, and an item does not return (tabu search, Glover 1989).

use super::exchange::{SavedTokens, SlotContent};
use super::state::{CopyState, NO_ORIGIN};

/// Steps for which a slot keeps a new content.
const KEPT_STEPS: u32 = 1;
/// Steps for which an item does not return to a slot that it left.
const ABSENT_STEPS: u32 = 8;

/// Memory of the search, reused from call to call.
#[derive(Debug, Clone, Default)]
pub(super) struct ExchangeMemory {
    saved: SavedTokens,
    /// True for the ranks that the tokens above the target reach, `[ranks]`.
    stuck: Vec<bool>,
    /// Items on these ranks: load in the upper half, slot in the lower half, descending.
    items: Vec<u64>,
    /// Slots with a copy of this batch.
    copies: Vec<u32>,
    /// First step that may change the content of a slot again, `[slots]`.
    kept_until: Vec<u32>,
    /// Item that left a slot last, and the first step that may put it back, `[slots]`.
    left: Vec<(u32, u32)>,
}

/// New content of a slot, and the copy that is removed for it.
#[derive(Debug, Clone, Copy)]
struct Exchange {
    slot: usize,
    content: SlotContent,
    removed: Option<usize>,
}

impl ExchangeMemory {
    fn clear(&mut self, slots: usize) {
        self.kept_until.clear();
        self.kept_until.resize(slots, 0);
        self.left.clear();
        self.left.resize(slots, (u32::MAX, 0));
    }

    fn forbids(&self, slot: usize, item: u32, step: u32) -> bool {
        self.kept_until[slot] > step || self.left[slot].0 == item && self.left[slot].1 > step
    }
}

impl CopyState {
    /// Returns true if all exchanges of one step are about as many as this number of tries, or fewer.
    pub(super) fn has_few_exchanges(&self, tries: u32) -> bool {
        let dynamic: usize = (0..self.loads.len()).map(|rank| self.dynamic_slots(rank).len()).sum();
        (self.tokens.len() - dynamic).saturating_mul(dynamic) <= tries as usize
    }

    /// Exchanges contents until no token stays above the target, with at most `tries` exchanges, and reduces
    /// `tries` by those that it tried. Returns true if no token stays above the target.
    pub(super) fn exchange_best(&mut self, tries: &mut u32, memory: &mut ExchangeMemory) -> bool {
        memory.clear(self.tokens.len());
        let mut step = 0;
        while self.lower_tokens(u64::MAX) > 0 {
            let Some(best) = self.find_best_exchange(step, tries, memory) else { return false };
            memory.left[best.slot] = (self.table.item_in[best.slot], step + 1 + ABSENT_STEPS);
            memory.kept_until[best.slot] = step + 1 + KEPT_STEPS;
            if let Some(other) = best.removed {
                memory.left[other] = (self.table.item_in[other], step + 1 + ABSENT_STEPS);
            }
            self.exchange(best);
            step += 1;
        }
        true
    }

    /// Returns the exchange after which the fewest tokens stay above the target, or the first after which
    /// none does. Returns `None` if there is no exchange, or no try is left.
    fn find_best_exchange(
        &mut self,
        step: u32,
        tries: &mut u32,
        memory: &mut ExchangeMemory,
    ) -> Option<Exchange> {
        let above = self.list_stuck(memory);
        memory.saved.save(self);
        let (mut least, mut best) = (u64::MAX, None);
        for at in 0..memory.items.len() {
            let (load, from) = (memory.items[at] >> 32, memory.items[at] as u32 as usize);
            // At most the tokens of the item leave the stuck ranks.
            if above.saturating_sub(load) >= least {
                break;
            }
            let content =
                SlotContent { item: self.table.item_in[from], origin: self.static_slot(from) as u32 };
            for to in 0..self.loads.len() {
                if memory.stuck[to] || self.hosts(to, content.item) {
                    continue;
                }
                for slot in self.dynamic_slots(to) {
                    if memory.forbids(slot, content.item, step) {
                        continue;
                    }
                    let mut removed = 0;
                    while let Some(exchange) = self.next_exchange(slot, content, &mut removed, step, memory) {
                        if *tries == 0 {
                            return None;
                        }
                        *tries -= 1;
                        let now = self.try_exchange(exchange, least, &memory.saved);
                        if now < least {
                            (least, best) = (now, Some(exchange));
                        }
                        if now == 0 {
                            return best;
                        }
                    }
                }
            }
        }
        best
    }

    /// Lists the ranks that the tokens of the busiest rank reach, their items, and all copies. Returns the
    /// tokens above the target on these ranks.
    fn list_stuck(&mut self, memory: &mut ExchangeMemory) -> u64 {
        let ranks = 0..self.loads.len();
        let busiest = ranks.clone().max_by_key(|&rank| (self.loads[rank], std::cmp::Reverse(rank)));
        self.paths.find_path(&self.table, (&self.tokens, &self.loads), busiest.unwrap_or(0), self.target);
        memory.stuck.clear();
        memory.stuck.extend(ranks.clone().map(|rank| self.paths.has_reached(rank)));
        memory.items.clear();
        for rank in ranks.clone().filter(|&rank| memory.stuck[rank]) {
            for slot in self.slots(rank).start..self.first_dynamic[rank] as usize {
                let hosts = self.table.slots_of[self.table.item_in[slot] as usize].iter();
                let load: u64 = hosts.map(|&slot| u64::from(self.tokens[slot as usize])).sum();
                if load > 0 {
                    memory.items.push(load << 32 | slot as u64);
                }
            }
        }
        memory.items.sort_unstable_by(|a, b| b.cmp(a));
        memory.copies.clear();
        let slots = ranks.clone().flat_map(|rank| self.dynamic_slots(rank));
        memory.copies.extend(slots.filter(|&slot| self.origin[slot] != NO_ORIGIN).map(|slot| slot as u32));
        let reached = ranks.filter(|&rank| memory.stuck[rank]);
        reached.map(|rank| u64::from(self.loads[rank].saturating_sub(self.target))).sum()
    }

    /// Returns the next exchange that gives a slot its content, and increments the number of the copy that is
    /// removed for it. There is only one if the limits permit all copies.
    fn next_exchange(
        &self,
        slot: usize,
        content: SlotContent,
        removed: &mut usize,
        step: u32,
        memory: &ExchangeMemory,
    ) -> Option<Exchange> {
        let (old, sender) = (self.origin[slot], self.rank_of(content.origin as usize));
        if self.limits.sent == 0 || old == NO_ORIGIN && !self.may_receive(self.rank_of(slot)) {
            return None;
        }
        let sent_by = |copy: usize| self.rank_of(self.origin[copy] as usize) == sender;
        let all_sent = (old == NO_ORIGIN || !sent_by(slot)) && self.sent[sender] >= self.limits.sent;
        if !all_sent && (old != NO_ORIGIN || self.copies < self.limits.total) {
            *removed += 1;
            return (*removed == 1).then_some(Exchange { slot, content, removed: None });
        }
        while let Some(&copy) = memory.copies.get(*removed) {
            *removed += 1;
            let copy = copy as usize;
            if copy != slot && memory.kept_until[copy] <= step && (!all_sent || sent_by(copy)) {
                return Some(Exchange { slot, content, removed: Some(copy) });
            }
        }
        None
    }

    /// Returns the tokens above the target after an exchange, and takes it back. The number is not exact if
    /// it is at least `enough`.
    fn try_exchange(&mut self, exchange: Exchange, enough: u64, saved: &SavedTokens) -> u64 {
        let old = self.content(exchange.slot);
        let removed = exchange.removed.map(|slot| (slot, self.content(slot)));
        self.exchange(exchange);
        let above = self.lower_tokens(enough);
        self.set_content(exchange.slot, old);
        if let Some((slot, content)) = removed {
            self.set_content(slot, content);
        }
        saved.restore(self);
        above
    }

    fn exchange(&mut self, exchange: Exchange) {
        if let Some(slot) = exchange.removed {
            self.set_content(slot, SlotContent { item: self.before[slot], origin: NO_ORIGIN });
        }
        self.set_content(exchange.slot, exchange.content);
    }
}
