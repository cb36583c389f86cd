//! Integer arrays of any width, read where they are if they have the width that is wanted.

use crate::errors::refuse;
use numpy::{PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

/// Tokens, `u64`: borrowed from an array of that type, converted from any other of integers.
pub(crate) enum Tokens<'py> {
    Borrowed(PyReadonlyArrayDyn<'py, u64>),
    Owned(Vec<u64>),
}

impl Tokens<'_> {
    /// The tokens, in C order.
    pub(crate) fn as_slice(&self) -> PyResult<&[u64]> {
        match self {
            Tokens::Borrowed(array) => Ok(array.as_slice()?),
            Tokens::Owned(values) => Ok(values),
        }
    }
}

/// Reads tokens; `what` names the argument in messages. Shape and values.
pub(crate) fn tokens<'py>(array: &Bound<'py, PyAny>, what: &str) -> PyResult<(Vec<usize>, Tokens<'py>)> {
    if let Ok(array) = array.cast::<PyArrayDyn<u64>>() {
        if array.is_c_contiguous() {
            return Ok((array.shape().to_vec(), Tokens::Borrowed(array.readonly())));
        }
        return Ok((
            array.shape().to_vec(),
            Tokens::Owned(array.readonly().as_array().iter().copied().collect()),
        ));
    }
    let untyped = array
        .cast::<PyUntypedArray>()
        .map_err(|_| refuse(format!("{what}: expected a NumPy array of integers")))?;
    let shape = untyped.shape().to_vec();
    let negative = |value: i64| refuse(format!("{what}: {value} tokens: expected 0 or more"));
    let signed = |values: &mut dyn Iterator<Item = i64>| -> PyResult<Vec<u64>> {
        values.map(|value| u64::try_from(value).map_err(|_| negative(value))).collect()
    };
    let owned = if let Ok(array) = array.cast::<PyArrayDyn<i64>>() {
        signed(&mut array.readonly().as_array().iter().copied())?
    } else if let Ok(array) = array.cast::<PyArrayDyn<i32>>() {
        signed(&mut array.readonly().as_array().iter().map(|&value| i64::from(value)))?
    } else if let Ok(array) = array.cast::<PyArrayDyn<u32>>() {
        array.readonly().as_array().iter().map(|&value| u64::from(value)).collect()
    } else {
        let given = untyped.dtype().str()?;
        return Err(refuse(format!("{what}: {given}: expected uint64, int64, int32 or uint32")));
    };
    Ok((shape, Tokens::Owned(owned)))
}

/// Expert ids as routers write them.
pub(crate) enum Ids<'py> {
    Narrow(Bound<'py, PyArrayDyn<i32>>),
    Wide(Bound<'py, PyArrayDyn<i64>>),
}

impl<'py> Ids<'py> {
    /// Takes an array of `int32` or `int64`; `what` names the argument in messages.
    pub(crate) fn of(array: &Bound<'py, PyAny>, what: &str) -> PyResult<Self> {
        if let Ok(array) = array.cast::<PyArrayDyn<i32>>() {
            return Ok(Ids::Narrow(array.clone()));
        }
        if let Ok(array) = array.cast::<PyArrayDyn<i64>>() {
            return Ok(Ids::Wide(array.clone()));
        }
        Err(refuse(format!("{what}: expected a NumPy array of int32 or int64")))
    }
}
