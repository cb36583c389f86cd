//! The CPU backend: the ranks of this process, one after the other on one thread. Other ranks, if any, are in
//! other processes. Each phase of each rank is timed separately, in processor time of that thread.
//!
//! Input: the tokens of the ranks of this process. Output: the values that the layer adds to them. Every rank
//! holds only the weights of its own slots. Only three things pass between ranks:
//!
//! - the counts, by all-gather
//! - a send buffer per (source, destination) with each token once
//! - its answer with one weighted row per token
//!
//! Every rank computes the split for itself. Ranks of one process and ranks in separate processes do the same
//! work in the same order, so that results are identical bit for bit. While experts work on one chunk of
//! slots, the tokens of the next one travel ([`CpuOptions::chunks`]).

mod all_to_all;
mod codec;
mod copy_thread;
mod ffn;
mod gateway;
mod grouped_rows;
mod layer_pass;
mod mailbox;
mod matmul;
mod migration;
mod node_groups;
mod rank;
mod send_buffer;
mod skinny_gemm;

pub use ffn::Ffn;
pub use matmul::times_transposed;

use super::backend::{Backend, ExecConfig, LayerInput, LayerRun};
use super::error::ExecError;
use super::forward::StepRun;
use super::step_stats::gather_step_stats;
use super::transport::{ProcessGroup, placement_digest};
use super::weights::{ExpertWeights, WeightSource};
use copy_thread::CopyThread;
use evenkeel::place::Placement;
use evenkeel::split::SplitMethod;
#[cfg(feature = "cuda")]
pub(super) use rank::check_slots;
use rank::{CpuRank, ReplicatedLayer};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Options of the CPU backend. Results do not depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuOptions {
    /// True to compare digests of every split between processes.
    pub verify_splits: bool,
    /// Chunks of slots in which tokens travel, the same on all ranks. Larger numbers than slots mean one
    /// chunk per slot.
    pub chunks: usize,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self { verify_splits: false, chunks: 1 }
    }
}

/// The CPU backend.
#[derive(Debug)]
pub struct Cpu {
    config: ExecConfig,
    layers: Arc<Vec<ReplicatedLayer>>,
    placements: Vec<Placement>,
    group: Rc<ProcessGroup>,
    /// The ranks of this process.
    ranks: Vec<CpuRank>,
    /// Layer, rank and expert of all experts in staging slots or on their way there, on any rank.
    staged: BTreeSet<(usize, usize, u32)>,
    /// Experts on their way from other processes, in the order of arrival: layer, rank, expert, sender.
    coming: Vec<(usize, usize, u32, usize)>,
    /// The thread that copies experts between ranks of this process, if it has been needed.
    side: Option<CopyThread>,
    options: CpuOptions,
}

impl Cpu {
    /// Builds a backend with all ranks in this process: one placement per layer, weights from `source`.
    ///
    /// # Errors
    /// Fails as [`Cpu::join`] does.
    pub fn new(
        config: ExecConfig,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
    ) -> Result<Self, ExecError> {
        let group = Rc::new(ProcessGroup::local(config.cluster));
        Self::join(config, source, placements, group, CpuOptions::default())
    }

    /// Builds the memories of the ranks of this process: one placement per layer, the same in all processes,
    /// and the weights of their own slots from `source`.
    ///
    /// # Errors
    /// Fails if weights cannot be read, if they have other shapes than the model's, or if a placement does
    /// not fit. Fails if the group has another number of ranks, or if a placement differs from that of the
    /// other processes.
    pub fn join(
        config: ExecConfig,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        group: Rc<ProcessGroup>,
        options: CpuOptions,
    ) -> Result<Self, ExecError> {
        let layers = Arc::new(ReplicatedLayer::read_layers(&config, source, placements.len())?);
        Self::build_ranks(config, layers, placements, (group, options), |_, layer, expert| {
            Ok(Arc::new(source.expert_weights(layer, expert as usize)?))
        })
    }

    /// Builds a backend for the same model and group with other placements and another split. A rank shares
    /// the experts that it already holds in this backend.
    ///
    /// # Errors
    /// Fails as [`Cpu::join`] does.
    pub fn with_placements(
        &self,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        method: Option<SplitMethod>,
    ) -> Result<Self, ExecError> {
        let config = ExecConfig { method, ..self.config.clone() };
        let (layers, group) = (Arc::clone(&self.layers), (Rc::clone(&self.group), self.options));
        Self::build_ranks(config, layers, placements, group, |rank, layer, expert| {
            match self.held_weights(rank, layer, expert) {
                Some(weights) => Ok(weights),
                None => Ok(Arc::new(source.expert_weights(layer, expert as usize)?)),
            }
        })
    }

    fn build_ranks(
        config: ExecConfig,
        layers: Arc<Vec<ReplicatedLayer>>,
        placements: Vec<Placement>,
        (group, options): (Rc<ProcessGroup>, CpuOptions),
        weights: impl Fn(usize, usize, u32) -> Result<Arc<ExpertWeights>, ExecError>,
    ) -> Result<Self, ExecError> {
        ExecError::expect_size("ranks of the group", group.ranks(), config.cluster.ranks())?;
        for (layer, placement) in placements.iter().enumerate() {
            config.expect_fit(placement)?;
            group.set_context(None, Some(layer));
            group.assert_identical("the placement", || placement_digest(placement, &[]))?;
        }
        let build =
            |rank| CpuRank::new(rank, &config, &placements, |layer, expert| weights(rank, layer, expert));
        let ranks = group.local_ranks().map(build).collect::<Result<_, _>>()?;
        let (staged, coming) = (BTreeSet::new(), Vec::new());
        Ok(Self { config, layers, placements, group, ranks, staged, coming, side: None, options })
    }

    /// Returns the index of a rank among those of this process, if it is one of them.
    fn local_index(&self, rank: usize) -> Option<usize> {
        self.group.is_local(rank).then(|| rank - self.group.rank())
    }

    /// Returns the weights that a rank of this process holds in a slot.
    fn held_weights(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<ExpertWeights>> {
        self.ranks[self.local_index(rank)?].held_weights(self.placements.get(layer)?, layer, expert)
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        if self.group.is_complete() { "cpu" } else { self.group.name() }
    }

    fn run_layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        self.forward_layer(input)
    }

    fn is_local(&self, rank: usize) -> bool {
        self.group.is_local(rank)
    }

    fn gather_step_stats(&mut self, run: &mut StepRun) -> Result<(), ExecError> {
        gather_step_stats(&self.group, self.config.model.experts, run)
    }

    fn check_next_placement(&mut self, layer: usize, placement: &Placement) -> Result<(), ExecError> {
        self.group.set_context(None, Some(layer));
        Ok(self.group.assert_identical("the next placement", || placement_digest(placement, &[]))?)
    }

    fn placement(&self, layer: usize) -> &Placement {
        &self.placements[layer]
    }

    fn expert_bytes(&self, layer: usize, expert: u32) -> Result<u64, ExecError> {
        self.home_rank(layer, expert)?;
        Ok(self.config.model.expert_parameters() * self.config.dtype.bytes())
    }

    fn start_copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        self.stage_expert(layer, rank, expert)
    }

    fn wait_for_copies(&mut self) -> Result<Vec<Duration>, ExecError> {
        self.collect_experts()
    }

    fn activate_placement(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        self.switch_layer(layer, placement)
    }

    fn memory(&self) -> Vec<[u64; 2]> {
        self.bytes_held()
    }
}
