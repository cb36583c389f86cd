//! Predicts step time on a network model (dispatch, experts, combine), and the shares of communication and
//! imbalance in it.
//!
//! Input is a trace, the placements of a simulation, and a [`StepCostModel`]. Output is one
//! [`StepPrediction`] per policy and split. Rows are counted token by token if the trace holds ids, and
//! expected if it holds counts (`expected`). docs/network.md has the formulas, and the deviations from
//! measurements.

mod cost_model;
mod expected_traffic;
mod routing_model;
mod traffic;

pub use cost_model::{LayerTime, RowBytes, RowFormat, RowFormats, StepCostModel, UnknownRowFormat};
pub use routing_model::RoutingModel;
pub use traffic::{
    DuplexFlow, LinkRows, RankFlow, RowAggregation, RowTraffic, TrafficFlow, UnknownRowAggregation,
};

use super::locality::{count_experts, split_by_source};
use super::{SimulationConfig, SimulationResult};
use evenkeel::cluster::Cluster;
use evenkeel::evaluate::{EvaluateError, Progress, SummaryStats};
use evenkeel::place::Placement;
use evenkeel::planner::{Planner, PlannerError};
use evenkeel::split::{Split, SplitError, SplitMethod, Splitter};
use evenkeel::trace::{TokenTrace, Trace};
use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The source of the batches.
#[derive(Debug, Clone, Copy)]
pub enum PredictionInput<'a> {
    /// Token ids, from which rows are counted.
    Tokens(&'a TokenTrace),
    /// Counts, from which rows are expected.
    Counts(&'a Trace),
}

/// The prediction for one policy with one split.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StepPrediction {
    /// The index into [`SimulationResult::planned`].
    pub planned: usize,
    /// The split method.
    pub method: SplitMethod,
    /// Microseconds per step, over all layers of the model.
    pub step_us: SummaryStats,
    /// Tokens of all ranks per second.
    pub tokens_per_s: f64,
    /// Tokens per step.
    pub tokens: f64,
    /// The mean times of a layer, in microseconds.
    pub layer: LayerTime,
    /// The mean rows that a rank sends in dispatch.
    pub rows: LinkRows,
    /// The number of steps.
    pub steps: usize,
}

impl StepPrediction {
    /// Returns the share of a step that is exposed communication.
    pub fn communication_share(&self) -> f64 {
        self.layer.exposed / self.layer.total.max(f64::MIN_POSITIVE)
    }

    /// Returns the share of a step that equal loads of all ranks would save.
    pub fn imbalance_share(&self) -> f64 {
        1.0 - self.layer.balanced / self.layer.total.max(f64::MIN_POSITIVE)
    }
}

/// One batch of one layer.
#[derive(Debug, Clone, Copy, Default)]
struct BatchPrediction {
    time: LayerTime,
    tokens: f64,
    rows: LinkRows,
}

/// Predicts all judged steps for every row of `outcome`, which has to come from the same trace.
///
/// # Errors
/// Fails if a split fails, or if tokens cannot be redirected.
pub fn predict_steps(
    batches: PredictionInput<'_>,
    config: &SimulationConfig,
    outcome: &SimulationResult,
    pace: &StepCostModel,
    progress: &dyn Progress,
) -> Result<Vec<StepPrediction>, EvaluateError> {
    let done = AtomicUsize::new(0);
    let total = outcome.rows.len() * outcome.layers.len();
    let row = |planned: usize, method: SplitMethod| {
        let layers: Vec<Vec<BatchPrediction>> = outcome
            .layers
            .par_iter()
            .zip(&outcome.planned[planned].placements)
            .map(|(&layer, placement)| {
                let all = match batches {
                    PredictionInput::Tokens(tokens) => {
                        predict_tokens(tokens, config, layer, placement, method, pace)
                    }
                    PredictionInput::Counts(trace) => {
                        predict_counts(trace, config, layer, placement, method, pace)
                    }
                };
                progress.report_layers(done.fetch_add(1, Ordering::Relaxed) + 1, total);
                all
            })
            .collect::<Result<_, EvaluateError>>()?;
        Ok(sum_layers(planned, method, &layers, pace, &config.cluster))
    };
    outcome.rows.iter().map(|of| row(of.planned, of.method)).collect()
}

