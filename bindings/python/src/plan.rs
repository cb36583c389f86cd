//! Plans: planned from a trace, read, written and exported.

use crate::arrays::BoundedList;
use crate::convert::matrix_array;
use crate::errors::{input_error, library_error};
use crate::planner::{Planner, PlannerParts};
use crate::policy::with_split;
use crate::trace::Trace;
use evenkeel::cluster::Cluster;
use evenkeel::economics::MoveEconomics;
use evenkeel::export::{self, Dialect};
use evenkeel::gpu::GpuSpec;
use evenkeel::model::MoeModel;
use evenkeel::place::{self, Coverage};
use evenkeel::plan::{self as core, BatchProvenance, Constraints, LayerChange, LinkBudget, PlanRequest};
use evenkeel::split::SplitMethod;
use evenkeel::trace::LayerSet;
use numpy::{IntoPyArray, PyArray1, PyArray2};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Expert, source rank, target rank and slot of a move.
type MoveTuple = (u32, Option<u32>, u32, u32);

/// Placements for all busy layers of a model on one group of ranks.
#[pyclass(frozen, module = "evenkeel")]
pub(crate) struct Plan {
    pub(crate) inner: core::Plan,
    /// Changes from the plan before it. Empty without one.
    changes: Vec<LayerChange>,
}

/// Plans the placement of every layer's experts.
///
/// `redundant` counts slots beyond one per expert over all ranks. `num_redundant_experts`, the word of SGLang
/// and vLLM, is accepted as an alias. `policy` is a name as on the command line: recourse, eplb, contiguous,
/// lplb:ring, .. . `groups` is the number of expert groups of the model.
///
/// `split` is the split of the batches at run time, for the policy recourse: "exact", "even" or a stack's
/// rule ("vllm", "sglang-static", ..). `policy="recourse:vllm"` is equivalent.
///
/// `moe_layers` are the ids of all layers that route tokens. By default these are the layers with tokens, and
/// the layers without tokens behind the first of them.
///
/// `previous` is the plan that runs now. Its layers stay where they are good enough, and `Plan.moves` lists
/// the moves. `ranks` are those of the next plan: the ranks that are not in `lost_ranks` come first, and
/// further ranks join.
///
/// Constraints may be combined as on the command line:
///
/// - `uneven`: some ranks have one slot less where the slots do not divide.
/// - `survive_rank_loss`: "1" for all experts, "best" for as many as the slots allow.
/// - `speeds`: speed of each rank, one whole number per rank.
/// - `memory_budget`: redundant slots of all layers together; `redundant` is not needed then.
/// - `max_moves`: highest number of moves per layer.
/// - `horizon_steps` with `link_gbps`, `model` and `gpu`: move in a layer only if the move pays.
/// - `link_budget_bytes` with `model`: bytes that a rank may receive over all layers.
///
/// Raises `Error` if the shape does not fit, or if `redundant` and its alias differ. Also raises it if
/// `split` contradicts `policy`: the policy is not recourse or names another split. Also raises it if
/// constraints contradict each other.
#[pyfunction]
#[pyo3(signature = (trace, ranks, redundant=None, *, policy="recourse", nodes=1, groups=1, split=None,
                    moe_layers=None, num_redundant_experts=None, uneven=false, previous=None, **limits))]
#[allow(clippy::too_many_arguments, reason = "keyword arguments of Python")]
pub(crate) fn plan(
    py: Python<'_>,
    trace: &Trace,
    ranks: usize,
    redundant: Option<usize>,
    policy: &str,
    nodes: usize,
    groups: usize,
    split: Option<&str>,
    moe_layers: Option<BoundedList<u32>>,
    num_redundant_experts: Option<usize>,
    uneven: bool,
    previous: Option<PyRef<'_, Plan>>,
    limits: Option<&Bound<'_, PyDict>>,
) -> PyResult<Plan> {
    let limits = limits.map_or_else(|| Ok(Constraints::default()), constraints)?;
    let experts = trace.inner.experts();
    let redundant = match (limits.memory_budget, redundant, num_redundant_experts) {
        (Some(_), None, None) => (ranks - experts.checked_rem(ranks).unwrap_or(0)) % ranks.max(1),
        _ => redundant_slots(redundant, num_redundant_experts)?,
    };
    let cluster = if uneven { Cluster::with_uneven_slots } else { Cluster::new };
    let cluster = cluster(ranks, nodes, experts, redundant).map_err(library_error)?;
    // The plan's imbalance is that of the split which `split` or `policy` names. Otherwise it is that of the
    // even split, as on the command line.
    let named = split
        .or_else(|| policy.strip_prefix("recourse:")?.split(':').find(|o| o.parse::<SplitMethod>().is_ok()));
    let judged = named.map_or(Ok(SplitMethod::Even), str::parse::<SplitMethod>).map_err(library_error)?;
    let origin = BatchProvenance::default().split(judged);
    let policy = split.map_or_else(|| Ok(policy.to_owned()), |split| with_split(policy, split))?;
    let policy = place::policy(&policy, groups, &cluster).map_err(library_error)?;
    let before = previous.as_ref().map(|plan| plan.inner.clone());
    let made = py.detach(|| {
        crate::rebalance::with_threads(|| {
            let request = PlanRequest::new(&trace.inner, cluster, policy.as_ref()).provenance(origin);
            request.previous(before.as_ref()).constraints(limits).run(&()).map_err(library_error)
        })
    })?;
    let mut inner = made.plan;
    if let Some(ids) = moe_layers {
        inner.set_moe_layers(&layer_set(&ids.0)?).map_err(library_error)?;
    }
    Ok(Plan { inner, changes: made.changes })
}

