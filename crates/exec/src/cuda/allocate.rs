//! Allocates a backend's memory: experts in their cells, buffers for received tokens, and planners.

use super::cublas::CublasGemm;
use super::dynamic_slots::DynamicCells;
use super::expert_buffer::ExpertBuffer;
use super::expert_slots::SlotBuffers;
use super::migration::CopyStream;
use super::rank::{BufferSizes, CudaRank, LayerPlanner, RankBuffers};
use super::replicated::DeviceLayer;
use super::stage_timer::StageTimer;
use super::{Cuda, GemmPath, StreamSharing, check_memory, next_stamp};
use crate::backend::ExecConfig;
use crate::error::ExecError;
use crate::placement_state::{PlacementState, experts_of_rank};
use crate::weights::WeightSource;
use evenkeel::place::Placement;
use evenkeel::split::SplitMethod;
use evenkeel_cuda::{CudaError, DeviceGather, DevicePlanner, PeerGather, SameDeviceGather};
use std::rc::Rc;
use std::sync::Arc;

impl Cuda {
    pub(super) fn build_backend(
        &self,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        method: Option<SplitMethod>,
    ) -> Result<Self, ExecError> {
        let config = ExecConfig { method, ..self.config.clone() };
        let cluster = config.cluster;
        let replicated = self.device_layers().iter().map(DeviceLayer::bytes).sum();
        let (group, bytes) = (Rc::clone(self.group()), [self.shape.weight_bytes(), replicated]);
        let state = PlacementState::new(&config, group, placements, bytes)?;
        let together =
            self.gpus.iter().map(|gpu| gpu.context.fork_stream()).collect::<Result<Vec<_>, _>>()?;
        let mut ranks = Vec::with_capacity(cluster.ranks());
        for own in self.group().local_ranks() {
            let device = self.device_of(own);
            let gpu = match self.options.streams {
                StreamSharing::Alone => Arc::clone(&together[device]),
                StreamSharing::Own => self.gpus[device].context.fork_stream()?,
            };
            let mut rank = CudaRank::new(own, device, gpu, Arc::clone(&self.gpus[device].kernels))?;
            if self.options.path == GemmPath::Cublas {
                rank.blas = Some(CublasGemm::new(&rank.gpu)?);
            }
            ranks.push(rank);
        }
        let missing = |placement: &Placement, layer: usize, rank: usize| {
            let here = experts_of_rank(placement, rank).iter().flatten();
            here.filter(|&&expert| self.held_buffer(rank, layer, expert).is_none()).count()
        };
        for (device, gpu) in self.gpus.iter().enumerate() {
            let here = || ranks.iter().filter(|rank| rank.device == device);
            let of = |(layer, p): (usize, &Placement)| {
                here().map(|rank| missing(p, layer, rank.own)).sum::<usize>()
            };
            let dynamic = here().count() * config.dynamic_cells(state.placements().len());
            let cells: usize = state.placements().iter().enumerate().map(of).sum::<usize>() + dynamic;
            check_memory(&gpu.context, "experts", self.shape.bytes() * cells as u64)?;
        }
        for rank in &mut ranks {
            let (gpu, layers) = (&self.gpus[rank.device].context, state.placements().len());
            rank.experts.dynamic = DynamicCells::new(gpu, &self.shape, &config, layers)?;
        }
        for (layer, placement) in state.placements().iter().enumerate() {
            let slots = self.fill_layer(source, layer, placement)?;
            for (rank, slots) in ranks.iter_mut().zip(slots) {
                rank.experts.push_layer(&self.gpus[rank.device].context, placement, slots)?;
            }
        }
        self.synchronize()?;
        Ok(Self {
            config,
            options: self.options,
            gpus: Arc::clone(&self.gpus),
            shape: self.shape,
            state,
            ranks,
            remote: self.remote.as_ref().map(|remote| remote.clone_for()),
            boards: None,
            clock: StageTimer::default(),
            stamps: vec![],
            sides: self.gpus.iter().map(|gpu| CopyStream::new(&gpu.context)).collect::<Result<_, _>>()?,
        })
    }

    /// Fills one layer's cells on every rank: existing cells of this backend on the same rank, copies of
    /// cells on other ranks, and new ones.
    fn fill_layer(
        &self,
        source: &dyn WeightSource,
        layer: usize,
        placement: &Placement,
    ) -> Result<Vec<SlotBuffers>, ExecError> {
        let mut slots: Vec<SlotBuffers> =
            (0..placement.ranks()).map(|r| vec![None; experts_of_rank(placement, r).len()]).collect();
        for expert in 0..placement.experts() as u32 {
            let mut first = self.home_buffer(layer, expert).ok();
            for &slot in placement.replicas(expert as usize) {
                let (rank, at) = (placement.rank_of(slot), slot as usize % placement.slots_per_rank());
                if self.local_index(rank).is_none() {
                    continue;
                }
                let gpu = &self.gpus[self.device_of(rank)].context;
                let here = self.held_buffer(rank, layer, expert).or_else(|| {
                    experts_of_rank(placement, rank)[..at]
                        .iter()
                        .position(|&e| e == Some(expert))
                        .and_then(|s| slots[rank][s].clone())
                });
                let cell = match (here, &first) {
                    (Some(cell), _) => cell,
                    (None, Some(other)) => {
                        let mut cell = ExpertBuffer::empty(gpu, &self.shape)?;
                        cell.copy_from(gpu, other)?;
                        Arc::new(cell)
                    }
                    (None, None) => {
                        let weights = source.expert_weights(layer, expert as usize)?;
                        Arc::new(ExpertBuffer::new(gpu, &self.shape, &weights)?)
                    }
                };
                first.get_or_insert_with(|| Arc::clone(&cell));
                slots[rank][at] = Some(cell);
            }
        }
        Ok(self.group().local_ranks().map(|rank| std::mem::take(&mut slots[rank])).collect())
    }

