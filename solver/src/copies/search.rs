//! Search for the three goals.
//!
//! In: the split without copies, and a goal. Out: the best contents of the dynamic slots, with tokens.

use super::CopySolver;
use super::serve::ServeRule;
use super::state::{CopyLimits, CopyState};

/// Rules of construction, in the order in which they are tried.
const RULES: [ServeRule; 5] = [
    ServeRule::FitAscending,
    ServeRule::FitDescending,
    ServeRule::LargestPieces,
    ServeRule::LargestRooms,
    ServeRule::Alternating,
];

impl CopySolver {
    /// Finds the fewest copies with which no rank exceeds a peak, or else the lowest peak.
    pub(super) fn find_fewest_copies(&mut self, peak: u32) {
        if self.best.peak <= peak {
            return;
        }
        if let Some(enough) = self.bound_copies(peak)
            && self.find_copies_for(peak, CopyLimits::NONE, enough)
        {
            return;
        }
        self.find_lowest_peak(CopyLimits::NONE);
    }

    /// Finds copies with which no rank exceeds a target, and stores the best plan with at least `enough`
    /// copies. Returns false if it finds none.
    fn find_copies_for(&mut self, target: u32, limits: CopyLimits, mut enough: u32) -> bool {
        let tight = self.has_tight_rooms(target);
        // The time of some rules grows with the ranks for every slot.
        let brief = self.state.loads.len() <= 16;
        let (mut found, mut binding) = (false, tight);
        for rule in RULES {
            // Large pieces help where items or rooms bind. Other rules help where rooms bind, or where the
            // first ones fail.
            let useful = match rule {
                ServeRule::FitAscending | ServeRule::FitDescending => true,
                ServeRule::LargestPieces => binding,
                ServeRule::LargestRooms | ServeRule::Alternating => tight || binding && brief,
            };
            if found && !useful {
                break;
            }
            // Only fewer copies than those of the best plan are of use.
            let total =
                if found { limits.total.min(self.best.copies.saturating_sub(1)) } else { limits.total };
            self.restart(target, CopyLimits { total, ..limits });
            let complete = self.serve(rule);
            binding |= self.state.has_small_items;
            if complete && (!found || self.state.copies < self.best.copies) {
                let first = !found;
                found = true;
                self.best.store(&self.state, target);
                if first && self.best.copies > enough {
                    enough = self.serve_divided(target, limits).max(enough);
                }
                if self.best.copies <= enough {
                    return true;
                }
            }
        }
        if (binding && brief || !found) && self.use_half_gaps(target, limits) <= target {
            if !found || self.state.copies < self.best.copies {
                self.best.store(&self.state, target);
            }
            found = true;
        }
        if !found {
            self.construct_part(target, limits, ServeRule::FitAscending);
            if !self.exchange_to_target(self.effort.exchanges / 8) {
                return false;
            }
            self.state.remove_idle_copies();
            self.best.store(&self.state, target);
        }
        self.best.load(&mut self.state);
        self.state.set_target(target, limits);
        let part = u64::from(self.effort.rebuilds) * self.state.loads.len().min(64) as u64;
        let rebuilds = part.div_ceil(64) as u32;
        self.state.rebuild_parts(rebuilds, enough);
        if self.state.copies < self.best.copies {
            self.best.store(&self.state, target);
        }
        self.reduce_copies(target, limits, enough);
        true
    }

    /// Serves few donors as a division of the bound suggests, and stores a plan with fewer copies. Returns a
    /// lower bound on the copies.
    fn serve_divided(&mut self, target: u32, limits: CopyLimits) -> u32 {
        let least = self.groups.count_divided(target, self.best.copies).unwrap_or(0);
        if least < self.best.copies && !self.state.shares_items {
            self.restart(target, limits);
            if self.state.serve_division(&self.groups.division) && self.state.copies < self.best.copies {
                self.best.store(&self.state, target);
            }
        }
        least
    }

    /// Exchanges contents until a plan with fewer copies reaches the target, as often as that succeeds.
    fn reduce_copies(&mut self, target: u32, limits: CopyLimits, enough: u32) {
        let shared = self.state.shares_items;
        let rounds = if shared { self.effort.shared_reductions } else { self.effort.reductions };
        while self.best.copies > enough && rounds > 0 {
            self.best.load(&mut self.state);
            self.state.set_target(target, CopyLimits { total: self.best.copies - 1, ..limits });
            self.state.remove_smallest_copy();
            if !self.exchange_to_target(rounds) {
                return;
            }
            self.state.remove_idle_copies();
            self.best.store(&self.state, target);
        }
    }

