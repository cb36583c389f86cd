//! Errors of a problem or its loads. Every variant names the item or rank at fault.

/// Reasons for which a problem cannot be built or solved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SolverError {
    /// [`Hosts::new`](crate::Hosts::new) received no rank, or more than
    /// [`Hosts::MAX_RANKS`](crate::Hosts::MAX_RANKS).
    #[error("{ranks} ranks: there must be 1 to {max}", max = crate::Hosts::MAX_RANKS)]
    RankCount {
        /// Requested number of ranks.
        ranks: usize,
    },
    /// An item has no host, so that no rank can serve its load.
    #[error("item {item} has no host")]
    NoHost {
        /// Item in question.
        item: usize,
    },
    /// A host is not a rank of the problem.
    #[error("item {item} names host {host}, but there are only {ranks} ranks")]
    HostOutOfRange {
        /// Item in question.
        item: usize,
        /// Host found.
        host: u32,
        /// Number of ranks.
        ranks: usize,
    },
    /// A host is listed twice for the same item.
    #[error("item {item} names host {host} twice")]
    DuplicateHost {
        /// Item in question.
        item: usize,
        /// Repeated host.
        host: u32,
    },
    /// A dynamic slot holds an item that does not exist.
    #[error("a dynamic slot of rank {rank} holds item {item}, but there are only {items} items")]
    ContentOutOfRange {
        /// Rank of the slot.
        rank: usize,
        /// Item found.
        item: u32,
        /// Number of items.
        items: usize,
    },
    /// There are more than 2³² − 1 (item, host) pairs.
    #[error("item {item} raises the number of (item, host) pairs above 2^32 - 1")]
    TooManyPairs {
        /// First item that exceeds the limit.
        item: usize,
    },
    /// The length of a vector differs from the number of its items or ranks.
    #[error("{got} {what}, but the problem has {expected}")]
    Length {
        /// Content of the vector: "loads", "speeds", "base loads", "nodes", "counts" or "dynamic slots".
        what: &'static str,
        /// Length expected.
        expected: usize,
        /// Length found.
        got: usize,
    },
    /// A rank has speed zero.
    #[error("rank {rank} has speed 0: speeds must be positive")]
    ZeroSpeed {
        /// Rank in question.
        rank: usize,
    },
    /// The loads and base loads together exceed `u64::MAX`.
    #[error("the loads and base loads add up to more than 2^64 - 1")]
    Overflow,
    /// A batch has more than 2³² − 1 tokens, and its solver counts in 32 bits.
    #[error("the loads add up to more than 2^32 - 1")]
    TooManyTokens,
    /// [`objective::ObjectiveSolver`](crate::objective::ObjectiveSolver) does not support this combination.
    #[error("{then} cannot come after the peak in {cost}")]
    Combination {
        /// Measure of load.
        cost: &'static str,
        /// Objective requested after the peak.
        then: &'static str,
    },
    /// A tile has no tokens.
    #[error("a tile has 0 tokens: it must have at least 1")]
    ZeroTile,
    /// [`affine_scaling::solve`](crate::affine_scaling::solve) received unequal speeds or base loads.
    #[error("affine5 requires equal speeds and no base loads: rank {rank} differs")]
    AffineUnsupported {
        /// First rank with a base load, or with a speed other than that of rank 0.
        rank: usize,
    },
    /// [`coordinate_descent::DescentWorkspace::new`](crate::coordinate_descent::DescentWorkspace::new)
    /// received an item with three hosts or more.
    #[error("coordinate descent on edges handles items with up to two hosts; item {item} has more")]
    EdgeUnsupported {
        /// First item with too many hosts.
        item: usize,
    },
}
