//! The CPU backend: ranks as isolated memories, one after the other on one thread. Each phase of each rank is
//! timed separately, in processor time of that thread.
//!
//! Input: the tokens of every rank. Output: the values that the layer adds to them. Only three things pass
//! between ranks:
//!
//! - the counts, by all-gather
//! - a send buffer per (source, destination) with each token once
//! - its answer with one weighted row per token
//!
//! Every rank computes the split for itself. [`Aggregate::Node`](super::Aggregate::Node) passes nothing else
//! here, but answers are summed in the order of gateways, so that ranks in separate processes compute
//! identical digits.

mod copy_thread;
mod ffn;
mod grouped_rows;
mod matmul;
mod node_groups;
mod peer;
mod rank;
mod send_buffer;
mod skinny_gemm;

pub use ffn::Ffn;
pub use matmul::times_transposed;
#[cfg(feature = "cuda")]
pub(super) use peer::gather_step_stats;
pub use peer::{CpuPeer, PeerOptions};

use super::backend::{Backend, ExecConfig, LayerInput, LayerRun, LayerStage, RoutingSource, StageTimes};
use super::clock::time_work;
use super::error::ExecError;

use super::weights::{ExpertWeights, WeightSource};
use copy_thread::CopyThread;
use evenkeel::place::Placement;
use evenkeel::planner::Planner;
use evenkeel::split::SplitMethod;
use grouped_rows::GroupedRows;
use node_groups::NodeGroups;
#[cfg(feature = "cuda")]
pub(super) use rank::check_slots;
use rank::{CpuRank, ReplicatedLayer, SlotWeights, SourceTokens};
use send_buffer::{SendBuffer, SlotChunks, TokenPacker};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The CPU backend.
#[derive(Debug)]
pub struct Cpu {
    config: ExecConfig,
    layers: Arc<Vec<ReplicatedLayer>>,
    placements: Vec<Placement>,
    ranks: Vec<CpuRank>,
    side: CopyThread,
}

impl Cpu {
    /// Builds the memories of the ranks: one placement per layer, weights from `source`.
    ///
    /// # Errors
    /// Fails if weights cannot be read, if they have other shapes than the model's, or if a placement does
    /// not fit.
    pub fn new(
        config: ExecConfig,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
    ) -> Result<Self, ExecError> {
        let layers = Arc::new(ReplicatedLayer::read_layers(&config, source, placements.len())?);
        Self::build_ranks(config, layers, placements, |_, layer, expert| {
            Ok(Arc::new(source.expert_weights(layer, expert as usize)?))
        })
    }

