//! Migration on the CUDA backend: experts are copied on a background stream into spare cells, and layers
//! switch between steps.

use super::expert_buffer::ExpertBuffer;
use super::expert_slots::SlotBuffers;
use super::kernels::DeviceAddress;
use super::rank::BufferSizes;
use super::{Cuda, next_stamp};
use crate::comm::DeviceOperation;
use crate::error::ExecError;
use crate::placement_state::experts_of_rank;
use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use evenkeel::place::Placement;
use evenkeel_cuda::{CudaError, GpuContext};
use std::sync::Arc;
use std::time::Duration;

/// An expert on its way.
#[derive(Debug)]
struct PendingCopy {
    layer: usize,
    rank: usize,
    expert: u32,
    /// The source, kept until the copy is complete. `None` if it comes from another process.
    from: Option<Arc<ExpertBuffer>>,
    cell: ExpertBuffer,
    events: [CudaEvent; 2],
}

/// The background stream of a GPU.
#[derive(Debug)]
pub(super) struct CopyStream {
    pub(super) gpu: Arc<GpuContext>,
    begun: Vec<PendingCopy>,
    /// Experts on their way to other processes.
    sent: Vec<Arc<ExpertBuffer>>,
}

impl CopyStream {
    pub(super) fn new(gpu: &GpuContext) -> Result<Self, CudaError> {
        Ok(Self { gpu: gpu.fork_stream()?, begun: Vec::new(), sent: Vec::new() })
    }

    /// Marks experts from other processes as arrived, because the stream alone may not know.
    pub(super) fn record_arrival(&self) -> Result<(), CudaError> {
        let failed = CudaError::driver_error("timing a copy");
        let far = self.begun.iter().filter(|begun| begun.from.is_none());
        far.map(|begun| &begun.events[1]).try_for_each(|end| end.record(self.gpu.stream()).map_err(&failed))
    }

    /// Waits for all copies.
    pub(super) fn wait_for_copies(&self) -> Result<(), CudaError> {
        self.gpu.synchronize()
    }
}

/// Enqueues a copy on the background stream, between two events.
fn record_copy<E: From<CudaError>>(
    gpu: &GpuContext,
    copy: impl FnOnce() -> Result<(), E>,
) -> Result<[CudaEvent; 2], E> {
    let failed = CudaError::driver_error("timing a copy");
    let event = || gpu.stream().context().new_event(Some(CU_EVENT_DEFAULT)).map_err(&failed);
    let events = [event()?, event()?];
    events[0].record(gpu.stream()).map_err(&failed)?;
    copy()?;
    events[1].record(gpu.stream()).map_err(&failed)?;
    Ok(events)
}

impl Cuda {
    /// Begins to copy an expert to a rank, unless it is there or on its way. Returns the bytes to copy.
    pub(super) fn copy_expert(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        let Some(from) = self.state.stage_expert(layer, rank, expert)? else { return Ok(0) };
        match (self.local_index(from), self.local_index(rank), self.remote.clone()) {
            (Some(_), Some(at), _) => self.start_local_copy(layer, (at, rank), expert)?,
            (Some(_), None, Some(far)) => {
                self.group().set_context(None, Some(layer));
                let cell = self.home_buffer(layer, expert)?;
                self.start_send(cell, |gpu, at, bytes| {
                    far.start_move(gpu, DeviceOperation::To(rank, (at, bytes as usize)))
                })?;
            }
            (None, Some(_), Some(far)) => {
                self.group().set_context(None, Some(layer));
                self.start_receive([layer, rank], expert, |gpu, at, bytes| {
                    far.start_move(gpu, DeviceOperation::From(from, (at, bytes as usize)))
                })?;
            }
            _ => {}
        }
        Ok(self.shape.weight_bytes())
    }

    /// Begins to copy an expert to a rank of this process, which has an index here, from another.
    fn start_local_copy(
        &mut self,
        layer: usize,
        (at, rank): (usize, usize),
        expert: u32,
    ) -> Result<(), ExecError> {
        let (from, device) = (self.home_buffer(layer, expert)?, self.device_of(rank));
        let gpu = Arc::clone(&self.sides[device].gpu);
        let mut cell = self.ranks[at].experts.take_buffer(&gpu, &self.shape)?;
        // All earlier work on these cells is complete, because every layer ends with a synchronisation.
        let events = record_copy(&gpu, || cell.copy_from(&gpu, &from))?;
        self.sides[device].begun.push(PendingCopy { layer, rank, expert, from: Some(from), cell, events });
        Ok(())
    }

