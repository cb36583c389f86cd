//! vllm-ascend: `moe_layer_count`, then per MoE layer the experts of every device. Its reader goes by
//! position. It requires equally many experts on every device, and no expert twice on one device.

use super::{
    Dialect, ExportError, ImportedPlan, check_number, experts_in_order, fill_empty_slots, parse_row,
    placements_from_rows, value_error,
};
use crate::place::Placement;
use crate::plan::Plan;
use serde_json::{Value, json};

pub(super) fn write(plan: &Plan) -> Result<String, ExportError> {
    let per_rank = plan.cluster.slots_per_rank();
    let mut layers = Vec::with_capacity(plan.layers.len());
    for id in plan.moe_layers() {
        let planned = plan.layers.binary_search_by_key(&id, |layer| layer.layer).ok();
        let slots = match planned {
            Some(at) => fill_empty_slots(&without_duplicates(&plan.layers[at].placement)),
            None => experts_in_order(plan),
        };
        let mut devices = Vec::with_capacity(plan.cluster.ranks());
        for (rank, experts) in slots.chunks(per_rank).enumerate() {
            let mut sorted = experts.to_vec();
            sorted.sort_unstable();
            if let Some([twice, _]) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                let reason = format!(
                    "rank {rank} has to hold expert {twice} twice, which vllm-ascend refuses: {per_rank} slots, {} experts",
                    plan.experts
                );
                return Err(ExportError::Refused { layer: id, reason });
            }
            devices.push(json!({ "device_id": rank, "device_expert": experts }));
        }
        layers.push(json!({
            "layer_id": id,
            "device_count": plan.cluster.ranks(),
            "device_list": devices,
        }));
    }
    Ok(format!("{}\n", json!({ "moe_layer_count": layers.len(), "layer_list": layers })))
}

/// Returns the placement without second replicas of an expert on one rank, which serve nothing.
fn without_duplicates(placement: &Placement) -> Placement {
    let mut slots = placement.slots().to_vec();
    for rank in slots.chunks_mut(placement.slots_per_rank()) {
        for at in 1..rank.len() {
            if rank[..at].contains(&rank[at]) {
                rank[at] = None;
            }
        }
    }
    // Every expert keeps its first replicas, so the result is a placement.
    Placement::new(placement.experts(), placement.ranks(), slots).unwrap_or_else(|_| placement.clone())
}

pub(super) fn read(value: &Value, ranks: usize) -> Result<ImportedPlan, ExportError> {
    let layers =
        value["layer_list"].as_array().ok_or_else(|| value_error("layer_list", "expected layers"))?;
    if value["moe_layer_count"].as_u64() != Some(layers.len() as u64) {
        let reason = format!("{} where layer_list has {}", value["moe_layer_count"], layers.len());
        return Err(value_error("moe_layer_count", reason));
    }
    let mut rows = Vec::with_capacity(layers.len());
    for (at, layer) in layers.iter().enumerate() {
        let key = format!("layer_list[{at}]");
        let id = layer["layer_id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| value_error(format!("{key}.layer_id"), "expected a layer id"))?;
        if rows.last().is_some_and(|(last, _)| *last >= id) {
            let reason = format!("{id}: expected ascending ids, as layers are read by position");
            return Err(value_error(format!("{key}.layer_id"), reason));
        }
        check_number(layer, "device_count", ranks).map_err(|error| value_error(&key, error.to_string()))?;
        let devices = layer["device_list"].as_array();
        let devices = devices.ok_or_else(|| value_error(format!("{key}.device_list"), "expected devices"))?;
        if devices.len() != ranks {
            let reason = format!("{} devices: expected {ranks}, one for each rank", devices.len());
            return Err(value_error(format!("{key}.device_list"), reason));
        }
        let (mut slots, mut width) = (Vec::new(), None);
        for (rank, device) in devices.iter().enumerate() {
            check_number(device, "device_id", rank)
                .map_err(|error| value_error(format!("{key}.device_list[{rank}]"), error.to_string()))?;
            let key = format!("{key}.device_list[{rank}].device_expert");
            let ids = parse_row(&device["device_expert"], &key)?;
            if let Some(twice) = (1..ids.len()).find(|&at| ids[..at].contains(&ids[at])) {
                return Err(value_error(key, format!("expert {} is repeated", ids[twice])));
            }
            if *width.get_or_insert(ids.len()) != ids.len() {
                return Err(value_error(key, "expected as many experts as on the first device"));
            }
            slots.extend(ids);
        }
        rows.push((id, slots));
    }
    if rows.is_empty() {
        return Err(value_error("layer_list", "no layer"));
    }
    placements_from_rows(Dialect::VllmAscend, rows, ranks)
}
