//! Lower bounds on the number of copies, and on the peak.
//!
//! In: the loads of *groups*, which are ranks that share items before any copy is made. Out: a number of
//! copies that no plan with a given peak goes below, and a peak that no plan with a given number of copies
//! goes below.
//!
//! **Proof.** Copies join groups. In the end, every set of joined groups carries all its load within its own
//! ranks, so at peak `T` its groups' *excess* (load minus `T` per rank) is at most its groups' *room*. A set
//! of `g` groups needs at least `g - 1` copies. Let `n(x)` be the least number of rooms that add up to `x`.
//! A set with the donors `D` has at least `n(excess of D)` groups with room, hence at least `|D| - 1 +
//! n(excess of D)` copies. The rooms are sorted, so `n` obeys `n(x + y) >= n(x) + n(y) - 1`. The sum over all
//! sets is therefore at least `n(excess of A) + sum of n(excess of d)` over the donors `d` outside `A`, for
//! every set `A` of donors, because the sets have no room in common. Copies between ranks of one group,
//! copies into overloaded ranks and copies that pass tokens on are all covered.

/// Groups of ranks that share items.
#[derive(Debug, Clone, Default)]
pub(super) struct LoadGroups {
    /// Group of every rank while groups are joined: the parent in a forest, `[ranks]`.
    parent: Vec<u32>,
    /// Ranks, load and dynamic slots of every group.
    groups: Vec<LoadGroup>,
    total: u64,
    largest_item: u64,
    ranks: u64,
    excess: Vec<u64>,
    /// Sums of the largest rooms: of none, of one, and so on.
    room_sums: Vec<u64>,
    rooms: Vec<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct LoadGroup {
    ranks: u64,
    load: u64,
    slots: u64,
}

impl LoadGroups {
    /// Forms the groups of ranks with these loads and numbers of dynamic slots.
    pub(super) fn form(
        &mut self,
        loads: &[u32],
        slots: impl Fn(usize) -> u64,
        shared: impl IntoIterator<Item = (usize, usize)>,
        largest_item: u32,
    ) {
        let ranks = loads.len();
        self.parent.clear();
        self.parent.extend(0..ranks as u32);
        for (one, other) in shared {
            let (a, b) = (self.find_root(one), self.find_root(other));
            self.parent[a.max(b)] = a.min(b) as u32;
        }
        self.groups.clear();
        self.groups.resize(ranks, LoadGroup::default());
        for (rank, &load) in loads.iter().enumerate() {
            let root = self.find_root(rank);
            let group = &mut self.groups[root];
            group.ranks += 1;
            group.load += u64::from(load);
            group.slots += slots(rank);
        }
        self.groups.retain(|group| group.ranks > 0);
        self.total = loads.iter().map(|&load| u64::from(load)).sum();
        self.largest_item = u64::from(largest_item);
        self.ranks = ranks as u64;
    }

    fn find_root(&self, rank: usize) -> usize {
        let mut root = rank;
        while self.parent[root] as usize != root {
            root = self.parent[root] as usize;
        }
        root
    }

    /// Returns a number of copies that every plan with this peak makes, or `None` if no plan has this peak.
    pub(super) fn count_copies(&mut self, peak: u32) -> Option<u32> {
        let peak = u64::from(peak);
        if self.total > peak * self.ranks {
            return None;
        }
        self.excess.clear();
        self.rooms.clear();
        for group in &self.groups {
            let capacity = peak * group.ranks;
            if group.load > capacity {
                self.excess.push(group.load - capacity);
            } else {
                // A copy brings at most all tokens of the largest item.
                self.rooms.push((capacity - group.load).min(group.slots * self.largest_item));
            }
        }
        if self.excess.is_empty() {
            return Some(0);
        }
        self.rooms.sort_unstable_by(|a, b| b.cmp(a));
        self.room_sums.clear();
        self.room_sums.push(0);
        let mut sum = 0;
        for &room in self.rooms.iter().take_while(|&&room| room > 0) {
            sum += room;
            self.room_sums.push(sum);
        }
        let sums = &self.room_sums;
        let needed = |excess: u64| sums.partition_point(|&sum| sum < excess) as u64;
        let all: u64 = self.excess.iter().sum();
        if all > sum {
            return None;
        }
        self.excess.sort_unstable();
        let singly: u64 = self.excess.iter().map(|&excess| needed(excess)).sum();
        let (mut joined, mut rest, mut best) = (0, singly, singly.max(needed(all)));
        for &excess in &self.excess {
            joined += excess;
            rest -= needed(excess);
            best = best.max(needed(joined) + rest).max(needed(all - joined) + singly - rest);
        }
        Some(best.min(u64::from(u32::MAX)) as u32)
    }

