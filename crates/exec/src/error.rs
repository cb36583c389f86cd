//! Errors of a forward pass.

use super::router::RouterError;
use evenkeel::cluster::ClusterError;
use evenkeel::place::{PlaceError, PlacementError};
use evenkeel::planner::PlannerError;
use evenkeel::split::SplitError;
use evenkeel::trace::TraceError;
use std::path::PathBuf;
use thiserror::Error;

/// An error that stops a forward pass.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The router rejected the tokens or its arguments.
    #[error(transparent)]
    Router(#[from] RouterError),
    /// Tokens could not be split over the replicas, or redirected to them.
    #[error(transparent)]
    Planner(#[from] PlannerError),
    /// Tokens could not be split over the replicas.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The loads of a run do not form a trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A layer could not be placed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Ranks or slots are out of range.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// A slot map is no placement.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// An input has another size than the model or the group requires.
    #[error("{what}: {given}, expected {expected}")]
    Shape {
        /// The input.
        what: &'static str,
        /// Size of the input.
        given: usize,
        /// The size it should have.
        expected: usize,
    },
    /// A token was sent to a slot that does not hold its expert.
    #[error("position {position} of rank {rank}: slot {slot} does not hold expert {expert}")]
    WrongSlot {
        /// The source rank.
        rank: usize,
        /// The position in the ids of the rank, from 0.
        position: usize,
        /// The slot that was assigned.
        slot: i64,
        /// The expert that the router chose.
        expert: i32,
    },
    /// A layer should switch to weights that have not been copied to their destination yet.
    #[error("layer {layer}: expert {expert} is neither on rank {rank} nor in a staging slot there")]
    NotStaged {
        /// Layer index.
        layer: usize,
        /// The rank that lacks the expert.
        rank: usize,
        /// The missing expert.
        expert: u32,
    },
    /// Weights could not be read.
    #[error("{}: {reason}", path.display())]
    Weights {
        /// The file or folder.
        path: PathBuf,
        /// The fault in it.
        reason: String,
    },
    /// The thread that copies experts has stopped. This is a defect of this program.
    #[error("the thread that copies experts stopped")]
    Mover,
    /// A backend cannot run on this machine.
    #[error("the {backend} backend is not available: {reason}")]
    Unavailable {
        /// The name of the backend.
        backend: &'static str,
        /// The reason.
        reason: String,
    },
    /// An allocation needs more device memory than is free.
    #[error(
        "memory for {what}: {} MiB needed on {device}, {} MiB free; fewer layers, ranks or tokens need less",
        needed.div_ceil(1 << 20), free >> 20
    )]
    Memory {
        /// The contents of the allocation.
        what: &'static str,
        /// The GPU.
        device: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A call on a GPU failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] evenkeel_cuda::CudaError),
    /// Another rank could not be reached, or its state differs.
    #[error(transparent)]
    Comm(#[from] super::comm::CommError),
    /// Parts of a run exclude each other.
    #[error("{0}: expected one of them")]
    Combination(&'static str),
    /// The run is empty.
    #[error("{0}")]
    Nothing(String),
}

/// Error of a name that no variant of a type has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown {what} `{name}`: expected {expected}")]
pub struct UnknownName {
    what: &'static str,
    name: String,
    expected: &'static str,
}

impl UnknownName {
    /// Returns the error for `name`, which is none of the `expected` names of `what`.
    pub(crate) fn new(what: &'static str, name: &str, expected: &'static str) -> Self {
        Self { what, name: name.into(), expected }
    }
}

impl ExecError {
    /// Returns whether all ranks of a job have this error, so that one message is enough.
    pub fn is_common(&self) -> bool {
        matches!(self, ExecError::Comm(error) if error.is_common())
    }

    /// Returns [`ExecError::Shape`] if `given` differs from `expected`.
    pub(crate) fn expect_size(what: &'static str, given: usize, expected: usize) -> Result<(), Self> {
        if given == expected { Ok(()) } else { Err(Self::Shape { what, given, expected }) }
    }
}
