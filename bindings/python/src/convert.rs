//! Between the library's placements and NumPy's arrays.

use crate::errors::{error, refuse};
use evenkeel::cluster::Cluster;
use evenkeel::place::Placement;
use numpy::ndarray::Array2;
use numpy::{IntoPyArray, PyArray2, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;

/// A matrix of rows of equal length.
pub(crate) fn matrix<T: numpy::Element>(
    py: Python<'_>,
    rows: usize,
    columns: usize,
    values: Vec<T>,
) -> PyResult<Bound<'_, PyArray2<T>>> {
    let array = Array2::from_shape_vec((rows, columns), values).map_err(error)?;
    Ok(array.into_pyarray(py))
}

/// A placement from what each slot holds; experts counted from the highest where not given.
pub(crate) fn placement(slots: &[i64], ranks: usize, experts: Option<usize>) -> PyResult<Placement> {
    let experts = experts
        .unwrap_or_else(|| slots.iter().max().map_or(0, |&most| usize::try_from(most + 1).unwrap_or(0)));
    Placement::of_ids(experts, ranks, slots).map_err(error)
}

/// The group that a placement is for.
pub(crate) fn cluster_of(placement: &Placement, nodes: usize) -> PyResult<Cluster> {
    let experts = placement.experts();
    let usable = placement.slots().len();
    let redundant = usable.checked_sub(experts).ok_or_else(|| refuse("fewer slots than experts"))?;
    Cluster::new(placement.ranks(), nodes, experts, redundant).map_err(error)
}

/// A row of a map as a plain vector.
pub(crate) fn row(array: &PyReadonlyArray1<'_, i64>) -> Vec<i64> {
    array.as_array().iter().copied().collect()
}

/// The rows of a map as plain vectors.
pub(crate) fn rows(array: &PyReadonlyArray2<'_, i64>) -> Vec<Vec<i64>> {
    array.as_array().rows().into_iter().map(|row| row.iter().copied().collect()).collect()
}
