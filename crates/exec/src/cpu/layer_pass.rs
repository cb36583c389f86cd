//! One layer: the phases of a rank of this process, and its exchanges with the others.
//!
//! Between two phases the ranks exchange data. Ranks of this process move it, ranks of other processes get
//! and send messages ([`Mailbox`]). Every phase of each rank is timed separately.

use super::Cpu;
use super::all_to_all::{AllToAll, ExchangeShape, PackedTokens};
use super::dynamic_slots::{LocalClones, receive_copies, start_copies};
use super::grouped_rows::GroupedRows;
use super::mailbox::Mailbox;
use super::node_groups::NodeGroups;
use super::rank::{self, CpuRank, ReplicatedLayer, SourceTokens};
use super::send_buffer::{SlotChunks, TokenPacker};
use crate::backend::{
    ExecConfig, LayerInput, LayerRun, LayerStage, RoutingSource, SourceRouting, StageTimes,
};
use crate::clock::time_work;
use crate::comm::{ProcessGroup, Purpose, placement_digest};
use crate::copy_exchange::CopyExchange;
use crate::error::ExecError;
use crate::rank::{Exchange, Rank, run_layer};
use evenkeel::cluster::Cluster;
use evenkeel::place::Placement;
use evenkeel::split::SlotMemory;
use std::time::Duration;

/// The data that the ranks of this process share in one layer.
struct LayerContext<'a> {
    config: &'a ExecConfig,
    group: &'a ProcessGroup,
    input: &'a LayerInput<'a>,
    layer: &'a ReplicatedLayer,
    placement: &'a Placement,
    shape: ExchangeShape,
    /// Copies between ranks of this process.
    copies: LocalClones,
    verify_splits: bool,
    /// Tokens per source and expert, `[R][E]`, if they were gathered.
    counts: Vec<u64>,
}

impl<'a> LayerContext<'a> {
    /// Returns the slots of the choices of every source, if the input states them.
    fn given_slots(&self) -> Option<&'a [Vec<i64>]> {
        match self.input.routed {
            RoutingSource::Replay { slots, .. } => slots,
            RoutingSource::Router => None,
        }
    }
}

/// One rank in one layer.
struct RankPass<'a> {
    rank: &'a mut CpuRank,
    own: SourceTokens,
    /// Tokens per expert, `[E]`.
    counts: Vec<u64>,
    /// Slots of its choices, `[token][k]`.
    slots: Vec<i64>,
    flow: AllToAll<'a>,
    /// Received rows, from the first chunk to the last.
    rows: Option<GroupedRows>,
    /// Copies from this rank, and into its dynamic slots.
    copy_exchange: CopyExchange,
    /// Time of waiting for copies from other processes.
    copy_wait: Duration,
    /// Number of received rows.
    served: u64,
    /// Results of the shared expert, `[token][H]`.
    shared: Vec<f32>,
    times: StageTimes,
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
        let width = config.slots_per_rank();
        let slots = config.widened_cluster()?;
        let chunks = SlotChunks::new(width, options.chunks);
        let groups = NodeGroups::from_cluster(cluster, *aggregate);
        let shape = ExchangeShape { groups, chunks, hidden, dtype: *dtype };
        let (mail, first) = (Mailbox::new(group), group.reserve_ids(shape.exchange_count()));
        let mut passes: Vec<RankPass<'_>> =
            ranks.iter_mut().map(|rank| RankPass::new(rank, &mail, first, shape)).collect();
        let mut context = LayerContext {
            config,
            group,
            input,
            layer: &layers[input.layer],
            placement: &state.placements()[input.layer],
            shape,
            copies: LocalClones::default(),
            verify_splits: options.verify_splits,
            counts: Vec::new(),
        };
        group.record_duration(run_layer(&mut passes, &mut context, chunks.count())?);
        let mut run = LayerRun {
            outputs: vec![Vec::new(); count],
            routed: vec![SourceRouting::default(); count],
            counts: vec![0; model.experts],
            rank_loads: vec![0; count],
            times: vec![StageTimes::default(); count],
            copy_waits: config.dynamic_slots().map_or_else(Vec::new, |_| vec![Duration::ZERO; count]),
            ..LayerRun::default()
        };
        passes.into_iter().for_each(|pass| pass.combine(config, &slots, &mut run));
        Ok(run)
    }
}

