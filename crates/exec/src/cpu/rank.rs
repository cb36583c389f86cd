//! One rank: its own memory, and its work in each phase.
//!
//! A rank reads only its own tokens, its own weights and the send buffers that were sent to it.

use super::ffn::Ffn;
use super::matmul::times_transposed;
use crate::backend::{ExecConfig, RoutingSource, SourceRouting};
use crate::error::ExecError;
use crate::placement_state::experts_of_rank;
use crate::reference::NORM_EPSILON;
use crate::router::{RouteArgs, Router, SoftMixtures, replay_routing};
use crate::weights::{ExpertWeights, GateWeights, Matrix, WeightSource};
use evenkeel::place::Placement;
use evenkeel::planner::Planner;
use std::collections::HashMap;
use std::sync::Arc;

/// The weights of one layer that every rank has.
#[derive(Debug)]
pub(super) struct ReplicatedLayer {
    pub(super) router: Router,
    pub(super) gate: GateWeights,
    pub(super) norm: Vec<f32>,
    pub(super) shared: Option<ExpertWeights>,
}

impl ReplicatedLayer {
    /// Returns their bytes on every rank: norm, router, shared expert.
    pub(super) fn bytes(&self) -> u64 {
        let numbers = 4 * (self.norm.len() + self.gate.bias.len()) + 8 * self.gate.selection.len();
        numbers as u64 + self.gate.weight.bytes() + self.shared.as_ref().map_or(0, ExpertWeights::bytes)
    }

    /// Reads these weights for the first `layers` layers.
    pub(super) fn read_layers(
        config: &ExecConfig,
        source: &dyn WeightSource,
        layers: usize,
    ) -> Result<Vec<Self>, ExecError> {
        let (hidden, width) = (config.model.hidden as usize, config.router.logit_width(config.model.experts));
        let one = |layer| {
            let (gate, norm) = (source.router_weights(layer)?, source.norm_weights(layer)?);
            ExecError::expect_size("numbers of a norm", norm.len(), hidden)?;
            ExecError::expect_size("numbers of a router", gate.weight.len(), width * hidden)?;
            let router = config.router.with_bias(&gate.selection);
            Ok(Self { router, gate, norm, shared: source.shared_weights(layer)? })
        };
        (0..layers).map(one).collect()
    }
}

/// Experts in use, per slot.
pub(super) type SlotWeights = Vec<Option<Arc<ExpertWeights>>>;

/// One rank's experts, planners and buffers.
#[derive(Debug)]
pub(super) struct CpuRank {
    /// Its number.
    pub(super) own: usize,
    /// `[layer][S + B]`: dynamic slots follow the static ones.
    pub(super) slots: Vec<SlotWeights>,
    /// Experts staged for a later switch, by layer and expert.
    pub(super) staged: HashMap<(usize, u32), Arc<ExpertWeights>>,
    /// One planner per layer; empty without a split.
    pub(super) planners: Vec<Option<Planner>>,
    pub(super) ffn: Ffn,
}

impl CpuRank {
    /// Builds the memory of a rank. `weights` returns the weights of an expert of a layer.
    pub(super) fn new(
        own: usize,
        config: &ExecConfig,
        placements: &[Placement],
        weights: impl Fn(usize, u32) -> Result<Arc<ExpertWeights>, ExecError>,
    ) -> Result<Self, ExecError> {
        let (mut slots, mut planners) = (Vec::new(), Vec::new());
        for (layer, placement) in placements.iter().enumerate() {
            planners.push(config.create_planner(placement)?);
            let of_slot = |&expert: &Option<u32>| expert.map(|expert| weights(layer, expert)).transpose();
            let experts = experts_of_rank(placement, own);
            let mut held = experts.iter().map(of_slot).collect::<Result<SlotWeights, _>>()?;
            held.resize(config.slots_per_rank(), None);
            slots.push(held);
        }
        Ok(Self { own, slots, staged: HashMap::new(), planners, ffn: Ffn::default() })
    }

    /// Returns the weights of an expert that this rank holds in a slot of a layer with `placement`.
    pub(super) fn held_weights(
        &self,
        placement: &Placement,
        layer: usize,
        expert: u32,
    ) -> Option<Arc<ExpertWeights>> {
        let at = experts_of_rank(placement, self.own).iter().position(|&held| held == Some(expert))?;
        self.slots.get(layer)?.get(at)?.clone()
    }

    /// Returns the weights for every slot of the next placement, held or staged.
    pub(super) fn next_slots(
        &self,
        [placement, next]: [&Placement; 2],
        layer: usize,
    ) -> Result<SlotWeights, ExecError> {
        let of_slot = |&expert: &Option<u32>| {
            let Some(expert) = expert else { return Ok(None) };
            let staged = || self.staged.get(&(layer, expert)).cloned();
            let ready = self.held_weights(placement, layer, expert).or_else(staged);
            ready.map(Some).ok_or(ExecError::NotStaged { layer, rank: self.own, expert })
        };
        let mut slots =
            experts_of_rank(next, self.own).iter().map(of_slot).collect::<Result<SlotWeights, _>>()?;
        slots.resize(self.slots[layer].len(), None);
        Ok(slots)
    }

    /// Switches a layer, whose staged experts are no longer needed.
    pub(super) fn activate(&mut self, layer: usize, slots: SlotWeights, planner: Option<Planner>) {
        self.slots[layer] = slots;
        self.planners[layer] = planner;
        self.staged.retain(|&(of, _), _| of != layer);
    }
}

