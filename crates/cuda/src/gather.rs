//! All-gather of counts between ranks without the host.
//!
//! Input: one rank's counts, `[E]`, in device memory. Output: the counts of all ranks, `[R][E]`, in device
//! memory. Three implementations serve ranks that share a GPU ([`SameDeviceGather`]), ranks on several GPUs
//! of one process ([`PeerGather`]), and ranks in any processes ([`NcclGather`]).

use super::nccl::{IN_PROGRESS, NcclComm, NcclConfig, NcclId, NcclLibrary, SUCCESS, UINT8};
use super::{CudaError, GpuContext};
use cudarc::driver::{CudaEvent, CudaSlice, CudaViewMut, DevicePtr as _, DevicePtrMut as _};
use evenkeel::cluster::MAX_RANKS;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::Duration;

/// An all-gather of counts in two steps, so that one thread can drive several ranks: first all of them offer,
/// then all of them collect. Both steps only enqueue work.
pub trait DeviceGather {
    /// Publishes the `own` counts, `[E]`, of rank `source` for the others.
    ///
    /// # Errors
    /// Fails if the shapes do not fit the group, or if the driver refuses.
    fn offer_counts(
        &mut self,
        source: usize,
        own: &CudaSlice<u32>,
        gpu: &GpuContext,
    ) -> Result<(), CudaError>;

    /// Fills `all` with the counts of every rank, `[R][E]`.
    ///
    /// # Errors
    /// Fails if the shapes do not fit the group, or if the driver or NCCL refuses.
    fn collect_counts(
        &mut self,
        source: usize,
        own: &CudaSlice<u32>,
        all: &mut CudaViewMut<'_, u32>,
        gpu: &GpuContext,
    ) -> Result<(), CudaError>;
}

fn check_length(what: &'static str, given: usize, expected: usize) -> Result<(), CudaError> {
    if given == expected { Ok(()) } else { Err(CudaError::Shape { what, given, expected }) }
}

fn check_source(source: usize, ranks: usize) -> Result<(), CudaError> {
    if source < ranks {
        return Ok(());
    }
    Err(CudaError::Shape { what: "source", given: source, expected: ranks - 1 })
}

/// Ranks on one GPU and one stream, whose counts are copied to a board and from there. The copies can be
/// recorded.
#[derive(Debug)]
pub struct SameDeviceGather {
    ranks: usize,
    experts: usize,
    board: CudaSlice<u32>,
}

impl SameDeviceGather {
    /// Allocates a board for `ranks` ranks (at least one) with `experts` counts each, all zero.
    ///
    /// # Errors
    /// Returns [`CudaError::Driver`] if memory is short.
    pub fn new(gpu: &GpuContext, ranks: usize, experts: usize) -> Result<SameDeviceGather, CudaError> {
        let ranks = ranks.max(1);
        let board = gpu
            .stream()
            .alloc_zeros(ranks * experts)
            .map_err(CudaError::driver_error("reserving a board of counts"))?;
        Ok(SameDeviceGather { ranks, experts, board })
    }
}

impl DeviceGather for SameDeviceGather {
    fn offer_counts(
        &mut self,
        source: usize,
        own: &CudaSlice<u32>,
        gpu: &GpuContext,
    ) -> Result<(), CudaError> {
        check_source(source, self.ranks)?;
        check_length("own counts", own.len(), self.experts)?;
        let mut row = self.board.slice_mut(source * self.experts..(source + 1) * self.experts);
        gpu.stream().memcpy_dtod(own, &mut row).map_err(CudaError::driver_error("offering counts"))
    }

    fn collect_counts(
        &mut self,
        _: usize,
        _: &CudaSlice<u32>,
        all: &mut CudaViewMut<'_, u32>,
        gpu: &GpuContext,
    ) -> Result<(), CudaError> {
        check_length("counts of all", all.len(), self.board.len())?;
        gpu.stream().memcpy_dtod(&self.board, all).map_err(CudaError::driver_error("collecting counts"))
    }
}

