//! The imbalance of placements that know the batches on which they are judged.
//!
//! Input is a trace and the parameters of a simulation. Output is an [`SimulationResult`] of the policies
//! `hindsight` and `hindsight:even`. They are the search of `recourse`, with the judged batches as its exact
//! forecast. The search is heuristic, so the result is no bound but a practical limit.

use super::{SimulationConfig, SimulationResult, simulate};
use evenkeel::evaluate::{EvaluateError, Progress};
use evenkeel::place::{Policy, Recourse};
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;

/// The most batches that the search considers. It exceeds that of a plan, because nothing has to be forecast.
const MAX_SCENARIOS: usize = 256;

/// Plans and judges on the judged steps: `hindsight` for the exact split, `hindsight:even` for the even one.
///
/// # Errors
/// The errors are those of [`simulate`].
pub fn hindsight(
    trace: &Trace,
    config: &SimulationConfig,
    progress: &dyn Progress,
) -> Result<SimulationResult, EvaluateError> {
    let config = SimulationConfig { plan_on: config.judge_on.clone(), ..config.clone() };
    let [exact, even] = [SplitMethod::Exact, SplitMethod::Even].map(|split| -> Box<dyn Policy> {
        Box::new(Recourse::default().for_split(split).without_perturbation().with_scenarios(MAX_SCENARIOS))
    });
    let mut outcome = simulate(trace, &config, &[exact, even], progress)?;
    for (planned, name) in outcome.planned.iter_mut().zip(["hindsight", "hindsight:even"]) {
        planned.policy = name.into();
    }
    Ok(outcome)
}
