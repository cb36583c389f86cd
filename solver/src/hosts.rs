//! Hosts of every item, as a compressed sparse row from items to ranks.
//!
//! In: lists of ranks, in any order. Out: sorted, distinct, checked lists, and the index lists of the solver
//! (`network`), which need no further check.

use std::sync::Arc;

use crate::SolverError;
use crate::network::FlowNetwork;

/// Hosts of every item: sorted, distinct ranks, at least one each.
///
/// The (item, host) pairs are numbered item by item, hosts ascending. The pairs of item `i` are
/// `offset(i)..offset(i + 1)`. Vectors of quotas and shares are *aligned* with this numbering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    ranks: usize,
    /// `items + 1` bounds into `pairs`. Every [`RankSplit`](crate::RankSplit) of this problem shares them, so
    /// that a split finds an item's quotas on its own.
    offsets: Arc<[u32]>,
    /// Host of every pair.
    pairs: Vec<u32>,
    /// Items with two hosts or more, ascending. Only these leave a choice.
    shared: Vec<u32>,
    net: Arc<FlowNetwork>,
}

impl Hosts {
    /// Highest number of ranks.
    pub const MAX_RANKS: usize = 1024;

    /// Creates the hosts from the list of each item in turn, in any order.
    ///
    /// # Errors
    /// Returns [`SolverError::RankCount`] unless there are 1 to [`MAX_RANKS`](Self::MAX_RANKS) ranks. Returns
    /// [`SolverError::NoHost`], [`SolverError::HostOutOfRange`] or [`SolverError::DuplicateHost`] for the
    /// first item whose hosts are not a non-empty set of ranks. Returns [`SolverError::TooManyPairs`] beyond
    /// 2³² − 1 pairs.
    pub fn new<I, H>(ranks: usize, items: I) -> Result<Hosts, SolverError>
    where
        I: IntoIterator<Item = H>,
        H: AsRef<[u32]>,
    {
        if ranks == 0 || ranks > Self::MAX_RANKS {
            return Err(SolverError::RankCount { ranks });
        }
        let mut offsets = vec![0u32];
        let mut hosts: Vec<u32> = Vec::new();
        let mut shared = Vec::new();
        for (item, list) in items.into_iter().enumerate() {
            let begin = hosts.len();
            hosts.extend_from_slice(list.as_ref());
            let own = &mut hosts[begin..];
            own.sort_unstable();
            let Some(&last) = own.last() else { return Err(SolverError::NoHost { item }) };
            if last as usize >= ranks {
                return Err(SolverError::HostOutOfRange { item, host: last, ranks });
            }
            if let Some(pair) = own.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(SolverError::DuplicateHost { item, host: pair[0] });
            }
            if own.len() > 1 {
                shared.push(item as u32);
            }
            offsets.push(u32::try_from(hosts.len()).map_err(|_| SolverError::TooManyPairs { item })?);
        }
        let net = Arc::new(FlowNetwork::compile(ranks, &offsets, &hosts));
        Ok(Hosts { ranks, offsets: offsets.into(), pairs: hosts, shared, net })
    }

    /// Returns the number of ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Returns the number of items.
    pub fn items(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Returns the hosts of an item, ascending.
    ///
    /// # Panics
    /// Panics if `item` is not below [`items`](Self::items), as a slice does.
    pub fn ranks_of(&self, item: usize) -> &[u32] {
        &self.pairs[self.offset(item)..self.offset(item + 1)]
    }

    /// Returns the number of the item's first (item, host) pair. `offset(items())` is [`len`](Self::len).
    ///
    /// # Panics
    /// Panics if `item` is above [`items`](Self::items), as a slice does.
    pub fn offset(&self, item: usize) -> usize {
        self.offsets[item] as usize
    }

    /// Returns the number of (item, host) pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Returns true if there is no item at all.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Returns the items with two hosts or more, ascending.
    pub(crate) fn shared_items(&self) -> &[u32] {
        &self.shared
    }

    /// Returns the bounds of every item's pairs.
    pub(crate) fn offsets(&self) -> &Arc<[u32]> {
        &self.offsets
    }

    /// Returns the compiled form that the fast loop reads.
    pub(crate) fn flow_network(&self) -> &FlowNetwork {
        &self.net
    }
}
