//! The expert-parallel group: ranks, nodes, slots, and the network between the ranks.

mod network;
mod presets;

pub use network::{LinkParameters, NETWORK_FORMAT, Network, NetworkError};
pub use presets::{LinkPreset, PRESETS, SYSTEMS, SystemPreset};

use thiserror::Error;

/// Highest number of ranks of an expert-parallel group.
pub const MAX_RANKS: usize = 1024;
/// Highest number of logical experts of a layer.
pub const MAX_EXPERTS: usize = 65_536;
/// Highest number of slots of all ranks in one layer: one redundant slot per expert.
pub const MAX_SLOTS: usize = 2 * MAX_EXPERTS;

/// An expert-parallel group of equally fast ranks.
///
/// Rank `r` owns the slots `r * S .. (r + 1) * S`, where `S` is [`Cluster::slots_per_rank`]. Node `n` owns
/// the ranks `n * R / N .. (n + 1) * R / N`. If slots do not divide over the ranks
/// ([`Cluster::with_uneven_slots`]), the last slot of some ranks is never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    ranks: usize,
    nodes: usize,
    slots_per_rank: usize,
    /// Slots of all ranks that may hold an expert.
    usable_slots: usize,
}

/// Error of a cluster that cannot exist.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// No rank, or more than [`MAX_RANKS`].
    #[error("{0} ranks: expected 1 to {MAX_RANKS}")]
    Ranks(usize),
    /// Ranks do not divide over the nodes.
    #[error("{ranks} ranks do not divide over {nodes} nodes: expected a divisor of {ranks}")]
    Nodes {
        /// Requested ranks.
        ranks: usize,
        /// Requested nodes.
        nodes: usize,
    },
    /// Slots do not divide over the ranks.
    #[error(
        "{experts} experts and {redundant} redundant slots do not divide over {ranks} ranks: the nearest \
         numbers of redundant slots that do are {}", nearest_redundant_counts(*experts, *redundant, *ranks)
    )]
    Slots {
        /// Logical experts.
        experts: usize,
        /// Requested redundant slots.
        redundant: usize,
        /// Requested ranks.
        ranks: usize,
    },
    /// More logical experts than [`MAX_EXPERTS`].
    #[error("{0} experts: expected {MAX_EXPERTS} at most")]
    TooManyExperts(usize),
    /// More slots than [`MAX_SLOTS`].
    #[error("{0} slots of all ranks together: expected {MAX_SLOTS} at most")]
    TooManySlots(usize),
}

fn nearest_redundant_counts(experts: usize, redundant: usize, ranks: usize) -> String {
    let over = (experts + redundant) % ranks;
    let above = redundant + (ranks - over);
    match redundant.checked_sub(over) {
        Some(below) => format!("{below} and {above}"),
        None => above.to_string(),
    }
}

/// Builder of a [`Cluster`], in which every number has its name.
///
/// ```
/// use evenkeel::cluster::Cluster;
///
/// let cluster = Cluster::builder().ranks(32).nodes(4).experts(256).redundant_slots(32).build()?;
/// assert_eq!(cluster, Cluster::new(32, 4, 256, 32)?);
/// # Ok::<(), evenkeel::cluster::ClusterError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct ClusterBuilder {
    ranks: usize,
    nodes: usize,
    experts: usize,
    redundant_slots: usize,
    uneven: bool,
}

impl ClusterBuilder {
    /// Sets the number of ranks in the group.
    pub fn ranks(mut self, ranks: usize) -> Self {
        self.ranks = ranks;
        self
    }

    /// Sets the number of nodes. The default is 1.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Sets the number of logical experts per layer.
    pub fn experts(mut self, experts: usize) -> Self {
        self.experts = experts;
        self
    }

    /// Sets the number of slots beyond one per expert, over all ranks. The default is 0.
    pub fn redundant_slots(mut self, slots: usize) -> Self {
        self.redundant_slots = slots;
        self
    }

    /// Allows slots that do not divide over the ranks, as [`Cluster::with_uneven_slots`] does.
    pub fn uneven(mut self, uneven: bool) -> Self {
        self.uneven = uneven;
        self
    }

    /// Creates the cluster.
    ///
    /// # Errors
    /// Fails as [`Cluster::new`] or [`Cluster::with_uneven_slots`] does.
    pub fn build(self) -> Result<Cluster, ClusterError> {
        let Self { ranks, nodes, experts, redundant_slots, uneven } = self;
        let create = if uneven { Cluster::with_uneven_slots } else { Cluster::new };
        create(ranks, nodes, experts, redundant_slots)
    }
}

