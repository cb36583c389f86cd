//! Measurement of one solver on the batches of one size: time and quality.
//!
//! In: series of batches, a solver. Out: one [`MeasurementRow`]. Every batch is solved in several rounds, all
//! batches in turn. Memory is then warm, but branch predictors are not. The time of a batch is the median of
//! its rounds. Slow solvers get fewer rounds, and fewer batches when their time is up. The row states the
//! number of batches.

use std::time::{Duration, Instant};

use super::corpus::{BatchSeries, CorpusSize};
use super::engine::TimedEngine;
use crate::{
    Hosts, Problem, RankSplit, SolverError, WarmSplitter, Workspace, affine_scaling, coordinate_descent,
    solve_counts_into,
};

/// Method to split a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimedSolver {
    /// Exact split by [`solve_counts_into`].
    Exact,
    /// Exact split from the previous one, by [`WarmSplitter`].
    ExactWarm,
    /// Interior point iterations by [`affine_scaling`].
    Affine5,
    /// Coordinate descent by [`coordinate_descent`].
    Edge,
    /// HiGHS, dual simplex.
    HighsSimplex,
    /// HiGHS, interior point.
    HighsIpm,
    /// Clarabel, interior point.
    Clarabel,
    /// microlp, simplex.
    Microlp,
}

/// Row of the table.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MeasurementRow {
    /// Number of ranks.
    pub ranks: usize,
    /// Number of redundant slots per rank.
    pub slots: usize,
    /// Number of solved batches.
    pub instances: usize,
    /// Name of the solver, as [`TimedSolver::name`].
    pub solver: &'static str,
    /// Median over batches, in microseconds.
    pub p50_us: f64,
    /// 99th percentile over batches, in microseconds.
    pub p99_us: f64,
    /// Share of batches with a result that is non-negative and conserves every count. The tolerance is 1e-5
    /// of the count for results in fractions.
    pub feasible: f64,
    /// Share of batches whose peak is at most the lowest whole-token peak. The tolerance is 1e-6 for results
    /// in fractions.
    pub optimal: f64,
    /// Highest ratio of the peak to the lowest one, minus one.
    pub max_gap: f64,
}

impl TimedSolver {
    /// All solvers, in the order of the table.
    pub const ALL: [TimedSolver; 8] = [
        TimedSolver::Exact,
        TimedSolver::ExactWarm,
        TimedSolver::Affine5,
        TimedSolver::Edge,
        TimedSolver::HighsSimplex,
        TimedSolver::HighsIpm,
        TimedSolver::Clarabel,
        TimedSolver::Microlp,
    ];

    /// Returns the name in tables and documents.
    pub fn name(self) -> &'static str {
        match self {
            TimedSolver::Exact => "exact",
            TimedSolver::ExactWarm => "exact-warm",
            TimedSolver::Affine5 => "affine5",
            TimedSolver::Edge => "edge",
            TimedSolver::HighsSimplex => "highs-simplex",
            TimedSolver::HighsIpm => "highs-ipm",
            TimedSolver::Clarabel => "clarabel",
            TimedSolver::Microlp => "microlp",
        }
    }

    /// Returns true if this build has the solver.
    pub fn is_present(self) -> bool {
        match self {
            TimedSolver::HighsSimplex | TimedSolver::HighsIpm => cfg!(feature = "highs"),
            TimedSolver::Clarabel | TimedSolver::Microlp => cfg!(feature = "lp"),
            _ => true,
        }
    }

    fn is_engine(self) -> bool {
        matches!(
            self,
            TimedSolver::HighsSimplex | TimedSolver::HighsIpm | TimedSolver::Clarabel | TimedSolver::Microlp
        )
    }
}

/// Lists the solvers that this build lacks. Returns an empty text if it has all.
pub fn list_absent_solvers() -> String {
    let names: Vec<&str> = TimedSolver::ALL.iter().filter(|s| !s.is_present()).map(|s| s.name()).collect();
    if names.is_empty() {
        return String::new();
    }
    format!("not in this build (features lp, highs): {}", names.join(", "))
}

