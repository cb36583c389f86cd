//! One layer: the loop over the ranks of this process, phase by phase.
//!
//! Between two phases the ranks exchange data. Ranks of this process move it, ranks of other processes get
//! and send messages ([`Mailbox`]). Every phase of each rank is timed separately.

use super::all_to_all::{AllToAll, ExchangeShape, PackedTokens};
use super::grouped_rows::GroupedRows;
use super::mailbox::Mailbox;
use super::node_groups::NodeGroups;
use super::rank::{self, CpuRank, ReplicatedLayer, SourceTokens};
use super::send_buffer::{SlotChunks, TokenPacker};
use super::{Cpu, CpuOptions};
use crate::backend::{
    ExecConfig, LayerInput, LayerRun, LayerStage, RoutingSource, SourceRouting, StageTimes,
};
use crate::clock::time_work;
use crate::comm::{ProcessGroup, Purpose, placement_digest};
use crate::error::ExecError;
use evenkeel::model::MoeModel;
use evenkeel::place::Placement;
use std::time::Instant;

/// One rank in one layer, before its tokens travel.
struct RankPass<'a> {
    rank: &'a mut CpuRank,
    model: &'a MoeModel,
    index: usize,
    layer: &'a ReplicatedLayer,
    placement: &'a Placement,
    own: SourceTokens,
    /// Tokens per expert, `[E]`.
    counts: Vec<u64>,
    /// Slots of its choices, `[token][k]`.
    slots: Vec<i64>,
    times: StageTimes,
}

/// One rank in one layer, with its tokens in transit.
struct RankExchange<'a> {
    pass: RankPass<'a>,
    flow: AllToAll<'a>,
    /// Received rows, from the first chunk to the last.
    rows: Option<GroupedRows>,
    /// Number of received rows.
    served: u64,
    /// Results of the shared expert, `[token][H]`.
    shared: Vec<f32>,
}

impl Cpu {
    /// Runs one layer.
    pub(super) fn forward_layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        let Self { config, layers, state, ranks, options, .. } = self;
        let group = state.group();
        let ExecConfig { model, cluster, dtype, aggregate, .. } = &*config;
        let (hidden, count) = (model.hidden as usize, cluster.ranks());
        input.check_shapes(layers.len(), count, hidden)?;
        group.set_context(Some(input.step), Some(input.layer));
        let (layer, placement) = (&layers[input.layer], &state.placements()[input.layer]);
        let route = |rank| RankPass::route(rank, config, layer, placement, input);
        let mut passes: Vec<RankPass<'_>> = ranks.iter_mut().map(route).collect::<Result<_, _>>()?;
        split_counts(&mut passes, group, input, *options)?;

        let mut run = LayerRun {
            outputs: vec![Vec::new(); count],
            routed: vec![SourceRouting::default(); count],
            counts: vec![0; model.experts],
            rank_loads: vec![0; count],
            times: vec![StageTimes::default(); count],
            ..LayerRun::default()
        };
        let chunks = SlotChunks::new(cluster.slots_per_rank(), options.chunks);
        let groups = NodeGroups::from_cluster(cluster, *aggregate);
        let shape = ExchangeShape { groups, chunks, hidden, dtype: *dtype };
        let mail = Mailbox::new(group);
        let (first, begun) = (group.reserve_ids(shape.exchange_count()), Instant::now());
        let mut sent: Vec<RankExchange<'_>> = Vec::with_capacity(passes.len());
        for pass in passes {
            run.copies.add_source(&pass.slots, pass.own.routed.routing.top_k, pass.rank.own, cluster);
            sent.push(pass.start_dispatch(&mail, first, shape)?);
        }
        sent.iter_mut().for_each(RankExchange::run_shared);
        for chunk in 0..chunks.count() {
            sent.iter_mut().try_for_each(|rank| rank.forward_tokens(chunk))?;
            sent.iter_mut().try_for_each(|rank| rank.run_experts(chunk, shape))?;
        }
        sent.iter_mut().try_for_each(RankExchange::forward_answers)?;
        sent.iter_mut().try_for_each(RankExchange::wait_answers)?;
        group.record_duration(begun.elapsed());
        sent.into_iter().for_each(|rank| rank.combine(&mut run));
        Ok(run)
    }
}

