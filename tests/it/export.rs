//! Plans in the dialects of serving stacks: written files read back, and the refusals of readers are known.

#![allow(clippy::unwrap_used)]

use evenkeel::cluster::Cluster;
use evenkeel::export::{Dialect, ExportError, ImportedLayer, fill_empty_slots, read, write};
use evenkeel::place::Placement;
use evenkeel::plan::{LayerPlan, Plan, PlanProvenance};
use evenkeel::split::SplitMethod;
use proptest::prelude::*;
use serde_json::Value;

/// Returns a plan of layers 2 and 5 of a model with dense layers 0, 1 and 3 to 4.
fn plan(experts: usize, ranks: usize, slots: &[Vec<Option<u32>>]) -> Plan {
    let redundant = slots[0].len() - experts;
    let layers = slots.iter().zip([2, 5]).map(|(slots, layer)| {
        let placement = Placement::new(experts, ranks, slots.clone()).unwrap();
        LayerPlan::new(layer, placement).imbalance(1.0).bound(1.0)
    });
    let cluster = Cluster::new(ranks, 1, experts, redundant).unwrap();
    let provenance = PlanProvenance::new("test", SplitMethod::Exact);
    let mut plan = Plan::new(cluster, experts, layers.collect(), provenance);
    plan.idle_layers = vec![0, 1, 3, 4];
    plan
}

