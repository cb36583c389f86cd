//! Moves of the CUDA backend: experts copied on a stream of their own into spare cells, and switches between steps.

use super::cells::Cell;
use super::home::{Slots, of_rank};
use super::kernels::Address;
use super::rank::Room;
use super::{Cuda, stamp};
use crate::cuda::{Context, CudaError};
use crate::exec::error::ExecError;
use crate::place::Placement;
use cudarc::driver::CudaEvent;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use std::sync::Arc;
use std::time::Duration;

/// An expert on its way.
#[derive(Debug)]
struct Begun {
    layer: usize,
    rank: usize,
    expert: u32,
    /// Not to be let go before the copy is done; none where it comes from another process.
    from: Option<Arc<Cell>>,
    cell: Cell,
    events: [CudaEvent; 2],
}

/// The stream beside the forward pass.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) gpu: Arc<Context>,
    begun: Vec<Begun>,
    /// On their way to other processes.
    sent: Vec<Arc<Cell>>,
}

impl Side {
    pub(super) fn new(gpu: &Context) -> Result<Self, CudaError> {
        Ok(Self { gpu: gpu.fork()?, begun: Vec::new(), sent: Vec::new() })
    }

    /// Says that what comes from other processes has come, where the stream alone does not know.
    pub(super) fn arrived(&self) -> Result<(), CudaError> {
        let failed = CudaError::driver("timing a copy");
        let far = self.begun.iter().filter(|begun| begun.from.is_none());
        far.map(|begun| &begun.events[1]).try_for_each(|end| end.record(self.gpu.stream()).map_err(&failed))
    }

    /// Waits for everything that was begun.
    pub(super) fn finish(&self) -> Result<(), CudaError> {
        self.gpu.synchronize()
    }
}

/// Enqueues a copy on the stream beside, between two events.
fn timed<E: From<CudaError>>(
    gpu: &Context,
    copy: impl FnOnce() -> Result<(), E>,
) -> Result<[CudaEvent; 2], E> {
    let failed = CudaError::driver("timing a copy");
    let event = || gpu.stream().context().new_event(Some(CU_EVENT_DEFAULT)).map_err(&failed);
    let events = [event()?, event()?];
    events[0].record(gpu.stream()).map_err(&failed)?;
    copy()?;
    events[1].record(gpu.stream()).map_err(&failed)?;
    Ok(events)
}

