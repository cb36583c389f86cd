//! What can be wrong with a problem or its loads. Every variant names the offending item or rank.

/// Why a problem could not be built or solved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// [`Hosts::new`](crate::Hosts::new) was given no rank, or more than [`Hosts::MAX_RANKS`](crate::Hosts::MAX_RANKS).
    #[error("{ranks} ranks: there must be 1 to {max}", max = crate::Hosts::MAX_RANKS)]
    RankCount {
        /// The number of ranks asked for.
        ranks: usize,
    },
    /// An item without any host: its load could go nowhere.
    #[error("item {item} has no host")]
    NoHost {
        /// The item.
        item: usize,
    },
    /// A host that is not a rank of the problem.
    #[error("item {item} names host {host}, but there are only {ranks} ranks")]
    HostOutOfRange {
        /// The item.
        item: usize,
        /// The host it names.
        host: u32,
        /// The number of ranks.
        ranks: usize,
    },
    /// A host that is listed twice for the same item.
    #[error("item {item} names host {host} twice")]
    DuplicateHost {
        /// The item.
        item: usize,
        /// The host that is repeated.
        host: u32,
    },
    /// More than 2³² − 1 (item, host) pairs.
    #[error("item {item} brings the (item, host) pairs beyond 2^32 - 1")]
    TooManyPairs {
        /// The first item that does not fit.
        item: usize,
    },
    /// A vector whose length is not the number of items or ranks it belongs to.
    #[error("{got} {what} given where the problem has {expected}")]
    Length {
        /// What the vector holds: "loads", "speeds", "base loads", "nodes" or "counts".
        what: &'static str,
        /// The length it must have.
        expected: usize,
        /// The length it has.
        got: usize,
    },
    /// A rank of speed zero.
    #[error("rank {rank} has speed 0: speeds must be positive")]
    ZeroSpeed {
        /// The rank.
        rank: usize,
    },
    /// The loads and base loads together exceed `u64::MAX`.
    #[error("the loads and base loads add up to more than 2^64 - 1")]
    Overflow,
    /// [`objective::Objectives`](crate::objective::Objectives) was asked for what does not combine.
    #[error("{then} cannot come after the peak in {cost}")]
    Combination {
        /// What counts as load.
        cost: &'static str,
        /// What was to come after its peak.
        then: &'static str,
    },
    /// A tile of no tokens.
    #[error("a tile of 0 tokens: tiles must have some")]
    ZeroTile,
    /// [`affine::solve`](crate::affine::solve) was given unequal speeds or base loads.
    #[error("affine5 handles equal speeds and no base load only; rank {rank} differs")]
    AffineUnsupported {
        /// The first rank that has a base load or whose speed is not rank 0's.
        rank: usize,
    },
    /// [`edge::Workspace::new`](crate::edge::Workspace::new) was given an item with three hosts or more.
    #[error("coordinate descent on edges handles items with up to two hosts; item {item} has more")]
    EdgeUnsupported {
        /// The first item with too many hosts.
        item: usize,
    },
}
