//! Options of the policy `recourse`, in code and by name.

use super::perturb::{self, Perturbation};
use super::score::ScenarioObjective;
use crate::split::SplitMethod;
use std::fmt;

/// Number of iterations per scenario of a search by default. Every accepted step is split in all scenarios.
const ITERATIONS_PER_SCENARIO: u64 = 400;

/// Lowest and highest number of scenarios of a search by default.
const DEFAULT_SCENARIOS: (u64, u64) = (128, 512);

/// Default number of iterations of the last search for up to [`MAX_SLOTS_AT_FULL_EFFORT`] slots. It is a
/// third of that if a fixed rule counts, because an iteration then takes two to three times as long.
const DEFAULT_ITERATIONS: u64 = 240_000;

/// Number of slots from which iterations decrease with the square of the slots: each takes longer, and the
/// layers of such models are many.
const MAX_SLOTS_AT_FULL_EFFORT: u64 = 64;

/// Highest number of dynamic slots per rank by name.
const MAX_DYNAMIC_SLOTS: u32 = 64;

/// The policy `recourse`: placements for the split that will run.
///
/// [`Recourse::for_split`] names that split: the exact one, the even one, or a serving stack's own rule.
/// Without it, the placement is the best under exact splits that is not worse than EPLB's under even splits.
///
/// The result is a pure function of history, cluster and options, without clock or thread order. See
/// docs/placement.md.
///
/// ```
/// use evenkeel::place::{ScenarioObjective, Recourse};
///
/// let policy = Recourse::default().with_objective(ScenarioObjective::Cvar(900)).with_seed(7);
/// assert_eq!(policy.to_string(), "recourse:cvar=0.9:seed=7");
/// ```
#[derive(Debug, Clone)]
pub struct Recourse {
    pub(super) objective: ScenarioObjective,
    pub(super) seed: u64,
    pub(super) budget: Option<u64>,
    pub(super) scenarios: Option<usize>,
    pub(super) spread: Option<Perturbation>,
    /// Split that will run. `None` if it is unknown.
    pub(super) split: Option<SplitMethod>,
    /// Dynamic slots of every rank, if copies before each batch are minimised.
    pub(super) dynamic: Option<u32>,
}

impl Default for Recourse {
    /// Returns the policy for mean imbalance, with seed 0 and the default number of iterations.
    fn default() -> Self {
        Recourse {
            objective: ScenarioObjective::Mean,
            seed: 0,
            budget: None,
            scenarios: None,
            spread: None,
            split: None,
            dynamic: None,
        }
    }
}

impl Recourse {
    /// Sets the split under which the placement should be best. `lp` and `affine5` approximate the exact
    /// split and count as it.
    #[must_use]
    pub fn for_split(self, split: SplitMethod) -> Self {
        let dynamic = self.dynamic.filter(|_| split == SplitMethod::Exact);
        Recourse { split: Some(split), dynamic, ..self }
    }

    /// Places for a number of dynamic slots on every rank, which are filled before each batch
    /// ([`DynamicSlots`](crate::split::DynamicSlots)): the fewest copies with which the busiest rank is
    /// within 1 % of the mean. Splits are exact. The search for the exact split comes first, and one of three
    /// times its iterations minimises copies. With 0 slots, there is no such search.
    #[must_use]
    pub fn for_dynamic_slots(self, slots: u32) -> Self {
        if slots == 0 {
            return Recourse { dynamic: None, ..self };
        }
        Recourse { dynamic: Some(slots), split: Some(SplitMethod::Exact), ..self }
    }

    /// Sets the objective over the scenarios.
    #[must_use]
    pub fn with_objective(self, objective: ScenarioObjective) -> Self {
        Recourse { objective, ..self }
    }

