//! The split as a linear programme, stated once in good_lp.
//!
//! In: a problem, the loads of one batch, an engine. Out: the engine's peak and quotas in floating point
//! ([`solve`]), or its best result in whole tokens ([`solve_integer`]). They are the referees of the exact
//! split, and a baseline for it.
//!
//! **The programme.** It has quotas `q_er ≥ 0` for the items with several hosts, and the peak `T`:
//!
//! ```text
//!   min  T
//!        Σ_r q_er             = load_e     for every shared item e
//!        Σ_e q_er − s_r · T  ≤ −fixed_r   for every rank r
//! ```
//!
//! `fixed_r` is the base load plus the items that have no other host. The unit of the continuous programme is
//! a power of two near the mean load per speed, so that the division rounds no load. The integer programme
//! counts tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};

use good_lp::solvers::clarabel::clarabel;
#[cfg(feature = "highs")]
use good_lp::solvers::highs::{HighsSolverType, highs};
use good_lp::solvers::{SolutionStatus, WithTimeLimit, microlp::microlp};
use good_lp::{Expression, ProblemVariables, ResolutionError, Solution, SolverModel, Variable, variable};

use crate::{Peak, Problem, SolverError};

/// Time limit of an engine in seconds. Branch and bound may otherwise run for hours over symmetric quotas.
const TIME_LIMIT_SECONDS: f64 = 60.0;

/// Linear programming engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LpEngine {
    /// microlp: pure Rust. Integer results are limited to quotas below 2³¹.
    Microlp,
    /// Clarabel: pure Rust, an interior point method. It gives no integer results.
    Clarabel,
    /// HiGHS: C++, with its own choice of method.
    #[cfg(feature = "highs")]
    Highs,
    /// HiGHS, dual simplex.
    #[cfg(feature = "highs")]
    HighsSimplex,
    /// HiGHS, interior point with crossover.
    #[cfg(feature = "highs")]
    HighsIpm,
}

impl LpEngine {
    /// Returns HiGHS if it is built in, else microlp.
    pub fn best_available() -> LpEngine {
        #[cfg(feature = "highs")]
        return LpEngine::Highs;
        #[cfg(not(feature = "highs"))]
        return LpEngine::Microlp;
    }

    /// Returns the engine's name as people write it.
    pub fn name(self) -> &'static str {
        match self {
            LpEngine::Microlp => "microlp",
            LpEngine::Clarabel => "Clarabel",
            #[cfg(feature = "highs")]
            LpEngine::Highs => "HiGHS",
            #[cfg(feature = "highs")]
            LpEngine::HighsSimplex => "HiGHS simplex",
            #[cfg(feature = "highs")]
            LpEngine::HighsIpm => "HiGHS IPM",
        }
    }
}

/// Result of an engine for the continuous programme, exact only within the engine's tolerances.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LpSplit {
    /// Lowest peak, load per speed.
    pub peak: f64,
    /// Quota of every (item, host) pair, in the numbering of [`Hosts`](crate::Hosts). Quotas are
    /// non-negative.
    pub quotas: Vec<f64>,
}

/// Result of an engine for the integer programme. The quotas are rounded and checked to conserve every load.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IntegerPeak {
    /// Exact peak of these quotas.
    pub peak: Peak,
    /// Quota of every (item, host) pair, in the numbering of [`Hosts`](crate::Hosts).
    pub quotas: Vec<u64>,
}

/// Reasons for which an engine gives no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LpError {
    /// The loads do not fit the problem.
    #[error(transparent)]
    Input(#[from] SolverError),
    /// The engine failed, or stopped before it proved an optimum.
    #[error("{engine} failed: {reason}", engine = engine.name())]
    Engine {
        /// Engine in question.
        engine: LpEngine,
        /// Message of the engine.
        reason: String,
    },
    /// The engine's integer result, once rounded, does not conserve this item's load.
    #[error("{engine} gave item {item} quotas that do not add up to its load", engine = engine.name())]
    NotConserved {
        /// Engine in question.
        engine: LpEngine,
        /// Item in question.
        item: usize,
    },
}