    /// Builds a backend for the same model and group with other placements and another split. A rank shares
    /// the experts that it already holds in this backend.
    ///
    /// # Errors
    /// Fails as [`Cpu::new`] does.
    pub fn with_placements(
        &self,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        method: Option<SplitMethod>,
    ) -> Result<Self, ExecError> {
        let config = ExecConfig { method, ..self.config.clone() };
        Self::build_ranks(config, Arc::clone(&self.layers), placements, |rank, layer, expert| {
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
        weights: impl Fn(usize, usize, u32) -> Result<Arc<ExpertWeights>, ExecError>,
    ) -> Result<Self, ExecError> {
        let cluster = config.cluster;
        let mut ranks = Vec::with_capacity(cluster.ranks());
        for rank in 0..cluster.ranks() {
            let (mut slots, mut planners) = (Vec::new(), Vec::new());
            for (layer, placement) in placements.iter().enumerate() {
                config.expect_fit(placement)?;
                planners.push(config.create_planner(placement)?);
                let of_slot = |&expert: &Option<u32>| expert.map(|e| weights(rank, layer, e)).transpose();
                slots.push(
                    experts_of_rank(placement, rank)
                        .iter()
                        .map(of_slot)
                        .collect::<Result<SlotWeights, _>>()?,
                );
            }
            ranks.push(CpuRank { slots, staged: HashMap::new(), planners, ffn: Ffn::default() });
        }
        Ok(Self { config, layers, placements, ranks, side: CopyThread::new() })
    }

    /// Returns the weights that a rank holds in a slot.
    fn held_weights(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<ExpertWeights>> {
        let at = experts_of_rank(self.placements.get(layer)?, rank)
            .iter()
            .position(|&held| held == Some(expert))?;
        self.ranks.get(rank)?.slots.get(layer)?.get(at)?.clone()
    }

    /// Returns the weights that a rank would use after a switch, held or staged.
    fn available_weights(&self, rank: usize, layer: usize, expert: u32) -> Option<Arc<ExpertWeights>> {
        self.held_weights(rank, layer, expert)
            .or_else(|| self.ranks[rank].staged.get(&(layer, expert)).cloned())
    }

    /// Returns an expert from the first rank that holds it.
    fn home_weights(&self, layer: usize, expert: u32) -> Result<&Arc<ExpertWeights>, ExecError> {
        let wrong = |what, given, expected| ExecError::Shape { what, given, expected };
        let placement =
            self.placements.get(layer).ok_or_else(|| wrong("layer", layer, self.placements.len()))?;
        if expert as usize >= placement.experts() {
            return Err(wrong("expert", expert as usize, placement.experts()));
        }
        let slot = placement.replicas(expert as usize)[0];
        let (rank, at) = (placement.rank_of(slot), slot as usize % placement.slots_per_rank());
        self.ranks[rank].slots[layer][at].as_ref().ok_or(ExecError::NotStaged { layer, rank, expert })
    }

    /// Routes and counts the tokens of every rank.
    fn route_tokens(
        &self,
        input: &LayerInput<'_>,
        times: &mut [StageTimes],
    ) -> Result<(Vec<SourceTokens>, Vec<u64>), ExecError> {
        let model = &self.config.model;
        let (mut owns, mut counts) = (Vec::new(), Vec::new());
        for (rank, times) in times.iter_mut().enumerate() {
            let args = self.config.route_args(input.step, input.layer, rank);
            let layer = &self.layers[input.layer];
            let own = time_work(&mut times[LayerStage::Route as usize], || {
                rank::route_source(layer, rank, &input.tokens[rank], input.routed, &args)
            })?;
            counts.extend(time_work(&mut times[LayerStage::Count as usize], || {
                rank::count_tokens(&own.routed.routing.ids, model.experts)
            }));
            owns.push(own);
        }
        Ok((owns, counts))
    }

    /// Splits the gathered counts on every rank separately, and selects the slots that serve its tokens.
    fn split_counts(
        &mut self,
        input: &LayerInput<'_>,
        owns: &[SourceTokens],
        counts: &[u64],
        times: &mut [StageTimes],
    ) -> Result<Vec<Vec<i64>>, ExecError> {
        let mut all = Vec::with_capacity(owns.len());
        for (rank, (own, times)) in owns.iter().zip(times).enumerate() {
            let ids = &own.routed.routing.ids;
            let placement = &self.placements[input.layer];
            if let RoutingSource::Replay { slots: Some(slots), .. } = input.routed {
                rank::check_slots(rank, ids, &slots[rank], placement)?;
                all.push(slots[rank].clone());
                continue;
            }
            let planner = self.ranks[rank].planners[input.layer].as_mut();
            all.push(time_work(&mut times[LayerStage::Split as usize], || match planner {
                None => Ok(rank::first_replicas(ids, placement)),
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

    fn run_layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        let ExecConfig { model, cluster, dtype, aggregate, .. } = self.config;
        let (hidden, ranks, per_rank) = (model.hidden as usize, cluster.ranks(), cluster.slots_per_rank());
        let (groups, chunks) = (NodeGroups::from_cluster(&cluster, aggregate), SlotChunks::new(per_rank, 1));
        input.check_shapes(self.layers.len(), ranks, hidden)?;
        let mut times: Vec<StageTimes> = vec![StageTimes::default(); ranks];
        let (owns, counts) = self.route_tokens(input, &mut times)?;
        let slots = self.split_counts(input, &owns, &counts, &mut times)?;

        let mut run = LayerRun::default();
        let (mut inboxes, mut sent): (Vec<Vec<SendBuffer>>, Vec<_>) = (vec![Vec::new(); ranks], Vec::new());
        for (source, own) in owns.iter().enumerate() {
            let routing = &own.routed.routing;
            let (rows, top_k, slots) = (own.expert_input(), routing.top_k, &slots[source][..]);
            let pack = TokenPacker { rows, hidden, slots, weights: &routing.weights, top_k, dtype, chunks };
            let (parcels, tokens) = time_work(&mut times[source][LayerStage::Dispatch as usize], || {
                pack.pack_parcels(ranks, |slot| (slot / per_rank, (slot % per_rank) as u32))
            });
            run.copies.add_source(slots, top_k, source, &cluster);
            inboxes.iter_mut().zip(parcels).for_each(|(inbox, parcel)| inbox.push(parcel));
            sent.push(tokens);
        }

        let layer = &self.layers[input.layer];
        let mut answers: Vec<Vec<_>> = vec![Vec::new(); ranks];
        let mut shared = vec![Vec::new(); ranks];
        for (at, (rank, inbox)) in self.ranks.iter_mut().zip(&inboxes).enumerate() {
            let mut work = time_work(&mut times[at][LayerStage::Dispatch as usize], || {
                let mut work = GroupedRows::assign_rows(inbox, chunks, hidden);
                work.copy_chunk(inbox, 0);
                work
            });
            run.rank_loads.push(work.row_count());
            time_work(&mut times[at][LayerStage::Ffn as usize], || {
                if let Some(expert) = &layer.shared {
                    let tokens = &owns[at].tokens;
                    shared[at].resize(tokens.len(), 0.0);
                    rank.ffn.run(expert, model.activation, tokens, hidden, &mut shared[at]);
                }
                let slots = &rank.slots[input.layer];
                (0..per_rank).for_each(|slot| work.run_slot(slots, slot, &mut rank.ffn, model.activation));
            });
            let of_rank = time_work(&mut times[at][LayerStage::Combine as usize], || {
                work.weighted_answers(inbox, 0, dtype)
            });
            answers.iter_mut().zip(of_rank).for_each(|(answers, answer)| answers.push(answer));
        }
        for ((at, own), answers) in owns.iter().enumerate().zip(answers) {
            run.outputs.push(time_work(&mut times[at][LayerStage::Combine as usize], || {
                let (sent, answers) = node_groups::sum_answers(groups, at, &sent[at], answers, hidden, dtype);
                rank::combine_answers(own, &sent, &answers, &shared[at], hidden)
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

    fn expert_bytes(&self, layer: usize, expert: u32) -> Result<u64, ExecError> {
        Ok(self.home_weights(layer, expert)?.bytes())
    }

    fn start_copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        let weights = Arc::clone(self.home_weights(layer, expert)?);
        if rank >= self.ranks.len() {
            return Err(ExecError::Shape { what: "rank", given: rank, expected: self.ranks.len() });
        }
        let on_its_way = self.side.begun.iter().any(|&(l, r, e, _)| (l, r, e) == (layer, rank, expert));
        if on_its_way || self.available_weights(rank, layer, expert).is_some() {
            return Ok(0);
        }
        let bytes = weights.bytes();
        self.side.start_copy(layer, rank, expert, weights)?;
        Ok(bytes)
    }

    fn wait_for_copies(&mut self) -> Result<Vec<Duration>, ExecError> {
        let mut took = vec![Duration::ZERO; self.ranks.len()];
        for done in self.side.wait_for_copies()? {
            took[done.rank] += done.took;
            self.ranks[done.rank].staged.insert((done.layer, done.expert), done.weights);
        }
        Ok(took)
    }

    fn activate_placement(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError> {
        let expected = self.placements.len();
        if layer >= expected {
            return Err(ExecError::Shape { what: "layer", given: layer, expected });
        }
        ExecError::expect_size("experts of a placement", placement.experts(), self.config.model.experts)?;
        ExecError::expect_size("slots of a placement", placement.slots().len(), self.config.cluster.slots())?;
        let mut next: Vec<(SlotWeights, Option<Planner>)> = Vec::with_capacity(self.ranks.len());
        for rank in 0..self.ranks.len() {
            let of_slot = |&expert: &Option<u32>| {
                let Some(expert) = expert else { return Ok(None) };
                let missing = ExecError::NotStaged { layer, rank, expert };
                self.available_weights(rank, layer, expert).map(Some).ok_or(missing)
            };
            let slots =
                experts_of_rank(&placement, rank).iter().map(of_slot).collect::<Result<SlotWeights, _>>()?;
            next.push((slots, self.config.create_planner(&placement)?));
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
        let replicated: u64 = self.layers.iter().map(ReplicatedLayer::bytes).sum();
        let of = |(at, rank): (usize, &CpuRank)| {
            let routed: u64 = rank.slots.iter().flatten().flatten().map(|weights| weights.bytes()).sum();
            let staged: u64 = rank.staged.values().map(|weights| weights.bytes()).sum();
            let coming = self.side.begun.iter().filter(|begun| begun.1 == at).map(|begun| begun.3);
            [routed + replicated, staged + coming.sum::<u64>()]
        };
        self.ranks.iter().enumerate().map(of).collect()
    }
}

/// Returns the experts in one rank's slots, `[S]`.
fn experts_of_rank(placement: &Placement, rank: usize) -> &[Option<u32>] {
    let per_rank = placement.slots_per_rank();
    placement.slots().get(rank * per_rank..(rank + 1) * per_rank).unwrap_or_default()
}