    /// Returns a peak that no plan with at most this number of copies goes below.
    pub(super) fn bound_peak(&mut self, copies: u32, at_most: u32) -> u32 {
        let (mut low, mut high) = (self.total.div_ceil(self.ranks.max(1)) as u32, at_most);
        let mut first = true;
        while low < high {
            // The mean itself is mostly possible.
            let middle = if std::mem::take(&mut first) { low } else { low + (high - low) / 2 };
            if self.count_copies(middle).is_some_and(|least| least <= copies) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        high
    }

    /// Returns a peak that no plan goes below if every rank sends at most this number of copies. The load of
    /// a group then stays on its own ranks and on one rank per copy.
    pub(super) fn bound_peak_by_sent(&self, sent: u32) -> u32 {
        let ranks = |group: &LoadGroup| (group.ranks * (1 + u64::from(sent))).min(self.ranks);
        self.groups.iter().map(|group| group.load.div_ceil(ranks(group)) as u32).max().unwrap_or(0)
    }
}

/// Bound by the tokens that can leave the busiest rank, for batches in which no item is shared before the
/// copies.
///
/// **Proof.** If the busiest rank sends `k` copies, its tokens are on `k + 1` ranks. Any other rank ends with
/// its own tokens and those of its copies at most. None of these items is from the busiest rank. The *cap* of
/// a rank is its load, plus the largest such item for every copy. The total is at most the peak for the
/// `k + 1` ranks, and the peak or the cap for the others. The lowest `k` caps are left out, because the
/// busiest rank may send there.
#[derive(Debug, Default)]
pub(super) struct BusiestRank {
    /// Load and dynamic slots of every other rank.
    others: Vec<(u64, u64)>,
    largest_item: u64,
    total: u64,
    received: Option<u64>,
    /// Caps of the other ranks for a number of copies that a rank may receive, ascending.
    caps: Vec<u64>,
}

impl BusiestRank {
    /// Creates the bound from the load and the slots of every other rank, and the largest of their items.
    pub(super) fn new(others: Vec<(u64, u64)>, largest_item: u64, total: u64) -> BusiestRank {
        BusiestRank { others, largest_item, total, ..BusiestRank::default() }
    }

    /// Returns a peak that no plan goes below if every rank sends and receives at most these numbers of
    /// copies.
    pub(super) fn bound_peak(&mut self, sent: u64, received: u64) -> u64 {
        if self.received != Some(received) {
            self.received = Some(received);
            self.caps.clear();
            let cap = |&(load, slots): &(u64, u64)| load + slots.min(received) * self.largest_item;
            self.caps.extend(self.others.iter().map(cap));
            self.caps.sort_unstable();
        }
        // Every cap below the bound raises it.
        let (mut left, mut ranks) = (self.total, self.caps.len() as u64 + 1);
        let mut peak = left.div_ceil(ranks);
        for &cap in self.caps.iter().skip(sent.min(self.caps.len() as u64) as usize) {
            if cap >= peak {
                break;
            }
            (left, ranks) = (left.saturating_sub(cap), ranks - 1);
            peak = left.div_ceil(ranks);
        }
        peak
    }
}
