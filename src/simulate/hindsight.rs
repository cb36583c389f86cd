//! What a placement could reach if it knew the batches it is judged on.
//!
//! In: a trace and what to simulate. Out: an [`Outcome`] of the policies `hindsight` and `hindsight:even`: the search of `recourse`, shown the
//! judged steps and trusting them. No bound, as the search is none; a practical limit.

use super::{Config, Outcome, Progress, SimulateError, simulate};
use crate::place::{Policy, Recourse};
use crate::split::Method;
use crate::trace::Trace;

/// Most batches that are looked at: more than a plan looks at, as nothing has to be guessed.
const SCENARIOS: usize = 256;

/// Plans on the judged steps, and judges there: `hindsight` for the exact split, `hindsight:even` for the even one.
///
/// # Errors
/// As [`simulate`].
pub fn hindsight(trace: &Trace, config: &Config, progress: &dyn Progress) -> Result<Outcome, SimulateError> {
    let config = Config { plan_on: config.judge_on.clone(), ..config.clone() };
    let [exact, even] = [Method::Exact, Method::Even].map(|split| -> Box<dyn Policy> {
        Box::new(Recourse::default().for_split(split).trusting().with_scenarios(SCENARIOS))
    });
    let mut outcome = simulate(trace, &config, &[exact, even], progress)?;
    for (planned, name) in outcome.planned.iter_mut().zip(["hindsight", "hindsight:even"]) {
        planned.policy = name.into();
    }
    Ok(outcome)
}
