//! What a placement could reach if it knew the batches it is judged on.
//!
//! In: a trace and what to simulate. Out: an [`Outcome`] of one policy, `hindsight`: the search of `recourse`, shown the
//! judged steps and trusting them. No bound, as the search is none; a practical limit.

use super::{Config, Outcome, Progress, SimulateError, simulate};
use crate::place::{Policy, Recourse};
use crate::trace::Trace;

/// Most batches that are looked at: more than a plan looks at, as nothing has to be guessed.
const SCENARIOS: usize = 256;

/// Plans on the judged steps, and judges there.
///
/// # Errors
/// As [`simulate`].
pub fn hindsight(trace: &Trace, config: &Config, progress: &dyn Progress) -> Result<Outcome, SimulateError> {
    let config = Config { plan_on: config.judge_on.clone(), ..config.clone() };
    let policy: Box<dyn Policy> = Box::new(Recourse::default().trusting().with_scenarios(SCENARIOS));
    let mut outcome = simulate(trace, &config, &[policy], progress)?;
    outcome.planned.iter_mut().for_each(|planned| planned.policy = "hindsight".into());
    Ok(outcome)
}
