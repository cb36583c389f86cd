//! Result of the solver: quotas, rank loads, peak and certificate.

use std::sync::Arc;

use crate::{Hosts, Peak};

/// Optimal split of one batch of loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankSplit {
    /// Quota of every (item, host) pair, in the numbering of [`Hosts`].
    pub quotas: Vec<u64>,
    /// Load of every rank, base load included.
    pub rank_loads: Vec<u64>,
    /// Highest ratio of load to speed, as that of the lowest rank that attains it.
    pub peak: Peak,
    /// Ranks, ascending, that together prove that the peak cannot be lower; see [`verify`](crate::verify).
    pub certificate: Vec<u32>,
    offsets: Arc<[u32]>,
}

impl RankSplit {
    /// Returns the quotas of one item, in the order of its hosts.
    ///
    /// # Panics
    /// Panics if there is no such item, as a slice does.
    pub fn quotas_of(&self, item: usize) -> &[u64] {
        &self.quotas[self.offsets[item] as usize..self.offsets[item + 1] as usize]
    }

    /// Gives every vector its size for these hosts. The quotas are written later. Allocates only on growth.
    pub(crate) fn resize_for(&mut self, hosts: &Hosts) {
        if !Arc::ptr_eq(&self.offsets, hosts.offsets()) {
            self.offsets = Arc::clone(hosts.offsets());
        }
        self.quotas.resize(hosts.len(), 0);
        self.rank_loads.resize(hosts.ranks(), 0);
        self.certificate.clear();
        self.certificate.reserve(hosts.ranks());
    }
}

impl Default for RankSplit {
    /// Returns the split of no items over no ranks, as memory that [`solve_into`](crate::solve_into) reuses.
    fn default() -> RankSplit {
        RankSplit {
            quotas: Vec::new(),
            rank_loads: Vec::new(),
            peak: Peak { load: 0, speed: 1 },
            certificate: Vec::new(),
            offsets: Arc::from([0]),
        }
    }
}
