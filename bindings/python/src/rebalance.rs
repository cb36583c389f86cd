//! EPLB's call: weights in, physical-to-logical maps out, by any policy.

use crate::arrays::tokens;
use crate::convert::{matrix, placement, rows};
use crate::errors::{error, refuse};
use evenkeel::cluster::Cluster;
use evenkeel::export::filled;
use evenkeel::forecast::History;
use evenkeel::place::{self, Eplb, Placement, Ties};
use evenkeel::trace::Trace;
use numpy::ndarray::Array3;
use numpy::{IntoPyArray, PyArray2, PyArray3, PyReadonlyArray2};
use pyo3::prelude::*;
use rayon::prelude::*;

/// Runs planning on threads that end with it: a process that forks later inherits no pool without threads.
pub(crate) fn with_threads<T: Send>(work: impl FnOnce() -> PyResult<T> + Send) -> PyResult<T> {
    let pool = rayon::ThreadPoolBuilder::new().build().map_err(error)?;
    pool.install(work)
}

/// DeepSeek's EPLB on `weight`, [layers, experts], float32: the physical-to-logical map, [layers, num_replicas], int64.
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
    if weight.iter().any(|w| !w.is_finite() || *w < 0.0) {
        return Err(refuse("weight: expected numbers from 0 on"));
    }
    let layers: Vec<Vec<f32>> = weight.rows().into_iter().map(|row| row.to_vec()).collect();
    let eplb = Eplb::new(num_groups, Ties::LowestExpert);
    let maps = py.detach(|| {
        let plan = |layer: &Vec<f32>| eplb.physical_to_logical(layer, num_replicas, num_nodes, num_gpus);
        layers.iter().map(plan).collect::<Result<Vec<_>, _>>()
    });
    let all = maps.map_err(error)?.into_iter().flatten().map(i64::from).collect();
    matrix(py, layers.len(), num_replicas, all)
}

/// Any policy on recorded batches, `loads` [batches, layers, experts] of integers: the physical-to-logical map, [layers,
/// slots], int64. With `previous`, a map of the same shape, at most `max_moves` experts per layer are brought to ranks that
/// do not hold them, and what can stay stays. Slots that the policy leaves empty get copies that do no harm.
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
    let (shape, values) = tokens(loads, "loads")?;
    let [steps, layers, experts] = shape[..] else {
        return Err(refuse(format!("loads: shape {shape:?}: expected [batches, layers, experts]")));
    };
    let redundant = slots_in_all
        .checked_sub(experts)
        .ok_or_else(|| refuse(format!("{slots_in_all} slots cannot hold {experts} experts")))?;
    let cluster = Cluster::new(ranks, nodes, experts, redundant).map_err(error)?;
    let policy = place::policy(policy, groups, &cluster).map_err(error)?;
    let names = (0..steps).map(|step| step.to_string()).collect();
    let trace = Trace::from_loads(experts, (0..layers as u32).collect(), names, values.as_slice()?.to_vec());
    let trace = trace.map_err(error)?;
    let before = match previous {
        None => None,
        Some(map) => {
            let maps = rows(&map);
            if maps.len() != layers || maps.iter().any(|map| map.len() != slots_in_all) {
                return Err(refuse(format!("previous: expected shape [{layers}, {slots_in_all}]")));
            }
            let placements = maps.iter().map(|map| placement(map, ranks, Some(experts)));
            Some(placements.collect::<PyResult<Vec<Placement>>>()?)
        }
    };
    let placed = py.detach(|| {
        with_threads(|| {
            let plan = |layer: usize| {
                let history = History::whole(&trace, layer);
                match &before {
                    None => policy.place(&history, &cluster),
                    Some(before) => policy.replan(&history, &cluster, &before[layer], max_moves),
                }
            };
            (0..layers).into_par_iter().map(plan).collect::<Result<Vec<_>, _>>().map_err(error)
        })
    })?;
    // Those who call this know no empty slot.
    let full = placed.iter().flat_map(filled).map(i64::from);
    matrix(py, layers, cluster.slots(), full.collect())
}

type Inverse<'py> = (Bound<'py, PyArray3<i64>>, Bound<'py, PyArray2<i64>>);

/// The inverse of physical-to-logical maps: logical-to-physical, [layers, experts, most copies], padded with -1, and the
/// number of copies, [layers, experts]; int64 both, copies ascending.
#[pyfunction]
pub(crate) fn inverse<'py>(
    py: Python<'py>,
    physical_to_logical: PyReadonlyArray2<'py, i64>,
    experts: usize,
) -> PyResult<Inverse<'py>> {
    let maps = rows(&physical_to_logical);
    let mut counts = vec![0i64; maps.len() * experts];
    for (layer, map) in maps.iter().enumerate() {
        for (slot, &expert) in map.iter().enumerate() {
            match usize::try_from(expert) {
                Ok(e) if e < experts => counts[layer * experts + e] += 1,
                _ if expert == -1 => {}
                _ => return Err(refuse(format!("layer {layer}, slot {slot}: expert {expert} of {experts}"))),
            }
        }
    }
    let widest = counts.iter().max().map_or(0, |&most| most as usize);
    let mut copies = vec![-1i64; maps.len() * experts * widest];
    let mut next = vec![0usize; maps.len() * experts];
    for (layer, map) in maps.iter().enumerate() {
        for (slot, &expert) in map.iter().enumerate().filter(|(_, expert)| **expert >= 0) {
            let at = layer * experts + expert as usize;
            copies[at * widest + next[at]] = i64::try_from(slot).map_err(error)?;
            next[at] += 1;
        }
    }
    let all = Array3::from_shape_vec((maps.len(), experts, widest), copies).map_err(error)?;
    Ok((all.into_pyarray(py), matrix(py, maps.len(), experts, counts)?))
}
