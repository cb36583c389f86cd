//! Batch after batch on one problem, for callers who keep nothing themselves.
//!
//! **What is warm.** Only what returns the cold answer bit for bit: memory, and the whole answer where the counts
//! repeat (idle steps, replayed batches, layers asked twice). The cut of the previous batch is not used: its
//! bound on the peak holds for any loads, but a run that starts there places items differently.

use super::{Workspace, solve_counts_into};
use crate::{Error, Problem, Split};

/// The exact split of one batch after the other.
#[derive(Debug, Clone)]
pub struct Warm {
    problem: Problem,
    workspace: Workspace,
    /// The counts that `split` answers, if it answers any.
    counts: Option<Vec<u32>>,
    split: Split,
}

impl Warm {
    /// Nothing solved yet.
    pub fn new(problem: Problem) -> Warm {
        let workspace = Workspace::new(&problem);
        Warm { problem, workspace, counts: None, split: Split::default() }
    }

    /// The answer of [`solve_counts_into`] for these counts.
    ///
    /// # Errors
    /// As [`solve_counts_into`]; the next call is then a cold one.
    pub fn solve(&mut self, counts: &[u32]) -> Result<&Split, Error> {
        if self.counts.as_deref() != Some(counts) {
            let mut known = self.counts.take().unwrap_or_default();
            solve_counts_into(&self.problem, counts, &mut self.workspace, &mut self.split)?;
            known.clear();
            known.extend_from_slice(counts);
            self.counts = Some(known);
        }
        Ok(&self.split)
    }
}
