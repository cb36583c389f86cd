//! `Error` for failures that callers can fix, `Unavailable` for requirements that this machine lacks.

use pyo3::PyErr;
use pyo3::create_exception;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use std::error::Error as StdError;

create_exception!(
    evenkeel,
    Error,
    PyValueError,
    "Error that the caller can fix. The message states the expected value."
);
create_exception!(
    evenkeel,
    Unavailable,
    PyRuntimeError,
    "A requirement that this machine lacks, for example a GPU."
);

/// Returns the exception for an error of the library, with all its causes.
pub(crate) fn library_error(err: impl StdError + 'static) -> PyErr {
    Error::new_err(evenkeel::error_chain(&err))
}

/// Returns the exception for a message.
pub(crate) fn input_error(message: impl Into<String>) -> PyErr {
    Error::new_err(message.into())
}
