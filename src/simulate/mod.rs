//! What placements and splits would have done: plan on the first part of a trace, judge on the rest.
//!
//! In: a [`Trace`], a [`Cluster`], policies and split methods. Out: one [`Row`] per policy and method. A batch of one
//! layer is judged by its peak, in whole tokens, after every split has been checked against its batch. Layers are
//! independent and run in parallel; results are gathered in layer order, so they do not depend on the threads.

mod goals;
mod hindsight;
mod judge;
mod locality;
pub mod network;
mod replay;
mod summary;
mod worth;

pub use goals::{Aim, Reached, goals};
pub use hindsight::hindsight;
pub use judge::{Judged, judge, judge_on_nodes};
pub use locality::{Locality, locality};
pub use replay::{Pace, Replay, Replayed, on_front, replay};
pub use summary::Summary;
pub use worth::{Worth, worth};

use crate::cluster::Cluster;
use crate::forecast::History;
use crate::place::{Contiguous, PlaceError, Placement, Policy};
use crate::planner::PlannerError;
use crate::split::{Method, SplitError};
use crate::trace::Trace;
use rayon::prelude::*;
use std::ops::Range;
use std::time::{Duration, Instant};
use thiserror::Error;

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Config {
    /// The group that the layers run on.
    pub cluster: Cluster,
    /// Split methods to judge every placement with.
    pub methods: Vec<Method>,
    /// Steps that placements may be planned on.
    pub plan_on: Range<usize>,
    /// Steps that they are judged on.
    pub judge_on: Range<usize>,
}

impl Config {
    /// Plans on the first `share` of the steps (at least one) and judges on the rest (at least one).
    ///
    /// # Errors
    /// When the trace has fewer than two steps, or `share` is not between 0 and 1.
    pub fn first_part(
        trace: &Trace,
        cluster: Cluster,
        methods: Vec<Method>,
        share: f64,
    ) -> Result<Self, SimulateError> {
        let steps = trace.steps().len();
        if !(share > 0.0 && share < 1.0) {
            return Err(SimulateError::Share(share));
        }
        if steps < 2 {
            return Err(SimulateError::TooShort(steps));
        }
        let cut = ((steps as f64 * share).floor() as usize).clamp(1, steps - 1);
        Ok(Self { cluster, methods, plan_on: 0..cut, judge_on: cut..steps })
    }
}

/// Why a simulation could not be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SimulateError {
    /// Nothing to judge on.
    #[error("the trace has {0} step(s): at least 2 are needed to plan on one part and judge on the rest")]
    TooShort(usize),
    /// Not a share.
    #[error("the share to plan on is {0}: expected more than 0 and less than 1")]
    Share(f64),
    /// No layer routed a token.
    #[error("the trace holds no tokens: all {steps} step(s) of {layers} layer(s) are zero")]
    Empty {
        /// Steps of the trace.
        steps: usize,
        /// Layers of the trace.
        layers: usize,
    },
    /// A layer could not be placed.
    #[error("layer {layer}: {source}")]
    Place {
        /// Its real id.
        layer: u32,
        /// Why.
        source: PlaceError,
    },
    /// A batch could not be split.
    #[error("layer {layer}, step {step}: {source}")]
    Split {
        /// Its real id.
        layer: u32,
        /// The step's label.
        step: String,
        /// Why.
        source: SplitError,
    },
    /// A batch's tokens could not be redirected.
    #[error("layer {layer}, step {step}: {source}")]
    Redirect {
        /// Its real id.
        layer: u32,
        /// The step's label.
        step: String,
        /// Why.
        source: Box<PlannerError>,
    },
    /// A slot served other than its quota; a defect of this program.
    #[error("layer {layer}, step {step}: slot {slot} does not serve its quota")]
    Unmet {
        /// Its real id.
        layer: u32,
        /// The step's label.
        step: String,
        /// The slot.
        slot: usize,
    },
}

/// Told after each layer; a command may show it.
pub trait Progress: Sync {
    /// `done` of `total` layers are finished.
    fn layers(&self, done: usize, total: usize);
}

impl Progress for () {
    fn layers(&self, _: usize, _: usize) {}
}

/// What one policy did with all layers.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The policy's name.
    pub policy: String,
    /// One placement per busy layer, in the order of [`Outcome::layers`].
    pub placements: Vec<Placement>,
    /// Experts that ranks have to receive, over all layers, coming from the contiguous placement.
    pub moves: usize,
    /// Planning time, summed over the layers.
    pub plan_time: Duration,
}

/// What one policy with one split method did with all judged batches.
#[derive(Debug, Clone)]
pub struct Row {
    /// Index into [`Outcome::planned`].
    pub planned: usize,
    /// The split method.
    pub method: Method,
    /// Peak over mean.
    pub imbalance: Summary,
    /// (Peak - ceil(total / ranks)) over mean: what is above the least peak that any placement could have.
    pub excess: Summary,
    /// ceil(total / ranks) over mean.
    pub lower_bound: Summary,
    /// Share of the batches whose peak is ceil(total / ranks).
    pub at_bound: f64,
    /// Microseconds per split.
    pub split_us: Summary,
    /// One entry per busy layer.
    pub layers: Vec<Judged>,
}

