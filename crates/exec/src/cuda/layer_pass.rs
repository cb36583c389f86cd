//! One layer on the ranks of this process: its sizes, the data that ranks share, and the order of streams.

use super::dynamic_slots::LocalCells;
use super::expert_buffer::ExpertLayout;
use super::migration::CopyStream;
use super::rank::{AddressTables, CudaRank, RankBuffers};
use super::remote::RemoteRanks;
use super::route::ChoiceSource;
use super::stage_timer::StageTimer;
use super::{Cuda, CudaOptions, SharedGpu, StreamSharing};
use crate::backend::{ExecConfig, LayerInput, LayerRun, RoutingSource, SourceRouting, StageTimes};
use crate::comm::ProcessGroup;
use crate::error::ExecError;
use crate::rank::run_layer;
use crate::router::Router;
use evenkeel::place::Placement;
use evenkeel_cuda::{CudaError, DeviceGather};
use std::time::Duration;

/// The sizes of a pass through a layer.
#[derive(Debug, Clone)]
pub(super) struct LayerPass {
    pub(super) step: u64,
    pub(super) layer: usize,
    /// Per source: tokens, and rows for the experts (mixtures of a soft router, otherwise the tokens).
    pub(super) tokens: Vec<usize>,
    pub(super) rows: Vec<usize>,
    pub(super) top_k: usize,
    pub(super) chooser: ChoiceSource,
    /// True if rows are mixtures.
    pub(super) mixes: bool,
}

/// The data that the ranks of this process share in one layer.
pub(super) struct LayerContext<'a> {
    pub(super) config: &'a ExecConfig,
    pub(super) options: CudaOptions,
    pub(super) gpus: &'a [SharedGpu],
    pub(super) shape: ExpertLayout,
    pub(super) placement: &'a Placement,
    pub(super) group: &'a ProcessGroup,
    pub(super) remote: Option<&'a RemoteRanks>,
    /// Background streams, per GPU.
    pub(super) sides: &'a [CopyStream],
    pub(super) copies: LocalCells,
    pub(super) pass: &'a LayerPass,
    pub(super) source: RoutingSource<'a>,
    /// True to add tokens to their outputs.
    pub(super) residual: bool,
    pub(super) clock: &'a mut StageTimer,
    pub(super) boards: &'a mut [Box<dyn DeviceGather>; 2],
    /// Expert ids and counts of the sources, for splits on the host.
    pub(super) ids: Vec<Vec<i64>>,
    pub(super) counts: Vec<u64>,
    /// The results that the host knows before the device has finished: routing, and times on the host.
    pub(super) run: LayerRun,
}

impl<'a> LayerContext<'a> {
    /// Returns the slots of the choices of every source, if the input states them.
    pub(super) fn given_slots(&self) -> Option<&'a [Vec<i64>]> {
        match self.source {
            RoutingSource::Replay { slots, .. } => slots,
            RoutingSource::Router => None,
        }
    }
}

/// Returns the buffers and tables of a rank. They must exist.
pub(super) fn buffers_and_tables(rank: &CudaRank) -> Result<(&RankBuffers, &AddressTables), ExecError> {
    let lacking = || ExecError::Nothing("a rank without buffers".into());
    let buffers = rank.buffers.as_ref().ok_or_else(lacking)?;
    Ok((buffers, buffers.tables.as_ref().ok_or_else(lacking)?))
}

pub(super) fn buffers_mut(buffers: &mut Option<RankBuffers>) -> Result<&mut RankBuffers, ExecError> {
    buffers.as_mut().ok_or_else(|| ExecError::Nothing("a rank without buffers".into()))
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
        (step, layer): (u64, usize),
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
        Ok(LayerPass { step, layer, tokens, rows, top_k, chooser, mixes: mixtures.is_some() })
    }

    /// Sends tokens and their numbers to the ranks.
    pub(super) fn upload_tokens(&mut self, pass: &LayerPass, tokens: &[Vec<f32>]) -> Result<(), ExecError> {
        let choices: Vec<u32> = pass.rows.iter().map(|&rows| (rows * pass.top_k) as u32).collect();
        for rank in &mut self.ranks {
            let (own, stream) = (rank.own, rank.gpu.stream().clone());
            let (x, buffers) = (&tokens[own], buffers_mut(&mut rank.buffers)?);
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
        let pass = self.prepare_pass((input.step, input.layer), tokens, &input.routed)?;
        self.upload_tokens(&pass, input.tokens)?;
        self.clock.reset(true, ranks);
        let mut run = self.enqueue_layer(&pass, input.routed, false)?;
        self.read_results(&pass, &mut run)?;
        self.clock.read_waits(&mut run.copy_waits)?;
        run.wall = self.clock.read_times(&mut run.times)?;
        Ok(run)
    }

    /// Enqueues a layer from the norm to the outputs. With `residual` tokens are added to their outputs.
    /// Returns the results that the host knows.
    pub(super) fn enqueue_layer(
        &mut self,
        pass: &LayerPass,
        source: RoutingSource<'_>,
        residual: bool,
    ) -> Result<LayerRun, ExecError> {
        let count = self.config.cluster.ranks();
        let waits = self.config.dynamic_slots().map_or(0, |_| count);
        let Some(boards) = &mut self.boards else {
            return Err(ExecError::Nothing("ranks without boards".into()));
        };
        let mut context = LayerContext {
            config: &self.config,
            options: self.options,
            gpus: &self.gpus,
            shape: self.shape,
            placement: &self.state.placements()[pass.layer],
            group: self.state.group(),
            remote: self.remote.as_deref(),
            sides: &self.sides,
            copies: LocalCells::default(),
            pass,
            source,
            residual,
            clock: &mut self.clock,
            boards,
            ids: vec![Vec::new(); count],
            counts: Vec::new(),
            run: LayerRun {
                routed: vec![SourceRouting::default(); count],
                times: vec![StageTimes::default(); count],
                copy_waits: vec![Duration::ZERO; waits],
                ..LayerRun::default()
            },
        };
        run_layer(&mut self.ranks, &mut context, 1)?;
        let run = context.run;
        // The next pass overwrites data that other ranks read in this one.
        synchronize_streams(&self.ranks, self.options.streams)?;
        Ok(run)
    }
}
