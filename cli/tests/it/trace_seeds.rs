//! Writes seed corpora of the fuzz targets into the folder `EVENKEEL_FUZZ_CORPUS`, or into a temporary
//! folder.
#![allow(clippy::unwrap_used, reason = "tests")]

use crate::trace_support::{Py, Tensor, dict, i32s, npy, pickle, records, safetensors, stat, zip};
use evenkeel::cluster::Cluster;
use evenkeel::export::{Dialect, write};
use evenkeel::place::Placement;
use evenkeel::plan::{LayerPlan, Plan, PlanProvenance};
use evenkeel::split::SplitMethod;
use std::path::{Path, PathBuf};

/// Returns the folder of all corpora. `otherwise` is the default.
fn corpora(otherwise: &Path) -> PathBuf {
    std::env::var_os("EVENKEEL_FUZZ_CORPUS").map_or_else(|| otherwise.into(), PathBuf::from)
}

/// Writes the seeds of one target. `otherwise` is the default folder.
fn write_seeds(otherwise: &Path, target: &str, seeds: &[&[u8]]) {
    let folder = corpora(otherwise).join(target);
    std::fs::create_dir_all(&folder).unwrap();
    for (at, seed) in seeds.iter().enumerate() {
        std::fs::write(folder.join(format!("seed{at}")), seed).unwrap();
    }
}

/// Returns a plan of layers 2 and 3 behind two dense ones.
fn plan() -> Plan {
    let (experts, ranks) = (8, 4);
    let slots = [7, 3, 5, 6, 0, 4, 7, 1, 0, 4, 2, 5].map(Some).to_vec();
    let placement = Placement::new(experts, ranks, slots).unwrap();
    let layer = |layer| LayerPlan::new(layer, placement.clone()).imbalance(1.25).bound(1.0);
    let cluster = Cluster::new(ranks, 1, experts, 4).unwrap();
    let mut provenance = PlanProvenance::new("eplb", SplitMethod::Exact);
    // Seeds are the same in every version.
    provenance.version = "0".into();
    provenance.judged = 1;
    let mut plan = Plan::new(cluster, experts, vec![layer(2), layer(3)], provenance);
    plan.idle_layers = vec![0, 1];
    plan
}

#[test]
fn write_seeds_of_plans_and_maps() {
    let folder = tempfile::tempdir().unwrap();
    let cases = |begin: &str| -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/cases");
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.file_name().unwrap().to_str().unwrap().starts_with(begin));
        files.sort();
        files.iter().map(|file| std::fs::read(file).unwrap()).collect()
    };
    let plan = plan();
    for (dialect, target, begin, inside) in [
        (Dialect::Sglang, "map_sglang", "check-sglang", "[0, 1, 2, 0], [1, 2, 0, 1]"),
        (Dialect::TrtLlm, "map_trtllm", "check-trtllm", "2: [0, 1, 2, 3, 4, 5, 6, 0]"),
        (Dialect::Vllm, "map_vllm", "check-vllm", "\"0\": [0, 1, 2, 0]"),
        (Dialect::VllmAscend, "map_vllm_ascend", "check-ascend", ASCEND_LAYER),
        (Dialect::Eplb, "map_eplb", "check-eplb", "[0, 1, 2, 0], [1, 2, 0, 1]"),
    ] {
        // The first byte holds the ranks minus one. From 128 on, the text is inside a file.
        let seed = |first: u8, text: &[u8]| [&[first][..], text].concat();
        let mut seeds = vec![seed(3, write(&plan, dialect).unwrap().as_bytes())];
        seeds.push(seed(128 + 1, inside.as_bytes()));
        let empty = if dialect == Dialect::Sglang { cases("sglang_map") } else { vec![] };
        for case in cases(begin).into_iter().chain(empty) {
            seeds.extend([1, 7].map(|ranks| seed(ranks, &case)));
        }
        write_seeds(folder.path(), target, &seeds.iter().map(Vec::as_slice).collect::<Vec<_>>());
    }
    let mut seeds = vec![plan.to_json().unwrap().into_bytes()];
    seeds.extend(cases("plan_"));
    write_seeds(folder.path(), "plan", &seeds.iter().map(Vec::as_slice).collect::<Vec<_>>());
}

/// A layer of a vllm-ascend file.
const ASCEND_LAYER: &str = r#"{"layer_id": 0, "device_count": 2, "device_list": [{"device_id": 0, "device_expert": [0, 1]},
{"device_id": 1, "device_expert": [1, 2]}]}"#;

#[cfg(feature = "serve")]
#[test]
fn write_seeds_of_what_the_service_reads() {
    let folder = tempfile::tempdir().unwrap();
    write_seeds(
        folder.path(),
        "config",
        &[
            br#"
listen = "127.0.0.1:0"
data = "store"
[limits]
body_mib = 8
connections = 16
header_seconds = 5
[history]
ids = 100
days = 2
[decide]
policy = "recourse:exact"
every = 64
drift = 0.05
[models.one]
ranks = 4
redundant = 8
model = "gpt-oss-20b"
gpu = "h100"
link_gbps = 100
[models.one.decide]
move_cost = 0.5
[[source]]
model = "one"
phase = "decode"
path = "loads.csv"
poll_seconds = 0.5
"#,
            b"[models.a]\nranks = 2\nredundant = 4294900000\n",
            b"[limits]\nconnections = 9223372036854775807\nshutdown_seconds = 9223372036854775807\n",
        ],
    );
    write_seeds(
        folder.path(),
        "wire",
        &[
            br#"{"phase": "decode", "layers": [3, 9], "steps": [{"step": 5, "counts": [[0, 1, 127], [128, 300, 4294967295]]}]}"#,
            br#"{"steps": [{"step": 0, "counts": [[1]]}, {"step": 1, "counts": [[2]]}]}"#,
            br#"{"ranks": 4, "redundant": 8, "nodes": 2, "groups": 4, "model": "deepseek-v3:bf16", "gpu": "h100", "link_gbps": 400}"#,
            br#"{"ranks": 2, "redundant": 4294900000}"#,
        ],
    );
}

