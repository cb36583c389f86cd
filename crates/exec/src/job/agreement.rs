//! Agreement of all ranks on results and failures, so that one failed rank ends the job with one message.

use crate::comm::{CommError, ProcessGroup, Purpose, format_ranks};
use crate::error::ExecError;
use std::collections::BTreeMap;

/// A reason for which a rank stops.
#[derive(Debug)]
pub enum RankError<E> {
    /// An error that all ranks have.
    All(E),
    /// An error of this rank alone, or its error about another rank.
    Own(E),
}

impl<E: From<ExecError>> From<ExecError> for RankError<E> {
    fn from(error: ExecError) -> Self {
        if error.is_common() { RankError::All(error.into()) } else { RankError::Own(error.into()) }
    }
}

impl<E: From<ExecError>> From<CommError> for RankError<E> {
    fn from(error: CommError) -> Self {
        ExecError::from(error).into()
    }
}

/// Returns the result that every process computed for itself. If one of them failed, all return the same
/// error.
///
/// # Errors
/// Fails if a process failed, or if a rank is lost.
pub(crate) fn agree_on_result<T>(group: &ProcessGroup, result: Result<T, ExecError>) -> Result<T, ExecError> {
    // After the loss of a rank no exchange is possible.
    if group.is_complete() || matches!(result, Err(ExecError::Comm(_))) {
        return result;
    }
    let reason = result.as_ref().err().map_or_else(String::new, |error| evenkeel::error_chain(error));
    let mut failed: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let all = group.all_gather(Purpose::Control, vec![reason.into_bytes()])?;
    for (rank, reason) in all.iter().enumerate().filter(|(_, reason)| !reason.is_empty()) {
        failed.entry(String::from_utf8_lossy(reason).into_owned()).or_default().push(rank);
    }
    refuse_failed(&failed, all.len())?;
    result
}

/// Returns an error with the first reason for which ranks fail, if any fails.
pub(super) fn refuse_failed(failed: &BTreeMap<String, Vec<usize>>, ranks: usize) -> Result<(), CommError> {
    match failed.iter().next() {
        None => Ok(()),
        Some((why, all)) if all.len() == ranks => Err(CommError::Refused(why.clone())),
        Some((why, some)) => Err(CommError::Refused(format!("{}: {why}", format_ranks(some)))),
    }
}