/// Solves the continuous programme.
///
/// # Errors
/// Returns [`LpError::Input`] as [`crate::solve`] does, and [`LpError::Engine`] if the engine fails.
pub fn solve(problem: &Problem, loads: &[u64], engine: LpEngine) -> Result<LpSplit, LpError> {
    let total = problem.checked_total(loads)?;
    let speeds: u64 = problem.speeds().iter().map(|&speed| u64::from(speed)).sum();
    // The unit is the largest power of two up to the mean load per speed.
    let unit = (1u64 << (total / speeds).max(1).ilog2()) as f64;
    let model = SplitModel::build_model(problem, loads, unit, false);
    let values = model.run(engine)?;
    let mut quotas: Vec<f64> = single_hosted(problem, loads).into_iter().map(|quota| quota as f64).collect();
    for (&(_, pair), value) in model.columns.iter().zip(&values.quotas) {
        quotas[pair] = value.max(0.0) * unit;
    }
    Ok(LpSplit { peak: values.peak * unit, quotas })
}

/// Solves the integer programme in whole tokens, proved optimal by branch and bound. It suits small problems.
///
/// # Errors
/// Returns [`LpError::Input`] as [`crate::solve`] does. Returns [`LpError::Engine`] if the engine fails or
/// has no proof after a minute. Returns [`LpError::NotConserved`] if its result is not integral enough to be
/// rounded.
pub fn solve_integer(problem: &Problem, loads: &[u64], engine: LpEngine) -> Result<IntegerPeak, LpError> {
    problem.checked_total(loads)?;
    if engine == LpEngine::Clarabel {
        return Err(LpError::Engine { engine, reason: "it does not support integer variables".to_owned() });
    }
    let hosts = problem.hosts();
    let model = SplitModel::build_model(problem, loads, 1.0, true);
    let values = model.run(engine)?;
    let mut quotas = single_hosted(problem, loads);
    for (&(_, pair), value) in model.columns.iter().zip(&values.quotas) {
        quotas[pair] = value.round().max(0.0) as u64;
    }
    let mut rank_loads = problem.base_loads().to_vec();
    for (item, &load) in loads.iter().enumerate() {
        let own = &quotas[hosts.offset(item)..hosts.offset(item + 1)];
        let sum = own.iter().try_fold(0u64, |sum, &quota| sum.checked_add(quota));
        if sum != Some(load) {
            return Err(LpError::NotConserved { engine, item });
        }
        // Conserved loads and base loads add up to no more than the checked total.
        for (&rank, quota) in hosts.ranks_of(item).iter().zip(own) {
            rank_loads[rank as usize] += quota;
        }
    }
    let peaks = rank_loads.iter().zip(problem.speeds()).map(|(&load, &speed)| Peak { load, speed });
    let peak = peaks.max().unwrap_or(Peak { load: 0, speed: 1 });
    Ok(IntegerPeak { peak, quotas })
}

/// Returns the quotas of items with one host, and zero elsewhere.
fn single_hosted(problem: &Problem, loads: &[u64]) -> Vec<u64> {
    let hosts = problem.hosts();
    let mut quotas = vec![0; hosts.len()];
    for (item, &load) in loads.iter().enumerate() {
        if hosts.ranks_of(item).len() == 1 {
            quotas[hosts.offset(item)] = load;
        }
    }
    quotas
}

/// Programme in good_lp's terms.
struct SplitModel {
    variables: ProblemVariables,
    peak: Variable,
    /// Variable and pair of every quota.
    columns: Vec<(Variable, usize)>,
    rows: Vec<good_lp::Constraint>,
}

/// Values of the engine, in the model's unit.
struct ModelValues {
    peak: f64,
    quotas: Vec<f64>,
}

