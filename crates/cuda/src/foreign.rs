//! Memory and streams of others: a framework's tensors, and the stream that it works on.

use super::{Context, CudaError, DevicePlanner, TopkId};
use cudarc::driver::result::{event, stream};
use cudarc::driver::sys::{CUevent_flags, CUevent_wait_flags, CUstream};
use cudarc::driver::{CudaEvent, CudaSlice};
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

/// Device memory that somebody else owns and frees.
#[derive(Debug)]
pub struct Foreign<T>(ManuallyDrop<CudaSlice<T>>);

impl<T> Deref for Foreign<T> {
    type Target = CudaSlice<T>;

    fn deref(&self) -> &CudaSlice<T> {
        &self.0
    }
}

impl<T> DerefMut for Foreign<T> {
    fn deref_mut(&mut self) -> &mut CudaSlice<T> {
        &mut self.0
    }
}

impl<T> Drop for Foreign<T> {
    fn drop(&mut self) {
        #[allow(unsafe_code, reason = "taken once, here; leaking gives the address back without freeing it")]
        let slice = unsafe { ManuallyDrop::take(&mut self.0) };
        let _ = slice.leak();
    }
}

/// Puts work between what a caller's stream has been given before and what it will be given after.
#[derive(Debug)]
pub struct Handover {
    before: CudaEvent,
    after: CudaEvent,
}

impl Handover {
    /// What one caller needs; to be kept for the next time.
    ///
    /// # Errors
    /// [`CudaError::Driver`].
    pub fn new(gpu: &Context) -> Result<Handover, CudaError> {
        let event = || {
            let flags = CUevent_flags::CU_EVENT_DISABLE_TIMING;
            gpu.stream().context().new_event(Some(flags)).map_err(CudaError::driver("making an event"))
        };
        Ok(Handover { before: event()?, after: event()? })
    }

    /// Enqueues what `enqueue` enqueues on the GPU's stream so that the caller's stream runs it in its turn. Nothing waits on
    /// the host; where the caller's stream is being recorded, this is recorded too.
    ///
    /// # Errors
    /// What `enqueue` returns; [`CudaError::Driver`].
    ///
    /// # Safety
    /// `caller` is a `cudaStream_t` (`CUstream`) of the GPU's primary context as a number, 0 for the default stream.
    #[allow(unsafe_code, reason = "a stream is an address that only the caller can vouch for")]
    pub unsafe fn within(
        &self,
        gpu: &Context,
        caller: u64,
        enqueue: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let failed = CudaError::driver("handing over between streams");
        let ours = gpu.stream().cu_stream();
        let caller = caller as usize as CUstream;
        let wait = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        gpu.stream().context().bind_to_thread().map_err(&failed)?;
        // SAFETY: both events are ours and alive; both streams are of the context that was just bound.
        unsafe {
            event::record(self.before.cu_event(), caller).map_err(&failed)?;
            stream::wait_event(ours, self.before.cu_event(), wait).map_err(&failed)?;
        }
        let enqueued = enqueue();
        // Also after a failure: a recording has to come together again.
        // SAFETY: as above.
        unsafe {
            event::record(self.after.cu_event(), ours).map_err(&failed)?;
            stream::wait_event(caller, self.after.cu_event(), wait).map_err(&failed)?;
        }
        enqueued
    }
}

impl Context {
    /// Somebody else's device memory: `len` values at `address`.
    ///
    /// # Safety
    /// The memory is on this GPU, holds `len` values of `T`, and stays while the answer is used and the work enqueued with
    /// it runs. Nobody else writes it meanwhile; see [`Handover`] for the order of streams.
    #[allow(unsafe_code, reason = "an address that only the caller can vouch for")]
    pub unsafe fn foreign<T>(&self, address: u64, len: usize) -> Foreign<T> {
        // SAFETY: the caller's promise; `Foreign` never frees it.
        Foreign(ManuallyDrop::new(unsafe { self.stream().upgrade_device_ptr(address, len) }))
    }
}

impl Handover {
    /// [`DevicePlanner::count`] of `len` ids at an address, in its turn on the caller's stream.
    ///
    /// # Errors
    /// As [`DevicePlanner::count`].
    ///
    /// # Safety
    /// As [`Context::foreign`] and [`Handover::within`].
    #[allow(unsafe_code, reason = "addresses and a stream that only the caller can vouch for")]
    pub unsafe fn count<Id: TopkId>(
        &self,
        planner: &mut DevicePlanner,
        ids: u64,
        len: usize,
        caller: u64,
    ) -> Result<(), CudaError> {
        let gpu = planner.gpu().clone();
        // SAFETY: the caller's promise.
        unsafe {
            let ids = gpu.foreign::<Id>(ids, len);
            self.within(&gpu, caller, || planner.count(&ids))
        }
    }

    /// A layer split by the counts of all ranks, `[R][E]`, and the slots of the `len` ids that were counted, all at addresses, in
    /// its turn on the caller's stream.
    ///
    /// # Errors
    /// As the steps of [`DevicePlanner`].
    ///
    /// # Safety
    /// As [`Context::foreign`] and [`Handover::within`]; `slots` is other memory than `ids`.
    #[allow(unsafe_code, reason = "addresses and a stream that only the caller can vouch for")]
    pub unsafe fn redirect<Id: TopkId>(
        &self,
        planner: &mut DevicePlanner,
        layer: usize,
        counts: u64,
        (ids, len): (u64, usize),
        slots: u64,
        caller: u64,
    ) -> Result<(), CudaError> {
        let gpu = planner.gpu().clone();
        // SAFETY: the caller's promise.
        unsafe {
            let counts = gpu.foreign::<u32>(counts, planner.counts_len());
            let ids = gpu.foreign::<Id>(ids, len);
            let mut slots = gpu.foreign::<Id>(slots, len);
            self.within(&gpu, caller, || {
                planner.take_counts(layer, &counts)?;
                planner.solve(layer)?;
                planner.share(layer)?;
                planner.map(layer, &ids, &mut slots)
            })
        }
    }
}
