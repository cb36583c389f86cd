//! One layer on this rank: the work of [`Cpu`](crate::cpu::Cpu) for one rank, with the other ranks on the
//! wire.

use super::CpuPeer;
use super::all_to_all::{AllToAll, ExchangeShape, PackedTokens};
use crate::backend::{ExecConfig, LayerInput, LayerRun, LayerStage, RoutingSource, StageTimes};
use crate::clock::time_work;
use crate::cpu::grouped_rows::GroupedRows;
use crate::cpu::node_groups::NodeGroups;
use crate::cpu::rank::{self, CpuRank, SourceTokens};
use crate::cpu::send_buffer::{SlotChunks, TokenPacker};
use crate::error::ExecError;
use crate::transport::{Purpose, placement_digest};
use std::rc::Rc;
use std::time::Instant;

impl CpuPeer {
    /// Runs one layer.
    pub(super) fn forward_layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        let ExecConfig { model, cluster, dtype, aggregate, .. } = self.config;
        let (me, ranks, hidden) = (self.wire.rank(), cluster.ranks(), model.hidden as usize);
        input.check_shapes(self.layers.len(), ranks, hidden)?;
        self.wire.set_context(Some(input.step), Some(input.layer));
        let mut times = StageTimes::default();
        let args = self.config.route_args(input.step, input.layer, me);
        let own = time_work(&mut times[LayerStage::Route as usize], || {
            rank::route_source(&self.layers[input.layer], me, &input.tokens[me], input.routed, &args)
        })?;
        let counts = time_work(&mut times[LayerStage::Count as usize], || {
            rank::count_tokens(&own.routed.routing.ids, model.experts)
        });
        let slots = self.split_counts(input, &own, &counts, &mut times)?;
        let mut run = LayerRun { counts, ..LayerRun::default() };
        run.copies.add_source(&slots, own.routed.routing.top_k, me, &cluster);
        let chunks = SlotChunks::new(cluster.slots_per_rank(), self.options.chunks);
        let shape =
            ExchangeShape { groups: NodeGroups::from_cluster(&cluster, aggregate), chunks, hidden, dtype };
        let begun = Instant::now();
        let packed =
            time_work(&mut times[LayerStage::Dispatch as usize], || self.pack_tokens(&own, &slots, shape));
        let wire = Rc::clone(&self.wire);
        let mut flow = AllToAll::start_dispatch(&wire, shape, packed, &mut times)?;

        let (layer, CpuRank { slots, ffn, .. }) = (&self.layers[input.layer], &mut self.mine);
        let mut shared = Vec::new();
        if let Some(expert) = &layer.shared {
            time_work(&mut times[LayerStage::Ffn as usize], || {
                shared.resize(own.tokens.len(), 0.0);
                ffn.run(expert, model.activation, &own.tokens, hidden, &mut shared);
            });
        }
        let mut work = None;
        for chunk in 0..chunks.count() {
            flow.wait_chunk(&mut times)?;
            let work = time_work(&mut times[LayerStage::Dispatch as usize], || {
                let work = work.get_or_insert_with(|| GroupedRows::assign_rows(flow.inbox(), chunks, hidden));
                work.copy_chunk(flow.inbox(), chunk);
                work
            });
            for slot in chunks.slots_of(chunk) {
                let slots = &slots[input.layer];
                time_work(&mut times[LayerStage::Ffn as usize], || {
                    work.run_slot(slots, slot, ffn, model.activation);
                });
                flow.poll(&mut times)?;
            }
            let answers = time_work(&mut times[LayerStage::Combine as usize], || {
                work.weighted_answers(flow.inbox(), chunk, dtype)
            });
            flow.send_answers(&answers, &mut times)?;
        }
        let (sent, answers) = flow.wait_answers(&mut times)?;
        wire.record_duration(begun.elapsed());

        run.outputs = vec![Vec::new(); ranks];
        run.outputs[me] = time_work(&mut times[LayerStage::Combine as usize], || {
            rank::combine_answers(&own, &sent, &answers, &shared, hidden)
        });
        run.rank_loads = vec![0; ranks];
        run.rank_loads[me] = work.map_or(0, |work: GroupedRows| work.row_count());
        run.routed.resize_with(ranks, Default::default);
        run.routed[me] = own.routed;
        run.times = vec![StageTimes::default(); ranks];
        run.times[me] = times;
        Ok(run)
    }

    /// Splits the counts of all ranks, and selects the slots that serve this rank's tokens.
    fn split_counts(
        &mut self,
        input: &LayerInput<'_>,
        own: &SourceTokens,
        counts: &[u64],
        times: &mut StageTimes,
    ) -> Result<Vec<i64>, ExecError> {
        let (me, ids) = (self.wire.rank(), &own.routed.routing.ids);
        let placement = &self.placements[input.layer];
        if let RoutingSource::Replay { slots: Some(slots), .. } = input.routed {
            rank::check_slots(me, ids, &slots[me], placement)?;
            return Ok(slots[me].clone());
        }
        let time = &mut times[LayerStage::Split as usize];
        let Some(planner) = self.mine.planners[input.layer].as_mut() else {
            return Ok(time_work(time, || rank::first_replicas(ids, placement)));
        };
        let all = self.wire.all_gather_u64(Purpose::Counts, counts)?;
        let quotas = time_work(time, || planner.split(&all).map(|split| &split.quotas))?;
        if self.options.verify_splits {
            self.wire.assert_identical("the split", placement_digest(placement, quotas))?;
        }
        time_work(time, || {
            let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            Ok(planner.redirect(&ids, me)?)
        })
    }

    /// Packs this rank's tokens for the ranks of its group and for the other groups. Also returns the token
    /// of each row.
    fn pack_tokens(
        &self,
        own: &SourceTokens,
        slots: &[i64],
        ExchangeShape { groups, chunks, hidden, dtype }: ExchangeShape,
    ) -> PackedTokens {
        let (routing, per_rank) = (&own.routed.routing, chunks.slots());
        let (weights, top_k) = (&routing.weights, routing.top_k);
        let pack = TokenPacker { rows: own.expert_input(), hidden, slots, weights, top_k, dtype, chunks };
        let (home, _) = groups.position_of(self.wire.rank());
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
