//! TensorRT-LLM: the YAML of `moe_config.load_balancer`, which refuses unknown keys; layers by their real ids.
//!
//! Only the YAML that this file's writer and TensorRT-LLM's documentation use is read: three keys, lists in brackets.

use super::{Dialect, ExportError, Imported, filled, placements, value_error};
use crate::plan::Plan;

pub(super) fn write(plan: &Plan) -> String {
    let mut text = format!("num_slots: {}\nlayer_updates_per_iter: 0\n", plan.cluster.slots());
    text += "initial_global_assignments:\n";
    for layer in &plan.layers {
        let slots: Vec<String> = filled(&layer.placement).iter().map(u32::to_string).collect();
        text += &format!("  {}: [{}]\n", layer.layer, slots.join(", "));
    }
    text
}

pub(super) fn read(text: &str, ranks: usize) -> Result<Imported, ExportError> {
    let (mut slots, mut rows, mut inside) = (None, Vec::new(), false);
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("");
        if line.trim().is_empty() {
            continue;
        }
        let at = |key: &str| format!("line {}, {key}", number + 1);
        let Some((key, rest)) = line.split_once(':') else {
            return Err(value_error(at(line.trim()), "expected key: value"));
        };
        let (indented, key, rest) = (line.starts_with(' '), key.trim(), rest.trim());
        if indented && inside {
            let layer = key.parse().map_err(|_| value_error(at(key), "expected a layer id"))?;
            rows.push((layer, list(rest).ok_or_else(|| value_error(at(key), "expected [expert, ..]"))?));
            continue;
        }
        inside = false;
        match key {
            "num_slots" => {
                slots = Some(rest.parse::<usize>().map_err(|_| value_error(at(key), "expected a number"))?);
            }
            "layer_updates_per_iter" => {
                rest.parse::<u64>().map_err(|_| value_error(at(key), "expected a number"))?;
            }
            "initial_global_assignments" if rest.is_empty() => inside = true,
            "initial_global_assignments" => {
                rows = braces(rest).ok_or_else(|| {
                    value_error(at(key), "expected layers, one per line, or {layer: [expert, ..], ..}")
                })?;
            }
            _ => {
                let known = "num_slots, layer_updates_per_iter and initial_global_assignments";
                return Err(value_error(at(key), format!("TensorRT-LLM refuses any key but {known}")));
            }
        }
    }
    let slots = slots.ok_or_else(|| value_error("num_slots", "missing"))?;
    if rows.is_empty() {
        return Err(value_error("initial_global_assignments", "no layer"));
    }
    if let Some((layer, row)) = rows.iter().find(|(_, row)| row.len() != slots) {
        let reason = format!("{} slots where num_slots says {slots}", row.len());
        return Err(value_error(format!("initial_global_assignments, {layer}"), reason));
    }
    placements(Dialect::TrtLlm, rows, ranks)
}

/// `[1, 2]`
fn list(text: &str) -> Option<Vec<u32>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    inner.split(',').map(|id| id.trim().parse().ok()).collect()
}

/// `{3: [1, 2], 4: [2, 1]}`
fn braces(text: &str) -> Option<Vec<(u32, Vec<u32>)>> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut rows = Vec::new();
    let mut rest = inner;
    while !rest.is_empty() {
        let (layer, after) = rest.split_once(':')?;
        let end = after.find(']')?;
        rows.push((layer.trim().parse().ok()?, list(after[..=end].trim())?));
        rest = after[end + 1..].trim_start().trim_start_matches(',').trim_start();
    }
    Some(rows)
}