impl Cuda {
    pub(super) fn begin_copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        let from = self.original(layer, expert)?;
        if rank >= self.ranks.len() {
            return Err(ExecError::Shape { what: "rank", given: rank, expected: self.ranks.len() });
        }
        let on_its_way = |b: &Begun| (b.layer, b.rank, b.expert) == (layer, rank, expert);
        let device = self.device(rank);
        if self.sides[device].begun.iter().any(on_its_way) || self.ready(rank, layer, expert).is_some() {
            return Ok(0);
        }
        let gpu = Arc::clone(&self.sides[device].gpu);
        let mut cell = self.homes[rank].cell(&gpu, &self.shape)?;
        // Whatever was at work on these cells has been waited for: layers end with that.
        let events = timed(&gpu, || cell.copy_from(&gpu, &from))?;
        self.sides[device].begun.push(Begun { layer, rank, expert, from: Some(from), cell, events });
        Ok(self.shape.counted())
    }

    /// Begins to send an expert that this process' rank holds to another process: `send` enqueues it, given where it is.
    pub(super) fn begin_to_send(
        &mut self,
        cell: Arc<Cell>,
        send: impl FnOnce(&Context, Address, u64) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let side = &mut self.sides[0];
        send(&side.gpu, cell.address(), self.shape.bytes())?;
        side.sent.push(cell);
        Ok(())
    }

    /// Begins to receive an expert from another process: `receive` enqueues it, given where it goes.
    pub(super) fn begin_to_receive(
        &mut self,
        [layer, rank]: [usize; 2],
        expert: u32,
        receive: impl FnOnce(&Context, Address, u64) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let gpu = Arc::clone(&self.sides[0].gpu);
        let cell = self.homes[0].cell(&gpu, &self.shape)?;
        let events = match timed(&gpu, || receive(&gpu, cell.address(), self.shape.bytes())) {
            Ok(events) => events,
            Err(error) => {
                // It may be on its way all the same.
                std::mem::forget(cell);
                return Err(error);
            }
        };
        self.sides[0].begun.push(Begun { layer, rank, expert, from: None, cell, events });
        Ok(())
    }

    pub(super) fn finish_copies(&mut self) -> Result<Vec<Duration>, ExecError> {
        let mut took = vec![Duration::ZERO; self.config.cluster.ranks()];
        self.sides.iter().try_for_each(Side::finish)?;
        self.sides.iter_mut().for_each(|side| side.sent.clear());
        for Begun { layer, rank, expert, cell, events, .. } in
            self.sides.iter_mut().flat_map(|side| side.begun.drain(..))
        {
            let ms = events[0].elapsed_ms(&events[1]).map_err(CudaError::driver("reading a time"))?;
            took[rank] += Duration::try_from_secs_f64(f64::from(ms) / 1e3).unwrap_or_default();
            if let Some(at) = self.mine.iter().position(|&mine| mine == rank) {
                self.homes[at].staged.insert((layer, expert), Arc::new(cell));
            }
        }
        Ok(took)
    }

    /// Weights that a rank would use after a switch: held or staged.
    fn ready(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<Cell>> {
        let staged = || self.homes[self.at(rank)?].staged.get(&(layer, expert)).cloned();
        self.held(rank, layer, expert).or_else(staged)
    }

    pub(super) fn switch_layer(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        let expected = self.placements.len();
        if layer >= expected {
            return Err(ExecError::Shape { what: "layer", given: layer, expected });
        }
        ExecError::expect("experts of a placement", placement.experts(), self.config.model.experts)?;
        ExecError::expect("slots of a placement", placement.slots().len(), self.config.cluster.slots())?;
        ExecError::expect("ranks of a placement", placement.ranks(), self.config.cluster.ranks())?;
        let mut next: Vec<Slots> = Vec::with_capacity(self.ranks.len());
        for &rank in &self.mine {
            let of_slot = |&expert: &Option<u32>| {
                let Some(expert) = expert else { return Ok(None) };
                let missing = ExecError::NotStaged { layer, rank, expert };
                self.ready(rank, layer, expert).map(Some).ok_or(missing)
            };
            next.push(of_rank(&placement, rank).iter().map(of_slot).collect::<Result<Slots, _>>()?);
        }
        let old = std::mem::replace(&mut self.placements[layer], placement);
        let room: Option<Room> = self.ranks[0].buffers.as_ref().map(|buffers| buffers.room);
        if let Some(room) = room.filter(|_| layer < self.plans.len()) {
            match self.plan(layer, room) {
                Ok(plan) => {
                    self.plans[layer] = plan;
                    self.stamps[layer] = stamp();
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
            home.switch(&gpus[rank.device].context, layer, placement, slots)?;
        }
        self.synchronize()
    }

    /// Bytes of weights in use, and of experts staged or on their way, per rank.
    pub(super) fn bytes_held(&self) -> Vec<[u64; 2]> {
        let each = self.shape.counted();
        let replicated: u64 = self.layers().iter().map(super::layers::Layer::bytes).sum();
        let of = |(at, home): (usize, &super::home::Home)| {
            let used = home.slots.iter().flatten().flatten().count() as u64;
            let begun = self.sides.iter().flat_map(|side| &side.begun);
            let coming = begun.filter(|begun| begun.rank == at).count() as u64;
            [used * each + replicated, (home.staged.len() as u64 + coming) * each]
        };
        self.homes.iter().enumerate().map(of).collect()
    }
}
