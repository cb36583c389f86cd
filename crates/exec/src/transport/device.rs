//! Exchanges of device memory between ranks with a GPU each.
//!
//! Input: addresses in the memory of this rank's GPU, the exchange to make, and the stream whose work fills
//! that memory. Output: the same memory, filled by other ranks, for later work on that stream.
//! `NcclTransport` itself keeps the order of streams. Over MPI (feature `mpi`) the host waits.

use super::{CallContext, TransportError};
use cudarc::driver::CudaStream;
use std::fmt;
use std::sync::Arc;

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

/// A carrier of device memory between the ranks of one group, each with a GPU. The
/// [`Transport`](super::Transport) of the same group carries the bytes of the host. Every rank begins the
/// same exchanges in the same order.
pub trait DeviceTransport: fmt::Debug {
    /// Returns the index of this rank's GPU among those that the process sees.
    fn device(&self) -> usize;

    /// Returns the memory that is passed to the communication library.
    fn memory(&self) -> MessageMemory;

    /// Returns notices on the GPUs of the group for the user.
    fn notices(&self) -> Vec<String> {
        Vec::new()
    }

    /// Returns whether exchanges with `background = true` run in the order of the stream. Events around them
    /// then measure their time. Otherwise they are complete when [`DeviceTransport::synchronize`] returns.
    fn is_stream_ordered(&self) -> bool;

    /// Enqueues an exchange on `stream`. Work enqueued later on the same stream sees its result. With
    /// `background = true` (expert migration) it does not: call [`DeviceTransport::synchronize`] first. Both
    /// ranks must post pieces of equal size, in the same order.
    ///
    /// # Errors
    /// Fails if another rank is lost, or does not answer in time.
    ///
    /// # Safety
    /// Pieces must be memory of this rank's GPU. Until the stream has been settled, they must stay allocated,
    /// nothing may write the sent pieces, and nothing may access the received ones. If settling fails,
    /// [`DeviceTransport::must_leak`] returns whether this holds forever.
    #[allow(unsafe_code, reason = "the caller is responsible for the addresses")]
    unsafe fn enqueue(
        &self,
        background: bool,
        at: CallContext,
        stream: &Arc<CudaStream>,
        parts: &[DeviceOperation],
    ) -> Result<(), TransportError>;

    /// Waits for all work on a stream and for the exchanges enqueued on it.
    ///
    /// # Errors
    /// Fails as [`DeviceTransport::enqueue`] does.
    fn synchronize(&self, at: CallContext, stream: &Arc<CudaStream>) -> Result<(), TransportError>;

    /// Returns whether enqueued memory may still be read and written after an error, for an unknown time.
    /// Such memory must not be freed before this process ends.
    fn must_leak(&self) -> bool;
}
