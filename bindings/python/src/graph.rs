//! LPLB's placement along a replica graph.

use crate::arrays::read_tokens;
use crate::convert::check_size;
use crate::errors::{input_error, library_error};
use evenkeel::cluster::Cluster;
use evenkeel::forecast::History;
use evenkeel::place::{Lplb, PlaceRequest, Policy, Topology};
use evenkeel::trace::Trace;
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray2};
use pyo3::prelude::*;

/// Returns LPLB's placement, [slots], int64.
///
/// `redundant_to_original` is [group, columns]. `workload` is [experts] of integers. None keeps the experts
/// in the order of their numbers.
#[pyfunction]
#[pyo3(signature = (redundant_to_original, slots_in_all, experts, ranks, workload=None))]
pub(crate) fn replicate<'py>(
    py: Python<'py>,
    redundant_to_original: PyReadonlyArray2<'py, i64>,
    slots_in_all: usize,
    experts: usize,
    ranks: usize,
    workload: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArray1<i64>>> {
    let table = redundant_to_original.as_array();
    check_size(table.shape())?;
    let mut columns = Vec::new();
    for column in table.columns() {
        let column: Result<Vec<u32>, _> = column.iter().map(|&rank| u32::try_from(rank)).collect();
        columns.push(column.map_err(|_| input_error("redundant_to_original: expected ranks from 0 on"))?);
    }
    let topology = Topology::new("redundant_to_original".into(), columns).map_err(library_error)?;
    let group = topology.group_size();
    if ranks == 0 || !ranks.is_multiple_of(group) {
        return Err(input_error(format!("ep_size {ranks}: expected a multiple of the group of {group}")));
    }
    let redundant = slots_in_all
        .checked_sub(experts)
        .ok_or_else(|| input_error(format!("{slots_in_all} physical experts cannot hold {experts}")))?;
    let cluster = Cluster::new(ranks, 1, experts, redundant).map_err(library_error)?;
    let lplb = Lplb::new(topology, 1);
    let placed = match workload {
        None => {
            if !experts.is_multiple_of(ranks) {
                return Err(input_error(format!("{experts} experts do not divide over {ranks} ranks")));
            }
            let all: Vec<u32> = (0..experts as u32).collect();
            let homes: Vec<Vec<u32>> = all.chunks(experts / ranks).map(<[u32]>::to_vec).collect();
            lplb.replicate_along_graph(&homes, &cluster)
        }
        Some(workload) => {
            let (shape, loads) = read_tokens(workload, "workload")?;
            if shape != [experts] {
                return Err(input_error(format!("workload: shape {shape:?}: expected [{experts}]")));
            }
            let trace = Trace::from_loads(experts, vec![0], vec!["0".into()], loads.as_slice()?.to_vec());
            let trace = trace.map_err(library_error)?;
            let history = History::from_trace(&trace, 0);
            lplb.place(&PlaceRequest::new(&history, &cluster)).map(|placed| placed.placement)
        }
    };
    Ok(placed.map_err(library_error)?.slot_ids().collect::<Vec<_>>().into_pyarray(py))
}
