//! SGLang: `{"physical_to_logical_map": [[expert] * slots] * layers}`, one row per layer of the model, and no other key.
//!
//! Rows are the layers that the model reports, dense ones included: those without a plan hold the experts in order.

use super::{Dialect, ExportError, Imported, filled, placements, row, value_error};
use crate::plan::Plan;
use serde_json::{Value, json};

pub(super) fn write(plan: &Plan) -> String {
    let planned = plan.layers.iter().map(|layer| layer.layer);
    let last = planned.chain(plan.idle_layers.iter().copied()).max().unwrap_or(0);
    let in_order: Vec<u32> = (0..plan.cluster.slots()).map(|slot| (slot % plan.experts) as u32).collect();
    let rows: Vec<String> = (0..=last)
        .map(|id| {
            let layer = plan.layers.iter().find(|layer| layer.layer == id);
            json!(layer.map_or_else(|| in_order.clone(), |layer| filled(&layer.placement))).to_string()
        })
        .collect();
    format!("{{\"physical_to_logical_map\": [\n{}\n]}}\n", rows.join(",\n"))
}

pub(super) fn read(value: &Value, ranks: usize) -> Result<Imported, ExportError> {
    let key = "physical_to_logical_map";
    if let Some(other) = value.as_object().and_then(|object| object.keys().find(|name| *name != key)) {
        return Err(value_error(other, format!("SGLang refuses any key but {key}")));
    }
    let rows = value[key].as_array().ok_or_else(|| value_error(key, "expected a list of rows"))?;
    let rows = rows
        .iter()
        .enumerate()
        .map(|(layer, ids)| Ok((layer as u32, row(ids, &format!("{key}[{layer}]"))?)))
        .collect::<Result<Vec<_>, ExportError>>()?;
    placements(Dialect::Sglang, rows, ranks)
}
