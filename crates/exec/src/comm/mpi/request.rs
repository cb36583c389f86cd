//! Single MPI messages that never block: they are begun, then tested.
//!
//! The library reads and writes memory concurrently until a message is complete. Therefore every message owns
//! its memory. A message that is dropped earlier leaks it to the library. For messages in device memory the
//! caller is responsible.

#![allow(unsafe_code, reason = "calls into the MPI library")]

use crate::comm::CommError;
use mpi::ffi;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

/// Converts the return code of an MPI call into a result.
pub(super) fn check_code(call: &'static str, code: c_int) -> Result<(), CommError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length: c_int = 0;
    // SAFETY: the buffer holds the longest text that MPI returns.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &raw mut length) };
    text.truncate(length.max(0) as usize);
    Err(CommError::Library { call, reason: String::from_utf8_lossy(&text).into_owned() })
}

fn message_length(call: &'static str, rank: usize, bytes: usize) -> Result<c_int, CommError> {
    let reason = |_| format!("a message of {bytes} bytes for or from rank {rank}, expected at most 2 GiB");
    c_int::try_from(bytes).map_err(reason).map_err(|reason| CommError::Library { call, reason })
}

/// A message in transit, with its memory.
#[derive(Debug)]
pub(super) struct MpiRequest {
    /// Empty for messages in device memory.
    bytes: Vec<u8>,
    /// Number of bytes to receive, if known.
    expected: Option<c_int>,
    request: ffi::MPI_Request,
    is_complete: bool,
}

impl MpiRequest {
    /// Begins to send.
    pub(super) fn isend(
        comm: ffi::MPI_Comm,
        to: usize,
        tag: c_int,
        bytes: Vec<u8>,
    ) -> Result<Self, CommError> {
        let mut message = Self::new(bytes);
        let (from, length) = (message.bytes.as_ptr(), message.bytes.len());
        // SAFETY: the bytes stay allocated and unchanged until the message is complete (see `drop`).
        unsafe { message.post_send(comm, to, tag, from.cast(), length) }?;
        Ok(message)
    }

    /// Begins to send from device memory.
    ///
    /// # Safety
    /// The memory must stay unchanged until the message is complete, and the library must accept device
    /// memory.
    #[cfg(feature = "cuda")]
    pub(super) unsafe fn isend_device(
        comm: ffi::MPI_Comm,
        to: usize,
        tag: c_int,
        at: u64,
        bytes: usize,
    ) -> Result<Self, CommError> {
        let mut message = Self::new(Vec::new());
        // SAFETY: the caller keeps the memory.
        unsafe { message.post_send(comm, to, tag, at as *const c_void, bytes) }?;
        Ok(message)
    }

    fn new(bytes: Vec<u8>) -> Self {
        // SAFETY: a null request is the state from which the library may fill it.
        Self { bytes, expected: None, request: unsafe { ffi::RSMPI_REQUEST_NULL }, is_complete: false }
    }

    unsafe fn post_send(
        &mut self,
        comm: ffi::MPI_Comm,
        to: usize,
        tag: c_int,
        from: *const c_void,
        bytes: usize,
    ) -> Result<(), CommError> {
        let length = message_length("MPI_Isend", to, bytes)?;
        // SAFETY: the caller keeps the memory unchanged.
        let code = unsafe {
            ffi::MPI_Isend(from, length, ffi::RSMPI_UINT8_T, to as c_int, tag, comm, &raw mut self.request)
        };
        check_code("MPI_Isend", code)
    }

    /// Begins to receive `bytes` bytes, before they have arrived.
    #[cfg(feature = "cuda")]
    pub(super) fn irecv(
        comm: ffi::MPI_Comm,
        from: usize,
        tag: c_int,
        bytes: usize,
    ) -> Result<Self, CommError> {
        let mut message = Self::new(vec![0; bytes]);
        let to = message.bytes.as_mut_ptr();
        // SAFETY: the bytes stay allocated until the message is complete (see `drop`), and nothing reads them
        // earlier.
        unsafe { message.post_receive(comm, from, tag, to.cast(), bytes) }?;
        Ok(message)
    }