impl<'a> RankPass<'a> {
    fn new(rank: &'a mut CpuRank, mail: &'a Mailbox<'a>, first: u64, shape: ExchangeShape) -> Self {
        let flow = AllToAll::new(mail, (rank.own, first), shape);
        Self {
            rank,
            own: SourceTokens::default(),
            counts: Vec::new(),
            slots: Vec::new(),
            flow,
            rows: None,
            copy_exchange: CopyExchange::default(),
            copy_wait: Duration::ZERO,
            served: 0,
            shared: Vec::new(),
            times: StageTimes::default(),
        }
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

    /// Sums the answers to every token, and adds the results of this rank to those of the layer.
    fn combine(self, config: &ExecConfig, all_slots: &Cluster, run: &mut LayerRun) {
        let Self { rank, own, counts, slots, flow, shared, copy_exchange, copy_wait, mut times, .. } = self;
        run.copies.add_source(&slots, own.routed.routing.top_k, rank.own, all_slots);
        run.expert_copies = copy_exchange.copies();
        if let Some(wait) = run.copy_waits.get_mut(rank.own) {
            *wait = copy_wait;
        }
        run.outputs[rank.own] = time_work(&mut times[LayerStage::Combine as usize], || {
            let (sent, answers) = flow.into_answers();
            rank::combine_answers(&own, &sent, &answers, &shared, config.model.hidden as usize)
        });
        run.counts.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        run.rank_loads[rank.own] = self.served;
        run.routed[rank.own] = own.routed;
        run.times[rank.own] = times;
    }
}

impl Rank<LayerContext<'_>> for RankPass<'_> {
    fn route(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let (at, input) = (self.rank.own, context.input);
        let args = context.config.route_args(input.step, input.layer, at);
        self.own = time_work(&mut self.times[LayerStage::Route as usize], || {
            rank::route_source(context.layer, at, &input.tokens[at], input.routed, &args)
        })?;
        Ok(())
    }

    fn count(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        self.counts = time_work(&mut self.times[LayerStage::Count as usize], || {
            rank::count_tokens(&self.own.routed.routing.ids, context.config.model.experts)
        });
        Ok(())
    }

    fn split(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let (ids, placement, own) = (&self.own.routed.routing.ids, context.placement, self.rank.own);
        if let Some(given) = context.given_slots() {
            if context.config.dynamic_slots().is_some() {
                return Err(ExecError::Combination("dynamic slots and stated slots"));
            }
            rank::check_slots(own, ids, &given[own], placement)?;
            self.slots.clone_from(&given[own]);
            return Ok(());
        }
        let time = &mut self.times[LayerStage::Split as usize];
        let Some(planner) = &mut self.rank.planners[context.input.layer] else {
            self.slots = time_work(time, || rank::first_replicas(ids, placement));
            return Ok(());
        };
        time_work(time, || planner.split(&context.counts).map(|_| ()))?;
        if context.verify_splits {
            let digest = || placement_digest(planner.placement(), &planner.last_split().quotas);
            context.group.assert_identical("the split", digest)?;
        }
        self.slots = time_work(time, || {
            let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            planner.redirect(&ids, own)
        })?;
        Ok(())
    }

    /// Also runs the shared expert, while the tokens travel.
    fn send_tokens(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let (mut times, model) = (self.times, &context.config.model);
        let packed = time_work(&mut times[LayerStage::Dispatch as usize], || self.pack_tokens(context.shape));
        self.flow.start_dispatch(packed, &mut times)?;
        self.times = times;
        let Some(expert) = &context.layer.shared else { return Ok(()) };
        let (tokens, ffn) = (&self.own.tokens, &mut self.rank.ffn);
        time_work(&mut self.times[LayerStage::Ffn as usize], || {
            self.shared.resize(tokens.len(), 0.0);
            ffn.run(expert, model.activation, tokens, model.hidden as usize, &mut self.shared);
        });
        Ok(())
    }

