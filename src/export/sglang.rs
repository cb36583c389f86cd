//! SGLang: `{"physical_to_logical_map": [[expert] * slots] * layers}`, one row per layer of the model, and no
//! other key.
//!
//! Rows are the layers that the model reports, including dense ones. Layers without a plan hold the experts
//! in order.

use super::{
    Dialect, ExportError, ImportedPlan, experts_in_order, moe_rows, parse_row, placements_from_rows,
    value_error,
};
use crate::plan::Plan;
use serde_json::{Value, json};

pub(super) fn write(plan: &Plan) -> String {
    let (moe, dense) = (moe_rows(plan), experts_in_order(plan));
    let rows: Vec<String> = (0..layer_count(plan))
        .map(|id| {
            let row = moe.binary_search_by_key(&id, |row| row.0).map_or(&dense, |at| &moe[at].1);
            json!(row).to_string()
        })
        .collect();
    format!("{{\"physical_to_logical_map\": [\n{}\n]}}\n", rows.join(",\n"))
}

/// Returns the number of rows of the file: the layers up to the last one in the plan.
pub(super) fn layer_count(plan: &Plan) -> u32 {
    let planned = plan.layers.iter().map(|layer| layer.layer);
    let others = plan.idle_layers.iter().chain(&plan.unrecorded_layers).copied();
    planned.chain(others).max().map_or(0, |last| last.saturating_add(1))
}

pub(super) fn read(value: &Value, ranks: usize) -> Result<ImportedPlan, ExportError> {
    let key = "physical_to_logical_map";
    if let Some(other) = value.as_object().and_then(|object| object.keys().find(|name| *name != key)) {
        return Err(value_error(other, format!("SGLang refuses any key but {key}")));
    }
    let rows = value[key].as_array().ok_or_else(|| value_error(key, "expected a list of rows"))?;
    let rows = rows
        .iter()
        .enumerate()
        .map(|(layer, ids)| Ok((layer as u32, parse_row(ids, &format!("{key}[{layer}]"))?)))
        .collect::<Result<Vec<_>, ExportError>>()?;
    if rows.is_empty() {
        return Err(value_error(key, "no layer"));
    }
    placements_from_rows(Dialect::Sglang, rows, ranks)
}
