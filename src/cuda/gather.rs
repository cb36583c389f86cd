//! How ranks learn each other's counts without the host.
//!
//! In: one rank's counts, `[E]`, in device memory. Out: everybody's, `[R][E]`, in device memory. Three ways: ranks that
//! share a GPU ([`SameDevice`]), ranks on several GPUs of one process ([`Peers`]), ranks anywhere ([`Nccl`]).

use super::{Context, CudaError};
use crate::cluster::MAX_RANKS;
use cudarc::driver::{CudaEvent, CudaSlice, CudaViewMut};
use cudarc::nccl::{Comm, Id};
use std::sync::Arc;

/// Gathers the counts of all ranks on every rank, in two steps so that one thread can drive several ranks: all of them
/// offer, then all of them collect. Both only enqueue work.
pub trait DeviceGather {
    /// Puts the `own` counts, `[E]`, of rank `source` where the others find them.
    ///
    /// # Errors
    /// When the shapes do not fit the group, or the driver refuses.
    fn offer(&mut self, source: usize, own: &CudaSlice<u32>, gpu: &Context) -> Result<(), CudaError>;

    /// Fills `all` with the counts of every rank, `[R][E]`.
    ///
    /// # Errors
    /// When the shapes do not fit the group, or the driver or NCCL refuses.
    fn collect(
        &mut self,
        source: usize,
        own: &CudaSlice<u32>,
        all: &mut CudaViewMut<'_, u32>,
        gpu: &Context,
    ) -> Result<(), CudaError>;
}

fn check(what: &'static str, given: usize, expected: usize) -> Result<(), CudaError> {
    if given == expected { Ok(()) } else { Err(CudaError::Shape { what, given, expected }) }
}

fn check_source(source: usize, ranks: usize) -> Result<(), CudaError> {
    if source < ranks {
        return Ok(());
    }
    Err(CudaError::Shape { what: "source", given: source, expected: ranks - 1 })
}

/// All ranks on one GPU and its stream: counts are copied to a board and from there. Can be recorded.
#[derive(Debug)]
pub struct SameDevice {
    ranks: usize,
    experts: usize,
    board: CudaSlice<u32>,
}

impl SameDevice {
    /// A board for `ranks` (at least one) with `experts` counts each, all zero.
    ///
    /// # Errors
    /// [`CudaError::Driver`] for want of memory.
    pub fn new(gpu: &Context, ranks: usize, experts: usize) -> Result<SameDevice, CudaError> {
        let ranks = ranks.max(1);
        let board = gpu
            .stream()
            .alloc_zeros(ranks * experts)
            .map_err(CudaError::driver("reserving a board of counts"))?;
        Ok(SameDevice { ranks, experts, board })
    }
}

impl DeviceGather for SameDevice {
    fn offer(&mut self, source: usize, own: &CudaSlice<u32>, gpu: &Context) -> Result<(), CudaError> {
        check_source(source, self.ranks)?;
        check("own counts", own.len(), self.experts)?;
        let mut row = self.board.slice_mut(source * self.experts..(source + 1) * self.experts);
        gpu.stream().memcpy_dtod(own, &mut row).map_err(CudaError::driver("offering counts"))
    }

    fn collect(
        &mut self,
        _: usize,
        _: &CudaSlice<u32>,
        all: &mut CudaViewMut<'_, u32>,
        gpu: &Context,
    ) -> Result<(), CudaError> {
        check("counts of all", all.len(), self.board.len())?;
        gpu.stream().memcpy_dtod(&self.board, all).map_err(CudaError::driver("collecting counts"))
    }
}

/// One rank per GPU, all driven by one thread: each offers on its own device, and collects by copies between devices.
/// Events between the streams keep readers behind writers, and the next batch's writers behind this one's readers.
#[derive(Debug)]
pub struct Peers {
    experts: usize,
    gpus: Vec<Arc<Context>>,
    /// Per rank, on its device.
    offered: Vec<CudaSlice<u32>>,
    ready: Vec<CudaEvent>,
    taken: Vec<CudaEvent>,
}

