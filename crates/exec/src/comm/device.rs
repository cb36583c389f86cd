//! Exchanges of device memory between ranks with a GPU each.

use super::{CallContext, CommError};
use cudarc::driver::CudaStream;
use std::fmt;
use std::sync::Arc;

/// A carrier of device memory between the ranks of one group. Every process calls the same methods in the
/// same order.
pub trait DeviceCommunicator {
    /// Assigns a GPU to every rank, from `first` on. All ranks must call it after they have agreed on their
    /// inputs. `cuda_aware` states whether the library takes device memory; with `None` the library is asked.
    ///
    /// # Errors
    /// Fails if a rank has no GPU or one of another kind, with the same error on all ranks. Fails if a rank
    /// is lost.
    fn open_devices(&self, first: usize, cuda_aware: Option<bool>) -> Result<RankDevice, CommError>;

    /// Returns whether exchanges with `background = true` run in the order of the stream. Events around them
    /// then measure their time. Otherwise they are complete when [`Self::synchronize`] returns.
    fn is_stream_ordered(&self) -> bool;

    /// Enqueues an exchange of device memory on `stream`. Work enqueued later on the same stream sees its
    /// result. With `background = true` (expert migration) it does not: call [`Self::synchronize`]
    /// first. Both ranks must post pieces of equal size, in the same order.
    ///
    /// # Errors
    /// Fails if another rank is lost, or does not answer in time. Fails before
    /// [`Self::open_devices`].
    ///
    /// # Safety
    /// Pieces must be memory of this rank's GPU. Until the stream has been synchronised, they must stay
    /// allocated, nothing may write the sent pieces, and nothing may access the received ones. If that fails,
    /// [`Self::must_leak`] returns whether this holds forever.
    #[allow(unsafe_code, reason = "the caller is responsible for the addresses")]
    unsafe fn enqueue(
        &self,
        background: bool,
        at: CallContext,
        stream: &Arc<CudaStream>,
        parts: &[DeviceOperation],
    ) -> Result<(), CommError>;

    /// Waits for all work on a stream and for the exchanges enqueued on it.
    ///
    /// # Errors
    /// Fails as [`Self::enqueue`] does.
    fn synchronize(&self, at: CallContext, stream: &Arc<CudaStream>) -> Result<(), CommError>;

    /// Returns whether enqueued memory may still be read and written after an error, for an unknown time.
    /// Such memory must not be freed before this process ends.
    fn must_leak(&self) -> bool;
}

/// An address in device memory, and the number of bytes that start there.
pub type DevicePiece = (u64, usize);

/// One operation of a rank in an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceOperation {
    /// Sends a piece to a rank.
    To(usize, DevicePiece),
    /// Receives a piece from a rank. It has the size of the sent one.
    From(usize, DevicePiece),
    /// Gathers one piece from every rank at an address. All pieces have the same size.
    All(DevicePiece, u64),
}

/// The memory that is passed to the communication library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageMemory {
    /// Device memory, directly.
    Device,
    /// A copy in host memory.
    Staged,
}

impl fmt::Display for MessageMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            MessageMemory::Device => "device",
            MessageMemory::Staged => "staged",
        })
    }
}

/// The GPU that a rank got.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RankDevice {
    /// Index of the GPU among those that the process sees.
    pub index: usize,
    /// The memory that is passed to the communication library.
    pub memory: MessageMemory,
    /// Notices on the GPUs of the group for the user.
    pub notices: Vec<String>,
}