    /// Sends copies of own experts, and prepares for those that arrive.
    fn send_copies(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let Some(slots) = context.config.dynamic_slots() else { return Ok(()) };
        let LayerContext { group, placement, shape, copies, .. } = context;
        let layer = context.input.layer;
        let Self { rank, copy_exchange, times, .. } = self;
        if slots.memory == SlotMemory::Shared {
            // Other layers have used the slots.
            let statics = placement.slots_per_rank();
            rank.slots[layer][statics..].fill(None);
        }
        time_work(&mut times[LayerStage::Copy as usize], || {
            start_copies(copy_exchange, rank, (layer, placement), (group, *shape), copies)
        })
    }

    /// Waits for the chunk first. Before its first dynamic slot, waits for the copies.
    fn run_experts(&mut self, context: &mut LayerContext<'_>, chunk: usize) -> Result<(), ExecError> {
        let ExchangeShape { chunks, hidden, dtype, .. } = context.shape;
        let Self { rank, flow, times, .. } = self;
        flow.wait_chunk(times)?;
        let rows = time_work(&mut times[LayerStage::Dispatch as usize], || {
            let rows =
                self.rows.get_or_insert_with(|| GroupedRows::assign_rows(flow.inbox(), chunks, hidden));
            rows.copy_chunk(flow.inbox(), chunk);
            rows
        });
        let (layer, slots) = (context.input.layer, chunks.slots_of(chunk));
        let activation = context.config.model.activation;
        let dynamic = context.placement.slots_per_rank().clamp(slots.start, slots.end);
        // Between processes, messages advance after every expert.
        let stride = if flow.is_local() { slots.len().max(1) } else { 1 };
        for part in [slots.start..dynamic, dynamic..slots.end] {
            if part.start == dynamic && !part.is_empty() {
                let time = &mut times[LayerStage::Copy as usize];
                let way = (context.group, context.shape);
                let slots = (rank.own, &mut rank.slots[layer]);
                self.copy_wait +=
                    receive_copies(&mut self.copy_exchange, slots, way, &mut context.copies, time)?;
            }
            for first in part.clone().step_by(stride) {
                time_work(&mut times[LayerStage::Ffn as usize], || {
                    let slots = first..part.end.min(first + stride);
                    let held = &rank.slots[layer];
                    slots.for_each(|slot| rows.run_slot(held, slot, &mut rank.ffn, activation));
                });
                flow.poll(times)?;
            }
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

    fn receive_answers(&mut self, _: &mut LayerContext<'_>) -> Result<(), ExecError> {
        self.flow.wait_answers(&mut self.times)
    }

    /// Gathers counts, and forwards tokens and answers as a gateway.
    fn exchange(ranks: &mut [Self], context: &mut LayerContext<'_>, data: Exchange) -> Result<(), ExecError> {
        match data {
            Exchange::Counts => {
                let splits = |pass: &Self| pass.rank.planners[context.input.layer].is_some();
                if context.given_slots().is_none() && ranks.iter().any(splits) {
                    let own: Vec<u64> = ranks.iter().flat_map(|pass| pass.counts.iter().copied()).collect();
                    context.counts = context.group.all_gather_u64(Purpose::Counts, &own)?;
                }
                Ok(())
            }
            Exchange::Rows => Ok(()),
            Exchange::Tokens(chunk) => {
                ranks.iter_mut().try_for_each(|pass| pass.flow.forward_until(chunk + 1, &mut pass.times))
            }
            Exchange::Answers => {
                ranks.iter_mut().try_for_each(|pass| pass.flow.forward_all_answers(&mut pass.times))
            }
        }
    }
}