/// Returns the constraints that keyword arguments state.
fn constraints(arguments: &Bound<'_, PyDict>) -> PyResult<Constraints> {
    let mut limits = Constraints::default();
    let (mut steps, mut gbps, mut link_bytes) = (None, None, None);
    let (mut model, mut gpu): (Option<MoeModel>, Option<GpuSpec>) = (None, None);
    for (name, value) in arguments {
        if value.is_none() {
            continue;
        }
        match name.extract::<String>()?.as_str() {
            "lost_ranks" => limits.lost_ranks = value.extract::<BoundedList<usize>>()?.0,
            "max_moves" => limits.max_moves = Some(value.extract()?),
            "speeds" => limits.speeds = value.extract::<BoundedList<u32>>()?.0,
            "memory_budget" => limits.memory_budget = Some(value.extract()?),
            "survive_rank_loss" => {
                limits.coverage = Some(match value.extract::<String>()?.as_str() {
                    "1" => Coverage::All,
                    "best" => Coverage::Heaviest,
                    other => {
                        return Err(input_error(format!(
                            "survive_rank_loss {other:?}: expected \"1\" or \"best\""
                        )));
                    }
                });
            }
            "horizon_steps" => steps = Some(value.extract::<u64>()?),
            "link_gbps" => gbps = Some(value.extract::<u64>()?),
            "link_budget_bytes" => link_bytes = Some(value.extract::<u64>()?),
            "model" => model = Some(value.extract::<String>()?.parse().map_err(library_error)?),
            "gpu" => gpu = Some(value.extract::<String>()?.parse().map_err(library_error)?),
            other => {
                return Err(PyTypeError::new_err(format!(
                    "plan() got an unexpected keyword argument '{other}'"
                )));
            }
        }
    }
    if let Some(steps) = steps {
        let (Some(gbps), Some(model), Some(gpu)) = (gbps, model, gpu) else {
            return Err(input_error("horizon_steps: expected link_gbps, model and gpu too"));
        };
        let economics = MoveEconomics::on_link(steps, gbps, &model, &gpu);
        limits.economics = Some(economics.ok_or_else(|| input_error("link_gbps 0: expected 1 or more"))?);
    }
    if let Some(bytes) = link_bytes {
        let Some(model) = model else {
            return Err(input_error("link_budget_bytes: expected model too"));
        };
        limits.link_budget = Some(LinkBudget { bytes, expert_bytes: model.expert_bytes() });
    }
    Ok(limits)
}

/// Returns the number of redundant slots, from the argument `redundant` or from its alias.
fn redundant_slots(redundant: Option<usize>, num_redundant_experts: Option<usize>) -> PyResult<usize> {
    match (redundant, num_redundant_experts) {
        (Some(slots), Some(experts)) if slots != experts => Err(input_error(format!(
            "redundant {slots}, num_redundant_experts {experts}: expected one of them, or equal values"
        ))),
        (Some(slots), _) | (None, Some(slots)) => Ok(slots),
        (None, None) => Err(PyTypeError::new_err("plan: expected redundant or num_redundant_experts")),
    }
}

/// Returns the set of the listed layers.
fn layer_set(ids: &[u32]) -> PyResult<LayerSet> {
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    ids.join(",").parse().map_err(library_error)
}

