//! Moves of the CUDA backend: experts copied on a stream of their own into spare cells, and switches between steps.

use super::Cuda;
use super::cells::Cell;
use super::home::{Slots, of_rank};
use super::rank::Room;
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
    /// Not to be let go before the copy is done.
    _from: Arc<Cell>,
    cell: Cell,
    events: [CudaEvent; 2],
}

/// The stream beside the forward pass.
#[derive(Debug)]
pub(super) struct Side {
    gpu: Arc<Context>,
    begun: Vec<Begun>,
}

impl Side {
    pub(super) fn new(gpu: &Context) -> Result<Self, CudaError> {
        Ok(Self { gpu: gpu.fork()?, begun: Vec::new() })
    }

    /// Waits for everything that was begun.
    pub(super) fn finish(&self) -> Result<(), CudaError> {
        self.gpu.synchronize()
    }
}

impl Cuda {
    pub(super) fn begin_copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        let from = self.original(layer, expert)?;
        if rank >= self.ranks.len() {
            return Err(ExecError::Shape { what: "rank", given: rank, expected: self.ranks.len() });
        }
        let on_its_way = |b: &Begun| (b.layer, b.rank, b.expert) == (layer, rank, expert);
        if self.side.begun.iter().any(on_its_way) || self.ready(rank, layer, expert).is_some() {
            return Ok(0);
        }
        let gpu = Arc::clone(&self.side.gpu);
        let mut cell = self.homes[rank].cell(&gpu, &self.shape)?;
        let failed = CudaError::driver("timing a copy");
        let event = || gpu.stream().context().new_event(Some(CU_EVENT_DEFAULT)).map_err(&failed);
        let events = [event()?, event()?];
        // Whatever was at work on these cells has been waited for: layers end with that.
        events[0].record(gpu.stream()).map_err(&failed)?;
        cell.copy_from(&gpu, &from)?;
        events[1].record(gpu.stream()).map_err(&failed)?;
        self.side.begun.push(Begun { layer, rank, expert, _from: from, cell, events });
        Ok(self.shape.counted())
    }

    pub(super) fn finish_copies(&mut self) -> Result<Vec<Duration>, ExecError> {
        let mut took = vec![Duration::ZERO; self.ranks.len()];
        self.side.finish()?;
        for Begun { layer, rank, expert, cell, events, .. } in self.side.begun.drain(..) {
            let ms = events[0].elapsed_ms(&events[1]).map_err(CudaError::driver("reading a time"))?;
            took[rank] += Duration::try_from_secs_f64(f64::from(ms) / 1e3).unwrap_or_default();
            self.homes[rank].staged.insert((layer, expert), Arc::new(cell));
        }
        Ok(took)
    }

    /// Weights that a rank would use after a switch: held or staged.
    fn ready(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<Cell>> {
        self.held(rank, layer, expert).or_else(|| self.homes[rank].staged.get(&(layer, expert)).cloned())
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
        for rank in 0..self.ranks.len() {
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
                Ok(plan) => self.plans[layer] = plan,
                Err(error) => {
                    self.placements[layer] = old;
                    return Err(error);
                }
            }
        }
        let placement = &self.placements[layer];
        for (home, slots) in self.homes.iter_mut().zip(next) {
            home.switch(&self.gpu, layer, placement, slots)?;
        }
        self.gpu.synchronize()?;
        self.synchronize()
    }

    /// Bytes of routed experts in use, and staged or on their way, per rank.
    pub(super) fn bytes_held(&self) -> Vec<[u64; 2]> {
        let each = self.shape.counted();
        let of = |(at, home): (usize, &super::home::Home)| {
            let used = home.slots.iter().flatten().flatten().count() as u64;
            let coming = self.side.begun.iter().filter(|begun| begun.rank == at).count() as u64;
            [used * each, (home.staged.len() as u64 + coming) * each]
        };
        self.homes.iter().enumerate().map(of).collect()
    }
}
