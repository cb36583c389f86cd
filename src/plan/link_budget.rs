//! Re-planning of all layers together under a budget for the links of the ranks.
//!
//! In: a trace, a policy, the previous plan, the bytes that a rank may receive. Out: a plan that moves the
//! experts with the largest gain. Every layer is planned again with limits of 1, 2, 4, .. moves and without a
//! limit. Each choice is judged by its exact peaks ([`layer_candidates`]). Then moves are bought while every
//! receiver has room ([`choose_candidates`]).

use super::knapsack::convex_envelope;
use super::layer_stage::{LayerStage, PlacedLayer};
use super::{ConstraintError, LayerChange, Plan, PlanReport, PlanRequest, PlanRequestError, SlotOption};
use crate::evaluate::{EvaluateError, Progress, busy_layers};
use crate::forecast::History;
use crate::place::{ExpertMove, PeakEvaluator, PlaceError, Placement};
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

/// Use of a [`LinkBudget`] by a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkUse {
    /// Bytes that each rank receives over all layers, `[R]`.
    pub received: Vec<u64>,
    /// Sum of the exact peaks of all batches and layers with the fewest moves, in tokens.
    pub peaks_before: u64,
    /// Sum of the exact peaks of all batches and layers as planned, in tokens.
    pub peaks_after: u64,
}

/// Candidate placement of one layer.
#[derive(Debug)]
struct CandidatePlacement {
    placement: Placement,
    change: LayerChange,
    /// Sum of the exact peaks of the layer's batches.
    peaks: u64,
}

impl PlanRequest<'_> {
    /// Plans so that no rank receives more than the budget's bytes over all layers. It chooses the moves that
    /// lower the peaks most. The limit of moves also applies per layer.
    ///
    /// A larger budget never yields a larger sum of peaks. With an unlimited budget each layer takes the best
    /// of the evaluated placements. On these batches it is never worse than the policy's own plan, and has no
    /// more moves.
    pub(super) fn run_within_links(
        &self,
        stage: &LayerStage<'_>,
        budget: LinkBudget,
        progress: &dyn Progress,
    ) -> Result<PlanReport, PlanRequestError> {
        let (trace, ranks) = (self.trace, self.cluster.ranks());
        let busy = busy_layers(trace)?;
        let id = |layer: usize| trace.layers()[layer];
        if let Some(&layer) = busy.iter().find(|&&layer| stage.previous_layer(layer).is_none()) {
            return Err(ConstraintError::NewLayer(id(layer)).into());
        }
        let done = AtomicUsize::new(0);
        let tried: Vec<(Vec<CandidatePlacement>, Duration)> = busy
            .par_iter()
            .map(|&layer| {
                let begun = Instant::now();
                let choices = self
                    .layer_candidates(stage, layer)
                    .map_err(|source| EvaluateError::Place { layer: id(layer), source })?;
                progress.report_layers(done.fetch_add(1, Ordering::Relaxed) + 1, busy.len());
                Ok((choices, begun.elapsed()))
            })
            .collect::<Result<_, EvaluateError>>()?;
        let time: Duration = tried.iter().map(|(_, time)| *time).sum();
        let layers: Vec<Vec<CandidatePlacement>> = tried.into_iter().map(|(choices, _)| choices).collect();
        let copies = budget.bytes.checked_div(budget.expert_bytes).unwrap_or(u64::MAX);
        let received = |chosen: &mut dyn Iterator<Item = &CandidatePlacement>| {
            let mut received = vec![0u64; ranks];
            chosen.flat_map(|choice| &choice.change.moves).for_each(|m| received[m.to as usize] += 1);
            received
        };
        let necessary = received(&mut layers.iter().map(|choices| &choices[0]));
        let (most, rank) = (0..ranks).map(|rank| (necessary[rank], rank)).max().unwrap_or((0, 0));
        if most > copies {
            let needed = most.saturating_mul(budget.expert_bytes);
            return Err(ConstraintError::LinkBudget { rank, needed, budget: budget.bytes }.into());
        }
        let chosen = choose_candidates(&layers, &necessary, copies);
        let place = |layer: usize, history: &History<'_>| match busy.iter().position(|&other| other == layer)
        {
            Some(at) => Ok(layers[at][chosen[at]].placement.clone()),
            None => Ok(stage.place_layer(layer, history, &self.cluster, Some(0))?.placement),
        };
        let mut report =
            Plan::evaluate_layers(trace, &self.cluster, &stage.name(), &self.origin, &(), place)?;
        report.plan_time += time;
        let bought = || chosen.iter().zip(&layers).map(|(&at, choices)| &choices[at]);
        let sum = |peaks: &mut dyn Iterator<Item = u64>| peaks.fold(0, u64::saturating_add);
        report.links = Some(LinkUse {
            received: received(&mut bought())
                .into_iter()
                .map(|count| count.saturating_mul(budget.expert_bytes))
                .collect(),
            peaks_before: sum(&mut layers.iter().map(|choices| choices[0].peaks)),
            peaks_after: sum(&mut bought().map(|choice| choice.peaks)),
        });
        report.changes = bought().map(|choice| choice.change.clone()).collect();
        Ok(report)
    }

    /// Returns the candidates of a layer by ascending moves: the one with the fewest, those within 1, 2, 4,
    /// .. moves, and the unlimited one.
    fn layer_candidates(
        &self,
        stage: &LayerStage<'_>,
        layer: usize,
    ) -> Result<Vec<CandidatePlacement>, PlaceError> {
        let (history, cluster) = (History::from_trace(self.trace, layer), &self.cluster);
        let mut scenarios =
            PeakEvaluator::from_history(&history, usize::MAX).with_speeds(&self.constraints.speeds);
        let mut choice = |placed: PlacedLayer| -> Result<CandidatePlacement, PlaceError> {
            let peaks = scenarios.sum_for_placement(&placed.placement)?;
            Ok(CandidatePlacement { change: placed.change, placement: placed.placement, peaks })
        };
        let last = choice(stage.place_layer(layer, &history, cluster, self.constraints.max_moves)?)?;
        let least = choice(stage.place_with_fewest_moves(layer, &history, cluster)?)?;
        let (fewest, most) = (least.change.moves.len(), last.change.moves.len());
        let mut all = vec![least];
        let limits = std::iter::successors(Some(1usize), |limit| limit.checked_mul(2));
        for limit in limits.take_while(|&limit| limit < most).filter(|&limit| limit > fewest) {
            match stage.place_layer(layer, &history, cluster, Some(limit)) {
                Err(PlaceError::TooFewMoves { .. }) => {}
                placed => all.push(choice(placed?)?),
            }
        }
        all.push(last);
        // The sort is stable, so the current placement stays before any other without a move.
        all.sort_by_key(|choice| (choice.change.moves.len(), choice.peaks));
        all.dedup_by_key(|choice| choice.change.moves.len());
        Ok(all)
    }
}