impl Plan {
    /// Wraps a plan that has no previous one.
    pub(crate) fn without_changes(inner: core::Plan) -> Self {
        Self { inner, changes: vec![] }
    }
}

#[pymethods]
impl Plan {
    /// Reads and checks a plan file.
    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = py.detach(|| core::Plan::read(&path));
        let inner = inner.map_err(|e| input_error(format!("{}: {e}", path.display())))?;
        Ok(Self { inner, changes: vec![] })
    }

    /// Reads and checks a plan from its JSON text.
    #[staticmethod]
    fn from_json(text: &str) -> PyResult<Self> {
        Ok(Self { inner: core::Plan::from_json(text).map_err(library_error)?, changes: vec![] })
    }

    /// Returns the plan as JSON text.
    fn to_json(&self) -> PyResult<String> {
        self.inner.to_json().map_err(library_error)
    }

    /// Writes the plan's JSON to a file.
    fn save(&self, path: PathBuf) -> PyResult<()> {
        evenkeel::write_atomic(&path, self.to_json()?.as_bytes())?;
        Ok(())
    }

    /// Returns the plan in the format of a serving stack. `to` is sglang, trtllm, vllm, vllm-ascend or eplb.
    ///
    /// `moe_layers` are the ids of all layers that route tokens. By default these are the planned ones and
    /// `unrecorded_layers`.
    #[pyo3(signature = (to, *, moe_layers=None))]
    fn export(&self, to: &str, moe_layers: Option<BoundedList<u32>>) -> PyResult<String> {
        let dialect = to.parse::<Dialect>().map_err(library_error)?;
        let mut plan = Cow::Borrowed(&self.inner);
        if let Some(ids) = moe_layers {
            plan.to_mut().set_moe_layers(&layer_set(&ids.0)?).map_err(library_error)?;
        }
        export::write(&plan, dialect).map_err(library_error)
    }

    /// Ids of MoE layers without recorded tokens. Exported files hold their experts in order.
    #[getter]
    fn unrecorded_layers(&self) -> Vec<u32> {
        self.inner.unrecorded_layers.clone()
    }

    /// Moves from the previous plan: {layer: [(expert, from rank, to rank, slot), ..]}, with layers by real
    /// id. The source rank is None if every rank with the expert was lost. Without a previous plan, and after
    /// reading a file, it is empty.
    #[getter]
    fn moves(&self) -> BTreeMap<u32, Vec<MoveTuple>> {
        let layers = self.inner.layers.iter().zip(&self.changes);
        let moves =
            |change: &LayerChange| change.moves.iter().map(|m| (m.expert, m.from, m.to, m.slot)).collect();
        layers.map(|(layer, change)| (layer.layer, moves(change))).collect()
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

    /// Expert of each slot: [layers, slots], int64, -1 for an empty slot. Rank r owns the slots r *
    /// slots_per_rank .. (r + 1) * slots_per_rank.
    #[getter]
    fn physical_to_logical<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray2<i64>>> {
        let all = self.inner.layers.iter().flat_map(|layer| layer.placement.slot_ids()).collect();
        matrix_array(py, self.inner.layers.len(), self.inner.cluster.slots(), all)
    }

    /// Split that `imbalance` refers to: the one that the plan was computed for, or "even" if none was named.
    #[getter]
    fn split(&self) -> &str {
        &self.inner.provenance.split
    }

    /// Mean imbalance (peak over mean) of the plan and of EPLB on the same batches, for every split that may
    /// run: {split: (plan, EPLB)}. EPLB's figure is None if EPLB cannot serve the shape.
    #[getter]
    fn figures(&self) -> BTreeMap<String, (f64, Option<f64>)> {
        let figures = self.inner.provenance.figures.iter();
        figures.map(|f| (f.split.clone(), (f.imbalance.mean, f.eplb.map(|eplb| eplb.mean)))).collect()
    }

    /// Expected imbalance (peak over mean) of each layer under `split`: [layers], float64.
    #[getter]
    fn imbalance<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<f64>> {
        self.inner.layers.iter().map(|layer| layer.imbalance).collect::<Vec<_>>().into_pyarray(py)
    }

    /// Returns a planner for one layer, by its real id.
    fn planner(&self, layer: u32) -> PyResult<Planner> {
        let found = self.inner.layers.iter().find(|planned| planned.layer == layer);
        let found = found.ok_or_else(|| input_error(format!("layer {layer} is not planned")))?;
        Planner::build(found.placement.clone(), self.inner.cluster, PlannerParts::default())
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
