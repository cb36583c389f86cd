//! Small plans, maps and labels that once failed. Each gives the right result, or one clear error.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::command::{document, evenkeel, refusal, stdout};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn case(name: &str) -> String {
    format!("{}/../tests/data/cases/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn files_that_a_stack_refuses_or_misreads_are_not_valid() {
    for (name, ranks, part) in [
        ("check-ascend-device-count.json", "2", "device_count: 4: expected 2"),
        ("check-ascend-expert-twice.json", "2", "expert 3 is repeated"),
        ("check-sglang-ragged.json", "2", "layer 1: 4 slots, where layer 0 has 6"),
        ("check-trtllm-layer-twice.yaml", "2", "duplicate mapping key: 3"),
        ("check-vllm-missing-layer.jsonl", "2", "no layer 1, and layer 2"),
        ("sglang_map_empty.json", "2", "no layer"),
    ] {
        let message = refusal(&["plan", "check", &case(name), "--ranks", ranks]);
        assert!(message.contains(part) && message.lines().count() == 1, "{name}: {message}");
    }
    let valid =
        document(&["plan", "check", &case("check-trtllm-block-lists.yaml"), "--ranks", "8", "--json"]);
    assert_eq!((&valid["dialect"], valid["layers"].as_array().unwrap().len()), (&"trtllm".into(), 3));
}

#[test]
fn every_dialect_is_checked_as_strictly_as_its_reader() {
    let folder = tempfile::tempdir().unwrap();
    let vllm = |redundant: usize, layers: &str| {
        format!(
            "{{\"record_type\": \"eplb_initial_mapping\", \"version\": 1, \"num_redundant_experts\": {redundant}, \
             \"num_slots\": 6, \"initial_global_assignments\": {{{layers}}}}}"
        )
    };
    let row = "[0, 1, 2, 3, 0, 1]";
    let yaml = |head: &str, layers: &str| format!("{head}initial_global_assignments:\n{layers}");
    let ascend =
        |layers: &str, count: usize| format!("{{\"moe_layer_count\": {count}, \"layer_list\": [{layers}]}}");
    let devices = |id: u32, second: &str| {
        format!(
            "{{\"layer_id\": {id}, \"device_count\": 2, \"device_list\": [{{\"device_id\": 0, \"device_expert\": \
             [0, 1, 2]}}, {second}]}}"
        )
    };
    let whole = "{\"device_id\": 1, \"device_expert\": [3, 2, 1]}";
    for (text, wrong) in [
        // vLLM: positions, redundancy, keys.
        (vllm(2, &format!("\"0\": {row}, \"1\": {row}")), None),
        (vllm(3, &format!("\"0\": {row}")), Some("num_redundant_experts: 3: expected 2")),
        (vllm(2, &format!("\"0\": {row}, \"0\": {row}")), Some("the key \"0\" is repeated")),
        (vllm(2, &format!("\"1\": {row}")), Some("no layer 0, and layer 1")),
        (vllm(2, ""), Some("no layer")),
        (format!("{}\nrubbish\n", vllm(2, &format!("\"0\": {row}"))), Some("not JSON")),
        // SGLang: rows and keys.
        (
            "{\"physical_to_logical_map\": [[0, 1, 2, 3, 0, 1]], \"physical_to_logical_map\": []}".into(),
            Some("is repeated"),
        ),
        (
            "{\"physical_to_logical_map\": [[0, 1, 2, 3, 0, 4294967295]]}".into(),
            Some("expected 1 to 65536 experts"),
        ),
        // TensorRT-LLM: YAML in any style, its keys only, all slots.
        (yaml("num_slots: 6\n", "  \"3\": [0, 1, 2, 3, 0, 1]\n  4: [0, 1,\n    2, 3, 0, 1]\n"), None),
        (yaml("num_slots: 6\nnum_slots: 6\n", "  3: [0, 1, 2, 3, 0, 1]\n"), Some("num_slots")),
        (yaml("num_slots: 6\nslots: 6\n", "  3: [0, 1, 2, 3, 0, 1]\n"), Some("slots")),
        (yaml("num_slots: 8\n", "  3: [0, 1, 2, 3, 0, 1]\n"), Some("6 slots where num_slots says 8")),
        (yaml("num_slots: 6\n", "  3: [0, 1, 2, 3, 0]\n  4: [0, 1, 2, 3, 0, 1]\n"), Some("5 slots")),
        (yaml("num_slots: 6\n", "  three: [0, 1, 2, 3, 0, 1]\n"), Some("expected a layer id")),
        ("num_slots: 6\ninitial_global_assignments: {}\n".into(), Some("no layer")),
        ("- 1\n- 2\n".into(), Some("moe_load_balancer")),
        // vllm-ascend: devices and layers by position.
        (ascend(&devices(3, whole), 1), None),
        (ascend(&devices(3, whole), 2), Some("moe_layer_count")),
        (ascend(&[devices(3, whole), devices(3, whole)].join(","), 2), Some("ascending")),
        (
            ascend(&devices(3, "{\"device_id\": 0, \"device_expert\": [3, 2, 1]}"), 1),
            Some("device_id: 0: expected 1"),
        ),
        (ascend(&devices(3, "{\"device_id\": 1, \"device_expert\": [3, 2]}"), 1), Some("as many experts")),
        // EPLB: the three arrays must agree.
        ("{\"phy2log\": [[0, 1, 0, 1]], \"log2phy\": [[[0, 2], [1, 3]]], \"logcnt\": [[2, 2]]}".into(), None),
        ("{\"phy2log\": [[0, 1, 0, 1]], \"logcnt\": [[2, 1]]}".into(), Some("logcnt[0][1]")),
        ("{\"phy2log\": [[0, 1, 0, 1]], \"log2phy\": [[[0, -1], [1, 3]]]}".into(), Some("log2phy[0][0]")),
        ("{\"phy2log\": [[0, 1, 0, 1]], \"log2phy\": []}".into(), Some("log2phy")),
        ("{\"phy2log\": [[0, 1, 0, 1], [0, 1]]}".into(), Some("layer 1: 2 slots, where layer 0 has 4")),
        ("{\"phy2log\": []}".into(), Some("no layer")),
    ] {
        let path = folder.path().join("map");
        fs::write(&path, &text).unwrap();
        let args = ["plan", "check", path.to_str().unwrap(), "--ranks", "2"];
        match wrong {
            None => assert!(stdout(&args).contains("valid for"), "{text}"),
            Some(part) => assert!(refusal(&args).contains(part), "{text}: {}", refusal(&args)),
        }
    }
}

