//! The split as a linear programme, stated once in good_lp.
//!
//! In: a problem, the loads of one batch, an engine. Out: the engine's peak and quotas, in floating point
//! ([`solve`]), or its best whole-token answer ([`solve_integer`]). These are the referees of the exact
//! split, and a baseline for it.
//!
//! **The programme.** Quotas `q_er ≥ 0` for the items with a choice, and the peak `T`:
//!
//! ```text
//!   min  T
//!        Σ_r q_er             = load_e     for every shared item e
//!        Σ_e q_er − s_r · T  ≤ −fixed_r   for every rank r
//! ```
//!
//! `fixed_r` is the base load plus the items that have no other host. The continuous programme counts in a
//! unit near the mean load per speed, a power of two so that no load is rounded by the division; the integer
//! one counts tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};

use good_lp::solvers::clarabel::clarabel;
#[cfg(feature = "highs")]
use good_lp::solvers::highs::{HighsSolverType, highs};
use good_lp::solvers::{SolutionStatus, WithTimeLimit, microlp::microlp};
use good_lp::{Expression, ProblemVariables, ResolutionError, Solution, SolverModel, Variable, variable};

use crate::{Error, Peak, Problem};

/// Seconds after which an engine is stopped: branch and bound may otherwise run for hours over symmetric
/// quotas.
const TIME_LIMIT: f64 = 60.0;

/// A linear programming engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// microlp: pure Rust. Integer answers are limited to quotas below 2³¹.
    Microlp,
    /// Clarabel: pure Rust, an interior point method. No integer answers.
    Clarabel,
    /// HiGHS: C++. Its own choice of method.
    #[cfg(feature = "highs")]
    Highs,
    /// HiGHS, dual simplex.
    #[cfg(feature = "highs")]
    HighsSimplex,
    /// HiGHS, interior point with crossover.
    #[cfg(feature = "highs")]
    HighsIpm,
}

impl Engine {
    /// HiGHS where it is built in, else microlp.
    pub fn best() -> Engine {
        #[cfg(feature = "highs")]
        return Engine::Highs;
        #[cfg(not(feature = "highs"))]
        return Engine::Microlp;
    }

    /// The engine's name, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Microlp => "microlp",
            Engine::Clarabel => "Clarabel",
            #[cfg(feature = "highs")]
            Engine::Highs => "HiGHS",
            #[cfg(feature = "highs")]
            Engine::HighsSimplex => "HiGHS simplex",
            #[cfg(feature = "highs")]
            Engine::HighsIpm => "HiGHS IPM",
        }
    }
}

/// An engine's answer to the continuous programme; exact only within the engine's tolerances.
#[derive(Debug, Clone, PartialEq)]
pub struct LpSplit {
    /// The least peak, load per speed.
    pub peak: f64,
    /// The quota of every (item, host) pair, in the numbering of [`Hosts`](crate::Hosts); non-negative.
    pub quotas: Vec<f64>,
}

/// An engine's answer to the integer programme: quotas that were rounded and found to conserve every load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegerPeak {
    /// The peak that these quotas have, computed exactly.
    pub peak: Peak,
    /// The quota of every (item, host) pair, in the numbering of [`Hosts`](crate::Hosts).
    pub quotas: Vec<u64>,
}

/// Why an engine gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LpError {
    /// The loads do not fit the problem.
    #[error(transparent)]
    Input(#[from] Error),
    /// The engine failed, or stopped before it had proved an optimum.
    #[error("{engine} failed: {reason}", engine = engine.name())]
    Engine {
        /// The engine.
        engine: Engine,
        /// What it said.
        reason: String,
    },
    /// The engine's integer answer, once rounded, does not conserve this item's load.
    #[error("{engine} gave item {item} quotas that do not add up to its load", engine = engine.name())]
    NotConserved {
        /// The engine.
        engine: Engine,
        /// The item.
        item: usize,
    },
}

/// Solves the continuous programme.
///
/// # Errors
/// [`LpError::Input`] as [`crate::solve`]; [`LpError::Engine`] if the engine fails.
pub fn solve(problem: &Problem, loads: &[u64], engine: Engine) -> Result<LpSplit, LpError> {
    let total = problem.total(loads)?;
    let speeds: u64 = problem.speeds().iter().map(|&speed| u64::from(speed)).sum();
    // The largest power of two up to the mean load per speed.
    let unit = (1u64 << (total / speeds).max(1).ilog2()) as f64;
    let model = Model::state(problem, loads, unit, false);
    let values = model.run(engine)?;
    let mut quotas: Vec<f64> = single_hosted(problem, loads).into_iter().map(|quota| quota as f64).collect();
    for (&(_, pair), value) in model.columns.iter().zip(&values.quotas) {
        quotas[pair] = value.max(0.0) * unit;
    }
    Ok(LpSplit { peak: values.peak * unit, quotas })
}

/// Solves the integer programme: whole tokens, proved optimal by branch and bound. For small problems.
///
/// # Errors
/// [`LpError::Input`] as [`crate::solve`]; [`LpError::Engine`] if the engine fails or has no proof
/// after a minute;
/// [`LpError::NotConserved`] if its answer is not integral enough to be rounded.
pub fn solve_integer(problem: &Problem, loads: &[u64], engine: Engine) -> Result<IntegerPeak, LpError> {
    problem.total(loads)?;
    if engine == Engine::Clarabel {
        return Err(LpError::Engine { engine, reason: "it knows no integers".to_owned() });
    }
    let hosts = problem.hosts();
    let model = Model::state(problem, loads, 1.0, true);
    let values = model.run(engine)?;
    let mut quotas = single_hosted(problem, loads);
    for (&(_, pair), value) in model.columns.iter().zip(&values.quotas) {
        quotas[pair] = value.round().max(0.0) as u64;
    }
    let mut rank_loads = problem.base().to_vec();
    for (item, &load) in loads.iter().enumerate() {
        let own = &quotas[hosts.offset(item)..hosts.offset(item + 1)];
        let sum = own.iter().try_fold(0u64, |sum, &quota| sum.checked_add(quota));
        if sum != Some(load) {
            return Err(LpError::NotConserved { engine, item });
        }
        // Conserved loads and base loads add up to no more than the total, which was checked.
        for (&rank, quota) in hosts.of(item).iter().zip(own) {
            rank_loads[rank as usize] += quota;
        }
    }
    let peaks = rank_loads.iter().zip(problem.speeds()).map(|(&load, &speed)| Peak { load, speed });
    let peak = peaks.max().unwrap_or(Peak { load: 0, speed: 1 });
    Ok(IntegerPeak { peak, quotas })
}

