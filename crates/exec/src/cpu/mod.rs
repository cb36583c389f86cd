//! The CPU backend: ranks as isolated memories, one after the other on one thread, each phase of each rank timed
//! alone, in processor time of that thread.
//!
//! In: the tokens of every rank. Out: what the layer adds to them. Between ranks only three things pass, all explicit: the
//! counts (all-gathered), a parcel per (source, destination) with each token once, and its answer with one weighted row per
//! token. Every rank computes the split for itself. With [`Aggregate::Node`](super::Aggregate::Node) nothing else passes here,
//! but answers are summed as gateways sum them, so that ranks in processes of their own find the same digits.

mod few;
mod ffn;
mod matmul;
mod nodes;
mod parcel;
mod peer;
mod rank;
mod side;
mod work;

pub use ffn::Ffn;
pub use matmul::times_transposed;
#[cfg(feature = "cuda")]
pub(super) use peer::complete;
pub use peer::{Peer, PeerOptions};

use super::backend::{Backend, ExecConfig, LayerInput, LayerRun, Phase, Routed, Times};
use super::clock::timed;
use super::error::ExecError;

use super::weights::{ExpertWeights, WeightSource};
use crate::place::Placement;
use crate::planner::Planner;
use crate::split::Method;
use nodes::Groups;
use parcel::{Chunks, Pack, Parcel};
#[cfg(feature = "cuda")]
pub(super) use rank::check_slots;
use rank::{Own, Rank, Replicated, Slots};
use side::Side;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use work::Work;

/// The CPU backend.
#[derive(Debug)]
pub struct Cpu {
    config: ExecConfig,
    layers: Arc<Vec<Replicated>>,
    placements: Vec<Placement>,
    ranks: Vec<Rank>,
    side: Side,
}

impl Cpu {
    /// Builds the ranks' memories: one placement per layer, weights from `source`.
    ///
    /// # Errors
    /// When weights cannot be had or have other shapes than the model's, or a placement does not fit.
    pub fn new(
        config: ExecConfig,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
    ) -> Result<Self, ExecError> {
        let layers = Arc::new(Replicated::read(&config, source, placements.len())?);
        Self::build(config, layers, placements, |_, layer, expert| {
            Ok(Arc::new(source.expert(layer, expert as usize)?))
        })
    }

    /// The same model on the same group with other placements and another split; a rank's experts are shared with this one
    /// where it holds them already.
    ///
    /// # Errors
    /// As [`Cpu::new`].
    pub fn with(
        &self,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        method: Option<Method>,
    ) -> Result<Self, ExecError> {
        let config = ExecConfig { method, ..self.config.clone() };
        Self::build(config, Arc::clone(&self.layers), placements, |rank, layer, expert| {
            match self.held(rank, layer, expert) {
                Some(weights) => Ok(weights),
                None => Ok(Arc::new(source.expert(layer, expert as usize)?)),
            }
        })
    }

    fn build(
        config: ExecConfig,
        layers: Arc<Vec<Replicated>>,
        placements: Vec<Placement>,
        weights: impl Fn(usize, usize, u32) -> Result<Arc<ExpertWeights>, ExecError>,
    ) -> Result<Self, ExecError> {
        let cluster = config.cluster;
        let mut ranks = Vec::with_capacity(cluster.ranks());
        for rank in 0..cluster.ranks() {
            let (mut slots, mut planners) = (Vec::new(), Vec::new());
            for (layer, placement) in placements.iter().enumerate() {
                config.expect_fit(placement)?;
                planners.push(config.planner(placement)?);
                let of_slot = |&expert: &Option<u32>| expert.map(|e| weights(rank, layer, e)).transpose();
                slots.push(of_rank(placement, rank).iter().map(of_slot).collect::<Result<Slots, _>>()?);
            }
            ranks.push(Rank { slots, staged: HashMap::new(), planners, ffn: Ffn::default() });
        }
        Ok(Self { config, layers, placements, ranks, side: Side::new() })
    }

