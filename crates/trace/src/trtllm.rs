//! TensorRT-LLM's expert statistics: a folder of `meta_info.json` and `rank{R}.safetensors`.
//!
//! In: tensors `"{iteration}_{layer}"`, `[num_experts]`, one file per rank. Out: counts into a
//! [`Sink`], summed over ranks. Source: TensorRT-LLM's `ExpertStatistic` and `examples/ep_load_balancer`.

use super::error::invalid;
use super::input::Input;
use super::options::ReadOptions;
use super::sink::{Label, Sink};
use super::{MAX_EXPERTS, Place, TraceError};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

#[derive(Deserialize)]
struct Meta {
    num_experts: usize,
    num_experts_per_token: Option<u64>,
}

/// Number of experts from `meta_info.json`.
pub(crate) fn meta(input: &Input<'_>, sink: &mut dyn Sink) -> Result<usize, TraceError> {
    let path = &input.path;
    let bytes = input.whole(1 << 20)?;
    let meta: Meta = serde_json::from_slice(&bytes).map_err(|error| {
        invalid(
            path,
            Place::Line(error.line() as u64),
            error.to_string(),
            "{\"num_experts\", \"num_experts_per_token\"}",
        )
    })?;
    if !(1..=MAX_EXPERTS).contains(&meta.num_experts) {
        return Err(invalid(
            path,
            Place::Key("num_experts".into()),
            meta.num_experts.to_string(),
            format!("1 to {MAX_EXPERTS}"),
        ));
    }
    sink.experts(meta.num_experts).map_err(|fault| fault.at(path, Place::Key("num_experts".into())))?;
    if let Some(top_k) = meta.num_experts_per_token {
        sink.notice(format!("{} experts, top-{top_k}, as meta_info.json says", meta.num_experts));
    }
    Ok(meta.num_experts)
}

/// Reads the file of one rank into the current source.
pub(crate) fn rank(
    input: &Input<'_>,
    experts: Option<usize>,
    options: &ReadOptions,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let path = &input.path;
    let bytes = input.whole(options.memory)?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|error| invalid(path, Place::File, error.to_string(), "a safetensors file"))?;
    let mut names = Vec::with_capacity(tensors.len());
    for name in tensors.names() {
        let parsed = name
            .split_once('_')
            .and_then(|(step, layer)| Some((step.parse::<u64>().ok()?, layer.parse::<u32>().ok()?)));
        let Some((step, layer)) = parsed else {
            return Err(invalid(
                path,
                Place::Key(format!("tensor {}", super::error::quote(name.as_bytes()))),
                "another name",
                "tensors named {iteration}_{layer}",
            ));
        };
        names.push((step, layer, name));
    }
    names.sort_unstable();
    let mut counts = Vec::new();
    let mut current = None;
    for (step, layer, name) in names {
        let place = || Place::Key(format!("tensor {name}"));
        let tensor = tensors
            .tensor(name)
            .map_err(|error| invalid(path, place(), error.to_string(), "a readable tensor"))?;
        let width = match tensor.dtype() {
            Dtype::I64 => 8,
            Dtype::I32 => 4,
            other => {
                return Err(invalid(path, place(), format!("element type {other:?}"), "I64 or I32 counts"));
            }
        };
        let &[length] = tensor.shape() else {
            return Err(invalid(
                path,
                place(),
                format!("shape {:?}", tensor.shape()),
                "1 dimension: experts",
            ));
        };
        if experts.is_some_and(|experts| experts != length) || length == 0 || length > MAX_EXPERTS {
            return Err(invalid(
                path,
                place(),
                format!("{length} experts"),
                experts.map_or(format!("1 to {MAX_EXPERTS}"), |experts| {
                    format!("{experts}, as meta_info.json says")
                }),
            ));
        }
        counts.clear();
        for bytes in tensor.data().chunks_exact(width) {
            let mut wide = [0; 8];
            wide[..width].copy_from_slice(bytes);
            let raw = u64::from_le_bytes(wide);
            let number = if width == 4 { i64::from((raw as u32).cast_signed()) } else { raw.cast_signed() };
            let Ok(count) = u64::try_from(number) else {
                return Err(invalid(path, place(), number.to_string(), "counts from 0"));
            };
            counts.push(count);
        }
        if current != Some(step) {
            sink.step(Label::Number(step)).map_err(|fault| fault.at(path, place()))?;
            current = Some(step);
        }
        sink.counts(layer, &counts).map_err(|fault| fault.at(path, place()))?;
    }
    Ok(())
}
