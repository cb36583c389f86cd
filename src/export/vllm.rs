//! vLLM: one JSON line `eplb_initial_mapping`. Keys are the positions of layers among the MoE layers, as
//! text.

use super::{
    Dialect, ExportError, ImportedPlan, check_number, moe_rows, parse_row, placements_from_rows, value_error,
};
use crate::plan::Plan;
use serde_json::{Map, Value, json};

pub(super) fn write(plan: &Plan) -> String {
    let layers: Map<String, Value> =
        moe_rows(plan).into_iter().enumerate().map(|(at, (_, row))| (at.to_string(), json!(row))).collect();
    let record = json!({
        "record_type": "eplb_initial_mapping",
        "version": 1,
        "num_redundant_experts": plan.cluster.slots() - plan.experts,
        "num_slots": plan.cluster.slots(),
        "initial_global_assignments": layers,
    });
    format!("{record}\n")
}

pub(super) fn read(value: &Value, ranks: usize) -> Result<ImportedPlan, ExportError> {
    if value["record_type"] != "eplb_initial_mapping" {
        return Err(value_error(
            "record_type",
            format!("{}: expected \"eplb_initial_mapping\"", value["record_type"]),
        ));
    }
    if value["version"] != 1 {
        return Err(value_error("version", format!("{}: expected 1", value["version"])));
    }
    let key = "initial_global_assignments";
    let layers = value[key].as_object().ok_or_else(|| value_error(key, "expected layers"))?;
    let mut rows = Vec::with_capacity(layers.len());
    for (layer, ids) in layers {
        let at = format!("{key}.{layer}");
        let id = layer.parse().map_err(|_| value_error(&at, "expected the position of a layer"))?;
        let ids = parse_row(ids, &at)?;
        if value["num_slots"].as_u64() != Some(ids.len() as u64) {
            return Err(value_error(
                at,
                format!("{} slots, num_slots says {}", ids.len(), value["num_slots"]),
            ));
        }
        rows.push((id, ids));
    }
    rows.sort_by_key(|(layer, _)| *layer);
    if rows.is_empty() {
        return Err(value_error(key, "no layer"));
    }
    if let Some((at, (id, _))) = (0u32..).zip(&rows).find(|(at, (id, _))| at != id) {
        let reason = format!("no layer {at}, and layer {id}: expected the positions 0, 1, 2, ..");
        return Err(value_error(key, reason));
    }
    let imported = placements_from_rows(Dialect::Vllm, rows, ranks)?;
    let slots = imported.layers.first().map_or(0, |first| first.placement.slots().len());
    check_number(value, "num_redundant_experts", slots - imported.experts)?;
    Ok(imported)
}
