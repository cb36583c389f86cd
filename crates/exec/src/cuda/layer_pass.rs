//! One layer on all ranks, phase by phase: what is enqueued, and what comes back.

use super::dispatch::{dispatch, split, with_buffers};
use super::experts::Cells;
use super::home::Home;
use super::kernels::address;
use super::rank::{Buffers, Rank, Tables, mirror};
use super::route::{Chooser, on_host, padded, recorded};
use super::{Cuda, Path, Plan, Streams};
use crate::cuda::CudaError;
use crate::exec::backend::{LayerInput, LayerRun, Phase, Routed, SourceRouting, Times};
use crate::exec::clock::timed;
use crate::exec::cpu::check_slots;
use crate::exec::error::ExecError;
use crate::exec::router::{RouteArgs, Router};

/// What a pass through a layer works on.
#[derive(Debug, Clone)]
pub(super) struct Pass {
    pub(super) layer: usize,
    /// Per source: tokens, and rows that experts work on (mixtures of a soft router, else the tokens).
    pub(super) tokens: Vec<usize>,
    pub(super) rows: Vec<usize>,
    pub(super) top_k: usize,
    pub(super) chooser: Chooser,
    /// Whether rows are mixtures.
    pub(super) mixes: bool,
}

/// Buffers and tables of a rank that has been given them.
pub(super) fn parts(rank: &Rank) -> Result<(&Buffers, &Tables), ExecError> {
    let lacking = || ExecError::Nothing("a rank without buffers".into());
    let buffers = rank.buffers.as_ref().ok_or_else(lacking)?;
    Ok((buffers, buffers.tables.as_ref().ok_or_else(lacking)?))
}

pub(super) fn buffers(rank: &mut Rank) -> Result<&mut Buffers, ExecError> {
    rank.buffers.as_mut().ok_or_else(|| ExecError::Nothing("a rank without buffers".into()))
}

/// Every rank waits for what all others have been given so far, where they are not on one stream.
pub(super) fn meet(ranks: &[Rank], streams: Streams) -> Result<(), CudaError> {
    if streams == Streams::Alone && ranks.iter().all(|rank| rank.device == 0) {
        return Ok(());
    }
    ranks.iter().try_for_each(Rank::mark)?;
    for rank in ranks {
        ranks.iter().filter(|other| other.own != rank.own).try_for_each(|other| rank.wait(other))?;
    }
    Ok(())
}

impl Cuda {
    /// What a pass needs to know, and room for it.
    pub(super) fn pass(
        &mut self,
        layer: usize,
        tokens: Vec<usize>,
        routed: &Routed<'_>,
    ) -> Result<Pass, ExecError> {
        let (model, router) = (&self.config.model, &self.gpus[0].layers[layer].router);
        let chooser = Chooser::of(routed, router, self.config.capacity);
        let top_k = match *routed {
            Routed::Replay { top_k, .. } => top_k,
            Routed::Router => {
                // Whether it can choose at all.
                router.route(&[], &self.config.route_args(0, layer, 0))?;
                router.fixed_top_k().unwrap_or(model.top_k)
            }
        };
        let mixtures = match router {
            Router::Soft { slots } if chooser != Chooser::Recorded => Some(slots * model.experts),
            _ => None,
        };
        let rows: Vec<usize> =
            tokens.iter().map(|&n| if n == 0 { 0 } else { mixtures.unwrap_or(n) }).collect();
        let most = tokens.iter().chain(&rows).copied().max().unwrap_or(0);
        self.make_room(most, top_k.max(1))?;
        Ok(Pass { layer, tokens, rows, top_k, chooser, mixes: mixtures.is_some() })
    }

