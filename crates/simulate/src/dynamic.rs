//! Copies of experts before every batch: imbalance, number of copies, and time.
//!
//! Input is the placements of a simulation and the dynamic slots. Output is one [`DynamicRow`] per policy.
//! Copies are chosen on the routed batch, or on loads that were foreseen. The split always follows the true
//! loads, and every split is checked.

use super::{SimulationConfig, SimulationResult};
use evenkeel::cluster::Cluster;
use evenkeel::evaluate::{EvaluateError, LayerEvaluation, Progress, SummaryStats};
use evenkeel::place::{ExpertMove, Placement};
use evenkeel::split::{
    CopyAim, CopyTimes, CostModel, DynamicSlots, Split, SplitError, SplitMethod, Splitter, step_time,
};
use evenkeel::trace::Trace;
use rayon::prelude::*;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Loads on which the copies for a batch are chosen.
#[derive(Debug, Clone)]
pub enum Foresight {
    /// The loads of the batch itself, once it is routed. Copies start after routing.
    Routed,
    /// The mean of this many batches before. Copies start before routing.
    Past(usize),
    /// A predicted load for every step and layer of the trace, `[step][layer][expert]`. Copies start before
    /// routing.
    Predicted(Arc<Trace>),
    /// The loads of the batch itself, known before routing. This is the limit of every prediction.
    Perfect,
}

/// Times of a layer's experts and copies.
#[derive(Debug, Clone)]
pub struct DynamicTimes {
    /// Time of the experts of a rank.
    pub experts: Arc<dyn CostModel>,
    /// Fixed time of a batch's copies, in picoseconds.
    pub start_ps: u64,
    /// Time for a rank to receive or send one copy, in picoseconds.
    pub copy_ps: u64,
    /// Time of other work that hides copies, in picoseconds.
    pub hidden_ps: u64,
}

/// Dynamic slots to simulate.
#[derive(Debug, Clone)]
pub struct DynamicOptions {
    /// The slots, their memory, and the aim of copies.
    pub slots: DynamicSlots,
    /// The loads on which copies are chosen.
    pub foresight: Foresight,
    /// The times, if they are known.
    pub times: Option<DynamicTimes>,
}

/// Times of all judged batches, in picoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DynamicTimeSums {
    /// The slowest ranks' experts without dynamic slots.
    pub static_ps: u64,
    /// The slowest ranks' experts with dynamic slots.
    pub experts_ps: u64,
    /// The exposed part of the copies.
    pub exposed_ps: u64,
    /// For each batch the shorter of both: static, or dynamic with its copies.
    pub better_ps: u64,
}

/// Figures of one policy with dynamic slots over all judged batches.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DynamicRow {
    /// The index into [`SimulationResult::planned`].
    pub planned: usize,
    /// Imbalance without dynamic slots, under the exact split.
    pub static_imbalance: SummaryStats,
    /// Excess without dynamic slots.
    pub static_excess: SummaryStats,
    /// Imbalance: peak over mean.
    pub imbalance: SummaryStats,
    /// Excess, (peak - ceil(total / ranks)) over mean.
    pub excess: SummaryStats,
    /// Copies before a batch of a layer.
    pub copies: SummaryStats,
    /// Lower bound on the copies of every plan with the same peaks.
    pub least_copies: SummaryStats,
    /// Copies that the busiest sender makes before a batch.
    pub sent: SummaryStats,
    /// Microseconds per choice of copies and split.
    pub split_us: SummaryStats,
    /// Times, if they are known.
    pub times: Option<DynamicTimeSums>,
    /// Batches with tokens.
    pub batches: usize,
}

/// Judges dynamic slots on the judged steps of every placement.
///
/// # Errors
/// Fails if a split fails, or if a prediction lacks a step or layer.
pub fn simulate_dynamic(
    trace: &Trace,
    config: &SimulationConfig,
    outcome: &SimulationResult,
    options: &DynamicOptions,
    progress: &dyn Progress,
) -> Result<Vec<DynamicRow>, EvaluateError> {
    let policies = outcome.planned.iter().enumerate();
    let (done, all) = (AtomicUsize::new(0), outcome.planned.len() * outcome.layers.len());
    policies
        .map(|(planned, policy)| {
            let layers: Vec<LayerFigures> = outcome
                .layers
                .par_iter()
                .zip(&policy.placements)
                .map(|(&layer, placement)| {
                    let figures = judge_layer(trace, config, options, layer, placement)?;
                    progress.report_layers(done.fetch_add(1, Ordering::Relaxed) + 1, all);
                    Ok(figures)
                })
                .collect::<Result<_, EvaluateError>>()?;
            Ok(DynamicRow::new(planned, &layers, options.times.is_some()))
        })
        .collect()
}

