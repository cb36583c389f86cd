//! The operations of an exchange of device memory between ranks with a GPU each.

use std::fmt;

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
pub struct RankDevice {
    /// Index of the GPU among those that the process sees.
    pub index: usize,
    /// The memory that is passed to the communication library.
    pub memory: MessageMemory,
    /// Notices on the GPUs of the group for the user.
    pub notices: Vec<String>,
}
