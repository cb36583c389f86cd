//! Search for contents of the dynamic slots under which the loads stay below a target.
//!
//! In: a state whose ranks stay above the target, because the slots are used up. Out: contents under which
//! fewer tokens stay above it. One exchange puts another item into one slot. The tokens above the target are
//! then a maximum flow away from optimal, which residual paths repair, so their number is exact. An exchange
//! is kept unless it adds more than a threshold that falls with time (threshold accepting, Dueck and Scheuer
//! 1990). Ranks above the target may receive copies too. The draws depend on the input alone.

use super::rebuild::Draws;
use super::state::{CopyState, NO_ORIGIN};

/// Tokens and loads before an exchange.
#[derive(Debug, Clone, Default)]
pub(super) struct SavedTokens {
    tokens: Vec<u32>,
    loads: Vec<u32>,
}

impl SavedTokens {
    pub(super) fn save(&mut self, state: &CopyState) {
        self.tokens.clone_from(&state.tokens);
        self.loads.clone_from(&state.loads);
    }

    /// Returns all saved tokens.
    pub(super) fn total(&self) -> u64 {
        self.loads.iter().map(|&load| u64::from(load)).sum()
    }

    /// Returns the saved tokens, `[slots]`.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Returns the saved loads.
    pub(super) fn loads(&self) -> &[u32] {
        &self.loads
    }

    /// Returns the highest saved load.
    pub(super) fn peak(&self) -> u32 {
        self.loads.iter().copied().max().unwrap_or(0)
    }

    pub(super) fn restore(&self, state: &mut CopyState) {
        state.tokens.copy_from_slice(&self.tokens);
        state.loads.copy_from_slice(&self.loads);
    }
}

/// New content of a slot: the item, and the slot that it is copied from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotContent {
    pub(super) item: u32,
    pub(super) origin: u32,
}

impl CopyState {
    /// Exchanges contents at most `rounds` times until no token stays above the target. Returns true if none
    /// does.
    pub(super) fn exchange_contents(&mut self, rounds: u32, saved: &mut SavedTokens) -> bool {
        let mut draws = Draws(u64::from(self.target) << 32 | u64::from(self.copies));
        let mut overflow = self.lower_tokens(u64::MAX);
        // At first, an exchange may add as many tokens as a sixteenth of a rank's load.
        let highest = u64::from(self.target / 16);
        for round in 0..rounds {
            if overflow == 0 || self.limits.total == 0 {
                break;
            }
            let Some((slot, content)) = self.draw_exchange(&mut draws) else { continue };
            saved.save(self);
            let old = self.content(slot);
            let dropped = self.find_copy_to_drop(slot, content, &mut draws).map(|other| {
                let before = self.content(other);
                self.set_content(other, SlotContent { item: self.before[other], origin: NO_ORIGIN });
                (other, before)
            });
            self.set_content(slot, content);
            let now = self.lower_tokens(u64::MAX);
            let left = u64::from(rounds - round) * highest / u64::from(rounds);
            let threshold = draws.below(left as usize + 1) as u64;
            if now <= overflow + threshold {
                overflow = now;
            } else {
                self.set_content(slot, old);
                if let Some((other, before)) = dropped {
                    self.set_content(other, before);
                }
                saved.restore(self);
            }
        }
        overflow == 0
    }

    pub(super) fn content(&self, slot: usize) -> SlotContent {
        SlotContent { item: self.table.item_in[slot], origin: self.origin[slot] }
    }

    /// Gives a slot another content. Its tokens move to the item's slot on the rank with the lowest load.
    pub(super) fn set_content(&mut self, slot: usize, content: SlotContent) {
        let rank = self.rank_of(slot);
        let left = std::mem::take(&mut self.tokens[slot]);
        self.loads[rank] -= left;
        let item = self.table.item_in[slot] as usize;
        let others = self.table.slots_of[item].iter().filter(|&&other| other as usize != slot);
        if left > 0
            && let Some(&other) = others.min_by_key(|&&other| self.loads[self.rank_of(other as usize)])
        {
            self.tokens[other as usize] += left;
            let end = self.rank_of(other as usize);
            self.loads[end] += left;
        }
        let old = std::mem::replace(&mut self.origin[slot], content.origin);
        if old != NO_ORIGIN {
            self.copies -= 1;
            self.received[rank] -= 1;
            let from = self.rank_of(old as usize);
            self.sent[from] -= 1;
        }
        if content.origin != NO_ORIGIN {
            self.copies += 1;
            self.received[rank] += 1;
            let from = self.rank_of(content.origin as usize);
            self.sent[from] += 1;
        }
        self.table.put(slot, content.item);
    }

