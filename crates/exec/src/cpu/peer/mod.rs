//! One rank of a group whose other ranks are elsewhere: the CPU backend's rank on a wire.
//!
//! In: this rank's tokens; those of others stay empty. Out: what the layer adds to them. It holds its own slots' weights and no
//! others, splits for itself from everybody's counts, and does with its tokens just what [`Cpu`](super::Cpu) does for a rank, in the
//! same order, so that results are the same bit for bit. While experts work on one chunk of slots the next one's tokens travel
//! ([`PeerOptions::chunks`]).

mod bytes;
mod flow;
mod layer;
mod relay;
mod told;
#[cfg(feature = "cuda")]
pub(in crate::exec) use told::complete;

use super::of_rank;
use super::rank::{Rank, Replicated, Slots};
use crate::exec::backend::{Backend, ExecConfig, LayerInput, LayerRun};
use crate::exec::error::ExecError;
use crate::exec::forward::StepRun;
use crate::exec::transport::{Purpose, Wire, digest};
use crate::exec::weights::{ExpertWeights, WeightSource};
use crate::place::Placement;
use crate::split::Method;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How a rank runs; what comes out does not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerOptions {
    /// Whether ranks compare digests of every split.
    pub prove: bool,
    /// Chunks of slots in which tokens travel, the same on all ranks; one per slot where there are more than slots.
    pub chunks: usize,
}

impl Default for PeerOptions {
    fn default() -> Self {
        Self { prove: false, chunks: 1 }
    }
}

/// One rank.
#[derive(Debug)]
pub struct Peer {
    config: ExecConfig,
    layers: Arc<Vec<Replicated>>,
    placements: Vec<Placement>,
    wire: Rc<Wire>,
    mine: Rank,
    /// Layer, rank and expert of what is in staging slots or on its way there, anywhere.
    staged: BTreeSet<(usize, usize, u32)>,
    /// Of these, what is on its way here, in the order in which it comes: layer, expert, sender.
    coming: Vec<(usize, u32, usize)>,
    options: PeerOptions,
}

impl Peer {
    /// This rank's memory: one placement per layer, the same on all ranks; weights of its own slots from `source`.
    ///
    /// # Errors
    /// When weights cannot be had or have other shapes than the model's, or a placement does not fit or is not that of the
    /// other ranks.
    pub fn new(
        config: ExecConfig,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        wire: Rc<Wire>,
        options: PeerOptions,
    ) -> Result<Self, ExecError> {
        let layers = Arc::new(Replicated::read(&config, source, placements.len())?);
        Self::build(config, layers, placements, wire, options, |layer, expert| {
            Ok(Arc::new(source.expert(layer, expert as usize)?))
        })
    }

    /// The same rank with other placements and another split; experts are shared with this one where it holds them already.
    ///
    /// # Errors
    /// As [`Peer::new`].
    pub fn with(
        &self,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        method: Option<Method>,
    ) -> Result<Self, ExecError> {
        let config = ExecConfig { method, ..self.config.clone() };
        let (layers, wire) = (Arc::clone(&self.layers), Rc::clone(&self.wire));
        Self::build(config, layers, placements, wire, self.options, |layer, expert| {
            match self.held(layer, expert) {
                Some(weights) => Ok(weights),
                None => Ok(Arc::new(source.expert(layer, expert as usize)?)),
            }
        })
    }

    fn build(
        config: ExecConfig,
        layers: Arc<Vec<Replicated>>,
        placements: Vec<Placement>,
        wire: Rc<Wire>,
        options: PeerOptions,
        weights: impl Fn(usize, u32) -> Result<Arc<ExpertWeights>, ExecError>,
    ) -> Result<Self, ExecError> {
        let (mut slots, mut planners) = (Vec::new(), Vec::new());
        for (layer, placement) in placements.iter().enumerate() {
            config.expect_fit(placement)?;
            wire.doing(None, Some(layer));
            wire.agree("the placement", digest(placement, &[]))?;
            planners.push(config.planner(placement)?);
            let of_slot = |&expert: &Option<u32>| expert.map(|expert| weights(layer, expert)).transpose();
            slots.push(of_rank(placement, wire.rank()).iter().map(of_slot).collect::<Result<Slots, _>>()?);
        }
        let mine = Rank { slots, staged: HashMap::new(), planners, ffn: super::Ffn::default() };
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

    /// Weights that this rank holds in a slot.
    fn held(&self, layer: usize, expert: u32) -> Option<Arc<ExpertWeights>> {
        let held = of_rank(self.placements.get(layer)?, self.wire.rank());
        let at = held.iter().position(|&held| held == Some(expert))?;
        self.mine.slots.get(layer)?.get(at)?.clone()
    }

    /// The first rank that holds an expert.
    fn original(&self, layer: usize, expert: u32) -> Result<usize, ExecError> {
        let wrong = |what, given, expected| ExecError::Shape { what, given, expected };
        let placement =
            self.placements.get(layer).ok_or_else(|| wrong("layer", layer, self.placements.len()))?;
        if expert as usize >= placement.experts() {
            return Err(wrong("expert", expert as usize, placement.experts()));
        }
        Ok(placement.rank_of(placement.copies(expert as usize)[0]))
    }
}

impl Backend for Peer {
    fn name(&self) -> &'static str {
        self.wire.name()
    }

