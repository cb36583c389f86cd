//! Further traces to plan for at the same time: `--and TRACE:WEIGHT`.

use super::explicit::Explicit;
use super::trace_args::TraceArgs;
use anyhow::Context as _;
use evenkeel::plan::Plan;
use evenkeel::simulate::{Summary, judge};
use evenkeel::split::Method;
use evenkeel::trace::Trace;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::str::FromStr;

/// `TRACE:WEIGHT`, `TRACE:WEIGHT:decode=N`, `TRACE:WEIGHT:prefill=N`.
#[derive(Debug, Clone)]
pub(crate) struct And {
    path: PathBuf,
    weight: f64,
    batches: Option<Batches>,
}

#[derive(Debug, Clone, Copy)]
enum Batches {
    Decode(usize),
    Prefill(usize),
}

impl FromStr for And {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            "expected TRACE:WEIGHT, TRACE:WEIGHT:decode=REQUESTS or TRACE:WEIGHT:prefill=TOKENS".to_owned()
        };
        let (rest, batches) = match text.rsplit_once(':').ok_or_else(expected)? {
            (rest, last) if last.contains('=') => {
                let batches = match last.split_once('=') {
                    Some(("decode", n)) => Batches::Decode(n.parse().map_err(|_| expected())?),
                    Some(("prefill", n)) => Batches::Prefill(n.parse().map_err(|_| expected())?),
                    _ => return Err(expected()),
                };
                (rest, Some(batches))
            }
            _ => (text, None),
        };
        let (path, weight) = rest.rsplit_once(':').ok_or_else(expected)?;
        let weight: f64 = weight.parse().map_err(|_| expected())?;
        if !(weight > 0.0 && weight <= 1e6) || path.is_empty() {
            return Err(format!("a weight of {weight}: {}", expected()));
        }
        Ok(And { path: path.into(), weight, batches })
    }
}

/// The traces that were blended, each as it was read.
#[derive(Debug)]
pub(super) struct Blend {
    parts: Vec<(String, Trace)>,
}

/// Reads the further traces and blends them in.
pub(super) fn blend(first: Trace, args: &TraceArgs, and: &[And]) -> anyhow::Result<(Trace, Option<Blend>)> {
    if and.is_empty() {
        return Ok((first, None));
    }
    let mut others = Vec::new();
    for and in and {
        // Options of the first trace may have no effect on this one; what is behind its name has to.
        let mut own =
            TraceArgs { traces: vec![and.path.clone()], explicit: Explicit::default(), ..args.clone() };
        own.top_k = own.top_k.or(first.resampling().map(|resampling| resampling.top_k));
        match and.batches {
            Some(Batches::Decode(requests)) => {
                (own.decode_batch, own.explicit) = (Some(requests), Explicit::only(&["decode_batch"]));
            }
            Some(Batches::Prefill(tokens)) => {
                (own.decode_batch, own.batch_tokens) = (None, tokens);
                own.explicit = Explicit::only(&["batch_tokens"]);
            }
            None => {}
        }
        let trace = own.read().with_context(|| format!("--and {}", and.path.display()))?;
        others.push((trace, and.weight));
    }
    let blended = first.blended(&others).context("--and")?;
    let names = args.traces.first().into_iter().chain(and.iter().map(|and| &and.path));
    let names: Vec<String> = names.map(|path| path.display().to_string()).collect();
    let traces = std::iter::once(first).chain(others.into_iter().map(|(trace, _)| trace));
    Ok((blended, Some(Blend { parts: names.into_iter().zip(traces).collect() })))
}

/// What the plan achieves on each trace alone.
#[derive(Debug)]
pub(super) struct Parts(Vec<(String, Summary)>);

impl Blend {
    /// Judges the plan on each trace.
    pub(super) fn judged(&self, plan: &Plan) -> anyhow::Result<Parts> {
        let one = |(name, trace): &(String, Trace)| {
            let mut all = Vec::new();
            for layer in &plan.layers {
                let Ok(index) = trace.layers().binary_search(&layer.layer) else { continue };
                let judged = judge(trace, index, 0..trace.steps().len(), &layer.placement, Method::Exact)?;
                all.extend((0..judged.peaks.len()).map(|b| judged.imbalance(b)));
            }
            Ok((name.clone(), Summary::of(all)))
        };
        Ok(Parts(self.parts.iter().map(one).collect::<anyhow::Result<_>>()?))
    }

    /// The batches of the blend, in words.
    pub(super) fn words(&self, first: &str, and: &[And]) -> String {
        let others = and.iter().zip(&self.parts[1..]).map(|(and, (name, trace))| {
            let file = std::path::Path::new(name).file_name().unwrap_or_default().to_string_lossy();
            let how = match (trace.resampling(), and.batches) {
                (Some(resampling), _) => format!(", {resampling}"),
                (None, Some(Batches::Decode(requests))) => format!(", decode batches of {requests}"),
                (None, Some(Batches::Prefill(tokens))) => format!(", batches of {tokens} tokens"),
                (None, None) => String::new(),
            };
            format!("; blended with {} steps of {file}, weight {}{how}", trace.steps().len(), and.weight)
        });
        std::iter::once(first.to_owned()).chain(others).collect()
    }
}

impl Parts {
    pub(super) fn words(&self) -> String {
        let line = |(name, s): &(String, Summary)| {
            format!("  on {name} alone: mean {:.3}, p95 {:.3}\n", s.mean, s.p95)
        };
        self.0.iter().map(line).collect()
    }

    pub(super) fn document(&self) -> Value {
        self.0.iter().map(|(name, s)| json!({ "trace": name, "imbalance": s })).collect()
    }
}