/// Figures of one layer, one entry per batch with tokens.
#[derive(Debug, Default)]
struct LayerFigures {
    fixed: LayerEvaluation,
    dynamic: LayerEvaluation,
    copies: Vec<u32>,
    least_copies: Vec<u32>,
    sent: Vec<u32>,
    times: DynamicTimeSums,
}

fn judge_layer(
    trace: &Trace,
    config: &SimulationConfig,
    options: &DynamicOptions,
    layer: usize,
    placement: &Placement,
) -> Result<LayerFigures, EvaluateError> {
    let failed = |step: usize| {
        move |source: SplitError| EvaluateError::Split {
            layer: trace.layers()[layer],
            step: trace.steps().get(step).cloned().unwrap_or_default(),
            source,
        }
    };
    let first = config.judge_on.start;
    let mut fixed = Splitter::new(placement.clone(), SplitMethod::Exact).map_err(failed(first))?;
    let dynamic =
        Splitter::builder(placement.clone()).dynamic_slots(options.foresight.fit_aim(options.slots));
    let mut dynamic = dynamic.build().map_err(failed(first))?;
    let mut figures = LayerFigures::default();
    let (mut fixed_split, mut split) = (Split::default(), Split::default());
    let mut expected = vec![0; trace.experts()];
    for step in config.judge_on.clone() {
        let loads = trace.loads(step, layer);
        if loads.iter().all(|&load| load == 0) {
            continue;
        }
        fixed.split(loads, &mut fixed_split).map_err(failed(step))?;
        let begun = Instant::now();
        if options.foresight.expect(trace, layer, step, &mut expected)? {
            dynamic.prepare_copies(&expected).map_err(failed(step))?;
        }
        dynamic.split(loads, &mut split).map_err(failed(step))?;
        let taken = begun.elapsed();
        dynamic.check(loads, &split).map_err(failed(step))?;
        let copied = split.copies.take().unwrap_or_default();
        figures.fixed.record(&fixed_split, Duration::ZERO);
        figures.dynamic.record(&split, taken);
        let (received, sent) = busiest_ends(&copied.copies, placement.ranks());
        if let Some(times) = &options.times {
            let experts = times.experts.as_ref();
            let static_ps = step_time(experts, &fixed_split.quotas, placement.slots_per_rank(), &[]);
            let experts_ps = step_time(experts, &split.quotas, dynamic.placement().slots_per_rank(), &[]);
            figures.times.add(static_ps, experts_ps, times.exposed_ps(received.max(sent)));
        }
        figures.copies.push(copied.copies.len() as u32);
        figures.least_copies.push(copied.least_copies);
        figures.sent.push(sent);
    }
    Ok(figures)
}

/// Returns the copies that the busiest receiver receives, and those that the busiest sender sends.
fn busiest_ends(copies: &[ExpertMove], ranks: usize) -> (u32, u32) {
    let (mut received, mut sent) = (vec![0u32; ranks], vec![0u32; ranks]);
    for copy in copies {
        received[copy.to as usize] += 1;
        if let Some(from) = copy.from {
            sent[from as usize] += 1;
        }
    }
    let most = |counts: Vec<u32>| counts.into_iter().max().unwrap_or(0);
    (most(received), most(sent))
}

impl Foresight {
    /// Returns the slots with an aim for the loads that are expected, which are sums of past batches.
    fn fit_aim(&self, slots: DynamicSlots) -> DynamicSlots {
        match (self, slots.aim) {
            (Foresight::Past(batches), CopyAim::Time(times)) => {
                let token = (times.token / (*batches).max(1) as u64).max(1);
                slots.aim(CopyAim::Time(CopyTimes { token, ..times }))
            }
            _ => slots,
        }
    }

    /// Writes the loads on which copies are chosen before a batch is routed. Returns false if they are chosen
    /// after that.
    fn expect(
        &self,
        trace: &Trace,
        layer: usize,
        step: usize,
        expected: &mut [u64],
    ) -> Result<bool, EvaluateError> {
        expected.fill(0);
        match self {
            Foresight::Routed => return Ok(false),
            Foresight::Past(batches) => {
                for past in step.saturating_sub(*batches)..step {
                    for (sum, &load) in expected.iter_mut().zip(trace.loads(past, layer)) {
                        *sum = sum.saturating_add(load);
                    }
                }
                // The sum keeps the shares of small loads. The solver takes less than 2^32 tokens.
                let total = expected.iter().fold(0u64, |sum, &load| sum.saturating_add(load));
                let divisor = (total >> 31) + 1;
                expected.iter_mut().for_each(|load| *load /= divisor);
            }
            Foresight::Predicted(prediction) => {
                let id = trace.layers()[layer];
                let missing = || EvaluateError::Unpredicted {
                    layer: id,
                    step: trace.steps().get(step).cloned().unwrap_or_default(),
                };
                let at = prediction.layers().iter().position(|&other| other == id).ok_or_else(missing)?;
                if step >= prediction.steps().len() || prediction.experts() != trace.experts() {
                    return Err(missing());
                }
                expected.copy_from_slice(prediction.loads(step, at));
            }
            Foresight::Perfect => expected.copy_from_slice(trace.loads(step, layer)),
        }
        Ok(true)
    }
}

