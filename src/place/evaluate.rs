//! Score of a placement: the sum of the exact peaks of the batches on which it is judged.
//!
//! In: hosts, the scenarios of a [`History`], and optionally the speed of each rank. Out: whole numbers, so
//! that comparisons are exact and the same on every machine. The unit is a token. For unequal ranks it is
//! 2⁻¹⁶ of a token per unit of speed.

use super::Placement;
use crate::forecast::History;
use evenkeel_solver::{Hosts, Problem, RankSplit, SolverError, Workspace, solve_into};

/// Batches on which placements are compared, with the memory to split them.
#[derive(Debug)]
pub(crate) struct PeakEvaluator<'a> {
    batches: Vec<&'a [u64]>,
    /// Speed of each rank, `[R]`. Empty if all are equal.
    speeds: Vec<u32>,
    workspace: Workspace,
    split: RankSplit,
}

/// Bottleneck of one batch after its split.
#[derive(Debug, Clone)]
pub(super) struct BatchBottleneck {
    /// Distance of the peak above the mean: ceil(total / ranks), or total over all speeds.
    pub(super) excess: u64,
    /// True for the ranks of the set that proves the peak, `[R]`.
    pub(super) bound: Vec<bool>,
}

impl<'a> PeakEvaluator<'a> {
    /// Creates scenarios from the last `most` batches that hold a token.
    pub(crate) fn from_history(history: &History<'a>, most: usize) -> Self {
        let mut batches: Vec<&[u64]> =
            history.batches().filter(|batch| batch.iter().any(|&load| load > 0)).collect();
        batches.drain(..batches.len().saturating_sub(most));
        Self::from_batches(batches)
    }

    /// Creates scenarios from these batches, each `[E]`.
    pub(crate) fn from_batches(batches: Vec<&'a [u64]>) -> Self {
        Self { batches, speeds: vec![], workspace: Workspace::default(), split: RankSplit::default() }
    }

    /// Sets the speeds of the ranks, `[R]`, at least 1 each.
    pub(crate) fn with_speeds(self, speeds: &[u32]) -> Self {
        Self { speeds: speeds.to_vec(), ..self }
    }

    /// Returns the batches, each `[E]`.
    pub(crate) fn batches(&self) -> &[&'a [u64]] {
        &self.batches
    }

    fn build_problem(&self, hosts: Hosts) -> Result<Problem, SolverError> {
        let problem = Problem::new(hosts);
        if self.speeds.is_empty() { Ok(problem) } else { problem.with_speeds(self.speeds.clone()) }
    }

    /// Converts load per speed to the unit of this file.
    fn to_units(&self, load: u64, speed: u64) -> u64 {
        if self.speeds.is_empty() {
            return load;
        }
        u64::try_from((u128::from(load) << 16) / u128::from(speed.max(1))).unwrap_or(u64::MAX)
    }

    /// Returns the fall of the sum of peaks that a move has to reach at a price in millionths of the mean
    /// imbalance: as many millionths of the mean load of a rank, at least 1.
    pub(super) fn least_gain(&self, ranks: usize, price_ppm: u64) -> u64 {
        let tokens: u64 = self.batches.iter().flat_map(|batch| batch.iter()).sum();
        let mean = match self.speeds.iter().map(|&speed| u64::from(speed)).sum() {
            0 => tokens / ranks as u64,
            speeds => self.to_units(tokens, speeds),
        };
        let gain = u128::from(mean) * u128::from(price_ppm) / 1_000_000;
        u64::try_from(gain).unwrap_or(u64::MAX).max(1)
    }

    /// Returns the lowest peak of every batch.
    pub(super) fn peaks(&mut self, hosts: Hosts) -> Result<Vec<u64>, SolverError> {
        let problem = self.build_problem(hosts)?;
        let mut peaks = Vec::with_capacity(self.batches.len());
        for batch in &self.batches {
            solve_into(&problem, batch, &mut self.workspace, &mut self.split)?;
            peaks.push(self.to_units(self.split.peak.load, u64::from(self.split.peak.speed)));
        }
        Ok(peaks)
    }

    /// Returns the sum of the lowest peaks of all batches.
    pub(crate) fn sum_of_peaks(&mut self, hosts: Hosts) -> Result<u64, SolverError> {
        let problem = self.build_problem(hosts)?;
        let mut sum = 0u64;
        for batch in &self.batches {
            solve_into(&problem, batch, &mut self.workspace, &mut self.split)?;
            let peak = self.to_units(self.split.peak.load, u64::from(self.split.peak.speed));
            sum = sum.checked_add(peak).ok_or(SolverError::Overflow)?;
        }
        Ok(sum)
    }

    /// Returns the sum of the lowest peaks of a placement, as [`PeakEvaluator::sum_of_peaks`] does.
    pub(crate) fn sum_for_placement(&mut self, placement: &Placement) -> Result<u64, SolverError> {
        self.sum_of_peaks(placement.hosts()?)
    }

    /// Returns the sum of the lowest peaks and the bottleneck of each batch.
    pub(super) fn bottlenecks(&mut self, hosts: Hosts) -> Result<(u64, Vec<BatchBottleneck>), SolverError> {
        let ranks = hosts.ranks();
        let problem = self.build_problem(hosts)?;
        let (mut sum, mut all) = (0u64, Vec::with_capacity(self.batches.len()));
        for batch in &self.batches {
            solve_into(&problem, batch, &mut self.workspace, &mut self.split)?;
            let peak = self.to_units(self.split.peak.load, u64::from(self.split.peak.speed));
            sum = sum.checked_add(peak).ok_or(SolverError::Overflow)?;
            let mut bound = vec![false; ranks];
            for &rank in &self.split.certificate {
                bound[rank as usize] = true;
            }
            let total = batch.iter().sum::<u64>();
            let least = match self.speeds.iter().map(|&speed| u64::from(speed)).sum() {
                0 => total.div_ceil(ranks as u64),
                speeds => self.to_units(total, speeds),
            };
            all.push(BatchBottleneck { excess: peak.saturating_sub(least), bound });
        }
        Ok((sum, all))
    }
}
