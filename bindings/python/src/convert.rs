//! Conversions between the library's placements and NumPy's arrays.

use crate::errors::{input_error, library_error};
use evenkeel::cluster::Cluster;
use evenkeel::export::MAX_PLAN_SLOTS;
use evenkeel::place::Placement;
use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray2, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;

/// Returns a matrix from its values, row by row.
pub(crate) fn matrix_array<T: numpy::Element>(
    py: Python<'_>,
    rows: usize,
    columns: usize,
    values: Vec<T>,
) -> PyResult<Bound<'_, PyArray2<T>>> {
    let array = Array2::from_shape_vec((rows, columns), values).map_err(library_error)?;
    Ok(array.into_pyarray(py))
}

/// Returns a placement from the expert of each slot. Without `experts`, the highest id determines their
/// number.
pub(crate) fn placement_from_slots(
    slots: &[i64],
    ranks: usize,
    experts: Option<usize>,
) -> PyResult<Placement> {
    let experts = experts.unwrap_or_else(|| {
        slots.iter().max().map_or(0, |&most| usize::try_from(most.saturating_add(1)).unwrap_or(0))
    });
    Placement::from_ids(experts, ranks, slots).map_err(library_error)
}

/// Returns the cluster of a placement.
pub(crate) fn cluster_of(placement: &Placement, nodes: usize) -> PyResult<Cluster> {
    let experts = placement.experts();
    let usable = placement.slots().len();
    let redundant = usable.checked_sub(experts).ok_or_else(|| input_error("fewer slots than experts"))?;
    Cluster::new(placement.ranks(), nodes, experts, redundant).map_err(library_error)
}

/// Returns a row of a map as a vector.
pub(crate) fn read_row(array: &PyReadonlyArray1<'_, i64>) -> PyResult<Vec<i64>> {
    check_size(array.as_array().shape())?;
    Ok(array.as_array().iter().copied().collect())
}

/// Returns the rows of a map as vectors.
pub(crate) fn read_rows(array: &PyReadonlyArray2<'_, i64>) -> PyResult<Vec<Vec<i64>>> {
    check_size(array.as_array().shape())?;
    Ok(array.as_array().rows().into_iter().map(|row| row.iter().copied().collect()).collect())
}

/// Checks the size of a map, or of weights by layer and expert, before it is copied.
pub(crate) fn check_size(shape: &[usize]) -> PyResult<()> {
    let all = shape.iter().try_fold(1usize, |all, &width| all.checked_mul(width));
    // Rows without slots need memory too.
    if all.is_some_and(|all| all <= MAX_PLAN_SLOTS) && shape[0] <= MAX_PLAN_SLOTS {
        return Ok(());
    }
    Err(input_error(format!(
        "shape {shape:?}: expected {MAX_PLAN_SLOTS} entries at most, all layers together"
    )))
}
