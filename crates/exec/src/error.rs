//! Why a forward pass could not be run.

use super::router::RouterError;
use crate::place::{PlaceError, PlacementError};
use crate::planner::PlannerError;
use crate::split::SplitError;
use crate::trace::TraceError;
use std::path::PathBuf;
use thiserror::Error;

/// What stops a forward pass.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExecError {
    /// Tokens could not be routed.
    #[error(transparent)]
    Router(#[from] RouterError),
    /// Tokens could not be split over the copies, or redirected to them.
    #[error(transparent)]
    Planner(#[from] PlannerError),
    /// Tokens could not be split over the copies.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// What ran is no trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A layer could not be placed.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A slot map is no placement.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Something has another size than the model or the group asks for.
    #[error("{what}: {given}, expected {expected}")]
    Shape {
        /// What it is.
        what: &'static str,
        /// Its size.
        given: usize,
        /// The size it should have.
        expected: usize,
    },
    /// A token was sent to a slot that does not hold its expert.
    #[error("position {position} of rank {rank}: slot {slot} does not hold expert {expert}")]
    WrongSlot {
        /// The source rank.
        rank: usize,
        /// Where in its ids, from 0.
        position: usize,
        /// The slot given.
        slot: i64,
        /// The expert routed to.
        expert: i32,
    },
    /// A layer is to switch to weights that have not been copied to where they are needed.
    #[error("layer {layer}: expert {expert} is neither on rank {rank} nor in a staging slot there")]
    NotStaged {
        /// Layer index.
        layer: usize,
        /// The rank.
        rank: usize,
        /// The expert.
        expert: u32,
    },
    /// Weights could not be read.
    #[error("{}: {reason}", path.display())]
    Weights {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The thread that copies experts is gone; a defect of this program.
    #[error("the thread that copies experts stopped")]
    Mover,
    /// A backend that cannot run here.
    #[error("the {backend} backend is not available: {reason}")]
    Unavailable {
        /// Its name.
        backend: &'static str,
        /// Why not.
        reason: String,
    },
    /// More device memory wanted than is free.
    #[error(
        "{what} take {} MiB on {device}, of which {} MiB are free: fewer layers, ranks or tokens would do",
        needed.div_ceil(1 << 20), free >> 20
    )]
    Memory {
        /// What for.
        what: &'static str,
        /// The GPU.
        device: String,
        /// Bytes wanted.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// A GPU could not do its part.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
    /// Another rank could not be reached, or does something else.
    #[error(transparent)]
    Transport(#[from] super::transport::TransportError),
    /// Nothing to run.
    #[error("{0}")]
    Nothing(String),
}

impl ExecError {
    /// [`ExecError::Shape`] where `given` is not `expected`.
    pub(crate) fn expect(what: &'static str, given: usize, expected: usize) -> Result<(), Self> {
        if given == expected { Ok(()) } else { Err(Self::Shape { what, given, expected }) }
    }
}
