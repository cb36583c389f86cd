//! Integer arrays of any width. An array of the expected width is read in place.

use crate::errors::input_error;
use numpy::{Element, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyMemoryError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

/// Tokens as `u64`: borrowed from an array of that type, converted from any other integer array.
pub(crate) enum TokenCounts<'py> {
    Borrowed(PyReadonlyArrayDyn<'py, u64>),
    Owned(Vec<u64>),
}

impl TokenCounts<'_> {
    /// Returns the tokens in C order.
    pub(crate) fn as_slice(&self) -> PyResult<&[u64]> {
        match self {
            TokenCounts::Borrowed(array) => Ok(array.as_slice()?),
            TokenCounts::Owned(values) => Ok(values),
        }
    }
}

/// Borrows an array for reading. `what` names the argument in messages.
pub(crate) fn borrow_array<'py, T: Element>(
    array: &Bound<'py, PyArrayDyn<T>>,
    what: &str,
) -> PyResult<PyReadonlyArrayDyn<'py, T>> {
    array.try_readonly().map_err(|_| input_error(format!("{what}: another thread is writing to it")))
}

/// Copies values in C order. Memory is reserved with a check, since strides of 0 let an array claim more
/// elements than it holds.
pub(crate) fn copy_values<T: Copy, U>(
    values: impl ExactSizeIterator<Item = T>,
    what: &str,
    convert: impl Fn(T) -> PyResult<U>,
) -> PyResult<Vec<U>> {
    let mut copy = Vec::new();
    let number = values.len();
    copy.try_reserve_exact(number)
        .map_err(|_| PyMemoryError::new_err(format!("{what}: no memory for a copy of {number} values")))?;
    for value in values {
        copy.push(convert(value)?);
    }
    Ok(copy)
}

/// Returns shape and values of an array of tokens. `what` names the argument in messages.
pub(crate) fn read_tokens<'py>(
    array: &Bound<'py, PyAny>,
    what: &str,
) -> PyResult<(Vec<usize>, TokenCounts<'py>)> {
    if let Ok(array) = array.cast::<PyArrayDyn<u64>>() {
        if array.is_c_contiguous() {
            return Ok((array.shape().to_vec(), TokenCounts::Borrowed(borrow_array(array, what)?)));
        }
        let owned = copy_values(borrow_array(array, what)?.as_array().iter(), what, |&value| Ok(value))?;
        return Ok((array.shape().to_vec(), TokenCounts::Owned(owned)));
    }
    let untyped = array
        .cast::<PyUntypedArray>()
        .map_err(|_| input_error(format!("{what}: expected a NumPy array of integers")))?;
    let shape = untyped.shape().to_vec();
    let signed = |value: i64| {
        u64::try_from(value).map_err(|_| input_error(format!("{what}: {value} tokens: expected 0 or more")))
    };
    let owned = if let Ok(array) = array.cast::<PyArrayDyn<i64>>() {
        copy_values(borrow_array(array, what)?.as_array().iter(), what, |&value| signed(value))?
    } else if let Ok(array) = array.cast::<PyArrayDyn<i32>>() {
        copy_values(borrow_array(array, what)?.as_array().iter(), what, |&value| signed(i64::from(value)))?
    } else if let Ok(array) = array.cast::<PyArrayDyn<u32>>() {
        copy_values(borrow_array(array, what)?.as_array().iter(), what, |&value| Ok(u64::from(value)))?
    } else {
        let given = untyped.dtype().str()?;
        return Err(input_error(format!("{what}: {given}: expected uint64, int64, int32 or uint32")));
    };
    Ok((shape, TokenCounts::Owned(owned)))
}

/// Largest number of entries of a list. Longer lists are refused before memory is allocated.
const MAX_LIST: usize = 1 << 20;

/// A sequence of bounded length. The length that a sequence reports is not trusted, so no memory is reserved
/// for it.
pub(crate) struct BoundedList<T>(pub(crate) Vec<T>);

impl<'a, 'py, T: FromPyObjectOwned<'py>> FromPyObject<'a, 'py> for BoundedList<T> {
    type Error = PyErr;

    fn extract(list: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if list.is_instance_of::<PyString>() || list.is_instance_of::<PyBytes>() {
            return Err(PyTypeError::new_err("expected a sequence, found text"));
        }
        let length = list.len()?;
        if length > MAX_LIST {
            return Err(input_error(format!("a list of {length} entries: expected {MAX_LIST} at most")));
        }
        let mut entries = Vec::new();
        for entry in list.try_iter()?.take(MAX_LIST) {
            entries.push(entry?.extract().map_err(Into::into)?);
        }
        Ok(Self(entries))
    }
}

/// Expert ids in the integer types that routers write.
pub(crate) enum ExpertIdArray<'py> {
    Narrow(Bound<'py, PyArrayDyn<i32>>),
    Wide(Bound<'py, PyArrayDyn<i64>>),
}

impl<'py> ExpertIdArray<'py> {
    /// Takes an array of `int32` or `int64`. `what` names the argument in messages.
    pub(crate) fn from_array(array: &Bound<'py, PyAny>, what: &str) -> PyResult<Self> {
        if let Ok(array) = array.cast::<PyArrayDyn<i32>>() {
            return Ok(ExpertIdArray::Narrow(array.clone()));
        }
        if let Ok(array) = array.cast::<PyArrayDyn<i64>>() {
            return Ok(ExpertIdArray::Wide(array.clone()));
        }
        Err(input_error(format!("{what}: expected a NumPy array of int32 or int64")))
    }
}
