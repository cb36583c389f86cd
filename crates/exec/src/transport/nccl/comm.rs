//! A communicator that never blocks the host: what is begun is asked for.

use super::library::{BYTES, Config, Handle, IN_PROGRESS, Id, Nccl, SUCCESS};
use crate::cuda::CudaError;
use crate::exec::transport::{Part, TransportError};
use cudarc::driver::CudaStream;
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

/// One communicator of this rank; aborted, where it was not left, when it goes.
#[derive(Debug)]
pub(super) struct Comm {
    nccl: &'static Nccl,
    handle: Cell<Handle>,
}

fn failed(nccl: &Nccl, call: &'static str, result: c_int) -> TransportError {
    TransportError::Library { call, reason: nccl.words(result) }
}

/// A name for a new communicator.
pub(super) fn name() -> Result<Id, TransportError> {
    let nccl = library()?;
    let mut id = Id([0; 128]);
    #[allow(unsafe_code, reason = "a call into NCCL, which writes the id")]
    // SAFETY: the id is as large as NCCL's.
    let result = unsafe { (nccl.unique_id)(&raw mut id) };
    if result == SUCCESS { Ok(id) } else { Err(failed(nccl, "ncclGetUniqueId", result)) }
}

/// NCCL, where it is.
pub(super) fn library() -> Result<&'static Nccl, TransportError> {
    Nccl::get().map_err(|error: CudaError| TransportError::Joining(error.to_string()))
}

impl Comm {
    /// Begins to join; the device is the current one. It has joined when [`Comm::is_idle`].
    pub(super) fn begin(id: Id, rank: usize, ranks: usize) -> Result<Self, TransportError> {
        let nccl = library()?;
        let (mut handle, mut config) = (null_mut(), Config::without_blocking());
        #[allow(unsafe_code, reason = "a call into NCCL, which copies the configuration")]
        // SAFETY: handle and configuration are there.
        let result =
            unsafe { (nccl.init)(&raw mut handle, ranks as c_int, id, rank as c_int, &raw mut config) };
        if result != SUCCESS && result != IN_PROGRESS {
            return Err(failed(nccl, "ncclCommInitRankConfig", result));
        }
        Ok(Self { nccl, handle: Cell::new(handle) })
    }

    /// Whether nothing is under way on the host's side.
    pub(super) fn is_idle(&self) -> Result<bool, TransportError> {
        let (mut state, handle) = (SUCCESS, self.handle.get());
        if handle.is_null() {
            return Err(failed(self.nccl, "an exchange after ncclCommAbort", SUCCESS));
        }
        #[allow(unsafe_code, reason = "a call into NCCL, which writes a number")]
        // SAFETY: the communicator has been neither aborted nor destroyed.
        let result = unsafe { (self.nccl.async_error)(handle, &raw mut state) };
        match if result == SUCCESS { state } else { result } {
            SUCCESS => Ok(true),
            IN_PROGRESS => Ok(false),
            error => Err(failed(self.nccl, "NCCL", error)),
        }
    }

    /// Enqueues an exchange. Pieces are device memory that is there until the stream is through, and nobody else's meanwhile.
    pub(super) fn enqueue(&self, stream: &CudaStream, parts: &[Part]) -> Result<(), TransportError> {
        let (nccl, handle) = (self.nccl, self.handle.get());
        if handle.is_null() {
            return Err(failed(nccl, "an exchange after ncclCommAbort", SUCCESS));
        }
        let on = stream.cu_stream().cast::<c_void>();
        #[allow(unsafe_code, reason = "calls into NCCL")]
        // SAFETY: the caller's promise about memory; the communicator is there and idle, as callers wait for.
        let results = unsafe {
            let begun = (nccl.group_start)();
            let each = parts.iter().map(|part| match *part {
                Part::To(to, (at, bytes)) => {
                    (nccl.send)(at as *const c_void, bytes, BYTES, to as c_int, handle, on)
                }
                Part::From(from, (at, bytes)) => {
                    (nccl.receive)(at as *mut c_void, bytes, BYTES, from as c_int, handle, on)
                }
                Part::All((own, bytes), all) => {
                    (nccl.all_gather)(own as *const c_void, all as *mut c_void, bytes, BYTES, handle, on)
                }
            });
            let mut results: Vec<c_int> = std::iter::once(begun).chain(each).collect();
            // A group ends whatever happened in it.
            results.push((nccl.group_end)());
            results
        };
        match results.into_iter().find(|&result| result != SUCCESS && result != IN_PROGRESS) {
            None => Ok(()),
            Some(result) => Err(failed(nccl, "ncclGroupEnd", result)),
        }
    }

    /// Ends whatever is under way, on the device too; others may hang.
    pub(super) fn abort(&self) {
        self.end(self.nccl.abort);
    }

    /// Begins to leave, once nothing is under way; it has left when [`Comm::is_idle`].
    pub(super) fn begin_to_leave(&self) {
        let handle = self.handle.get();
        if !handle.is_null() {
            #[allow(unsafe_code, reason = "a call into NCCL")]
            // SAFETY: the communicator has been neither aborted nor destroyed.
            unsafe {
                (self.nccl.finalize)(handle);
            }
        }
    }

    /// Lets go of it, once it has left.
    pub(super) fn destroy(&self) {
        self.end(self.nccl.destroy);
    }

    fn end(&self, call: unsafe extern "C" fn(Handle) -> c_int) {
        let handle = self.handle.replace(null_mut());
        if !handle.is_null() {
            #[allow(unsafe_code, reason = "a call into NCCL, the last one with this communicator")]
            // SAFETY: the communicator has been neither aborted nor destroyed.
            unsafe {
                call(handle);
            }
        }
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        self.abort();
    }
}
