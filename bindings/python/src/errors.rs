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
pub(crate) fn error(err: impl StdError + 'static) -> PyErr {
    Error::new_err(evenkeel::in_words(&err))
}

/// The exception for a message.
pub(crate) fn refuse(message: impl Into<String>) -> PyErr {
    Error::new_err(message.into())
}
