//! Comparison of the choice of copies with published rules: copies, peaks, times and microseconds.
//!
//! In: shapes of batches and a number of seeds. Out: one [`CopyRow`] per goal and method. A published rule
//! states its own copies and peak. For a fair comparison the solver gets as many slots as the rule uses, and
//! then the rule's peak, its number of copies, or its time as the mark to reach.

use std::time::Instant;

use super::copy_corpus::{CopyLaw, CopyShape};
use super::copy_rules::{CopiedPiece, CopyRule, RuleInput};
use super::measure::quantile;
use crate::copies::{CopyGoal, CopyPlan, CopyProblem, CopySolver, CopyTimes, ItemCopy};
use crate::{Hosts, Problem, RankSplit, SolverError, Workspace, solve_into};

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
    /// Quantity that is minimised: "copies", "peak" or "time". "split" is the split without copies.
    pub objective: &'static str,
    /// Name of the method.
    pub solver: &'static str,
    /// Number of batches.
    pub instances: usize,
    /// Copies per batch, on average.
    pub copies: f64,
    /// Peak over mean, on average.
    pub peak_over_mean: f64,
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

    /// Measures the solver on all batches, for one goal per batch.
    ///
    /// # Errors
    /// Fails as the solver does.
    pub fn measure_solver(
        &self,
        solver: &mut CopySolver,
        objective: &'static str,
        goal: impl Fn(&[u32]) -> CopyGoal,
    ) -> Result<CopyRow, SolverError> {
        let present = self.problem(self.slots)?.empty_slots();
        let (mut plan, mut times, mut sums) = (CopyPlan::default(), vec![], [0.0; 4]);
        for loads in &self.batches {
            let goal = goal(loads);
            let mut rounds = vec![];
            for _ in 0..7 {
                let start = Instant::now();
                solver.solve_into(loads, &present, goal, &mut plan)?;
                rounds.push(start.elapsed().as_secs_f64() * 1e6);
            }
            times.push(quantile(&mut rounds, 0.5));
            let mean = f64::from(mean_load(loads, self.shape.ranks));
            let values = [
                plan.copies.len() as f64,
                f64::from(plan.peak) / mean,
                f64::from(plan.least_copies),
                f64::from(plan.least_peak) / mean,
            ];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value / self.batches.len() as f64;
            }
        }
        Ok(CopyRow {
            objective,
            solver: "evenkeel",
            instances: self.batches.len(),
            copies: sums[0],
            peak_over_mean: sums[1],
            bound_copies: sums[2],
            bound_peak_over_mean: sums[3],
            p50_us: quantile(&mut times, 0.5),
            p99_us: quantile(&mut times, 0.99),
        })
    }

    /// Measures the exact split without copies on all batches, for comparison.
    ///
    /// # Errors
    /// Fails as the solver does.
    pub fn measure_split(&self) -> Result<CopyRow, SolverError> {
        let problem = Problem::new(self.problem(0)?.hosts().clone());
        let (mut workspace, mut split) = (Workspace::new(&problem), RankSplit::default());
        let (mut times, mut peaks) = (vec![], 0.0);
        for loads in &self.batches {
            let wide: Vec<u64> = loads.iter().map(|&load| u64::from(load)).collect();
            let mut rounds = vec![];
            for _ in 0..7 {
                let start = Instant::now();
                solve_into(&problem, &wide, &mut workspace, &mut split)?;
                rounds.push(start.elapsed().as_secs_f64() * 1e6);
            }
            times.push(quantile(&mut rounds, 0.5));
            let peak = split.rank_loads.iter().copied().max().unwrap_or(0);
            peaks += peak as f64 / f64::from(mean_load(loads, self.shape.ranks));
        }
        Ok(CopyRow {
            objective: "split",
            solver: "exact",
            instances: self.batches.len(),
            copies: 0.0,
            peak_over_mean: peaks / self.batches.len().max(1) as f64,
            bound_copies: f64::NAN,
            bound_peak_over_mean: f64::NAN,
            p50_us: quantile(&mut times, 0.5),
            p99_us: quantile(&mut times, 0.99),
        })
    }

    /// Measures a published rule on all batches.
    pub fn measure_rule(&self, rule: CopyRule, objective: &'static str) -> CopyRow {
        let (mut copies, mut peaks) = (0.0, 0.0);
        for loads in &self.batches {
            let plan = rule.plan(self.input(loads));
            copies += plan.len() as f64;
            peaks += f64::from(self.peak(loads, &plan)) / f64::from(mean_load(loads, self.shape.ranks));
        }
        let batches = self.batches.len() as f64;
        CopyRow {
            objective,
            solver: rule.name(),
            instances: self.batches.len(),
            copies: copies / batches,
            peak_over_mean: peaks / batches,
            bound_copies: f64::NAN,
            bound_peak_over_mean: f64::NAN,
            p50_us: f64::NAN,
            p99_us: f64::NAN,
        }
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
            let input = self.input(loads);
            let made: Vec<ItemCopy> = pieces
                .iter()
                .map(|piece| ItemCopy {
                    item: piece.item as u32,
                    from: input.home(piece.item) as u32,
                    to: piece.rank as u32,
                    slot: 0,
                })
                .collect();
            let ranks = self.shape.ranks;
            let (own, rule) =
                (times.measure(plan.peak, &plan.copies, ranks), times.measure(peak, &made, ranks));
            defeats.time += usize::from(own > rule);
        }
        Ok(defeats)
    }

    /// Measures HiGHS on all batches, with the best plan that it finds in a number of seconds. Returns `None`
    /// if the build lacks it or if a batch has no plan.
    #[cfg_attr(not(feature = "highs"), expect(unused_variables, reason = "without HiGHS there is no row"))]
    pub fn measure_milp(
        &self,
        objective: &'static str,
        goal: impl Fn(&[u32]) -> CopyGoal,
        seconds: f64,
    ) -> Option<CopyRow> {
        #[cfg(not(feature = "highs"))]
        return None;
        #[cfg(feature = "highs")]
        {
            let problem = self.problem(self.slots).ok()?;
            let present = problem.empty_slots();
            let (mut sum, mut proved) = (0.0, 0);
            for loads in &self.batches {
                let value = crate::copies::milp::solve_milp(&problem, loads, &present, goal(loads), seconds)?;
                proved += usize::from(value.proved);
                let mean = f64::from(mean_load(loads, self.shape.ranks));
                sum += value.value as f64 / if objective == "peak" { mean } else { 1.0 };
            }
            let average = sum / self.batches.len() as f64;
            let (copies, peak) = if objective == "peak" { (f64::NAN, average) } else { (average, f64::NAN) };
            // A bound is stated where every batch is proved.
            let all = proved == self.batches.len();
            let bound = |value: f64| if all { value } else { f64::NAN };
            Some(CopyRow {
                objective,
                solver: "milp",
                instances: self.batches.len(),
                copies,
                peak_over_mean: peak,
                bound_copies: bound(copies),
                bound_peak_over_mean: bound(peak),
                p50_us: f64::NAN,
                p99_us: f64::NAN,
            })
        }
    }

    /// Returns the peak that a rule reaches.
    pub fn peak_of(&self, rule: CopyRule, loads: &[u32]) -> u32 {
        self.peak(loads, &rule.plan(self.input(loads)))
    }

    fn input<'a>(&self, loads: &'a [u32]) -> RuleInput<'a> {
        RuleInput { loads, ranks: self.shape.ranks, slots: self.slots as usize }
    }

    fn peak(&self, loads: &[u32], pieces: &[CopiedPiece]) -> u32 {
        self.input(loads).loads_with(pieces).into_iter().max().unwrap_or(0)
    }
}

/// Returns the mean load of a rank, rounded up.
pub fn mean_load(loads: &[u32], ranks: usize) -> u32 {
    let total: u64 = loads.iter().map(|&load| u64::from(load)).sum();
    total.div_ceil(ranks.max(1) as u64) as u32
}