/// Gathers the counts of all ranks, splits them on every rank separately, and selects the slots that serve
/// its tokens.
fn split_counts(
    passes: &mut [RankPass<'_>],
    group: &ProcessGroup,
    input: &LayerInput<'_>,
    options: CpuOptions,
) -> Result<(), ExecError> {
    if let RoutingSource::Replay { slots: Some(slots), .. } = input.routed {
        return passes.iter_mut().try_for_each(|pass| pass.take_slots(&slots[pass.rank.own]));
    }
    let mut gathered = Vec::new();
    if passes.iter().any(|pass| pass.rank.planners[pass.index].is_some()) {
        gathered = group.all_gather_u64(
            Purpose::Counts,
            &passes.iter().flat_map(|pass| pass.counts.iter().copied()).collect::<Vec<_>>(),
        )?;
    }
    passes.iter_mut().try_for_each(|pass| pass.split(&gathered, group, options))
}

impl<'a> RankPass<'a> {
    /// Routes and counts the tokens of a rank.
    fn route(
        rank: &'a mut CpuRank,
        config: &'a ExecConfig,
        layer: &'a ReplicatedLayer,
        placement: &'a Placement,
        input: &LayerInput<'_>,
    ) -> Result<Self, ExecError> {
        let (at, mut times) = (rank.own, StageTimes::default());
        let args = config.route_args(input.step, input.layer, at);
        let own = time_work(&mut times[LayerStage::Route as usize], || {
            rank::route_source(layer, at, &input.tokens[at], input.routed, &args)
        })?;
        let counts = time_work(&mut times[LayerStage::Count as usize], || {
            rank::count_tokens(&own.routed.routing.ids, config.model.experts)
        });
        let (model, index, slots) = (&config.model, input.layer, Vec::new());
        Ok(Self { rank, model, index, layer, placement, own, counts, slots, times })
    }

    /// Takes the given slots, if they hold the chosen experts.
    fn take_slots(&mut self, slots: &[i64]) -> Result<(), ExecError> {
        rank::check_slots(self.rank.own, &self.own.routed.routing.ids, slots, self.placement)?;
        self.slots = slots.to_vec();
        Ok(())
    }

    /// Splits the counts of all ranks, and selects the slots that serve this rank's tokens.
    fn split(
        &mut self,
        gathered: &[u64],
        group: &ProcessGroup,
        options: CpuOptions,
    ) -> Result<(), ExecError> {
        let (ids, placement) = (&self.own.routed.routing.ids, self.placement);
        let time = &mut self.times[LayerStage::Split as usize];
        let Some(planner) = self.rank.planners[self.index].as_mut() else {
            self.slots = time_work(time, || rank::first_replicas(ids, placement));
            return Ok(());
        };
        let quotas = time_work(time, || planner.split(gathered).map(|split| &split.quotas))?;
        if options.verify_splits {
            group.assert_identical("the split", || placement_digest(placement, quotas))?;
        }
        self.slots = time_work(time, || {
            let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            planner.redirect(&ids, self.rank.own)
        })?;
        Ok(())
    }

    /// Packs this rank's tokens and begins to send them.
    fn start_dispatch(
        mut self,
        mail: &'a Mailbox<'a>,
        first: u64,
        shape: ExchangeShape,
    ) -> Result<RankExchange<'a>, ExecError> {
        let mut times = self.times;
        let packed = time_work(&mut times[LayerStage::Dispatch as usize], || self.pack_tokens(shape));
        let flow = AllToAll::start_dispatch(mail, (self.rank.own, first), shape, packed, &mut times)?;
        self.times = times;
        Ok(RankExchange { pass: self, flow, rows: None, served: 0, shared: Vec::new() })
    }

    /// Packs this rank's tokens for the ranks of its group and for the other groups. Also returns the token
    /// of each row.
    fn pack_tokens(&self, ExchangeShape { groups, chunks, hidden, dtype }: ExchangeShape) -> PackedTokens {
        let (routing, per_rank) = (&self.own.routed.routing, chunks.slots());
        let (rows, slots, weights, top_k) =
            (self.own.expert_input(), &self.slots[..], &routing.weights[..], routing.top_k);
        let pack = TokenPacker { rows, hidden, slots, weights, top_k, dtype, chunks };
        let (home, _) = groups.position_of(self.rank.own);
        pack.pack_parcels(groups.size + groups.count, |slot| {
            let (group, index) = groups.position_of(slot / per_rank);
            let slot = slot % per_rank;
            if group == home {
                (index, slot as u32)
            } else {
                (groups.size + group, (index * per_rank + slot) as u32)
            }
        })
    }
}

