//! A backend's memory: experts in their cells, buffers for the tokens that come, planners for both.

use super::blas::Blas;
use super::cells::Cell;
use super::clock::Clock;
use super::home::{Home, Slots, of_rank};
use super::layers::Layer;
use super::moves::Side;
use super::rank::{Buffers, Rank, Room};
use super::{Cuda, Path, Plan, Streams, enough, stamp};
use crate::cuda::{CudaError, DeviceGather, DevicePlanner, Peers, SameDevice};
use crate::exec::backend::ExecConfig;
use crate::exec::error::ExecError;
use crate::exec::weights::WeightSource;
use crate::place::Placement;
use crate::split::Method;
use std::sync::Arc;

impl Cuda {
    pub(super) fn build(
        &self,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        method: Option<Method>,
    ) -> Result<Self, ExecError> {
        let config = ExecConfig { method, ..self.config.clone() };
        let cluster = config.cluster;
        for placement in &placements {
            config.expect_fit(placement)?;
            ExecError::expect("ranks of a placement", placement.ranks(), cluster.ranks())?;
        }
        let together = self.gpus.iter().map(|gpu| gpu.context.fork()).collect::<Result<Vec<_>, _>>()?;
        let mut ranks = Vec::with_capacity(cluster.ranks());
        for &own in &self.mine {
            let device = self.device(own);
            let gpu = match self.options.streams {
                Streams::Alone => Arc::clone(&together[device]),
                Streams::Own => self.gpus[device].context.fork()?,
            };
            ranks.push(Rank::new(own, device, gpu, Arc::clone(&self.gpus[device].kernels))?);
        }
        let missing = |placement: &Placement, layer: usize, rank: usize| {
            let here = of_rank(placement, rank).iter().flatten();
            here.filter(|&&expert| self.held(rank, layer, expert).is_none()).count()
        };
        for (device, gpu) in self.gpus.iter().enumerate() {
            let here = || ranks.iter().filter(|rank| rank.device == device);
            let of = |(layer, p): (usize, &Placement)| {
                here().map(|rank| missing(p, layer, rank.own)).sum::<usize>()
            };
            let cells: usize = placements.iter().enumerate().map(of).sum();
            enough(&gpu.context, "experts", self.shape.bytes() * cells as u64)?;
        }
        let mut homes: Vec<Home> = ranks.iter().map(|_| Home::default()).collect();
        for (layer, placement) in placements.iter().enumerate() {
            let slots = self.fill(source, layer, placement)?;
            for ((home, rank), slots) in homes.iter_mut().zip(&ranks).zip(slots) {
                home.push(&self.gpus[rank.device].context, placement, slots)?;
            }
        }
        let blas = match self.options.path {
            Path::Own => vec![],
            Path::Cublas => ranks.iter().map(|rank| Blas::new(&rank.gpu)).collect::<Result<_, _>>()?,
        };
        self.synchronize()?;
        Ok(Self {
            config,
            options: self.options,
            gpus: Arc::clone(&self.gpus),
            shape: self.shape,
            placements,
            mine: self.mine.clone(),
            ranks,
            homes,
            far: self.far.clone(),
            plans: vec![],
            boards: None,
            blas,
            clock: Clock::default(),
            given: false,
            stamps: vec![],
            sides: self.gpus.iter().map(|gpu| Side::new(&gpu.context)).collect::<Result<_, _>>()?,
        })
    }

    /// One layer's cells per rank: those that this backend has there, copies of those that it has elsewhere, and new ones.
    fn fill(
        &self,
        source: &dyn WeightSource,
        layer: usize,
        placement: &Placement,
    ) -> Result<Vec<Slots>, ExecError> {
        let mut slots: Vec<Slots> =
            (0..placement.ranks()).map(|r| vec![None; of_rank(placement, r).len()]).collect();
        for expert in 0..placement.experts() as u32 {
            let mut first = self.original(layer, expert).ok();
            for &slot in placement.copies(expert as usize) {
                let (rank, at) = (placement.rank_of(slot), slot as usize % placement.slots_per_rank());
                if self.at(rank).is_none() {
                    continue;
                }
                let gpu = &self.gpus[self.device(rank)].context;
                let here = self.held(rank, layer, expert).or_else(|| {
                    of_rank(placement, rank)[..at]
                        .iter()
                        .position(|&e| e == Some(expert))
                        .and_then(|s| slots[rank][s].clone())
                });
                let cell = match (here, &first) {
                    (Some(cell), _) => cell,
                    (None, Some(other)) => {
                        let mut cell = Cell::empty(gpu, &self.shape)?;
                        cell.copy_from(gpu, other)?;
                        Arc::new(cell)
                    }
                    (None, None) => {
                        let weights = source.expert(layer, expert as usize)?;
                        Arc::new(Cell::new(gpu, &self.shape, &weights)?)
                    }
                };
                first.get_or_insert_with(|| Arc::clone(&cell));
                slots[rank][at] = Some(cell);
            }
        }
        Ok(self.mine.iter().map(|&rank| std::mem::take(&mut slots[rank])).collect())
    }

