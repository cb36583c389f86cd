//! Recorded loads: every format that the library reads, as arrays.

use crate::arrays::{BoundedList, read_tokens};
use crate::errors::{input_error, library_error};
use evenkeel_trace::{self as core, Batching, LayerSet, MAX_LAYERS, ReadOptions, RequestOrder};
use numpy::ndarray::Array3;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArray3};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::path::PathBuf;

/// Token counts of a recorded run: `loads[step, layer, expert]`.
///
/// One step is one batch of the model. `Trace.from_loads` makes a trace from an array, `read_trace` from
/// files.
#[pyclass(frozen, module = "evenkeel")]
pub(crate) struct Trace {
    pub(crate) inner: core::Trace,
}

/// Reads a trace: one or several files or folders. The content determines the format.
///
/// `batch_tokens` and `decode_batch` cut per-token arrays into batches: consecutive tokens, or one token of
/// each of that many requests in flight. `order` is "recorded" or "shuffled" (by `seed`). `layers` is a set
/// such as "3-60". `step_column` is the column whose values are the steps. `arrays` are the names of the .npz
/// arrays to read.
///
/// Raises `Error` with file and place if a file cannot be read or understood.
#[pyfunction]
#[pyo3(signature = (paths, *, format=None, experts=None, layers=None, batch_tokens=None, decode_batch=None,
                    order="recorded", seed=0, step_column=None, arrays=None))]
#[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub(crate) fn read_trace(
    py: Python<'_>,
    paths: TracePaths,
    format: Option<&str>,
    experts: Option<usize>,
    layers: Option<&str>,
    batch_tokens: Option<usize>,
    decode_batch: Option<usize>,
    order: &str,
    seed: u64,
    step_column: Option<String>,
    arrays: Option<BoundedList<String>>,
) -> PyResult<Trace> {
    let paths = match paths {
        TracePaths::One(path) => vec![path],
        TracePaths::Several(paths) => paths.0,
    };
    let arrays = arrays.map_or_else(Vec::new, |arrays| arrays.0);
    let mut options =
        ReadOptions::default().experts(experts).seed(seed).step_column(step_column).arrays(arrays);
    if let Some(name) = format {
        options.format = Some(name.parse().map_err(library_error)?);
    }
    options.layers = layers.map(str::parse::<LayerSet>).transpose().map_err(library_error)?;
    options.batching = match (batch_tokens, decode_batch) {
        (Some(_), Some(_)) => return Err(input_error("batch_tokens and decode_batch: expected one of them")),
        (Some(0), _) | (_, Some(0)) => return Err(input_error("a batch of 0: expected 1 or more")),
        (Some(tokens), None) => Batching::Prefill { tokens },
        (None, Some(requests)) => Batching::Decode { in_flight: requests },
        (None, None) => options.batching,
    };
    options.order = order.parse::<RequestOrder>().map_err(library_error)?;
    let inner = py.detach(|| core::read(&paths, &options, &())).map_err(library_error)?;
    Ok(Trace { inner })
}

/// One path or several.
#[derive(FromPyObject)]
pub(crate) enum TracePaths {
    One(PathBuf),
    Several(BoundedList<PathBuf>),
}

#[pymethods]
impl Trace {
    /// Makes a trace from an array of integers, [steps, layers, experts]. `layers` are the layers' real ids,
    /// by default 0, 1, .. .
    #[staticmethod]
    #[pyo3(signature = (loads, layers=None))]
    fn from_loads(loads: &Bound<'_, PyAny>, layers: Option<BoundedList<u32>>) -> PyResult<Self> {
        let (shape, values) = read_tokens(loads, "loads")?;
        let [steps, count, experts] = shape[..] else {
            return Err(input_error(format!("loads: shape {shape:?}: expected [steps, layers, experts]")));
        };
        if count > MAX_LAYERS {
            return Err(input_error(format!("loads: {count} layers: expected {MAX_LAYERS} at most")));
        }
        let layers = layers.map_or_else(|| (0..count as u32).collect(), |layers| layers.0);
        if layers.len() != count {
            return Err(input_error(format!("{} layer ids for {count} layers", layers.len())));
        }
        let steps = (0..steps).map(|step| step.to_string()).collect();
        let inner = core::Trace::from_loads(experts, layers, steps, values.as_slice()?.to_vec())
            .map_err(library_error)?;
        Ok(Self { inner })
    }

    /// Logical experts per layer.
    #[getter]
    fn experts(&self) -> usize {
        self.inner.experts()
    }

    /// Real layer ids, ascending: [layers], uint32.
    #[getter]
    fn layers<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        self.inner.layers().to_vec().into_pyarray(py)
    }

    /// Labels of the steps.
    #[getter]
    fn steps(&self) -> Vec<String> {
        self.inner.steps().to_vec()
    }

    /// Interpretation of the files, one sentence each.
    #[getter]
    fn notices(&self) -> Vec<String> {
        self.inner.notices().to_vec()
    }

    /// Returns the tokens of every batch: [steps, layers, experts], uint64.
    fn loads<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray3<u64>>> {
        let (steps, layers, experts) = self.load_shape();
        let mut all = Vec::with_capacity(steps * layers * experts);
        for step in 0..steps {
            for layer in 0..layers {
                all.extend_from_slice(self.inner.loads(step, layer));
            }
        }
        Ok(Array3::from_shape_vec((steps, layers, experts), all).map_err(library_error)?.into_pyarray(py))
    }

    /// Returns the tokens of all batches together: [layers, experts], uint64.
    fn totals<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<u64>>> {
        let (_, layers, experts) = self.load_shape();
        let all = (0..layers).flat_map(|layer| self.inner.totals(layer).iter().copied()).collect();
        crate::convert::matrix_array(py, layers, experts, all)
    }

    /// Returns the non-zero counts as columns of a long table: `step` (index), `layer` (real id), `expert`,
    /// `tokens`. `pandas.DataFrame(trace.columns())` and `polars.DataFrame(trace.columns())` accept it.
    fn columns<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (steps, layers, _) = self.load_shape();
        let (mut step_of, mut layer_of, mut expert_of, mut tokens_of) = (vec![], vec![], vec![], vec![]);
        for step in 0..steps {
            for layer in 0..layers {
                for (expert, &tokens) in self.inner.loads(step, layer).iter().enumerate() {
                    if tokens > 0 {
                        step_of.push(step as u64);
                        layer_of.push(self.inner.layers()[layer]);
                        expert_of.push(expert as u32);
                        tokens_of.push(tokens);
                    }
                }
            }
        }
        let table = PyDict::new(py);
        table.set_item("step", step_of.into_pyarray(py))?;
        table.set_item("layer", layer_of.into_pyarray(py))?;
        table.set_item("expert", expert_of.into_pyarray(py))?;
        table.set_item("tokens", tokens_of.into_pyarray(py))?;
        Ok(table)
    }

    fn __repr__(&self) -> String {
        let (steps, layers, experts) = self.load_shape();
        format!("<evenkeel.Trace: {steps} steps, {layers} layers, {experts} experts>")
    }
}

impl Trace {
    fn load_shape(&self) -> (usize, usize, usize) {
        (self.inner.steps().len(), self.inner.layers().len(), self.inner.experts())
    }
}