    /// Sets the seed of all draws.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        Recourse { seed, ..self }
    }

    /// Sets the number of iterations of the search: priced steps and split scenarios. If a fixed rule splits
    /// or the split is unknown, choosing the scenarios takes the same number again.
    #[must_use]
    pub fn with_iterations(self, iterations: u64) -> Self {
        Recourse { budget: Some(iterations), ..self }
    }

    /// Sets the highest number of scenarios of a search, at least one.
    #[must_use]
    pub fn with_scenarios(self, scenarios: usize) -> Self {
        Recourse { scenarios: Some(scenarios.max(1)), ..self }
    }

    /// Takes the batches of the history as the batches to come. This is the practical limit if they are, and
    /// over-fitted if they are not.
    #[must_use]
    pub fn without_perturbation(self) -> Self {
        Recourse { spread: Some(perturb::no_perturbation()), ..self }
    }

    /// Reads the options behind `recourse:`, separated by colons. They are a split (`exact`, `even`, `vllm`,
    /// ..), `mean`, `cvar=LEVEL`, `worst`, `seed=N`, `iterations=N`, `scenarios=N`, `dynamic=N`. Returns
    /// `None` if one is unknown, and for dynamic slots with another split than the exact one.
    pub(crate) fn from_options(options: &str) -> Option<Self> {
        let mut policy = Recourse::default();
        for option in options.split(':') {
            if let Some(objective) = ScenarioObjective::from_name(option) {
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
                ("dynamic", value) => {
                    let slots = value.parse().ok().filter(|slots| (1..=MAX_DYNAMIC_SLOTS).contains(slots))?;
                    policy.dynamic = Some(slots);
                    policy
                }
                _ => return None,
            };
        }
        match policy {
            Recourse { dynamic: Some(slots), split: None | Some(SplitMethod::Exact), .. } => {
                Some(policy.for_dynamic_slots(slots))
            }
            // Copies are chosen together with the exact split.
            Recourse { dynamic: Some(_), .. } => None,
            _ => Some(policy),
        }
    }

    /// Returns true if the peaks of exact splits alone count.
    pub(super) fn is_for_exact_split(&self) -> bool {
        matches!(self.split, Some(SplitMethod::Exact | SplitMethod::Lp | SplitMethod::Affine5))
    }

    /// Returns the number of iterations of the last search. It decreases if slots are many.
    pub(super) fn iterations(&self, slots: &[usize]) -> u64 {
        let full = if self.is_for_exact_split() { DEFAULT_ITERATIONS } else { DEFAULT_ITERATIONS / 3 };
        let slots = slots.iter().sum::<usize>() as u64;
        let part =
            |iterations: u64| iterations * MAX_SLOTS_AT_FULL_EFFORT / slots.max(MAX_SLOTS_AT_FULL_EFFORT);
        self.budget.unwrap_or_else(|| part(part(full))).max(1)
    }

    /// Returns the number of iterations of all searches from a current placement. They start near their aim,
    /// and a service waits for them.
    pub(super) fn replan_iterations(&self, slots: &[usize]) -> u64 {
        self.budget.unwrap_or_else(|| self.iterations(slots) / 3).max(1)
    }

    /// Returns the highest number of scenarios of a search with this number of iterations.
    pub(super) fn scenarios(&self, iterations: u64) -> usize {
        let (least, most) = DEFAULT_SCENARIOS;
        self.scenarios.unwrap_or((iterations / ITERATIONS_PER_SCENARIO).clamp(least, most) as usize)
    }
}

impl fmt::Display for Recourse {
    /// Writes the name by which [`policy`](crate::place::policy) finds it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("recourse")?;
        if let Some(split) = self.split {
            write!(f, ":{split}")?;
        }
        if let Some(slots) = self.dynamic {
            write!(f, ":dynamic={slots}")?;
        }
        if self.objective != ScenarioObjective::Mean {
            write!(f, ":{}", self.objective)?;
        }
        if self.seed != 0 {
            write!(f, ":seed={}", self.seed)?;
        }
        if let Some(iterations) = self.budget {
            write!(f, ":iterations={iterations}")?;
        }
        if let Some(scenarios) = self.scenarios {
            write!(f, ":scenarios={scenarios}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in [
            "worst",
            "cvar=0.95:seed=3",
            "exact:iterations=500:scenarios=12",
            "even",
            "sglang-static:worst",
            "exact:dynamic=1",
        ] {
            assert_eq!(Recourse::from_options(name).unwrap().to_string(), format!("recourse:{name}"));
        }
        for name in ["", "best", "cvar=2", "seed=x", "worst:", "dynamic=0", "even:dynamic=1"] {
            assert!(Recourse::from_options(name).is_none(), "{name}");
        }
    }
}
