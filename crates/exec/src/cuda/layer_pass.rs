//! One layer on all ranks, phase by phase: the enqueued work and its results.

use super::dispatch::{dispatch_tokens, split_batch, with_buffers};
use super::expert_slots::ExpertSlots;
use super::experts::SlotAddresses;
use super::kernels::address;
use super::rank::{AddressTables, CudaRank, RankBuffers, copy_mirrors};
use super::route::{ChoiceSource, choose_on_host, pad_ids, replay_source};
use super::{Cuda, GemmPath, LayerPlanners, StreamSharing};
use crate::backend::{LayerInput, LayerRun, LayerStage, RoutingSource, SourceRouting, StageTimes};
use crate::clock::time_work;
use crate::cpu::check_slots;
use crate::error::ExecError;
use crate::router::{RouteArgs, Router};
use evenkeel_cuda::CudaError;

/// The sizes of a pass through a layer.
#[derive(Debug, Clone)]
pub(super) struct LayerPass {
    pub(super) layer: usize,
    /// Per source: tokens, and rows for the experts (mixtures of a soft router, otherwise the tokens).
    pub(super) tokens: Vec<usize>,
    pub(super) rows: Vec<usize>,
    pub(super) top_k: usize,
    pub(super) chooser: ChoiceSource,
    /// True if rows are mixtures.
    pub(super) mixes: bool,
}

/// Returns the buffers and tables of a rank. They must exist.
pub(super) fn buffers_and_tables(rank: &CudaRank) -> Result<(&RankBuffers, &AddressTables), ExecError> {
    let lacking = || ExecError::Nothing("a rank without buffers".into());
    let buffers = rank.buffers.as_ref().ok_or_else(lacking)?;
    Ok((buffers, buffers.tables.as_ref().ok_or_else(lacking)?))
}

pub(super) fn buffers_mut(rank: &mut CudaRank) -> Result<&mut RankBuffers, ExecError> {
    rank.buffers.as_mut().ok_or_else(|| ExecError::Nothing("a rank without buffers".into()))
}

/// Makes every rank wait for the work enqueued so far on all others, unless they share a stream.
pub(super) fn synchronize_streams(ranks: &[CudaRank], streams: StreamSharing) -> Result<(), CudaError> {
    if streams == StreamSharing::Alone && ranks.iter().all(|rank| rank.device == 0) {
        return Ok(());
    }
    ranks.iter().try_for_each(CudaRank::record_mark)?;
    for rank in ranks {
        ranks.iter().filter(|other| other.own != rank.own).try_for_each(|other| rank.wait_for(other))?;
    }
    Ok(())
}

impl Cuda {
    /// Determines the sizes of a pass, and allocates room for it.
    pub(super) fn prepare_pass(
        &mut self,
        layer: usize,
        tokens: Vec<usize>,
        routed: &RoutingSource<'_>,
    ) -> Result<LayerPass, ExecError> {
        let (model, router) = (&self.config.model, &self.gpus[0].layers[layer].router);
        let chooser = ChoiceSource::from_routing(routed, router, self.config.capacity);
        let top_k = match *routed {
            RoutingSource::Replay { top_k, .. } => top_k,
            RoutingSource::Router => {
                // Checks that the router supports the arguments.
                router.route_tokens(&[], &self.config.route_args(0, layer, 0))?;
                router.fixed_top_k().unwrap_or(model.top_k)
            }
        };
        let mixtures = match router {
            Router::Soft { slots } if chooser != ChoiceSource::Recorded => Some(slots * model.experts),
            _ => None,
        };
        let rows: Vec<usize> =
            tokens.iter().map(|&n| if n == 0 { 0 } else { mixtures.unwrap_or(n) }).collect();
        let most = tokens.iter().chain(&rows).copied().max().unwrap_or(0);
        self.reserve_buffers(most, top_k.max(1))?;
        Ok(LayerPass { layer, tokens, rows, top_k, chooser, mixes: mixtures.is_some() })
    }

