//! One rank of the CPU backend on a wire, with the other ranks elsewhere.
//!
//! Input: this rank's tokens; those of others stay empty. Output: the values that the layer adds to them. The
//! rank holds only the weights of its own slots, and splits the counts of all ranks for itself. It processes
//! its tokens exactly as [`Cpu`](super::Cpu) does for a rank, in the same order, so that results are
//! identical bit for bit. While experts work on one chunk of slots, the tokens of the next one travel
//! ([`PeerOptions::chunks`]).

mod all_to_all;
mod codec;
mod gateway;
mod layer;
mod step_stats;
#[cfg(feature = "cuda")]
pub(crate) use step_stats::gather_step_stats;

use super::experts_of_rank;
use super::rank::{CpuRank, ReplicatedLayer, SlotWeights};
use crate::backend::{Backend, ExecConfig, LayerInput, LayerRun};
use crate::error::ExecError;
use crate::forward::StepRun;
use crate::transport::{Communicator, Purpose, placement_digest};
use crate::weights::{ExpertWeights, WeightSource};
use evenkeel::place::Placement;
use evenkeel::split::SplitMethod;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Options of a rank. Results do not depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerOptions {
    /// True to compare digests of every split between the ranks.
    pub verify_splits: bool,
    /// Chunks of slots in which tokens travel, the same on all ranks. Larger numbers than slots mean one
    /// chunk per slot.
    pub chunks: usize,
}

impl Default for PeerOptions {
    fn default() -> Self {
        Self { verify_splits: false, chunks: 1 }
    }
}

/// One rank of the group.
#[derive(Debug)]
pub struct CpuPeer {
    config: ExecConfig,
    layers: Arc<Vec<ReplicatedLayer>>,
    placements: Vec<Placement>,
    wire: Rc<Communicator>,
    mine: CpuRank,
    /// Layer, rank and expert of all experts in staging slots or on their way there, on any rank.
    staged: BTreeSet<(usize, usize, u32)>,
    /// Experts on their way to this rank, in the order of arrival: layer, expert, sender.
    coming: Vec<(usize, u32, usize)>,
    options: PeerOptions,
}

impl CpuPeer {
    /// Builds the memory of this rank: one placement per layer, the same on all ranks, and the weights of its
    /// own slots from `source`.
    ///
    /// # Errors
    /// Fails if weights cannot be read or have other shapes than the model's. Fails if a placement does not
    /// fit or differs from that of the other ranks.
    pub fn new(
        config: ExecConfig,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        wire: Rc<Communicator>,
        options: PeerOptions,
    ) -> Result<Self, ExecError> {
        let layers = Arc::new(ReplicatedLayer::read_layers(&config, source, placements.len())?);
        Self::build_peer(config, layers, placements, wire, options, |layer, expert| {
            Ok(Arc::new(source.expert_weights(layer, expert as usize)?))
        })
    }

    /// Builds the same rank with other placements and another split. It shares the experts that this one
    /// already holds.
    ///
    /// # Errors
    /// Fails as [`CpuPeer::new`] does.
    pub fn with_placements(
        &self,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        method: Option<SplitMethod>,
    ) -> Result<Self, ExecError> {
        let config = ExecConfig { method, ..self.config.clone() };
        let (layers, wire) = (Arc::clone(&self.layers), Rc::clone(&self.wire));
        Self::build_peer(config, layers, placements, wire, self.options, |layer, expert| {
            match self.held_weights(layer, expert) {
                Some(weights) => Ok(weights),
                None => Ok(Arc::new(source.expert_weights(layer, expert as usize)?)),
            }
        })
    }

    fn build_peer(
        config: ExecConfig,
        layers: Arc<Vec<ReplicatedLayer>>,
        placements: Vec<Placement>,
        wire: Rc<Communicator>,
        options: PeerOptions,
        weights: impl Fn(usize, u32) -> Result<Arc<ExpertWeights>, ExecError>,
    ) -> Result<Self, ExecError> {
        let (mut slots, mut planners) = (Vec::new(), Vec::new());
        for (layer, placement) in placements.iter().enumerate() {
            config.expect_fit(placement)?;
            wire.set_context(None, Some(layer));
            wire.assert_identical("the placement", placement_digest(placement, &[]))?;
            planners.push(config.create_planner(placement)?);
            let of_slot = |&expert: &Option<u32>| expert.map(|expert| weights(layer, expert)).transpose();
            slots.push(
                experts_of_rank(placement, wire.rank())
                    .iter()
                    .map(of_slot)
                    .collect::<Result<SlotWeights, _>>()?,
            );
        }
        let mine = CpuRank { slots, staged: HashMap::new(), planners, ffn: super::Ffn::default() };
        Ok(Self {
            config,
            layers,
            placements,
            wire,
            mine,
            staged: BTreeSet::new(),
            coming: Vec::new(),
            options,
        })
    }

    /// Returns the weights that this rank holds in a slot.
    fn held_weights(&self, layer: usize, expert: u32) -> Option<Arc<ExpertWeights>> {
        let held = experts_of_rank(self.placements.get(layer)?, self.wire.rank());
        let at = held.iter().position(|&held| held == Some(expert))?;
        self.mine.slots.get(layer)?.get(at)?.clone()
    }

