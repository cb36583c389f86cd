//! What can be asked of the policy `recourse`, in code and by name.

use super::score::Objective;
use super::spread::{self, Spread};
use crate::split::Method;
use std::fmt;

/// Scenarios that a placement is searched on, unless asked otherwise.
const SCENARIOS: usize = 128;

/// Iterations of the last search for up to [`MANY`] slots, unless asked otherwise.
const ITERATIONS: u64 = 40_000;

/// With more slots, each iteration takes longer, so that there are fewer in proportion.
const MANY: u64 = 64;

/// The policy `recourse`: placements for the split that will run.
///
/// [`Recourse::for_split`] names it: the exact split, the even one, or a serving stack's own rule. Where it is not named, the
/// placement is as good under exact splits as it can be without being above EPLB's under even ones.
///
/// The answer is a pure function of history, cluster and options: no clock, no thread order. See docs/placement.md.
///
/// ```
/// use evenkeel::place::{Objective, Recourse};
///
/// let policy = Recourse::default().with_objective(Objective::Cvar(900)).with_seed(7);
/// assert_eq!(policy.to_string(), "recourse:cvar=0.9:seed=7");
/// ```
#[derive(Debug, Clone)]
pub struct Recourse {
    pub(super) objective: Objective,
    pub(super) seed: u64,
    pub(super) budget: Option<u64>,
    pub(super) scenarios: usize,
    pub(super) spread: Option<Spread>,
    /// The split that will run; `None` where it is not known.
    pub(super) split: Option<Method>,
}

impl Default for Recourse {
    /// Mean imbalance, seed 0, the default number of iterations.
    fn default() -> Self {
        Recourse {
            objective: Objective::Mean,
            seed: 0,
            budget: None,
            scenarios: SCENARIOS,
            spread: None,
            split: None,
        }
    }
}

impl Recourse {
    /// Searches for the placement that is best under this split. `lp` and `affine5` approximate the exact split and count as it.
    #[must_use]
    pub fn for_split(self, split: Method) -> Self {
        Recourse { split: Some(split), ..self }
    }

    /// Minimises this over the scenarios.
    #[must_use]
    pub fn with_objective(self, objective: Objective) -> Self {
        Recourse { objective, ..self }
    }

    /// Draws from this seed.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Recourse { seed, ..self }
    }

    /// Searches for so many iterations: steps priced and scenarios split. Choosing how far to trust the history takes as
    /// many again.
    #[must_use]
    pub fn with_iterations(self, iterations: u64) -> Self {
        Recourse { budget: Some(iterations), ..self }
    }

    /// Searches on at most so many scenarios, at least one.
    #[must_use]
    pub fn with_scenarios(self, scenarios: usize) -> Self {
        Recourse { scenarios: scenarios.max(1), ..self }
    }

    /// Takes the batches of the history for the batches to come: the practical limit where they are, over-fitted where they
    /// are not.
    #[must_use]
    pub fn trusting(self) -> Self {
        Recourse { spread: Some(spread::none()), ..self }
    }

    /// Reads the options behind `recourse:`, separated by colons: a split (`exact`, `even`, `vllm`, ..), `mean`, `cvar=LEVEL`, `worst`, `seed=N`, `iterations=N`,
    /// `scenarios=N`. `None` where one is unknown.
    pub(crate) fn named(options: &str) -> Option<Self> {
        let mut policy = Recourse::default();
        for option in options.split(':') {
            if let Some(objective) = Objective::named(option) {
                policy.objective = objective;
                continue;
            }
            if let Ok(method) = option.parse() {
                policy.split = Some(method);
                continue;
            }
            policy = match option.split_once('=')? {
                ("seed", value) => policy.with_seed(value.parse().ok()?),
                ("iterations", value) => policy.with_iterations(value.parse().ok()?),
                ("scenarios", value) => policy.with_scenarios(value.parse().ok()?),
                _ => return None,
            };
        }
        Some(policy)
    }

    /// Iterations of the last search: fewer where slots are many and each costs more.
    pub(super) fn iterations(&self, slots: &[usize]) -> u64 {
        let all: usize = slots.iter().sum();
        self.budget.unwrap_or(ITERATIONS * MANY / (all as u64).max(MANY)).max(1)
    }
}

impl fmt::Display for Recourse {
    /// The name that [`policy`](crate::place::policy) finds it by.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("recourse")?;
        if let Some(split) = self.split {
            write!(f, ":{split}")?;
        }
        if self.objective != Objective::Mean {
            write!(f, ":{}", self.objective)?;
        }
        if self.seed != 0 {
            write!(f, ":seed={}", self.seed)?;
        }
        if let Some(iterations) = self.budget {
            write!(f, ":iterations={iterations}")?;
        }
        if self.scenarios != SCENARIOS {
            write!(f, ":scenarios={}", self.scenarios)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in
            ["worst", "cvar=0.95:seed=3", "exact:iterations=500:scenarios=12", "even", "sglang-static:worst"]
        {
            assert_eq!(Recourse::named(name).unwrap().to_string(), format!("recourse:{name}"));
        }
        for name in ["", "best", "cvar=2", "seed=x", "worst:"] {
            assert!(Recourse::named(name).is_none(), "{name}");
        }
    }
}
