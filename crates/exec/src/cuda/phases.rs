//! The phases of a rank in one layer: the work that it enqueues in each, between two events.

use super::experts::SlotAddresses;
use super::kernels::address;
use super::layer_pass::{LayerContext, buffers_and_tables, buffers_mut, synchronize_streams};
use super::rank::{CudaRank, LayerPlanner, copy_mirrors};
use super::route::{ChoiceSource, choose_on_host, pad_ids, replay_source};
use crate::backend::{LayerStage, RoutingSource};
use crate::clock::time_work;
use crate::cpu::check_slots;
use crate::error::ExecError;
use crate::rank::{Exchange, Rank};
use evenkeel_cuda::CudaError;
use std::sync::Arc;

impl CudaRank {
    /// Sends the slots of this rank's choices, which the host has selected, to the device.
    fn send_slots(&mut self, slots: &[i64]) -> Result<(), ExecError> {
        let buffers = buffers_mut(&mut self.buffers)?;
        let slots = pad_ids(slots.iter().map(|&slot| slot as i32), buffers.room.max_choices());
        let failed = CudaError::driver_error("copying slots to the device");
        Ok(self.gpu.stream().memcpy_htod(&slots, &mut buffers.slots).map_err(failed)?)
    }

    /// Computes send buffers from the rows per slot of all sources, and packs the tokens.
    fn pack_tokens(&self, [rows, top_k]: [usize; 2]) -> Result<(), ExecError> {
        let (buffers, tables) = buffers_and_tables(self)?;
        let (seat, launcher) = (self.rank_position(&buffers.room), self.launcher());
        let (slots, base) = (address(&buffers.slots), address(&buffers.base));
        launcher.slot_bases(seat, address(&buffers.all_counts), base, address(&buffers.offsets))?;
        let (befores, places) = (address(&buffers.histograms), address(&buffers.places));
        launcher.place_choices(seat, slots, buffers.room.max_choices(), befores, base, places)?;
        if buffers.room.ranks == 1 || rows == 0 {
            return Ok(());
        }
        let (parcel_rows, tokens) = (address(&buffers.parcel_rows), address(&buffers.tokens));
        launcher.number_rows(seat, slots, [rows, top_k], parcel_rows, address(&buffers.sizes))?;
        let parcels = address(&tables.parcels);
        Ok(launcher.pack_parcels(seat, tokens, slots, [rows, top_k], parcel_rows, parcels)?)
    }
}

