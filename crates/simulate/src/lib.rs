//! Simulation of placements and splits: plans on the first part of a trace, judges on the rest.
//!
//! Input is a [`Trace`], a [`Cluster`], policies and split methods. Output is one [`SimulationRow`] per
//! policy and method. Each batch of a layer is judged by its peak in whole tokens, after its split was
//! checked against its batch. Layers are independent and run in parallel. Results are gathered in layer
//! order, so they do not depend on the threads.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod batch_sizes;
mod dynamic;
mod hindsight;
mod locality;
pub mod network;
mod objective;
mod offline_optimum;
mod planning_cost;
mod replay;
mod verdict;

pub use batch_sizes::{BatchSizeRow, simulate_batch_sizes};
pub use dynamic::{DynamicOptions, DynamicRow, DynamicTimeSums, DynamicTimes, Foresight, simulate_dynamic};
pub use hindsight::hindsight;
pub use locality::{TrafficLocality, measure_locality};
pub use objective::{ObjectiveRow, SplitAim, evaluate_objective};
pub use offline_optimum::{OfflineOptimum, offline_optimum};
pub use planning_cost::{PlanningCostRow, compare_planning_cost};
pub use replay::{ReplanSchedule, ReplayOptions, ReplayRow, is_pareto_optimal, replay_trace};
pub use verdict::{TimedRow, Verdict, VerdictSetting, format_ms};

use evenkeel::cluster::Cluster;
use evenkeel::evaluate::{
    EvaluateError, LayerEvaluation, Progress, SummaryStats, busy_layers, evaluate_on_nodes, require_tokens,
};
use evenkeel::forecast::History;
use evenkeel::place::{Contiguous, PlaceRequest, Placement, Policy};
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;
use rayon::prelude::*;
use std::ops::Range;
use std::time::{Duration, Instant};

/// The parameters of a simulation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SimulationConfig {
    /// The cluster on which the layers run.
    pub cluster: Cluster,
    /// The split methods with which every placement is judged.
    pub methods: Vec<SplitMethod>,
    /// The steps that policies may use for planning.
    pub plan_on: Range<usize>,
    /// The steps on which placements are judged.
    pub judge_on: Range<usize>,
}

impl SimulationConfig {
    /// Creates parameters that plan on some steps and judge on others, which may be the same.
    pub fn new(
        cluster: Cluster,
        methods: Vec<SplitMethod>,
        plan_on: Range<usize>,
        judge_on: Range<usize>,
    ) -> Self {
        Self { cluster, methods, plan_on, judge_on }
    }

    /// Returns parameters that plan on the first `share` of the steps (at least one) and judge on the rest
    /// (at least one).
    ///
    /// # Errors
    /// Fails if the trace has fewer than two steps, or if `share` is not between 0 and 1.
    pub fn first_part(
        trace: &Trace,
        cluster: Cluster,
        methods: Vec<SplitMethod>,
        share: f64,
    ) -> Result<Self, EvaluateError> {
        let steps = trace.steps().len();
        if !(share > 0.0 && share < 1.0) {
            return Err(EvaluateError::Share(share));
        }
        if steps < 2 {
            return Err(EvaluateError::TooShort(steps));
        }
        let cut = ((steps as f64 * share).floor() as usize).clamp(1, steps - 1);
        Ok(Self { cluster, methods, plan_on: 0..cut, judge_on: cut..steps })
    }
}

/// The placements of one policy for all layers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PolicyPlacements {
    /// The policy's name.
    pub policy: String,
    /// One placement per busy layer, in the order of [`SimulationResult::layers`].
    pub placements: Vec<Placement>,
    /// The number of experts that ranks have to receive over all layers, starting from the contiguous
    /// placement.
    pub moves: usize,
    /// The planning time, summed over the layers.
    pub plan_time: Duration,
}

/// The figures of one policy with one split method over all judged batches.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SimulationRow {
    /// The index into [`SimulationResult::planned`].
    pub planned: usize,
    /// The split method.
    pub method: SplitMethod,
    /// The imbalance: peak over mean.
    pub imbalance: SummaryStats,
    /// The excess, (peak - ceil(total / ranks)) over mean: the distance from the lowest peak of any
    /// placement.
    pub excess: SummaryStats,
    /// The bound, ceil(total / ranks) over mean.
    pub lower_bound: SummaryStats,
    /// The share of the batches whose peak is ceil(total / ranks).
    pub at_bound: f64,
    /// Microseconds per split.
    pub split_us: SummaryStats,
    /// One entry per busy layer.
    pub layers: Vec<LayerEvaluation>,
}

/// The result of a simulation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SimulationResult {
    /// The indices of the layers that routed tokens. The others are left out.
    pub layers: Vec<usize>,
    /// One entry per policy.
    pub planned: Vec<PolicyPlacements>,
    /// The rows in the order of policies, each with all methods.
    pub rows: Vec<SimulationRow>,
    /// The number of batches judged per row.
    pub batches: usize,
    /// The number of batches without tokens, which all rows leave out.
    pub empty_batches: usize,
}

