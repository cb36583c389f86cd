//! Additional traces to plan for at the same time: `--blend TRACE:WEIGHT`.

use crate::args::stated::StatedOptions;
use crate::args::trace::TraceArgs;
use anyhow::Context as _;
use evenkeel::evaluate::{SummaryStats, evaluate_layer};
use evenkeel::plan::Plan;
use evenkeel::split::SplitMethod;
use evenkeel::trace::{Trace, WeightedTrace};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// Argument of the form `TRACE:WEIGHT`, `TRACE:WEIGHT:decode=N` or `TRACE:WEIGHT:prefill=N`.
#[derive(Debug, Clone)]
pub(crate) struct BlendSpec {
    path: PathBuf,
    weight: f64,
    batches: Option<BatchSize>,
}

/// Size of the batches of one trace of a blend.
#[derive(Debug, Clone, Copy)]
enum BatchSize {
    Decode(usize),
    Prefill(usize),
}

/// Error of text that names no trace with its weight.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
pub(crate) enum BlendSpecError {
    #[error("expected TRACE:WEIGHT, TRACE:WEIGHT:decode=REQUESTS or TRACE:WEIGHT:prefill=TOKENS")]
    Form,
    #[error("a weight of {0}: {form}", form = BlendSpecError::Form)]
    Weight(f64),
}

impl FromStr for BlendSpec {
    type Err = BlendSpecError;

    fn from_str(text: &str) -> Result<Self, BlendSpecError> {
        let expected = |_| BlendSpecError::Form;
        let (rest, batches) = match text.rsplit_once(':').ok_or(BlendSpecError::Form)? {
            (rest, last) if last.contains('=') => {
                let batches = match last.split_once('=') {
                    Some(("decode", n)) => BatchSize::Decode(n.parse().map_err(expected)?),
                    Some(("prefill", n)) => BatchSize::Prefill(n.parse().map_err(expected)?),
                    _ => return Err(BlendSpecError::Form),
                };
                (rest, Some(batches))
            }
            _ => (text, None),
        };
        let (path, weight) = rest.rsplit_once(':').ok_or(BlendSpecError::Form)?;
        let weight: f64 = weight.parse().map_err(|_| BlendSpecError::Form)?;
        if !(weight > 0.0 && weight <= 1e6) || path.is_empty() {
            return Err(BlendSpecError::Weight(weight));
        }
        Ok(BlendSpec { path: path.into(), weight, batches })
    }
}

/// The traces of a blend, each as it was read.
#[derive(Debug)]
pub(crate) struct BlendParts {
    parts: Vec<(String, Trace)>,
}

/// Reads the additional traces and blends them with the first one.
pub(crate) fn blend_traces(
    first: Trace,
    args: &TraceArgs,
    specs: &[BlendSpec],
) -> anyhow::Result<(Trace, Option<BlendParts>)> {
    if specs.is_empty() {
        return Ok((first, None));
    }
    let mut others = Vec::new();
    for spec in specs {
        // Options of the first trace may have no effect on this one. Options in its own argument must have
        // one.
        let mut own =
            TraceArgs { traces: vec![spec.path.clone()], stated: StatedOptions::default(), ..args.clone() };
        own.top_k = own.top_k.or(first.resampling().map(|resampling| resampling.top_k));
        match spec.batches {
            Some(BatchSize::Decode(requests)) => {
                (own.decode_batch, own.stated) = (Some(requests), StatedOptions::with_ids(&["decode_batch"]));
            }
            Some(BatchSize::Prefill(tokens)) => {
                (own.decode_batch, own.batch_tokens) = (None, tokens);
                own.stated = StatedOptions::with_ids(&["batch_tokens"]);
            }
            None => {}
        }
        let trace = own.read().with_context(|| format!("--blend {}", spec.path.display()))?;
        others.push(WeightedTrace { trace, weight: spec.weight });
    }
    let blended = first.blend_with(&others).context("--blend")?;
    let names = args.traces.first().into_iter().chain(specs.iter().map(|spec| &spec.path));
    let names: Vec<String> = names.map(|path| path.display().to_string()).collect();
    let traces = std::iter::once(first).chain(others.into_iter().map(|other| other.trace));
    Ok((blended, Some(BlendParts { parts: names.into_iter().zip(traces).collect() })))
}

/// Results of the plan on each trace alone.
#[derive(Debug)]
pub(crate) struct PartFigures(Vec<(String, Option<SummaryStats>)>);

impl BlendParts {
    /// Judges the plan on each trace.
    pub(crate) fn evaluate_plan(&self, plan: &Plan) -> anyhow::Result<PartFigures> {
        let evaluate_part = |(name, trace): &(String, Trace)| {
            let mut all = Vec::new();
            for layer in &plan.layers {
                let Ok(index) = trace.layers().binary_search(&layer.layer) else { continue };
                let judged = evaluate_layer(
                    trace,
                    index,
                    0..trace.steps().len(),
                    &layer.placement,
                    SplitMethod::Exact,
                )?;
                all.extend((0..judged.peaks.len()).map(|b| judged.imbalance(b)));
            }
            Ok((name.clone(), (!all.is_empty()).then(|| SummaryStats::from_values(all))))
        };
        Ok(PartFigures(self.parts.iter().map(evaluate_part).collect::<anyhow::Result<_>>()?))
    }

    /// Returns a description of the batches of the blend.
    pub(crate) fn describe_batches(&self, first: &str, specs: &[BlendSpec]) -> String {
        let others = specs.iter().zip(&self.parts[1..]).map(|(spec, (name, trace))| {
            let file = std::path::Path::new(name).file_name().unwrap_or_default().to_string_lossy();
            let how = match (trace.resampling(), spec.batches) {
                (Some(resampling), _) => format!(", {resampling}"),
                (None, Some(BatchSize::Decode(requests))) => format!(", decode batches of {requests}"),
                (None, Some(BatchSize::Prefill(tokens))) => format!(", batches of {tokens} tokens"),
                (None, None) => String::new(),
            };
            format!("; blended with {} steps of {file}, weight {}{how}", trace.steps().len(), spec.weight)
        });
        std::iter::once(first.to_owned()).chain(others).collect()
    }
}

impl PartFigures {
    pub(crate) fn to_text(&self) -> String {
        let line = |(name, summary): &(String, Option<SummaryStats>)| match summary {
            Some(s) => format!("  on {name} alone: mean {:.3}, p95 {:.3}\n", s.mean, s.p95),
            None => format!("  on {name} alone: no tokens, nothing was judged\n"),
        };
        self.0.iter().map(line).collect()
    }

    pub(crate) fn to_json(&self) -> Value {
        self.0.iter().map(|(name, s)| json!({ "trace": name, "imbalance": s })).collect()
    }
}
