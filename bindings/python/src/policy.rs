//! The split that a policy's name says.

use crate::errors::{error, refuse};
use evenkeel::split::Method;
use pyo3::prelude::*;

/// Returns the options of the policy `recourse`, `None` for another policy.
fn options(policy: &str) -> Option<&str> {
    if policy == "recourse" { Some("") } else { policy.strip_prefix("recourse:") }
}

/// Returns the split that a policy's name says, `None` where it says none. Policies other than `recourse` know no split.
#[pyfunction]
pub(crate) fn named_split(policy: &str) -> Option<String> {
    let named = options(policy)?.split(':').rev().find_map(|option| option.parse::<Method>().ok());
    named.map(|method| method.to_string())
}

/// Returns the name of the policy `recourse` with this split.
///
/// Raises `Error` for another policy, for one that names another split, and for an unknown split.
#[pyfunction]
pub(crate) fn with_split(policy: &str, split: &str) -> PyResult<String> {
    let method: Method = split.parse().map_err(error)?;
    let Some(options) = options(policy) else {
        return Err(refuse(format!(
            "split `{split}` with policy `{policy}`: expected policy recourse, which alone plans for a split"
        )));
    };
    match named_split(policy) {
        None if options.is_empty() => Ok(format!("recourse:{method}")),
        None => Ok(format!("recourse:{method}:{options}")),
        Some(named) if named == split => Ok(policy.to_owned()),
        Some(named) => Err(refuse(format!(
            "split `{split}` with policy `{policy}`: expected {named}, which the policy names, or none"
        ))),
    }
}
