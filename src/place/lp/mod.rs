//! Placements from linear programmes, stated in good_lp: the policies `milp` and `lp-round`.
//!
//! In: a few batches of a history, a cluster. Out: a placement. `milp` is exact and small. `lp_round` relaxes
//! the redundant slots and rounds. Both minimise the mean over the batches of peak over mean. All other
//! policies need no engine, so that their results do not depend on the compiled one.

#[cfg(any(feature = "highs", test))]
mod columns;
mod milp;
mod round;

pub use milp::{Milp, MilpSolution};
pub use round::LpRound;

use super::PlaceError;
use crate::forecast::History;

/// Highest number of batches of a programme.
const MAX_BATCHES: usize = 16;

/// Returns at most `most` of the history's batches that hold a token, evenly spaced in time.
fn sample_batches<'a>(history: &History<'a>, most: usize) -> Vec<&'a [u64]> {
    let busy: Vec<&[u64]> = history.batches().filter(|batch| batch.iter().any(|&load| load > 0)).collect();
    let count = busy.len().min(most.max(1));
    (0..count).map(|i| busy[(2 * i + 1) * busy.len() / (2 * count)]).collect()
}

fn policy_error(policy: &str, reason: String) -> PlaceError {
    PlaceError::Shape { policy: policy.to_owned(), reason }
}
