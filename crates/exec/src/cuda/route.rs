//! Routing of the CUDA backend: on the device where the router draws nothing and mixes nothing, else on the host, from logits
//! that the device computed; or as recorded.

use super::kernels::address;
use super::launch::LogitShape;
use super::layers::Layer;
use super::rank::{Buffers, Rank, fill_ones};
use crate::cuda::CudaError;
use crate::exec::backend::{Routed, SourceRouting};
use crate::exec::error::ExecError;
use crate::exec::router::{Capacity, Overflow, RouteArgs, Router, Routing, Soft, replay};
use half::bf16;

/// Where choices are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chooser {
    Device,
    Host,
    Recorded,
}

impl Chooser {
    pub(super) fn of(routed: &Routed<'_>, router: &Router, capacity: Option<Capacity>) -> Self {
        match (routed, router) {
            (Routed::Replay { .. }, _) => Chooser::Recorded,
            (_, Router::Gshard | Router::Noisy | Router::Soft { .. }) => Chooser::Host,
            // Who gets the next choice depends on all who came before.
            _ if capacity.is_some_and(|capacity| capacity.overflow == Overflow::Next) => Chooser::Host,
            _ => Chooser::Device,
        }
    }
}

/// As long as `choices`, -1 behind what is given.
pub(super) fn padded(ids: impl Iterator<Item = i32>, choices: usize) -> Vec<i32> {
    let mut all: Vec<i32> = ids.take(choices).collect();
    all.resize(choices, -1);
    all
}

impl Rank {
    fn logit_shape(buffers: &Buffers, tokens: usize) -> LogitShape {
        LogitShape { tokens, width: buffers.room.width, hidden: buffers.room.hidden }
    }

    /// The device chooses for `tokens` normed tokens: ids, weights and logits.
    pub(super) fn choose(
        &self,
        buffers: &Buffers,
        layer: &Layer,
        tokens: usize,
        args: &RouteArgs,
        top_k: usize,
    ) -> Result<(), CudaError> {
        fill_ones(&self.gpu, &buffers.ids)?;
        fill_ones(&self.gpu, &buffers.bad)?;
        let (shape, rule) = (Self::logit_shape(buffers, tokens), layer.rule(args.experts, top_k));
        let Some(rule) = rule.filter(|_| tokens > 0) else { return Ok(()) };
        self.logits(buffers, layer, shape)?;
        let (parts, logits, bad) = (address(&buffers.parts), address(&buffers.logits), address(&buffers.bad));
        let (ids, weights) = (address(&buffers.ids), address(&buffers.weights));
        self.on().choose(&rule, parts, shape, logits, ids, weights, bad)?;
        match args.capacity {
            None => Ok(()),
            Some(capacity) => {
                let room = capacity.of(tokens, top_k, args.experts);
                let dropped = address(&buffers.dropped);
                self.on().room([tokens, top_k, args.experts], room, ids, weights, dropped)
            }
        }
    }

    /// Logits of normed tokens, all of them added up, on the host.
    pub(super) fn host_logits(
        &self,
        buffers: &Buffers,
        layer: &Layer,
        tokens: usize,
    ) -> Result<Vec<f32>, CudaError> {
        if tokens == 0 {
            return Ok(vec![]);
        }
        let shape = Self::logit_shape(buffers, tokens);
        self.logits(buffers, layer, shape)?;
        self.on().add_up(address(&buffers.parts), layer.bias(), shape, address(&buffers.logits))?;
        self.gpu.download(&buffers.logits.slice(..tokens * shape.width))
    }

    /// Choices made on the host, sent to the device.
    pub(super) fn send_choices(&self, buffers: &mut Buffers, routing: &Routing) -> Result<(), CudaError> {
        let failed = CudaError::driver("copying choices to the device");
        let ids = padded(routing.ids.iter().copied(), buffers.room.choices());
        self.gpu.stream().memcpy_htod(&ids, &mut buffers.ids).map_err(&failed)?;
        if !routing.weights.is_empty() {
            self.gpu.stream().memcpy_htod(&routing.weights, &mut buffers.weights).map_err(failed)?;
        }
        Ok(())
    }

    /// Mixtures of normed tokens in the place of the tokens.
    pub(super) fn send_mixtures(
        &self,
        buffers: &mut Buffers,
        soft: &Soft,
        tokens: usize,
    ) -> Result<(), CudaError> {
        let hidden = buffers.room.hidden;
        if tokens == 0 {
            return Ok(());
        }
        let exact = self.gpu.download(&buffers.exact.slice(..tokens * hidden))?;
        let mixed: Vec<u16> =
            soft.mix(&exact, hidden).into_iter().map(|x| bf16::from_f32(x).to_bits()).collect();
        let failed = CudaError::driver("copying mixtures to the device");
        self.gpu.stream().memcpy_htod(&mixed, &mut buffers.tokens).map_err(failed)
    }
}

/// What a source's router makes of its logits, on the host.
pub(super) fn on_host(
    router: &Router,
    logits: Vec<f32>,
    args: &RouteArgs,
) -> Result<SourceRouting, ExecError> {
    let routing = router.route(&logits, args)?;
    let soft = match router {
        Router::Soft { slots } => Some(Soft::new(&logits, slots * args.experts)?),
        _ => None,
    };
    Ok(SourceRouting { logits, routing, soft, elsewhere: false })
}

/// The recorded routing of a source.
pub(super) fn recorded(
    routed: &Routed<'_>,
    source: usize,
    tokens: usize,
    experts: usize,
) -> Result<SourceRouting, ExecError> {
    let Routed::Replay { ids, top_k, weights, .. } = routed else { return Ok(SourceRouting::default()) };
    ExecError::expect("ids of a source", ids[source].len(), tokens * top_k)?;
    let weights = weights.map(|weights| weights[source].as_slice());
    let routing = replay(&ids[source], weights, *top_k, experts)?;
    Ok(SourceRouting { routing, ..SourceRouting::default() })
}