#[test]
fn write_seed_corpora() {
    let folder = tempfile::tempdir().unwrap();
    let write = |target: &str, seeds: &[&[u8]]| write_seeds(folder.path(), target, seeds);
    let counts = [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 0, 2];
    let pass = dict(vec![
        ("forward_pass_id", Py::Int(3)),
        ("rank", Py::Int(0)),
        ("global_physical_count", Py::Tensor(Tensor::plain("LongStorage", "0", &[2, 4]))),
    ]);
    let passes = dict(vec![
        ("records", Py::List(vec![pass])),
        ("last_physical_to_logical_map", Py::List(vec![Py::List((0..4).map(Py::Int).collect()); 2])),
    ]);
    let whole = dict(vec![
        ("rank", Py::Int(0)),
        ("logical_count", Py::Tensor(Tensor::plain("LongStorage", "0", &[2, 2, 4]))),
        ("average_utilization_rate_over_window", Py::None),
    ]);
    write(
        "pickle",
        &[&pickle(&passes), &pickle(&whole), b"\x80\x04\x95\0\0\0\0\0\0\0\0}\x94\x8c\x01a\x94K\x01s."],
    );
    let array = npy("|u1", &[6, 2, 1], &[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]);
    let wide = npy("<i4", &[3, 1, 2], &i32s(&[1, -1, 0, 1, 2, 3]));
    write("npy", &[&array, &wide]);
    write(
        "zip",
        &[
            &stat(&[2, 3], &[1, 2, 3, 4, 5, 6]),
            &records(0, &counts),
            &zip(&[("one.npy", &array)], true),
            &zip(&[("one.npy", &array), ("two.npy", &array)], false),
        ],
    );
    cases(&corpora(folder.path()));
    write("safetensors", &[&safetensors(&[("0_0", vec![1, 2]), ("1_0", vec![3, 4])])]);
    // Plain weights in each naming scheme, and the bytes of a file.
    let file = [&[0][..], &safetensors(&[("model.layers.0.mlp.gate.weight", vec![1, 2])])].concat();
    write("checkpoint", &[&[0x80], &[0x81], &[0x82], &[0x83], &[0x84], &file]);
    write("forward", &[&[3, 7, 0, 63, 47, 1, 1, 0, 0, 30, 2, 30, 1], &[2; 24], &[159; 24]]);
    write(
        "json",
        &[
            br#"{"logical_count": [[1, 2], [3, 4]]}"#,
            br#"{"x": null, "logical_count": [[[1.0, 2]], [[0, 4]]]}"#,
        ],
    );
    write(
        "jsonl",
        &[br#"{"record_type":"eplb_load_stats","version":1,"step":5,"expert_load":[[1,2]],"p2l_map":[[0,1]]}
{"record_type":"eplb_initial_mapping"}
"#],
    );
    write(
        "csv",
        &[
            b"step,layer,expert,tokens,source\n0,0,0,1,0\n0,0,1,2,1\n1,3,0,5,0\n",
            b"tokens,expert,layer\r\n\"1\",2,3\r\n",
            b"layer_id,expert_id,count\n0,0,1\n",
        ],
    );
    #[cfg(feature = "serve")]
    {
        use evenkeel_serve::{Loads, Phase, StepLoads, binary};
        let step = |id: u64| StepLoads { id, counts: [0, 1, 127, 128, 300, u32::MAX].into() };
        let loads =
            Loads { phase: Phase::Decode, layers: vec![3, 9], experts: 3, steps: vec![step(5), step(6)] };
        let json = serde_json::to_vec(&loads.to_body()).unwrap();
        write("loads", &[&binary::encode(&loads), &json]);
    }
    #[cfg(feature = "parquet")]
    {
        let folder = crate::trace_support::Folder::new();
        let labels = ["0", "a", "2"].map(String::from).to_vec();
        let trace = evenkeel_trace::Trace::from_loads(3, vec![0, 2], labels, (0..18).collect()).unwrap();
        let out = folder.path().join("t.parquet");
        evenkeel_trace::write(&trace, &out).unwrap();
        write("parquet", &[&std::fs::read(out).unwrap()]);
    }
}

/// Adds the files that were once misread to the corpora of their readers.
fn cases(corpus: &std::path::Path) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/cases");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let target = match path.extension().and_then(|ending| ending.to_str()) {
            Some("csv") => "csv",
            Some("npy") => "npy",
            Some("npz" | "pt") => "zip",
            Some("parquet") => "parquet",
            Some("jsonl") if name.starts_with("vllm-") => "jsonl",
            _ => continue,
        };
        std::fs::create_dir_all(corpus.join(target)).unwrap();
        std::fs::copy(&path, corpus.join(target).join(&name)).unwrap();
    }
}
