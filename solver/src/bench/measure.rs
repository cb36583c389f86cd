//! Times and judges one solver on the batches of one size.
//!
//! In: series of batches, a solver. Out: one [`Row`]. Every batch is solved in several rounds, all batches in turn, so
//! that memory is warm and branch predictors are not; a batch's time is the median of its rounds. Slow
//! solvers get fewer rounds and, when their time is up, fewer batches: the row says how many.

use std::time::{Duration, Instant};

use super::corpus::Series;
use super::engine::Engine;
use crate::{Error, Hosts, Problem, Split, Warm, Workspace, affine, edge, solve_counts_into};

/// A way to split a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Solver {
    /// [`solve_counts_into`].
    Exact,
    /// [`Warm`].
    ExactWarm,
    /// [`affine`].
    Affine5,
    /// [`edge`].
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

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Ranks.
    pub ranks: usize,
    /// Redundant slots per rank.
    pub slots: usize,
    /// Batches that were solved.
    pub instances: usize,
    /// [`Solver::name`].
    pub solver: &'static str,
    /// Median over batches, in microseconds.
    pub p50_us: f64,
    /// 99th percentile over batches, in microseconds.
    pub p99_us: f64,
    /// Share of batches with an answer that is non-negative and conserves every count (to 1e-5 of it where
    /// answers are fractions).
    pub feasible: f64,
    /// Share of batches whose peak is at most the least whole-token peak (to 1e-6 where answers are fractions).
    pub optimal: f64,
    /// The largest peak over the least one, minus one.
    pub max_gap: f64,
}

impl Solver {
    /// All, in the order of the table.
    pub const ALL: [Solver; 8] = [
        Solver::Exact,
        Solver::ExactWarm,
        Solver::Affine5,
        Solver::Edge,
        Solver::HighsSimplex,
        Solver::HighsIpm,
        Solver::Clarabel,
        Solver::Microlp,
    ];

    /// The name in tables and documents.
    pub fn name(self) -> &'static str {
        match self {
            Solver::Exact => "exact",
            Solver::ExactWarm => "exact-warm",
            Solver::Affine5 => "affine5",
            Solver::Edge => "edge",
            Solver::HighsSimplex => "highs-simplex",
            Solver::HighsIpm => "highs-ipm",
            Solver::Clarabel => "clarabel",
            Solver::Microlp => "microlp",
        }
    }

    /// Whether this build has it.
    pub fn present(self) -> bool {
        match self {
            Solver::HighsSimplex | Solver::HighsIpm => cfg!(feature = "highs"),
            Solver::Clarabel | Solver::Microlp => cfg!(feature = "lp"),
            _ => true,
        }
    }

    fn is_engine(self) -> bool {
        matches!(self, Solver::HighsSimplex | Solver::HighsIpm | Solver::Clarabel | Solver::Microlp)
    }
}

/// The solvers that this build lacks, in words; empty if it has all.
pub fn absent() -> String {
    let names: Vec<&str> = Solver::ALL.iter().filter(|s| !s.present()).map(|s| s.name()).collect();
    if names.is_empty() {
        return String::new();
    }
    format!("not in this build (features lp, highs): {}", names.join(", "))
}