/// Sums all layers, step by step.
fn sum_layers(
    planned: usize,
    method: SplitMethod,
    layers: &[Vec<BatchPrediction>],
    pace: &StepCostModel,
    cluster: &Cluster,
) -> StepPrediction {
    let steps = layers.first().map_or(0, Vec::len);
    let scale = pace.layers as f64 / layers.len().max(1) as f64;
    let (mut step_us, mut tokens) = (Vec::with_capacity(steps), 0.0);
    let (mut mean, mut rows, mut batches) = (LayerTime::default(), LinkRows::default(), 0.0);
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
            mean = add_scaled(mean, one.time, 1.0);
            rows += one.rows;
        }
    }
    let seconds = step_us.iter().sum::<f64>() / 1e6;
    let count = step_us.len();
    let each = if batches > 0.0 { 1.0 / batches } else { 0.0 };
    let rows_per_rank = |rows: f64| rows * each / cluster.ranks() as f64;
    StepPrediction {
        planned,
        method,
        step_us: SummaryStats::from_values(step_us),
        tokens_per_s: if seconds > 0.0 { tokens / seconds } else { 0.0 },
        tokens: tokens / count.max(1) as f64,
        layer: add_scaled(LayerTime::default(), mean, each),
        rows: LinkRows { in_node: rows_per_rank(rows.in_node), cross: rows_per_rank(rows.cross) },
        steps: count,
    }
}

fn add_scaled(sum: LayerTime, time: LayerTime, times: f64) -> LayerTime {
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

/// Returns the batches of one layer of a trace of counts.
fn predict_counts(
    trace: &Trace,
    config: &SimulationConfig,
    layer: usize,
    placement: &Placement,
    method: SplitMethod,
    pace: &StepCostModel,
) -> Result<Vec<BatchPrediction>, EvaluateError> {
    let failed = |step: usize| {
        let (layer, step) = (trace.layers()[layer], trace.steps()[step].clone());
        move |source: SplitError| EvaluateError::Split { layer, step, source }
    };
    let mut splitter = Splitter::builder(placement.clone())
        .method(method)
        .nodes(config.cluster.nodes())
        .build()
        .map_err(failed(config.judge_on.start))?;
    let planned = exchanges_counts(placement, method);
    let (mut split, mut traffic) = (Split::default(), RowTraffic::new(&config.cluster, pace.one_copy));
    let batch = |step: usize| {
        let loads = trace.loads(step, layer);
        if loads.iter().all(|&load| load == 0) {
            return Ok(BatchPrediction::default());
        }
        splitter.split(loads, &mut split).map_err(failed(step))?;
        let choice = RoutingModel::from_loads(loads, pace.top_k);
        expected_traffic::estimate_traffic(&choice, placement, &split.quotas, &config.cluster, &mut traffic);
        Ok(predict_batch(pace, &config.cluster, &traffic, &split.quotas, choice.token_count(), planned))
    };
    config.judge_on.clone().map(batch).collect()
}

/// Returns the batches of one layer of a trace of tokens. The ranks own equal consecutive parts of a batch's
/// tokens.
fn predict_tokens(
    tokens: &TokenTrace,
    config: &SimulationConfig,
    layer: usize,
    placement: &Placement,
    method: SplitMethod,
    pace: &StepCostModel,
) -> Result<Vec<BatchPrediction>, EvaluateError> {
    let (trace, cluster, top_k) = (tokens.trace(), config.cluster, tokens.top_k());
    let failed = |step: usize| {
        let (layer, step) = (trace.layers()[layer], trace.steps()[step].clone());
        move |source: PlannerError| EvaluateError::Redirect { layer, step, source: Box::new(source) }
    };
    let mut planner =
        Planner::with_method(placement.clone(), cluster, method).map_err(failed(config.judge_on.start))?;
    let planned = exchanges_counts(placement, method);
    let mut traffic = RowTraffic::new(&cluster, pace.one_copy);
    let batch = |step: usize| {
        let ids = tokens.expert_ids(step, layer);
        let parts = split_by_source(&ids, top_k, cluster.ranks());
        let counts: Vec<u64> =
            parts.iter().flat_map(|part| count_experts(part, placement.experts())).collect();
        let visiting = ids.chunks(top_k.max(1)).filter(|token| token.iter().any(|&id| id >= 0)).count();
        if visiting == 0 {
            return Ok(BatchPrediction::default());
        }
        let quotas = planner.split(&counts).map_err(failed(step))?.quotas.clone();
        traffic.clear();
        for (source, part) in parts.iter().enumerate() {
            let slots = planner.redirect(part, source).map_err(failed(step))?;
            traffic.add_source(&slots, top_k, source, placement.slots_per_rank());
        }
        Ok(predict_batch(pace, &cluster, &traffic, &quotas, visiting as f64, planned))
    };
    config.judge_on.clone().map(batch).collect()
}

fn predict_batch(
    pace: &StepCostModel,
    cluster: &Cluster,
    traffic: &RowTraffic,
    quotas: &[u64],
    tokens: f64,
    planned: bool,
) -> BatchPrediction {
    let time = pace.layer_time(cluster, traffic, quotas, tokens, planned);
    BatchPrediction { time, tokens, rows: traffic.total_rows() }
}

/// Returns `true` if ranks exchange their counts. They do not for an even split or the rule of a stack, nor
/// if every expert has one replica.
pub(crate) fn exchanges_counts(placement: &Placement, method: SplitMethod) -> bool {
    !matches!(method, SplitMethod::Even | SplitMethod::Stack(_))
        && (0..placement.experts()).any(|expert| placement.replicas(expert).len() > 1)
}
