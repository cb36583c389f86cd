//! The expert-parallel group: how many ranks, in how many nodes, with how many slots; what lies between them.

mod network;
mod presets;

pub use network::{BadNetwork, Link, NETWORK_FORMAT, Network};
pub use presets::{PRESETS, Preset, SYSTEMS};

use thiserror::Error;

/// Most ranks that an expert-parallel group may have.
pub const MAX_RANKS: usize = 1024;

/// An expert-parallel group of equally fast ranks.
///
/// Rank `r` owns the slots `r * S .. (r + 1) * S`, where `S` is [`Cluster::slots_per_rank`]; node `n` owns
/// the ranks `n * R / N .. (n + 1) * R / N`. Where slots do not divide over the ranks ([`Cluster::uneven`]), the last slot
/// of some ranks is never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    ranks: usize,
    nodes: usize,
    slots_per_rank: usize,
    /// Slots that may hold an expert, of all ranks together.
    usable: usize,
}

/// A cluster that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// No rank, or more than [`MAX_RANKS`].
    #[error("{0} ranks: expected 1 to {MAX_RANKS}")]
    Ranks(usize),
    /// Ranks do not divide over the nodes.
    #[error("{ranks} ranks do not divide over {nodes} nodes: expected a divisor of {ranks}")]
    Nodes {
        /// Ranks asked for.
        ranks: usize,
        /// Nodes asked for.
        nodes: usize,
    },
    /// Slots do not divide over the ranks.
    #[error(
        "{experts} experts and {redundant} redundant slots do not divide over {ranks} ranks: the nearest \
         numbers of redundant slots that do are {}", nearest(*experts, *redundant, *ranks)
    )]
    Slots {
        /// Logical experts.
        experts: usize,
        /// Redundant slots asked for.
        redundant: usize,
        /// Ranks asked for.
        ranks: usize,
    },
    /// More slots than an index can name.
    #[error("{0} slots are more than this program can number (2^32 - 1)")]
    TooManySlots(usize),
}

fn nearest(experts: usize, redundant: usize, ranks: usize) -> String {
    let over = (experts + redundant) % ranks;
    let above = redundant + (ranks - over);
    match redundant.checked_sub(over) {
        Some(below) => format!("{below} and {above}"),
        None => above.to_string(),
    }
}

impl Cluster {
    /// A group of `ranks` in `nodes`, with room for `experts` logical experts and `redundant` further copies in
    /// all (not per rank).
    ///
    /// # Errors
    /// When nothing can be divided evenly; the message names the nearest numbers that can.
    pub fn new(ranks: usize, nodes: usize, experts: usize, redundant: usize) -> Result<Self, ClusterError> {
        let cluster = Self::uneven(ranks, nodes, experts, redundant)?;
        if !cluster.is_even() {
            return Err(ClusterError::Slots { experts, redundant, ranks });
        }
        Ok(cluster)
    }

    /// As [`Cluster::new`], for slots that need not divide over the ranks: the lowest ranks have one usable slot more
    /// than the others, whose last slot stays empty.
    ///
    /// # Errors
    /// When there is no rank, no slot or too many of either, or the ranks do not divide over the nodes.
    pub fn uneven(
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
        let usable = experts.saturating_add(redundant);
        if usable >= u32::MAX as usize - MAX_RANKS {
            return Err(ClusterError::TooManySlots(usable));
        }
        if usable == 0 {
            return Err(ClusterError::Slots { experts, redundant, ranks });
        }
        Ok(Self { ranks, nodes, slots_per_rank: usable.div_ceil(ranks), usable })
    }

    /// Ranks in the group, `R`.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Nodes that the ranks sit in.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// The node that a rank sits in.
    pub fn node_of(&self, rank: usize) -> usize {
        rank / (self.ranks / self.nodes)
    }

    /// Slots on each rank, `S`.
    pub fn slots_per_rank(&self) -> usize {
        self.slots_per_rank
    }

    /// Slots in all, `R * S`, usable or not.
    pub fn slots(&self) -> usize {
        self.ranks * self.slots_per_rank
    }

    /// Slots of a rank that may hold an expert: the first so many of its `S`.
    pub fn usable(&self, rank: usize) -> usize {
        let short = self.slots() - self.usable;
        self.slots_per_rank - usize::from(rank >= self.ranks - short)
    }

    /// Slots of all ranks that may hold an expert.
    pub fn usable_slots(&self) -> usize {
        self.usable
    }

    /// Have all ranks the same number of usable slots?
    pub fn is_even(&self) -> bool {
        self.usable == self.slots()
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
        let cluster = Cluster::uneven(4, 1, 10, 4).unwrap();
        assert_eq!((cluster.slots_per_rank(), cluster.slots(), cluster.usable_slots()), (4, 16, 14));
        assert_eq!((0..4).map(|rank| cluster.usable(rank)).collect::<Vec<_>>(), [4, 4, 3, 3]);
        assert!(!cluster.is_even() && Cluster::new(4, 1, 10, 2).unwrap().is_even());
        assert_eq!(Cluster::uneven(4, 1, 10, 2), Cluster::new(4, 1, 10, 2));
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