impl Rank<LayerContext<'_>> for CudaRank {
    fn route(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let (at, pass, config) = (self.own, context.pass, context.config);
        let (tokens, layer) = (pass.tokens[at], &context.gpus[self.device].layers[pass.layer]);
        let args = config.route_args(pass.step, pass.layer, at);
        let own_k = layer.router.fixed_top_k().unwrap_or(config.model.top_k);
        let listens = !matches!(context.source, RoutingSource::Replay { also_run_router: false, .. });
        let mut routed = replay_source(&context.source, at, tokens, config.model.experts)?;
        let clock = &mut *context.clock;
        let logits = clock.record_span(&self.gpu, at, LayerStage::Route, || -> Result<_, ExecError> {
            let (buffers, _) = buffers_and_tables(self)?;
            self.enqueue_norm(buffers, layer, tokens)?;
            match pass.chooser {
                ChoiceSource::Host => return Ok(self.host_logits(buffers, layer, tokens)?),
                ChoiceSource::Recorded if !listens || own_k > pass.top_k => {}
                _ => self.choose_on_device(buffers, layer, tokens, &args, own_k)?,
            }
            Ok(vec![])
        })?;
        if pass.chooser == ChoiceSource::Host {
            routed = time_work(&mut context.run.times[at][LayerStage::Route as usize], || {
                choose_on_host(&layer.router, logits, &args)
            })?;
        }
        if let Some(soft) = &routed.soft {
            // The shared expert reads the tokens before their mixtures overwrite them.
            let activation = config.model.activation;
            clock.record_span(&self.gpu, at, LayerStage::Ffn, || -> Result<_, ExecError> {
                Ok(self.run_shared(buffers_and_tables(self)?.0, layer, activation, tokens)?)
            })?;
            self.send_mixtures(soft, tokens)?;
        }
        if pass.chooser != ChoiceSource::Device {
            self.send_choices(&routed.routing)?;
        }
        context.run.routed[at] = routed;
        Ok(())
    }

    fn count(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let (at, pass) = (self.own, context.pass);
        if context.given_slots().is_some() {
            return Ok(());
        }
        let buffers = buffers_mut(&mut self.buffers)?;
        match &mut self.planners[pass.layer] {
            LayerPlanner::FirstReplica => Ok(()),
            LayerPlanner::Device(planner) => {
                let clock = &mut *context.clock;
                clock.record_span(&self.gpu, at, LayerStage::Count, || planner.count_ids(&buffers.ids))?;
                let board = context.boards[0].as_mut();
                Ok(clock.record_span(&self.gpu, at, LayerStage::Split, || planner.offer_counts(board))?)
            }
            LayerPlanner::Host(planner) => {
                let ids = self.gpu.download(&buffers.ids)?.into_iter().take(pass.rows[at] * pass.top_k);
                let ids: Vec<i64> = ids.map(i64::from).collect();
                let mut own = vec![0; context.config.model.experts];
                time_work(&mut context.run.times[at][LayerStage::Count as usize], || {
                    planner.count_ids(&ids, &mut own)
                })?;
                context.counts.extend(own);
                context.ids[at] = ids;
                Ok(())
            }
        }
    }

    fn split(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let (at, pass, remote) = (self.own, context.pass, context.remote);
        if let (Some(slots), RoutingSource::Replay { ids, .. }) = (context.given_slots(), context.source) {
            if context.config.dynamic_slots().is_some() {
                return Err(ExecError::Combination("dynamic slots and stated slots"));
            }
            check_slots(at, &ids[at], &slots[at], context.placement)?;
            return self.send_slots(&slots[at]);
        }
        let buffers = buffers_mut(&mut self.buffers)?;
        let (clock, board) = (&mut *context.clock, context.boards[0].as_mut());
        match &mut self.planners[pass.layer] {
            LayerPlanner::FirstReplica => {
                let (_, firsts) = self.experts.layer_tables(pass.layer);
                let (ids, slots) = (address(&buffers.ids), address(&buffers.slots));
                let (n, firsts) = (buffers.room.max_choices(), address(firsts));
                Ok(clock.record_span(&self.gpu, at, LayerStage::Split, || {
                    self.launcher().first_replica(ids, n, firsts, slots)
                })?)
            }
            LayerPlanner::Device(planner) => {
                // The time of waiting for other processes is not this rank's work.
                if remote.is_some() {
                    planner.collect_counts(0, board)?;
                } else {
                    clock
                        .record_span(&self.gpu, at, LayerStage::Split, || planner.collect_counts(0, board))?;
                }
                clock.record_span(&self.gpu, at, LayerStage::Split, || {
                    planner.solve(0)?;
                    planner.compute_shares(0)?;
                    planner.map_ids(0, &buffers.ids, &mut buffers.slots)
                })?;
                remote.map_or(Ok(()), |remote| remote.verify_device_split(context.placement, planner))
            }
            LayerPlanner::Host(planner) => {
                let (time, ids) = (&mut context.run.times[at][LayerStage::Split as usize], &context.ids[at]);
                time_work(time, || planner.split(&context.counts).map(|_| ()))?;
                if let Some(remote) = remote {
                    remote.verify_split(planner.placement(), &planner.last_split().quotas)?;
                }
                let slots = time_work(time, || planner.redirect(ids, at))?;
                self.send_slots(&slots)
            }
        }
    }

    fn count_rows(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let (buffers, _) = buffers_and_tables(self)?;
        context.clock.record_span(&self.gpu, self.own, LayerStage::Dispatch, || {
            let (n, all) = (buffers.room.max_choices(), buffers.room.ranks * buffers.room.per_rank);
            let (slots, befores) = (address(&buffers.slots), address(&buffers.histograms));
            let (counts, faults) = (address(&buffers.own_counts), address(&buffers.faults));
            self.launcher().count_slots(slots, n, all, befores, counts, faults)?;
            Ok(context.boards[1].offer_counts(self.own, &buffers.own_counts, &self.gpu)?)
        })
    }

    fn send_tokens(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let (at, pass, board) = (self.own, context.pass, context.boards[1].as_mut());
        let buffers = buffers_mut(&mut self.buffers)?;
        let mut collect = || {
            let all = &mut buffers.all_counts.as_view_mut();
            board.collect_counts(at, &buffers.own_counts, all, &self.gpu)
        };
        if context.remote.is_some() {
            collect()?;
        } else {
            context.clock.record_span(&self.gpu, at, LayerStage::Dispatch, collect)?;
        }
        let size = [pass.rows[at], pass.top_k];
        context.clock.record_span(&self.gpu, at, LayerStage::Dispatch, || self.pack_tokens(size))
    }

    fn send_copies(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        context.config.dynamic_slots().map_or(Ok(()), |_| self.collect_copies(context))
    }

    /// Also begins the copies, which yield to the tokens.
    fn receive_tokens(&mut self, context: &mut LayerContext<'_>, _: usize) -> Result<(), ExecError> {
        self.start_copies(context)?;
        let (buffers, tables) = buffers_and_tables(self)?;
        let (seat, top_k) = (self.rank_position(&buffers.room), context.pass.top_k);
        Ok(context.clock.record_span(&self.gpu, self.own, LayerStage::Dispatch, || {
            let (inboxes, counts) = (address(&tables.inboxes), address(&buffers.choices));
            let (rows, scales) = (address(&buffers.rows), address(&buffers.scales));
            self.launcher().accept_parcels(seat, inboxes, counts, top_k, rows, scales)
        })?)
    }

    /// Runs the static experts, and then those that were copied.
    fn run_experts(&mut self, context: &mut LayerContext<'_>, _: usize) -> Result<(), ExecError> {
        let (at, pass) = (self.own, context.pass);
        let choices = pass.rows.iter().sum::<usize>() * pass.top_k;
        let (statics, width) = (context.placement.slots_per_rank(), context.config.slots_per_rank());
        let (buffers, _) = buffers_and_tables(self)?;
        let layer = &context.gpus[self.device].layers[pass.layer];
        let (table, _) = self.experts.layer_tables(pass.layer);
        let (table, host) = (address(table), self.experts.slot_addresses(pass.layer));
        let cells = SlotAddresses { table, host: &host };
        if let (Some(remote), Some(_)) = (context.remote, &self.blas) {
            remote.synchronize(self)?;
        }
        let (shape, activation) = (context.shape, context.config.model.activation);
        let offsets = context.clock.record_span(&self.gpu, at, LayerStage::Ffn, || {
            if !pass.mixes {
                self.run_shared(buffers, layer, activation, pass.tokens[at])?;
            }
            let offsets = self.prepare_routed(buffers, choices)?;
            let (slots, kind) = ((cells, 0..statics), (shape, activation));
            self.run_routed(buffers, slots, offsets.as_deref(), kind, choices)?;
            Ok::<_, CudaError>(offsets)
        })?;
        if width > statics {
            self.wait_for_copies(context)?;
            let (buffers, _) = buffers_and_tables(self)?;
            context.clock.record_span(&self.gpu, at, LayerStage::Ffn, || {
                let (slots, kind) = ((cells, statics..width), (shape, activation));
                self.run_routed(buffers, slots, offsets.as_deref(), kind, choices)
            })?;
        }
        let (buffers, tables) = buffers_and_tables(self)?;
        if buffers.room.ranks == 1 || choices == 0 {
            return Ok(());
        }
        let seat = self.rank_position(&buffers.room);
        Ok(context.clock.record_span(&self.gpu, at, LayerStage::Combine, || {
            let (inboxes, counts) = (address(&tables.inboxes), address(&buffers.choices));
            let (results, answers) = (address(&buffers.results), address(&tables.own_answers));
            self.launcher().answer_parcels(seat, inboxes, counts, pass.top_k, results, answers)
        })?)
    }

    fn receive_answers(&mut self, context: &mut LayerContext<'_>) -> Result<(), ExecError> {
        let (at, pass) = (self.own, context.pass);
        if pass.rows[at] == 0 {
            return Ok(());
        }
        let (buffers, tables) = buffers_and_tables(self)?;
        let has_shared = context.gpus[self.device].layers[pass.layer].shared.is_some();
        let shared = if has_shared && !pass.mixes { address(&buffers.shared_out) } else { 0 };
        let x = if context.residual { address(&buffers.x) } else { 0 };
        let (seat, size) = (self.rank_position(&buffers.room), [pass.rows[at], pass.top_k]);
        Ok(context.clock.record_span(&self.gpu, at, LayerStage::Combine, || {
            let (slots, places) = (address(&buffers.slots), address(&buffers.places));
            let (results, rows) = (address(&buffers.results), address(&buffers.parcel_rows));
            let (answers, out) = (address(&tables.answers), address(&buffers.out));
            self.launcher().combine_answers(seat, slots, places, size, results, rows, answers, shared, x, out)
        })?)
    }

    /// Orders the streams, so that a rank reads memory after the other ranks have written it. Between GPUs
    /// and processes the data is copied.
    fn exchange(ranks: &mut [Self], context: &mut LayerContext<'_>, data: Exchange) -> Result<(), ExecError> {
        let (pass, remote) = (context.pass, context.remote);
        if data == Exchange::Counts {
            match ranks.first().map(|rank| &rank.planners[pass.layer]) {
                Some(LayerPlanner::Device(_)) if context.given_slots().is_none() => {}
                Some(LayerPlanner::Host(_)) if context.given_slots().is_none() => {
                    if let Some(remote) = remote {
                        context.counts = remote.gather_counts(&context.counts)?;
                    }
                    return Ok(());
                }
                _ => return Ok(()),
            }
        }
        synchronize_streams(ranks, context.options.streams)?;
        let stage = match data {
            Exchange::Counts | Exchange::Rows => return Ok(()),
            Exchange::Tokens(_) => LayerStage::Dispatch,
            Exchange::Answers => LayerStage::Combine,
        };
        for at in 0..ranks.len() {
            let (own, gpu) = (ranks[at].own, Arc::clone(&ranks[at].gpu));
            match (remote, stage) {
                (Some(remote), LayerStage::Dispatch) => remote.exchange_parcels(&mut ranks[at], pass)?,
                (Some(remote), _) => remote.exchange_answers(&ranks[at])?,
                (None, LayerStage::Combine) if pass.rows[own] == 0 => {}
                (None, _) if ranks.iter().all(|rank| rank.device == ranks[at].device) => {}
                (None, _) => {
                    context.clock.record_span(&gpu, own, stage, || copy_mirrors(ranks, at, stage))?;
                }
            }
        }
        Ok(())
    }
}
