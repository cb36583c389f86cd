//! Figures of placements on batches of counts.

use crate::arrays::read_tokens;
use crate::convert::{placement_from_slots, read_rows};
use crate::errors::{input_error, library_error};
use crate::rebalance::with_threads;
use evenkeel::evaluate::evaluate_on_nodes;
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;
use numpy::PyReadonlyArray2;
use pyo3::prelude::*;
use rayon::prelude::*;

/// Returns the mean imbalance (peak over mean) of placements on `loads`, [batches, layers, experts] of
/// integers.
///
/// `maps` has the expert of each slot, [layers, slots], -1 for an empty slot. Each batch is split by `split`:
/// "exact", "even" or a stack's rule. The mean of a layer covers its batches with tokens. The result is the
/// mean over all layers with tokens. It is 1 if no layer has a token.
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
    let (shape, values) = read_tokens(loads, "loads")?;
    let [steps, layers, experts] = shape[..] else {
        return Err(input_error(format!("loads: shape {shape:?}: expected [batches, layers, experts]")));
    };
    let maps = read_rows(&maps)?;
    if maps.len() != layers {
        return Err(input_error(format!("maps: {} layers: expected {layers}, as in loads", maps.len())));
    }
    let method: SplitMethod = split.parse().map_err(library_error)?;
    let names = (0..steps).map(|step| step.to_string()).collect();
    let numbers = (0..layers).map(u32::try_from).collect::<Result<Vec<_>, _>>().map_err(library_error)?;
    let trace =
        Trace::from_loads(experts, numbers, names, values.as_slice()?.to_vec()).map_err(library_error)?;
    let placed = maps.iter().enumerate().map(|(layer, map)| {
        placement_from_slots(map, ranks, Some(experts))
            .map_err(|err| input_error(format!("maps[{layer}]: {}", err.value(py))))
    });
    let placed = placed.collect::<PyResult<Vec<_>>>()?;
    let means = py.detach(|| {
        with_threads(|| {
            let mean = |layer: usize| {
                let judged = evaluate_on_nodes(&trace, layer, 0..steps, &placed[layer], method, nodes)?;
                let batches = judged.peaks.len();
                let sum: f64 = (0..batches).map(|batch| judged.imbalance(batch)).sum();
                Ok((batches > 0).then(|| sum / batches as f64))
            };
            (0..layers)
                .into_par_iter()
                .map(mean)
                .collect::<Result<Vec<_>, evenkeel::evaluate::EvaluateError>>()
                .map_err(library_error)
        })
    })?;
    let busy: Vec<f64> = means.into_iter().flatten().collect();
    Ok(if busy.is_empty() { 1.0 } else { busy.iter().sum::<f64>() / busy.len() as f64 })
}