    /// Sends tokens, and how many there are, to the ranks.
    pub(super) fn send(&mut self, pass: &Pass, tokens: &[Vec<f32>]) -> Result<(), ExecError> {
        let choices: Vec<u32> = pass.rows.iter().map(|&rows| (rows * pass.top_k) as u32).collect();
        for rank in &mut self.ranks {
            let (own, stream) = (rank.own, rank.gpu.stream().clone());
            let (x, buffers) = (&tokens[own], buffers(rank)?);
            let failed = CudaError::driver("copying tokens to the device");
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

    pub(super) fn run_layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError> {
        let (ranks, hidden) = (self.config.cluster.ranks(), self.config.model.hidden as usize);
        input.check(self.layers().len(), ranks, hidden)?;
        let mut tokens: Vec<usize> = input.tokens.iter().map(|x| x.len() / hidden).collect();
        if let Some(far) = &self.far {
            tokens = far.tokens([input.step as usize, input.layer], &tokens)?;
        }
        let pass = self.pass(input.layer, tokens, &input.routed)?;
        self.send(&pass, input.tokens)?;
        self.clock.reset(true, ranks);
        let mut times = vec![Times::default(); ranks];
        let args: Vec<RouteArgs> =
            (0..ranks).map(|rank| self.config.route_args(input.step, input.layer, rank)).collect();
        let routed = self.route(&pass, input, &args, &mut times)?;
        self.assign(&pass, input, &mut times)?;
        self.enqueue(&pass, false)?;
        let mut run = self.collect(&pass, routed, &args)?;
        run.wall = self.clock.read(&mut times)?;
        run.times = times;
        Ok(run)
    }

    /// Every rank norms its tokens and gets their experts.
    fn route(
        &mut self,
        pass: &Pass,
        input: &LayerInput<'_>,
        args: &[RouteArgs],
        times: &mut [Times],
    ) -> Result<Vec<SourceRouting>, ExecError> {
        let (experts, gpus) = (self.config.model.experts, &self.gpus);
        let (path, activation) = (self.options.path, self.config.model.activation);
        let listens = !matches!(input.routed, Routed::Replay { and_route: false, .. });
        let own_k = gpus[0].layers[pass.layer].router.fixed_top_k().unwrap_or(self.config.model.top_k);
        let mut all = vec![SourceRouting::default(); args.len()];
        for (of_blas, rank) in self.ranks.iter_mut().enumerate() {
            let at = rank.own;
            let (tokens, gpu) = (pass.tokens[at], rank.gpu.clone());
            let layer = &gpus[rank.device].layers[pass.layer];
            let of_source = recorded(&input.routed, at, tokens, experts)?;
            let logits = self.clock.span(&gpu, at, Phase::Route, || -> Result<Vec<f32>, ExecError> {
                let (buffers, _) = parts(rank)?;
                rank.norm(buffers, layer, tokens)?;
                match pass.chooser {
                    Chooser::Device => rank.choose(buffers, layer, tokens, &args[at], own_k)?,
                    Chooser::Host => return Ok(rank.host_logits(buffers, layer, tokens)?),
                    Chooser::Recorded if listens && own_k <= pass.top_k => {
                        rank.choose(buffers, layer, tokens, &args[at], own_k)?;
                    }
                    Chooser::Recorded => {}
                }
                Ok(vec![])
            })?;
            if pass.chooser == Chooser::Device {
                all[at] = of_source;
                continue;
            }
            let of_source = match pass.chooser {
                Chooser::Host => timed(&mut times[at][Phase::Route as usize], || {
                    on_host(&layer.router, logits, &args[at])
                })?,
                _ => of_source,
            };
            if let Some(soft) = &of_source.soft {
                // The shared expert sees the tokens, which then make room for their mixtures.
                let blas = self.blas.get(of_blas);
                self.clock.span(&gpu, at, Phase::Ffn, || -> Result<(), ExecError> {
                    Ok(rank.shared(path, blas, parts(rank)?.0, layer, activation, tokens)?)
                })?;
                with_buffers(rank, |rank, buffers| rank.send_mixtures(buffers, soft, tokens))?;
            }
            with_buffers(rank, |rank, buffers| rank.send_choices(buffers, &of_source.routing))?;
            all[at] = of_source;
        }
        Ok(all)
    }

    /// Every choice gets a slot where the host says which: those given, and those of splits on the host.
    fn assign(&mut self, pass: &Pass, input: &LayerInput<'_>, times: &mut [Times]) -> Result<(), ExecError> {
        let given = match input.routed {
            Routed::Replay { slots, .. } => slots,
            Routed::Router => None,
        };
        let choices = |rank: usize| pass.rows[rank] * pass.top_k;
        let mut slots: Vec<Vec<i64>> = Vec::new();
        if let Some(given) = given {
            let Routed::Replay { ids, .. } = input.routed else { return Ok(()) };
            for &rank in &self.mine {
                check_slots(rank, &ids[rank], &given[rank], &self.placements[pass.layer])?;
                slots.push(given[rank].clone());
            }
        } else if let Plan::Host(planners) = &mut self.plans[pass.layer] {
            let mut ids: Vec<Vec<i64>> = Vec::new();
            let mut counts = Vec::new();
            for (rank, planner) in self.ranks.iter().zip(planners.iter()) {
                let at = rank.own;
                let of_rank = rank.gpu.download(&parts(rank)?.0.ids)?;
                let of_rank: Vec<i64> = of_rank.into_iter().take(choices(at)).map(i64::from).collect();
                let mut own = vec![0; self.config.model.experts];
                timed(&mut times[at][Phase::Count as usize], || planner.count(&of_rank, &mut own))?;
                counts.extend(own);
                ids.push(of_rank);
            }
            if let Some(far) = &self.far {
                counts = far.all_counts(&counts)?;
            }
            for ((&rank, planner), ids) in self.mine.iter().zip(planners).zip(&ids) {
                let time = &mut times[rank][Phase::Split as usize];
                let quotas = timed(time, || planner.split(&counts).map(|split| &split.quotas))?;
                if let Some(far) = &self.far {
                    far.prove(&self.placements[pass.layer], quotas)?;
                }
                slots.push(timed(time, || planner.redirect(ids, rank))?);
            }
        }
        for (rank, slots) in self.ranks.iter_mut().zip(&slots) {
            let stream = rank.gpu.stream().clone();
            let buffers = buffers(rank)?;
            let slots = padded(slots.iter().map(|&slot| slot as i32), buffers.room.choices());
            let failed = CudaError::driver("copying slots to the device");
            stream.memcpy_htod(&slots, &mut buffers.slots).map_err(failed)?;
        }
        // Slots that are given stand for the plan of this pass.
        self.given = given.is_some();
        Ok(())
    }

    /// From choices to outputs, on the device: counts, split, dispatch, experts, combine. With `residual` tokens are added to
    /// their outputs.
    pub(super) fn enqueue(&mut self, pass: &Pass, residual: bool) -> Result<(), ExecError> {
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
            far,
            placements,
            ..
        } = self;
        let far = far.as_deref();
        let (path, streams, activation) = (options.path, options.streams, config.model.activation);
        let Some([board, slot_board]) = boards else {
            return Err(ExecError::Nothing("ranks without boards".into()));
        };
        if !given {
            let plan = &mut plans[pass.layer];
            split(plan, ranks, homes, board.as_mut(), clock, pass, (streams, far.is_some()))?;
            if let (Some(far), Plan::Device(planners)) = (far, plan) {
                far.prove_device(&placements[pass.layer], planners)?;
            }
        }
        dispatch(ranks, slot_board.as_mut(), clock, pass, streams, far)?;
        let choices = pass.rows.iter().sum::<usize>() * pass.top_k;
        for (at, rank) in ranks.iter().enumerate() {
            let (buffers, tables) = parts(rank)?;
            let layer = &gpus[rank.device].layers[pass.layer];
            let (table, _) = homes[at].tables(pass.layer);
            let host = Home::addresses(&homes[at].slots[pass.layer]);
            let cells = Cells { table: address(table), host: &host };
            let (blas, at) = (blas.get(at), rank.own);
            if let (Some(far), Path::Cublas) = (far, path) {
                far.settle(rank)?;
            }
            clock.span(&rank.gpu, at, Phase::Ffn, || -> Result<(), ExecError> {
                if !pass.mixes {
                    rank.shared(path, blas, buffers, layer, activation, pass.tokens[at])?;
                }
                Ok(rank.routed(path, blas, buffers, cells, (*shape, activation), choices)?)
            })?;
            let seat = rank.seat(&buffers.room);
            if buffers.room.ranks > 1 && choices > 0 {
                clock.span(&rank.gpu, at, Phase::Combine, || {
                    let (inboxes, counts) = (address(&tables.inboxes), address(&buffers.choices));
                    let (results, answers) = (address(&buffers.results), address(&tables.own_answers));
                    rank.on().answer(seat, inboxes, counts, pass.top_k, results, answers)
                })?;
            }
        }
        meet(ranks, streams)?;
        let has_shared = gpus[0].layers[pass.layer].shared.is_some();
        if let Some(far) = far {
            ranks.iter().try_for_each(|rank| far.answers(rank))?;
        }
        for at in 0..ranks.len() {
            let (gpu, own) = (ranks[at].gpu.clone(), ranks[at].own);
            if pass.rows[own] == 0 {
                continue;
            }
            if ranks.iter().any(|rank| rank.device != ranks[at].device) {
                clock.span(&gpu, own, Phase::Combine, || mirror(ranks, at, true))?;
            }
            let rank = &ranks[at];
            let (buffers, tables) = parts(rank)?;
            let shared = if has_shared && !pass.mixes { address(&buffers.shared_out) } else { 0 };
            let x = if residual { address(&buffers.x) } else { 0 };
            clock.span(&rank.gpu, own, Phase::Combine, || {
                let size = [pass.rows[own], pass.top_k];
                let (slots, places) = (address(&buffers.slots), address(&buffers.places));
                let (results, rows) = (address(&buffers.results), address(&buffers.parcel_rows));
                let (answers, out) = (address(&tables.answers), address(&buffers.out));
                let seat = rank.seat(&buffers.room);
                rank.on().combine(seat, slots, places, size, results, rows, answers, shared, x, out)
            })?;
        }
        // The next pass writes what others read in this one.
        meet(ranks, streams)?;
        Ok(())
    }
}
