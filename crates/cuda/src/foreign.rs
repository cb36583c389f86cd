//! Memory and streams of other owners: the tensors of a framework, and the stream of its work.

use super::{CudaError, DevicePlanner, GpuContext, TopkId};
use cudarc::driver::result::{event, stream};
use cudarc::driver::sys::{CUevent_flags, CUevent_wait_flags, CUstream};
use cudarc::driver::{CudaEvent, CudaSlice};
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

/// Device memory that another owner allocates and frees.
#[derive(Debug)]
pub struct ForeignSlice<T>(ManuallyDrop<CudaSlice<T>>);

impl<T> Deref for ForeignSlice<T> {
    type Target = CudaSlice<T>;

    fn deref(&self) -> &CudaSlice<T> {
        &self.0
    }
}

impl<T> DerefMut for ForeignSlice<T> {
    fn deref_mut(&mut self) -> &mut CudaSlice<T> {
        &mut self.0
    }
}

impl<T> Drop for ForeignSlice<T> {
    fn drop(&mut self) {
        #[allow(
            unsafe_code,
            reason = "only this line takes the slice; `leak` returns its address and does not free it"
        )]
        let slice = unsafe { ManuallyDrop::take(&mut self.0) };
        let _ = slice.leak();
    }
}

/// Ids in device memory of another owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignIds {
    /// Address of the first id.
    pub address: u64,
    /// Number of ids.
    pub len: usize,
}

/// Events that insert work into the order of a caller's stream.
#[derive(Debug)]
pub struct StreamHandover {
    before: CudaEvent,
    after: CudaEvent,
}

impl StreamHandover {
    /// Creates the events for one caller. They can be reused.
    ///
    /// # Errors
    /// Returns [`CudaError::Driver`] if a driver call fails.
    pub fn new(gpu: &GpuContext) -> Result<StreamHandover, CudaError> {
        let event = || {
            let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING;
            gpu.stream()
                .context()
                .new_event(Some(flags))
                .map_err(CudaError::driver_error("creating an event"))
        };
        Ok(StreamHandover { before: event()?, after: event()? })
    }

    /// Enqueues the work of `enqueue` on the GPU's stream so that it keeps its position in the order of the
    /// caller's stream. Nothing waits on the host. If the caller's stream is being recorded, the work is
    /// recorded too.
    ///
    /// # Errors
    /// Fails as `enqueue` does. Returns [`CudaError::Driver`] if a driver call fails.
    ///
    /// # Safety
    /// `caller` must be a `cudaStream_t` (`CUstream`) of the GPU's primary context as a number, or 0 for the
    /// default stream.
    #[allow(unsafe_code, reason = "a stream is an address that only the caller can vouch for")]
    pub unsafe fn run_in_order(
        &self,
        gpu: &GpuContext,
        caller: u64,
        enqueue: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let failed = CudaError::driver_error("ordering work between streams");
        let ours = gpu.stream().cu_stream();
        let caller = caller as usize as CUstream;
        let wait = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        gpu.stream().context().bind_to_thread().map_err(&failed)?;
        // SAFETY: this value owns both events, and both streams belong to the context that was just bound.
        unsafe {
            event::record(self.before.cu_event(), caller).map_err(&failed)?;
            stream::wait_event(ours, self.before.cu_event(), wait).map_err(&failed)?;
        }
        let enqueued = enqueue();
        // This also runs after a failure, because the streams must join a recording again. SAFETY: as above.
        unsafe {
            event::record(self.after.cu_event(), ours).map_err(&failed)?;
            stream::wait_event(caller, self.after.cu_event(), wait).map_err(&failed)?;
        }
        enqueued
    }
}

impl GpuContext {
    /// Wraps device memory of another owner: `len` values at `address`.
    ///
    /// # Safety
    /// The memory must be on this GPU and hold `len` values of `T`. It must stay allocated while the result
    /// is used and the work enqueued with it runs. No other writer may change it meanwhile; see
    /// [`StreamHandover`] for the order of streams.
    #[allow(unsafe_code, reason = "an address that only the caller can vouch for")]
    pub unsafe fn wrap_foreign<T>(&self, address: u64, len: usize) -> ForeignSlice<T> {
        // SAFETY: the caller keeps the memory, and `ForeignSlice` never frees it.
        ForeignSlice(ManuallyDrop::new(unsafe { self.stream().upgrade_device_ptr(address, len) }))
    }
}

impl StreamHandover {
    /// Runs [`DevicePlanner::count_ids`] on foreign ids, in the order of the caller's stream.
    ///
    /// # Errors
    /// Fails as [`DevicePlanner::count_ids`] does.
    ///
    /// # Safety
    /// The caller must keep the promises of [`GpuContext::wrap_foreign`] and
    /// [`StreamHandover::run_in_order`].
    #[allow(unsafe_code, reason = "addresses and a stream that only the caller can vouch for")]
    pub unsafe fn count_ids<Id: TopkId>(
        &self,
        planner: &mut DevicePlanner,
        ids: ForeignIds,
        caller: u64,
    ) -> Result<(), CudaError> {
        let gpu = planner.gpu().clone();
        // SAFETY: the caller keeps the memory.
        unsafe {
            let ids = gpu.wrap_foreign::<Id>(ids.address, ids.len);
            self.run_in_order(&gpu, caller, || planner.count_ids(&ids))
        }
    }

    /// Splits a layer by the counts of all ranks, `[R][E]`, and maps the counted ids to as many `slots`. All
    /// data is at addresses, and the work keeps the order of the caller's stream.
    ///
    /// # Errors
    /// Fails as the steps of [`DevicePlanner`] do.
    ///
    /// # Safety
    /// The caller must keep the promises of [`GpuContext::wrap_foreign`] and
    /// [`StreamHandover::run_in_order`]. `slots` and `ids` must not overlap.
    #[allow(unsafe_code, reason = "addresses and a stream that only the caller can vouch for")]
    pub unsafe fn redirect_ids<Id: TopkId>(
        &self,
        planner: &mut DevicePlanner,
        layer: usize,
        counts: u64,
        ids: ForeignIds,
        slots: u64,
        caller: u64,
    ) -> Result<(), CudaError> {
        let gpu = planner.gpu().clone();
        // SAFETY: the caller keeps the memory.
        unsafe {
            let counts = gpu.wrap_foreign::<u32>(counts, planner.counts_len());
            let mut slots = gpu.wrap_foreign::<Id>(slots, ids.len);
            let ids = gpu.wrap_foreign::<Id>(ids.address, ids.len);
            self.run_in_order(&gpu, caller, || {
                planner.copy_counts(layer, &counts)?;
                planner.solve(layer)?;
                planner.compute_shares(layer)?;
                planner.map_ids(layer, &ids, &mut slots)
            })
        }
    }
}