/// Ranks with one GPU each, all driven by one thread. Each rank offers on its own device, and collects by
/// copies between devices. Events order the streams: a reader waits for the writers, and the next batch's
/// writers wait for this one's readers.
#[derive(Debug)]
pub struct PeerGather {
    experts: usize,
    gpus: Vec<Arc<GpuContext>>,
    /// Counts of each rank, on its device.
    offered: Vec<CudaSlice<u32>>,
    ready: Vec<CudaEvent>,
    taken: Vec<CudaEvent>,
}

impl PeerGather {
    /// Creates a group with `experts` counts per rank. `gpus[r]` is the GPU of rank `r`.
    ///
    /// # Errors
    /// Returns [`CudaError::Driver`] if memory is short.
    pub fn new(gpus: &[Arc<GpuContext>], experts: usize) -> Result<PeerGather, CudaError> {
        let failed = CudaError::driver_error("setting up copies between devices");
        let mut peers =
            PeerGather { experts, gpus: gpus.to_vec(), offered: vec![], ready: vec![], taken: vec![] };
        for gpu in gpus {
            peers.offered.push(gpu.stream().alloc_zeros(experts).map_err(&failed)?);
            peers.ready.push(gpu.stream().record_event(None).map_err(&failed)?);
            peers.taken.push(gpu.stream().record_event(None).map_err(&failed)?);
        }
        Ok(peers)
    }
}

impl DeviceGather for PeerGather {
    fn offer_counts(
        &mut self,
        source: usize,
        own: &CudaSlice<u32>,
        gpu: &GpuContext,
    ) -> Result<(), CudaError> {
        check_source(source, self.gpus.len().max(1))?;
        check_length("own counts", own.len(), self.experts)?;
        let failed = CudaError::driver_error("offering counts to other devices");
        let stream = gpu.stream();
        for taken in &self.taken {
            stream.wait(taken).map_err(&failed)?;
        }
        stream.memcpy_dtod(own, &mut self.offered[source]).map_err(&failed)?;
        self.ready[source].record(stream).map_err(failed)
    }

    fn collect_counts(
        &mut self,
        source: usize,
        _: &CudaSlice<u32>,
        all: &mut CudaViewMut<'_, u32>,
        gpu: &GpuContext,
    ) -> Result<(), CudaError> {
        check_source(source, self.gpus.len().max(1))?;
        check_length("counts of all", all.len(), self.gpus.len() * self.experts)?;
        let failed = CudaError::driver_error("collecting counts from other devices");
        let stream = gpu.stream();
        for (rank, (offered, ready)) in self.offered.iter().zip(&self.ready).enumerate() {
            stream.wait(ready).map_err(&failed)?;
            let mut row = all.slice_mut(rank * self.experts..(rank + 1) * self.experts);
            stream.memcpy_dtod(offered, &mut row).map_err(&failed)?;
        }
        self.taken[source].record(stream).map_err(failed)
    }
}

impl Drop for PeerGather {
    /// Waits for all devices, because each frees its memory on its own stream while others may still copy
    /// from it.
    fn drop(&mut self) {
        for gpu in &self.gpus {
            // An error here is an error of the work itself, which is reported where its results are waited
            // for.
            let _ = gpu.stream().synchronize();
        }
    }
}

/// One rank per process or thread, over NCCL.
#[derive(Debug)]
pub struct NcclGather {
    library: &'static NcclLibrary,
    handle: NcclComm,
    rank: usize,
    ranks: usize,
}

impl NcclGather {
    /// Returns the id of a new group. One rank calls it, and passes the id to the others.
    ///
    /// # Errors
    /// Returns [`CudaError::Nccl`] if the call fails or the library is missing.
    pub fn create_group_id() -> Result<NcclId, CudaError> {
        let nccl = NcclLibrary::get()?;
        let mut id = NcclId([0; 128]);
        #[allow(unsafe_code, reason = "a call into NCCL, which writes the id")]
        // SAFETY: the id has the size of NCCL's.
        let result = unsafe { (nccl.unique_id)(&raw mut id) };
        nccl.check_result("creating the id of an NCCL group", result).map(|()| id)
    }