/// The tokens of one source in one layer.
#[derive(Debug, Default)]
pub(super) struct SourceTokens {
    /// Normed tokens, `[token][H]`.
    pub(super) tokens: Vec<f32>,
    /// Mixtures that replace the tokens as input of the experts, for a soft router.
    pub(super) mixed: Option<Vec<f32>>,
    pub(super) routed: SourceRouting,
}

impl SourceTokens {
    /// Returns the input of the experts.
    pub(super) fn expert_input(&self) -> &[f32] {
        self.mixed.as_deref().unwrap_or(&self.tokens)
    }
}

/// Norms and routes the tokens `x` `[token][H]` of source `source`.
pub(super) fn route_source(
    layer: &ReplicatedLayer,
    source: usize,
    x: &[f32],
    routed: RoutingSource<'_>,
    args: &RouteArgs,
) -> Result<SourceTokens, ExecError> {
    let hidden = layer.norm.len();
    let tokens = rms_norm(x, &layer.norm);
    if let RoutingSource::Replay { ids, top_k, weights, also_run_router: and_route, .. } = routed {
        if and_route {
            std::hint::black_box(choose_experts(layer, &tokens, args)?);
        }
        ExecError::expect_size("ids of a source", ids[source].len(), tokens.len() / hidden * top_k)?;
        let weights = weights.map(|weights| weights[source].as_slice());
        let routing = replay_routing(&ids[source], weights, top_k, args.experts)?;
        return Ok(SourceTokens {
            tokens,
            mixed: None,
            routed: SourceRouting { routing, ..SourceRouting::default() },
        });
    }
    let routed = choose_experts(layer, &tokens, args)?;
    let mixed = routed.soft.as_ref().map(|soft| soft.mix_tokens(&tokens, hidden));
    Ok(SourceTokens { tokens, mixed, routed })
}

/// Applies the layer's router to normed tokens.
fn choose_experts(
    layer: &ReplicatedLayer,
    tokens: &[f32],
    args: &RouteArgs,
) -> Result<SourceRouting, ExecError> {
    let hidden = layer.norm.len();
    let (rows, width) = (tokens.len() / hidden, layer.router.logit_width(args.experts));
    let mut logits = vec![0f32; rows * width];
    times_transposed(tokens, &layer.gate.weight, &mut logits, [rows, width, hidden], &mut Vec::new());
    for row in logits.chunks_exact_mut(width) {
        row.iter_mut().zip(&layer.gate.bias).for_each(|(x, b)| *x += b);
    }
    let routing = layer.router.route_tokens(&logits, args)?;
    let soft = match layer.router {
        Router::Soft { slots } => Some(SoftMixtures::new(&logits, slots * args.experts)?),
        _ => None,
    };
    Ok(SourceRouting { logits, routing, soft, is_remote: false })
}

fn rms_norm(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for x in x.chunks_exact(weight.len()) {
        let square = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / x.len() as f64;
        let scale = (1.0 / (square + NORM_EPSILON).sqrt()) as f32;
        out.extend(x.iter().zip(weight).map(|(&x, &w)| x * scale * w));
    }
    out
}

/// Counts the tokens per expert, `[E]`. Every id is an expert or -1.
pub(super) fn count_tokens(ids: &[i32], experts: usize) -> Vec<u64> {
    let mut counts = vec![0; experts];
    ids.iter().filter_map(|&id| usize::try_from(id).ok()).for_each(|expert| counts[expert] += 1);
    counts
}

/// Returns the slot of the first replica of every expert; -1 stays -1.
pub(super) fn first_replicas(ids: &[i32], placement: &Placement) -> Vec<i64> {
    let slot = |&id: &i32| usize::try_from(id).map_or(-1, |expert| i64::from(placement.replicas(expert)[0]));
    ids.iter().map(slot).collect()
}

/// Checks that the given slots hold the experts that they should serve.
pub(crate) fn check_slots(
    rank: usize,
    ids: &[i32],
    slots: &[i64],
    placement: &Placement,
) -> Result<(), ExecError> {
    ExecError::expect_size("slots of a source", slots.len(), ids.len())?;
    for (position, (&expert, &slot)) in ids.iter().zip(slots).enumerate() {
        let held = usize::try_from(slot).ok().map(|slot| placement.slots().get(slot).copied().flatten());
        let right = match held {
            None => slot == -1 && expert == -1,
            Some(held) => held.is_some_and(|held| held as i32 == expert),
        };
        if !right {
            return Err(ExecError::WrongSlot { rank, position, slot, expert });
        }
    }
    Ok(())
}

/// Computes the layer's output for one source's tokens from the returned answers and the local result of the
/// shared expert.
pub(super) fn combine_answers(
    own: &SourceTokens,
    sent: &[Vec<u32>],
    answers: &[Matrix],
    shared: &[f32],
    hidden: usize,
) -> Vec<f32> {
    let mut y = vec![0f32; own.expert_input().len()];
    let mut row = vec![0f32; hidden];
    for (sent, answer) in sent.iter().zip(answers) {
        for (at, &token) in sent.iter().enumerate() {
            answer.read(at * hidden, &mut row);
            y[token as usize * hidden..][..hidden].iter_mut().zip(&row).for_each(|(y, &r)| *y += r);
        }
    }
    if let Some(soft) = &own.routed.soft {
        y = soft.unmix_results(&y, hidden);
    }
    y.iter_mut().zip(shared).for_each(|(y, s)| *y += s);
    y
}