    /// Sends tokens and their numbers to the ranks.
    pub(super) fn upload_tokens(&mut self, pass: &LayerPass, tokens: &[Vec<f32>]) -> Result<(), ExecError> {
        let choices: Vec<u32> = pass.rows.iter().map(|&rows| (rows * pass.top_k) as u32).collect();
        for rank in &mut self.ranks {
            let (own, stream) = (rank.own, rank.gpu.stream().clone());
            let (x, buffers) = (&tokens[own], buffers_mut(rank)?);
            let failed = CudaError::driver_error("copying tokens to the device");
            if !x.is_empty() {
                stream.memcpy_htod(x, &mut buffers.x).map_err(&failed)?;
            }
            stream.memcpy_htod(&choices, &mut buffers.choices).map_err(&failed)?;
            stream
                .memcpy_htod(&[0, pass.tokens[own] as u32], &mut buffers.shared_offsets)
                .map_err(&failed)?;
            for memory in [&mut buffers.dropped, &mut buffers.faults, &mut buffers.sizes] {
                stream.memset_zeros(memory).map_err(&failed)?;
            }
        }
        Ok(())
    }

    pub(super) fn forward_layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        let (ranks, hidden) = (self.config.cluster.ranks(), self.config.model.hidden as usize);
        input.check_shapes(self.device_layers().len(), ranks, hidden)?;
        let mut tokens: Vec<usize> = input.tokens.iter().map(|x| x.len() / hidden).collect();
        if let Some(far) = &self.remote {
            tokens = far.gather_tokens([input.step as usize, input.layer], &tokens)?;
        }
        let pass = self.prepare_pass(input.layer, tokens, &input.routed)?;
        self.upload_tokens(&pass, input.tokens)?;
        self.clock.reset(true, ranks);
        let mut times = vec![StageTimes::default(); ranks];
        let args: Vec<RouteArgs> =
            (0..ranks).map(|rank| self.config.route_args(input.step, input.layer, rank)).collect();
        let routed = self.route_tokens(&pass, input, &args, &mut times)?;
        self.assign_slots(&pass, input, &mut times)?;
        self.enqueue_layer(&pass, false)?;
        let mut run = self.read_results(&pass, routed, &args)?;
        run.wall = self.clock.read_times(&mut times)?;
        run.times = times;
        Ok(run)
    }

    /// Norms and routes the tokens of every rank.
    fn route_tokens(
        &mut self,
        pass: &LayerPass,
        input: &LayerInput<'_>,
        args: &[RouteArgs],
        times: &mut [StageTimes],
    ) -> Result<Vec<SourceRouting>, ExecError> {
        let (experts, gpus) = (self.config.model.experts, &self.gpus);
        let (path, activation) = (self.options.path, self.config.model.activation);
        let listens = !matches!(input.routed, RoutingSource::Replay { also_run_router: false, .. });
        let own_k = gpus[0].layers[pass.layer].router.fixed_top_k().unwrap_or(self.config.model.top_k);
        let mut all = vec![SourceRouting::default(); args.len()];
        for (of_blas, rank) in self.ranks.iter_mut().enumerate() {
            let at = rank.own;
            let (tokens, gpu) = (pass.tokens[at], rank.gpu.clone());
            let layer = &gpus[rank.device].layers[pass.layer];
            let of_source = replay_source(&input.routed, at, tokens, experts)?;
            let logits =
                self.clock.record_span(&gpu, at, LayerStage::Route, || -> Result<Vec<f32>, ExecError> {
                    let (buffers, _) = buffers_and_tables(rank)?;
                    rank.enqueue_norm(buffers, layer, tokens)?;
                    match pass.chooser {
                        ChoiceSource::Device => {
                            rank.choose_on_device(buffers, layer, tokens, &args[at], own_k)?;
                        }
                        ChoiceSource::Host => return Ok(rank.host_logits(buffers, layer, tokens)?),
                        ChoiceSource::Recorded if listens && own_k <= pass.top_k => {
                            rank.choose_on_device(buffers, layer, tokens, &args[at], own_k)?;
                        }
                        ChoiceSource::Recorded => {}
                    }
                    Ok(vec![])
                })?;
            if pass.chooser == ChoiceSource::Device {
                all[at] = of_source;
                continue;
            }
            let of_source = match pass.chooser {
                ChoiceSource::Host => time_work(&mut times[at][LayerStage::Route as usize], || {
                    choose_on_host(&layer.router, logits, &args[at])
                })?,
                _ => of_source,
            };
            if let Some(soft) = &of_source.soft {
                // The shared expert reads the tokens before their mixtures overwrite them.
                let blas = self.blas.get(of_blas);
                self.clock.record_span(&gpu, at, LayerStage::Ffn, || -> Result<(), ExecError> {
                    Ok(rank.run_shared(path, blas, buffers_and_tables(rank)?.0, layer, activation, tokens)?)
                })?;
                with_buffers(rank, |rank, buffers| rank.send_mixtures(buffers, soft, tokens))?;
            }
            with_buffers(rank, |rank, buffers| rank.send_choices(buffers, &of_source.routing))?;
            all[at] = of_source;
        }
        Ok(all)
    }

    /// Assigns slots to all choices if the host decides them: given slots, and those of splits on the host.
    fn assign_slots(
        &mut self,
        pass: &LayerPass,
        input: &LayerInput<'_>,
        times: &mut [StageTimes],
    ) -> Result<(), ExecError> {
        let given = match input.routed {
            RoutingSource::Replay { slots, .. } => slots,
            RoutingSource::Router => None,
        };
        let choices = |rank: usize| pass.rows[rank] * pass.top_k;
        let mut slots: Vec<Vec<i64>> = Vec::new();
        if let Some(given) = given {
            let RoutingSource::Replay { ids, .. } = input.routed else { return Ok(()) };
            for rank in self.state.group().local_ranks() {
                let placement = &self.state.placements()[pass.layer];
                check_slots(rank, &ids[rank], &given[rank], placement)?;
                slots.push(given[rank].clone());
            }
        } else if let LayerPlanners::Host(planners) = &mut self.plans[pass.layer] {
            let mut ids: Vec<Vec<i64>> = Vec::new();
            let mut counts = Vec::new();
            for (rank, planner) in self.ranks.iter().zip(planners.iter()) {
                let at = rank.own;
                let of_rank = rank.gpu.download(&buffers_and_tables(rank)?.0.ids)?;
                let of_rank: Vec<i64> = of_rank.into_iter().take(choices(at)).map(i64::from).collect();
                let mut own = vec![0; self.config.model.experts];
                time_work(&mut times[at][LayerStage::Count as usize], || {
                    planner.count_ids(&of_rank, &mut own)
                })?;
                counts.extend(own);
                ids.push(of_rank);
            }
            if let Some(far) = &self.remote {
                counts = far.gather_counts(&counts)?;
            }
            for ((rank, planner), ids) in self.state.group().local_ranks().zip(planners).zip(&ids) {
                let time = &mut times[rank][LayerStage::Split as usize];
                let quotas = time_work(time, || planner.split(&counts).map(|split| &split.quotas))?;
                if let Some(far) = &self.remote {
                    far.verify_split(&self.state.placements()[pass.layer], quotas)?;
                }
                slots.push(time_work(time, || planner.redirect(ids, rank))?);
            }
        }
        for (rank, slots) in self.ranks.iter_mut().zip(&slots) {
            let stream = rank.gpu.stream().clone();
            let buffers = buffers_mut(rank)?;
            let slots = pad_ids(slots.iter().map(|&slot| slot as i32), buffers.room.max_choices());
            let failed = CudaError::driver_error("copying slots to the device");
            stream.memcpy_htod(&slots, &mut buffers.slots).map_err(failed)?;
        }
        // Given slots replace the plan of this pass.
        self.given = given.is_some();
        Ok(())
    }

    /// Enqueues the way from choices to outputs on the device: counts, split, dispatch, experts, combine.
    /// With `residual` tokens are added to their outputs.
    pub(super) fn enqueue_layer(&mut self, pass: &LayerPass, residual: bool) -> Result<(), ExecError> {
        let given = std::mem::take(&mut self.given);
        let Self {
            ranks,
            homes,
            plans,
            boards,
            clock,
            gpus,
            blas,
            options,
            config,
            shape,
            remote: far,
            state,
            ..
        } = self;
        let far = far.as_deref();
        let (path, streams, activation) = (options.path, options.streams, config.model.activation);
        let Some([board, slot_board]) = boards else {
            return Err(ExecError::Nothing("ranks without boards".into()));
        };
        if !given {
            let plan = &mut plans[pass.layer];
            split_batch(plan, ranks, homes, board.as_mut(), clock, pass, (streams, far.is_some()))?;
            if let (Some(far), LayerPlanners::Device(planners)) = (far, plan) {
                far.verify_device_split(&state.placements()[pass.layer], planners)?;
            }
        }
        dispatch_tokens(ranks, slot_board.as_mut(), clock, pass, streams, far)?;
        let choices = pass.rows.iter().sum::<usize>() * pass.top_k;
        for (at, rank) in ranks.iter().enumerate() {
            let (buffers, tables) = buffers_and_tables(rank)?;
            let layer = &gpus[rank.device].layers[pass.layer];
            let (table, _) = homes[at].layer_tables(pass.layer);
            let host = ExpertSlots::slot_addresses(&homes[at].slots[pass.layer]);
            let cells = SlotAddresses { table: address(table), host: &host };
            let (blas, at) = (blas.get(at), rank.own);
            if let (Some(far), GemmPath::Cublas) = (far, path) {
                far.synchronize(rank)?;
            }
            clock.record_span(&rank.gpu, at, LayerStage::Ffn, || -> Result<(), ExecError> {
                if !pass.mixes {
                    rank.run_shared(path, blas, buffers, layer, activation, pass.tokens[at])?;
                }
                Ok(rank.run_routed(path, blas, buffers, cells, (*shape, activation), choices)?)
            })?;
            let seat = rank.rank_position(&buffers.room);
            if buffers.room.ranks > 1 && choices > 0 {
                clock.record_span(&rank.gpu, at, LayerStage::Combine, || {
                    let (inboxes, counts) = (address(&tables.inboxes), address(&buffers.choices));
                    let (results, answers) = (address(&buffers.results), address(&tables.own_answers));
                    rank.launcher().answer_parcels(seat, inboxes, counts, pass.top_k, results, answers)
                })?;
            }
        }
        synchronize_streams(ranks, streams)?;
        let has_shared = gpus[0].layers[pass.layer].shared.is_some();
        if let Some(far) = far {
            ranks.iter().try_for_each(|rank| far.exchange_answers(rank))?;
        }
        for at in 0..ranks.len() {
            let (gpu, own) = (ranks[at].gpu.clone(), ranks[at].own);
            if pass.rows[own] == 0 {
                continue;
            }
            if ranks.iter().any(|rank| rank.device != ranks[at].device) {
                clock.record_span(&gpu, own, LayerStage::Combine, || copy_mirrors(ranks, at, true))?;
            }
            let rank = &ranks[at];
            let (buffers, tables) = buffers_and_tables(rank)?;
            let shared = if has_shared && !pass.mixes { address(&buffers.shared_out) } else { 0 };
            let x = if residual { address(&buffers.x) } else { 0 };
            clock.record_span(&rank.gpu, own, LayerStage::Combine, || {
                let size = [pass.rows[own], pass.top_k];
                let (slots, places) = (address(&buffers.slots), address(&buffers.places));
                let (results, rows) = (address(&buffers.results), address(&buffers.parcel_rows));
                let (answers, out) = (address(&tables.answers), address(&buffers.out));
                let seat = rank.rank_position(&buffers.room);
                rank.launcher()
                    .combine_answers(seat, slots, places, size, results, rows, answers, shared, x, out)
            })?;
        }
        // The next pass overwrites data that other ranks read in this one.
        synchronize_streams(ranks, streams)?;
        Ok(())
    }
}
