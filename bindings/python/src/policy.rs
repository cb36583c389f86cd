//! The split that a policy's name contains.

use crate::errors::{input_error, library_error};
use evenkeel::split::SplitMethod;
use pyo3::prelude::*;

/// Returns the options of the policy `recourse`, `None` for another policy.
fn recourse_options(policy: &str) -> Option<&str> {
    if policy == "recourse" { Some("") } else { policy.strip_prefix("recourse:") }
}

/// Returns the split that a policy's name contains, `None` if it contains none. Only `recourse` accepts a
/// split.
#[pyfunction]
pub(crate) fn named_split(policy: &str) -> Option<String> {
    let named =
        recourse_options(policy)?.split(':').rev().find_map(|option| option.parse::<SplitMethod>().ok());
    named.map(|method| method.to_string())
}

/// Returns the name of the policy `recourse` with this split.
///
/// Raises `Error` for another policy, for a name that contains another split, and for an unknown split.
#[pyfunction]
pub(crate) fn with_split(policy: &str, split: &str) -> PyResult<String> {
    let method: SplitMethod = split.parse().map_err(library_error)?;
    let Some(options) = recourse_options(policy) else {
        return Err(input_error(format!(
            "split `{split}` with policy `{policy}`: expected policy recourse, which alone plans for a split"
        )));
    };
    match named_split(policy) {
        None if options.is_empty() => Ok(format!("recourse:{method}")),
        None => Ok(format!("recourse:{method}:{options}")),
        Some(named) if named == split => Ok(policy.to_owned()),
        Some(named) => Err(input_error(format!(
            "split `{split}` with policy `{policy}`: expected {named}, which the policy names, or none"
        ))),
    }
}
