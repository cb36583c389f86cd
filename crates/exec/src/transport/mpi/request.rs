//! Single messages over MPI that never block: begun, then asked for.
//!
//! The library reads and writes memory behind our back until a message is through. So every message owns its memory, and one that is
//! dropped before that leaves it to the library for good; but for those whose memory is the device's, which callers answer for.

#![allow(unsafe_code, reason = "calls into the MPI library")]

use crate::exec::transport::TransportError;
use mpi::ffi;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

/// What a call of MPI returned, as an error where it is one.
pub(super) fn done(call: &'static str, code: c_int) -> Result<(), TransportError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length: c_int = 0;
    // SAFETY: there is room for the longest text that MPI gives.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &raw mut length) };
    text.truncate(length.max(0) as usize);
    Err(TransportError::Library { call, reason: String::from_utf8_lossy(&text).into_owned() })
}

fn length(call: &'static str, rank: usize, bytes: usize) -> Result<c_int, TransportError> {
    let reason = |_| format!("{bytes} bytes for or from rank {rank}: one message has at most 2 GiB");
    c_int::try_from(bytes).map_err(reason).map_err(|reason| TransportError::Library { call, reason })
}

/// A message on its way, and its memory.
#[derive(Debug)]
pub(super) struct Message {
    /// None, where that is the device's.
    bytes: Vec<u8>,
    /// How many bytes are to come, where that is known.
    expected: Option<c_int>,
    request: ffi::MPI_Request,
    through: bool,
}

impl Message {
    /// Begins to send.
    pub(super) fn send(
        comm: ffi::MPI_Comm,
        to: usize,
        tag: c_int,
        bytes: Vec<u8>,
    ) -> Result<Self, TransportError> {
        let mut message = Self::new(bytes);
        let (from, length) = (message.bytes.as_ptr(), message.bytes.len());
        // SAFETY: the bytes live and stay as they are until the message is through (see `drop`).
        unsafe { message.begin_to_send(comm, to, tag, from.cast(), length) }?;
        Ok(message)
    }

    /// The same of device memory.
    ///
    /// # Safety
    /// It stays as it is until the message is through, and the library takes it.
    #[cfg(feature = "cuda")]
    pub(super) unsafe fn send_at(
        comm: ffi::MPI_Comm,
        to: usize,
        tag: c_int,
        at: u64,
        bytes: usize,
    ) -> Result<Self, TransportError> {
        let mut message = Self::new(Vec::new());
        // SAFETY: the caller's promise.
        unsafe { message.begin_to_send(comm, to, tag, at as *const c_void, bytes) }?;
        Ok(message)
    }

    fn new(bytes: Vec<u8>) -> Self {
        // SAFETY: a null request is what it is for the library to fill.
        Self { bytes, expected: None, request: unsafe { ffi::RSMPI_REQUEST_NULL }, through: false }
    }

    unsafe fn begin_to_send(
        &mut self,
        comm: ffi::MPI_Comm,
        to: usize,
        tag: c_int,
        from: *const c_void,
        bytes: usize,
    ) -> Result<(), TransportError> {
        let length = length("MPI_Isend", to, bytes)?;
        // SAFETY: the caller's promise that what lies there stays.
        let code = unsafe {
            ffi::MPI_Isend(from, length, ffi::RSMPI_UINT8_T, to as c_int, tag, comm, &raw mut self.request)
        };
        done("MPI_Isend", code)
    }

    /// Begins to receive so many bytes, before they have arrived.
    #[cfg(feature = "cuda")]
    pub(super) fn receive(
        comm: ffi::MPI_Comm,
        from: usize,
        tag: c_int,
        bytes: usize,
    ) -> Result<Self, TransportError> {
        let mut message = Self::new(vec![0; bytes]);
        let to = message.bytes.as_mut_ptr();
        // SAFETY: the bytes live until the message is through (see `drop`), and nobody reads them before.
        unsafe { message.begin_to_receive(comm, from, tag, to.cast(), bytes) }?;
        Ok(message)
    }