/// Chooses a candidate for each layer, by index, so that no rank receives more than `copies` experts.
///
/// It takes the best result, by the sum of peaks, of [`fill_budget`] for this budget and every smaller one. A
/// larger budget is therefore never worse, although filling alone may be.
fn choose_candidates(layers: &[Vec<CandidatePlacement>], necessary: &[u64], copies: u64) -> Vec<usize> {
    let order = candidate_order(layers);
    // Upper limit of what a rank receives, reached if every layer takes the candidate that gives it most.
    let room: u64 = layers
        .iter()
        .map(|c| c.iter().map(|c| max_received(&c.change.moves, necessary.len())).max().unwrap_or(0))
        .sum();
    let peaks = |at: &[usize]| -> u128 { at.iter().zip(layers).map(|(&k, c)| u128::from(c[k].peaks)).sum() };
    let moves =
        |at: &[usize]| -> usize { at.iter().zip(layers).map(|(&k, c)| c[k].change.moves.len()).sum() };
    let mut best = vec![0; layers.len()];
    let least = necessary.iter().copied().max().unwrap_or(0).max(1);
    for copies in least..=copies.min(room) {
        let next = fill_budget(layers, &order, necessary, copies);
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
    necessary: &[u64],
    copies: u64,
) -> Vec<usize> {
    let mut at = vec![0usize; layers.len()];
    let mut received = necessary.to_vec();
    for &(layer, to) in order {
        let (old, new) = (&layers[layer][at[layer]], &layers[layer][to]);
        if new.peaks >= old.peaks {
            continue;
        }
        let mut next = received.clone();
        old.change.moves.iter().for_each(|m| next[m.to as usize] -= 1);
        new.change.moves.iter().for_each(|m| next[m.to as usize] += 1);
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
            choices.iter().map(|c| SlotOption { cost: c.change.moves.len(), peaks: c.peaks }).collect();
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
