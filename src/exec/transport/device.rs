//! What ranks with a GPU each exchange: device memory.
//!
//! In: addresses in the memory of this rank's GPU, what is to become of what lies there, and the stream whose work made it. Out: the same
//! memory, filled by other ranks, for what follows on that stream. `Nccl` is ordered with streams by itself; `MpiDevice` (feature
//! `mpi`) has the host wait.

use super::{At, TransportError};
use cudarc::driver::CudaStream;
use std::fmt;
use std::sync::Arc;

/// An address in device memory, and how many bytes from there on.
pub type Piece = (u64, usize);

/// What a rank does in one exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Sends a piece to a rank.
    To(usize, Piece),
    /// Receives a piece from a rank, of the size that is sent.
    From(usize, Piece),
    /// Gathers a piece of every rank, all of one size, at an address.
    All(Piece, u64),
}

/// How device memory is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// As it lies.
    Device,
    /// Through memory of the host.
    Staged,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Memory::Device => "device",
            Memory::Staged => "staged",
        })
    }
}

/// Carries device memory between the ranks of one group, each with a GPU; beside the [`Transport`](super::Transport) of the same group,
/// which carries bytes of the host. Every rank begins the same exchanges in the same order.
pub trait DeviceTransport: fmt::Debug {
    /// Which of the GPUs that this process sees is its.
    fn device(&self) -> usize;

    /// How device memory is handed on.
    fn memory(&self) -> Memory;

    /// Whether what is enqueued `beside` takes its turn on the stream, where events around it say how long it took; else it is there
    /// when [`DeviceTransport::settle`] returns.
    fn ordered(&self) -> bool;

    /// Enqueues an exchange behind what is on a stream of this rank's GPU: what a step waits for, or, `beside` it, moves. What
    /// is enqueued on that stream later finds what a step waits for; who wants what is `beside` settles first. Between two ranks
    /// what is sent first is received first; both are at it with pieces of the same sizes.
    ///
    /// # Errors
    /// When another rank is gone, or does not answer in time.
    ///
    /// # Safety
    /// Pieces are memory of this rank's GPU. Until the stream has been settled they are there, nobody writes what is sent, and nobody
    /// touches what is received. Where that fails, [`DeviceTransport::clings`] says whether they have to be left alone for good.
    #[allow(unsafe_code, reason = "who calls it answers for addresses")]
    unsafe fn enqueue(
        &self,
        beside: bool,
        at: At,
        stream: &Arc<CudaStream>,
        parts: &[Part],
    ) -> Result<(), TransportError>;

    /// Waits until everything on a stream is done, and what was enqueued behind it.
    ///
    /// # Errors
    /// As [`DeviceTransport::enqueue`].
    fn settle(&self, at: At, stream: &Arc<CudaStream>) -> Result<(), TransportError>;

    /// Whether memory that was enqueued may still be written and read after an error, with no way to tell until when: it must not be
    /// freed before this process ends.
    fn clings(&self) -> bool;
}
