//! Routing on the CUDA backend. The device chooses if the router draws no random numbers and mixes no tokens.
//! Otherwise the host chooses from logits that the device computed, or replays a recording.

use super::kernels::address;
use super::launch::LogitShape;
use super::layer_pass::buffers_mut;
use super::rank::{CudaRank, RankBuffers, fill_ones};
use super::replicated::DeviceLayer;
use crate::backend::{RoutingSource, SourceRouting};
use crate::error::ExecError;
use crate::router::{Capacity, Overflow, RouteArgs, Router, Routing, SoftMixtures, replay_routing};
use evenkeel_cuda::CudaError;
use half::bf16;

/// The place where choices are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChoiceSource {
    Device,
    Host,
    Recorded,
}

impl ChoiceSource {
    pub(super) fn from_routing(
        routed: &RoutingSource<'_>,
        router: &Router,
        capacity: Option<Capacity>,
    ) -> Self {
        match (routed, router) {
            (RoutingSource::Replay { .. }, _) => ChoiceSource::Recorded,
            (_, Router::Gshard | Router::Noisy | Router::Soft { .. }) => ChoiceSource::Host,
            // The next choice depends on all tokens before it.
            _ if capacity.is_some_and(|capacity| capacity.overflow == Overflow::Next) => ChoiceSource::Host,
            _ => ChoiceSource::Device,
        }
    }
}

/// Returns `ids` extended with -1 to `choices` entries.
pub(super) fn pad_ids(ids: impl Iterator<Item = i32>, choices: usize) -> Vec<i32> {
    let mut all: Vec<i32> = ids.take(choices).collect();
    all.resize(choices, -1);
    all
}

impl CudaRank {
    fn logit_shape(buffers: &RankBuffers, tokens: usize) -> LogitShape {
        LogitShape { tokens, width: buffers.room.width, hidden: buffers.room.hidden }
    }

    /// Chooses on the device for `tokens` normed tokens: ids, weights and logits.
    pub(super) fn choose_on_device(
        &self,
        buffers: &RankBuffers,
        layer: &DeviceLayer,
        tokens: usize,
        args: &RouteArgs,
        top_k: usize,
    ) -> Result<(), CudaError> {
        fill_ones(&self.gpu, &buffers.ids)?;
        fill_ones(&self.gpu, &buffers.bad)?;
        let (shape, rule) = (Self::logit_shape(buffers, tokens), layer.device_rule(args.experts, top_k));
        let Some(rule) = rule.filter(|_| tokens > 0) else { return Ok(()) };
        self.enqueue_logits(buffers, layer, shape)?;
        let (parts, logits, bad) = (address(&buffers.parts), address(&buffers.logits), address(&buffers.bad));
        let (ids, weights) = (address(&buffers.ids), address(&buffers.weights));
        self.launcher().choose_experts(&rule, parts, shape, logits, ids, weights, bad)?;
        match args.capacity {
            None => Ok(()),
            Some(capacity) => {
                let room = capacity.tokens_per_expert(tokens, top_k, args.experts);
                let dropped = address(&buffers.dropped);
                self.launcher().apply_capacity([tokens, top_k, args.experts], room, ids, weights, dropped)
            }
        }
    }

    /// Returns the complete logits of normed tokens on the host.
    pub(super) fn host_logits(
        &self,
        buffers: &RankBuffers,
        layer: &DeviceLayer,
        tokens: usize,
    ) -> Result<Vec<f32>, CudaError> {
        if tokens == 0 {
            return Ok(vec![]);
        }
        let shape = Self::logit_shape(buffers, tokens);
        self.enqueue_logits(buffers, layer, shape)?;
        self.launcher().sum_logit_parts(
            address(&buffers.parts),
            layer.bias_address(),
            shape,
            address(&buffers.logits),
        )?;
        self.gpu.download(&buffers.logits.slice(..tokens * shape.width))
    }

    /// Sends choices of the host to the device.
    pub(super) fn send_choices(&mut self, routing: &Routing) -> Result<(), ExecError> {
        let buffers = buffers_mut(&mut self.buffers)?;
        let failed = CudaError::driver_error("copying choices to the device");
        let ids = pad_ids(routing.ids.iter().copied(), buffers.room.max_choices());
        self.gpu.stream().memcpy_htod(&ids, &mut buffers.ids).map_err(&failed)?;
        if !routing.weights.is_empty() {
            self.gpu.stream().memcpy_htod(&routing.weights, &mut buffers.weights).map_err(failed)?;
        }
        Ok(())
    }

    /// Replaces the normed tokens by mixtures of them.
    pub(super) fn send_mixtures(&mut self, soft: &SoftMixtures, tokens: usize) -> Result<(), ExecError> {
        let buffers = buffers_mut(&mut self.buffers)?;
        let hidden = buffers.room.hidden;
        if tokens == 0 {
            return Ok(());
        }
        let exact = self.gpu.download(&buffers.exact.slice(..tokens * hidden))?;
        let mixed: Vec<u16> =
            soft.mix_tokens(&exact, hidden).into_iter().map(|x| bf16::from_f32(x).to_bits()).collect();
        let failed = CudaError::driver_error("copying mixtures to the device");
        Ok(self.gpu.stream().memcpy_htod(&mixed, &mut buffers.tokens).map_err(failed)?)
    }
}

/// Applies a source's router to its logits on the host.
pub(super) fn choose_on_host(
    router: &Router,
    logits: Vec<f32>,
    args: &RouteArgs,
) -> Result<SourceRouting, ExecError> {
    let routing = router.route_tokens(&logits, args)?;
    let soft = match router {
        Router::Soft { slots } => Some(SoftMixtures::new(&logits, slots * args.experts)?),
        _ => None,
    };
    Ok(SourceRouting { logits, routing, soft, is_remote: false })
}

/// Returns the recorded routing of a source.
pub(super) fn replay_source(
    routed: &RoutingSource<'_>,
    source: usize,
    tokens: usize,
    experts: usize,
) -> Result<SourceRouting, ExecError> {
    let RoutingSource::Replay { ids, top_k, weights, .. } = routed else {
        return Ok(SourceRouting::default());
    };
    ExecError::expect_size("ids of a source", ids[source].len(), tokens * top_k)?;
    let weights = weights.map(|weights| weights[source].as_slice());
    let routing = replay_routing(&ids[source], weights, *top_k, experts)?;
    Ok(SourceRouting { routing, ..SourceRouting::default() })
}
