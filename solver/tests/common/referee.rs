//! The comparison of one exact answer with HiGHS.

use evenkeel_solver::lp::{self, LpEngine};
use evenkeel_solver::{RankSplit, Violation, Workspace, solve, verify};

use super::Instance;

/// An objection of the referee.
#[derive(Debug)]
pub(crate) enum Objection {
    /// The certificate does not hold.
    Uncertified(Violation),
    /// The engines differ.
    Disagreement(String),
}

impl std::fmt::Display for Objection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Objection::Uncertified(violation) => write!(f, "uncertified: {violation}"),
            Objection::Disagreement(what) => write!(f, "disagreement: {what}"),
        }
    }
}

/// Compares the exact peak at equal speeds with the LP's optimum in tokens, rounded up.
///
/// The engine's optimum has an error. An integer within that error is accepted.
pub(crate) fn compare_fluid(instance: &Instance) -> Result<(), Objection> {
    let split = certified(instance)?;
    let fluid = lp::solve(&instance.problem, &instance.loads, LpEngine::Highs)
        .map_err(|error| Objection::Disagreement(format!("{error} on {instance:?}")))?;
    let tokens = fluid.peak * f64::from(instance.problem.speeds()[0]);
    let exact = split.peak.load as f64;
    let error = 1e-6 * tokens.max(1.0);
    if tokens <= exact + error && exact - 1.0 < tokens + error {
        return Ok(());
    }
    Err(Objection::Disagreement(format!("HiGHS {tokens}, exact {exact} on {instance:?}")))
}

/// Compares the exact peak at unequal speeds with the MILP's optimum.
pub(crate) fn compare_integer(instance: &Instance) -> Result<(), Objection> {
    let split = certified(instance)?;
    let integer = lp::solve_integer(&instance.problem, &instance.loads, LpEngine::Highs)
        .map_err(|error| Objection::Disagreement(format!("{error} on {instance:?}")))?;
    if integer.peak == split.peak {
        return Ok(());
    }
    Err(Objection::Disagreement(format!("HiGHS {:?}, exact {:?} on {instance:?}", integer.peak, split.peak)))
}

fn certified(instance: &Instance) -> Result<RankSplit, Objection> {
    let split = solve(&instance.problem, &instance.loads, &mut Workspace::new(&instance.problem))
        .map_err(|error| Objection::Disagreement(error.to_string()))?;
    verify(&instance.problem, &instance.loads, &split).map_err(Objection::Uncertified)?;
    Ok(split)
}