/// Plans with every policy and judges with every method.
///
/// # Errors
/// Fails if no layer holds a token, if a policy cannot serve the shape, or if a split fails.
pub fn simulate(
    trace: &Trace,
    config: &SimulationConfig,
    policies: &[Box<dyn Policy>],
    progress: &dyn Progress,
) -> Result<SimulationResult, EvaluateError> {
    let layers = busy_layers(trace)?;
    require_tokens(trace, &layers, &config.plan_on, "plan on")?;
    require_tokens(trace, &layers, &config.judge_on, "judge")?;
    let done = std::sync::atomic::AtomicUsize::new(0);
    let per_layer: Vec<Vec<LayerPolicyRun>> = layers
        .par_iter()
        .map(|&layer| {
            let result = policies.iter().map(|p| run_policy(trace, config, p.as_ref(), layer)).collect();
            progress.report_layers(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1, layers.len());
            result
        })
        .collect::<Result<_, _>>()?;

    let mut planned: Vec<PolicyPlacements> = policies
        .iter()
        .map(|p| PolicyPlacements {
            policy: p.name(),
            placements: vec![],
            moves: 0,
            plan_time: Duration::ZERO,
        })
        .collect();
    let mut judged: Vec<Vec<LayerEvaluation>> = vec![vec![]; policies.len() * config.methods.len()];
    for layer in per_layer {
        for (p, on_layer) in layer.into_iter().enumerate() {
            planned[p].placements.push(on_layer.placement);
            planned[p].moves += on_layer.moves;
            planned[p].plan_time += on_layer.plan_time;
            for (m, one) in on_layer.judged.into_iter().enumerate() {
                judged[p * config.methods.len() + m].push(one);
            }
        }
    }
    let empty_batches = judged.first().map_or(0, |layers| layers.iter().map(|j| j.empty_batches).sum());
    let rows: Vec<SimulationRow> = judged
        .into_iter()
        .enumerate()
        .map(|(at, layers)| {
            SimulationRow::new(at / config.methods.len(), config.methods[at % config.methods.len()], layers)
        })
        .collect();
    let batches = rows.first().map_or(0, |row| row.layers.iter().map(|j| j.peaks.len()).sum());
    Ok(SimulationResult { layers, planned, rows, batches, empty_batches })
}

struct LayerPolicyRun {
    placement: Placement,
    moves: usize,
    plan_time: Duration,
    judged: Vec<LayerEvaluation>,
}

fn run_policy(
    trace: &Trace,
    config: &SimulationConfig,
    policy: &dyn Policy,
    layer: usize,
) -> Result<LayerPolicyRun, EvaluateError> {
    let place_error = |source| EvaluateError::Place { layer: trace.layers()[layer], source };
    let history = History::from_steps(trace, layer, config.plan_on.clone());
    let begun = Instant::now();
    let request = PlaceRequest::new(&history, &config.cluster);
    let placement = policy.place(&request).map_err(place_error)?.placement;
    let plan_time = begun.elapsed();
    let before = Contiguous::placement(trace.experts(), &config.cluster).map_err(place_error)?;
    let judged = config
        .methods
        .iter()
        .map(|&method| {
            let (steps, nodes) = (config.judge_on.clone(), config.cluster.nodes());
            evaluate_on_nodes(trace, layer, steps, &placement, method, nodes)
        })
        .collect::<Result<_, _>>()?;
    Ok(LayerPolicyRun { moves: placement.moves_from(&before), placement, plan_time, judged })
}

impl SimulationResult {
    /// Adds the policies of another simulation of the same layers and judged steps.
    pub fn append(&mut self, other: SimulationResult) {
        let before = self.planned.len();
        self.planned.extend(other.planned);
        self.rows
            .extend(other.rows.into_iter().map(|row| SimulationRow { planned: row.planned + before, ..row }));
    }
}

impl SimulationRow {
    fn new(planned: usize, method: SplitMethod, layers: Vec<LayerEvaluation>) -> Self {
        let every = |value: fn(&LayerEvaluation, usize) -> f64| -> SummaryStats {
            SummaryStats::from_values(
                layers.iter().flat_map(|j| (0..j.peaks.len()).map(move |b| value(j, b))).collect(),
            )
        };
        let at_bound =
            layers.iter().map(|j| (0..j.peaks.len()).filter(|&b| j.peaks[b] == j.peak_bound(b)).count());
        let batches: usize = layers.iter().map(|j| j.peaks.len()).sum();
        Self {
            planned,
            method,
            imbalance: every(LayerEvaluation::imbalance),
            excess: every(LayerEvaluation::excess),
            lower_bound: every(LayerEvaluation::lower_bound),
            at_bound: at_bound.sum::<usize>() as f64 / batches.max(1) as f64,
            split_us: every(|j, b| f64::from(j.split_ns[b]) / 1e3),
            layers,
        }
    }
}