    /// Returns the first rank that holds an expert.
    fn home_rank(&self, layer: usize, expert: u32) -> Result<usize, ExecError> {
        let wrong = |what, given, expected| ExecError::Shape { what, given, expected };
        let placement =
            self.placements.get(layer).ok_or_else(|| wrong("layer", layer, self.placements.len()))?;
        if expert as usize >= placement.experts() {
            return Err(wrong("expert", expert as usize, placement.experts()));
        }
        Ok(placement.rank_of(placement.replicas(expert as usize)[0]))
    }
}

impl Backend for CpuPeer {
    fn name(&self) -> &'static str {
        self.wire.name()
    }

    fn run_layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        self.forward_layer(input)
    }

    fn is_local(&self, rank: usize) -> bool {
        rank == self.wire.rank()
    }

    fn gather_step_stats(&mut self, run: &mut StepRun) -> Result<(), ExecError> {
        step_stats::gather_step_stats(&self.wire, self.config.model.experts, run)
    }

    fn check_next_placement(&mut self, layer: usize, placement: &Placement) -> Result<(), ExecError> {
        self.wire.set_context(None, Some(layer));
        Ok(self.wire.assert_identical("the next placement", placement_digest(placement, &[]))?)
    }

    fn placement(&self, layer: usize) -> &Placement {
        &self.placements[layer]
    }

    fn expert_bytes(&self, layer: usize, expert: u32) -> Result<u64, ExecError> {
        self.home_rank(layer, expert)?;
        Ok(self.config.model.expert_parameters() * self.config.dtype.bytes())
    }

    fn start_copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        let (me, from) = (self.wire.rank(), self.home_rank(layer, expert)?);
        let bytes = self.expert_bytes(layer, expert)?;
        if rank >= self.wire.ranks() {
            return Err(ExecError::Shape { what: "rank", given: rank, expected: self.wire.ranks() });
        }
        let there = experts_of_rank(&self.placements[layer], rank).contains(&Some(expert));
        if there || !self.staged.insert((layer, rank, expert)) {
            return Ok(0);
        }
        if me == from {
            let missing = ExecError::NotStaged { layer, rank: me, expert };
            let weights = self.held_weights(layer, expert).ok_or(missing)?;
            self.wire.isend(rank, codec::encode_expert(&weights, self.config.model.hidden as usize))?;
        }
        if me == rank {
            self.wire.irecv(from)?;
            self.coming.push((layer, expert, from));
        }
        Ok(bytes)
    }

    /// Returns no copying times: the library copies while this rank waits for others, so they are unknown.
    fn wait_for_copies(&mut self) -> Result<Vec<Duration>, ExecError> {
        let came = self.wire.wait_all()?;
        let (hidden, dtype) = (self.config.model.hidden as usize, self.config.dtype);
        for (bytes, (layer, expert, from)) in came.iter().zip(std::mem::take(&mut self.coming)) {
            let weights = codec::decode_expert(bytes, hidden, dtype)
                .map_err(|reason| self.wire.malformed_message(Purpose::Moves, from, reason))?;
            self.mine.staged.insert((layer, expert), Arc::new(weights));
        }
        Ok(vec![Duration::ZERO; self.wire.ranks()])
    }

    fn activate_placement(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        let expected = self.placements.len();
        if layer >= expected {
            return Err(ExecError::Shape { what: "layer", given: layer, expected });
        }
        ExecError::expect_size("experts of a placement", placement.experts(), self.config.model.experts)?;
        ExecError::expect_size("slots of a placement", placement.slots().len(), self.config.cluster.slots())?;
        let rank = self.wire.rank();
        let of_slot = |&expert: &Option<u32>| {
            let Some(expert) = expert else { return Ok(None) };
            let ready =
                self.held_weights(layer, expert).or_else(|| self.mine.staged.get(&(layer, expert)).cloned());
            ready.map(Some).ok_or(ExecError::NotStaged { layer, rank, expert })
        };
        let slots =
            experts_of_rank(&placement, rank).iter().map(of_slot).collect::<Result<SlotWeights, _>>()?;
        self.mine.planners[layer] = self.config.create_planner(&placement)?;
        self.mine.slots[layer] = slots;
        self.mine.staged.retain(|&(of, _), _| of != layer);
        self.staged.retain(|&(of, ..)| of != layer);
        self.placements[layer] = placement;
        Ok(())
    }

    fn memory(&self) -> Vec<[u64; 2]> {
        let expert = self.config.model.expert_parameters() * self.config.dtype.bytes();
        let replicated: u64 = self.layers.iter().map(ReplicatedLayer::bytes).sum();
        let of = |rank: usize| {
            let slots = self.placements.iter().flat_map(|placement| experts_of_rank(placement, rank));
            let staged = self.staged.iter().filter(|staged| staged.1 == rank);
            [slots.flatten().count() as u64 * expert + replicated, staged.count() as u64 * expert]
        };
        (0..self.wire.ranks()).map(of).collect()
    }
}
