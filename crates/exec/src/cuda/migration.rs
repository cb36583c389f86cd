//! Migration on the CUDA backend: experts are copied on a background stream into spare cells, and layers
//! switch between steps.

use super::expert_buffer::ExpertBuffer;
use super::expert_slots::{SlotBuffers, experts_of_rank};
use super::kernels::DeviceAddress;
use super::rank::BufferSizes;
use super::{Cuda, next_stamp};
use crate::error::ExecError;
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
    pub(super) fn enqueue_copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        let from = self.home_buffer(layer, expert)?;
        if rank >= self.ranks.len() {
            return Err(ExecError::Shape { what: "rank", given: rank, expected: self.ranks.len() });
        }
        let on_its_way = |b: &PendingCopy| (b.layer, b.rank, b.expert) == (layer, rank, expert);
        let device = self.device_of(rank);
        if self.sides[device].begun.iter().any(on_its_way)
            || self.available_buffer(rank, layer, expert).is_some()
        {
            return Ok(0);
        }
        let gpu = Arc::clone(&self.sides[device].gpu);
        let mut cell = self.homes[rank].take_buffer(&gpu, &self.shape)?;
        // All earlier work on these cells is complete, because every layer ends with a synchronisation.
        let events = record_copy(&gpu, || cell.copy_from(&gpu, &from))?;
        self.sides[device].begun.push(PendingCopy { layer, rank, expert, from: Some(from), cell, events });
        Ok(self.shape.weight_bytes())
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
        let cell = self.homes[0].take_buffer(&gpu, &self.shape)?;
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

    pub(super) fn collect_copies(&mut self) -> Result<Vec<Duration>, ExecError> {
        let mut took = vec![Duration::ZERO; self.config.cluster.ranks()];
        self.sides.iter().try_for_each(CopyStream::wait_for_copies)?;
        self.sides.iter_mut().for_each(|side| side.sent.clear());
        for PendingCopy { layer, rank, expert, cell, events, .. } in
            self.sides.iter_mut().flat_map(|side| side.begun.drain(..))
        {
            let ms = events[0].elapsed_ms(&events[1]).map_err(CudaError::driver_error("reading a time"))?;
            took[rank] += Duration::try_from_secs_f64(f64::from(ms) / 1e3).unwrap_or_default();
            if let Some(at) = self.mine.iter().position(|&mine| mine == rank) {
                self.homes[at].staged.insert((layer, expert), Arc::new(cell));
            }
        }
        Ok(took)
    }

    /// Returns the weights that a rank would use after a switch, held or staged.
    fn available_buffer(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<ExpertBuffer>> {
        let staged = || self.homes[self.local_index(rank)?].staged.get(&(layer, expert)).cloned();
        self.held_buffer(rank, layer, expert).or_else(staged)
    }

    pub(super) fn switch_layer(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        let expected = self.placements.len();
        if layer >= expected {
            return Err(ExecError::Shape { what: "layer", given: layer, expected });
        }
        ExecError::expect_size("experts of a placement", placement.experts(), self.config.model.experts)?;
        ExecError::expect_size("slots of a placement", placement.slots().len(), self.config.cluster.slots())?;
        ExecError::expect_size("ranks of a placement", placement.ranks(), self.config.cluster.ranks())?;
        let mut next: Vec<SlotBuffers> = Vec::with_capacity(self.ranks.len());
        for &rank in &self.mine {
            let of_slot = |&expert: &Option<u32>| {
                let Some(expert) = expert else { return Ok(None) };
                let missing = ExecError::NotStaged { layer, rank, expert };
                self.available_buffer(rank, layer, expert).map(Some).ok_or(missing)
            };
            next.push(
                experts_of_rank(&placement, rank).iter().map(of_slot).collect::<Result<SlotBuffers, _>>()?,
            );
        }
        let old = std::mem::replace(&mut self.placements[layer], placement);
        let room: Option<BufferSizes> = self.ranks[0].buffers.as_ref().map(|buffers| buffers.room);
        if let Some(room) = room.filter(|_| layer < self.plans.len()) {
            match self.create_planners(layer, room) {
                Ok(plan) => {
                    self.plans[layer] = plan;
                    self.stamps[layer] = next_stamp();
                }
                Err(error) => {
                    self.placements[layer] = old;
                    return Err(error);
                }
            }
        }
        let placement = &self.placements[layer];
        let gpus = &self.gpus;
        for ((home, rank), slots) in self.homes.iter_mut().zip(&self.ranks).zip(next) {
            home.replace_layer(&gpus[rank.device].context, layer, placement, slots)?;
        }
        self.synchronize()
    }

    /// Returns two byte counts per rank: weights in use, and experts staged or on their way.
    pub(super) fn bytes_held(&self) -> Vec<[u64; 2]> {
        let each = self.shape.weight_bytes();
        let replicated: u64 = self.device_layers().iter().map(super::replicated::DeviceLayer::bytes).sum();
        let of = |(at, home): (usize, &super::expert_slots::ExpertSlots)| {
            let used = home.slots.iter().flatten().flatten().count() as u64;
            let begun = self.sides.iter().flat_map(|side| &side.begun);
            let coming = begun.filter(|begun| begun.rank == at).count() as u64;
            [used * each + replicated, (home.staged.len() as u64 + coming) * each]
        };
        self.homes.iter().enumerate().map(of).collect()
    }
}
