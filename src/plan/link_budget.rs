//! Re-planning of all layers together under a budget for the links of the ranks.
//!
//! In: a trace, a policy, the previous plan, the bytes that a rank may receive. Out: a plan that moves the
//! experts with the largest gain. Every layer is planned again with limits of 1, 2, 4, .. moves and without a
//! limit. Each choice is judged by its exact peaks ([`layer_candidates`]). Then moves are bought while every
//! receiver has room ([`choose_candidates`]).

use super::knapsack::convex_envelope;
use super::{BatchProvenance, LayerChange, Plan, PlanReport, ReplanRequest, SlotOption};
use crate::cluster::Cluster;
use crate::evaluate::{EvaluateError, Progress, busy_layers};
use crate::forecast::History;
use crate::place::{ExpertMove, PeakEvaluator, PlaceError, Placement, Policy};
use crate::trace::Trace;
use rayon::prelude::*;
use std::cmp::Reverse;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Limit on the transfers of one re-planning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkBudget {
    /// Bytes that any one rank may receive over all layers.
    pub bytes: u64,
    /// Bytes of one expert's weights in one layer.
    pub expert_bytes: u64,
}

/// Plan within a [`LinkBudget`].
#[derive(Debug, Clone)]
pub struct LinkedPlan {
    /// Plan with its figures.
    pub report: PlanReport,
    /// Changes, one entry per planned layer.
    pub changes: Vec<LayerChange>,
    /// Bytes that each rank receives over all layers, `[R]`.
    pub received: Vec<u64>,
    /// Sums of the exact peaks of all batches and layers, in tokens: with the previous placements, and as
    /// planned.
    pub peaks: [u64; 2],
}

/// Candidate placement of one layer.
#[derive(Debug)]
struct CandidatePlacement {
    placement: Placement,
    moves: Vec<ExpertMove>,
    /// Sum of the exact peaks of the layer's batches.
    peaks: u64,
}

