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
//!
//! **Items.** The excess of a group leaves it in copies of its own items, each of which serves one item. So
//! it needs a copy of at least as many items as have the excess together. No two groups own an item in
//! common, so these numbers add up.
//!
//! **Few donors.** If `s` sets have donors, a plan with `c` copies joins at most `c - |D| + s` groups with
//! room to them. A larger room serves as well as a smaller one. So the donors and the largest rooms must
//! divide into `s` sets, each with room for its excess. All divisions of up to four donors are tried.

use std::ops::Range;

use super::state::CopyState;

/// Highest number of donors whose divisions are tried.
const MAX_DIVIDED: usize = 4;
/// Highest number of tries for one bound.
const DIVISION_TRIES: u32 = 256;

/// Groups of ranks that share items.
#[derive(Debug, Clone, Default)]
pub(super) struct LoadGroups {
    /// Group of every rank while groups are joined: the parent in a forest, `[ranks]`.
    parent: Vec<u32>,
    groups: Vec<LoadGroup>,
    /// Tokens of all slots before any copy is made, `[slots]`. Those of a group in descending order if it
    /// says so.
    tokens: Vec<u32>,
    total: u64,
    largest_item: u64,
    ranks: u64,
    excess: Vec<u64>,
    /// Sums of the largest rooms: of none, of one, and so on.
    room_sums: Vec<u64>,
    rooms: Vec<u64>,
    /// Peak of the last count, and its result.
    counted: Option<(u32, Option<u32>)>,
    pub(super) division: DonorDivision,
}

/// Division of donors and rooms into sets, each with room for its excess.
#[derive(Debug, Clone, Default)]
pub(super) struct DonorDivision {
    /// Number of sets, 0 if no division was found.
    pub(super) sets: usize,
    /// Set of every donor, in ascending order of excess.
    pub(super) set_of_donor: Vec<u32>,
    /// Set of every room, in descending order of rooms. A room without a set has the highest number.
    pub(super) set_of_room: Vec<u32>,
    /// Tokens of each set for which it has no room yet.
    needs: [u64; MAX_DIVIDED],
    tries: u32,
}

#[derive(Debug, Clone, Default)]
struct LoadGroup {
    ranks: u64,
    load: u64,
    slots: u64,
    /// Slots of its only rank. Empty if there are several ranks.
    tokens: Range<usize>,
    is_sorted: bool,
}

impl LoadGroup {
    /// Returns the least number of items of the group that have this number of tokens, or at least one.
    fn count_items(&mut self, excess: u64, tokens: &mut [u32]) -> u64 {
        let own = &mut tokens[self.tokens.clone()];
        if !self.is_sorted {
            let most = own.iter().copied().max().unwrap_or(0);
            if u64::from(most) >= excess {
                return 1;
            }
            own.sort_unstable_by(|a, b| b.cmp(a));
            self.is_sorted = true;
        }
        let mut left = excess;
        let enough = own.iter().position(|&tokens| {
            left = left.saturating_sub(u64::from(tokens));
            left == 0
        });
        enough.map_or(1, |at| at as u64 + 1)
    }
}

impl LoadGroups {
    /// Forms the groups of the ranks of a state without copies. `slots` are their dynamic slots.
    pub(super) fn form(
        &mut self,
        state: &CopyState,
        slots: &[u32],
        shared: impl IntoIterator<Item = (usize, usize)>,
        largest_item: u32,
    ) {
        let loads = &state.loads;
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
            group.slots += u64::from(slots[rank]);
            group.tokens = if group.ranks == 1 { state.slots(rank) } else { 0..0 };
        }
        self.groups.retain(|group| group.ranks > 0);
        self.counted = None;
        self.tokens.clone_from(&state.tokens);
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
        if let Some((_, least)) = self.counted.filter(|&(of, _)| of == peak) {
            return least;
        }
        let least = self.count_copies_once(peak);
        self.counted = Some((peak, least));
        least
    }

    fn count_copies_once(&mut self, peak: u32) -> Option<u32> {
        let peak = u64::from(peak);
        if self.total > peak * self.ranks {
            return None;
        }
        self.excess.clear();
        self.rooms.clear();
        let mut items = 0;
        for group in &mut self.groups {
            let capacity = peak * group.ranks;
            if group.load > capacity {
                self.excess.push(group.load - capacity);
                items += group.count_items(group.load - capacity, &mut self.tokens);
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
        let (mut joined, mut rest, mut best) = (0, singly, singly.max(needed(all)).max(items));
        for &excess in &self.excess {
            joined += excess;
            rest -= needed(excess);
            best = best.max(needed(joined) + rest).max(needed(all - joined) + singly - rest);
        }
        Some(best.min(u64::from(u32::MAX)) as u32)
    }

    /// Returns a number of copies that every plan with this peak makes, as
    /// [`count_copies`](Self::count_copies) does. Goes on up to `most` copies with the divisions of few
    /// donors, which take longer. If a division permits fewer copies, `division` holds it.
    pub(super) fn count_divided(&mut self, peak: u32, most: u32) -> Option<u32> {
        self.division.sets = 0;
        let mut least = self.count_copies(peak)?;
        let donors = self.excess.len();
        if donors <= MAX_DIVIDED {
            let mut division = std::mem::take(&mut self.division);
            division.set_of_donor.clear();
            division.set_of_donor.resize(donors, 0);
            division.set_of_room.clear();
            division.set_of_room.resize(self.rooms.len(), u32::MAX);
            division.tries = DIVISION_TRIES;
            while least < most && !self.divide_donors(0, u64::from(least), &mut division) {
                least += 1;
            }
            self.division = division;
        }
        Some(least)
    }

    /// Returns true if the donors from `at` on can join the sets, or new ones, so that a number of copies may
    /// suffice. Returns true without a division if no try is left.
    fn divide_donors(&self, at: usize, copies: u64, division: &mut DonorDivision) -> bool {
        let sets = division.sets;
        let Some(&excess) = self.excess.get(at) else {
            let rooms = (copies + sets as u64).saturating_sub(self.excess.len() as u64);
            let rooms = &self.rooms[..self.rooms.len().min(rooms as usize)];
            let may = division.fill_rooms(0, rooms, rooms.iter().sum());
            if division.tries == 0 {
                division.sets = 0;
            }
            return may;
        };
        for set in 0..=sets {
            division.sets = sets.max(set + 1);
            division.needs[set] += excess;
            division.set_of_donor[at] = set as u32;
            let may = self.divide_donors(at + 1, copies, division);
            division.needs[set] -= excess;
            if may {
                return true;
            }
        }
        division.sets = sets;
        false
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

impl DonorDivision {
    /// Returns true if rooms with this sum, each for one set, can have the needs of all sets. Returns true if
    /// no try is left.
    fn fill_rooms(&mut self, at: usize, rooms: &[u64], sum: u64) -> bool {
        let left: u64 = self.needs[..self.sets].iter().sum();
        if left > sum {
            return false;
        }
        self.tries = self.tries.saturating_sub(1);
        let Some(&room) = rooms.get(at).filter(|_| left > 0 && self.tries > 0) else { return true };
        for set in 0..self.sets {
            let need = self.needs[set];
            if need == 0 {
                continue;
            }
            self.needs[set] = need.saturating_sub(room);
            self.set_of_room[at] = set as u32;
            let may = self.fill_rooms(at + 1, rooms, sum - room);
            self.needs[set] = need;
            if may {
                return true;
            }
        }
        self.set_of_room[at] = u32::MAX;
        false
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
