//! One rank: its own memory, and what it does with it, phase by phase.
//!
//! A rank reads its own tokens, its own weights and the parcels that were sent to it, nothing else.

use super::ffn::Ffn;
use super::matmul::times_transposed;
use crate::exec::backend::{ExecConfig, Routed, SourceRouting};
use crate::exec::error::ExecError;
use crate::exec::reference::EPSILON;
use crate::exec::router::{RouteArgs, Router, Soft, replay};
use crate::exec::weights::{ExpertWeights, GateWeights, Matrix, WeightSource};
use crate::place::Placement;
use crate::planner::Planner;
use std::collections::HashMap;
use std::sync::Arc;

/// What every rank has of one layer, the same on all.
#[derive(Debug)]
pub(super) struct Replicated {
    pub(super) router: Router,
    pub(super) gate: GateWeights,
    pub(super) norm: Vec<f32>,
    pub(super) shared: Option<ExpertWeights>,
}

impl Replicated {
    /// Bytes of it, on every rank: norm, router, shared expert.
    pub(super) fn bytes(&self) -> u64 {
        let numbers = 4 * (self.norm.len() + self.gate.bias.len()) + 8 * self.gate.selection.len();
        numbers as u64 + self.gate.weight.bytes() + self.shared.as_ref().map_or(0, ExpertWeights::bytes)
    }

    /// That of the first `layers` layers.
    pub(super) fn read(
        config: &ExecConfig,
        source: &dyn WeightSource,
        layers: usize,
    ) -> Result<Vec<Self>, ExecError> {
        let (hidden, width) = (config.model.hidden as usize, config.router.width(config.model.experts));
        let one = |layer| {
            let (gate, norm) = (source.gate(layer)?, source.norm(layer)?);
            ExecError::expect("numbers of a norm", norm.len(), hidden)?;
            ExecError::expect("numbers of a router", gate.weight.len(), width * hidden)?;
            let router = config.router.with_bias(&gate.selection);
            Ok(Self { router, gate, norm, shared: source.shared(layer)? })
        };
        (0..layers).map(one).collect()
    }
}

/// Experts in use, per slot.
pub(super) type Slots = Vec<Option<Arc<ExpertWeights>>>;

#[derive(Debug)]
pub(super) struct Rank {
    /// `[layer][S]`
    pub(super) slots: Vec<Slots>,
    /// By layer and expert: there for a switch to come.
    pub(super) staged: HashMap<(usize, u32), Arc<ExpertWeights>>,
    /// One per layer, where there is anything to plan.
    pub(super) planners: Vec<Option<Planner>>,
    pub(super) ffn: Ffn,
}

/// A source's tokens of one layer.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Normed tokens, `[token][H]`.
    pub(super) tokens: Vec<f32>,
    /// Mixtures that the experts work on instead, for a soft router.
    pub(super) mixed: Option<Vec<f32>>,
    pub(super) routed: SourceRouting,
}

impl Own {
    /// What the experts work on.
    pub(super) fn rows(&self) -> &[f32] {
        self.mixed.as_deref().unwrap_or(&self.tokens)
    }
}

/// Norms and routes the tokens `x` `[token][H]` of source `source`.
pub(super) fn route(
    layer: &Replicated,
    source: usize,
    x: &[f32],
    routed: Routed<'_>,
    args: &RouteArgs,
) -> Result<Own, ExecError> {
    let hidden = layer.norm.len();
    let tokens = norm(x, &layer.norm);
    if let Routed::Replay { ids, top_k, weights, and_route, .. } = routed {
        if and_route {
            std::hint::black_box(choose(layer, &tokens, args)?);
        }
        ExecError::expect("ids of a source", ids[source].len(), tokens.len() / hidden * top_k)?;
        let weights = weights.map(|weights| weights[source].as_slice());
        let routing = replay(&ids[source], weights, top_k, args.experts)?;
        return Ok(Own {
            tokens,
            mixed: None,
            routed: SourceRouting { routing, ..SourceRouting::default() },
        });
    }
    let routed = choose(layer, &tokens, args)?;
    let mixed = routed.soft.as_ref().map(|soft| soft.mix(&tokens, hidden));
    Ok(Own { tokens, mixed, routed })
}

/// Lets the layer's router choose for normed tokens.
fn choose(layer: &Replicated, tokens: &[f32], args: &RouteArgs) -> Result<SourceRouting, ExecError> {
    let hidden = layer.norm.len();
    let (rows, width) = (tokens.len() / hidden, layer.router.width(args.experts));
    let mut logits = vec![0f32; rows * width];
    times_transposed(tokens, &layer.gate.weight, &mut logits, [rows, width, hidden], &mut Vec::new());
    for row in logits.chunks_exact_mut(width) {
        row.iter_mut().zip(&layer.gate.bias).for_each(|(x, b)| *x += b);
    }
    let routing = layer.router.route(&logits, args)?;
    let soft = match layer.router {
        Router::Soft { slots } => Some(Soft::new(&logits, slots * args.experts)?),
        _ => None,
    };
    Ok(SourceRouting { logits, routing, soft, elsewhere: false })
}

fn norm(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for x in x.chunks_exact(weight.len()) {
        let square = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / x.len() as f64;
        let scale = (1.0 / (square + EPSILON).sqrt()) as f32;
        out.extend(x.iter().zip(weight).map(|(&x, &w)| x * scale * w));
    }
    out
}

/// Tokens per expert, `[E]`; every id is an expert or -1.
pub(super) fn count(ids: &[i32], experts: usize) -> Vec<u64> {
    let mut counts = vec![0; experts];
    ids.iter().filter_map(|&id| usize::try_from(id).ok()).for_each(|expert| counts[expert] += 1);
    counts
}

/// The slot of the first copy of every expert; -1 stays -1.
pub(super) fn first_copies(ids: &[i32], placement: &Placement) -> Vec<i64> {
    let slot = |&id: &i32| usize::try_from(id).map_or(-1, |expert| i64::from(placement.copies(expert)[0]));
    ids.iter().map(slot).collect()
}

/// Checks that slots given from outside hold the experts that they are to serve.
pub(in crate::exec) fn check_slots(
    rank: usize,
    ids: &[i32],
    slots: &[i64],
    placement: &Placement,
) -> Result<(), ExecError> {
    ExecError::expect("slots of a source", slots.len(), ids.len())?;
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

/// The layer's output for one source's tokens: what came back, and what the shared expert did here.
pub(super) fn combine(
    own: &Own,
    sent: &[Vec<u32>],
    answers: &[Matrix],
    shared: &[f32],
    hidden: usize,
) -> Vec<f32> {
    let mut y = vec![0f32; own.rows().len()];
    let mut row = vec![0f32; hidden];
    for (sent, answer) in sent.iter().zip(answers) {
        for (at, &token) in sent.iter().enumerate() {
            answer.read(at * hidden, &mut row);
            y[token as usize * hidden..][..hidden].iter_mut().zip(&row).for_each(|(y, &r)| *y += r);
        }
    }
    if let Some(soft) = &own.routed.soft {
        y = soft.unmix(&y, hidden);
    }
    y.iter_mut().zip(shared).for_each(|(y, s)| *y += s);
    y
}
