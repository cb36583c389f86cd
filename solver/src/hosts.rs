//! Which ranks may serve which item: a compressed sparse row, item → hosts.
//!
//! In: lists of ranks, in any order. Out: sorted, distinct, checked lists, and the index lists made of them
//! that the solver walks without another check (`net`).

use std::sync::Arc;

use crate::Error;
use crate::net::Net;

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
    net: Arc<Net>,
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
        let net = Arc::new(Net::compile(ranks, &offsets, &hosts));
        Ok(Hosts { ranks, offsets: offsets.into(), pairs: hosts, shared, net })
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

    /// The bounds of every item's pairs.
    pub(crate) fn offsets(&self) -> &Arc<[u32]> {
        &self.offsets
    }

    /// The compiled form that the fast loop walks.
    pub(crate) fn net(&self) -> &Net {
        &self.net
    }
}