/// Measures one solver on all batches of a size. `patience` limits the time for one size, but at least one
/// batch of every series is solved. Returns `None` if the build lacks the solver or if it does not support
/// the problem.
///
/// # Errors
/// Fails as the exact split does, which defines the optimum.
pub fn measure_solver(
    CorpusSize { ranks, slots }: CorpusSize,
    corpus: &[BatchSeries],
    solver: TimedSolver,
    patience: Duration,
) -> Result<Option<MeasurementRow>, SolverError> {
    if !solver.is_present() {
        return Ok(None);
    }
    let mut state = Vec::new();
    for series in corpus {
        let Some(one) = SolverState::new(solver, &series.problem) else { return Ok(None) };
        state.push(one);
    }
    let rounds = if solver.is_engine() { 1 } else { 7 };
    let longest = corpus.iter().map(|series| series.batches.len()).max().unwrap_or(0);
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); corpus.len() * longest];
    let begin = Instant::now();
    for round in 0..rounds {
        // The order is batch by batch across the series, so that an early end leaves a fair sample.
        for index in 0..longest {
            let late = begin.elapsed() > patience;
            if late && (index > 0 || round > 0) {
                break;
            }
            for (number, (series, state)) in corpus.iter().zip(&mut state).enumerate() {
                let Some(batch) = series.batches.get(index) else { continue };
                state.prepare_input(batch);
                let start = Instant::now();
                state.solve(&series.problem, batch);
                times[number * longest + index].push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
    }

    let mut medians = Vec::new();
    let (mut feasible, mut optimal, mut max_gap) = (0usize, 0usize, 0f64);
    for (number, (series, state)) in corpus.iter().zip(&mut state).enumerate() {
        let (mut workspace, mut split) = (Workspace::new(&series.problem), RankSplit::default());
        for (index, batch) in series.batches.iter().enumerate() {
            let times = &mut times[number * longest + index];
            if times.is_empty() {
                continue;
            }
            medians.push(quantile(times, 0.5));
            solve_counts_into(&series.problem, batch, &mut workspace, &mut split)?;
            state.prepare_input(batch);
            state.solve(&series.problem, batch);
            let answer = state.evaluate_batch(&series.problem, batch);
            if answer.feasible {
                feasible += 1;
                let best = split.peak.as_f64();
                let gap = if best > 0.0 { answer.peak / best - 1.0 } else { 0.0 };
                optimal += usize::from(gap <= answer.tolerance);
                max_gap = max_gap.max(gap);
            }
        }
    }
    let instances = medians.len();
    let share = |count: usize| count as f64 / instances.max(1) as f64;
    Ok(Some(MeasurementRow {
        ranks,
        slots,
        instances,
        solver: solver.name(),
        p50_us: quantile(&mut medians, 0.5),
        p99_us: quantile(&mut medians, 0.99),
        feasible: share(feasible),
        optimal: share(optimal),
        max_gap,
    }))
}

pub(super) fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (share * values.len().saturating_sub(1) as f64).round() as usize;
    values.get(index).copied().unwrap_or(0.0)
}

/// Solver for one problem, with its last result.
#[derive(Debug)]
enum SolverState {
    Exact(Box<Workspace>, RankSplit),
    Warm(Box<WarmSplitter>),
    Affine(Box<affine_scaling::AffineWorkspace>, affine_scaling::AffineShares, Vec<u64>),
    Edge(coordinate_descent::DescentWorkspace, coordinate_descent::DescentQuotas),
    Engine(TimedEngine, Option<Vec<f64>>, Vec<u64>),
}

struct BatchQuality {
    feasible: bool,
    peak: f64,
    tolerance: f64,
}