    /// Begins to receive into device memory.
    ///
    /// # Safety
    /// Nothing may access the memory until the message is complete, and the library must accept device
    /// memory.
    #[cfg(feature = "cuda")]
    pub(super) unsafe fn irecv_device(
        comm: ffi::MPI_Comm,
        from: usize,
        tag: c_int,
        at: u64,
        bytes: usize,
    ) -> Result<Self, CommError> {
        let mut message = Self::new(Vec::new());
        // SAFETY: the caller keeps the memory.
        unsafe { message.post_receive(comm, from, tag, at as *mut c_void, bytes) }?;
        Ok(message)
    }

    #[cfg(feature = "cuda")]
    unsafe fn post_receive(
        &mut self,
        comm: ffi::MPI_Comm,
        from: usize,
        tag: c_int,
        to: *mut c_void,
        bytes: usize,
    ) -> Result<(), CommError> {
        let length = message_length("MPI_Irecv", from, bytes)?;
        self.expected = Some(length);
        // SAFETY: the caller provides enough memory.
        let code = unsafe {
            ffi::MPI_Irecv(to, length, ffi::RSMPI_UINT8_T, from as c_int, tag, comm, &raw mut self.request)
        };
        check_code("MPI_Irecv", code)
    }

    /// Begins to receive a message that has arrived from `from`, or from any rank if `from` is `None`.
    /// Returns the message with its sender, or `None` if none has arrived.
    pub(super) fn try_receive(
        comm: ffi::MPI_Comm,
        from: Option<usize>,
        tag: c_int,
    ) -> Result<Option<(usize, Self)>, CommError> {
        let (mut flag, mut length): (c_int, c_int) = (0, 0);
        let mut status = MaybeUninit::<ffi::MPI_Status>::uninit();
        // SAFETY: everything that MPI writes is allocated. The status is read only after MPI has filled it.
        unsafe {
            let from = from.map_or(ffi::RSMPI_ANY_SOURCE, |from| from as c_int);
            let mut matched = ffi::RSMPI_MESSAGE_NULL;
            let probe =
                ffi::MPI_Improbe(from, tag, comm, &raw mut flag, &raw mut matched, status.as_mut_ptr());
            check_code("MPI_Improbe", probe)?;
            if flag == 0 {
                return Ok(None);
            }
            let status = status.assume_init();
            check_code(
                "MPI_Get_count",
                ffi::MPI_Get_count(&raw const status, ffi::RSMPI_UINT8_T, &raw mut length),
            )?;
            let mut message = Self::new(vec![0u8; length.max(0) as usize]);
            let to = message.bytes.as_mut_ptr().cast::<c_void>();
            // The bytes stay allocated until the message is complete (see `drop`), and nothing reads them
            // earlier.
            let receive =
                ffi::MPI_Imrecv(to, length, ffi::RSMPI_UINT8_T, &raw mut matched, &raw mut message.request);
            check_code("MPI_Imrecv", receive)?;
            Ok(Some((status.MPI_SOURCE as usize, message)))
        }
    }

    /// Returns whether the message is complete.
    pub(super) fn test(&mut self) -> Result<bool, CommError> {
        if !self.is_complete {
            let mut flag: c_int = 0;
            let mut status = MaybeUninit::<ffi::MPI_Status>::uninit();
            // SAFETY: the request belongs to the library, or is null after completion.
            let code = unsafe { ffi::MPI_Test(&raw mut self.request, &raw mut flag, status.as_mut_ptr()) };
            check_code("MPI_Test", code)?;
            self.is_complete = flag != 0;
            if let (true, Some(expected)) = (self.is_complete, self.expected) {
                let mut came: c_int = 0;
                // SAFETY: MPI has filled the status of a complete receive.
                let code = unsafe { ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &raw mut came) };
                check_code("MPI_Get_count", code)?;
                if came != expected {
                    let reason = format!("{came} bytes received, expected {expected}");
                    return Err(CommError::Library { call: "MPI_Irecv", reason });
                }
            }
        }
        Ok(self.is_complete)
    }

    /// Returns the received bytes. The message must be complete.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for MpiRequest {
    fn drop(&mut self) {
        if !self.is_complete {
            std::mem::forget(std::mem::take(&mut self.bytes));
        }
    }
}
