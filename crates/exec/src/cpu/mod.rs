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
mod dynamic_slots;
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
use super::comm::ProcessGroup;
use super::error::ExecError;
use super::placement_state::PlacementState;
use super::weights::{ExpertWeights, WeightSource};
use copy_thread::CopyThread;
use evenkeel::place::Placement;
use evenkeel::split::SplitMethod;
#[cfg(feature = "cuda")]
pub(super) use rank::check_slots;
use rank::{CpuRank, ReplicatedLayer};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Options of the CPU backend. Results do not depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
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

impl CpuOptions {
    /// Sets [`Self::verify_splits`](#structfield.verify_splits).
    #[must_use]
    pub fn verify_splits(mut self, verify_splits: bool) -> Self {
        self.verify_splits = verify_splits;
        self
    }

    /// Sets [`Self::chunks`](#structfield.chunks).
    #[must_use]
    pub fn chunks(mut self, chunks: usize) -> Self {
        self.chunks = chunks;
        self
    }
}

/// The CPU backend.
#[derive(Debug)]
pub struct Cpu {
    config: ExecConfig,
    layers: Arc<Vec<ReplicatedLayer>>,
    state: PlacementState,
    /// The ranks of this process.
    ranks: Vec<CpuRank>,
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

    fn build_ranks(
        config: ExecConfig,
        layers: Arc<Vec<ReplicatedLayer>>,
        placements: Vec<Placement>,
        (group, options): (Rc<ProcessGroup>, CpuOptions),
        weights: impl Fn(usize, usize, u32) -> Result<Arc<ExpertWeights>, ExecError>,
    ) -> Result<Self, ExecError> {
        let expert_bytes = config.model.expert_parameters() * config.dtype.bytes();
        let replicated_bytes = layers.iter().map(ReplicatedLayer::bytes).sum();
        let state = PlacementState::new(&config, group, placements, [expert_bytes, replicated_bytes])?;
        let build = |rank| {
            CpuRank::new(rank, &config, state.placements(), |layer, expert| weights(rank, layer, expert))
        };
        let ranks = state.group().local_ranks().map(build).collect::<Result<_, _>>()?;
        Ok(Self { config, layers, state, ranks, coming: Vec::new(), side: None, options })
    }

    /// Returns the index of a rank among those of this process, if it is one of them.
    fn local_index(&self, rank: usize) -> Option<usize> {
        let group = self.state.group();
        group.is_local(rank).then(|| rank - group.rank())
    }

    /// Returns the weights that a rank of this process holds in a slot.
    fn held_weights(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<ExpertWeights>> {
        self.ranks[self.local_index(rank)?].held_weights(self.state.placements().get(layer)?, layer, expert)
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn with_placements(
        &self,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        method: Option<SplitMethod>,
    ) -> Result<Self, ExecError> {
        let config = ExecConfig { method, ..self.config.clone() };
        let (layers, group) = (Arc::clone(&self.layers), (Rc::clone(self.state.group()), self.options));
        Self::build_ranks(config, layers, placements, group, |rank, layer, expert| {
            match self.held_weights(rank, layer, expert) {
                Some(weights) => Ok(weights),
                None => Ok(Arc::new(source.expert_weights(layer, expert as usize)?)),
            }
        })
    }

    fn state(&self) -> &PlacementState {
        &self.state
    }

    fn run_layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        self.forward_layer(input)
    }

    fn start_copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        self.copy_expert(layer, rank, expert)
    }

    fn wait_for_copies(&mut self) -> Result<Vec<Duration>, ExecError> {
        self.collect_copies()
    }

    fn activate_placement(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        self.switch_layer(layer, placement)
    }
}
