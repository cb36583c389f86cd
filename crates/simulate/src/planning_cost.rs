//! The comparison of the time that plans save with the time that planning takes.
//!
//! Input is the placements of a simulation, the time of an expert, and the cost of a plan. Output is one
//! [`PlanningCostRow`] per policy. It has the time of all judged batches if none, all, or only the promising
//! ones ([`lazy`](evenkeel::split::SplitterBuilder::lazy)) are planned, including the cost of planning.

use super::{SimulationConfig, SimulationResult};
use evenkeel::evaluate::EvaluateError;
use evenkeel::place::Placement;
use evenkeel::split::{Roofline, Split, SplitError, SplitMethod, Splitter, step_time};
use evenkeel::trace::Trace;
use rayon::prelude::*;

/// The batches of one policy, timed by [`Roofline`]. Picoseconds are sums over all batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct PlanningCostRow {
    /// The index into [`SimulationResult::planned`].
    pub planned: usize,
    /// The number of batches with tokens.
    pub batches: usize,
    /// The number of batches that the rule planned.
    pub planned_batches: usize,
    /// The time with even splits, which need no plan.
    pub even_ps: u64,
    /// The time with a plan for every batch.
    pub always_ps: u64,
    /// The time with the plans of the rule.
    pub rule_ps: u64,
    /// The sum over the batches of the lowest time of any split.
    pub bound_ps: u64,
}

/// Times the judged steps of every placement. `plan_ps` is the cost of one plan.
///
/// # Errors
/// Fails if a split fails.
pub fn compare_planning_cost(
    trace: &Trace,
    config: &SimulationConfig,
    outcome: &SimulationResult,
    time: Roofline,
    plan_ps: u64,
) -> Result<Vec<PlanningCostRow>, EvaluateError> {
    let policies = outcome.planned.iter().enumerate();
    policies
        .map(|(planned, policy)| {
            let layers: Vec<PlanningCostRow> = outcome
                .layers
                .par_iter()
                .zip(&policy.placements)
                .map(|(&layer, placement)| time_layer(trace, config, layer, placement, time, plan_ps))
                .collect::<Result<_, _>>()?;
            let sum = layers.into_iter().fold(PlanningCostRow::default(), PlanningCostRow::merge_layers);
            Ok(PlanningCostRow { planned, ..sum })
        })
        .collect()
}

fn time_layer(
    trace: &Trace,
    config: &SimulationConfig,
    layer: usize,
    placement: &Placement,
    time: Roofline,
    plan_ps: u64,
) -> Result<PlanningCostRow, EvaluateError> {
    let failed = |step: usize| {
        move |source: SplitError| EvaluateError::Split {
            layer: trace.layers()[layer],
            step: trace.steps()[step].clone(),
            source,
        }
    };
    let (first, per_rank) = (config.judge_on.start, placement.slots_per_rank());
    let rule = Splitter::builder(placement.clone()).lazy(time, plan_ps).build();
    let mut rule = rule.map_err(failed(first))?;
    let mut always = Splitter::new(placement.clone(), SplitMethod::Exact).map_err(failed(first))?;
    let mut even = Splitter::new(placement.clone(), SplitMethod::Even).map_err(failed(first))?;
    let mut split = Split::default();
    let mut sum = PlanningCostRow::default();
    for step in config.judge_on.clone() {
        let loads = trace.loads(step, layer);
        if loads.iter().all(|&load| load == 0) {
            continue;
        }
        rule.split(loads, &mut split).map_err(failed(step))?;
        let Some(decision) = split.reuse else { continue };
        sum.batches += 1;
        sum.planned_batches += usize::from(decision.planned);
        sum.bound_ps = sum.bound_ps.saturating_add(decision.bound_ps);
        let paid = if decision.planned { plan_ps } else { 0 };
        sum.rule_ps = sum.rule_ps.saturating_add(decision.used_ps.saturating_add(paid));
        always.split(loads, &mut split).map_err(failed(step))?;
        let taken = step_time(&time, &split.quotas, per_rank, &[]).saturating_add(plan_ps);
        sum.always_ps = sum.always_ps.saturating_add(taken);
        even.split(loads, &mut split).map_err(failed(step))?;
        sum.even_ps = sum.even_ps.saturating_add(step_time(&time, &split.quotas, per_rank, &[]));
    }
    Ok(sum)
}

impl PlanningCostRow {
    fn merge_layers(self, other: PlanningCostRow) -> PlanningCostRow {
        PlanningCostRow {
            planned: self.planned,
            batches: self.batches + other.batches,
            planned_batches: self.planned_batches + other.planned_batches,
            even_ps: self.even_ps.saturating_add(other.even_ps),
            always_ps: self.always_ps.saturating_add(other.always_ps),
            rule_ps: self.rule_ps.saturating_add(other.rule_ps),
            bound_ps: self.bound_ps.saturating_add(other.bound_ps),
        }
    }
}
