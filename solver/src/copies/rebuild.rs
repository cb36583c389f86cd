//! Improvement of a plan: copies of some ranks are taken back and chosen once more.
//!
//! In: a complete plan. Out: a plan with at most as many copies. Each round draws two to four sending ranks,
//! of which the first sends several copies if any rank does. It removes their copies, and serves them in
//! another order. A plan with fewer copies is kept, and one with as many copies if the rooms that are left
//! are less scattered. The draws come from a fixed seed, so that all ranks find the same plan.

use super::state::{CopyState, NO_ORIGIN};

/// Numbers of splitmix64.
#[derive(Debug, Clone)]
pub(super) struct Draws(pub(super) u64);

impl Draws {
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * bound as u128) >> 64) as usize
    }
}

impl CopyState {
    /// Rebuilds parts of a complete plan a number of times, until it has only `enough` copies.
    pub(super) fn rebuild_parts(&mut self, rounds: u32, enough: u32) {
        let mut draws = Draws(0x5eed);
        let senders: Vec<usize> = (0..self.loads.len()).filter(|&rank| self.sent[rank] > 0).collect();
        if senders.is_empty() {
            return;
        }
        let mut drawn = Vec::with_capacity(4);
        let limit = self.limits.total;
        let mut concentration = self.measure_concentration();
        for _ in 0..rounds {
            if self.copies <= enough {
                break;
            }
            drawn.clear();
            // A rank with several copies may save one.
            let many = senders.iter().filter(|&&rank| self.sent[rank] > 1).count();
            if many > 0 {
                let at = draws.below(many);
                drawn.extend(senders.iter().copied().filter(|&rank| self.sent[rank] > 1).nth(at));
            }
            for _ in drawn.len()..2 + draws.below(3) {
                let rank = senders[draws.below(senders.len())];
                if !drawn.contains(&rank) {
                    drawn.push(rank);
                }
            }
            // Without shared items, each of them sends a copy again.
            let least = if self.shares_items { 0 } else { drawn.len() as u32 };
            if drawn.iter().map(|&rank| self.sent[rank]).sum::<u32>() <= least {
                continue;
            }
            let copies = self.copies;
            self.mark();
            self.remove_copies_of(&drawn);
            // A plan with more copies is of no use.
            self.limits.total = copies.min(limit);
            let served = drawn.iter().enumerate().all(|(at, &rank)| {
                (self.shares_items || self.may_copy(drawn.len() - at)) && self.serve(rank)
            });
            let complete = served && self.overflow() == 0;
            let now = if complete { self.measure_concentration() } else { 0 };
            if complete && (self.copies < copies || now >= concentration) {
                concentration = now;
            } else {
                self.take_back();
            }
        }
        self.limits.total = limit;
    }

    fn remove_copies_of(&mut self, senders: &[usize]) {
        for rank in 0..self.loads.len() {
            for slot in self.dynamic_slots(rank) {
                let origin = self.origin[slot];
                if origin != NO_ORIGIN && senders.contains(&self.rank_of(origin as usize)) {
                    self.remove_copy(slot);
                }
            }
        }
    }

    /// Returns the sum of squared rooms that can be used. It is high if few ranks have most of the room.
    fn measure_concentration(&self) -> u128 {
        self.receivers.iter().map(|&key| u128::from((key >> 32) * (key >> 32))).sum()
    }
}
