//! Plans: made from a trace, read, written, exported.

use crate::convert::matrix;
use crate::errors::{error, refuse};
use crate::planner::Planner;
use crate::policy::with_split;
use crate::trace::Trace;
use evenkeel::cluster::Cluster;
use evenkeel::export::{self, Dialect};
use evenkeel::place;
use evenkeel::plan::{self as core, Origin};
use evenkeel::split::Method;
use numpy::{IntoPyArray, PyArray1, PyArray2};
use pyo3::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Placements for all busy layers of a model on one group of ranks.
#[pyclass(frozen, module = "evenkeel")]
pub(crate) struct Plan {
    pub(crate) inner: core::Plan,
}

/// Plans where the copies of every layer's experts live.
///
/// `redundant` counts slots beyond one per expert over all ranks. `policy` is a name as on the command line: recourse,
/// eplb, contiguous, lplb:ring, .. ; `groups` are the model's expert groups. `split` is what will split the batches, for the
/// policy recourse: "exact", "even" or a stack's rule ("vllm", "sglang-static", ..); `policy="recourse:vllm"` says the same.
/// Raises `Error` where the shape does not fit, and where `policy` is another or names another split.
#[pyfunction]
#[pyo3(signature = (trace, ranks, redundant, *, policy="recourse", nodes=1, groups=1, split=None))]
#[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub(crate) fn plan(
    py: Python<'_>,
    trace: &Trace,
    ranks: usize,
    redundant: usize,
    policy: &str,
    nodes: usize,
    groups: usize,
    split: Option<&str>,
) -> PyResult<Plan> {
    let cluster = Cluster::new(ranks, nodes, trace.inner.experts(), redundant).map_err(error)?;
    // The plan's imbalance is for the split that is named, in either way; else for the even one, as on the command line.
    let named =
        split.or_else(|| policy.strip_prefix("recourse:")?.split(':').find(|o| o.parse::<Method>().is_ok()));
    let judged = named.map_or(Ok(Method::Even), str::parse::<Method>).map_err(error)?;
    let origin = Origin { split: judged, ..Origin::default() };
    let policy = split.map_or_else(|| Ok(policy.to_owned()), |split| with_split(policy, split))?;
    let policy = place::policy(&policy, groups, &cluster).map_err(error)?;
    let made = py.detach(|| {
        crate::rebalance::with_threads(|| {
            core::Plan::make(&trace.inner, &cluster, policy.as_ref(), origin, &()).map_err(error)
        })
    })?;
    Ok(Plan { inner: made.plan })
}

#[pymethods]
impl Plan {
    /// Reads and checks a plan file.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = py.detach(|| core::Plan::read(&path));
        Ok(Self { inner: inner.map_err(|e| refuse(format!("{}: {e}", path.display())))? })
    }

    /// Reads and checks a plan from its JSON text.
    #[staticmethod]
    fn from_json(text: &str) -> PyResult<Self> {
        Ok(Self { inner: core::Plan::from_json(text).map_err(error)? })
    }

    /// The plan as JSON text.
    fn to_json(&self) -> PyResult<String> {
        self.inner.to_json().map_err(error)
    }

    /// Writes the plan's JSON to a file.
    fn save(&self, path: PathBuf) -> PyResult<()> {
        std::fs::write(path, self.to_json()?)?;
        Ok(())
    }

    /// The plan as a serving stack reads it: `to` is sglang, trtllm, vllm, vllm-ascend or eplb.
    fn export(&self, to: &str) -> PyResult<String> {
        export::write(&self.inner, to.parse::<Dialect>().map_err(error)?).map_err(error)
    }

    /// Ranks of the group.
    #[getter]
    fn ranks(&self) -> usize {
        self.inner.cluster.ranks()
    }

    /// Nodes of the group.
    #[getter]
    fn nodes(&self) -> usize {
        self.inner.cluster.nodes()
    }

    /// Slots on each rank.
    #[getter]
    fn slots_per_rank(&self) -> usize {
        self.inner.cluster.slots_per_rank()
    }

    /// Logical experts per layer.
    #[getter]
    fn experts(&self) -> usize {
        self.inner.experts
    }

    /// Real ids of the planned layers, ascending: [layers], uint32.
    #[getter]
    fn layers<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u32>> {
        self.inner.layers.iter().map(|layer| layer.layer).collect::<Vec<_>>().into_pyarray(py)
    }

    /// Which expert each slot holds: [layers, slots], int64, -1 for an empty slot. Rank r owns the slots
    /// r * slots_per_rank .. (r + 1) * slots_per_rank.
    #[getter]
    fn physical_to_logical<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        let all = self.inner.layers.iter().flat_map(|layer| layer.placement.ids()).collect();
        matrix(py, self.inner.layers.len(), self.inner.cluster.slots(), all)
    }

    /// The split that `imbalance` is for: the one that was planned for, "even" where none was named.
    #[getter]
    fn split(&self) -> &str {
        &self.inner.provenance.split
    }

    /// Mean peak over mean under every split that may run, and EPLB's on the same batches: {split: (plan, EPLB)}; None where
    /// EPLB cannot serve the shape.
    #[getter]
    fn figures(&self) -> BTreeMap<String, (f64, Option<f64>)> {
        let figures = self.inner.provenance.figures.iter();
        figures.map(|f| (f.split.clone(), (f.imbalance.mean, f.eplb.map(|eplb| eplb.mean)))).collect()
    }

    /// Peak over mean to expect of each layer under `split`: [layers], float64.
    #[getter]
    fn imbalance<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        self.inner.layers.iter().map(|layer| layer.imbalance).collect::<Vec<_>>().into_pyarray(py)
    }

    /// A planner for one layer, by its real id.
    fn planner(&self, layer: u32) -> PyResult<Planner> {
        let found = self.inner.layers.iter().find(|planned| planned.layer == layer);
        let found = found.ok_or_else(|| refuse(format!("layer {layer} is not planned")))?;
        Planner::build(found.placement.clone(), self.inner.cluster, None)
    }

    fn __repr__(&self) -> String {
        format!(
            "<evenkeel.Plan by {}: {} layers, {} experts on {} ranks x {} slots>",
            self.inner.provenance.policy,
            self.inner.layers.len(),
            self.inner.experts,
            self.ranks(),
            self.slots_per_rank()
        )
    }
}