/// Returns plans on up to six ranks. Every expert has a slot. The other slots hold further replicas or are
/// empty.
fn plans() -> impl Strategy<Value = Plan> {
    (1usize..6, 1usize..10, 0usize..3).prop_flat_map(|(ranks, experts, spare)| {
        let slots = ranks * (experts.div_ceil(ranks) + spare);
        let layer = (
            Just((0..slots).collect::<Vec<_>>()).prop_shuffle(),
            prop::collection::vec(prop::option::of(0..experts as u32), slots),
        );
        prop::collection::vec(layer, 2).prop_map(move |layers| {
            let layers: Vec<Vec<Option<u32>>> = layers
                .into_iter()
                .map(|(order, mut slots)| {
                    for (expert, &slot) in order.iter().take(experts).enumerate() {
                        slots[slot] = Some(expert as u32);
                    }
                    slots
                })
                .collect();
            plan(experts, ranks, &layers)
        })
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(plan in plans()) {
        let ranks = plan.cluster.ranks();
        for dialect in Dialect::ALL {
            let text = match write(&plan, dialect) {
                Ok(text) => text,
                Err(ExportError::Refused { .. }) => {
                    prop_assert_eq!(dialect, Dialect::VllmAscend);
                    continue;
                }
                Err(other) => panic!("{other}"),
            };
            let back = read(&text, ranks).unwrap();
            prop_assert_eq!((back.dialect, back.experts), (dialect, plan.experts));
            let planned: Vec<&ImportedLayer> = match dialect {
                Dialect::Sglang => back.layers.iter().filter(|one| [2, 5].contains(&one.layer)).collect(),
                _ => back.layers.iter().collect(),
            };
            prop_assert_eq!(planned.len(), 2);
            for (ImportedLayer { placement, .. }, layer) in planned.iter().copied().zip(&plan.layers) {
                let slots: Vec<u32> = placement.slots().iter().flatten().copied().collect();
                if dialect == Dialect::VllmAscend {
                    // Second replicas on one rank were replaced. Every rank still holds its experts.
                    for expert in 0..plan.experts {
                        let (before, after) = (layer.placement.replicas(expert), placement.replicas(expert));
                        let on = |slots: &[u32], rank| slots.iter().any(|&slot| placement.rank_of(slot) == rank);
                        prop_assert!((0..ranks).all(|rank| !on(before, rank) || on(after, rank)));
                    }
                } else {
                    prop_assert_eq!(slots, fill_empty_slots(&layer.placement));
                }
            }
        }
    }

    #[test]
    fn filling_keeps_what_is_there_and_doubles_nothing_it_need_not(plan in plans()) {
        for layer in &plan.layers {
            let (slots, full) = (layer.placement.slots(), fill_empty_slots(&layer.placement));
            prop_assert_eq!(full.len(), slots.len());
            let per_rank = layer.placement.slots_per_rank();
            for (slot, &expert) in full.iter().enumerate() {
                prop_assert!(slots[slot].is_none_or(|held| held == expert));
                let rank = &full[slot / per_rank * per_rank..][..per_rank];
                let doubled = rank.iter().filter(|&&other| other == expert).count() > 1;
                prop_assert!(!doubled || slots[slot].is_some() || per_rank > plan.experts
                    || rank.iter().zip(&slots[slot / per_rank * per_rank..]).any(|(e, s)| *s == Some(*e)));
            }
        }
    }

    #[test]
    fn cut_or_altered_text_never_panics(plan in plans(), cut in 0.0..1.0f64, byte in any::<u8>()) {
        for dialect in Dialect::ALL {
            let Ok(text) = write(&plan, dialect) else { continue };
            let at = ((text.len() as f64 * cut) as usize).min(text.len() - 1);
            let _ = read(&text[..at], plan.cluster.ranks());
            let mut altered = text.into_bytes();
            altered[at] = byte;
            let _ = read(&String::from_utf8_lossy(&altered), plan.cluster.ranks());
        }
    }
}

fn small() -> Plan {
    let layer = |a: &[u32]| a.iter().map(|&e| Some(e)).collect::<Vec<_>>();
    plan(4, 2, &[layer(&[0, 1, 2, 3, 0, 1]), layer(&[3, 2, 1, 0, 3, 2])])
}

#[test]
fn every_dialect_is_spelled_as_its_reader_wants_it() {
    let sglang: Value = serde_json::from_str(&write(&small(), Dialect::Sglang).unwrap()).unwrap();
    assert_eq!(sglang.as_object().unwrap().len(), 1);
    let rows = sglang["physical_to_logical_map"].as_array().unwrap();
    assert_eq!(rows.len(), 6, "dense layers have rows too");
    assert_eq!(rows[0], serde_json::json!([0, 1, 2, 3, 0, 1]));
    assert_eq!(rows[5], serde_json::json!([3, 2, 1, 0, 3, 2]));

    assert_eq!(
        write(&small(), Dialect::TrtLlm).unwrap(),
        "num_slots: 6\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n  2: [0, 1, 2, 3, 0, 1]\n  5: [3, 2, 1, \
         0, 3, 2]\n"
    );

    let vllm: Value = serde_json::from_str(&write(&small(), Dialect::Vllm).unwrap()).unwrap();
    assert_eq!(
        (&vllm["version"], &vllm["num_slots"], &vllm["num_redundant_experts"]),
        (&1.into(), &6.into(), &2.into())
    );
    assert_eq!(vllm["initial_global_assignments"]["1"], serde_json::json!([3, 2, 1, 0, 3, 2]));

    let ascend: Value = serde_json::from_str(&write(&small(), Dialect::VllmAscend).unwrap()).unwrap();
    assert_eq!(ascend["moe_layer_count"], 2);
    assert_eq!(ascend["layer_list"][1]["device_list"][1]["device_expert"], serde_json::json!([0, 3, 2]));

    let eplb: Value = serde_json::from_str(&write(&small(), Dialect::Eplb).unwrap()).unwrap();
    assert_eq!(eplb["log2phy"][0], serde_json::json!([[0, 4], [1, 5], [2, -1], [3, -1]]));
    assert_eq!(eplb["logcnt"][1], serde_json::json!([1, 1, 2, 2]));
}

#[test]
fn what_readers_refuse_is_named() {
    let layer = |a: &[u32]| a.iter().map(|&e| Some(e)).collect::<Vec<_>>();
    // Second replicas on one rank are replaced by other experts, as long as there are any.
    let twice = plan(3, 2, &[layer(&[0, 0, 1, 2]), layer(&[0, 1, 2, 2])]);
    let ascend: Value = serde_json::from_str(&write(&twice, Dialect::VllmAscend).unwrap()).unwrap();
    assert_eq!(ascend["layer_list"][0]["device_list"][0]["device_expert"], serde_json::json!([0, 1]));
    assert_eq!(ascend["layer_list"][1]["device_list"][1]["device_expert"], serde_json::json!([2, 0]));
    let crowded = plan(2, 2, &[layer(&[0, 0, 1, 0, 1, 1]), layer(&[0, 1, 1, 0, 0, 1])]);
    let error = write(&crowded, Dialect::VllmAscend).unwrap_err().to_string();
    assert!(error.contains("layer 2") && error.contains("3 slots, 2 experts"), "{error}");
    for (text, part) in [
        ("{\"physical_to_logical_map\": [[0, 1]], \"note\": 1}", "note: SGLang refuses"),
        ("{\"physical_to_logical_map\": [[0, -1]]}", "physical_to_logical_map[0]: -1"),
        ("{\"physical_to_logical_map\": [[0, 1, 2]]}", "layer 0"),
        ("{\"physical_to_logical_map\": [[0, 2]]}", "layer 0"),
        ("{\"a\": 1, \"b\": 2}", "the keys are a, b"),
        ("{\"a\": ", "not JSON"),
        ("num_slots: 2\nextra: 1\n", "line 2 column 1: unknown field `extra`"),
        ("num_slots: 3\ninitial_global_assignments:\n  3: [0, 1]\n", "num_slots says 3"),
        ("num_slots: 2\ninitial_global_assignments:\n  x: [0, 1]\n", "expected a layer id"),
        ("num_slots: 2\n", "initial_global_assignments"),
        ("", "moe_load_balancer"),
        ("{\"record_type\": \"eplb_load_stats\"}", "record_type"),
        ("{\"moe_layer_count\": 2, \"layer_list\": []}", "moe_layer_count: 2"),
        ("{\"phy2log\": []}", "no layer"),
    ] {
        let error = read(text, 2).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    let flow =
        "num_slots: 2\nlayer_updates_per_iter: 0\ninitial_global_assignments: {3: [0, 1], 4: [1, 0]}\n";
    assert_eq!(read(flow, 2).unwrap().layers.len(), 2);
}