    /// Gives all ranks buffers for so many tokens and choices per token, where those that there are do not suffice, and the
    /// planners that go with them.
    pub(super) fn make_room(&mut self, tokens: usize, top_k: usize) -> Result<(), ExecError> {
        let (model, cluster) = (&self.config.model, &self.config.cluster);
        let old = self.ranks.first().and_then(|rank| rank.buffers.as_ref()).map(|buffers| buffers.room);
        if old.is_some_and(|old| old.tokens >= tokens && old.top_k >= top_k)
            && self.plans.len() == self.placements.len()
        {
            return Ok(());
        }
        let inner = |layer: &Layer| layer.shared.as_ref().map_or(0, |shared| shared.shape.inner);
        let room = Room {
            tokens: old.map_or(0, |old| old.tokens).max(tokens.next_multiple_of(16)).max(16),
            top_k: old.map_or(1, |old| old.top_k).max(top_k),
            ranks: cluster.ranks(),
            per_rank: cluster.slots_per_rank(),
            hidden: model.hidden as usize,
            inner: model.intermediate as usize,
            shared: self.layers().iter().map(inner).max().unwrap_or(0),
            width: self.config.router.width(model.experts),
            dense: self.options.path == Path::Cublas,
        };
        self.synchronize()?;
        self.stamps = self.placements.iter().map(|_| stamp()).collect();
        self.ranks.iter_mut().for_each(|rank| rank.buffers = None);
        self.plans.clear();
        self.boards = None;
        self.synchronize()?;
        for (device, gpu) in self.gpus.iter().enumerate() {
            let here = self.ranks.iter().filter(|rank| rank.device == device).count();
            let mirrors = room.mirror_bytes() * (here * (room.ranks - here)) as u64;
            enough(&gpu.context, "buffers", room.bytes() * here as u64 + mirrors)?;
        }
        let devices: Vec<Option<usize>> =
            (0..room.ranks).map(|rank| self.at(rank).map(|at| self.ranks[at].device)).collect();
        for rank in &mut self.ranks {
            rank.buffers = Some(Buffers::new(&rank.gpu, room, rank.own, &devices)?);
        }
        let all: Vec<Option<&Buffers>> =
            (0..room.ranks).map(|rank| self.ranks[self.at(rank)?].buffers.as_ref()).collect();
        let of = |rank: &Rank| rank.buffers.as_ref().map(|mine| rank.tables(mine, &all));
        let tables = self.ranks.iter().filter_map(of).collect::<Result<Vec<_>, _>>()?;
        for (rank, tables) in self.ranks.iter_mut().zip(tables) {
            if let Some(buffers) = &mut rank.buffers {
                buffers.tables = Some(tables);
            }
        }
        let board = |width| -> Result<Box<dyn DeviceGather>, CudaError> {
            if let Some(far) = &self.far {
                return Ok(Box::new(far.board()));
            }
            if self.gpus.len() == 1 {
                return Ok(Box::new(SameDevice::new(self.gpu(), cluster.ranks(), width)?));
            }
            let gpus: Vec<_> = self.ranks.iter().map(|rank| Arc::clone(&rank.gpu)).collect();
            Ok(Box::new(Peers::new(&gpus, width)?))
        };
        self.boards = Some([board(model.experts)?, board(cluster.slots())?]);
        self.plans =
            (0..self.placements.len()).map(|layer| self.plan(layer, room)).collect::<Result<_, _>>()?;
        self.synchronize()
    }

    /// What splits a layer: the device where the exact split is wanted and it can, else the host.
    pub(super) fn plan(&self, layer: usize, room: Room) -> Result<Plan, ExecError> {
        let (placement, cluster) = (&self.placements[layer], &self.config.cluster);
        if self.config.method.is_none() {
            return Ok(Plan::None);
        }
        if self.config.method == Some(Method::Exact) && self.config.then.is_none() {
            let of = |rank: &Rank| {
                let placements = std::slice::from_ref(placement);
                DevicePlanner::new(&rank.gpu, placements, cluster, rank.own, room.choices())
            };
            match self.ranks.iter().map(of).collect::<Result<Vec<_>, _>>() {
                Ok(planners) => return Ok(Plan::Device(planners)),
                // Too large for the device, or not its kind of problem.
                Err(CudaError::SharedMemory { .. } | CudaError::Program(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let of = |_| self.config.planner(placement).map(Option::into_iter);
        let planners = (0..self.ranks.len()).map(of).collect::<Result<Vec<_>, _>>()?;
        Ok(Plan::Host(planners.into_iter().flatten().collect()))
    }
}
