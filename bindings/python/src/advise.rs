//! Advice on deployments, as a document and plans.

use crate::arrays::BoundedList;
use crate::errors::{input_error, library_error};
use crate::plan::Plan;
use crate::trace::Trace;
use evenkeel::gpu::GpuSpec;
use evenkeel::model::MoeModel;
use evenkeel_advise::{
    Advice, AdviceRequest, DRAWN_BATCHES, GpuCounts, ModelSpec, PlacementFiles, Role, Serving, StepTimes,
    Workload, holds_sums, launch_commands,
};
use evenkeel_trace::synth::{Resampling, draw_batches};
use evenkeel_trace::{self as core, Batching};
use pyo3::prelude::*;

/// Numbers of GPUs: a text such as "16..96", one number, or several.
#[derive(FromPyObject)]
pub(crate) enum GpuNumbers {
    One(u64),
    Several(BoundedList<u64>),
    Text(String),
}

impl GpuNumbers {
    fn counts(self, linked: u64) -> PyResult<Vec<u64>> {
        let text = match self {
            Self::One(count) => count.to_string(),
            Self::Several(counts) => counts.0.iter().map(u64::to_string).collect::<Vec<_>>().join(","),
            Self::Text(text) => text,
        };
        Ok(text.parse::<GpuCounts>().map_err(library_error)?.counts(linked))
    }
}

/// Returns the advice as a JSON document, and the plans for decoding and for prefill if `plan` is true.
#[pyfunction]
#[pyo3(signature = (trace, model, gpu, gpus, context, framework, tpot_ms, ttft_ms, mixed, max_redundant, kv_bytes,
                    drafts, length_spread, stream_gb_s, seed, plan))]
#[allow(clippy::too_many_arguments, reason = "arguments of the Python function around it")]
pub(crate) fn advise(
    py: Python<'_>,
    trace: &Trace,
    model: &str,
    gpu: &str,
    gpus: GpuNumbers,
    context: (u64, u64),
    framework: &str,
    tpot_ms: Option<f64>,
    ttft_ms: Option<f64>,
    mixed: bool,
    max_redundant: u64,
    kv_bytes: f64,
    drafts: (f64, f64),
    length_spread: f64,
    stream_gb_s: Option<f64>,
    seed: u64,
    plan: bool,
) -> PyResult<(String, Option<Plan>, Option<Plan>)> {
    let model = read_model(model)?;
    let gpu: GpuSpec = gpu.parse().map_err(library_error)?;
    if model.moe.experts != trace.inner.experts() {
        return Err(input_error(format!(
            "model {} has {} experts per layer, the trace {}",
            model.name,
            model.moe.experts,
            trace.inner.experts()
        )));
    }
    let workload = Workload {
        input: context.0,
        output: context.1,
        tpot_ms,
        ttft_ms,
        verified: drafts.0,
        accepted: drafts.1,
        length_spread,
        kv_bytes,
        stream_gb_s,
        serving: if mixed { Serving::Mixed } else { Serving::Disaggregated },
    };
    workload.check().map_err(library_error)?;
    let gpus = gpus.counts(gpu.linked)?;
    py.detach(|| {
        let times = StepTimes::of_gpu(&model, gpu, None, framework, kv_bytes).map_err(library_error)?;
        let drawn = draw(&trace.inner, model.moe.top_k, seed)?;
        let trace = drawn.as_ref().unwrap_or(&trace.inner);
        let request =
            AdviceRequest { model: &model, times: &times, trace, workload, gpus, max_redundant, seed };
        let advice = Advice::find(&request, &()).map_err(library_error)?;
        let launch = launch_commands("MODEL", advice.best(), workload.serving, &PlacementFiles::default());
        let document = advice.to_json(&request, &launch, false).to_string();
        let plan_of = |role| -> PyResult<Option<Plan>> {
            let made = if plan { advice.plan(&request, role, &()).map_err(library_error)? } else { None };
            Ok(made.map(Plan::without_changes))
        };
        Ok((document, plan_of(Role::Decode)?, plan_of(Role::Prefill)?))
    })
}

/// Returns batches of a trace that holds sums over batches, and `None` for other traces.
fn draw(trace: &core::Trace, top_k: usize, seed: u64) -> PyResult<Option<core::Trace>> {
    if !holds_sums(trace, top_k) || trace.is_empty() {
        return Ok(None);
    }
    let resampling = Resampling { steps: DRAWN_BATCHES, top_k, batching: Batching::default(), seed };
    draw_batches(&resampling, trace).map(Some).map_err(library_error)
}

/// Returns a known model, or reads a config.json.
fn read_model(name: &str) -> PyResult<ModelSpec> {
    if std::path::Path::new(name).extension().is_none_or(|end| end != "json") {
        let known: MoeModel = name.parse().map_err(library_error)?;
        return ModelSpec::of_known(known).map_err(library_error);
    }
    let text = std::fs::read_to_string(name).map_err(|error| input_error(format!("{name}: {error}")))?;
    ModelSpec::from_config_json(name, &text).map_err(library_error)
}