    /// Begins to send an expert of this process's rank to another process. `send` receives its address and
    /// enqueues the exchange.
    pub(super) fn start_send(
        &mut self,
        cell: Arc<ExpertBuffer>,
        send: impl FnOnce(&GpuContext, DeviceAddress, u64) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let side = &mut self.sides[0];
        send(&side.gpu, cell.address(), self.shape.bytes())?;
        side.sent.push(cell);
        Ok(())
    }

    /// Begins to receive an expert from another process. `receive` gets the destination and enqueues the
    /// exchange.
    pub(super) fn start_receive(
        &mut self,
        [layer, rank]: [usize; 2],
        expert: u32,
        receive: impl FnOnce(&GpuContext, DeviceAddress, u64) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let gpu = Arc::clone(&self.sides[0].gpu);
        let cell = self.ranks[0].experts.take_buffer(&gpu, &self.shape)?;
        let events = match record_copy(&gpu, || receive(&gpu, cell.address(), self.shape.bytes())) {
            Ok(events) => events,
            Err(error) => {
                // The transfer may be under way despite the error, so the memory must stay.
                std::mem::forget(cell);
                return Err(error);
            }
        };
        self.sides[0].begun.push(PendingCopy { layer, rank, expert, from: None, cell, events });
        Ok(())
    }

    /// Waits for all copies. Returns the copying times to the ranks of this process.
    pub(super) fn collect_copies(&mut self) -> Result<Vec<Duration>, ExecError> {
        let mut took = vec![Duration::ZERO; self.config.cluster.ranks()];
        if let Some(far) = &self.remote {
            self.sides.iter().try_for_each(|side| far.wait_for_moves(&side.gpu))?;
            if !far.is_stream_ordered() {
                self.sides.iter().try_for_each(CopyStream::record_arrival)?;
            }
        }
        self.sides.iter().try_for_each(CopyStream::wait_for_copies)?;
        self.sides.iter_mut().for_each(|side| side.sent.clear());
        let arrived: Vec<PendingCopy> = self.sides.iter_mut().flat_map(|side| side.begun.drain(..)).collect();
        for PendingCopy { layer, rank, expert, cell, events, .. } in arrived {
            let ms = events[0].elapsed_ms(&events[1]).map_err(CudaError::driver_error("reading a time"))?;
            took[rank] += Duration::try_from_secs_f64(f64::from(ms) / 1e3).unwrap_or_default();
            if let Some(at) = self.local_index(rank) {
                self.ranks[at].experts.staged.insert((layer, expert), Arc::new(cell));
            }
        }
        Ok(took)
    }

    /// Returns the weights that a rank would use after a switch, held or staged.
    fn available_buffer(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<ExpertBuffer>> {
        let staged = || self.ranks[self.local_index(rank)?].experts.staged.get(&(layer, expert)).cloned();
        self.held_buffer(rank, layer, expert).or_else(staged)
    }

    pub(super) fn switch_layer(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        self.state.expect_next(layer, &placement)?;
        let mut next: Vec<SlotBuffers> = Vec::with_capacity(self.ranks.len());
        for rank in self.group().local_ranks() {
            let of_slot = |&expert: &Option<u32>| {
                let Some(expert) = expert else { return Ok(None) };
                let missing = ExecError::NotStaged { layer, rank, expert };
                self.available_buffer(rank, layer, expert).map(Some).ok_or(missing)
            };
            next.push(
                experts_of_rank(&placement, rank).iter().map(of_slot).collect::<Result<SlotBuffers, _>>()?,
            );
        }
        let room: Option<BufferSizes> = self.ranks[0].buffers.as_ref().map(|buffers| buffers.room);
        if let Some(room) = room {
            let planners = self.create_planners(&placement, room)?;
            for (rank, planner) in self.ranks.iter_mut().zip(planners) {
                // Planners are missing if their creation failed. Then the next layer creates all.
                if let Some(current) = rank.planners.get_mut(layer) {
                    *current = planner;
                }
            }
            self.stamps[layer] = next_stamp();
        }
        self.state.replace(layer, placement);
        let placement = &self.state.placements()[layer];
        let gpus = &self.gpus;
        for (rank, slots) in self.ranks.iter_mut().zip(next) {
            rank.experts.replace_layer(&gpus[rank.device].context, layer, placement, slots)?;
        }
        self.synchronize()
    }
}
