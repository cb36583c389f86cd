//! What placements and splits achieve for another goal than tokens on equal ranks.
//!
//! In: the placements of a simulation and a [`Goal`]. Out: one [`Reached`] per policy and way of splitting: evenly, by tokens
//! alone, and aimed at the goal; all measured by the goal.

use super::{Config, Outcome, SimulateError, Summary};
use crate::place::Placement;
use crate::split::{Goal, GoalSplitter, Method, Peak, Split, SplitError, Splitter};
use crate::trace::Trace;
use rayon::prelude::*;
use std::time::Instant;

/// How batches were split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// Evenly over all copies.
    Even,
    /// By tokens alone, on equal ranks.
    Tokens,
    /// For the goal.
    Goal,
}

/// What all judged batches cost, each in units of its own perfect spread: 1 is perfect.
#[derive(Debug, Clone, PartialEq)]
pub struct Reached {
    /// Index into [`Outcome::planned`].
    pub planned: usize,
    /// How batches were split.
    pub aim: Aim,
    /// The busiest rank.
    pub imbalance: Summary,
    /// What no split on this placement can be below.
    pub bound: Summary,
    /// Share of the batches at their bound.
    pub at_bound: f64,
    /// Microseconds per split.
    pub split_us: Summary,
}

/// One batch, split one way.
#[derive(Debug, Clone, Copy)]
struct One {
    imbalance: f64,
    bound: f64,
    at_bound: bool,
    us: f64,
}

/// Splits the judged steps of every placement in three ways. `top_k` is how many experts a token visits, from which the
/// tokens of a shared expert are told.
///
/// # Errors
/// When the goal does not fit the cluster, or a split fails.
pub fn goals(
    trace: &Trace,
    config: &Config,
    outcome: &Outcome,
    goal: &Goal,
    top_k: u64,
) -> Result<Vec<Reached>, SimulateError> {
    let mut rows = Vec::new();
    for (planned, policy) in outcome.planned.iter().enumerate() {
        let layers: Vec<[Vec<One>; 3]> = outcome
            .layers
            .par_iter()
            .zip(&policy.placements)
            .map(|(&layer, placement)| one_layer(trace, config, layer, placement, goal, top_k.max(1)))
            .collect::<Result<_, _>>()?;
        for (index, aim) in [Aim::Even, Aim::Tokens, Aim::Goal].into_iter().enumerate() {
            let all = || layers.iter().flat_map(|layer| &layer[index]);
            rows.push(Reached {
                planned,
                aim,
                imbalance: Summary::of(all().map(|one| one.imbalance).collect()),
                bound: Summary::of(all().map(|one| one.bound).collect()),
                at_bound: all().filter(|one| one.at_bound).count() as f64 / all().count().max(1) as f64,
                split_us: Summary::of(all().map(|one| one.us).collect()),
            });
        }
    }
    Ok(rows)
}

fn one_layer(
    trace: &Trace,
    config: &Config,
    layer: usize,
    placement: &Placement,
    goal: &Goal,
    top_k: u64,
) -> Result<[Vec<One>; 3], SimulateError> {
    let failed = |step: usize| {
        move |source: SplitError| SimulateError::Split {
            layer: trace.layers()[layer],
            step: trace.steps().get(step).cloned().unwrap_or_default(),
            source,
        }
    };
    let first = config.judge_on.start;
    let mut plain = [Method::Even, Method::Exact]
        .map(|method| Splitter::new(placement.clone(), method))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed(first))?;
    let mut aimed = GoalSplitter::new(placement.clone(), goal.clone()).map_err(failed(first))?;
    let mut split = Split::default();
    let mut all: [Vec<One>; 3] = Default::default();
    for step in config.judge_on.clone() {
        let loads = trace.loads(step, layer);
        let total: u64 = loads.iter().sum();
        if total == 0 {
            continue;
        }
        let tokens = total.div_ceil(top_k);
        let mean = aimed.mean_cost(loads, tokens);
        let begun = Instant::now();
        let best = aimed.split(loads, tokens).map_err(failed(step))?;
        let taken = begun.elapsed().as_secs_f64();
        let one = |peak: Peak, seconds: f64| One {
            imbalance: peak.as_f64() / mean,
            bound: best.bound.as_f64() / mean,
            at_bound: peak == best.bound,
            us: seconds * 1e6,
        };
        all[2].push(one(best.peak, taken));
        // Without a plan for it, every rank's own tokens visit its own copy of the shared expert.
        let own = if goal.shared { per_rank(tokens, placement.ranks()) } else { vec![] };
        for (splitter, all) in plain.iter_mut().zip(&mut all) {
            let begun = Instant::now();
            splitter.split(loads, &mut split).map_err(failed(step))?;
            all.push(one(aimed.cost_of(&split.quotas, &own), begun.elapsed().as_secs_f64()));
        }
    }
    Ok(all)
}

/// Equal parts, one more for the lowest ranks.
fn per_rank(tokens: u64, ranks: usize) -> Vec<u64> {
    let ranks = ranks as u64;
    (0..ranks).map(|rank| tokens / ranks + u64::from(rank < tokens % ranks)).collect()
}
