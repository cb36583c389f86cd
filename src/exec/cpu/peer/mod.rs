//! One rank of a group whose other ranks are elsewhere: the CPU backend's rank on a wire.
//!
//! In: this rank's tokens; those of others stay empty. Out: what the layer adds to them. It holds its own slots' weights and no
//! others, splits for itself from everybody's counts, and does with its tokens just what [`Cpu`](super::Cpu) does for a rank, in the
//! same order, so that results are the same bit for bit.

mod bytes;
mod told;
#[cfg(feature = "cuda")]
pub(in crate::exec) use told::complete;

use super::of_rank;
use super::parcel::{Parcel, pack};
use super::rank::{self, Own, Rank, Replicated, Slots};
use super::work::Work;
use crate::exec::backend::{Backend, ExecConfig, LayerInput, LayerRun, Phase, Routed, Times};
use crate::exec::clock::timed;
use crate::exec::error::ExecError;
use crate::exec::forward::StepRun;
use crate::exec::transport::{Purpose, Wire, digest};
use crate::exec::weights::{ExpertWeights, Matrix, WeightSource};
use crate::place::Placement;
use crate::split::Method;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

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
    prove: bool,
}

impl Peer {
    /// This rank's memory: one placement per layer, the same on all ranks; weights of its own slots from `source`. With `prove`
    /// the ranks compare digests of every split.
    ///
    /// # Errors
    /// When weights cannot be had or have other shapes than the model's, or a placement does not fit or is not that of the
    /// other ranks.
    pub fn new(
        config: ExecConfig,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        wire: Rc<Wire>,
        prove: bool,
    ) -> Result<Self, ExecError> {
        let layers = Arc::new(Replicated::read(&config, source, placements.len())?);
        Self::build(config, layers, placements, wire, prove, |layer, expert| {
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
        Self::build(config, layers, placements, wire, self.prove, |layer, expert| {
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
        prove: bool,
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
            prove,
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

    /// Splits everybody's counts and says which slots serve this rank's tokens.
    fn split(
        &mut self,
        input: &LayerInput<'_>,
        own: &Own,
        counts: &[u64],
        times: &mut Times,
    ) -> Result<Vec<i64>, ExecError> {
        let (me, ids) = (self.wire.rank(), &own.routed.routing.ids);
        let placement = &self.placements[input.layer];
        if let Routed::Replay { slots: Some(slots), .. } = input.routed {
            rank::check_slots(me, ids, &slots[me], placement)?;
            return Ok(slots[me].clone());
        }
        let time = &mut times[Phase::Split as usize];
        let Some(planner) = self.mine.planners[input.layer].as_mut() else {
            return Ok(timed(time, || rank::first_copies(ids, placement)));
        };
        let all = self.wire.all_numbers(Purpose::Counts, counts)?;
        let quotas = timed(time, || planner.split(&all).map(|split| &split.quotas))?;
        if self.prove {
            self.wire.agree("the split", digest(placement, quotas))?;
        }
        timed(time, || {
            let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            Ok(planner.redirect(&ids, me)?)
        })
    }

    /// Sends the parcels and receives those for this rank, by source.
    fn dispatch(&self, mut parcels: Vec<Parcel>, times: &mut Times) -> Result<Vec<Parcel>, ExecError> {
        let ExecConfig { model, cluster, dtype, .. } = self.config;
        let (me, hidden) = (self.wire.rank(), model.hidden as usize);
        let time = &mut times[Phase::Dispatch as usize];
        // What stays is not packed.
        let stays = Parcel { rows: Matrix::with_capacity(dtype, 0), visits: Vec::new() };
        let stays = std::mem::replace(&mut parcels[me], stays);
        self.wire.stays(Purpose::Dispatch, bytes::length(&stays));
        let bytes = timed(time, || parcels.iter().map(|parcel| bytes::of_parcel(parcel, hidden)).collect());
        let came = self.wire.exchange(Purpose::Dispatch, bytes)?;
        let read = |(from, bytes): (usize, &Vec<u8>)| {
            bytes::parcel(bytes, hidden, cluster.slots_per_rank(), dtype)
                .map_err(|reason| self.wire.malformed(Purpose::Dispatch, from, reason).into())
        };
        let mut inbox: Vec<Parcel> =
            timed(time, || came.iter().enumerate().map(read).collect::<Result<_, ExecError>>())?;
        inbox[me] = stays;
        Ok(inbox)
    }

    /// Sends the answers and receives those to this rank's tokens, by the rank that they were sent to.
    fn answers(
        &self,
        mut answers: Vec<Matrix>,
        sent: &[Vec<u32>],
        times: &mut Times,
    ) -> Result<Vec<Matrix>, ExecError> {
        let ExecConfig { model, dtype, .. } = self.config;
        let (me, hidden) = (self.wire.rank(), model.hidden as usize);
        let time = &mut times[Phase::Combine as usize];
        let stays = std::mem::replace(&mut answers[me], Matrix::with_capacity(dtype, 0));
        self.wire.stays(Purpose::Combine, stays.bytes());
        let bytes = timed(time, || answers.iter().map(bytes::of_answer).collect());
        let came = self.wire.exchange(Purpose::Combine, bytes)?;
        let read = |(from, (bytes, sent)): (usize, (&Vec<u8>, &Vec<u32>))| {
            let numbers = if from == me { 0 } else { sent.len() * hidden };
            bytes::answer(bytes, numbers, dtype)
                .map_err(|reason| self.wire.malformed(Purpose::Combine, from, reason).into())
        };
        let mut came: Vec<Matrix> =
            timed(time, || came.iter().zip(sent).enumerate().map(read).collect::<Result<_, ExecError>>())?;
        came[me] = stays;
        Ok(came)
    }
}

impl Backend for Peer {
    fn name(&self) -> &'static str {
        self.wire.name()
    }

    fn layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        let ExecConfig { model, cluster, dtype, .. } = self.config;
        let (me, ranks, hidden) = (self.wire.rank(), cluster.ranks(), model.hidden as usize);
        input.check(self.layers.len(), ranks, hidden)?;
        self.wire.doing(Some(input.step), Some(input.layer));
        let mut times = Times::default();
        let args = self.config.route_args(input.step, input.layer, me);
        let own = timed(&mut times[Phase::Route as usize], || {
            rank::route(&self.layers[input.layer], me, &input.tokens[me], input.routed, &args)
        })?;
        let counts =
            timed(&mut times[Phase::Count as usize], || rank::count(&own.routed.routing.ids, model.experts));
        let slots = self.split(input, &own, &counts, &mut times)?;

        let (routing, placement) = (&own.routed.routing, &self.placements[input.layer]);
        let mut run = LayerRun { counts, ..LayerRun::default() };
        run.copies.add(&slots, routing.top_k, me, &cluster);
        let (parcels, sent) = timed(&mut times[Phase::Dispatch as usize], || {
            pack(own.rows(), hidden, &slots, &routing.weights, routing.top_k, placement, dtype)
        });
        let inbox = self.dispatch(parcels, &mut times)?;
        let work = timed(&mut times[Phase::Dispatch as usize], || {
            Work::unpack(&inbox, cluster.slots_per_rank(), hidden)
        });
        let (layer, Rank { slots, ffn, .. }) = (&self.layers[input.layer], &mut self.mine);
        let (shared, results) = timed(&mut times[Phase::Ffn as usize], || {
            let mut shared = Vec::new();
            if let Some(expert) = &layer.shared {
                shared.resize(own.tokens.len(), 0.0);
                ffn.run(expert, model.activation, &own.tokens, hidden, &mut shared);
            }
            (shared, work.run(&slots[input.layer], ffn, model.activation, hidden))
        });
        let answers =
            timed(&mut times[Phase::Combine as usize], || work.answers(&inbox, &results, hidden, dtype));
        let answers = self.answers(answers, &sent, &mut times)?;

        run.outputs = vec![Vec::new(); ranks];
        run.outputs[me] = timed(&mut times[Phase::Combine as usize], || {
            rank::combine(&own, &sent, &answers, &shared, hidden)
        });
        run.rank_loads = vec![0; ranks];
        run.rank_loads[me] = work.rows();
        run.routed.resize_with(ranks, Default::default);
        run.routed[me] = own.routed;
        run.times = vec![Times::default(); ranks];
        run.times[me] = times;
        Ok(run)
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
