//! DeepSeek's EPLB: what `rebalance_experts` returns, as JSON: `phy2log [L][slots]`, `log2phy [L][experts][most copies]`
//! padded with -1, `logcnt [L][experts]`; layers by their position among the MoE layers.

use super::{Dialect, ExportError, Imported, filled, placements, row, value_error};
use crate::plan::Plan;
use serde_json::{Value, json};

pub(super) fn write(plan: &Plan) -> String {
    let layers: Vec<Vec<u32>> = plan.layers.iter().map(|layer| filled(&layer.placement)).collect();
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

pub(super) fn read(value: &Value, ranks: usize) -> Result<Imported, ExportError> {
    let rows = value["phy2log"].as_array().ok_or_else(|| value_error("phy2log", "expected rows"))?;
    let rows = rows
        .iter()
        .enumerate()
        .map(|(layer, ids)| Ok((layer as u32, row(ids, &format!("phy2log[{layer}]"))?)))
        .collect::<Result<Vec<_>, ExportError>>()?;
    if rows.is_empty() {
        return Err(value_error("phy2log", "no layer"));
    }
    placements(Dialect::Eplb, rows, ranks)
}
