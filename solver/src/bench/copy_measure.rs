//! Comparison of the choice of copies with published rules: copies, peaks, times and microseconds.
//!
//! In: shapes of batches and a number of seeds. Out: one [`CopyRow`] per goal and method. A published rule
//! states its own copies and peak. For a fair comparison the solver gets as many slots as the rule uses, and
//! then the rule's peak, its number of copies, or its time as the mark to reach.

use std::time::Instant;

use super::copy_corpus::{CopyLaw, CopyShape};
use super::copy_rules::{CopiedPiece, CopyRule, RuleInput, mean_load};
use super::measure::quantile;
use crate::copies::{
    CopyEffort, CopyGoal, CopyPlan, CopyProblem, CopySolver, CopyTimes, CopyViolation, ItemCopy, check_copies,
};
use crate::{Hosts, SolverError};

/// Quantity that a comparison minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyObjective {
    /// Copies, at the peak of UltraEP's rule and at least 1.01 of the mean.
    Copies,
    /// Peak, with all dynamic slots. UltraEP's rule starts at the mean.
    Peak,
    /// Time of the busiest rank and of the longest transfer.
    Time,
}

impl CopyObjective {
    /// All objectives.
    pub const ALL: [CopyObjective; 3] = [CopyObjective::Copies, CopyObjective::Peak, CopyObjective::Time];

    /// Returns the name in tables and documents.
    pub fn name(self) -> &'static str {
        match self {
            CopyObjective::Copies => "copies",
            CopyObjective::Peak => "peak",
            CopyObjective::Time => "time",
        }
    }
}

/// Error of a measurement.
#[derive(Debug, thiserror::Error)]
pub enum CopyMeasureError {
    /// The solver refused the batch.
    #[error(transparent)]
    Solver(#[from] SolverError),
    /// A plan of the solver is wrong.
    #[error("a plan of the solver failed its check")]
    Plan(#[from] CopyViolation),
}

/// Batches of one shape with their dynamic slots.
#[derive(Debug, Clone)]
pub struct CopyCorpus {
    /// Name of the corpus.
    pub name: String,
    /// Shape of the batches.
    pub shape: CopyShape,
    /// Dynamic slots of every rank.
    pub slots: u32,
    /// Loads of all batches.
    pub batches: Vec<Vec<u32>>,
}

/// Row of the table.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CopyRow {
    /// Quantity that is minimised.
    pub objective: CopyObjective,
    /// Name of the method.
    pub solver: &'static str,
    /// Number of batches.
    pub instances: usize,
    /// Copies per batch, on average.
    pub copies: f64,
    /// Peak over mean, on average.
    pub peak_over_mean: f64,
    /// Time of the busiest rank and of the longest transfer in microseconds, on average.
    pub time_us: f64,
    /// Lower bound on the copies, on average. NaN for rules.
    pub bound_copies: f64,
    /// Lower bound on peak over mean, on average. NaN for rules.
    pub bound_peak_over_mean: f64,
    /// Median time of a batch in microseconds. NaN for rules, which are not written for speed here.
    pub p50_us: f64,
    /// 99th percentile of the time of a batch in microseconds.
    pub p99_us: f64,
}

/// Batches of a corpus on which a rule does better than the solver at equal slots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Defeats {
    /// With fewer copies at the rule's peak.
    pub copies: usize,
    /// With a lower peak for the rule's number of copies.
    pub peak: usize,
    /// With less time.
    pub time: usize,
}

impl CopyCorpus {
    /// Draws the batches of a number of seeds.
    pub fn draw(name: String, shape: CopyShape, slots: u32, seeds: std::ops::Range<u64>) -> CopyCorpus {
        CopyCorpus { name, shape, slots, batches: seeds.map(|seed| shape.draw_loads(seed)).collect() }
    }

    /// Returns recorded batches, each with the loads of all items in the order of their homes.
    pub fn recorded(name: String, ranks: usize, slots: u32, batches: Vec<Vec<u32>>) -> CopyCorpus {
        let items = batches.first().map_or(0, Vec::len);
        let shape = CopyShape { ranks, items, top_k: 1, tokens_per_rank: 0, law: CopyLaw::Even };
        CopyCorpus { name, shape, slots, batches }
    }

    /// Returns the problem with a number of slots per rank.
    ///
    /// # Errors
    /// Fails if the shape has no rank, or more than [`Hosts::MAX_RANKS`].
    pub fn problem(&self, slots: u32) -> Result<CopyProblem, SolverError> {
        CopyProblem::new(
            Hosts::new(self.shape.ranks, self.shape.list_homes())?,
            vec![slots; self.shape.ranks],
        )
    }