/// The quotas that leave no choice; zero elsewhere.
fn single_hosted(problem: &Problem, loads: &[u64]) -> Vec<u64> {
    let hosts = problem.hosts();
    let mut quotas = vec![0; hosts.len()];
    for (item, &load) in loads.iter().enumerate() {
        if hosts.of(item).len() == 1 {
            quotas[hosts.offset(item)] = load;
        }
    }
    quotas
}

/// The programme in good_lp's terms.
struct Model {
    variables: ProblemVariables,
    peak: Variable,
    /// The quota of a pair.
    columns: Vec<(Variable, usize)>,
    rows: Vec<good_lp::Constraint>,
}

/// The engine's values, in the model's unit.
struct Values {
    peak: f64,
    quotas: Vec<f64>,
}

impl Model {
    fn state(problem: &Problem, loads: &[u64], unit: f64, integer: bool) -> Model {
        let hosts = problem.hosts();
        let mut variables = ProblemVariables::new();
        let peak = variables.add(variable().min(0.0));
        let mut columns = Vec::new();
        let mut rows = Vec::new();
        let mut fixed = problem.base().to_vec();
        let mut rank_sums: Vec<Expression> = vec![Expression::default(); hosts.ranks()];
        for (item, &load) in loads.iter().enumerate() {
            if let [only] = hosts.of(item) {
                fixed[*only as usize] += load;
                continue;
            }
            let size = load as f64 / unit;
            let mut item_sum = Expression::default();
            for (&rank, pair) in hosts.of(item).iter().zip(hosts.offset(item)..) {
                let mut definition = variable().min(0.0).max(size);
                if integer {
                    definition = definition.integer();
                }
                let quota = variables.add(definition);
                columns.push((quota, pair));
                item_sum.add_mul(1.0, quota);
                rank_sums[rank as usize].add_mul(1.0, quota);
            }
            rows.push(item_sum.eq(size));
        }
        for ((mut sum, &speed), fixed) in rank_sums.into_iter().zip(problem.speeds()).zip(fixed) {
            let fixed = fixed as f64 / unit;
            if integer {
                // Whole rank loads, stated as such, are few and good to branch on; quotas are many and alike.
                let load = variables.add(variable().integer().min(0.0));
                rows.push((sum - load).leq(-fixed));
                sum = load.into();
                rows.push((sum - f64::from(speed) * peak).leq(0.0));
            } else {
                sum.add_mul(-f64::from(speed), peak);
                rows.push(sum.leq(-fixed));
            }
        }
        Model { variables, peak, columns, rows }
    }

    fn run(&self, engine: Engine) -> Result<Values, LpError> {
        let failed = |reason: String| LpError::Engine { engine, reason };
        // An engine that panics has failed; nothing of it is used afterwards.
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let objective = self.variables.clone().minimise(self.peak);
            match engine {
                Engine::Microlp => self.read(objective.using(microlp).with_time_limit(TIME_LIMIT)),
                Engine::Clarabel => self.read(objective.using(clarabel)),
                #[cfg(feature = "highs")]
                Engine::Highs => self.read(strict(objective.using(highs))),
                #[cfg(feature = "highs")]
                Engine::HighsSimplex => {
                    self.read(strict(objective.using(highs)).set_solver(HighsSolverType::Simplex))
                }
                #[cfg(feature = "highs")]
                Engine::HighsIpm => {
                    self.read(strict(objective.using(highs)).set_solver(HighsSolverType::Ipm))
                }
            }
        }));
        match answer {
            // No gap is granted, so a reported one is the rounding of a bound.
            Ok(Ok((SolutionStatus::Optimal | SolutionStatus::GapLimit, values))) => Ok(values),
            Ok(Ok((status, _))) => Err(failed(format!("stopped early: {status:?}"))),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("it panicked".to_owned())),
        }
    }

    fn read<M>(&self, mut model: M) -> Result<(SolutionStatus, Values), ResolutionError>
    where
        M: SolverModel<Error = ResolutionError>,
    {
        for row in &self.rows {
            model.add_constraint(row.clone());
        }
        let solution = model.solve()?;
        let quotas = self.columns.iter().map(|&(quota, _)| solution.value(quota)).collect();
        Ok((solution.status(), Values { peak: solution.value(self.peak), quotas }))
    }
}

/// HiGHS as a referee: one thread, tight tolerances, no optimality gap.
#[cfg(feature = "highs")]
fn strict(model: good_lp::solvers::highs::HighsProblem) -> good_lp::solvers::highs::HighsProblem {
    model
        .set_threads(1)
        .set_time_limit(TIME_LIMIT)
        .set_option("primal_feasibility_tolerance", 1e-9)
        .set_option("dual_feasibility_tolerance", 1e-9)
        .set_option("mip_feasibility_tolerance", 1e-9)
        .set_option("mip_rel_gap", 0.0)
        .set_option("mip_abs_gap", 0.0)
}
