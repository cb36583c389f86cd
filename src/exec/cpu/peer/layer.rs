//! One layer on this rank: what [`Cpu`](crate::exec::cpu::Cpu) does for one, with the others on the wire.

use super::Peer;
use super::flow::{Flow, Packed, Shape};
use crate::exec::backend::{ExecConfig, LayerInput, LayerRun, Phase, Routed, Times};
use crate::exec::clock::timed;
use crate::exec::cpu::nodes::Groups;
use crate::exec::cpu::parcel::{Chunks, Pack};
use crate::exec::cpu::rank::{self, Own, Rank};
use crate::exec::cpu::work::Work;
use crate::exec::error::ExecError;
use crate::exec::transport::{Purpose, digest};
use std::rc::Rc;
use std::time::Instant;

impl Peer {
    /// Runs one layer.
    pub(super) fn run(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        let ExecConfig { model, cluster, dtype, aggregate, .. } = self.config;
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
        let mut run = LayerRun { counts, ..LayerRun::default() };
        run.copies.add(&slots, own.routed.routing.top_k, me, &cluster);
        let chunks = Chunks::new(cluster.slots_per_rank(), self.options.chunks);
        let shape = Shape { groups: Groups::of(&cluster, aggregate), chunks, hidden, dtype };
        let begun = Instant::now();
        let packed = timed(&mut times[Phase::Dispatch as usize], || self.pack(&own, &slots, shape));
        let wire = Rc::clone(&self.wire);
        let mut flow = Flow::begin(&wire, shape, packed, &mut times)?;

        let (layer, Rank { slots, ffn, .. }) = (&self.layers[input.layer], &mut self.mine);
        let mut shared = Vec::new();
        if let Some(expert) = &layer.shared {
            timed(&mut times[Phase::Ffn as usize], || {
                shared.resize(own.tokens.len(), 0.0);
                ffn.run(expert, model.activation, &own.tokens, hidden, &mut shared);
            });
        }
        let mut work = None;
        for chunk in 0..chunks.count() {
            flow.arrive(&mut times)?;
            let work = timed(&mut times[Phase::Dispatch as usize], || {
                let work = work.get_or_insert_with(|| Work::plan(flow.inbox(), chunks, hidden));
                work.fill(flow.inbox(), chunk);
                work
            });
            for slot in chunks.slots_of(chunk) {
                let slots = &slots[input.layer];
                timed(&mut times[Phase::Ffn as usize], || work.run(slots, slot, ffn, model.activation));
                flow.poll(&mut times)?;
            }
            let answers =
                timed(&mut times[Phase::Combine as usize], || work.answers(flow.inbox(), chunk, dtype));
            flow.answer(&answers, &mut times)?;
        }
        let (sent, answers) = flow.end(&mut times)?;
        wire.took(begun.elapsed());

        run.outputs = vec![Vec::new(); ranks];
        run.outputs[me] = timed(&mut times[Phase::Combine as usize], || {
            rank::combine(&own, &sent, &answers, &shared, hidden)
        });
        run.rank_loads = vec![0; ranks];
        run.rank_loads[me] = work.map_or(0, |work: Work| work.rows());
        run.routed.resize_with(ranks, Default::default);
        run.routed[me] = own.routed;
        run.times = vec![Times::default(); ranks];
        run.times[me] = times;
        Ok(run)
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
        if self.options.prove {
            self.wire.agree("the split", digest(placement, quotas))?;
        }
        timed(time, || {
            let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            Ok(planner.redirect(&ids, me)?)
        })
    }

    /// Packs this rank's tokens for the ranks of its group and for the other groups, and which token each row is.
    fn pack(&self, own: &Own, slots: &[i64], Shape { groups, chunks, hidden, dtype }: Shape) -> Packed {
        let (routing, per_rank) = (&own.routed.routing, chunks.slots());
        let (weights, top_k) = (&routing.weights, routing.top_k);
        let pack = Pack { rows: own.rows(), hidden, slots, weights, top_k, dtype, chunks };
        let (home, _) = groups.place(self.wire.rank());
        pack.parcels(groups.size + groups.count, |slot| {
            let (group, index) = groups.place(slot / per_rank);
            let slot = slot % per_rank;
            if group == home {
                (index, slot as u32)
            } else {
                (groups.size + group, (index * per_rank + slot) as u32)
            }
        })
    }
}
