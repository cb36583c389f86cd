//! EPLB's call: weights in, physical-to-logical maps out, by any policy.

use crate::arrays::read_tokens;
use crate::convert::{check_size, matrix_array, placement_from_slots, read_rows};
use crate::errors::{input_error, library_error};
use evenkeel::cluster::Cluster;
use evenkeel::export::fill_empty_slots;
use evenkeel::forecast::History;
use evenkeel::place::{self, Eplb, PlaceRequest, Placement, TieBreak};
use evenkeel::trace::Trace;
use numpy::ndarray::Array3;
use numpy::{IntoPyArray, PyArray2, PyArray3, PyReadonlyArray2};
use pyo3::prelude::*;
use rayon::prelude::*;

/// Runs planning on threads that end with it. A process that forks later would otherwise inherit a pool
/// without threads.
pub(crate) fn with_threads<T: Send>(work: impl FnOnce() -> PyResult<T> + Send) -> PyResult<T> {
    let pool = rayon::ThreadPoolBuilder::new().build().map_err(library_error)?;
    pool.install(work)
}

/// Returns the physical-to-logical map of DeepSeek's EPLB for `weight`, [layers, experts], float32: [layers,
/// num_replicas], int64.
#[pyfunction]
pub(crate) fn rebalance<'py>(
    py: Python<'py>,
    weight: PyReadonlyArray2<'py, f32>,
    num_replicas: usize,
    num_groups: usize,
    num_nodes: usize,
    num_gpus: usize,
) -> PyResult<Bound<'py, PyArray2<i64>>> {
    let weight = weight.as_array();
    check_size(weight.shape())?;
    if weight.iter().any(|w| !w.is_finite() || *w < 0.0) {
        return Err(input_error("weight: expected numbers from 0 on"));
    }
    let layers: Vec<Vec<f32>> = weight.rows().into_iter().map(|row| row.to_vec()).collect();
    let eplb = Eplb::new(num_groups, TieBreak::LowestExpert);
    let maps = py.detach(|| {
        let plan = |layer: &Vec<f32>| eplb.physical_to_logical(layer, num_replicas, num_nodes, num_gpus);
        layers.iter().map(plan).collect::<Result<Vec<_>, _>>()
    });
    let all = maps.map_err(library_error)?.into_iter().flatten().map(i64::from).collect();
    matrix_array(py, layers.len(), num_replicas, all)
}

/// Returns the physical-to-logical map of any policy for recorded batches: [layers, slots], int64.
///
/// `loads` are [batches, layers, experts] of integers. `previous` is the current map, of the same shape. With
/// it, at most `max_moves` experts per layer move to ranks that do not hold them, and all others stay. Slots
/// that the policy leaves empty receive harmless replicas.
#[pyfunction]
#[pyo3(signature = (loads, slots_in_all, ranks, *, policy, groups=1, nodes=1, previous=None, max_moves=None))]
#[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub(crate) fn replan<'py>(
    py: Python<'py>,
    loads: &Bound<'py, PyAny>,
    slots_in_all: usize,
    ranks: usize,
    policy: &str,
    groups: usize,
    nodes: usize,
    previous: Option<PyReadonlyArray2<'py, i64>>,
    max_moves: Option<usize>,
) -> PyResult<Bound<'py, PyArray2<i64>>> {
    let (shape, values) = read_tokens(loads, "loads")?;
    let [steps, layers, experts] = shape[..] else {
        return Err(input_error(format!("loads: shape {shape:?}: expected [batches, layers, experts]")));
    };
    let redundant = slots_in_all
        .checked_sub(experts)
        .ok_or_else(|| input_error(format!("{slots_in_all} slots cannot hold {experts} experts")))?;
    let cluster = Cluster::new(ranks, nodes, experts, redundant).map_err(library_error)?;
    let policy = place::policy(policy, groups, &cluster).map_err(library_error)?;
    let names = (0..steps).map(|step| step.to_string()).collect();
    let trace = Trace::from_loads(experts, (0..layers as u32).collect(), names, values.as_slice()?.to_vec());
    let trace = trace.map_err(library_error)?;
    let before = match previous {
        None => None,
        Some(map) => {
            let maps = read_rows(&map)?;
            if maps.len() != layers || maps.iter().any(|map| map.len() != slots_in_all) {
                return Err(input_error(format!("previous: expected shape [{layers}, {slots_in_all}]")));
            }
            let placements = maps.iter().map(|map| placement_from_slots(map, ranks, Some(experts)));
            Some(placements.collect::<PyResult<Vec<Placement>>>()?)
        }
    };
    let placed = py.detach(|| {
        with_threads(|| {
            let plan = |layer: usize| {
                let history = History::from_trace(&trace, layer);
                let before = before.as_ref().map(|before| &before[layer]);
                let request = PlaceRequest::new(&history, &cluster).previous(before).max_moves(max_moves);
                policy.place(&request).map(|placed| placed.placement)
            };
            (0..layers).into_par_iter().map(plan).collect::<Result<Vec<_>, _>>().map_err(library_error)
        })
    })?;
    // Callers of this function cannot handle empty slots.
    let full = placed.iter().flat_map(fill_empty_slots).map(i64::from);
    matrix_array(py, layers, cluster.slots(), full.collect())
}

/// Largest number of entries of an inverse map, which bounds its memory (512 MiB).
const MAX_INVERSE: usize = 1 << 26;

type InverseMaps<'py> = (Bound<'py, PyArray3<i64>>, Bound<'py, PyArray2<i64>>);

/// Returns the inverse of physical-to-logical maps: slots and number of replicas of every expert, both int64.
///
/// The slots are [layers, experts, highest number of replicas], ascending and padded with -1. The numbers are
/// [layers, experts].
#[pyfunction]
pub(crate) fn inverse<'py>(
    py: Python<'py>,
    physical_to_logical: PyReadonlyArray2<'py, i64>,
    experts: usize,
) -> PyResult<InverseMaps<'py>> {
    let maps = read_rows(&physical_to_logical)?;
    let room = |width: usize| -> PyResult<usize> {
        let all = maps.len().checked_mul(experts).and_then(|all| all.checked_mul(width));
        let most = MAX_INVERSE;
        all.filter(|&all| all <= most).ok_or_else(|| {
            let layers = maps.len();
            input_error(format!(
                "{layers} layers x {experts} experts x {width} replicas: expected {most} at most"
            ))
        })
    };
    room(1)?;
    let mut counts = vec![0i64; maps.len() * experts];
    for (layer, map) in maps.iter().enumerate() {
        for (slot, &expert) in map.iter().enumerate() {
            match usize::try_from(expert) {
                Ok(e) if e < experts => counts[layer * experts + e] += 1,
                _ if expert == -1 => {}
                _ => {
                    return Err(input_error(format!(
                        "layer {layer}, slot {slot}: expert {expert} of {experts}"
                    )));
                }
            }
        }
    }
    let widest = counts.iter().max().map_or(0, |&most| most as usize);
    room(widest)?;
    let mut copies = vec![-1i64; maps.len() * experts * widest];
    let mut next = vec![0usize; maps.len() * experts];
    for (layer, map) in maps.iter().enumerate() {
        for (slot, &expert) in map.iter().enumerate().filter(|(_, expert)| **expert >= 0) {
            let at = layer * experts + expert as usize;
            copies[at * widest + next[at]] = i64::try_from(slot).map_err(library_error)?;
            next[at] += 1;
        }
    }
    let all = Array3::from_shape_vec((maps.len(), experts, widest), copies).map_err(library_error)?;
    Ok((all.into_pyarray(py), matrix_array(py, maps.len(), experts, counts)?))
}