    /// Compares the solver with all published rules on all batches.
    ///
    /// # Errors
    /// Fails as the solver does, and if a plan of the solver fails its check.
    pub fn compare(
        &self,
        objective: CopyObjective,
        times: CopyTimes,
        effort: CopyEffort,
    ) -> Result<Vec<CopyRow>, CopyMeasureError> {
        let mut rows = vec![self.measure_solver(objective, times, effort)?];
        rows.extend(CopyRule::ALL.map(|rule| self.measure_rule(rule, objective, times)));
        Ok(rows)
    }

    /// Measures the solver on all batches. Every plan is checked.
    ///
    /// # Errors
    /// Fails as the solver does, and if a plan fails its check.
    pub fn measure_solver(
        &self,
        objective: CopyObjective,
        times: CopyTimes,
        effort: CopyEffort,
    ) -> Result<CopyRow, CopyMeasureError> {
        let problem = self.problem(self.slots)?;
        let mut solver = CopySolver::new(&problem).with_effort(effort);
        let present = problem.empty_slots();
        let (mut plan, mut rounds_us, mut averages) =
            (CopyPlan::default(), vec![], Averages::new(self.batches.len()));
        for loads in &self.batches {
            let goal = self.goal(objective, times, loads);
            let mut rounds = vec![];
            for _ in 0..7 {
                let start = Instant::now();
                solver.solve_into(loads, &present, goal, &mut plan)?;
                rounds.push(start.elapsed().as_secs_f64() * 1e6);
            }
            check_copies(&problem, loads, &present, goal, &plan)?;
            rounds_us.push(quantile(&mut rounds, 0.5));
            let mean = f64::from(mean_load(loads, self.shape.ranks)).max(1.0);
            let ns = times.measure(plan.peak, &plan.copies, self.shape.ranks);
            averages.add([
                plan.copies.len() as f64,
                f64::from(plan.peak) / mean,
                ns as f64 / 1e3,
                f64::from(plan.least_copies),
                f64::from(plan.least_peak) / mean,
            ]);
        }
        Ok(CopyRow {
            p50_us: quantile(&mut rounds_us, 0.5),
            p99_us: quantile(&mut rounds_us, 0.99),
            ..averages.row(objective, "evenkeel", self.batches.len())
        })
    }

    /// Measures a published rule on all batches.
    pub fn measure_rule(&self, rule: CopyRule, objective: CopyObjective, times: CopyTimes) -> CopyRow {
        let mut averages = Averages::new(self.batches.len());
        for loads in &self.batches {
            let mut input = self.input(loads);
            let mean = mean_load(loads, self.shape.ranks);
            if objective == CopyObjective::Peak {
                input.threshold = mean;
            }
            let pieces = rule.plan(input);
            let peak = self.peak(loads, &pieces);
            averages.add([
                pieces.len() as f64,
                f64::from(peak) / f64::from(mean).max(1.0),
                self.time(times, loads, peak, &pieces) as f64 / 1e3,
                f64::NAN,
                f64::NAN,
            ]);
        }
        averages.row(objective, rule.name(), self.batches.len())
    }

    /// Returns the goal of the solver for an objective.
    fn goal(&self, objective: CopyObjective, times: CopyTimes, loads: &[u32]) -> CopyGoal {
        match objective {
            // UltraEP raises its threshold where it misses 1 % above the mean. The solver gets the one
            // reached.
            CopyObjective::Copies => {
                let reached = self.peak_of(CopyRule::UltraEp, loads);
                CopyGoal::FewestCopies { peak: reached.max(self.input(loads).threshold) }
            }
            CopyObjective::Peak => CopyGoal::LowestPeak { copies: u32::MAX },
            CopyObjective::Time => CopyGoal::LeastTime(times),
        }
    }

    /// Returns the time of a rule's plan in nanoseconds.
    fn time(&self, times: CopyTimes, loads: &[u32], peak: u32, pieces: &[CopiedPiece]) -> u64 {
        let input = self.input(loads);
        let copy = |piece: &CopiedPiece| ItemCopy {
            item: piece.item as u32,
            from: input.home(piece.item) as u32,
            to: piece.rank as u32,
            slot: 0,
        };
        let copies: Vec<ItemCopy> = pieces.iter().map(copy).collect();
        times.measure(peak, &copies, self.shape.ranks)
    }