    /// Joins a group as `rank` of `ranks`. Returns after all have joined.
    ///
    /// # Errors
    /// Returns [`CudaError::Shape`] for a rank outside the group, or too many ranks. Returns
    /// [`CudaError::Nccl`] if a call fails or the library is missing.
    pub fn join_group(
        gpu: &GpuContext,
        group: NcclId,
        rank: usize,
        ranks: usize,
    ) -> Result<NcclGather, CudaError> {
        if ranks == 0 || ranks > MAX_RANKS {
            return Err(CudaError::Shape { what: "ranks", given: ranks, expected: MAX_RANKS });
        }
        check_source(rank, ranks)?;
        let nccl = NcclLibrary::get()?;
        gpu.stream().context().bind_to_thread().map_err(CudaError::driver_error("selecting a device"))?;
        let (mut handle, mut config) = (null_mut(), NcclConfig::without_blocking());
        #[allow(unsafe_code, reason = "a call into NCCL, which copies the configuration")]
        // SAFETY: handle and configuration outlive the call.
        let result =
            unsafe { (nccl.init)(&raw mut handle, ranks as c_int, group, rank as c_int, &raw mut config) };
        if result != IN_PROGRESS {
            nccl.check_result("joining an NCCL group", result)?;
        }
        let joined = NcclGather { library: nccl, handle, rank, ranks };
        joined.wait_for_call("joining an NCCL group")?;
        Ok(joined)
    }

    /// Waits until no call is in progress on the host.
    fn wait_for_call(&self, doing: &'static str) -> Result<(), CudaError> {
        loop {
            let mut state = SUCCESS;
            #[allow(unsafe_code, reason = "a call into NCCL, which writes a number")]
            // SAFETY: the communicator lives as long as this value.
            let result = unsafe { (self.library.async_error)(self.handle, &raw mut state) };
            match if result == SUCCESS { state } else { result } {
                IN_PROGRESS => std::thread::sleep(POLL_INTERVAL),
                state => return self.library.check_result(doing, state),
            }
        }
    }
}

#[allow(unsafe_code, reason = "a communicator may be used on any thread, by one at a time")]
// SAFETY: as the reason says; the value is not `Sync`.
unsafe impl Send for NcclGather {}

/// Time between two checks of a call in progress.
const POLL_INTERVAL: Duration = Duration::from_micros(50);

impl Drop for NcclGather {
    fn drop(&mut self) {
        #[allow(unsafe_code, reason = "a call into NCCL, the last one with this communicator")]
        // SAFETY: no other code ends the communicator.
        unsafe {
            (self.library.abort)(self.handle);
        }
    }
}

impl DeviceGather for NcclGather {
    fn offer_counts(&mut self, source: usize, _: &CudaSlice<u32>, _: &GpuContext) -> Result<(), CudaError> {
        check_length("source", source, self.rank)
    }

    fn collect_counts(
        &mut self,
        source: usize,
        own: &CudaSlice<u32>,
        all: &mut CudaViewMut<'_, u32>,
        gpu: &GpuContext,
    ) -> Result<(), CudaError> {
        check_length("source", source, self.rank)?;
        check_length("counts of all", all.len(), own.len() * self.ranks)?;
        let stream = gpu.stream();
        let bytes = own.len() * size_of::<u32>();
        let (own, _own) = own.device_ptr(stream);
        let (all, _all) = all.device_ptr_mut(stream);
        #[allow(unsafe_code, reason = "a call into NCCL")]
        // SAFETY: both pieces are device memory of the lengths just checked, and stay allocated until the
        // stream has passed.
        let result = unsafe {
            let on = stream.cu_stream().cast::<c_void>();
            (self.library.all_gather)(own as *const c_void, all as *mut c_void, bytes, UINT8, self.handle, on)
        };
        if result != IN_PROGRESS {
            self.library.check_result("gathering counts", result)?;
        }
        self.wait_for_call("gathering counts")
    }
}
