//! Shared code of the fuzz targets.

use evenkeel::export::{self, Dialect, ExportError, ImportedLayer, ImportedPlan, fill_empty_slots};
use evenkeel::plan::Plan;
use evenkeel_trace::{Batching, TraceFormat, ReadOptions, read_bytes};
use serde_json::json;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;

/// Largest number of entries of a plan that is written in all dialects. Larger plans take seconds and find
/// nothing new.
const MOST_NUMBERS: usize = 1 << 18;

/// Reads the bytes in each format, with little memory. Errors are accepted.
pub fn read(formats: &[TraceFormat], bytes: &[u8]) {
    let options =
        ReadOptions::default().memory(4 << 20).batching(Batching::Prefill { tokens: 3 });
    for &format in formats {
        if let Ok(trace) = read_bytes(format, bytes, &options) {
            for step in 0..trace.steps().len() {
                for layer in 0..trace.layers().len() {
                    assert_eq!(trace.loads(step, layer).len(), trace.experts());
                }
            }
        }
    }
}

/// Returns a zip archive of stored members.
pub fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Reads bytes as a file of a serving stack. The first byte states the number of ranks. It also states
/// whether the rest is placed between `before` and `behind`, the beginning and the end of a file of one
/// dialect. Placements that are read are written and read again.
pub fn map((before, behind): (&str, &str), bytes: &[u8]) {
    let [first, text @ ..] = bytes else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let framed = format!("{before}{text}{behind}");
    let (text, ranks) = (if *first < 128 { text } else { &framed }, usize::from(first % 32) + 1);
    let Ok(imported) = export::read(text, ranks) else { return };
    assert!(!imported.layers.is_empty(), "a file without a layer was read");
    let slots = imported.layers[0].placement.slots().len();
    for ImportedLayer { layer, placement, .. } in &imported.layers {
        let shape = (placement.experts(), placement.ranks(), placement.slots().len());
        assert_eq!(shape, (imported.experts, ranks, slots), "layer {layer}");
    }
    write_and_read(&plan_of(&imported, ranks));
}

/// Returns a plan with the placements of a file.
fn plan_of(imported: &ImportedPlan, ranks: usize) -> Plan {
    let per_rank = imported.layers[0].placement.slots_per_rank();
    let slot = |expert: &Option<u32>| expert.map_or(-1, i64::from);
    let mut layers = imported.layers.iter().collect::<Vec<_>>();
    layers.sort_by_key(|one| one.layer);
    let layers = layers.into_iter().map(|ImportedLayer { layer, placement, .. }| {
        let slots: Vec<Vec<i64>> =
            placement.slots().chunks(per_rank).map(|rank| rank.iter().map(slot).collect()).collect();
        json!({"layer": layer, "imbalance": 1.0, "bound": 1.0, "slots": slots})
    });
    let one = json!({"mean": 1.0, "p50": 1.0, "p95": 1.0, "p99": 1.0, "max": 1.0});
    let document = json!({
        "format": "evenkeel.plan/1",
        "cluster": {"ranks": ranks, "nodes": 1, "slots_per_rank": per_rank},
        "model": {"experts": imported.experts, "idle_layers": []},
        "provenance": {
            "version": "0", "policy": "fuzz", "split": "exact", "seed": 0, "batches": "", "judged": 1,
            "imbalance": one, "trace": [],
        },
        "layers": layers.collect::<Vec<_>>(),
    });
    Plan::from_json(&document.to_string()).expect("placements that are read make a plan")
}

/// Writes a plan in every dialect and reads it again. The placements must be the same, or the writer must
/// refuse what its reader refuses.
pub fn write_and_read(plan: &Plan) {
    let moe_layers = plan.moe_layers();
    let last = moe_layers.iter().chain(&plan.idle_layers).copied().max().unwrap_or(0) as usize;
    assert!(last < 4096, "layer {last} was taken");
    if (last + 1).max(plan.layers.len()) * plan.cluster.slots() > MOST_NUMBERS {
        return;
    }
    for dialect in Dialect::ALL {
        let text = match export::write(plan, dialect) {
            Ok(text) => text,
            Err(ExportError::Refused { .. } | ExportError::UnknownLayer(..) | ExportError::Size { .. }) => {
                continue;
            }
            Err(error) => panic!("{dialect}: {error}"),
        };
        let back = export::read(&text, plan.cluster.ranks());
        let back = back.unwrap_or_else(|error| panic!("{dialect}: {error}\n{text}"));
        assert_eq!(back.dialect, dialect);
        for layer in &plan.layers {
            let position = moe_layers.binary_search(&layer.layer).expect("a planned layer routes tokens");
            let id = if dialect.counts_moe_layers_only() { position as u32 } else { layer.layer };
            let found = back.layers.iter().find(|other| other.layer == id);
            let found = &found.unwrap_or_else(|| panic!("{dialect}: layer {id} is missing\n{text}")).placement;
            // Empty slots are filled with replicas. vllm-ascend's reader accepts no expert twice on a rank.
            if dialect != Dialect::VllmAscend || layer.placement.same_rank_duplicates() == 0 {
                let slots: Vec<u32> = found.slots().iter().flatten().copied().collect();
                assert_eq!(slots, fill_empty_slots(&layer.placement), "{dialect}, layer {id}");
            }
        }
    }
}