/// The result of a simulation.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Indices of the layers that routed tokens; the others are left out.
    pub layers: Vec<usize>,
    /// One entry per policy.
    pub planned: Vec<Planned>,
    /// Policies in their order, each with all methods.
    pub rows: Vec<Row>,
    /// Batches judged per row.
    pub batches: usize,
    /// Batches left out of all rows because they held no token.
    pub empty_batches: usize,
}

/// Plans with every policy and judges with every method.
///
/// # Errors
/// When no layer holds a token, a policy cannot serve the shape, or a split fails.
pub fn simulate(
    trace: &Trace,
    config: &Config,
    policies: &[Box<dyn Policy>],
    progress: &dyn Progress,
) -> Result<Outcome, SimulateError> {
    let layers = busy_layers(trace)?;
    let done = std::sync::atomic::AtomicUsize::new(0);
    let per_layer: Vec<Vec<PolicyOnLayer>> = layers
        .par_iter()
        .map(|&layer| {
            let result = policies.iter().map(|p| one_layer(trace, config, p.as_ref(), layer)).collect();
            progress.layers(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1, layers.len());
            result
        })
        .collect::<Result<_, _>>()?;

    let mut planned: Vec<Planned> = policies
        .iter()
        .map(|p| Planned { policy: p.name(), placements: vec![], moves: 0, plan_time: Duration::ZERO })
        .collect();
    let mut judged: Vec<Vec<Judged>> = vec![vec![]; policies.len() * config.methods.len()];
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
    let rows: Vec<Row> = judged
        .into_iter()
        .enumerate()
        .map(|(at, layers)| {
            Row::new(at / config.methods.len(), config.methods[at % config.methods.len()], layers)
        })
        .collect();
    let batches = rows.first().map_or(0, |row| row.layers.iter().map(|j| j.peaks.len()).sum());
    Ok(Outcome { layers, planned, rows, batches, empty_batches })
}

/// Indices of the layers that routed tokens.
///
/// # Errors
/// [`SimulateError::Empty`] when there are none.
pub fn busy_layers(trace: &Trace) -> Result<Vec<usize>, SimulateError> {
    let busy: Vec<usize> =
        (0..trace.layers().len()).filter(|&layer| trace.totals(layer).iter().any(|&load| load > 0)).collect();
    if busy.is_empty() {
        return Err(SimulateError::Empty { steps: trace.steps().len(), layers: trace.layers().len() });
    }
    Ok(busy)
}

struct PolicyOnLayer {
    placement: Placement,
    moves: usize,
    plan_time: Duration,
    judged: Vec<Judged>,
}

fn one_layer(
    trace: &Trace,
    config: &Config,
    policy: &dyn Policy,
    layer: usize,
) -> Result<PolicyOnLayer, SimulateError> {
    let place_error = |source| SimulateError::Place { layer: trace.layers()[layer], source };
    let history = History::window(trace, layer, config.plan_on.clone());
    let begun = Instant::now();
    let placement = policy.place(&history, &config.cluster).map_err(place_error)?;
    let plan_time = begun.elapsed();
    let before = Contiguous::placement(trace.experts(), &config.cluster).map_err(place_error)?;
    let judged = config
        .methods
        .iter()
        .map(|&method| {
            let (steps, nodes) = (config.judge_on.clone(), config.cluster.nodes());
            judge_on_nodes(trace, layer, steps, &placement, method, nodes)
        })
        .collect::<Result<_, _>>()?;
    Ok(PolicyOnLayer { moves: placement.moves_from(&before), placement, plan_time, judged })
}

impl Outcome {
    /// Adds the policies of another simulation of the same layers and judged steps.
    pub fn append(&mut self, other: Outcome) {
        let before = self.planned.len();
        self.planned.extend(other.planned);
        self.rows.extend(other.rows.into_iter().map(|row| Row { planned: row.planned + before, ..row }));
    }
}

impl Row {
    fn new(planned: usize, method: Method, layers: Vec<Judged>) -> Self {
        let every = |value: fn(&Judged, usize) -> f64| -> Summary {
            Summary::of(layers.iter().flat_map(|j| (0..j.peaks.len()).map(move |b| value(j, b))).collect())
        };
        let at_bound =
            layers.iter().map(|j| (0..j.peaks.len()).filter(|&b| j.peaks[b] == j.bound(b)).count());
        let batches: usize = layers.iter().map(|j| j.peaks.len()).sum();
        Self {
            planned,
            method,
            imbalance: every(Judged::imbalance),
            excess: every(Judged::excess),
            lower_bound: every(Judged::lower_bound),
            at_bound: at_bound.sum::<usize>() as f64 / batches.max(1) as f64,
            split_us: every(|j, b| f64::from(j.split_ns[b]) / 1e3),
            layers,
        }
    }
}
