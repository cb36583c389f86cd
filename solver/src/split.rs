//! The answer: quotas, rank loads, peak and certificate.

use std::sync::Arc;

use crate::{Hosts, Peak};

/// An optimal split of one batch of loads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// The quota of every (item, host) pair, in the numbering of [`Hosts`].
    pub quotas: Vec<u64>,
    /// The load of every rank, base load included.
    pub rank_loads: Vec<u64>,
    /// The largest ratio of load to speed: that of the lowest rank which attains it.
    pub peak: Peak,
    /// Ranks, ascending, that together prove the peak cannot be lower; see [`verify`](crate::verify).
    pub certificate: Vec<u32>,
    offsets: Arc<[u32]>,
}

impl Split {
    /// The quotas of one item, in the order of its hosts.
    ///
    /// # Panics
    /// If there is no such item, as a slice would.
    pub fn quotas_of(&self, item: usize) -> &[u64] {
        &self.quotas[self.offsets[item] as usize..self.offsets[item + 1] as usize]
    }

    /// Gives every vector its size for these hosts, quotas still to be written; allocates only on growth.
    pub(crate) fn fit(&mut self, hosts: &Hosts) {
        if !Arc::ptr_eq(&self.offsets, hosts.offsets()) {
            self.offsets = Arc::clone(hosts.offsets());
        }
        self.quotas.resize(hosts.len(), 0);
        self.rank_loads.resize(hosts.ranks(), 0);
        self.certificate.clear();
        self.certificate.reserve(hosts.ranks());
    }
}

impl Default for Split {
    /// The split of no items over no ranks: memory for [`solve_into`](crate::solve_into) to reuse.
    fn default() -> Split {
        Split {
            quotas: Vec::new(),
            rank_loads: Vec::new(),
            peak: Peak { load: 0, speed: 1 },
            certificate: Vec::new(),
            offsets: Arc::from([0]),
        }
    }
}
