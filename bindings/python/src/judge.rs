//! Placements judged on batches of counts.

use crate::arrays::tokens;
use crate::convert::{placement, rows};
use crate::errors::{error, refuse};
use crate::rebalance::with_threads;
use evenkeel::simulate::judge_on_nodes;
use evenkeel::split::Method;
use evenkeel::trace::Trace;
use numpy::PyReadonlyArray2;
use pyo3::prelude::*;
use rayon::prelude::*;

/// Mean imbalance (peak over mean) of placements on `loads`, [batches, layers, experts] of integers.
///
/// `maps` says which expert each slot holds, [layers, slots], -1 for an empty slot. Each batch is split by `split`: "exact",
/// "even" or a stack's rule. The mean is over a layer's batches with tokens, then over the layers that have any. It is 1 where
/// no layer has a token.
#[pyfunction]
#[pyo3(signature = (loads, maps, ranks, *, split, nodes=1))]
pub(crate) fn imbalance(
    py: Python<'_>,
    loads: &Bound<'_, PyAny>,
    maps: PyReadonlyArray2<'_, i64>,
    ranks: usize,
    split: &str,
    nodes: usize,
) -> PyResult<f64> {
    let (shape, values) = tokens(loads, "loads")?;
    let [steps, layers, experts] = shape[..] else {
        return Err(refuse(format!("loads: shape {shape:?}: expected [batches, layers, experts]")));
    };
    let maps = rows(&maps);
    if maps.len() != layers {
        return Err(refuse(format!("maps: {} layers: expected {layers}, as in loads", maps.len())));
    }
    let method: Method = split.parse().map_err(error)?;
    let names = (0..steps).map(|step| step.to_string()).collect();
    let numbers = (0..layers).map(u32::try_from).collect::<Result<Vec<_>, _>>().map_err(error)?;
    let trace = Trace::from_loads(experts, numbers, names, values.as_slice()?.to_vec()).map_err(error)?;
    let placed = maps.iter().enumerate().map(|(layer, map)| {
        placement(map, ranks, Some(experts))
            .map_err(|err| refuse(format!("maps[{layer}]: {}", err.value(py))))
    });
    let placed = placed.collect::<PyResult<Vec<_>>>()?;
    let means = py.detach(|| {
        with_threads(|| {
            let mean = |layer: usize| {
                let judged = judge_on_nodes(&trace, layer, 0..steps, &placed[layer], method, nodes)?;
                let batches = judged.peaks.len();
                let sum: f64 = (0..batches).map(|batch| judged.imbalance(batch)).sum();
                Ok((batches > 0).then(|| sum / batches as f64))
            };
            (0..layers)
                .into_par_iter()
                .map(mean)
                .collect::<Result<Vec<_>, evenkeel::simulate::SimulateError>>()
                .map_err(error)
        })
    })?;
    let busy: Vec<f64> = means.into_iter().flatten().collect();
    Ok(if busy.is_empty() { 1.0 } else { busy.iter().sum::<f64>() / busy.len() as f64 })
}