impl RankExchange<'_> {
    /// Runs the shared expert on this rank's own tokens, while others travel.
    fn run_shared(&mut self) {
        let (RankPass { rank, model, layer, own, times, .. }, shared) = (&mut self.pass, &mut self.shared);
        let Some(expert) = &layer.shared else { return };
        time_work(&mut times[LayerStage::Ffn as usize], || {
            shared.resize(own.tokens.len(), 0.0);
            rank.ffn.run(expert, model.activation, &own.tokens, model.hidden as usize, shared);
        });
    }

    /// Forwards the tokens of other groups up to a chunk.
    fn forward_tokens(&mut self, chunk: usize) -> Result<(), ExecError> {
        self.flow.forward_until(chunk + 1, &mut self.pass.times)
    }

    /// Waits for a chunk, runs its experts, and sends the answers.
    fn run_experts(&mut self, chunk: usize, shape: ExchangeShape) -> Result<(), ExecError> {
        let ExchangeShape { chunks, hidden, dtype, .. } = shape;
        let (RankPass { rank, model, index, times, .. }, flow) = (&mut self.pass, &mut self.flow);
        flow.wait_chunk(times)?;
        let rows = time_work(&mut times[LayerStage::Dispatch as usize], || {
            let rows =
                self.rows.get_or_insert_with(|| GroupedRows::assign_rows(flow.inbox(), chunks, hidden));
            rows.copy_chunk(flow.inbox(), chunk);
            rows
        });
        let (held, slots) = (&rank.slots[*index], chunks.slots_of(chunk));
        // Between processes, messages advance after every expert.
        let stride = if flow.is_local() { slots.len().max(1) } else { 1 };
        for first in slots.clone().step_by(stride) {
            time_work(&mut times[LayerStage::Ffn as usize], || {
                let slots = first..slots.end.min(first + stride);
                slots.for_each(|slot| rows.run_slot(held, slot, &mut rank.ffn, model.activation));
            });
            flow.poll(times)?;
        }
        let answers = time_work(&mut times[LayerStage::Combine as usize], || {
            rows.weighted_answers(flow.inbox(), chunk, dtype)
        });
        if chunk + 1 == chunks.count() {
            // Other ranks of this process need the memory.
            self.served = rows.row_count();
            self.rows = None;
            flow.discard_inbox();
        }
        flow.send_answers(answers, times)
    }

    /// Sums the answers of this rank's group for other groups.
    fn forward_answers(&mut self) -> Result<(), ExecError> {
        self.flow.forward_all_answers(&mut self.pass.times)
    }

    /// Waits for the answers to this rank's tokens.
    fn wait_answers(&mut self) -> Result<(), ExecError> {
        self.flow.wait_answers(&mut self.pass.times)
    }

    /// Sums the answers to every token, and adds the results of this rank to those of the layer.
    fn combine(self, run: &mut LayerRun) {
        let RankPass { rank, model, own, counts, mut times, .. } = self.pass;
        run.outputs[rank.own] = time_work(&mut times[LayerStage::Combine as usize], || {
            let (sent, answers) = self.flow.into_answers();
            rank::combine_answers(&own, &sent, &answers, &self.shared, model.hidden as usize)
        });
        run.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        run.rank_loads[rank.own] = self.served;
        run.routed[rank.own] = own.routed;
        run.times[rank.own] = times;
    }
}
