//! Search for the least time of the busiest rank and of the exposed transfers.
//!
//! In: the split without copies, and the times of tokens and copies. Out: the best contents of the dynamic
//! slots, with tokens, and a lower bound on the time.
//!
//! Every plan has a longest transfer, which limits the copies of each rank. For each possible length, bounds
//! on the peak give a least time. The lengths share one best plan, and each is searched only for peaks that
//! would be better. The steps:
//!
//! 1. Half of the gap between the busiest and the least loaded rank moves, again and again. Ranks then pass
//!    tokens on that they do not own, so that each of them sends few copies.
//! 2. The excess leaves overloaded ranks directly. A rank that sends `k` copies fills at most `k` rooms. An
//!    expected peak follows, and the lengths are searched in ascending order of the expected time.
//! 3. Contents are exchanged for the best length, and for more lengths if the effort permits.

use super::bounds::BusiestRank;
use super::state::CopyLimits;
use super::{BestContents, CopySolver, CopyTimes};

/// Longest transfer of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TransferLength {
    limits: CopyLimits,
    /// Least time that nothing hides: that of the transfer, and of reading copies.
    exposed: u64,
    /// Lower bound on the peak within the limits.
    least_peak: u32,
    /// Lower bound on the time.
    least_time: u64,
    /// Lowest peak if the excess leaves overloaded ranks directly.
    expected_peak: u32,
    /// Time of the expected peak.
    expected_time: u64,
    /// Highest target that the construction missed.
    missed: u32,
}

/// Plan that takes the least time so far.
#[derive(Debug)]
struct FastestPlan {
    times: CopyTimes,
    time: u64,
    /// Length of the transfers with which it was found.
    length: Option<TransferLength>,
    contents: BestContents,
}

impl FastestPlan {
    /// Returns the lowest peak with which transfers of a length are no better than this plan.
    fn useless_peak(&self, length: &TransferLength) -> u32 {
        let left = self.time.saturating_sub(length.exposed);
        left.div_ceil(self.times.token.max(1)).min(u64::from(u32::MAX)) as u32
    }
}

impl CopySolver {
    /// Finds the least time of peak and exposed transfers, and returns a lower bound of it.
    pub(super) fn find_least_time(&mut self, times: CopyTimes) -> u64 {
        let time = times.add_exposed(self.best.peak, 0, 0);
        let mut fastest = FastestPlan { times, time, length: None, contents: self.best.clone() };
        let mut lengths = self.list_lengths(times);
        let bound =
            lengths.iter().map(|length| length.least_time).min().map_or(time, |least| least.min(time));
        if self.state.shares_items {
            self.search_some_lengths(&lengths, &mut fastest);
        } else {
            self.search_half_gaps(&mut lengths, &mut fastest);
            self.search_expected_peaks(&mut lengths, &mut fastest);
        }
        self.exchange_for_time(&mut lengths, &mut fastest);
        self.best = fastest.contents;
        bound
    }

    /// Moves half gaps within the lengths, in ascending order of the least time, until three of them in turn
    /// bring nothing.
    fn search_half_gaps(&mut self, lengths: &mut [TransferLength], fastest: &mut FastestPlan) {
        lengths.sort_unstable_by_key(|length| (length.least_time, length.exposed));
        let (mut misses, mut longest) = (0, u64::MAX);
        for length in lengths {
            if length.least_time >= fastest.time || misses == 3 {
                break;
            }
            if length.exposed > longest {
                continue;
            }
            let peak = self.use_half_gaps(length.least_peak, length.limits);
            misses = if self.keep_faster(length, peak, fastest) { 0 } else { misses + 1 };
            let (received, sent) = (highest(&self.state.received), highest(&self.state.sent));
            // Longer transfers give the same plan if no limit binds.
            if received < length.limits.received && sent < length.limits.sent {
                longest = length.exposed;
            }
        }
    }

    /// Constructs a plan a little above the expected peak of each length, and then lowers the peaks.
    fn search_expected_peaks(&mut self, lengths: &mut [TransferLength], fastest: &mut FastestPlan) {
        lengths.sort_unstable_by_key(|length| (length.expected_time, length.exposed));
        for length in lengths.iter_mut() {
            if length.expected_time >= fastest.time {
                break;
            }
            let near = length.expected_peak.saturating_add(length.expected_peak / 256);
            let target = near.min(fastest.useless_peak(length).saturating_sub(1));
            if !self.construct(target, length, fastest) {
                length.missed = target;
            }
        }
        for length in lengths.iter_mut() {
            // A plan near the expected peak suggests that the peak itself is possible.
            if length.missed < length.expected_peak
                && length.expected_time < fastest.time
                && !self.construct(length.expected_peak, length, fastest)
            {
                length.missed = length.expected_peak;
            }
            self.construct_faster(length, length.expected_peak / 2048, fastest);
        }
    }