/// Returns the number of layers of every exported file, counted by real id or by position.
fn exported(plan: &str, more: &[&str]) -> BTreeMap<&'static str, usize> {
    let folder = tempfile::tempdir().unwrap();
    let formats = ["sglang", "trtllm", "vllm", "vllm-ascend", "eplb"];
    let layers = formats.map(|format| {
        let file = folder.path().join(format);
        let args = [&["plan", "export", plan, "--to", format, "-o", file.to_str().unwrap()], more].concat();
        stdout(&args);
        let checked = document(&["plan", "check", file.to_str().unwrap(), "--ranks", "2", "--json"]);
        (format, checked["layers"].as_array().unwrap().len())
    });
    layers.into()
}

#[test]
fn moe_layers_that_were_not_counted_keep_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan.json").to_str().unwrap().to_owned();
    let trace = case("csv-unrecorded-moe-layers.csv");
    let base = ["plan", &trace, "--ranks", "2", "--redundant", "2", "-o", &plan];
    let output = evenkeel(&base);
    let notes = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && notes.contains("layers 4, 6 drew no tokens"), "{notes}");
    let read: Value = serde_json::from_str(&fs::read_to_string(&plan).unwrap()).unwrap();
    assert_eq!(read["model"]["unrecorded_layers"], serde_json::json!([4, 6]));
    // The layers are 3 to 6. SGLang's file also has the dense ones before them.
    let all = BTreeMap::from([("sglang", 7), ("trtllm", 4), ("vllm", 4), ("vllm-ascend", 4), ("eplb", 4)]);
    assert_eq!(exported(&plan, &[]), all);
    // The user overrides this: layer 6 is dense, and layer 7 is not in the trace at all.
    let named = BTreeMap::from([("sglang", 8), ("trtllm", 4), ("vllm", 4), ("vllm-ascend", 4), ("eplb", 4)]);
    assert_eq!(exported(&plan, &["--moe-layers", "3-5,7"]), named);
    let message = refusal(&["plan", "export", &plan, "--to", "vllm", "--moe-layers", "4-6"]);
    assert!(message.contains("layer 3 routes tokens but is not among 4-6"), "{message}");
    let again = document(&[&base[..], &["--moe-layers", "3-5,7", "--json"]].concat());
    assert_eq!(
        (&again["unrecorded_layers"], &again["idle_layers"]),
        (&serde_json::json!([4, 7]), &serde_json::json!([0, 1, 2, 6]))
    );
}

