//! DeepSeek's EPLB: the result of `rebalance_experts` as JSON. Keys: `phy2log [L][slots]`,
//! `log2phy [L][experts][most replicas]` padded with -1, `logcnt [L][experts]`. Layers are counted by their
//! position among the MoE layers.

use super::{
    Dialect, ExportError, ImportedLayer, ImportedPlan, moe_rows, parse_row, placements_from_rows, value_error,
};
use crate::plan::Plan;
use serde_json::{Value, json};

pub(super) fn write(plan: &Plan) -> String {
    let layers: Vec<Vec<u32>> = moe_rows(plan).into_iter().map(|(_, row)| row).collect();
    let copies = |slots: &[u32], expert: usize| -> Vec<Value> {
        let held = slots.iter().enumerate().filter(|(_, held)| **held as usize == expert);
        held.map(|(slot, _)| Value::from(slot)).collect()
    };
    let all: Vec<Vec<Vec<Value>>> =
        layers.iter().map(|slots| (0..plan.experts).map(|expert| copies(slots, expert)).collect()).collect();
    let widest = all.iter().flatten().map(Vec::len).max().unwrap_or(0);
    let counts: Vec<Vec<usize>> = all.iter().map(|layer| layer.iter().map(Vec::len).collect()).collect();
    let mut padded = all;
    for copies in padded.iter_mut().flatten() {
        copies.resize(widest, Value::from(-1));
    }
    format!("{}\n", json!({ "phy2log": layers, "log2phy": padded, "logcnt": counts }))
}

pub(super) fn read(value: &Value, ranks: usize) -> Result<ImportedPlan, ExportError> {
    let rows = value["phy2log"].as_array().ok_or_else(|| value_error("phy2log", "expected rows"))?;
    let rows = rows
        .iter()
        .enumerate()
        .map(|(layer, ids)| Ok((layer as u32, parse_row(ids, &format!("phy2log[{layer}]"))?)))
        .collect::<Result<Vec<_>, ExportError>>()?;
    if rows.is_empty() {
        return Err(value_error("phy2log", "no layer"));
    }
    let imported = placements_from_rows(Dialect::Eplb, rows, ranks)?;
    check_inverse(value, &imported)?;
    Ok(imported)
}

/// Checks `logcnt` and `log2phy` against `phy2log`, if the file has them.
fn check_inverse(value: &Value, imported: &ImportedPlan) -> Result<(), ExportError> {
    for ImportedLayer { layer, placement } in &imported.layers {
        let at = *layer as usize;
        for expert in 0..imported.experts {
            let copies = placement.replicas(expert);
            let counted = &value["logcnt"][at][expert];
            if value.get("logcnt").is_some() && counted.as_u64() != Some(copies.len() as u64) {
                let reason = format!("{counted}: expected {}, as phy2log has it", copies.len());
                return Err(value_error(format!("logcnt[{at}][{expert}]"), reason));
            }
            if value.get("log2phy").is_none() {
                continue;
            }
            let listed = value["log2phy"][at][expert].as_array().map_or(&[][..], Vec::as_slice);
            let mut slots: Vec<u64> = listed.iter().filter_map(Value::as_u64).collect();
            slots.sort_unstable();
            let padded = listed.iter().all(|slot| slot.as_u64().is_some() || slot.as_i64() == Some(-1));
            if !padded || !slots.iter().copied().eq(copies.iter().map(|&slot| u64::from(slot))) {
                let reason = format!("expected the slots {copies:?} of phy2log, padded with -1");
                return Err(value_error(format!("log2phy[{at}][{expert}]"), reason));
            }
        }
    }
    let layers = imported.layers.len();
    for key in ["logcnt", "log2phy"] {
        let rows = value.get(key).map(|rows| rows.as_array().map(Vec::len));
        if rows.is_some_and(|rows| rows != Some(layers)) {
            return Err(value_error(key, format!("expected {layers} layers, as phy2log has")));
        }
    }
    Ok(())
}
