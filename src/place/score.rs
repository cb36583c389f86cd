//! What a placement is worth: the exact peaks of the batches that it is judged on, added up.
//!
//! In: hosts, and the scenarios of a [`History`]. Out: whole tokens, so that comparisons are exact and the same everywhere.

use super::Placement;
use crate::forecast::History;
use evenkeel_solver::{Error, Hosts, Problem, Split, Workspace, solve_into};

/// The batches that placements are compared on, and the memory for splitting them.
#[derive(Debug)]
pub(crate) struct Scenarios<'a> {
    batches: Vec<&'a [u64]>,
    workspace: Workspace,
    split: Split,
}

/// One batch, split: what bounds its peak.
#[derive(Debug, Clone)]
pub(super) struct Bottleneck {
    /// Tokens above ceil(total / ranks).
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
        Self { batches, workspace: Workspace::default(), split: Split::default() }
    }

    /// The batches, each `[E]`.
    pub(crate) fn batches(&self) -> &[&'a [u64]] {
        &self.batches
    }

    /// The least peak of every batch.
    pub(super) fn peaks(&mut self, hosts: Hosts) -> Result<Vec<u64>, Error> {
        let problem = Problem::new(hosts);
        let mut peaks = Vec::with_capacity(self.batches.len());
        for batch in &self.batches {
            solve_into(&problem, batch, &mut self.workspace, &mut self.split)?;
            peaks.push(self.split.peak.load);
        }
        Ok(peaks)
    }

    /// The sum of the least peaks of all batches.
    pub(crate) fn sum_of_peaks(&mut self, hosts: Hosts) -> Result<u64, Error> {
        let problem = Problem::new(hosts);
        let mut sum = 0u64;
        for batch in &self.batches {
            solve_into(&problem, batch, &mut self.workspace, &mut self.split)?;
            sum = sum.checked_add(self.split.peak.load).ok_or(Error::Overflow)?;
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
        let problem = Problem::new(hosts);
        let (mut sum, mut all) = (0u64, Vec::with_capacity(self.batches.len()));
        for batch in &self.batches {
            solve_into(&problem, batch, &mut self.workspace, &mut self.split)?;
            let peak = self.split.peak.load;
            sum = sum.checked_add(peak).ok_or(Error::Overflow)?;
            let mut bound = vec![false; ranks];
            self.split.certificate.iter().for_each(|&rank| bound[rank as usize] = true);
            let least = batch.iter().sum::<u64>().div_ceil(ranks as u64);
            all.push(Bottleneck { excess: peak - least, bound });
        }
        Ok((sum, all))
    }
}