    /// Gives all ranks buffers for `tokens` tokens with `top_k` choices each, and the matching planners,
    /// unless the existing buffers suffice.
    pub(super) fn reserve_buffers(&mut self, tokens: usize, top_k: usize) -> Result<(), ExecError> {
        let (model, cluster) = (&self.config.model, &self.config.cluster);
        let old = self.ranks.first().and_then(|rank| rank.buffers.as_ref()).map(|buffers| buffers.room);
        if self.boards.is_some() && old.is_some_and(|old| old.tokens >= tokens && old.top_k >= top_k) {
            return Ok(());
        }
        let inner = |layer: &DeviceLayer| layer.shared.as_ref().map_or(0, |shared| shared.shape.inner);
        let room = BufferSizes {
            tokens: old.map_or(0, |old| old.tokens).max(tokens.next_multiple_of(16)).max(16),
            top_k: old.map_or(1, |old| old.top_k).max(top_k),
            ranks: cluster.ranks(),
            per_rank: self.config.slots_per_rank(),
            hidden: model.hidden as usize,
            inner: model.intermediate as usize,
            shared: self.device_layers().iter().map(inner).max().unwrap_or(0),
            width: self.config.router.logit_width(model.experts),
            dense: self.options.path == GemmPath::Cublas,
        };
        self.synchronize()?;
        self.stamps = self.state.placements().iter().map(|_| next_stamp()).collect();
        for rank in &mut self.ranks {
            rank.buffers = None;
            rank.planners.clear();
        }
        self.boards = None;
        self.synchronize()?;
        for (device, gpu) in self.gpus.iter().enumerate() {
            let here = self.ranks.iter().filter(|rank| rank.device == device).count();
            let mirrors = room.mirror_bytes() * (here * (room.ranks - here)) as u64;
            check_memory(&gpu.context, "buffers", room.bytes() * here as u64 + mirrors)?;
        }
        let devices: Vec<Option<usize>> =
            (0..room.ranks).map(|rank| self.local_index(rank).map(|at| self.ranks[at].device)).collect();
        for rank in &mut self.ranks {
            rank.buffers = Some(RankBuffers::new(&rank.gpu, room, rank.own, &devices)?);
        }
        let all: Vec<Option<&RankBuffers>> =
            (0..room.ranks).map(|rank| self.ranks[self.local_index(rank)?].buffers.as_ref()).collect();
        let of = |rank: &CudaRank| rank.buffers.as_ref().map(|mine| rank.build_tables(mine, &all));
        let tables = self.ranks.iter().filter_map(of).collect::<Result<Vec<_>, _>>()?;
        for (rank, tables) in self.ranks.iter_mut().zip(tables) {
            if let Some(buffers) = &mut rank.buffers {
                buffers.tables = Some(tables);
            }
        }
        let board = |width| -> Result<Box<dyn DeviceGather>, CudaError> {
            if let Some(far) = &self.remote {
                return Ok(Box::new(far.create_gather()));
            }
            if self.gpus.len() == 1 {
                return Ok(Box::new(SameDeviceGather::new(self.first_gpu(), cluster.ranks(), width)?));
            }
            let gpus: Vec<_> = self.ranks.iter().map(|rank| Arc::clone(&rank.gpu)).collect();
            Ok(Box::new(PeerGather::new(&gpus, width)?))
        };
        let boards = [board(model.experts)?, board(cluster.ranks() * room.per_rank)?];
        let plan = |placement| self.create_planners(placement, room);
        for planners in self.state.placements().iter().map(plan).collect::<Result<Vec<_>, _>>()? {
            for (rank, planner) in self.ranks.iter_mut().zip(planners) {
                rank.planners.push(planner);
            }
        }
        // The boards come last, because they state that buffers and planners are complete.
        self.boards = Some(boards);
        self.synchronize()
    }

    /// Creates the planners of all ranks that split a layer: on the device if the split is exact, without
    /// dynamic slots, and of a kind that the device supports. Otherwise they are on the host.
    pub(super) fn create_planners(
        &self,
        placement: &Placement,
        room: BufferSizes,
    ) -> Result<Vec<LayerPlanner>, ExecError> {
        let cluster = &self.config.cluster;
        let of_device = self.config.tie_break.is_none() && self.config.dynamic_slots().is_none();
        if self.config.method == Some(SplitMethod::Exact) && of_device {
            let of = |rank: &CudaRank| {
                let placements = std::slice::from_ref(placement);
                let planner =
                    DevicePlanner::new(&rank.gpu, placements, cluster, rank.own, room.max_choices());
                planner.map(|planner| LayerPlanner::Device(Box::new(planner)))
            };
            match self.ranks.iter().map(of).collect::<Result<Vec<_>, _>>() {
                Ok(planners) => return Ok(planners),
                // The problem is too large for the device, or of an unsupported kind.
                Err(CudaError::SharedMemory { .. } | CudaError::Program(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let of = |_: &CudaRank| -> Result<LayerPlanner, ExecError> {
            Ok(match self.config.create_planner(placement)? {
                Some(planner) => LayerPlanner::Host(Box::new(planner)),
                None => LayerPlanner::FirstReplica,
            })
        };
        self.ranks.iter().map(of).collect()
    }
}
