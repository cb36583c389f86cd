//! Whether planning every batch would have been worth it.
//!
//! In: the placements of a simulation, the time of an expert, the cost of a plan. Out: one [`Worth`] per policy: the time of
//! all judged batches if none, all, or those that may pay ([`WorthIt`]) are planned, the cost of planning included.

use super::{Config, Outcome, SimulateError};
use crate::place::Placement;
use crate::split::{Method, Roofline, Split, SplitError, Splitter, WorthIt, step_time};
use crate::trace::Trace;
use rayon::prelude::*;

/// The batches of one policy, timed by [`Roofline`]. Picoseconds are sums over all batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Worth {
    /// Index into [`Outcome::planned`].
    pub planned: usize,
    /// Batches that held tokens.
    pub batches: usize,
    /// Batches that the rule planned.
    pub planned_batches: usize,
    /// Every expert's tokens evenly over its copies, which needs no plan.
    pub even_ps: u64,
    /// Every batch planned.
    pub always_ps: u64,
    /// By the rule.
    pub rule_ps: u64,
    /// Sum over the batches of what no split could be faster than.
    pub bound_ps: u64,
}

/// Times the judged steps of every placement; `plan_ps` is what one plan costs.
///
/// # Errors
/// When a split fails.
pub fn worth(
    trace: &Trace,
    config: &Config,
    outcome: &Outcome,
    time: Roofline,
    plan_ps: u64,
) -> Result<Vec<Worth>, SimulateError> {
    let policies = outcome.planned.iter().enumerate();
    policies
        .map(|(planned, policy)| {
            let layers: Vec<Worth> = outcome
                .layers
                .par_iter()
                .zip(&policy.placements)
                .map(|(&layer, placement)| one_layer(trace, config, layer, placement, time, plan_ps))
                .collect::<Result<_, _>>()?;
            let sum = layers.into_iter().fold(Worth::default(), Worth::plus);
            Ok(Worth { planned, ..sum })
        })
        .collect()
}

fn one_layer(
    trace: &Trace,
    config: &Config,
    layer: usize,
    placement: &Placement,
    time: Roofline,
    plan_ps: u64,
) -> Result<Worth, SimulateError> {
    let failed = |step: usize| {
        move |source: SplitError| SimulateError::Split {
            layer: trace.layers()[layer],
            step: trace.steps()[step].clone(),
            source,
        }
    };
    let (first, per_rank) = (config.judge_on.start, placement.slots_per_rank());
    let mut rule = WorthIt::new(placement.clone(), time, plan_ps).map_err(failed(first))?;
    let mut always = Splitter::new(placement.clone(), Method::Exact).map_err(failed(first))?;
    let mut even = Splitter::new(placement.clone(), Method::Even).map_err(failed(first))?;
    let mut split = Split::default();
    let mut sum = Worth::default();
    for step in config.judge_on.clone() {
        let loads = trace.loads(step, layer);
        if loads.iter().all(|&load| load == 0) {
            continue;
        }
        let decision = rule.split(loads, &mut split).map_err(failed(step))?;
        sum.batches += 1;
        sum.planned_batches += usize::from(decision.planned);
        sum.bound_ps = sum.bound_ps.saturating_add(decision.bound_ps);
        let paid = if decision.planned { plan_ps } else { 0 };
        sum.rule_ps = sum.rule_ps.saturating_add(decision.used_ps.saturating_add(paid));
        always.split(loads, &mut split).map_err(failed(step))?;
        let taken = step_time(&time, &split.quotas, per_rank).saturating_add(plan_ps);
        sum.always_ps = sum.always_ps.saturating_add(taken);
        even.split(loads, &mut split).map_err(failed(step))?;
        sum.even_ps = sum.even_ps.saturating_add(step_time(&time, &split.quotas, per_rank));
    }
    Ok(sum)
}

impl Worth {
    fn plus(self, other: Worth) -> Worth {
        Worth {
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