    /// Searches some lengths in growing steps, and then those around the best of them in halved steps. If
    /// items are shared, tokens leave without copies too, and no peak is expected.
    fn search_some_lengths(&mut self, lengths: &[TransferLength], fastest: &mut FastestPlan) {
        let (mut best, mut at, mut step) = (0, 0, 1);
        while let Some(length) = lengths.get(at) {
            if self.construct_faster(length, length.expected_peak / 512, fastest) {
                best = at;
            }
            step = at + 1;
            at += step;
        }
        while step > 1 {
            step /= 2;
            for at in [best.checked_sub(step), best.checked_add(step)].into_iter().flatten() {
                if let Some(length) = lengths.get(at)
                    && self.construct_faster(length, length.expected_peak / 512, fastest)
                {
                    best = at;
                }
            }
        }
        if let Some(length) = lengths.get(best) {
            self.construct_faster(length, length.expected_peak / 2048, fastest);
        }
    }

    /// Constructs plans of one length that take less time than the best one, in steps of the peak that are at
    /// least `fine`. Returns false if there is none.
    fn construct_faster(&mut self, length: &TransferLength, fine: u32, fastest: &mut FastestPlan) -> bool {
        let (fine, mut missed, mut faster) = (fine.max(1), length.missed, false);
        let mut target = fastest.useless_peak(length).saturating_sub(fine);
        while target > missed {
            let before = fastest.time;
            self.construct(target, length, fastest);
            if fastest.time < before {
                faster = true;
            } else if faster {
                missed = target;
            } else {
                return false;
            }
            let useless = fastest.useless_peak(length);
            if useless <= missed.saturating_add(fine) {
                break;
            }
            target = missed + (useless - missed) / 2;
        }
        faster
    }

    /// Constructs a plan, and stores it if it takes less time than the best one. Returns false if it is not
    /// complete.
    fn construct(&mut self, target: u32, length: &TransferLength, fastest: &mut FastestPlan) -> bool {
        let complete = self.serve_target(target, length.limits);
        if complete {
            let peak = self.state.lower_peak(length.least_peak);
            self.keep_faster(length, peak, fastest);
        }
        complete
    }

    /// Exchanges contents for the length of the best plan, and then for the nearest other lengths as far as
    /// the effort permits.
    fn exchange_for_time(&mut self, lengths: &mut [TransferLength], fastest: &mut FastestPlan) {
        let exchanges = self.effort.exchanges;
        let exposed = fastest.length.map_or(0, |length| length.exposed);
        if let Some(length) = fastest.length {
            self.best.clone_from(&fastest.contents);
            self.exchange_for_length(&length, exchanges / 8 * 5, fastest);
        }
        let more = exchanges as usize / (16 * self.state.loads.len().max(1));
        lengths.sort_unstable_by_key(|length| (length.exposed.abs_diff(exposed), length.exposed));
        let others = lengths.iter().filter(|length| length.exposed != exposed);
        for length in others.take(more) {
            if length.least_time < fastest.time {
                let peak = self.use_half_gaps(length.least_peak, length.limits);
                self.best.store(&self.state, peak);
                self.exchange_for_length(length, exchanges / 8, fastest);
            }
        }
    }

    /// Exchanges contents of the best plan for peaks with which a length takes less time.
    fn exchange_for_length(&mut self, length: &TransferLength, exchanges: u32, fastest: &mut FastestPlan) {
        let useless = fastest.useless_peak(length);
        if self.exchange_for_peak((length.limits, exchanges), length.least_peak, useless) < useless {
            self.best.load(&mut self.state);
            self.keep_faster(length, self.best.peak, fastest);
        }
    }

    /// Stores the present plan if it takes less time than the best one, and returns true if it does.
    fn keep_faster(&mut self, length: &TransferLength, peak: u32, fastest: &mut FastestPlan) -> bool {
        let (received, sent) = (highest(&self.state.received), highest(&self.state.sent));
        let time = fastest.times.add_exposed(peak, u64::from(received), u64::from(sent));
        let faster = time < fastest.time;
        if faster {
            fastest.contents.store(&self.state, peak);
            (fastest.time, fastest.length) = (time, Some(*length));
        }
        faster
    }