impl SplitModel {
    fn build_model(problem: &Problem, loads: &[u64], unit: f64, integer: bool) -> SplitModel {
        let hosts = problem.hosts();
        let mut variables = ProblemVariables::new();
        let peak = variables.add(variable().min(0.0));
        let mut columns = Vec::new();
        let mut rows = Vec::new();
        let mut fixed = problem.base_loads().to_vec();
        let mut rank_sums: Vec<Expression> = vec![Expression::default(); hosts.ranks()];
        for (item, &load) in loads.iter().enumerate() {
            if let [only] = hosts.ranks_of(item) {
                fixed[*only as usize] += load;
                continue;
            }
            let size = load as f64 / unit;
            let mut item_sum = Expression::default();
            for (&rank, pair) in hosts.ranks_of(item).iter().zip(hosts.offset(item)..) {
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
                // Whole rank loads as variables are few and good to branch on. Quotas are many and alike.
                let load = variables.add(variable().integer().min(0.0));
                rows.push((sum - load).leq(-fixed));
                sum = load.into();
                rows.push((sum - f64::from(speed) * peak).leq(0.0));
            } else {
                sum.add_mul(-f64::from(speed), peak);
                rows.push(sum.leq(-fixed));
            }
        }
        SplitModel { variables, peak, columns, rows }
    }

    fn run(&self, engine: LpEngine) -> Result<ModelValues, LpError> {
        let failed = |reason: String| LpError::Engine { engine, reason };
        // An engine that panics has failed, and nothing of it is used afterwards.
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let objective = self.variables.clone().minimise(self.peak);
            match engine {
                LpEngine::Microlp => {
                    self.solve_model(objective.using(microlp).with_time_limit(TIME_LIMIT_SECONDS))
                }
                LpEngine::Clarabel => self.solve_model(objective.using(clarabel)),
                #[cfg(feature = "highs")]
                LpEngine::Highs => self.solve_model(configure_highs(objective.using(highs))),
                #[cfg(feature = "highs")]
                LpEngine::HighsSimplex => self.solve_model(
                    configure_highs(objective.using(highs)).set_solver(HighsSolverType::Simplex),
                ),
                #[cfg(feature = "highs")]
                LpEngine::HighsIpm => {
                    self.solve_model(configure_highs(objective.using(highs)).set_solver(HighsSolverType::Ipm))
                }
            }
        }));
        match answer {
            // No gap is allowed, so a reported one is the rounding of a bound.
            Ok(Ok((SolutionStatus::Optimal | SolutionStatus::GapLimit, values))) => Ok(values),
            Ok(Ok((status, _))) => Err(failed(format!("stopped early: {status:?}"))),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("it panicked".to_owned())),
        }
    }

    fn solve_model<M>(&self, mut model: M) -> Result<(SolutionStatus, ModelValues), ResolutionError>
    where
        M: SolverModel<Error = ResolutionError>,
    {
        for row in &self.rows {
            model.add_constraint(row.clone());
        }
        let solution = model.solve()?;
        let quotas = self.columns.iter().map(|&(quota, _)| solution.value(quota)).collect();
        Ok((solution.status(), ModelValues { peak: solution.value(self.peak), quotas }))
    }
}

/// Configures HiGHS as a referee: one thread, tight tolerances, no optimality gap.
#[cfg(feature = "highs")]
fn configure_highs(model: good_lp::solvers::highs::HighsProblem) -> good_lp::solvers::highs::HighsProblem {
    model
        .set_threads(1)
        .set_time_limit(TIME_LIMIT_SECONDS)
        .set_option("primal_feasibility_tolerance", 1e-9)
        .set_option("dual_feasibility_tolerance", 1e-9)
        .set_option("mip_feasibility_tolerance", 1e-9)
        .set_option("mip_rel_gap", 0.0)
        .set_option("mip_abs_gap", 0.0)
}
