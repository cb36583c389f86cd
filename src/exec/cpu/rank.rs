//! One rank: its own memory, and what it does with it, phase by phase.
//!
//! A rank reads its own tokens, its own weights and the parcels that were sent to it, nothing else.

use super::ffn::Ffn;
use super::matmul::times_transposed;
use super::parcel::Parcel;
use crate::exec::backend::{Routed, SourceRouting};
use crate::exec::error::ExecError;
use crate::exec::reference::EPSILON;
use crate::exec::router::{RouteArgs, Router, Soft, replay};
use crate::exec::weights::{Dtype, ExpertWeights, GateWeights, Matrix};
use crate::model::Activation;
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

/// Experts in use, per slot.
pub(super) type Slots = Vec<Option<Arc<ExpertWeights>>>;

#[derive(Debug)]
pub(super) struct Rank {
    /// `[layer][S]`
    pub(super) slots: Vec<Slots>,
    /// By layer and expert: there for a switch to come.
    pub(super) staged: HashMap<(usize, u32), Arc<ExpertWeights>>,
    /// One per layer.
    pub(super) planners: Vec<Planner>,
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
    if let Routed::Replay { ids, top_k, weights, .. } = routed {
        ExecError::expect("ids of a source", ids[source].len(), tokens.len() / hidden * top_k)?;
        let weights = weights.map(|weights| weights[source].as_slice());
        let routing = replay(&ids[source], weights, top_k, args.experts)?;
        return Ok(Own { tokens, mixed: None, routed: SourceRouting { routing, soft: None } });
    }
    let (rows, width) = (tokens.len() / hidden, layer.router.width(args.experts));
    let mut logits = vec![0f32; rows * width];
    times_transposed(&tokens, &layer.gate.weight, &mut logits, [rows, width, hidden]);
    for row in logits.chunks_exact_mut(width) {
        row.iter_mut().zip(&layer.gate.bias).for_each(|(x, b)| *x += b);
    }
    let routing = layer.router.route(&logits, args)?;
    let soft = match layer.router {
        Router::Soft { slots } => Some(Soft::new(&logits, slots * args.experts)?),
        _ => None,
    };
    let mixed = soft.as_ref().map(|soft| soft.mix(&tokens, hidden));
    Ok(Own { tokens, mixed, routed: SourceRouting { routing, soft } })
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

/// Tokens per expert, `[E]`.
pub(super) fn count(ids: &[i32], experts: usize) -> Vec<u64> {
    let mut counts = vec![0; experts];
    ids.iter().filter_map(|&id| usize::try_from(id).ok()).for_each(|expert| counts[expert] += 1);
    counts
}

/// Checks that slots given from outside hold the experts that they are to serve.
pub(super) fn check_slots(
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

/// What a rank has to work on: the rows of all parcels, slot after slot.
#[derive(Debug)]
pub(super) struct Work {
    /// `[row][H]`
    x: Vec<f32>,
    /// Rows of slot `s` are `starts[s]..starts[s + 1]`.
    starts: Vec<usize>,
    /// Per parcel, per visit: its row in `x`.
    places: Vec<Vec<usize>>,
}

impl Work {
    /// Rows in all.
    pub(super) fn rows(&self) -> u64 {
        self.starts.last().map_or(0, |&rows| rows as u64)
    }

    /// Sorts what came from all sources by slot (a counting sort).
    pub(super) fn unpack(parcels: &[Parcel], slots: usize, hidden: usize) -> Self {
        let mut starts = vec![0usize; slots + 1];
        let visits = || parcels.iter().flat_map(|parcel| &parcel.visits);
        visits().for_each(|visit| starts[visit.slot as usize + 1] += 1);
        (0..slots).for_each(|slot| starts[slot + 1] += starts[slot]);
        let mut next = starts.clone();
        let mut x = vec![0f32; starts[slots] * hidden];
        let mut row = Vec::with_capacity(hidden);
        let mut places = Vec::with_capacity(parcels.len());
        for parcel in parcels {
            let mut widened = None;
            let mut of_parcel = Vec::with_capacity(parcel.visits.len());
            for visit in &parcel.visits {
                if widened != Some(visit.row) {
                    row.clear();
                    parcel.rows.read(visit.row as usize * hidden, hidden, &mut row);
                    widened = Some(visit.row);
                }
                let place = next[visit.slot as usize];
                next[visit.slot as usize] += 1;
                x[place * hidden..][..hidden].copy_from_slice(&row);
                of_parcel.push(place);
            }
            places.push(of_parcel);
        }
        Self { x, starts, places }
    }

    /// Runs every slot's expert on its rows; `[row][H]`.
    pub(super) fn run(&self, slots: &Slots, ffn: &mut Ffn, activation: Activation, hidden: usize) -> Vec<f32> {
        let mut results = Vec::with_capacity(self.x.len());
        let mut out = Vec::new();
        for (slot, rows) in slots.iter().zip(self.starts.windows(2)) {
            let x = &self.x[rows[0] * hidden..rows[1] * hidden];
            match slot {
                Some(expert) => {
                    ffn.run(expert, activation, x, hidden, &mut out);
                    results.extend_from_slice(&out[..x.len()]);
                }
                // Nothing comes to an empty slot.
                None => results.resize(results.len() + x.len(), 0.0),
            }
        }
        results
    }

    /// What goes back to each source: the weighted results of its tokens here, one row per row that it sent.
    pub(super) fn answers(
        &self,
        parcels: &[Parcel],
        results: &[f32],
        hidden: usize,
        dtype: Dtype,
    ) -> Vec<Matrix> {
        let answer = |(parcel, places): (&Parcel, &Vec<usize>)| {
            let mut sum = vec![0f32; parcel.rows.len()];
            for (visit, &place) in parcel.visits.iter().zip(places) {
                let result = &results[place * hidden..][..hidden];
                let row = &mut sum[visit.row as usize * hidden..][..hidden];
                row.iter_mut().zip(result).for_each(|(s, &y)| *s += visit.weight * y);
            }
            Matrix::new(dtype, sum)
        };
        parcels.iter().zip(&self.places).map(answer).collect()
    }
}

/// The layer's output for one source's tokens: what came back, and what the shared expert did here.
pub(super) fn combine(own: &Own, sent: &[Vec<u32>], answers: &[Matrix], shared: &[f32], hidden: usize) -> Vec<f32> {
    let mut y = vec![0f32; own.rows().len()];
    let mut row = Vec::with_capacity(hidden);
    for (sent, answer) in sent.iter().zip(answers) {
        for (at, &token) in sent.iter().enumerate() {
            row.clear();
            answer.read(at * hidden, hidden, &mut row);
            y[token as usize * hidden..][..hidden].iter_mut().zip(&row).for_each(|(y, &r)| *y += r);
        }
    }
    if let Some(soft) = &own.routed.soft {
        y = soft.unmix(&y, hidden);
    }
    y.iter_mut().zip(shared).for_each(|(y, s)| *y += s);
    y
}
