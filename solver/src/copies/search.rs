//! Search for the three goals.
//!
//! In: the split without copies, and a goal. Out: the best contents of the dynamic slots, with tokens.

use super::serve::ServeRule;
use super::state::{CopyLimits, CopyState};
use super::{CopySolver, CopyTimes};

/// Rules of construction, in the order in which they are tried.
const RULES: [ServeRule; 6] = [
    ServeRule::FitAscending,
    ServeRule::FitDescending,
    ServeRule::LargestPieces,
    ServeRule::LargestRooms { least: None },
    ServeRule::LargestRooms { least: Some(1024) },
    ServeRule::Alternating,
];

/// Longest transfer of a plan.
#[derive(Debug, Clone, Copy)]
struct TransferLength {
    limits: CopyLimits,
    /// Part of its time that nothing hides.
    exposed: u64,
    /// Lower bound on the peak within the limits.
    least_peak: u32,
    /// Lower bound on the time.
    least_time: u64,
}

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
        self.find_lowest_peak(CopyLimits::NONE, 0);
    }

    /// Finds copies with which no rank exceeds a target, and stores the best plan with at least `enough`
    /// copies. Returns false if it finds none.
    fn find_copies_for(&mut self, target: u32, limits: CopyLimits, enough: u32) -> bool {
        let (mut found, mut binding) = (false, self.has_tight_rooms(target));
        for rule in RULES {
            // The other rules help where items or rooms bind.
            if found && !binding && !matches!(rule, ServeRule::FitAscending | ServeRule::FitDescending) {
                break;
            }
            self.restart(target, limits);
            let complete = self.serve(rule);
            binding |= self.state.has_small_items;
            if complete && (!found || self.state.copies < self.best.copies) {
                found = true;
                self.best.store(&self.state, target);
                if self.best.copies <= enough {
                    return true;
                }
            }
        }
        // The time of this rule grows with the ranks for every slot.
        let brief = self.state.loads.len() <= 16;
        if (binding && brief || !found) && self.use_half_gaps(target, limits) <= target {
            if !found || self.state.copies < self.best.copies {
                self.best.store(&self.state, target);
            }
            found = true;
        }
        if !found {
            self.restart(target, limits);
            self.state.serve_all(ServeRule::FitAscending, &mut self.order);
            let complete = self.state.exchange_contents(self.effort.exchanges / 8, &mut self.saved);
            if !complete {
                return false;
            }
            self.state.remove_idle_copies();
            self.best.store(&self.state, target);
        }
        self.best.load(&mut self.state);
        self.state.set_target(target, limits);
        let part = u64::from(self.effort.rebuilds) * self.state.loads.len().min(32) as u64 / 32;
        let rebuilds = part as u32;
        self.state.rebuild_parts(rebuilds, enough);
        if self.state.copies < self.best.copies {
            self.best.store(&self.state, target);
        }
        self.reduce_copies(target, limits, enough);
        true
    }

    /// Exchanges contents until a plan with fewer copies reaches the target, as often as that succeeds.
    fn reduce_copies(&mut self, target: u32, limits: CopyLimits, enough: u32) {
        let shared = self.state.shares_items;
        let rounds = if shared { self.effort.shared_reductions } else { self.effort.reductions };
        while self.best.copies > enough && rounds > 0 {
            self.best.load(&mut self.state);
            self.state.set_target(target, CopyLimits { total: self.best.copies - 1, ..limits });
            self.state.remove_smallest_copy();
            if !self.state.exchange_contents(rounds, &mut self.saved) {
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

    /// Finds the lowest peak within limits, which is known to be `at_least` this high.
    pub(super) fn find_lowest_peak(&mut self, limits: CopyLimits, at_least: u32) {
        let bound = self.bound_peak(limits.total).max(at_least);
        if self.best.peak <= bound {
            return;
        }
        // Targets a little above the bound often succeed, so the steps grow.
        let fine = (bound / 2048).max(1);
        let (mut failed, mut step) = (bound.saturating_sub(1), 0);
        let mut reached = self.best.peak;
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
            step = (2 * step).max(fine);
        }
        while reached > failed + fine {
            let target = failed + (reached - failed) / 2;
            if self.try_target(target, limits) {
                reached = self.lower_best(bound);
            } else {
                failed = target;
            }
        }
        // The slots bind where the construction fails. A rule without a target uses them all.
        if reached > bound {
            let peak = self.use_half_gaps(bound, limits);
            if peak < reached {
                self.best.store(&self.state, peak);
                reached = peak;
            }
        }
        let mut left = self.effort.exchanges;
        failed = bound.saturating_sub(1);
        while reached > failed + fine && left > 0 {
            let target = failed + (reached - failed) / 2;
            let rounds = left.min((self.effort.exchanges / 8).max(1));
            left -= rounds;
            if self.exchange_for(target, limits, rounds) {
                reached = self.lower_best(bound);
            } else {
                failed = target;
            }
        }
    }

    /// Constructs a plan without a target, and returns its peak, lowered to at least `at_least`.
    fn use_half_gaps(&mut self, at_least: u32, limits: CopyLimits) -> u32 {
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
                self.restart(target, limits);
                self.state.serve_all(ServeRule::FitAscending, &mut self.order);
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
        if self.bound_copies(target).is_none_or(|least| least > limits.total) {
            return false;
        }
        for rule in RULES {
            self.restart(target, limits);
            if self.serve(rule) {
                self.best.store(&self.state, target);
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

    /// Finds the least time of peak and exposed transfers, and returns a lower bound of it.
    ///
    /// Every plan has a longest transfer. For each possible length, bounds on the peak give a least time. The
    /// lengths are searched in ascending order of it, until no length can be better.
    pub(super) fn find_least_time(&mut self, times: CopyTimes) -> u64 {
        let none = self.best.clone();
        let mut best = (times.add_exposed(none.peak, 0, 0), none.clone());
        // One search per length shares the effort.
        let exchanges = self.effort.exchanges;
        self.effort.exchanges = exchanges / 8;
        let mut lengths = self.list_lengths(times);
        lengths.sort_unstable_by_key(|length| (length.least_time, length.exposed));
        let bound = lengths.first().map_or(best.0, |length| length.least_time.min(best.0));
        for length in lengths {
            if length.least_time >= best.0 {
                break;
            }
            none.load(&mut self.state);
            self.best = none.clone();
            self.find_lowest_peak(length.limits, length.least_peak);
            self.best.load(&mut self.state);
            let most = |counts: &[u32]| u64::from(counts.iter().copied().max().unwrap_or(0));
            let (received, sent) = (most(&self.state.received), most(&self.state.sent));
            let time = times.add_exposed(self.best.peak, received, sent);
            if time < best.0 {
                best = (time, self.best.clone());
            }
        }
        self.effort.exchanges = exchanges;
        self.best = best.1;
        bound
    }

    /// Lists the possible lengths of the longest transfer, with the copies that they permit.
    fn list_lengths(&mut self, times: CopyTimes) -> Vec<TransferLength> {
        let ranks = self.state.loads.len() as u64;
        let most_received = u64::from(self.problem.slots().iter().copied().max().unwrap_or(0));
        let received = (1..=most_received).map(|count| count.saturating_mul(times.receive));
        let sent = (1..=ranks * most_received).map(|count| count.saturating_mul(times.send));
        let mut lengths: Vec<u64> = received.chain(sent).map(|length| length.max(times.hidden)).collect();
        lengths.sort_unstable();
        lengths.dedup();
        let mut listed: Vec<TransferLength> = vec![];
        for length in lengths {
            let count = |each: u64| {
                length.checked_div(each).map_or(u32::MAX, |count| count.min(u64::from(u32::MAX)) as u32)
            };
            let limits =
                CopyLimits { total: u32::MAX, received: count(times.receive), sent: count(times.send) };
            // Equal limits with a longer transfer are no better.
            if limits.received == 0 || limits.sent == 0 || listed.last().is_some_and(|l| l.limits == limits) {
                continue;
            }
            let each = u64::from(limits.received.min(limits.sent)).min(ranks * most_received);
            let all = ranks.saturating_mul(each).min(u64::from(u32::MAX)) as u32;
            let least_peak = self.bound_peak(all).max(self.groups.bound_peak_by_sent(limits.sent));
            let exposed = length - times.hidden;
            let least_time = u64::from(least_peak).saturating_mul(times.token).saturating_add(exposed);
            listed.push(TransferLength { limits, exposed, least_peak, least_time });
        }
        listed
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

    fn start_peak(&self) -> u32 {
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