impl SolverState {
    fn new(solver: TimedSolver, problem: &Problem) -> Option<SolverState> {
        Some(match solver {
            TimedSolver::Exact => SolverState::Exact(Box::new(Workspace::new(problem)), RankSplit::default()),
            TimedSolver::ExactWarm => SolverState::Warm(Box::new(WarmSplitter::new(problem.clone()))),
            TimedSolver::Affine5 => SolverState::Affine(
                Box::new(affine_scaling::AffineWorkspace::new(problem)),
                affine_scaling::AffineShares::default(),
                Vec::new(),
            ),
            TimedSolver::Edge => SolverState::Edge(
                coordinate_descent::DescentWorkspace::new(problem).ok()?,
                coordinate_descent::DescentQuotas::default(),
            ),
            _ => SolverState::Engine(TimedEngine::from_solver(solver)?, None, Vec::new()),
        })
    }

    /// Prepares the input without timing it, because affine5 and the engines take 64-bit loads.
    fn prepare_input(&mut self, batch: &[u32]) {
        if let SolverState::Affine(.., loads) | SolverState::Engine(.., loads) = self {
            loads.clear();
            loads.extend(batch.iter().map(|&count| u64::from(count)));
        }
    }

    fn solve(&mut self, problem: &Problem, batch: &[u32]) {
        // An error leaves no result, which is judged as not feasible.
        match self {
            SolverState::Exact(workspace, split) => {
                let _ = solve_counts_into(problem, batch, workspace, split);
            }
            SolverState::Warm(warm) => {
                let _ = warm.solve(batch);
            }
            SolverState::Affine(workspace, shares, loads) => {
                let _ = affine_scaling::solve_into(problem, loads, workspace, shares);
            }
            SolverState::Edge(workspace, quotas) => {
                let _ = coordinate_descent::solve_counts_into(problem, batch, workspace, quotas);
            }
            SolverState::Engine(engine, quotas, loads) => *quotas = engine.solve(problem, loads),
        }
    }

    fn evaluate_batch(&mut self, problem: &Problem, batch: &[u32]) -> BatchQuality {
        let hosts = problem.hosts();
        let whole = |quotas: &[u64]| quotas.iter().map(|&quota| quota as f64).collect::<Vec<_>>();
        let (quotas, tolerance) = match self {
            SolverState::Exact(_, split) => (whole(&split.quotas), 0.0),
            SolverState::Warm(warm) => match warm.solve(batch) {
                Ok(split) => (whole(&split.quotas), 0.0),
                Err(_) => (Vec::new(), 0.0),
            },
            SolverState::Edge(_, quotas) => (whole(&quotas.quotas), 0.0),
            SolverState::Affine(_, shares, _) => {
                let load_of = |item: usize| f64::from(batch[item]);
                let of_item = |item: usize| {
                    shares.shares[hosts.offset(item)..hosts.offset(item + 1)]
                        .iter()
                        .map(move |&share| f64::from(share) * load_of(item))
                };
                ((0..hosts.items()).flat_map(of_item).collect(), 1e-6)
            }
            SolverState::Engine(_, quotas, _) => (quotas.take().unwrap_or_default(), 1e-6),
        };
        evaluate_quotas(hosts, batch, &quotas, tolerance)
    }
}

fn evaluate_quotas(hosts: &Hosts, batch: &[u32], quotas: &[f64], tolerance: f64) -> BatchQuality {
    let mut ranks = vec![0.0f64; hosts.ranks()];
    let mut feasible = quotas.len() == hosts.len();
    for (item, &count) in batch.iter().enumerate() {
        if !feasible {
            break;
        }
        let own = &quotas[hosts.offset(item)..hosts.offset(item + 1)];
        let count = f64::from(count);
        let off = (own.iter().sum::<f64>() - count).abs();
        feasible = off <= 10.0 * tolerance * count.max(1.0) && own.iter().all(|&quota| quota >= 0.0);
        for (&rank, quota) in hosts.ranks_of(item).iter().zip(own) {
            ranks[rank as usize] += quota;
        }
    }
    BatchQuality { feasible, peak: ranks.into_iter().fold(0.0, f64::max), tolerance }
}
