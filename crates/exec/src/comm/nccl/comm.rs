//! A communicator that never blocks the host: operations are begun, then tested.

use crate::comm::{CommError, DeviceOperation};
use cudarc::driver::CudaStream;
use evenkeel_cuda::CudaError;
use evenkeel_cuda::nccl::{IN_PROGRESS, NcclComm, NcclConfig, NcclId, NcclLibrary, SUCCESS, UINT8};
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

/// One communicator of this rank. Dropping it aborts it unless it has been left.
#[derive(Debug)]
pub(super) struct NcclHandle {
    nccl: &'static NcclLibrary,
    handle: Cell<NcclComm>,
}

fn nccl_error(nccl: &NcclLibrary, call: &'static str, result: c_int) -> CommError {
    CommError::Library { call, reason: nccl.result_text(result) }
}

/// Creates the id of a new communicator.
pub(super) fn create_id() -> Result<NcclId, CommError> {
    let nccl = nccl_library()?;
    let mut id = NcclId([0; 128]);
    #[allow(unsafe_code, reason = "a call into NCCL, which writes the id")]
    // SAFETY: the id has the size of NCCL's.
    let result = unsafe { (nccl.unique_id)(&raw mut id) };
    if result == SUCCESS { Ok(id) } else { Err(nccl_error(nccl, "ncclGetUniqueId", result)) }
}

/// Returns the NCCL library, if it is installed.
pub(super) fn nccl_library() -> Result<&'static NcclLibrary, CommError> {
    NcclLibrary::get().map_err(|error: CudaError| CommError::Joining(error.to_string()))
}

impl NcclHandle {
    /// Begins to join, on the current device. The communicator has joined when [`NcclHandle::is_idle`]
    /// returns true.
    pub(super) fn start_join(id: NcclId, rank: usize, ranks: usize) -> Result<Self, CommError> {
        let nccl = nccl_library()?;
        let (mut handle, mut config) = (null_mut(), NcclConfig::without_blocking());
        #[allow(unsafe_code, reason = "a call into NCCL, which copies the configuration")]
        // SAFETY: handle and configuration are allocated.
        let result =
            unsafe { (nccl.init)(&raw mut handle, ranks as c_int, id, rank as c_int, &raw mut config) };
        if result != SUCCESS && result != IN_PROGRESS {
            return Err(nccl_error(nccl, "ncclCommInitRankConfig", result));
        }
        Ok(Self { nccl, handle: Cell::new(handle) })
    }

    /// Returns whether no operation is under way on the host.
    pub(super) fn is_idle(&self) -> Result<bool, CommError> {
        let (mut state, handle) = (SUCCESS, self.handle.get());
        if handle.is_null() {
            return Err(nccl_error(self.nccl, "an exchange after ncclCommAbort", SUCCESS));
        }
        #[allow(unsafe_code, reason = "a call into NCCL, which writes a number")]
        // SAFETY: the communicator has been neither aborted nor destroyed.
        let result = unsafe { (self.nccl.async_error)(handle, &raw mut state) };
        match if result == SUCCESS { state } else { result } {
            SUCCESS => Ok(true),
            IN_PROGRESS => Ok(false),
            error => Err(nccl_error(self.nccl, "NCCL", error)),
        }
    }

    /// Enqueues an exchange. Pieces must be device memory that stays allocated until the stream is complete,
    /// and that nothing else uses meanwhile.
    pub(super) fn enqueue(&self, stream: &CudaStream, parts: &[DeviceOperation]) -> Result<(), CommError> {
        let (nccl, handle) = (self.nccl, self.handle.get());
        if handle.is_null() {
            return Err(nccl_error(nccl, "an exchange after ncclCommAbort", SUCCESS));
        }
        let on = stream.cu_stream().cast::<c_void>();
        #[allow(unsafe_code, reason = "calls into NCCL")]
        // SAFETY: the caller keeps the memory. The communicator exists and is idle, because callers wait for
        // that.
        let results = unsafe {
            let begun = (nccl.group_start)();
            let each = parts.iter().map(|part| match *part {
                DeviceOperation::To(to, (at, bytes)) => {
                    (nccl.send)(at as *const c_void, bytes, UINT8, to as c_int, handle, on)
                }
                DeviceOperation::From(from, (at, bytes)) => {
                    (nccl.receive)(at as *mut c_void, bytes, UINT8, from as c_int, handle, on)
                }
                DeviceOperation::All((own, bytes), all) => {
                    (nccl.all_gather)(own as *const c_void, all as *mut c_void, bytes, UINT8, handle, on)
                }
            });
            let mut results: Vec<c_int> = std::iter::once(begun).chain(each).collect();
            // A group must end after an error in it, too.
            results.push((nccl.group_end)());
            results
        };
        match results.into_iter().find(|&result| result != SUCCESS && result != IN_PROGRESS) {
            None => Ok(()),
            Some(result) => Err(nccl_error(nccl, "ncclGroupEnd", result)),
        }
    }

    /// Aborts all operations, also on the device. Other ranks may hang.
    pub(super) fn abort(&self) {
        self.release_handle(self.nccl.abort);
    }

    /// Begins to leave. No operation may be under way. The communicator has left when
    /// [`NcclHandle::is_idle`] returns true.
    pub(super) fn start_leave(&self) {
        let handle = self.handle.get();
        if !handle.is_null() {
            #[allow(unsafe_code, reason = "a call into NCCL")]
            // SAFETY: the communicator has been neither aborted nor destroyed.
            unsafe {
                (self.nccl.finalize)(handle);
            }
        }
    }

    /// Frees the communicator after it has left.
    pub(super) fn destroy(&self) {
        self.release_handle(self.nccl.destroy);
    }

    fn release_handle(&self, call: unsafe extern "C" fn(NcclComm) -> c_int) {
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

impl Drop for NcclHandle {
    fn drop(&mut self) {
        self.abort();
    }
}