    /// Draws a slot and an item for it. Three of four draws take an item that cannot leave overloaded ranks,
    /// and a slot outside them with room for it.
    fn draw_exchange(&mut self, draws: &mut Draws) -> Option<(usize, SlotContent)> {
        let over = (0..self.loads.len()).filter(|&rank| self.loads[rank] > self.target);
        let from = over.max_by_key(|&rank| (self.loads[rank], std::cmp::Reverse(rank)))?;
        let need = self.loads[from] - self.target;
        self.paths.find_path(&self.table, (&self.tokens, &self.loads), from, self.target);
        let outside = draws.below(4) > 0;
        let to = self.draw_rank(draws, outside)?;
        let slots = self.dynamic_slots(to);
        let slot = slots.start + draws.below(slots.len());
        let room = self.target.saturating_add(self.tokens[slot]).saturating_sub(self.loads[to]).min(need);
        let source = match draws.below(8) {
            0 => draws.below(self.loads.len()),
            1..4 => self.paths.queue[draws.below(self.paths.queue.len())] as usize,
            _ => from,
        };
        let origin = self.draw_origin(draws, source, room, to)?;
        let item = self.table.item_in[origin];
        let origin = self.static_slot(origin);
        let full = self.origin[slot] == NO_ORIGIN && self.received[to] >= self.limits.received;
        let useful = item != self.table.item_in[slot] && !full && self.limits.sent > 0;
        (useful && self.rank_of(origin) != to).then_some((slot, SlotContent { item, origin: origin as u32 }))
    }

    /// Returns a copy that must go so that the limits permit a new content, or `None` if all may stay.
    fn find_copy_to_drop(&self, slot: usize, content: SlotContent, draws: &mut Draws) -> Option<usize> {
        let sender = self.rank_of(content.origin as usize);
        let old = self.origin[slot];
        let same = old != NO_ORIGIN && self.rank_of(old as usize) == sender;
        if !same && self.sent[sender] >= self.limits.sent {
            let copies = (0..self.origin.len()).filter(|&other| {
                let origin = self.origin[other];
                other != slot && origin != NO_ORIGIN && self.rank_of(origin as usize) == sender
            });
            return copies.min_by_key(|&other| self.tokens[other]);
        }
        if old == NO_ORIGIN && self.copies >= self.limits.total { self.draw_copy(draws, slot) } else { None }
    }

    /// Draws a rank with dynamic slots, outside the ranks of the last search or anywhere.
    fn draw_rank(&self, draws: &mut Draws, outside: bool) -> Option<usize> {
        let start = draws.below(self.loads.len());
        let ranks = (start..self.loads.len()).chain(0..start);
        let mut open = ranks.filter(|&rank| !self.dynamic_slots(rank).is_empty());
        if outside { open.find(|&rank| !self.paths.has_reached(rank)) } else { open.next() }
    }

    /// Draws a slot with tokens on a rank: the smallest one that fills the room, the largest, or any.
    fn draw_origin(&self, draws: &mut Draws, rank: usize, room: u32, to: usize) -> Option<usize> {
        let slots = || {
            self.slots(rank)
                .filter(|&slot| self.tokens[slot] > 0 && !self.hosts(to, self.table.item_in[slot]))
        };
        let enough = || slots().filter(|&slot| self.tokens[slot] >= room);
        match draws.below(4) {
            0 | 1 => enough()
                .min_by_key(|&slot| self.tokens[slot])
                .or_else(|| slots().max_by_key(|&slot| self.tokens[slot])),
            2 => slots().max_by_key(|&slot| self.tokens[slot]),
            _ => {
                let count = slots().count();
                if count == 0 { None } else { slots().nth(draws.below(count)) }
            }
        }
    }

    fn draw_copy(&self, draws: &mut Draws, except: usize) -> Option<usize> {
        let ranks = self.loads.len();
        let start = draws.below(ranks);
        (start..ranks)
            .chain(0..start)
            .flat_map(|rank| self.dynamic_slots(rank))
            .find(|&slot| slot != except && self.origin[slot] != NO_ORIGIN)
    }
}
