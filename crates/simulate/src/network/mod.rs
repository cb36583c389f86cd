//! What a step would take on a network: dispatch, experts, combine, and what communication and imbalance are of that.
//!
//! In: a trace, the placements of a simulation, a [`Pace`]. Out: one [`Predicted`] per policy and split. Rows are counted token
//! by token where the trace holds ids, and expected where it holds counts (`expected`). docs/network.md has the formulas, and
//! how far measurements are from them.

mod choice;
mod expected;
mod time;
mod traffic;

pub use choice::Choice;
pub use time::{LayerTime, Pace, RowBytes, RowFormat};
pub use traffic::{Flow, OneCopyPer, RankFlow, Traffic};

use super::locality::{count, parts};
use super::{Config, Outcome, Progress, SimulateError, Summary};
use crate::cluster::Cluster;
use crate::place::Placement;
use crate::planner::{Planner, PlannerError};
use crate::split::{Method, Split, SplitError, Splitter};
use crate::trace::{TokenTrace, Trace};
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Where the batches come from.
#[derive(Debug, Clone, Copy)]
pub enum Batches<'a> {
    /// Token by token: rows are counted.
    Tokens(&'a TokenTrace),
    /// Counts: rows are expected.
    Counts(&'a Trace),
}

/// What one policy with one split would take.
#[derive(Debug, Clone, PartialEq)]
pub struct Predicted {
    /// Index into [`Outcome::planned`].
    pub planned: usize,
    /// How batches were split.
    pub method: Method,
    /// Microseconds per step, of all layers of the model.
    pub step_us: Summary,
    /// Tokens of all ranks per second.
    pub tokens_per_s: f64,
    /// Tokens per step.
    pub tokens: f64,
    /// The mean layer, microseconds.
    pub layer: LayerTime,
    /// Rows that a rank sends in dispatch, in the mean: inside its node, to other nodes.
    pub rows: [f64; 2],
    /// Steps.
    pub steps: usize,
}

impl Predicted {
    /// What communication that nothing hides is of a step.
    pub fn communication(&self) -> f64 {
        self.layer.exposed / self.layer.total.max(f64::MIN_POSITIVE)
    }

    /// What of a step would be saved if all ranks carried alike.
    pub fn lost(&self) -> f64 {
        1.0 - self.layer.balanced / self.layer.total.max(f64::MIN_POSITIVE)
    }
}

/// One batch of one layer.
#[derive(Debug, Clone, Copy, Default)]
struct One {
    time: LayerTime,
    tokens: f64,
    rows: [f64; 2],
}

/// Predicts all judged steps for every row of `outcome`, which is of the same trace.
///
/// # Errors
/// When a split fails, or tokens cannot be redirected.
pub fn predict(
    batches: Batches<'_>,
    config: &Config,
    outcome: &Outcome,
    pace: &Pace,
    progress: &dyn Progress,
) -> Result<Vec<Predicted>, SimulateError> {
    let done = AtomicUsize::new(0);
    let total = outcome.rows.len() * outcome.layers.len();
    let row = |planned: usize, method: Method| {
        let layers: Vec<Vec<One>> = outcome
            .layers
            .par_iter()
            .zip(&outcome.planned[planned].placements)
            .map(|(&layer, placement)| {
                let all = match batches {
                    Batches::Tokens(tokens) => counted(tokens, config, layer, placement, method, pace),
                    Batches::Counts(trace) => expected(trace, config, layer, placement, method, pace),
                };
                progress.layers(done.fetch_add(1, Ordering::Relaxed) + 1, total);
                all
            })
            .collect::<Result<_, SimulateError>>()?;
        Ok(summed(planned, method, &layers, pace, &config.cluster))
    };
    outcome.rows.iter().map(|of| row(of.planned, of.method)).collect()
}

/// All layers, step by step.
fn summed(planned: usize, method: Method, layers: &[Vec<One>], pace: &Pace, cluster: &Cluster) -> Predicted {
    let steps = layers.first().map_or(0, Vec::len);
    let scale = pace.layers as f64 / layers.len().max(1) as f64;
    let (mut step_us, mut tokens) = (Vec::with_capacity(steps), 0.0);
    let (mut mean, mut rows, mut batches) = (LayerTime::default(), [0.0; 2], 0.0);
    for step in 0..steps {
        let of_step = || layers.iter().map(move |layer| layer[step]);
        let most = of_step().map(|one| one.tokens).fold(0.0, f64::max);
        if most == 0.0 {
            continue;
        }
        tokens += most;
        step_us.push(scale * of_step().map(|one| one.time.total).sum::<f64>());
        for one in of_step() {
            batches += 1.0;
            mean = plus(mean, one.time, 1.0);
            rows = [rows[0] + one.rows[0], rows[1] + one.rows[1]];
        }
    }
    let seconds = step_us.iter().sum::<f64>() / 1e6;
    let count = step_us.len();
    let each = if batches > 0.0 { 1.0 / batches } else { 0.0 };
    Predicted {
        planned,
        method,
        step_us: Summary::of(step_us),
        tokens_per_s: if seconds > 0.0 { tokens / seconds } else { 0.0 },
        tokens: tokens / count.max(1) as f64,
        layer: plus(LayerTime::default(), mean, each),
        rows: rows.map(|rows| rows * each / cluster.ranks() as f64),
        steps: count,
    }
}

fn plus(sum: LayerTime, time: LayerTime, times: f64) -> LayerTime {
    LayerTime {
        counts: sum.counts + times * time.counts,
        dispatch: sum.dispatch + times * time.dispatch,
        experts: sum.experts + times * time.experts,
        combine: sum.combine + times * time.combine,
        other: sum.other + times * time.other,
        total: sum.total + times * time.total,
        exposed: sum.exposed + times * time.exposed,
        balanced: sum.balanced + times * time.balanced,
    }
}

/// One layer of a trace of counts.
fn expected(
    trace: &Trace,
    config: &Config,
    layer: usize,
    placement: &Placement,
    method: Method,
    pace: &Pace,
) -> Result<Vec<One>, SimulateError> {
    let failed = |step: usize| {
        let (layer, step) = (trace.layers()[layer], trace.steps()[step].clone());
        move |source: SplitError| SimulateError::Split { layer, step, source }
    };
    let mut splitter = Splitter::on_nodes(placement.clone(), method, config.cluster.nodes())
        .map_err(failed(config.judge_on.start))?;
    let planned = planned(placement, method);
    let (mut split, mut traffic) = (Split::default(), Traffic::new(&config.cluster, pace.one_copy));
    let batch = |step: usize| {
        let loads = trace.loads(step, layer);
        if loads.iter().all(|&load| load == 0) {
            return Ok(One::default());
        }
        splitter.split(loads, &mut split).map_err(failed(step))?;
        let choice = Choice::of(loads, pace.top_k);
        expected::expect(&choice, placement, &split.quotas, &config.cluster, &mut traffic);
        Ok(one(pace, &config.cluster, &traffic, &split.quotas, choice.tokens(), planned))
    };
    config.judge_on.clone().map(batch).collect()
}

/// One layer of a trace of tokens; a batch's tokens belong to the ranks in equal consecutive parts.
fn counted(
    tokens: &TokenTrace,
    config: &Config,
    layer: usize,
    placement: &Placement,
    method: Method,
    pace: &Pace,
) -> Result<Vec<One>, SimulateError> {
    let (trace, cluster, top_k) = (tokens.trace(), config.cluster, tokens.top_k());
    let failed = |step: usize| {
        let (layer, step) = (trace.layers()[layer], trace.steps()[step].clone());
        move |source: PlannerError| SimulateError::Redirect { layer, step, source: Box::new(source) }
    };
    let mut planner =
        Planner::by(placement.clone(), cluster, method).map_err(failed(config.judge_on.start))?;
    let planned = planned(placement, method);
    let mut traffic = Traffic::new(&cluster, pace.one_copy);
    let batch = |step: usize| {
        let ids = tokens.ids(step, layer);
        let parts = parts(&ids, top_k, cluster.ranks());
        let counts: Vec<u64> = parts.iter().flat_map(|part| count(part, placement.experts())).collect();
        let visiting = ids.chunks(top_k.max(1)).filter(|token| token.iter().any(|&id| id >= 0)).count();
        if visiting == 0 {
            return Ok(One::default());
        }
        let quotas = planner.split(&counts).map_err(failed(step))?.quotas.clone();
        traffic.clear();
        for (source, part) in parts.iter().enumerate() {
            let slots = planner.redirect(part, source).map_err(failed(step))?;
            traffic.add(&slots, top_k, source, placement.slots_per_rank());
        }
        Ok(one(pace, &cluster, &traffic, &quotas, visiting as f64, planned))
    };
    config.judge_on.clone().map(batch).collect()
}

fn one(pace: &Pace, cluster: &Cluster, traffic: &Traffic, quotas: &[u64], tokens: f64, planned: bool) -> One {
    let time = pace.layer(cluster, traffic, quotas, tokens, planned);
    One { time, tokens, rows: traffic.rows() }
}

/// Returns `true` if ranks exchange their counts: not if replicas are served evenly or by a stack's own rule,
/// or there is one of each expert.
fn planned(placement: &Placement, method: Method) -> bool {
    !matches!(method, Method::Even | Method::Stack(_))
        && (0..placement.experts()).any(|expert| placement.copies(expert).len() > 1)
}