    /// Counts the batches on which a rule does better than the solver, with as many slots as the rule uses.
    ///
    /// # Errors
    /// Fails as the solver does.
    pub fn count_defeats(&self, rule: CopyRule, times: CopyTimes) -> Result<Defeats, SolverError> {
        let mut defeats = Defeats::default();
        for loads in &self.batches {
            let pieces = rule.plan(self.input(loads));
            let peak = self.peak(loads, &pieces);
            let mut used = vec![0; self.shape.ranks];
            for piece in &pieces {
                used[piece.rank] += 1;
            }
            let slots = used.into_iter().max().unwrap_or(0).max(self.slots);
            let problem = self.problem(slots)?;
            let (mut solver, present) = (CopySolver::new(&problem), problem.empty_slots());
            let copies = pieces.len() as u32;
            let plan = solver.solve(loads, &present, CopyGoal::FewestCopies { peak })?;
            defeats.copies += usize::from(plan.peak > peak || plan.copies.len() > pieces.len());
            let plan = solver.solve(loads, &present, CopyGoal::LowestPeak { copies })?;
            defeats.peak += usize::from(plan.peak > peak);
            let plan = solver.solve(loads, &present, CopyGoal::LeastTime(times))?;
            let own = times.measure(plan.peak, &plan.copies, self.shape.ranks);
            let rule = self.time(times, loads, peak, &pieces);
            defeats.time += usize::from(own > rule);
        }
        Ok(defeats)
    }

    /// Measures HiGHS on all batches, with the best plan that it finds in a number of seconds. Returns `None`
    /// if the build lacks it, if a batch has no plan, and for [`CopyObjective::Time`].
    #[cfg_attr(not(feature = "highs"), expect(unused_variables, reason = "without HiGHS there is no row"))]
    pub fn measure_milp(&self, objective: CopyObjective, times: CopyTimes, seconds: f64) -> Option<CopyRow> {
        #[cfg(not(feature = "highs"))]
        return None;
        #[cfg(feature = "highs")]
        {
            let problem = self.problem(self.slots).ok()?;
            let present = problem.empty_slots();
            let (mut averages, mut proved) = (Averages::new(self.batches.len()), 0);
            for loads in &self.batches {
                let goal = self.goal(objective, times, loads);
                let value = crate::copies::milp::solve_milp(&problem, loads, &present, goal, seconds)?;
                proved += usize::from(value.proved);
                let mean = f64::from(mean_load(loads, self.shape.ranks)).max(1.0);
                let (copies, peak) = match objective {
                    CopyObjective::Copies => (value.value as f64, f64::NAN),
                    CopyObjective::Peak => (f64::NAN, value.value as f64 / mean),
                    CopyObjective::Time => return None,
                };
                averages.add([copies, peak, f64::NAN, copies, peak]);
            }
            let mut row = averages.row(objective, "milp", self.batches.len());
            // A bound is stated where every batch is proved.
            if proved < self.batches.len() {
                (row.bound_copies, row.bound_peak_over_mean) = (f64::NAN, f64::NAN);
            }
            Some(row)
        }
    }

    /// Returns the peak that a rule reaches.
    pub fn peak_of(&self, rule: CopyRule, loads: &[u32]) -> u32 {
        self.peak(loads, &rule.plan(self.input(loads)))
    }

    fn input<'a>(&self, loads: &'a [u32]) -> RuleInput<'a> {
        RuleInput::new(loads, self.shape.ranks, self.slots as usize)
    }

    fn peak(&self, loads: &[u32], pieces: &[CopiedPiece]) -> u32 {
        self.input(loads).loads_with(pieces).into_iter().max().unwrap_or(0)
    }
}

/// Averages of a row: copies, peak over mean, microseconds, and the bounds on copies and peak.
struct Averages {
    batches: usize,
    sums: [f64; 5],
}

impl Averages {
    fn new(batches: usize) -> Averages {
        Averages { batches, sums: [0.0; 5] }
    }

    fn add(&mut self, values: [f64; 5]) {
        for (sum, value) in self.sums.iter_mut().zip(values) {
            *sum += value;
        }
    }

    /// Returns a row without measured times.
    fn row(&self, objective: CopyObjective, solver: &'static str, instances: usize) -> CopyRow {
        let [copies, peak_over_mean, time_us, bound_copies, bound_peak_over_mean] =
            self.sums.map(|sum| sum / self.batches.max(1) as f64);
        CopyRow {
            objective,
            solver,
            instances,
            copies,
            peak_over_mean,
            time_us,
            bound_copies,
            bound_peak_over_mean,
            p50_us: f64::NAN,
            p99_us: f64::NAN,
        }
    }
}