#[test]
fn files_that_may_lack_a_moe_layer_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    // Layers 3 and 5. The trace has no data on layer 4.
    let trace = crate::command::trace_file(folder.path(), "t.csv", 4, |_| 0);
    let plan = folder.path().join("plan.json").to_str().unwrap().to_owned();
    stdout(&["plan", &trace, "--ranks", "2", "--redundant", "2", "-o", &plan]);
    for format in ["trtllm", "vllm", "vllm-ascend", "eplb"] {
        let message = refusal(&["plan", "export", &plan, "--to", format]);
        assert!(message.contains("layer 4 is neither planned nor known to be dense"), "{message}");
        assert!(message.contains("--moe-layers"), "{message}");
        stdout(&["plan", "export", &plan, "--to", format, "--moe-layers", "3,5"]);
    }
    stdout(&["plan", "export", &plan, "--to", "sglang"]);
}

#[test]
fn plans_that_ask_for_gigabytes_are_refused() {
    for (name, part) in [
        ("plan_idle_layer_1e9.json", "layer 1000000000: expected ids below 4096"),
        ("plan_slots_per_rank_1e9.json", "expected 131072 at most"),
    ] {
        for args in [&["plan", "check"][..], &["plan", "export", "--to", "sglang"]] {
            let message = refusal(&[args, &[&case(name)]].concat());
            assert!(message.contains(part), "{name}: {message}");
        }
    }
}

#[test]
fn results_replace_files_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let trace = crate::command::trace_file(folder.path(), "t.csv", 4, |_| 0);
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (plan, report, map) = (path("plan.json"), path("report.html"), path("map.json"));
    // Files may not grow beyond 1 kB, which simulates a full disk for one process.
    let limited = |args: &[&str]| {
        let mut command = std::process::Command::new("bash");
        command.arg("-c").arg("trap '' XFSZ; ulimit -f 1; exec \"$@\"").arg("bash");
        command.arg(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap()
    };
    stdout(&["plan", &trace, "--ranks", "2", "--redundant", "2", "-o", &plan]);
    for (args, file) in [
        (vec!["plan", &trace, "--ranks", "2", "--redundant", "4", "-o", &plan], &plan),
        (vec!["plan", &trace, "--ranks", "2", "--redundant", "2", "--report", &report], &report),
        (vec!["simulate", &trace, "--ranks", "2", "--redundant", "2", "--report", &report], &report),
        (vec!["plan", "export", &plan, "--to", "eplb", "--moe-layers", "3-120", "-o", &map], &map),
    ] {
        if file != &plan {
            fs::write(file, "old").unwrap();
        }
        let before = fs::read(file).unwrap();
        let output = limited(&args);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
        assert!(message.contains("cannot write"), "{args:?}: {message}");
        assert_eq!(fs::read(file).unwrap(), before, "{args:?}");
    }
    let parts = fs::read_dir(folder.path()).unwrap().flatten();
    assert!(parts.into_iter().all(|entry| !entry.file_name().to_string_lossy().ends_with(".part")));
}

#[test]
fn control_characters_of_labels_never_reach_the_terminal() {
    let trace = case("label_with_escape.csv");
    assert!(fs::read(&trace).unwrap().contains(&0x1b));
    let folder = tempfile::tempdir().unwrap();
    // A file name is untrusted text too.
    let named = folder.path().join("\u{1b}[31mred.csv");
    fs::copy(&trace, &named).unwrap();
    let named = named.to_str().unwrap();
    let plan = folder.path().join("p.json");
    let plan = plan.to_str().unwrap();
    for args in [
        vec!["trace", "inspect", named],
        vec!["trace", "inspect", named, "-v"],
        vec!["plan", named, "--ranks", "2", "-v", "-o", plan],
        vec!["simulate", named, "--ranks", "2"],
        vec!["plan", "check", named],
        vec!["trace", "inspect", "\u{1b}]0;title\u{7}"],
        vec!["plan", "check", plan, "--trace", named],
    ] {
        let output = evenkeel(&args);
        for text in [&output.stdout, &output.stderr] {
            assert!(
                !text.iter().any(|&byte| byte == 0x1b || byte == 7),
                "{args:?}: {}",
                String::from_utf8_lossy(text)
            );
        }
        assert!(!output.stdout.is_empty() || !output.stderr.is_empty());
    }
    assert!(
        Path::new(plan).exists() || !evenkeel(&["plan", named, "--ranks", "2", "-o", plan]).status.success()
    );
}
