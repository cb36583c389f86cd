//! The results of placements and splits for goals other than tokens on equal ranks.
//!
//! Input is the placements of a simulation and a [`SplitObjective`]. Output is one [`ObjectiveRow`] per
//! policy and kind of split: even, by tokens alone, and for the goal. All are measured by the goal.

use super::{SimulationConfig, SimulationResult};
use evenkeel::evaluate::{EvaluateError, SummaryStats};
use evenkeel::place::Placement;
use evenkeel::split::{Peak, Split, SplitError, SplitMethod, SplitObjective, Splitter};
use evenkeel::trace::Trace;
use rayon::prelude::*;
use std::time::Instant;

/// The aim of a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitAim {
    /// An even split over all replicas.
    Even,
    /// A split by tokens alone, on equal ranks.
    Tokens,
    /// A split for the goal.
    Objective,
}

/// The costs of all judged batches, each in units of its own perfect spread: 1 is perfect.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ObjectiveRow {
    /// The index into [`SimulationResult::planned`].
    pub planned: usize,
    /// The aim of the splits.
    pub aim: SplitAim,
    /// The cost of the busiest rank.
    pub imbalance: SummaryStats,
    /// The bound of any split on this placement.
    pub bound: SummaryStats,
    /// The share of the batches at their bound.
    pub at_bound: f64,
    /// Microseconds per split.
    pub split_us: SummaryStats,
}

/// One batch with one split.
#[derive(Debug, Clone, Copy)]
struct SplitSample {
    imbalance: f64,
    bound: f64,
    at_bound: bool,
    us: f64,
}

/// Splits the judged steps of every placement in three ways. `top_k` is the number of experts that a token
/// visits. It determines the tokens of a shared expert.
///
/// # Errors
/// Fails if the goal does not fit the cluster, or if a split fails.
pub fn evaluate_objective(
    trace: &Trace,
    config: &SimulationConfig,
    outcome: &SimulationResult,
    goal: &SplitObjective,
    top_k: u64,
) -> Result<Vec<ObjectiveRow>, EvaluateError> {
    let mut rows = Vec::new();
    for (planned, policy) in outcome.planned.iter().enumerate() {
        let layers: Vec<[Vec<SplitSample>; 3]> = outcome
            .layers
            .par_iter()
            .zip(&policy.placements)
            .map(|(&layer, placement)| split_layer(trace, config, layer, placement, goal, top_k.max(1)))
            .collect::<Result<_, _>>()?;
        for (index, aim) in [SplitAim::Even, SplitAim::Tokens, SplitAim::Objective].into_iter().enumerate() {
            let all = || layers.iter().flat_map(|layer| &layer[index]);
            rows.push(ObjectiveRow {
                planned,
                aim,
                imbalance: SummaryStats::from_values(all().map(|one| one.imbalance).collect()),
                bound: SummaryStats::from_values(all().map(|one| one.bound).collect()),
                at_bound: all().filter(|one| one.at_bound).count() as f64 / all().count().max(1) as f64,
                split_us: SummaryStats::from_values(all().map(|one| one.us).collect()),
            });
        }
    }
    Ok(rows)
}

fn split_layer(
    trace: &Trace,
    config: &SimulationConfig,
    layer: usize,
    placement: &Placement,
    goal: &SplitObjective,
    top_k: u64,
) -> Result<[Vec<SplitSample>; 3], EvaluateError> {
    let failed = |step: usize| {
        move |source: SplitError| EvaluateError::Split {
            layer: trace.layers()[layer],
            step: trace.steps().get(step).cloned().unwrap_or_default(),
            source,
        }
    };
    let first = config.judge_on.start;
    let mut plain = [SplitMethod::Even, SplitMethod::Exact]
        .map(|method| Splitter::new(placement.clone(), method))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed(first))?;
    let aimed = Splitter::builder(placement.clone()).objective(goal.clone()).build();
    let mut aimed = aimed.map_err(failed(first))?;
    let (mut split, mut shared_loads) = (Split::default(), Vec::new());
    let mut all: [Vec<SplitSample>; 3] = Default::default();
    for step in config.judge_on.clone() {
        let loads = trace.loads(step, layer);
        let total: u64 = loads.iter().sum();
        if total == 0 {
            continue;
        }
        let tokens = total.div_ceil(top_k);
        shared_loads.clear();
        shared_loads.extend_from_slice(loads);
        shared_loads.extend(goal.shared.then_some(tokens));
        let mean = goal.mean_cost(placement.ranks(), &shared_loads);
        let begun = Instant::now();
        aimed.split(&shared_loads, &mut split).map_err(failed(step))?;
        let taken = begun.elapsed().as_secs_f64();
        let best = split.objective.take().unwrap_or_default();
        let one = |peak: Peak, seconds: f64| SplitSample {
            imbalance: peak.as_f64() / mean,
            bound: best.bound.as_f64() / mean,
            at_bound: peak == best.bound,
            us: seconds * 1e6,
        };
        all[2].push(one(best.peak, taken));
        // Without a plan for it, every rank's own tokens visit its own instance of the shared expert.
        let own = if goal.shared { equal_parts(tokens, placement.ranks()) } else { vec![] };
        for (splitter, all) in plain.iter_mut().zip(&mut all) {
            let begun = Instant::now();
            splitter.split(loads, &mut split).map_err(failed(step))?;
            all.push(one(goal.peak_cost(placement, &split.quotas, &own), begun.elapsed().as_secs_f64()));
        }
    }
    Ok(all)
}

/// Returns equal parts, with one more token for the lowest ranks.
fn equal_parts(tokens: u64, ranks: usize) -> Vec<u64> {
    let ranks = ranks as u64;
    (0..ranks).map(|rank| tokens / ranks + u64::from(rank < tokens % ranks)).collect()
}