    /// Serves all overloaded ranks by a rule, and the rest through shared items.
    fn serve(&mut self, rule: ServeRule) -> bool {
        let complete = self.state.serve_all(rule, &mut self.order);
        let remote =
            self.state.shares_items && matches!(rule, ServeRule::FitAscending | ServeRule::FitDescending);
        complete || remote && self.state.serve_remote()
    }

    /// Returns true if all rooms together hardly exceed the tokens above a target.
    fn has_tight_rooms(&self, target: u32) -> bool {
        let capacity = u64::from(target) * self.state.loads.len() as u64;
        capacity.saturating_sub(self.start.total()) < u64::from(target / 4)
    }

    /// Returns to the split without copies, with a target for the rank loads.
    fn restart(&mut self, target: u32, limits: CopyLimits) {
        self.state.clear_copies();
        self.start.restore(&mut self.state);
        self.state.has_small_items = false;
        self.state.set_target(target, limits);
        if self.state.shares_items {
            self.state.lower_loads();
        }
    }

    /// Finds the lowest peak within limits.
    pub(super) fn find_lowest_peak(&mut self, limits: CopyLimits) {
        let bound = self.bound_peak(limits.total);
        let mut reached = self.construct_peak(limits, bound, self.best.peak);
        // The slots bind where the construction fails. A rule without a target uses them all.
        if reached > bound {
            let peak = self.use_half_gaps(bound, limits);
            if peak < reached {
                self.best.store(&self.state, peak);
                reached = peak;
            }
        }
        self.exchange_for_peak((limits, self.effort.exchanges), bound, reached);
    }

    /// Constructs plans with lower and lower peaks, from `reached` down to a lower bound, and stores the
    /// best. Returns its peak, or `reached` if there is none.
    fn construct_peak(&mut self, limits: CopyLimits, bound: u32, mut reached: u32) -> u32 {
        // Targets a little above the bound often succeed, so the steps grow.
        let fine = (bound / 2048).max(1);
        let (mut failed, mut step) = (bound.saturating_sub(1), 0);
        loop {
            let target = bound.saturating_add(step).min(reached);
            if target >= reached {
                break;
            }
            if self.try_target(target, limits) {
                reached = self.lower_best(bound);
                break;
            }
            failed = target;
            step = step.saturating_mul(2).max(fine);
        }
        while reached.saturating_sub(failed) > fine {
            let target = failed + (reached - failed) / 2;
            if self.try_target(target, limits) {
                reached = self.lower_best(bound);
            } else {
                failed = target;
            }
        }
        reached
    }

    /// Exchanges contents for lower and lower peaks, by the best exchanges if they are few and then by draws.
    /// Stores the best plan. Returns its peak, or `reached` if there is none.
    pub(super) fn exchange_for_peak(
        &mut self,
        (limits, exchanges): (CopyLimits, u32),
        bound: u32,
        mut reached: u32,
    ) -> u32 {
        let tries = self.count_tries(exchanges);
        if self.state.has_few_exchanges(tries) {
            reached = self.exchange_best_for_peak((limits, tries), bound, reached);
        }
        let fine = (bound / 2048).max(1);
        let (mut failed, mut left) = (bound.saturating_sub(1), exchanges);
        while reached.saturating_sub(failed) > fine && left > 0 {
            let target = failed + (reached - failed) / 2;
            let rounds = left.min((exchanges / 8).max(1));
            left -= rounds;
            if self.exchange_for(target, limits, rounds) {
                reached = self.lower_best(bound);
            } else {
                failed = target;
            }
        }
        reached
    }

    /// Exchanges contents for lower and lower peaks by the best of all exchanges, from several plans in turn,
    /// and stores the best plan. Returns its peak, or `reached` if there is none.
    fn exchange_best_for_peak(
        &mut self,
        (limits, mut tries): (CopyLimits, u32),
        bound: u32,
        mut reached: u32,
    ) -> u32 {
        let (mut start, mut part) = (0, tries / 4);
        while reached > bound && tries > 0 {
            let target = reached - 1;
            match start {
                0 => self.best.load(&mut self.state),
                1 => self.construct_part(target, limits, ServeRule::FitAscending),
                2 => _ = self.use_half_gaps(target, limits),
                3 => self.construct_part(target, limits, ServeRule::LargestRooms),
                _ => break,
            }
            self.state.set_target(target, limits);
            let mut own = part.min(tries);
            tries -= own;
            if self.state.exchange_best(&mut own, &mut self.memory) {
                self.state.remove_idle_copies();
                self.best.store(&self.state, target);
                reached = self.lower_best(bound);
                start = 0;
            } else {
                start += 1;
            }
            tries += own;
            part = part.min(tries);
        }
        reached
    }