    fn layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        self.run(input)
    }

    fn holds(&self, rank: usize) -> bool {
        rank == self.wire.rank()
    }

    fn complete(&mut self, run: &mut StepRun) -> Result<(), ExecError> {
        told::complete(&self.wire, self.config.model.experts, run)
    }

    fn agree(&mut self, layer: usize, placement: &Placement) -> Result<(), ExecError> {
        self.wire.doing(None, Some(layer));
        Ok(self.wire.agree("the next placement", digest(placement, &[]))?)
    }

    fn placement(&self, layer: usize) -> &Placement {
        &self.placements[layer]
    }

    fn bytes(&self, layer: usize, expert: u32) -> Result<u64, ExecError> {
        self.original(layer, expert)?;
        Ok(self.config.model.expert_parameters() * self.config.dtype.bytes())
    }

    fn copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        let (me, from) = (self.wire.rank(), self.original(layer, expert)?);
        let bytes = self.bytes(layer, expert)?;
        if rank >= self.wire.ranks() {
            return Err(ExecError::Shape { what: "rank", given: rank, expected: self.wire.ranks() });
        }
        let there = of_rank(&self.placements[layer], rank).contains(&Some(expert));
        if there || !self.staged.insert((layer, rank, expert)) {
            return Ok(0);
        }
        if me == from {
            let missing = ExecError::NotStaged { layer, rank: me, expert };
            let weights = self.held(layer, expert).ok_or(missing)?;
            self.wire.send(rank, bytes::of_expert(&weights, self.config.model.hidden as usize))?;
        }
        if me == rank {
            self.wire.receive(from)?;
            self.coming.push((layer, expert, from));
        }
        Ok(bytes)
    }

    /// How long copies took is not known: the library makes them, while this rank waits for others.
    fn arrive(&mut self) -> Result<Vec<Duration>, ExecError> {
        let came = self.wire.finish()?;
        let (hidden, dtype) = (self.config.model.hidden as usize, self.config.dtype);
        for (bytes, (layer, expert, from)) in came.iter().zip(std::mem::take(&mut self.coming)) {
            let weights = bytes::expert(bytes, hidden, dtype)
                .map_err(|reason| self.wire.malformed(Purpose::Moves, from, reason))?;
            self.mine.staged.insert((layer, expert), Arc::new(weights));
        }
        Ok(vec![Duration::ZERO; self.wire.ranks()])
    }

    fn switch(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        let expected = self.placements.len();
        if layer >= expected {
            return Err(ExecError::Shape { what: "layer", given: layer, expected });
        }
        ExecError::expect("experts of a placement", placement.experts(), self.config.model.experts)?;
        ExecError::expect("slots of a placement", placement.slots().len(), self.config.cluster.slots())?;
        let rank = self.wire.rank();
        let of_slot = |&expert: &Option<u32>| {
            let Some(expert) = expert else { return Ok(None) };
            let ready = self.held(layer, expert).or_else(|| self.mine.staged.get(&(layer, expert)).cloned());
            ready.map(Some).ok_or(ExecError::NotStaged { layer, rank, expert })
        };
        let slots = of_rank(&placement, rank).iter().map(of_slot).collect::<Result<Slots, _>>()?;
        self.mine.planners[layer] = self.config.planner(&placement)?;
        self.mine.slots[layer] = slots;
        self.mine.staged.retain(|&(of, _), _| of != layer);
        self.staged.retain(|&(of, ..)| of != layer);
        self.placements[layer] = placement;
        Ok(())
    }

    fn memory(&self) -> Vec<[u64; 2]> {
        let expert = self.config.model.expert_parameters() * self.config.dtype.bytes();
        let replicated: u64 = self.layers.iter().map(Replicated::bytes).sum();
        let of = |rank: usize| {
            let slots = self.placements.iter().flat_map(|placement| of_rank(placement, rank));
            let staged = self.staged.iter().filter(|staged| staged.1 == rank);
            [slots.flatten().count() as u64 * expert + replicated, staged.count() as u64 * expert]
        };
        (0..self.wire.ranks()).map(of).collect()
    }
}
