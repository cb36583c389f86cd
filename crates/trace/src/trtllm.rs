//! TensorRT-LLM's expert statistics: a folder of `meta_info.json` and `rank{R}.safetensors`.
//!
//! Input is tensors `"{iteration}_{layer}"`, `[num_experts]`, one file per rank. Output is counts in a
//! [`Sink`], summed over ranks. Source: TensorRT-LLM's `ExpertStatistic` and `examples/ep_load_balancer`.

use super::input::InputFile;
use super::{Location, MAX_EXPERTS, TraceError};
use crate::ReadOptions;
use evenkeel::trace::build::invalid_content;
use evenkeel::trace::build::{Sink, StepLabel};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

#[derive(Deserialize)]
struct MetaInfo {
    num_experts: usize,
    num_experts_per_token: Option<u64>,
}

/// Returns the number of experts from `meta_info.json`.
pub(crate) fn read_meta(input: &InputFile<'_>, sink: &mut dyn Sink) -> Result<usize, TraceError> {
    let path = &input.path;
    let bytes = input.read_whole(1 << 20)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let meta: MetaInfo = serde_json::from_slice(bytes).map_err(|error| {
        invalid_content(
            path,
            Location::Line(error.line() as u64),
            error.to_string(),
            "{\"num_experts\", \"num_experts_per_token\"}",
        )
    })?;
    if !(1..=MAX_EXPERTS).contains(&meta.num_experts) {
        return Err(invalid_content(
            path,
            Location::Key("num_experts".into()),
            meta.num_experts.to_string(),
            format!("1 to {MAX_EXPERTS}"),
        ));
    }
    sink.declare_experts(meta.num_experts)
        .map_err(|fault| fault.into_trace_error(path, Location::Key("num_experts".into())))?;
    if let Some(top_k) = meta.num_experts_per_token {
        sink.add_notice(format!("{} experts, top-{top_k}, as stated in meta_info.json", meta.num_experts));
    }
    Ok(meta.num_experts)
}

/// Reads the file of one rank into the current source.
pub(crate) fn read_rank(
    input: &InputFile<'_>,
    experts: Option<usize>,
    options: &ReadOptions,
    sink: &mut dyn Sink,
) -> Result<(), TraceError> {
    let path = &input.path;
    let bytes = input.read_whole(options.memory)?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|error| invalid_content(path, Location::File, error.to_string(), "a safetensors file"))?;
    let mut names = Vec::with_capacity(tensors.len());
    for name in tensors.names() {
        let parsed = name
            .split_once('_')
            .and_then(|(step, layer)| Some((step.parse::<u64>().ok()?, layer.parse::<u32>().ok()?)));
        let Some((step, layer)) = parsed else {
            return Err(invalid_content(
                path,
                Location::Key(format!("tensor {}", evenkeel::trace::build::quote_bytes(name.as_bytes()))),
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
        let place = || Location::Key(format!("tensor {name}"));
        let tensor = tensors
            .tensor(name)
            .map_err(|error| invalid_content(path, place(), error.to_string(), "a readable tensor"))?;
        let width = match tensor.dtype() {
            Dtype::I64 => 8,
            Dtype::I32 => 4,
            other => {
                return Err(invalid_content(
                    path,
                    place(),
                    format!("element type {other:?}"),
                    "I64 or I32 counts",
                ));
            }
        };
        let &[length] = tensor.shape() else {
            return Err(invalid_content(
                path,
                place(),
                format!("shape {:?}", tensor.shape()),
                "1 dimension: experts",
            ));
        };
        if experts.is_some_and(|experts| experts != length) || length == 0 || length > MAX_EXPERTS {
            return Err(invalid_content(
                path,
                place(),
                format!("{length} experts"),
                experts.map_or(format!("1 to {MAX_EXPERTS}"), |experts| {
                    format!("{experts}, as stated in meta_info.json")
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
                return Err(invalid_content(path, place(), number.to_string(), "counts from 0"));
            };
            counts.push(count);
        }
        if current != Some(step) {
            sink.select_step(StepLabel::Number(step))
                .map_err(|fault| fault.into_trace_error(path, place()))?;
            current = Some(step);
        }
        sink.add_counts(layer, &counts).map_err(|fault| fault.into_trace_error(path, place()))?;
    }
    Ok(())
}