/// Measures one solver on all batches of a size. `patience` bounds the time for one size; at least one
/// batch of every series is solved. None if the build lacks the solver or the problem is not its kind.
///
/// # Errors
/// Those of the exact split, which says what is optimal.
pub fn measure(
    (ranks, slots): (usize, usize),
    corpus: &[Series],
    solver: Solver,
    patience: Duration,
) -> Result<Option<Row>, Error> {
    if !solver.present() {
        return Ok(None);
    }
    let mut state = Vec::new();
    for series in corpus {
        let Some(one) = State::new(solver, &series.problem) else { return Ok(None) };
        state.push(one);
    }
    let rounds = if solver.is_engine() { 1 } else { 7 };
    let longest = corpus.iter().map(|series| series.batches.len()).max().unwrap_or(0);
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); corpus.len() * longest];
    let begin = Instant::now();
    for round in 0..rounds {
        // Batch by batch across the series, so that an early end leaves a fair sample.
        for index in 0..longest {
            let late = begin.elapsed() > patience;
            if late && (index > 0 || round > 0) {
                break;
            }
            for (number, (series, state)) in corpus.iter().zip(&mut state).enumerate() {
                let Some(batch) = series.batches.get(index) else { continue };
                state.prepare(batch);
                let start = Instant::now();
                state.solve(&series.problem, batch);
                times[number * longest + index].push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
    }

    let mut medians = Vec::new();
    let (mut feasible, mut optimal, mut max_gap) = (0usize, 0usize, 0f64);
    for (number, (series, state)) in corpus.iter().zip(&mut state).enumerate() {
        let (mut workspace, mut split) = (Workspace::new(&series.problem), Split::default());
        for (index, batch) in series.batches.iter().enumerate() {
            let times = &mut times[number * longest + index];
            if times.is_empty() {
                continue;
            }
            medians.push(quantile(times, 0.5));
            solve_counts_into(&series.problem, batch, &mut workspace, &mut split)?;
            state.prepare(batch);
            state.solve(&series.problem, batch);
            let answer = state.answer(&series.problem, batch);
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
    Ok(Some(Row {
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

fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (share * values.len().saturating_sub(1) as f64).round() as usize;
    values.get(index).copied().unwrap_or(0.0)
}

/// A solver set up for one problem, with its last answer.
#[derive(Debug)]
enum State {
    Exact(Box<Workspace>, Split),
    Warm(Box<Warm>),
    Affine(Box<affine::Workspace>, affine::Shares, Vec<u64>),
    Edge(edge::Workspace, edge::Quotas),
    Engine(Engine, Option<Vec<f64>>, Vec<u64>),
}

struct Answer {
    feasible: bool,
    peak: f64,
    tolerance: f64,
}

impl State {
    fn new(solver: Solver, problem: &Problem) -> Option<State> {
        Some(match solver {
            Solver::Exact => State::Exact(Box::new(Workspace::new(problem)), Split::default()),
            Solver::ExactWarm => State::Warm(Box::new(Warm::new(problem.clone()))),
            Solver::Affine5 => State::Affine(
                Box::new(affine::Workspace::new(problem)),
                affine::Shares::default(),
                Vec::new(),
            ),
            Solver::Edge => State::Edge(edge::Workspace::new(problem).ok()?, edge::Quotas::default()),
            _ => State::Engine(Engine::of(solver)?, None, Vec::new()),
        })
    }

    /// What is not timed: affine5 and the engines take 64-bit loads.
    fn prepare(&mut self, batch: &[u32]) {
        if let State::Affine(.., loads) | State::Engine(.., loads) = self {
            loads.clear();
            loads.extend(batch.iter().map(|&count| u64::from(count)));
        }
    }

    fn solve(&mut self, problem: &Problem, batch: &[u32]) {
        // An error leaves no answer, which is judged as not feasible.
        match self {
            State::Exact(workspace, split) => {
                let _ = solve_counts_into(problem, batch, workspace, split);
            }
            State::Warm(warm) => {
                let _ = warm.solve(batch);
            }
            State::Affine(workspace, shares, loads) => {
                let _ = affine::solve_into(problem, loads, workspace, shares);
            }
            State::Edge(workspace, quotas) => {
                let _ = edge::solve_counts_into(problem, batch, workspace, quotas);
            }
            State::Engine(engine, quotas, loads) => *quotas = engine.solve(problem, loads),
        }
    }

    fn answer(&mut self, problem: &Problem, batch: &[u32]) -> Answer {
        let hosts = problem.hosts();
        let whole = |quotas: &[u64]| quotas.iter().map(|&quota| quota as f64).collect::<Vec<_>>();
        let (quotas, tolerance) = match self {
            State::Exact(_, split) => (whole(&split.quotas), 0.0),
            State::Warm(warm) => match warm.solve(batch) {
                Ok(split) => (whole(&split.quotas), 0.0),
                Err(_) => (Vec::new(), 0.0),
            },
            State::Edge(_, quotas) => (whole(&quotas.quotas), 0.0),
            State::Affine(_, shares, _) => {
                let load_of = |item: usize| f64::from(batch[item]);
                let of_item = |item: usize| {
                    shares.shares[hosts.offset(item)..hosts.offset(item + 1)]
                        .iter()
                        .map(move |&share| f64::from(share) * load_of(item))
                };
                ((0..hosts.items()).flat_map(of_item).collect(), 1e-6)
            }
            State::Engine(_, quotas, _) => (quotas.take().unwrap_or_default(), 1e-6),
        };
        judge(hosts, batch, &quotas, tolerance)
    }
}

fn judge(hosts: &Hosts, batch: &[u32], quotas: &[f64], tolerance: f64) -> Answer {
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
        for (&rank, quota) in hosts.of(item).iter().zip(own) {
            ranks[rank as usize] += quota;
        }
    }
    Answer { feasible, peak: ranks.into_iter().fold(0.0, f64::max), tolerance }
}
