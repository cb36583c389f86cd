//! Exact splits of successive batches on one problem, for callers without memory of their own.
//!
//! **Warm data.** Only data that yields the cold result bit for bit is kept. This is memory, and the whole
//! result if the counts repeat (idle steps, replayed batches, layers split twice). The cut of the previous
//! batch is not used. Its bound on the peak holds for any loads, but a run that starts there places items
//! differently.

use super::{Workspace, solve_counts_into};
use crate::{Problem, RankSplit, SolverError};

/// Exact split of successive batches.
#[derive(Debug, Clone)]
pub struct WarmSplitter {
    problem: Problem,
    workspace: Workspace,
    /// Counts whose result is `split`, if there are any.
    counts: Option<Vec<u32>>,
    split: RankSplit,
}

impl WarmSplitter {
    /// Creates the splitter without any result.
    pub fn new(problem: Problem) -> WarmSplitter {
        let workspace = Workspace::new(&problem);
        WarmSplitter { problem, workspace, counts: None, split: RankSplit::default() }
    }

    /// Returns the result of [`solve_counts_into`] for these counts.
    ///
    /// # Errors
    /// Fails as [`solve_counts_into`] does. The next call is then a cold one.
    pub fn solve(&mut self, counts: &[u32]) -> Result<&RankSplit, SolverError> {
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