    /// Lists the lengths of the longest transfer that can take less time than no copies, in ascending order.
    fn list_lengths(&mut self, times: CopyTimes) -> Vec<TransferLength> {
        let ranks = self.state.loads.len() as u64;
        let most_received = u64::from(highest(self.problem.slots()));
        let most_sent = ranks * most_received;
        let mean = self.start.total().div_ceil(ranks.max(1)) as u32;
        let (at_mean, highest) = (self.bound_copies(mean), self.start_peak());
        let time_of =
            |peak: u32, exposed| u64::from(peak).saturating_mul(times.token).saturating_add(exposed);
        let direct = self.list_direct_peaks();
        let mut busiest = (!self.state.shares_items).then(|| self.list_others());
        let mut listed: Vec<TransferLength> = vec![];
        let (mut received, mut sent) = (0, 0);
        loop {
            // The next length permits one copy more to be received or to be sent.
            let longer = |count: u64, most, each| (count < most).then(|| (count + 1).saturating_mul(each));
            let next = [longer(received, most_received, times.receive), longer(sent, most_sent, times.send)];
            let Some(length) = next.into_iter().flatten().min() else { break };
            let length = length.max(times.hidden);
            let count = |each| length.checked_div(each).unwrap_or(u64::MAX).min(u64::from(u32::MAX));
            let before = (received, sent);
            (received, sent) = (count(times.receive), count(times.send));
            let exposed = |read: u64| (length - times.hidden).saturating_add(times.read.saturating_mul(read));
            if time_of(mean, exposed(1)) >= time_of(highest, 0) || (received, sent) == before {
                break;
            }
            if received == 0 || sent == 0 {
                continue;
            }
            // Fewer copies take less time to read, in transfers of the same length. Those that were possible
            // before are listed with a shorter one.
            let (fewest, most) = match before {
                _ if times.read == 0 => (received, received),
                (known, same) if same == sent => (known + 1, received.min(most_received)),
                _ => (1, received.min(most_received)),
            };
            for received in fewest..=most {
                let exposed = exposed(received);
                let limits = CopyLimits { total: u32::MAX, received: received as u32, sent: sent as u32 };
                let all =
                    ranks.saturating_mul(received.min(sent).min(most_sent)).min(u64::from(u32::MAX)) as u32;
                // The mean itself is mostly possible.
                let pooled =
                    if at_mean.is_some_and(|least| least <= all) { mean } else { self.bound_peak(all) };
                let by_sent = self.groups.bound_peak_by_sent(limits.sent);
                let by_busiest = busiest
                    .as_mut()
                    .map_or(0, |rank| rank.bound_peak(sent, received.min(most_received)) as u32);
                let least_peak = pooled.max(by_sent).max(by_busiest);
                let expected =
                    direct.get(sent as usize).or(direct.last()).filter(|_| !self.state.shares_items);
                let expected_peak = expected.map_or(least_peak, |&peak| least_peak.max(peak));
                listed.push(TransferLength {
                    limits,
                    exposed,
                    least_peak,
                    least_time: time_of(least_peak, exposed),
                    expected_peak,
                    expected_time: time_of(expected_peak, exposed),
                    missed: expected_peak.saturating_sub(1),
                });
            }
        }
        listed
    }

    /// Returns the loads and slots of all ranks but the busiest one, and the largest of their items.
    fn list_others(&self) -> BusiestRank {
        let loads = self.start.loads();
        let busiest = (0..loads.len()).max_by_key(|&rank| (loads[rank], std::cmp::Reverse(rank)));
        let ranks = (0..loads.len()).filter(|&rank| Some(rank) != busiest);
        let others =
            ranks.clone().map(|rank| (u64::from(loads[rank]), u64::from(self.problem.slots()[rank])));
        let items = ranks.flat_map(|rank| self.start.tokens()[self.state.slots(rank)].iter());
        let largest = u64::from(items.copied().max().unwrap_or(0));
        BusiestRank::new(others.collect(), largest, self.start.total())
    }

    /// Returns the lowest peaks of the busiest rank if it fills the largest rooms: none, one, and so on.
    fn list_direct_peaks(&self) -> Vec<u32> {
        let loads = self.start.loads().iter().zip(self.problem.slots());
        let mut lows: Vec<u32> = loads.filter(|&(_, &slots)| slots > 0).map(|(&load, _)| load).collect();
        lows.sort_unstable();
        let highest = self.start_peak();
        let (mut sum, mut least) = (u64::from(highest), highest);
        let mut peaks = vec![least];
        for (&low, ranks) in lows.iter().zip(2u64..) {
            sum += u64::from(low);
            least = least.min(sum.div_ceil(ranks) as u32);
            peaks.push(least);
        }
        peaks
    }
}

fn highest(counts: &[u32]) -> u32 {
    counts.iter().copied().max().unwrap_or(0)
}