    /// Weights that a rank holds in a slot.
    fn held(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<ExpertWeights>> {
        let at = of_rank(self.placements.get(layer)?, rank).iter().position(|&held| held == Some(expert))?;
        self.ranks.get(rank)?.slots.get(layer)?.get(at)?.clone()
    }

    /// Weights that a rank would use after a switch: held or staged.
    fn ready(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<ExpertWeights>> {
        self.held(rank, layer, expert).or_else(|| self.ranks[rank].staged.get(&(layer, expert)).cloned())
    }

    /// An expert on the first rank that holds it.
    fn original(&self, layer: usize, expert: u32) -> Result<&Arc<ExpertWeights>, ExecError> {
        let wrong = |what, given, expected| ExecError::Shape { what, given, expected };
        let placement =
            self.placements.get(layer).ok_or_else(|| wrong("layer", layer, self.placements.len()))?;
        if expert as usize >= placement.experts() {
            return Err(wrong("expert", expert as usize, placement.experts()));
        }
        let slot = placement.copies(expert as usize)[0];
        let (rank, at) = (placement.rank_of(slot), slot as usize % placement.slots_per_rank());
        self.ranks[rank].slots[layer][at].as_ref().ok_or(ExecError::NotStaged { layer, rank, expert })
    }

    /// Every rank routes and counts its own tokens.
    fn route(&self, input: &LayerInput<'_>, times: &mut [Times]) -> Result<(Vec<Own>, Vec<u64>), ExecError> {
        let model = &self.config.model;
        let (mut owns, mut counts) = (Vec::new(), Vec::new());
        for (rank, times) in times.iter_mut().enumerate() {
            let args = self.config.route_args(input.step, input.layer, rank);
            let layer = &self.layers[input.layer];
            let own = timed(&mut times[Phase::Route as usize], || {
                rank::route(layer, rank, &input.tokens[rank], input.routed, &args)
            })?;
            counts.extend(timed(&mut times[Phase::Count as usize], || {
                rank::count(&own.routed.routing.ids, model.experts)
            }));
            owns.push(own);
        }
        Ok((owns, counts))
    }

    /// Every rank splits the gathered counts for itself and says which slots serve its tokens.
    fn split(
        &mut self,
        input: &LayerInput<'_>,
        owns: &[Own],
        counts: &[u64],
        times: &mut [Times],
    ) -> Result<Vec<Vec<i64>>, ExecError> {
        let mut all = Vec::with_capacity(owns.len());
        for (rank, (own, times)) in owns.iter().zip(times).enumerate() {
            let ids = &own.routed.routing.ids;
            let placement = &self.placements[input.layer];
            if let Routed::Replay { slots: Some(slots), .. } = input.routed {
                rank::check_slots(rank, ids, &slots[rank], placement)?;
                all.push(slots[rank].clone());
                continue;
            }
            let planner = self.ranks[rank].planners[input.layer].as_mut();
            all.push(timed(&mut times[Phase::Split as usize], || match planner {
                None => Ok(rank::first_copies(ids, placement)),
                Some(planner) => {
                    let gathered = counts.to_vec();
                    planner.split(&gathered)?;
                    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
                    planner.redirect(&ids, rank)
                }
            })?);
        }
        Ok(all)
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        let ExecConfig { model, cluster, dtype, aggregate, .. } = self.config;
        let (hidden, ranks, per_rank) = (model.hidden as usize, cluster.ranks(), cluster.slots_per_rank());
        let (groups, chunks) = (Groups::of(&cluster, aggregate), Chunks::new(per_rank, 1));
        input.check(self.layers.len(), ranks, hidden)?;
        let mut times: Vec<Times> = vec![Times::default(); ranks];
        let (owns, counts) = self.route(input, &mut times)?;
        let slots = self.split(input, &owns, &counts, &mut times)?;

        let mut run = LayerRun::default();
        let (mut inboxes, mut sent): (Vec<Vec<Parcel>>, Vec<_>) = (vec![Vec::new(); ranks], Vec::new());
        for (source, own) in owns.iter().enumerate() {
            let routing = &own.routed.routing;
            let (rows, top_k, slots) = (own.rows(), routing.top_k, &slots[source][..]);
            let pack = Pack { rows, hidden, slots, weights: &routing.weights, top_k, dtype, chunks };
            let (parcels, tokens) = timed(&mut times[source][Phase::Dispatch as usize], || {
                pack.parcels(ranks, |slot| (slot / per_rank, (slot % per_rank) as u32))
            });
            run.copies.add(slots, top_k, source, &cluster);
            inboxes.iter_mut().zip(parcels).for_each(|(inbox, parcel)| inbox.push(parcel));
            sent.push(tokens);
        }

        let layer = &self.layers[input.layer];
        let mut answers: Vec<Vec<_>> = vec![Vec::new(); ranks];
        let mut shared = vec![Vec::new(); ranks];
        for (at, (rank, inbox)) in self.ranks.iter_mut().zip(&inboxes).enumerate() {
            let mut work = timed(&mut times[at][Phase::Dispatch as usize], || {
                let mut work = Work::plan(inbox, chunks, hidden);
                work.fill(inbox, 0);
                work
            });
            run.rank_loads.push(work.rows());
            timed(&mut times[at][Phase::Ffn as usize], || {
                if let Some(expert) = &layer.shared {
                    let tokens = &owns[at].tokens;
                    shared[at].resize(tokens.len(), 0.0);
                    rank.ffn.run(expert, model.activation, tokens, hidden, &mut shared[at]);
                }
                let slots = &rank.slots[input.layer];
                (0..per_rank).for_each(|slot| work.run(slots, slot, &mut rank.ffn, model.activation));
            });
            let of_rank = timed(&mut times[at][Phase::Combine as usize], || work.answers(inbox, 0, dtype));
            answers.iter_mut().zip(of_rank).for_each(|(answers, answer)| answers.push(answer));
        }
        for ((at, own), answers) in owns.iter().enumerate().zip(answers) {
            run.outputs.push(timed(&mut times[at][Phase::Combine as usize], || {
                let (sent, answers) = nodes::summed(groups, at, &sent[at], answers, hidden, dtype);
                rank::combine(own, &sent, &answers, &shared[at], hidden)
            }));
        }
        run.counts = (0..model.experts).map(|e| counts.iter().skip(e).step_by(model.experts).sum()).collect();
        run.routed = owns.into_iter().map(|own| own.routed).collect();
        run.times = times;
        Ok(run)
    }

    fn placement(&self, layer: usize) -> &Placement {
        &self.placements[layer]
    }

    fn bytes(&self, layer: usize, expert: u32) -> Result<u64, ExecError> {
        Ok(self.original(layer, expert)?.bytes())
    }

    fn copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        let weights = Arc::clone(self.original(layer, expert)?);
        if rank >= self.ranks.len() {
            return Err(ExecError::Shape { what: "rank", given: rank, expected: self.ranks.len() });
        }
        let on_its_way = self.side.begun.iter().any(|&(l, r, e, _)| (l, r, e) == (layer, rank, expert));
        if on_its_way || self.ready(rank, layer, expert).is_some() {
            return Ok(0);
        }
        let bytes = weights.bytes();
        self.side.begin(layer, rank, expert, weights)?;
        Ok(bytes)
    }

    fn arrive(&mut self) -> Result<Vec<Duration>, ExecError> {
        let mut took = vec![Duration::ZERO; self.ranks.len()];
        for done in self.side.finish()? {
            took[done.rank] += done.took;
            self.ranks[done.rank].staged.insert((done.layer, done.expert), done.weights);
        }
        Ok(took)
    }

    fn switch(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        let expected = self.placements.len();
        if layer >= expected {
            return Err(ExecError::Shape { what: "layer", given: layer, expected });
        }
        ExecError::expect("experts of a placement", placement.experts(), self.config.model.experts)?;
        ExecError::expect("slots of a placement", placement.slots().len(), self.config.cluster.slots())?;
        let mut next: Vec<(Slots, Option<Planner>)> = Vec::with_capacity(self.ranks.len());
        for rank in 0..self.ranks.len() {
            let of_slot = |&expert: &Option<u32>| {
                let Some(expert) = expert else { return Ok(None) };
                let missing = ExecError::NotStaged { layer, rank, expert };
                self.ready(rank, layer, expert).map(Some).ok_or(missing)
            };
            let slots = of_rank(&placement, rank).iter().map(of_slot).collect::<Result<Slots, _>>()?;
            next.push((slots, self.config.planner(&placement)?));
        }
        for (rank, (slots, planner)) in self.ranks.iter_mut().zip(next) {
            rank.slots[layer] = slots;
            rank.planners[layer] = planner;
            rank.staged.retain(|&(of, _), _| of != layer);
        }
        self.placements[layer] = placement;
        Ok(())
    }

    fn memory(&self) -> Vec<[u64; 2]> {
        let replicated: u64 = self.layers.iter().map(Replicated::bytes).sum();
        let of = |(at, rank): (usize, &Rank)| {
            let routed: u64 = rank.slots.iter().flatten().flatten().map(|weights| weights.bytes()).sum();
            let staged: u64 = rank.staged.values().map(|weights| weights.bytes()).sum();
            let coming = self.side.begun.iter().filter(|begun| begun.1 == at).map(|begun| begun.3);
            [routed + replicated, staged + coming.sum::<u64>()]
        };
        self.ranks.iter().enumerate().map(of).collect()
    }
}

/// The experts in one rank's slots, `[S]`.
fn of_rank(placement: &Placement, rank: usize) -> &[Option<u32>] {
    let per_rank = placement.slots_per_rank();
    placement.slots().get(rank * per_rank..(rank + 1) * per_rank).unwrap_or_default()
}