impl Plan {
    /// Plans as [`Plan::replan`] does, except that no rank receives more than the budget's bytes over all
    /// layers. It chooses the moves that lower the peaks most. [`ReplanRequest::max_moves`] also applies per
    /// layer.
    ///
    /// A larger budget never yields a larger sum of peaks. With an unlimited budget each layer takes the best
    /// of the evaluated placements. On these batches it is never worse than the policy's own plan, and has no
    /// more moves.
    ///
    /// # Errors
    /// Fails as [`Plan::build`] does. Fails if ranks are lost or a horizon is set, which link budgets do not
    /// support. Fails if the previous plan lacks a layer of the trace, because all its weights would have to
    /// be transferred.
    pub fn replan_within_links(
        trace: &Trace,
        cluster: &Cluster,
        policy: &dyn Policy,
        (past, budget): (&ReplanRequest<'_>, LinkBudget),
        origin: BatchProvenance,
        progress: &dyn Progress,
    ) -> Result<LinkedPlan, EvaluateError> {
        let busy = busy_layers(trace)?;
        let id = |layer: usize| trace.layers()[layer];
        let named = |layer: usize| move |source| EvaluateError::Place { layer: id(layer), source };
        let refused = |reason: &str| PlaceError::Shape { policy: policy.name(), reason: reason.to_owned() };
        if !past.lost.is_empty() || past.horizon.is_some() {
            let reason = "a link budget allows neither lost ranks nor a horizon";
            return Err(named(busy[0])(refused(reason)));
        }
        let done = AtomicUsize::new(0);
        let tried: Vec<(Vec<CandidatePlacement>, Duration)> = busy
            .par_iter()
            .map(|&layer| {
                let begun = Instant::now();
                let before = past.previous.layers.iter().find(|planned| planned.layer == id(layer));
                let reason = "the previous plan lacks this layer: a link budget covers moves, not new layers";
                let before = before.ok_or_else(|| named(layer)(refused(reason)))?;
                let history = History::from_trace(trace, layer);
                let choices = layer_candidates(&history, cluster, policy, &before.placement, past.max_moves)
                    .map_err(named(layer))?;
                progress.report_layers(done.fetch_add(1, Ordering::Relaxed) + 1, busy.len());
                Ok((choices, begun.elapsed()))
            })
            .collect::<Result<_, EvaluateError>>()?;
        let time: Duration = tried.iter().map(|(_, time)| *time).sum();
        let layers: Vec<Vec<CandidatePlacement>> = tried.into_iter().map(|(choices, _)| choices).collect();
        let copies = budget.bytes.checked_div(budget.expert_bytes).unwrap_or(u64::MAX);
        let chosen = choose_candidates(&layers, cluster.ranks(), copies);
        let mut made = Self::build_with(trace, cluster, &policy.name(), origin, &(), |layer, history| {
            match busy.iter().position(|&other| other == layer) {
                Some(at) => Ok(layers[at][chosen[at]].placement.clone()),
                None => policy.place(history, cluster),
            }
        })?;
        made.plan_time += time;
        let bought = || chosen.iter().zip(&layers).map(|(&at, choices)| &choices[at]);
        let mut received = vec![0u64; cluster.ranks()];
        for m in bought().flat_map(|choice| &choice.moves) {
            received[m.to as usize] += budget.expert_bytes;
        }
        let sum = |peaks: &mut dyn Iterator<Item = u64>| peaks.fold(0, u64::saturating_add);
        let peaks = [
            sum(&mut layers.iter().map(|choices| choices[0].peaks)),
            sum(&mut bought().map(|choice| choice.peaks)),
        ];
        let changes = bought()
            .map(|choice| LayerChange { moves: choice.moves.clone(), ..LayerChange::default() })
            .collect();
        Ok(LinkedPlan { report: made, changes, received, peaks })
    }
}

/// Returns the candidates of a layer by ascending moves: the current placement, those within 1, 2, 4, ..
/// moves, and the policy's unlimited one.
fn layer_candidates(
    history: &History<'_>,
    cluster: &Cluster,
    policy: &dyn Policy,
    before: &Placement,
    max_moves: Option<usize>,
) -> Result<Vec<CandidatePlacement>, PlaceError> {
    let mut scenarios = PeakEvaluator::from_history(history, usize::MAX);
    let mut choice = |placement: Placement| -> Result<CandidatePlacement, PlaceError> {
        let peaks = scenarios.sum_for_placement(&placement)?;
        Ok(CandidatePlacement { moves: placement.moves(before), placement, peaks })
    };
    let last = choice(policy.replan(history, cluster, before, max_moves)?)?;
    let mut all = vec![choice(before.clone())?];
    let limits = std::iter::successors(Some(1usize), |limit| limit.checked_mul(2));
    for limit in limits.take_while(|&limit| limit < last.moves.len()) {
        all.push(choice(policy.replan(history, cluster, before, Some(limit))?)?);
    }
    all.push(last);
    // The sort is stable, so the current placement stays before any other without a move.
    all.sort_by_key(|choice| (choice.moves.len(), choice.peaks));
    all.dedup_by_key(|choice| choice.moves.len());
    Ok(all)
}

/// Chooses a candidate for each layer, by index, so that no rank receives more than `copies` experts.
///
/// It takes the best result, by the sum of peaks, of [`fill_budget`] for this budget and every smaller one. A
/// larger budget is therefore never worse, although filling alone may be.
fn choose_candidates(layers: &[Vec<CandidatePlacement>], ranks: usize, copies: u64) -> Vec<usize> {
    let order = candidate_order(layers);
    // Upper limit of what a rank receives, reached if every layer takes the candidate that gives it most.
    let room: u64 =
        layers.iter().map(|c| c.iter().map(|c| max_received(&c.moves, ranks)).max().unwrap_or(0)).sum();
    let peaks = |at: &[usize]| -> u128 { at.iter().zip(layers).map(|(&k, c)| u128::from(c[k].peaks)).sum() };
    let moves = |at: &[usize]| -> usize { at.iter().zip(layers).map(|(&k, c)| c[k].moves.len()).sum() };
    let mut best = vec![0; layers.len()];
    for copies in 1..=copies.min(room) {
        let next = fill_budget(layers, &order, ranks, copies);
        if (peaks(&next), moves(&next)) < (peaks(&best), moves(&best)) {
            best = next;
        }
    }
    best
}

/// Buys the candidates in the given order and skips those that do not fit.
fn fill_budget(
    layers: &[Vec<CandidatePlacement>],
    order: &[(usize, usize)],
    ranks: usize,
    copies: u64,
) -> Vec<usize> {
    let mut at = vec![0usize; layers.len()];
    let mut received = vec![0u64; ranks];
    for &(layer, to) in order {
        let (old, new) = (&layers[layer][at[layer]], &layers[layer][to]);
        if new.peaks >= old.peaks {
            continue;
        }
        let mut next = received.clone();
        old.moves.iter().for_each(|m| next[m.to as usize] -= 1);
        new.moves.iter().for_each(|m| next[m.to as usize] += 1);
        if next.iter().all(|&received| received <= copies) {
            (received, at[layer]) = (next, to);
        }
    }
    at
}

/// Returns the candidates, as (layer, index), by tokens saved per move. Those on each layer's lower convex
/// envelope come first, by their savings against the previous one. Then come all, by their savings against no
/// move, to fill the rest of the budget.
fn candidate_order(layers: &[Vec<CandidatePlacement>]) -> Vec<(usize, usize)> {
    let mut steps = Vec::new();
    for (layer, choices) in layers.iter().enumerate() {
        let levels: Vec<SlotOption> =
            choices.iter().map(|c| SlotOption { cost: c.moves.len(), peaks: c.peaks }).collect();
        let envelope = convex_envelope(&levels);
        let pairs = envelope.windows(2).map(|pair| (0, pair[0], pair[1]));
        for (later, from, to) in pairs.chain((1..levels.len()).map(|to| (1, 0, to))) {
            let saved = u128::from(levels[from].peaks.saturating_sub(levels[to].peaks));
            // The unit is 2⁻³² of a token per move.
            let per_move = (saved << 32) / (levels[to].cost - levels[from].cost).max(1) as u128;
            steps.push((later, Reverse(per_move), layer, to));
        }
    }
    steps.sort_unstable();
    steps.into_iter().map(|(_, _, layer, to)| (layer, to)).collect()
}

/// Returns the highest number of experts that one rank receives.
fn max_received(moves: &[ExpertMove], ranks: usize) -> u64 {
    let mut received = vec![0u64; ranks];
    moves.iter().for_each(|m| received[m.to as usize] += 1);
    received.into_iter().max().unwrap_or(0)
}