impl Cluster {
    /// Returns a builder of a group in one node.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder { ranks: 0, nodes: 1, experts: 0, redundant_slots: 0, uneven: false }
    }

    /// Creates a group of `ranks` in `nodes`, with slots for `experts` logical experts and `redundant`
    /// further replicas. `redundant` counts over all ranks, not per rank.
    ///
    /// # Errors
    /// Fails if ranks do not divide over nodes, or slots over ranks. The message names the nearest numbers
    /// that do.
    pub fn new(ranks: usize, nodes: usize, experts: usize, redundant: usize) -> Result<Self, ClusterError> {
        let cluster = Self::with_uneven_slots(ranks, nodes, experts, redundant)?;
        if !cluster.is_even() {
            return Err(ClusterError::Slots { experts, redundant, ranks });
        }
        Ok(cluster)
    }

    /// Creates a group as [`Cluster::new`] does, for slots that need not divide over the ranks. The lowest
    /// ranks have one usable slot more than the others, whose last slot stays empty.
    ///
    /// # Errors
    /// Fails if there are no ranks or slots, or too many, or if the ranks do not divide over the nodes.
    pub fn with_uneven_slots(
        ranks: usize,
        nodes: usize,
        experts: usize,
        redundant: usize,
    ) -> Result<Self, ClusterError> {
        if ranks == 0 || ranks > MAX_RANKS {
            return Err(ClusterError::Ranks(ranks));
        }
        if nodes == 0 || !ranks.is_multiple_of(nodes) {
            return Err(ClusterError::Nodes { ranks, nodes });
        }
        if experts > MAX_EXPERTS {
            return Err(ClusterError::TooManyExperts(experts));
        }
        let usable = experts.saturating_add(redundant);
        if usable > MAX_SLOTS {
            return Err(ClusterError::TooManySlots(usable));
        }
        if usable == 0 {
            return Err(ClusterError::Slots { experts, redundant, ranks });
        }
        Ok(Self { ranks, nodes, slots_per_rank: usable.div_ceil(ranks), usable_slots: usable })
    }

    /// Returns the number of ranks in the group, `R`.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Returns the number of nodes.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Returns the node of a rank.
    pub fn node_of(&self, rank: usize) -> usize {
        rank / (self.ranks / self.nodes)
    }

    /// Returns the number of slots on each rank, `S`.
    pub fn slots_per_rank(&self) -> usize {
        self.slots_per_rank
    }

    /// Returns the number of slots of all ranks, `R * S`, usable or not.
    pub fn slots(&self) -> usize {
        self.ranks * self.slots_per_rank
    }

    /// Returns the number of slots of a rank that may hold an expert. They are the first of its `S` slots.
    pub fn slots_of(&self, rank: usize) -> usize {
        let short = self.slots() - self.usable_slots;
        self.slots_per_rank - usize::from(rank >= self.ranks - short)
    }

    /// Returns the number of slots of all ranks that may hold an expert.
    pub fn usable_slots(&self) -> usize {
        self.usable_slots
    }

    /// Returns true if all ranks have the same number of usable slots.
    pub fn is_even(&self) -> bool {
        self.usable_slots == self.slots()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_shared_out_evenly() {
        let cluster = Cluster::new(8, 2, 32, 8).unwrap();
        assert_eq!((cluster.slots_per_rank(), cluster.slots()), (5, 40));
    }

    #[test]
    fn slots_that_do_not_divide_are_spread() {
        let cluster = Cluster::with_uneven_slots(4, 1, 10, 4).unwrap();
        assert_eq!((cluster.slots_per_rank(), cluster.slots(), cluster.usable_slots()), (4, 16, 14));
        assert_eq!((0..4).map(|rank| cluster.slots_of(rank)).collect::<Vec<_>>(), [4, 4, 3, 3]);
        assert!(!cluster.is_even() && Cluster::new(4, 1, 10, 2).unwrap().is_even());
        let builder = Cluster::builder().ranks(4).experts(10).redundant_slots(4);
        assert_eq!(builder.uneven(true).build(), Ok(cluster));
        assert_eq!(builder.build(), Cluster::new(4, 1, 10, 4));
        assert_eq!(Cluster::with_uneven_slots(4, 1, 10, 2), Cluster::new(4, 1, 10, 2));
    }

    #[test]
    fn what_does_not_divide_is_refused_with_advice() {
        let message = |r| Cluster::new(8, 1, 60, r).unwrap_err().to_string();
        assert!(message(0).ends_with("are 4"), "{}", message(0));
        assert!(message(5).ends_with("are 4 and 12"), "{}", message(5));
        assert_eq!(Cluster::new(0, 1, 8, 0), Err(ClusterError::Ranks(0)));
        assert_eq!(Cluster::new(8, 3, 8, 0), Err(ClusterError::Nodes { ranks: 8, nodes: 3 }));
        assert!(Cluster::new(8, 1, usize::MAX, 9).is_err());
    }
}