    /// Exchanges contents until no rank exceeds the target. Returns false if some rank still does.
    fn exchange_to_target(&mut self, exchanges: u32) -> bool {
        let mut tries = self.count_tries(exchanges);
        if self.state.has_few_exchanges(tries) {
            return self.state.exchange_best(&mut tries, &mut self.memory);
        }
        self.state.exchange_contents(exchanges, &mut self.saved)
    }

    /// Returns the number of tries of the best exchange that take as long as this number of drawn exchanges
    /// of a large problem. The time of a try grows with the slots.
    fn count_tries(&self, exchanges: u32) -> u32 {
        exchanges.saturating_mul(256) / self.state.table.row_len() as u32
    }

    /// Constructs a plan by a rule as far as it comes.
    fn construct_part(&mut self, target: u32, limits: CopyLimits, rule: ServeRule) {
        self.restart(target, limits);
        self.state.serve_all(rule, &mut self.order);
    }

    /// Constructs a plan without a target, and returns its peak, lowered to at least `at_least`.
    pub(super) fn use_half_gaps(&mut self, at_least: u32, limits: CopyLimits) -> u32 {
        self.restart(u32::MAX, limits);
        self.state.serve_half_gaps();
        self.state.remove_idle_copies();
        self.state.lower_peak(at_least)
    }

    /// Exchanges contents for a target, first those of the best plan, then those of a plan that stops short
    /// of the target. Stores the plan and returns true if one reaches the target.
    fn exchange_for(&mut self, target: u32, limits: CopyLimits, rounds: u32) -> bool {
        for from_best in [true, false] {
            if from_best {
                self.best.load(&mut self.state);
                self.state.set_target(target, limits);
            } else {
                self.construct_part(target, limits, ServeRule::FitAscending);
            }
            if self.state.exchange_contents(rounds / 2 + 1, &mut self.saved) {
                self.state.remove_idle_copies();
                self.best.store(&self.state, target);
                return true;
            }
        }
        false
    }

    /// Constructs a plan for a target, and stores it if it is complete.
    fn try_target(&mut self, target: u32, limits: CopyLimits) -> bool {
        let complete = self.serve_target(target, limits);
        if complete {
            self.best.store(&self.state, target);
        }
        complete
    }

    /// Constructs a plan for a target. Returns true if it is complete.
    pub(super) fn serve_target(&mut self, target: u32, limits: CopyLimits) -> bool {
        if self.bound_copies(target).is_none_or(|least| least > limits.total) {
            return false;
        }
        // With the largest rooms first, a rank sends more copies than by the other rules.
        let limited = limits.sent < u32::MAX;
        for rule in RULES.into_iter().filter(|&rule| !limited || rule != ServeRule::LargestRooms) {
            self.restart(target, limits);
            if self.serve(rule) {
                return true;
            }
        }
        false
    }

    /// Lowers the peak of the best plan as far as its copies allow, and returns it.
    fn lower_best(&mut self, bound: u32) -> u32 {
        self.best.load(&mut self.state);
        let peak = self.state.lower_peak(bound);
        self.best.store(&self.state, peak);
        peak
    }

    pub(super) fn bound_copies(&mut self, peak: u32) -> Option<u32> {
        let slots: u64 = self.problem.slots().iter().map(|&slots| u64::from(slots)).sum();
        let least = self.groups.count_copies(peak)?.max(u32::from(self.start_peak() > peak));
        (u64::from(least) <= slots).then_some(least)
    }

    pub(super) fn bound_peak(&mut self, copies: u32) -> u32 {
        let slots: u64 = self.problem.slots().iter().map(|&slots| u64::from(slots)).sum();
        let peak = self.start_peak();
        if copies == 0 || slots == 0 {
            return peak;
        }
        self.groups.bound_peak(copies.min(slots.min(u64::from(u32::MAX)) as u32), peak)
    }

    pub(super) fn start_peak(&self) -> u32 {
        self.start.peak()
    }
}

impl CopyState {
    /// Removes the copy with the fewest tokens.
    fn remove_smallest_copy(&mut self) {
        let slots = (0..self.loads.len()).flat_map(|rank| self.dynamic_slots(rank));
        let copies = slots.filter(|&slot| self.origin[slot] != super::NO_ORIGIN);
        if let Some(slot) = copies.min_by_key(|&slot| self.tokens[slot]) {
            self.remove_copy(slot);
        }
    }

    /// Removes copies that have no tokens.
    pub(super) fn remove_idle_copies(&mut self) {
        for rank in 0..self.loads.len() {
            for slot in self.dynamic_slots(rank) {
                if self.origin[slot] != super::NO_ORIGIN && self.tokens[slot] == 0 {
                    self.remove_copy(slot);
                }
            }
        }
    }
}
