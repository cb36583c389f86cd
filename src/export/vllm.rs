//! vLLM: one JSON line `eplb_initial_mapping`; layers by their position among the MoE layers, as text.

use super::{Dialect, ExportError, Imported, filled, placements, row, value_error};
use crate::plan::Plan;
use serde_json::{Map, Value, json};

pub(super) fn write(plan: &Plan) -> String {
    let layers: Map<String, Value> = plan
        .layers
        .iter()
        .enumerate()
        .map(|(at, layer)| (at.to_string(), json!(filled(&layer.placement))))
        .collect();
    let record = json!({
        "record_type": "eplb_initial_mapping",
        "version": 1,
        "num_redundant_experts": plan.cluster.slots() - plan.experts,
        "num_slots": plan.cluster.slots(),
        "initial_global_assignments": layers,
    });
    format!("{record}\n")
}

pub(super) fn read(value: &Value, ranks: usize) -> Result<Imported, ExportError> {
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
        let ids = row(ids, &at)?;
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
    placements(Dialect::Vllm, rows, ranks)
}
