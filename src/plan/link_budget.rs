//! Planning again within what the links of the ranks may carry, all layers together.
//!
//! In: a trace, a policy, the previous plan, the bytes that a rank may receive. Out: the plan, in which the layers move that
//! gain most. Every layer is planned again with room for 1, 2, 4, .. moves and for as many as the policy wants, each judged by
//! its exact peaks ([`choices`]). Then moves are bought as long as every receiver has room ([`buy`]).

use super::budget::envelope;
use super::{Changed, Level, Made, Origin, Past, Plan};
use crate::cluster::Cluster;
use crate::forecast::History;
use crate::place::{Move, PlaceError, Placement, Policy, Scenarios};
use crate::simulate::{Progress, SimulateError, busy_layers};
use crate::trace::Trace;
use rayon::prelude::*;
use std::cmp::Reverse;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What one re-planning may copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkBudget {
    /// Bytes that any one rank may receive, over all layers.
    pub bytes: u64,
    /// Bytes of one expert's weights in one layer.
    pub expert_bytes: u64,
}

/// A plan within a [`LinkBudget`].
#[derive(Debug, Clone)]
pub struct Linked {
    /// The plan.
    pub made: Made,
    /// What changes, one entry per planned layer.
    pub changes: Vec<Changed>,
    /// Bytes that each rank receives, over all layers, `[R]`.
    pub received: Vec<u64>,
    /// Sum of the exact peaks of all batches and layers, in tokens: kept as they were, and as planned.
    pub peaks: [u64; 2],
}

/// One way of planning a layer again.
#[derive(Debug)]
struct Choice {
    placement: Placement,
    moves: Vec<Move>,
    /// Sum of the exact peaks of its batches.
    peaks: u64,
}

