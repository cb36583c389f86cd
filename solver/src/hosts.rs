//! Which ranks may serve which item, as two compressed sparse rows: item → hosts, and, for the items
//! with a choice, rank → items.
//!
//! In: lists of ranks, in any order. Out: sorted, distinct, checked lists that the solver can walk in
//! both directions without another check.

use std::sync::Arc;

use crate::Error;

/// The hosts of every item: sorted, distinct ranks, at least one each.
///
/// The (item, host) pairs are numbered item by item, hosts ascending: the pairs of item `i` are
/// `offset(i)..offset(i + 1)`. Vectors of quotas and shares are *aligned* with this numbering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    ranks: usize,
    /// `items + 1` bounds into `hosts`. Shared with every [`Split`](crate::Split) of this problem, so that
    /// a split can find an item's quotas by itself.
    offsets: Arc<[u32]>,
    /// The host of every pair.
    pairs: Vec<u32>,
    /// The items with two hosts or more, ascending: only these leave a choice.
    shared: Vec<u32>,
    /// `ranks + 1` bounds into `seats`.
    seat_offsets: Vec<u32>,
    seats: Vec<Seat>,
}

/// One shared item's place on one rank: the transposed index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    /// The item.
    pub(crate) item: u32,
    /// The number of the (item, host) pair.
    pub(crate) pair: u32,
}

impl Hosts {
    /// The largest number of ranks.
    pub const MAX_RANKS: usize = 1024;

    /// Takes the hosts of each item in turn, in any order.
    ///
    /// # Errors
    /// [`Error::RankCount`] unless there are 1 to [`MAX_RANKS`](Self::MAX_RANKS) ranks;
    /// [`Error::NoHost`], [`Error::HostOutOfRange`] or [`Error::DuplicateHost`] for the first item whose
    /// hosts are not a non-empty set of ranks; [`Error::TooManyPairs`] beyond 2³² − 1 pairs.
    pub fn new<I, H>(ranks: usize, items: I) -> Result<Hosts, Error>
    where
        I: IntoIterator<Item = H>,
        H: AsRef<[u32]>,
    {
        if ranks == 0 || ranks > Self::MAX_RANKS {
            return Err(Error::RankCount { ranks });
        }
        let mut offsets = vec![0u32];
        let mut hosts: Vec<u32> = Vec::new();
        let mut shared = Vec::new();
        for (item, list) in items.into_iter().enumerate() {
            let begin = hosts.len();
            hosts.extend_from_slice(list.as_ref());
            let own = &mut hosts[begin..];
            own.sort_unstable();
            let Some(&last) = own.last() else { return Err(Error::NoHost { item }) };
            if last as usize >= ranks {
                return Err(Error::HostOutOfRange { item, host: last, ranks });
            }
            if let Some(pair) = own.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(Error::DuplicateHost { item, host: pair[0] });
            }
            if own.len() > 1 {
                shared.push(item as u32);
            }
            offsets.push(u32::try_from(hosts.len()).map_err(|_| Error::TooManyPairs { item })?);
        }
        let (seat_offsets, seats) = transpose(ranks, &offsets, &hosts, &shared);
        Ok(Hosts { ranks, offsets: offsets.into(), pairs: hosts, shared, seat_offsets, seats })
    }

    /// The number of ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The number of items.
    pub fn items(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The hosts of an item, ascending.
    ///
    /// # Panics
    /// If `item` is not below [`items`](Self::items), as a slice would.
    pub fn of(&self, item: usize) -> &[u32] {
        &self.pairs[self.offset(item)..self.offset(item + 1)]
    }

    /// The number of the item's first (item, host) pair; `offset(items())` is [`len`](Self::len).
    ///
    /// # Panics
    /// If `item` is above [`items`](Self::items), as a slice would.
    pub fn offset(&self, item: usize) -> usize {
        self.offsets[item] as usize
    }

    /// The number of (item, host) pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there is no item at all.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The items with two hosts or more, ascending.
    pub(crate) fn shared(&self) -> &[u32] {
        &self.shared
    }

    /// The host of every (item, host) pair.
    pub(crate) fn pairs(&self) -> &[u32] {
        &self.pairs
    }

    /// The bounds of every item's pairs.
    pub(crate) fn offsets(&self) -> &Arc<[u32]> {
        &self.offsets
    }

    /// The shared items' places on all ranks, rank by rank, items ascending.
    pub(crate) fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// The bounds of every rank's seats.
    pub(crate) fn seat_offsets(&self) -> &[u32] {
        &self.seat_offsets
    }
}

/// Counting sort of the shared items' pairs by rank.
fn transpose(ranks: usize, offsets: &[u32], hosts: &[u32], shared: &[u32]) -> (Vec<u32>, Vec<Seat>) {
    let pairs = || {
        shared.iter().flat_map(|&item| {
            (offsets[item as usize]..offsets[item as usize + 1]).map(move |pair| Seat { item, pair })
        })
    };
    let mut bounds = vec![0u32; ranks + 1];
    for seat in pairs() {
        bounds[hosts[seat.pair as usize] as usize + 1] += 1;
    }
    for rank in 0..ranks {
        bounds[rank + 1] += bounds[rank];
    }
    let mut next = bounds.clone();
    let mut seats = vec![Seat { item: 0, pair: 0 }; bounds[ranks] as usize];
    for seat in pairs() {
        let slot = &mut next[hosts[seat.pair as usize] as usize];
        seats[*slot as usize] = seat;
        *slot += 1;
    }
    (bounds, seats)
}