impl fmt::Display for Foresight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Foresight::Routed => f.write_str("the routed batch"),
            Foresight::Past(1) => f.write_str("the batch before"),
            Foresight::Past(batches) => write!(f, "the mean of {batches} batches before"),
            Foresight::Predicted(_) => f.write_str("predicted loads"),
            Foresight::Perfect => f.write_str("the batch itself, known in advance"),
        }
    }
}

impl DynamicTimes {
    /// Returns the linear times that the choice of copies minimises, for batches of this many expert tokens
    /// on all ranks together. The fixed time uses up hidden time. A token takes the time by which a rank with
    /// evenly filled slots becomes slower with twice the tokens. Reading a copy takes the time by which it
    /// becomes slower if the same tokens fill one slot more.
    pub fn copy_times(&self, batch_tokens: u64, cluster: &Cluster) -> CopyTimes {
        let slots = cluster.slots_per_rank().max(1);
        let tokens = (batch_tokens / cluster.slots().max(1) as u64).max(1);
        let time = |tokens: u64| self.experts.rank_ps(&vec![tokens; slots], 1);
        let added = time(2 * tokens).saturating_sub(time(tokens)) / (tokens * slots as u64);
        let spread = (tokens * slots as u64 / (slots as u64 + 1)).max(1);
        let read = self.experts.rank_ps(&vec![spread; slots + 1], 1).saturating_sub(time(tokens));
        let hidden = self.hidden_ps.saturating_sub(self.start_ps);
        CopyTimes { token: added.max(1), receive: self.copy_ps, send: self.copy_ps, hidden, read }
    }

    /// Returns the time of a rank's copies, one after the other, that nothing hides.
    fn exposed_ps(&self, copies: u32) -> u64 {
        let start = if copies == 0 { 0 } else { self.start_ps };
        u64::from(copies).saturating_mul(self.copy_ps).saturating_add(start).saturating_sub(self.hidden_ps)
    }
}

impl DynamicTimeSums {
    /// Adds one batch.
    fn add(&mut self, static_ps: u64, experts_ps: u64, exposed_ps: u64) {
        let better_ps = static_ps.min(experts_ps.saturating_add(exposed_ps));
        *self = self.plus(Self { static_ps, experts_ps, exposed_ps, better_ps });
    }

    fn plus(self, other: Self) -> Self {
        Self {
            static_ps: self.static_ps.saturating_add(other.static_ps),
            experts_ps: self.experts_ps.saturating_add(other.experts_ps),
            exposed_ps: self.exposed_ps.saturating_add(other.exposed_ps),
            better_ps: self.better_ps.saturating_add(other.better_ps),
        }
    }
}

impl DynamicRow {
    fn new(planned: usize, layers: &[LayerFigures], timed: bool) -> Self {
        let every = |of: fn(&LayerFigures) -> &LayerEvaluation, value: fn(&LayerEvaluation, usize) -> f64| {
            let values = layers.iter().map(of).flat_map(|j| (0..j.peaks.len()).map(move |b| value(j, b)));
            SummaryStats::from_values(values.collect())
        };
        let counts = |of: fn(&LayerFigures) -> &[u32]| {
            SummaryStats::from_values(layers.iter().flat_map(of).map(|&count| f64::from(count)).collect())
        };
        let times = layers.iter().fold(DynamicTimeSums::default(), |sum, layer| sum.plus(layer.times));
        Self {
            planned,
            static_imbalance: every(|layer| &layer.fixed, LayerEvaluation::imbalance),
            static_excess: every(|layer| &layer.fixed, LayerEvaluation::excess),
            imbalance: every(|layer| &layer.dynamic, LayerEvaluation::imbalance),
            excess: every(|layer| &layer.dynamic, LayerEvaluation::excess),
            copies: counts(|layer| &layer.copies),
            least_copies: counts(|layer| &layer.least_copies),
            sent: counts(|layer| &layer.sent),
            split_us: every(|layer| &layer.dynamic, |j, b| f64::from(j.split_ns[b]) / 1e3),
            times: timed.then_some(times),
            batches: layers.iter().map(|layer| layer.copies.len()).sum(),
        }
    }
}
