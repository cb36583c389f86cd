//! One rank of a group whose other ranks are in other processes, each with a GPU, over NCCL or MPI.
//!
//! Input: this rank's tokens; those of others stay empty. Output: the values that the layer adds to them. The
//! rank holds only the weights of its own slots, and splits the counts of all ranks for itself. It enqueues
//! exactly the work that [`Cuda`] enqueues for each rank, in the same order, so that results are identical
//! bit for bit.

use super::expert_slots::experts_of_rank;
use super::migration::CopyStream;
use super::remote::RemoteRanks;
use super::replicated::DeviceLayer;
use super::{Cuda, CudaOptions};
use crate::backend::{Backend, ExecConfig, LayerInput, LayerRun};
use crate::error::ExecError;
use crate::forward::StepRun;
use crate::step_stats::gather_step_stats;
use crate::transport::{DeviceOperation, DeviceTransport, ProcessGroup, placement_digest};
use crate::weights::WeightSource;
use evenkeel::place::Placement;
use evenkeel::split::SplitMethod;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// One rank of the group.
#[derive(Debug)]
pub struct CudaPeer {
    cuda: Cuda,
    remote: Rc<RemoteRanks>,
    /// Layer, rank and expert of all experts in staging slots or on their way there, on any rank.
    staged: BTreeSet<(usize, usize, u32)>,
}

impl CudaPeer {
    /// Builds the memory of this rank on the GPU with which it joined; the GPU in `options` is ignored. There
    /// is one placement per layer, the same on all ranks, and weights of its own slots from `source`. `wire`
    /// and `gpus` must belong to the same group. With `prove` the ranks compare digests of every split.
    ///
    /// # Errors
    /// Fails as [`Cuda::new`] does, and if a placement differs from that of the other ranks.
    pub fn new(
        config: ExecConfig,
        options: CudaOptions,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        (wire, gpus): (Rc<ProcessGroup>, Rc<dyn DeviceTransport>),
        prove: bool,
    ) -> Result<Self, ExecError> {
        assert_same_placements(&wire, &placements)?;
        let options = CudaOptions { device: gpus.device(), devices: 1, ..options };
        let far = RemoteRanks::new(wire, gpus, prove);
        let cuda = Cuda::with_remote(config, options, source, placements, Some(Rc::clone(&far)))?;
        Ok(Self { cuda, remote: far, staged: BTreeSet::new() })
    }

    /// Builds the same rank with other placements and another split. It shares the experts that this one
    /// already holds.
    ///
    /// # Errors
    /// Fails as [`CudaPeer::new`] does.
    pub fn with_placements(
        &self,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        method: Option<SplitMethod>,
    ) -> Result<Self, ExecError> {
        assert_same_placements(&self.remote.wire, &placements)?;
        let far = self.remote.clone_for();
        let mut cuda = self.cuda.with_placements(source, placements, method)?;
        cuda.remote = Some(Rc::clone(&far));
        Ok(Self { cuda, remote: far, staged: BTreeSet::new() })
    }
}

fn assert_same_placements(wire: &ProcessGroup, placements: &[Placement]) -> Result<(), ExecError> {
    for (layer, placement) in placements.iter().enumerate() {
        wire.set_context(None, Some(layer));
        wire.assert_identical("the placement", || placement_digest(placement, &[]))?;
    }
    Ok(())
}

impl Backend for CudaPeer {
    fn name(&self) -> &'static str {
        self.cuda.name()
    }

    fn run_layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        self.cuda.run_layer(input).map_err(|error| self.remote.full_error(error))
    }

    fn is_local(&self, rank: usize) -> bool {
        rank == self.remote.rank()
    }

    fn gather_step_stats(&mut self, run: &mut StepRun) -> Result<(), ExecError> {
        gather_step_stats(&self.remote.wire, self.cuda.config.model.experts, run)
    }

    fn check_next_placement(&mut self, layer: usize, placement: &Placement) -> Result<(), ExecError> {
        self.remote.wire.set_context(None, Some(layer));
        Ok(self.remote.wire.assert_identical("the next placement", || placement_digest(placement, &[]))?)
    }

    fn placement(&self, layer: usize) -> &Placement {
        self.cuda.placement(layer)
    }

    fn expert_bytes(&self, layer: usize, expert: u32) -> Result<u64, ExecError> {
        self.cuda.home_rank(layer, expert)?;
        Ok(self.cuda.shape.weight_bytes())
    }

    fn start_copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        let (me, ranks) = (self.remote.rank(), self.remote.wire.ranks());
        let (from, bytes) = (self.cuda.home_rank(layer, expert)?, self.expert_bytes(layer, expert)?);
        if rank >= ranks {
            return Err(ExecError::Shape { what: "rank", given: rank, expected: ranks });
        }
        let there = experts_of_rank(self.cuda.placement(layer), rank).contains(&Some(expert));
        if there || !self.staged.insert((layer, rank, expert)) {
            return Ok(0);
        }
        self.remote.wire.set_context(None, Some(layer));
        let far = Rc::clone(&self.remote);
        if me == from {
            let held = self.cuda.held_buffer(me, layer, expert);
            let cell = held.ok_or(ExecError::NotStaged { layer, rank: me, expert })?;
            self.cuda.start_send(cell, |gpu, at, bytes| {
                far.start_move(gpu, DeviceOperation::To(rank, (at, bytes as usize)))
            })?;
        }
        if me == rank {
            self.cuda.start_receive([layer, rank], expert, |gpu, at, bytes| {
                far.start_move(gpu, DeviceOperation::From(from, (at, bytes as usize)))
            })?;
        }
        Ok(bytes)
    }

    /// Returns the copying times to this rank only. Other ranks measure their own.
    fn wait_for_copies(&mut self) -> Result<Vec<Duration>, ExecError> {
        self.cuda.sides.iter().try_for_each(|side| self.remote.wait_for_moves(&side.gpu))?;
        if !self.remote.is_stream_ordered() {
            self.cuda.sides.iter().try_for_each(CopyStream::record_arrival)?;
        }
        self.cuda.wait_for_copies()
    }

    fn activate_placement(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        self.cuda.activate_placement(layer, placement)?;
        self.staged.retain(|&(of, ..)| of != layer);
        Ok(())
    }

    fn memory(&self) -> Vec<[u64; 2]> {
        let each = self.cuda.shape.weight_bytes();
        let replicated: u64 = self.cuda.device_layers().iter().map(DeviceLayer::bytes).sum();
        let of = |rank: usize| {
            let slots = self.cuda.placements.iter().flat_map(|placement| experts_of_rank(placement, rank));
            let staged = self.staged.iter().filter(|staged| staged.1 == rank);
            [slots.flatten().count() as u64 * each + replicated, staged.count() as u64 * each]
        };
        (0..self.remote.wire.ranks()).map(of).collect()
    }
}