    /// The same to device memory.
    ///
    /// # Safety
    /// Nobody touches it until the message is through, and the library takes it.
    #[cfg(feature = "cuda")]
    pub(super) unsafe fn receive_at(
        comm: ffi::MPI_Comm,
        from: usize,
        tag: c_int,
        at: u64,
        bytes: usize,
    ) -> Result<Self, TransportError> {
        let mut message = Self::new(Vec::new());
        // SAFETY: the caller's promise.
        unsafe { message.begin_to_receive(comm, from, tag, at as *mut c_void, bytes) }?;
        Ok(message)
    }

    #[cfg(feature = "cuda")]
    unsafe fn begin_to_receive(
        &mut self,
        comm: ffi::MPI_Comm,
        from: usize,
        tag: c_int,
        to: *mut c_void,
        bytes: usize,
    ) -> Result<(), TransportError> {
        let length = length("MPI_Irecv", from, bytes)?;
        self.expected = Some(length);
        // SAFETY: the caller's promise that there is room.
        let code = unsafe {
            ffi::MPI_Irecv(to, length, ffi::RSMPI_UINT8_T, from as c_int, tag, comm, &raw mut self.request)
        };
        done("MPI_Irecv", code)
    }

    /// Begins to receive a message that has arrived from `from` (any rank, where there is none); none otherwise. Also: its sender.
    pub(super) fn arrived(
        comm: ffi::MPI_Comm,
        from: Option<usize>,
        tag: c_int,
    ) -> Result<Option<(usize, Self)>, TransportError> {
        let (mut flag, mut length): (c_int, c_int) = (0, 0);
        let mut status = MaybeUninit::<ffi::MPI_Status>::uninit();
        // SAFETY: everything that is written to is there; the status is read only where MPI has filled it.
        unsafe {
            let from = from.map_or(ffi::RSMPI_ANY_SOURCE, |from| from as c_int);
            let mut matched = ffi::RSMPI_MESSAGE_NULL;
            let probe =
                ffi::MPI_Improbe(from, tag, comm, &raw mut flag, &raw mut matched, status.as_mut_ptr());
            done("MPI_Improbe", probe)?;
            if flag == 0 {
                return Ok(None);
            }
            let status = status.assume_init();
            done(
                "MPI_Get_count",
                ffi::MPI_Get_count(&raw const status, ffi::RSMPI_UINT8_T, &raw mut length),
            )?;
            let mut message = Self::new(vec![0u8; length.max(0) as usize]);
            let to = message.bytes.as_mut_ptr().cast::<c_void>();
            // The bytes live until the message is through (see `drop`), and nobody reads them before.
            let receive =
                ffi::MPI_Imrecv(to, length, ffi::RSMPI_UINT8_T, &raw mut matched, &raw mut message.request);
            done("MPI_Imrecv", receive)?;
            Ok(Some((status.MPI_SOURCE as usize, message)))
        }
    }

    /// Whether it is through.
    pub(super) fn is_through(&mut self) -> Result<bool, TransportError> {
        if !self.through {
            let mut flag: c_int = 0;
            let mut status = MaybeUninit::<ffi::MPI_Status>::uninit();
            // SAFETY: the request is the library's own, or null where it has been through.
            let code = unsafe { ffi::MPI_Test(&raw mut self.request, &raw mut flag, status.as_mut_ptr()) };
            done("MPI_Test", code)?;
            self.through = flag != 0;
            if let (true, Some(expected)) = (self.through, self.expected) {
                let mut came: c_int = 0;
                // SAFETY: MPI has filled the status of a receive that is through.
                let code = unsafe { ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &raw mut came) };
                done("MPI_Get_count", code)?;
                if came != expected {
                    let reason = format!("{came} bytes came where {expected} were to come");
                    return Err(TransportError::Library { call: "MPI_Irecv", reason });
                }
            }
        }
        Ok(self.through)
    }

    /// What was received; to be asked for when it is through.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if !self.through {
            std::mem::forget(std::mem::take(&mut self.bytes));
        }
    }
}