impl Plan {
    /// As [`Plan::make_after`], but no rank receives more than the budget's bytes over all layers, and moves are made where
    /// they lower the peaks most. [`Past::max_moves`] holds per layer beside it.
    ///
    /// More budget never gives a larger sum of peaks. With room for everything each layer takes the best of the placements
    /// that were tried, which is never worse on these batches than what the policy alone would plan, and has no more moves.
    ///
    /// # Errors
    /// As [`Plan::make`]; where ranks are lost or moves have to pay, which this does not plan; where a layer of the trace is
    /// not in the previous plan, as all its weights would have to be copied.
    pub fn make_linked(
        trace: &Trace,
        cluster: &Cluster,
        policy: &dyn Policy,
        (past, budget): (&Past<'_>, LinkBudget),
        origin: Origin,
        progress: &dyn Progress,
    ) -> Result<Linked, SimulateError> {
        let busy = busy_layers(trace)?;
        let id = |layer: usize| trace.layers()[layer];
        let named = |layer: usize| move |source| SimulateError::Place { layer: id(layer), source };
        let refused = |reason: &str| PlaceError::Shape { policy: policy.name(), reason: reason.to_owned() };
        if !past.lost.is_empty() || past.horizon.is_some() {
            let reason = "a link budget is planned for without losses and without a horizon";
            return Err(named(busy[0])(refused(reason)));
        }
        let done = AtomicUsize::new(0);
        let tried: Vec<(Vec<Choice>, Duration)> = busy
            .par_iter()
            .map(|&layer| {
                let begun = Instant::now();
                let before = past.previous.layers.iter().find(|planned| planned.layer == id(layer));
                let reason = "the previous plan does not have it: a link budget covers moves, not new layers";
                let before = before.ok_or_else(|| named(layer)(refused(reason)))?;
                let history = History::whole(trace, layer);
                let choices = choices(&history, cluster, policy, &before.placement, past.max_moves)
                    .map_err(named(layer))?;
                progress.layers(done.fetch_add(1, Ordering::Relaxed) + 1, busy.len());
                Ok((choices, begun.elapsed()))
            })
            .collect::<Result<_, SimulateError>>()?;
        let time: Duration = tried.iter().map(|(_, time)| *time).sum();
        let layers: Vec<Vec<Choice>> = tried.into_iter().map(|(choices, _)| choices).collect();
        let copies = budget.bytes.checked_div(budget.expert_bytes).unwrap_or(u64::MAX);
        let chosen = buy(&layers, cluster.ranks(), copies);
        let mut made =
            Self::make_by(trace, cluster, &policy.name(), origin, &(), |layer, history| {
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
        let changes =
            bought().map(|choice| Changed { moves: choice.moves.clone(), ..Changed::default() }).collect();
        Ok(Linked { made, changes, received, peaks })
    }
}

/// What may be done with a layer, by ascending moves: nothing; something within 1, 2, 4, .. moves; what the policy wants.
fn choices(
    history: &History<'_>,
    cluster: &Cluster,
    policy: &dyn Policy,
    before: &Placement,
    max_moves: Option<usize>,
) -> Result<Vec<Choice>, PlaceError> {
    let mut scenarios = Scenarios::recent(history, usize::MAX);
    let mut choice = |placement: Placement| -> Result<Choice, PlaceError> {
        let peaks = scenarios.of_placement(&placement)?;
        Ok(Choice { moves: placement.moves(before), placement, peaks })
    };
    let last = choice(policy.replan(history, cluster, before, max_moves)?)?;
    let mut all = vec![choice(before.clone())?];
    let limits = std::iter::successors(Some(1usize), |limit| limit.checked_mul(2));
    for limit in limits.take_while(|&limit| limit < last.moves.len()) {
        all.push(choice(policy.replan(history, cluster, before, Some(limit))?)?);
    }
    all.push(last);
    // Stable: what is in force stays before anything else without a move.
    all.sort_by_key(|choice| (choice.moves.len(), choice.peaks));
    all.dedup_by_key(|choice| choice.moves.len());
    Ok(all)
}

/// Which of its choices each layer gets, by index, so that no rank receives more than `copies` experts.
///
/// The best, by the sum of peaks, of what [`fill`] makes of every smaller budget and this one: so that a larger budget is
/// never worse, although filling alone may be.
fn buy(layers: &[Vec<Choice>], ranks: usize, copies: u64) -> Vec<usize> {
    let order = order(layers);
    // More than a rank receives if every layer takes the choice that gives it most.
    let room: u64 =
        layers.iter().map(|c| c.iter().map(|c| busiest(&c.moves, ranks)).max().unwrap_or(0)).sum();
    let peaks = |at: &[usize]| -> u128 { at.iter().zip(layers).map(|(&k, c)| u128::from(c[k].peaks)).sum() };
    let moves = |at: &[usize]| -> usize { at.iter().zip(layers).map(|(&k, c)| c[k].moves.len()).sum() };
    let mut best = vec![0; layers.len()];
    for copies in 1..=copies.min(room) {
        let next = fill(layers, &order, ranks, copies);
        if (peaks(&next), moves(&next)) < (peaks(&best), moves(&best)) {
            best = next;
        }
    }
    best
}

/// Buys step after step in this order, what does not fit left out.
fn fill(layers: &[Vec<Choice>], order: &[(usize, usize)], ranks: usize, copies: u64) -> Vec<usize> {
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

/// The choices, as (layer, index), by tokens saved per move: first those on each layer's lower convex envelope, by what they
/// save against the one before; then all, by what they save against nothing moved, to fill up what is left.
fn order(layers: &[Vec<Choice>]) -> Vec<(usize, usize)> {
    let mut steps = Vec::new();
    for (layer, choices) in layers.iter().enumerate() {
        let levels: Vec<Level> =
            choices.iter().map(|c| Level { cost: c.moves.len(), peaks: c.peaks }).collect();
        let envelope = envelope(&levels);
        let pairs = envelope.windows(2).map(|pair| (0, pair[0], pair[1]));
        for (later, from, to) in pairs.chain((1..levels.len()).map(|to| (1, 0, to))) {
            let saved = u128::from(levels[from].peaks.saturating_sub(levels[to].peaks));
            // In 2⁻³² of a token per move.
            let per_move = (saved << 32) / (levels[to].cost - levels[from].cost).max(1) as u128;
            steps.push((later, Reverse(per_move), layer, to));
        }
    }
    steps.sort_unstable();
    steps.into_iter().map(|(_, _, layer, to)| (layer, to)).collect()
}

/// Most experts that one rank receives.
fn busiest(moves: &[Move], ranks: usize) -> u64 {
    let mut received = vec![0u64; ranks];
    moves.iter().for_each(|m| received[m.to as usize] += 1);
    received.into_iter().max().unwrap_or(0)
}
