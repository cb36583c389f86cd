//! What a placement is worth: the exact peaks of the batches that it is judged on, added up.
//!
//! In: hosts, the scenarios of a [`History`], perhaps how fast each rank is. Out: whole numbers, so that comparisons are
//! exact and the same everywhere: tokens; where ranks are unequal, 2⁻¹⁶ of a token per unit of speed.

use super::Placement;
use crate::forecast::History;
use evenkeel_solver::{Error, Hosts, Problem, Split, Workspace, solve_into};

/// The batches that placements are compared on, and the memory for splitting them.
#[derive(Debug)]
pub(crate) struct Scenarios<'a> {
    batches: Vec<&'a [u64]>,
    /// How fast each rank is, `[R]`; empty where all are equal.
    speeds: Vec<u32>,
    workspace: Workspace,
    split: Split,
}

/// One batch, split: what bounds its peak.
#[derive(Debug, Clone)]
pub(super) struct Bottleneck {
    /// Above the mean: ceil(total / ranks), or total over all speeds.
    pub(super) excess: u64,
    /// Is the rank in the set that proves the peak? `[R]`
    pub(super) bound: Vec<bool>,
}

impl<'a> Scenarios<'a> {
    /// The last `most` batches that hold a token.
    pub(crate) fn recent(history: &History<'a>, most: usize) -> Self {
        let mut batches: Vec<&[u64]> =
            history.batches().filter(|batch| batch.iter().any(|&load| load > 0)).collect();
        batches.drain(..batches.len().saturating_sub(most));
        Self::of(batches)
    }

    /// These batches, each `[E]`.
    pub(crate) fn of(batches: Vec<&'a [u64]>) -> Self {
        Self { batches, speeds: vec![], workspace: Workspace::default(), split: Split::default() }
    }

    /// The same on ranks of these speeds, `[R]`, at least 1 each.
    pub(super) fn with_speeds(self, speeds: &[u32]) -> Self {
        Self { speeds: speeds.to_vec(), ..self }
    }

    /// The batches, each `[E]`.
    pub(crate) fn batches(&self) -> &[&'a [u64]] {
        &self.batches
    }

    fn problem(&self, hosts: Hosts) -> Result<Problem, Error> {
        let problem = Problem::new(hosts);
        if self.speeds.is_empty() { Ok(problem) } else { problem.with_speeds(self.speeds.clone()) }
    }

    /// Load per speed in this file's unit.
    fn units(&self, load: u64, speed: u64) -> u64 {
        if self.speeds.is_empty() {
            return load;
        }
        u64::try_from((u128::from(load) << 16) / u128::from(speed.max(1))).unwrap_or(u64::MAX)
    }

    /// The least peak of every batch.
    pub(super) fn peaks(&mut self, hosts: Hosts) -> Result<Vec<u64>, Error> {
        let problem = self.problem(hosts)?;
        let mut peaks = Vec::with_capacity(self.batches.len());
        for batch in &self.batches {
            solve_into(&problem, batch, &mut self.workspace, &mut self.split)?;
            peaks.push(self.units(self.split.peak.load, u64::from(self.split.peak.speed)));
        }
        Ok(peaks)
    }

    /// The sum of the least peaks of all batches.
    pub(crate) fn sum_of_peaks(&mut self, hosts: Hosts) -> Result<u64, Error> {
        let problem = self.problem(hosts)?;
        let mut sum = 0u64;
        for batch in &self.batches {
            solve_into(&problem, batch, &mut self.workspace, &mut self.split)?;
            let peak = self.units(self.split.peak.load, u64::from(self.split.peak.speed));
            sum = sum.checked_add(peak).ok_or(Error::Overflow)?;
        }
        Ok(sum)
    }

    /// As [`Scenarios::sum_of_peaks`], of a placement.
    pub(crate) fn of_placement(&mut self, placement: &Placement) -> Result<u64, Error> {
        self.sum_of_peaks(placement.hosts()?)
    }

    /// The sum, and what bounds each batch.
    pub(super) fn bottlenecks(&mut self, hosts: Hosts) -> Result<(u64, Vec<Bottleneck>), Error> {
        let ranks = hosts.ranks();
        let problem = self.problem(hosts)?;
        let (mut sum, mut all) = (0u64, Vec::with_capacity(self.batches.len()));
        for batch in &self.batches {
            solve_into(&problem, batch, &mut self.workspace, &mut self.split)?;
            let peak = self.units(self.split.peak.load, u64::from(self.split.peak.speed));
            sum = sum.checked_add(peak).ok_or(Error::Overflow)?;
            let mut bound = vec![false; ranks];
            for &rank in &self.split.certificate {
                bound[rank as usize] = true;
            }
            let total = batch.iter().sum::<u64>();
            let least = match self.speeds.iter().map(|&speed| u64::from(speed)).sum() {
                0 => total.div_ceil(ranks as u64),
                speeds => self.units(total, speeds),
            };
            all.push(Bottleneck { excess: peak.saturating_sub(least), bound });
        }
        Ok((sum, all))
    }
}