impl Peers {
    /// A group with `experts` counts per rank; `gpus[r]` is rank `r`'s.
    ///
    /// # Errors
    /// [`CudaError::Driver`] for want of memory.
    pub fn new(gpus: &[Arc<Context>], experts: usize) -> Result<Peers, CudaError> {
        let failed = CudaError::driver("setting up copies between devices");
        let mut peers = Peers { experts, gpus: gpus.to_vec(), offered: vec![], ready: vec![], taken: vec![] };
        for gpu in gpus {
            peers.offered.push(gpu.stream().alloc_zeros(experts).map_err(&failed)?);
            peers.ready.push(gpu.stream().record_event(None).map_err(&failed)?);
            peers.taken.push(gpu.stream().record_event(None).map_err(&failed)?);
        }
        Ok(peers)
    }
}

impl DeviceGather for Peers {
    fn offer(&mut self, source: usize, own: &CudaSlice<u32>, gpu: &Context) -> Result<(), CudaError> {
        check_source(source, self.gpus.len().max(1))?;
        check("own counts", own.len(), self.experts)?;
        let failed = CudaError::driver("offering counts to other devices");
        let stream = gpu.stream();
        for taken in &self.taken {
            stream.wait(taken).map_err(&failed)?;
        }
        stream.memcpy_dtod(own, &mut self.offered[source]).map_err(&failed)?;
        self.ready[source].record(stream).map_err(failed)
    }

    fn collect(
        &mut self,
        source: usize,
        _: &CudaSlice<u32>,
        all: &mut CudaViewMut<'_, u32>,
        gpu: &Context,
    ) -> Result<(), CudaError> {
        check_source(source, self.gpus.len().max(1))?;
        check("counts of all", all.len(), self.gpus.len() * self.experts)?;
        let failed = CudaError::driver("collecting counts from other devices");
        let stream = gpu.stream();
        for (rank, (offered, ready)) in self.offered.iter().zip(&self.ready).enumerate() {
            stream.wait(ready).map_err(&failed)?;
            let mut row = all.slice_mut(rank * self.experts..(rank + 1) * self.experts);
            stream.memcpy_dtod(offered, &mut row).map_err(&failed)?;
        }
        self.taken[source].record(stream).map_err(failed)
    }
}

impl Drop for Peers {
    /// Nobody reads what is about to be freed: each device frees on its own stream, others may still be copying.
    fn drop(&mut self) {
        for gpu in &self.gpus {
            // An error here was an error of the work itself, and is reported where that is waited for.
            let _ = gpu.stream().synchronize();
        }
    }
}

/// One rank per process (or thread), over NCCL.
#[derive(Debug)]
pub struct Nccl {
    comm: Comm,
}

impl Nccl {
    /// A name for a new group, made by one rank and told to the others by other means.
    ///
    /// # Errors
    /// [`CudaError::NoNccl`] without libnccl; [`CudaError::Nccl`].
    pub fn group() -> Result<Id, CudaError> {
        present()?;
        Id::new().map_err(CudaError::nccl("naming an NCCL group"))
    }

    /// Joins a group as `rank` of `ranks`; returns once all have joined.
    ///
    /// # Errors
    /// [`CudaError::NoNccl`] without libnccl; [`CudaError::Shape`] for a rank that is none, or too many; [`CudaError::Nccl`].
    pub fn join(gpu: &Context, group: Id, rank: usize, ranks: usize) -> Result<Nccl, CudaError> {
        present()?;
        if ranks == 0 || ranks > MAX_RANKS {
            return Err(CudaError::Shape { what: "ranks", given: ranks, expected: MAX_RANKS });
        }
        check_source(rank, ranks)?;
        let comm = Comm::from_rank(Arc::clone(gpu.stream()), rank, ranks, group);
        Ok(Nccl { comm: comm.map_err(CudaError::nccl("joining an NCCL group"))? })
    }
}

fn present() -> Result<(), CudaError> {
    #[allow(unsafe_code, reason = "loads libnccl, whose initialisers are trusted, and lets go of it")]
    let present = unsafe { cudarc::nccl::sys::is_culib_present() };
    if present { Ok(()) } else { Err(CudaError::NoNccl) }
}

impl DeviceGather for Nccl {
    fn offer(&mut self, source: usize, _: &CudaSlice<u32>, _: &Context) -> Result<(), CudaError> {
        check("source", source, self.comm.rank())
    }

    fn collect(
        &mut self,
        source: usize,
        own: &CudaSlice<u32>,
        all: &mut CudaViewMut<'_, u32>,
        _: &Context,
    ) -> Result<(), CudaError> {
        check("source", source, self.comm.rank())?;
        check("counts of all", all.len(), own.len() * self.comm.world_size())?;
        self.comm.all_gather(own, all).map_err(CudaError::nccl("gathering counts"))?;
        Ok(())
    }
}
