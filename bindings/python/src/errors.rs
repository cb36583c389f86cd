//! One exception for what callers can put right, one for what this machine lacks.

use pyo3::PyErr;
use pyo3::create_exception;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use std::error::Error as StdError;

create_exception!(
    evenkeel,
    Error,
    PyValueError,
    "What was asked for cannot be done; the message says what was expected."
);
create_exception!(
    evenkeel,
    Unavailable,
    PyRuntimeError,
    "This machine lacks what was asked for, a GPU for example."
);

/// The exception for an error of the library, with all its causes.
pub(crate) fn error(err: impl StdError) -> PyErr {
    let mut message = err.to_string();
    let mut cause = err.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        // Transparent errors repeat their cause.
        if !message.ends_with(&text) {
            message += &format!(": {text}");
        }
        cause = inner.source();
    }
    Error::new_err(message)
}

/// The exception for a message.
pub(crate) fn refuse(message: impl Into<String>) -> PyErr {
    Error::new_err(message.into())
}
