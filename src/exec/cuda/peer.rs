//! One rank of a group whose other ranks are in other processes, each with a GPU, over NCCL or MPI.
//!
//! In: this rank's tokens; those of others stay empty. Out: what the layer adds to them. It holds its own slots' weights and no
//! others, splits for itself from everybody's counts, and enqueues for its rank just what [`Cuda`] enqueues for each, in the same
//! order, so that results are the same bit for bit.

use super::far::Far;
use super::home::of_rank;
use super::layers::Layer;
use super::moves::Side;
use super::{Cuda, Options};
use crate::exec::backend::{Backend, ExecConfig, LayerInput, LayerRun};
use crate::exec::cpu::complete;
use crate::exec::error::ExecError;
use crate::exec::forward::StepRun;
use crate::exec::transport::{DeviceTransport, Part, Wire, digest};
use crate::exec::weights::WeightSource;
use crate::place::Placement;
use crate::split::Method;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// One rank.
#[derive(Debug)]
pub struct Peer {
    cuda: Cuda,
    far: Rc<Far>,
    /// Layer, rank and expert of what is in staging slots or on its way there, anywhere.
    staged: BTreeSet<(usize, usize, u32)>,
}

impl Peer {
    /// This rank's memory on the GPU that it joined with (that of `options` is not asked for): one placement per layer, the same on
    /// all ranks; weights of its own slots from `source`. `wire` and `gpus` are ends of the same group. With `prove` the ranks
    /// compare digests of every split.
    ///
    /// # Errors
    /// As [`Cuda::new`]; when a placement is not that of the other ranks.
    pub fn new(
        config: ExecConfig,
        options: Options,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        (wire, gpus): (Rc<Wire>, Rc<dyn DeviceTransport>),
        prove: bool,
    ) -> Result<Self, ExecError> {
        agree(&wire, &placements)?;
        let options = Options { device: gpus.device(), devices: 1, ..options };
        let far = Far::new(wire, gpus, prove);
        let cuda = Cuda::begin(config, options, source, placements, Some(Rc::clone(&far)))?;
        Ok(Self { cuda, far, staged: BTreeSet::new() })
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
        agree(&self.far.wire, &placements)?;
        let far = self.far.again();
        let mut cuda = self.cuda.with(source, placements, method)?;
        cuda.far = Some(Rc::clone(&far));
        Ok(Self { cuda, far, staged: BTreeSet::new() })
    }
}

fn agree(wire: &Wire, placements: &[Placement]) -> Result<(), ExecError> {
    for (layer, placement) in placements.iter().enumerate() {
        wire.doing(None, Some(layer));
        wire.agree("the placement", digest(placement, &[]))?;
    }
    Ok(())
}

impl Backend for Peer {
    fn name(&self) -> &'static str {
        self.cuda.name()
    }

    fn layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        self.cuda.layer(input).map_err(|error| self.far.in_full(error))
    }

    fn holds(&self, rank: usize) -> bool {
        rank == self.far.rank()
    }

    fn complete(&mut self, run: &mut StepRun) -> Result<(), ExecError> {
        complete(&self.far.wire, self.cuda.config.model.experts, run)
    }

    fn agree(&mut self, layer: usize, placement: &Placement) -> Result<(), ExecError> {
        self.far.wire.doing(None, Some(layer));
        Ok(self.far.wire.agree("the next placement", digest(placement, &[]))?)
    }

    fn placement(&self, layer: usize) -> &Placement {
        self.cuda.placement(layer)
    }

    fn bytes(&self, layer: usize, expert: u32) -> Result<u64, ExecError> {
        self.cuda.first_holder(layer, expert)?;
        Ok(self.cuda.shape.counted())
    }

    fn copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        let (me, ranks) = (self.far.rank(), self.far.wire.ranks());
        let (from, bytes) = (self.cuda.first_holder(layer, expert)?, self.bytes(layer, expert)?);
        if rank >= ranks {
            return Err(ExecError::Shape { what: "rank", given: rank, expected: ranks });
        }
        let there = of_rank(self.cuda.placement(layer), rank).contains(&Some(expert));
        if there || !self.staged.insert((layer, rank, expert)) {
            return Ok(0);
        }
        self.far.wire.doing(None, Some(layer));
        let far = Rc::clone(&self.far);
        if me == from {
            let held = self.cuda.held(me, layer, expert);
            let cell = held.ok_or(ExecError::NotStaged { layer, rank: me, expert })?;
            self.cuda.begin_to_send(cell, |gpu, at, bytes| {
                far.begin_move(gpu, Part::To(rank, (at, bytes as usize)))
            })?;
        }
        if me == rank {
            self.cuda.begin_to_receive([layer, rank], expert, |gpu, at, bytes| {
                far.begin_move(gpu, Part::From(from, (at, bytes as usize)))
            })?;
        }
        Ok(bytes)
    }

    /// How long copies to other ranks took is theirs to know.
    fn arrive(&mut self) -> Result<Vec<Duration>, ExecError> {
        self.cuda.sides.iter().try_for_each(|side| self.far.moved(&side.gpu))?;
        if !self.far.ordered() {
            self.cuda.sides.iter().try_for_each(Side::arrived)?;
        }
        self.cuda.arrive()
    }

    fn switch(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        self.cuda.switch(layer, placement)?;
        self.staged.retain(|&(of, ..)| of != layer);
        Ok(())
    }

    fn memory(&self) -> Vec<[u64; 2]> {
        let each = self.cuda.shape.counted();
        let replicated: u64 = self.cuda.layers().iter().map(Layer::bytes).sum();
        let of = |rank: usize| {
            let slots = self.cuda.placements.iter().flat_map(|placement| of_rank(placement, rank));
            let staged = self.staged.iter().filter(|staged| staged.1 == rank);
            [slots.flatten().count() as u64 * each + replicated, staged.count() as u64 * each]
        };
        (0..self.far.wire.ranks()).map(of).collect()
    }
}
