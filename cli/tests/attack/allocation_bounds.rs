//! Files of a few hundred bytes that demand gigabytes. Each must end in one error, within little memory.
//!
//! Each command has an address space of 512 MB, and 96 MB of private writable memory (heap, stacks, anonymous
//! mappings). The kernel refuses more, and the command would end by a signal instead of with exit code 1.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a command within the limits, and for at most 10 seconds.
fn limited(args: &[&str]) -> Output {
    Command::new("sh")
        .args(["-c", "ulimit -v 524288 && ulimit -d 98304 && exec timeout -s KILL 10 \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_evenkeel"))
        .args(args)
        .args(["--threads", "2"])
        .output()
        .unwrap()
}

/// Checks that a command fails with one line of error. Returns the violation otherwise.
fn refused(args: &[&str]) -> Result<(), String> {
    let output = limited(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = format!("{args:?}: {:?}: {}", output.status, stderr.chars().take(300).collect::<String>());
    if output.status.code() != Some(1) || !stderr.starts_with("error: ") || stderr.lines().count() != 1 {
        return Err(said);
    }
    if stderr.len() > 2000 || !output.stdout.is_empty() {
        Err(format!("too much is said: {said}"))
    } else {
        Ok(())
    }
}

/// Returns a plan of 8 experts on 4 ranks with 3 slots each, in which one text is replaced.
fn plan(from: &str, to: &str) -> String {
    let plan = r#"{"format": "evenkeel.plan/1", "cluster": {"ranks": 4, "nodes": 1, "slots_per_rank": 3},
"model": {"experts": 8, "idle_layers": []},
"provenance": {"version": "0.1.0", "policy": "recourse", "split": "exact", "seed": 0,
"batches": "one batch per recorded step", "judged": 3000,
"imbalance": {"mean": 1.0, "p50": 1.0, "p95": 1.0, "p99": 1.0, "max": 1.0},
"trace": []},
"layers": [{"layer": 0, "imbalance": 1.0, "bound": 1.0, "slots": [[7, 3, 5], [6, 0, 4], [7, 1, 0], [4, 2, 5]]}]}"#;
    assert!(plan.contains(from));
    plan.replacen(from, to, 1)
}

/// Returns nested lists without end brackets.
fn nested() -> String {
    "[".repeat(100_000)
}

fn plans() -> Vec<(&'static str, String)> {
    let layers = "\"layers\": [{\"layer\": 0,";
    vec![
        ("ranks 1e9", plan("\"ranks\": 4", "\"ranks\": 1000000000")),
        ("ranks 2^63", plan("\"ranks\": 4", "\"ranks\": 9223372036854775808")),
        ("ranks 0", plan("\"ranks\": 4", "\"ranks\": 0")),
        ("nodes 1e9", plan("\"nodes\": 1", "\"nodes\": 1000000000")),
        ("slots per rank 2^62", plan("\"slots_per_rank\": 3", "\"slots_per_rank\": 4611686018427387904")),
        ("slots per rank 0", plan("\"slots_per_rank\": 3", "\"slots_per_rank\": 0")),
        (
            "usable slots 2^64 - 1",
            plan("\"slots_per_rank\": 3", "\"slots_per_rank\": 3, \"usable_slots\": 18446744073709551615"),
        ),
        (
            "usable slots 1e9",
            plan("\"slots_per_rank\": 3", "\"slots_per_rank\": 250000000, \"usable_slots\": 1000000000"),
        ),
        ("experts 1e9", plan("\"experts\": 8", "\"experts\": 1000000000")),
        ("experts 2^64 - 1", plan("\"experts\": 8", "\"experts\": 18446744073709551615")),
        ("experts 0", plan("\"experts\": 8", "\"experts\": 0")),
        (
            "experts and slots 1e9",
            plan("\"slots_per_rank\": 3", "\"slots_per_rank\": 1000000000")
                .replace("\"experts\": 8", "\"experts\": 4000000000"),
        ),
        ("a slot of expert 2^32 - 1", plan("[7, 3, 5]", "[7, 3, 4294967295]")),
        ("a slot of expert 1e9", plan("[7, 3, 5]", "[7, 3, 1000000000]")),
        ("layer 2^32 - 1", plan("\"layer\": 0", "\"layer\": 4294967295")),
        ("layer 1e9", plan("\"layer\": 0", "\"layer\": 1000000000")),
        ("idle layers 1e9 and 2e9", plan("\"idle_layers\": []", "\"idle_layers\": [1000000000, 2000000000]")),
        ("a key twice", plan("\"layers\"", "\"layers\": [], \"layers\"")),
        ("a layer's key twice", plan(layers, &format!("{layers} \"layer\": 0,"))),
        ("a rank without an end", plan("[7, 3, 5]", &format!("[{}", nested()))),
        (
            "idle layers without an end",
            plan("\"idle_layers\": []", &format!("\"idle_layers\": {}", nested())),
        ),
        ("nothing but lists", format!("{{\"format\": {}", nested())),
    ]
}

fn maps() -> Vec<(&'static str, String)> {
    let ascend = |layer: &str, count: &str, expert: &str| {
        format!(
            "{{\"moe_layer_count\": {count}, \"layer_list\": [{{\"layer_id\": {layer}, \"device_count\": 2, \
             \"device_list\": [{{\"device_id\": 0, \"device_expert\": [0, 1]}}, \
             {{\"device_id\": 1, \"device_expert\": [2, {expert}]}}]}}]}}"
        )
    };
    let vllm = |slots: &str, layers: &str| {
        format!(
            "{{\"record_type\": \"eplb_initial_mapping\", \"version\": 1, \"num_redundant_experts\": 0, \
             \"num_slots\": {slots}, \"initial_global_assignments\": {{{layers}}}}}"
        )
    };
    let trtllm = |slots: &str, layers: &str| {
        format!("num_slots: {slots}\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n{layers}\n")
    };
    // Nine lists of nine references each to the previous one.
    let laughs = (1..10).fold("a0: &a0 [0, 1]\n".to_owned(), |text, at| {
        let again = vec![format!("*a{}", at - 1); 9].join(", ");
        format!("{text}a{at}: &a{at} [{again}]\n")
    });
    vec![
        ("sglang: expert 2^32 - 1", "{\"physical_to_logical_map\": [[0, 1, 2, 4294967295]]}".into()),
        ("sglang: expert 1e9", "{\"physical_to_logical_map\": [[0, 1, 2, 1000000000]]}".into()),
        ("sglang: no slot", "{\"physical_to_logical_map\": [[]]}".into()),
        ("sglang: lists", format!("{{\"physical_to_logical_map\": {}", nested())),
        ("trtllm: slots 2^64 - 1", trtllm("18446744073709551615", "  0: [0, 1, 2, 3]")),
        ("trtllm: expert 4e9", trtllm("4", "  0: [0, 1, 2, 4000000000]")),
        ("trtllm: layer 4e9", trtllm("4", "  4000000000: [0, 1, 2, 3]")),
        ("trtllm: a layer twice", trtllm("4", "  0: [0, 1, 2, 3]\n  0: [0, 1, 2, 3]")),
        ("trtllm: lists", trtllm("4", &format!("  0: {}", nested()))),
        ("trtllm: lists of lists of lists", laughs.clone()),
        ("trtllm: a layer of lists of lists", format!("{laughs}{}", trtllm("4", "  0: *a9"))),
        ("vllm: slots 2^64 - 1", vllm("18446744073709551615", "\"0\": [0, 1, 2, 3]")),
        ("vllm: expert 4e9", vllm("4", "\"0\": [0, 1, 2, 4000000000]")),
        ("vllm: layer 4e9", vllm("4", "\"4000000000\": [0, 1, 2, 3]")),
        ("vllm: no layer", vllm("4", "")),
        ("vllm-ascend: 2^64 - 1 layers", ascend("0", "18446744073709551615", "3")),
        ("vllm-ascend: layer 4e9", ascend("4000000000", "1", "3")),
        ("vllm-ascend: expert 4e9", ascend("0", "1", "4000000000")),
        (
            "eplb: expert 4e9",
            "{\"phy2log\": [[0, 1, 2, 4000000000]], \"log2phy\": [], \"logcnt\": []}".into(),
        ),
        ("eplb: lists", format!("{{\"phy2log\": {}", nested())),
    ]
}

fn configurations() -> Vec<(&'static str, String)> {
    let most = i64::MAX;
    let model = |key: &str, number: &str| {
        let ranks = if key == "ranks" { "" } else { "ranks = 2\n" };
        format!("[models.m]\n{ranks}{key} = {number}\n")
    };
    let table = |table: &str, key: &str, number: &str| format!("[{table}]\n{key} = {number}\n");
    vec![
        ("ranks", model("ranks", &most.to_string())),
        ("redundant", model("redundant", "4294900000")),
        ("redundant, all", model("redundant", &most.to_string())),
        ("nodes", model("nodes", &most.to_string())),
        ("groups", model("groups", &most.to_string())),
        ("link", model("link_gbps", &most.to_string())),
        ("bodies", table("limits", "body_mib", &most.to_string())),
        ("connections", table("limits", "connections", &most.to_string())),
        ("streams", table("limits", "streams", &most.to_string())),
        ("header seconds", table("limits", "header_seconds", &most.to_string())),
        ("body seconds", table("limits", "body_seconds", &most.to_string())),
        ("shutdown seconds", table("limits", "shutdown_seconds", &most.to_string())),
        ("lag", table("limits", "lag_mib", &most.to_string())),
        ("models", table("limits", "models", &most.to_string())),
        ("ids", table("history", "ids", &most.to_string())),
        ("plans", table("history", "plans", &most.to_string())),
        ("days", table("history", "days", &most.to_string())),
        ("window", table("decide", "window", &most.to_string())),
        ("judged", table("decide", "judged", &most.to_string())),
        ("a price", table("decide", "move_cost", "1e308")),
        ("no number", table("decide", "drift", "nan")),
        ("a key twice", "listen = \"127.0.0.1:0\"\nlisten = \"127.0.0.1:0\"\n".into()),
        ("lists", format!("source = {}", nested())),
        ("tables", format!("[decide.{}", "a.".repeat(50_000))),
    ]
}

fn written(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name.replace([' ', ':', '^'], "_"));
    std::fs::write(&path, text).unwrap();
    path
}

fn cases(begin: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/cases");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let name = |entry: &std::fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut found: Vec<(String, String)> = entries
        .filter(|entry| name(entry).starts_with(begin))
        .map(|entry| (name(&entry), std::fs::read_to_string(entry.path()).unwrap()))
        .collect();
    found.sort();
    found
}

/// Asserts that there is no fault, and lists all faults otherwise.
fn assert_refused(faults: &[String]) {
    assert!(faults.is_empty(), "{} of them:\n{}", faults.len(), faults.join("\n"));
}

const TRACE: &str =
    "step,layer,expert,tokens\n0,0,0,4\n0,0,1,3\n0,0,2,2\n0,0,3,1\n0,0,4,1\n0,0,5,1\n0,0,6,1\n0,0,7,1\n";

#[test]
fn hostile_plans_are_refused_within_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let trace = written(folder.path(), "loads.csv", TRACE);
    let trace = trace.to_str().unwrap();
    let mut faults = Vec::new();
    let named = plans().into_iter().map(|(name, text)| (name.to_owned(), text));
    for (name, text) in named.chain(cases("plan_")) {
        let file = written(folder.path(), &name, &text);
        let file = file.to_str().unwrap();
        faults.extend(refused(&["plan", "check", file]).err());
        for dialect in ["sglang", "trtllm", "vllm", "vllm-ascend", "eplb"] {
            faults.extend(refused(&["plan", "export", file, "--to", dialect]).err());
        }
        faults.extend(refused(&["simulate", trace, "--ranks", "4", "--placement", file, "--json"]).err());
    }
    assert_refused(&faults);
}

#[test]
fn hostile_maps_are_refused_within_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let trace = written(folder.path(), "loads.csv", TRACE);
    let trace = trace.to_str().unwrap();
    let mut faults = Vec::new();
    let named = maps().into_iter().map(|(name, text)| (name.to_owned(), text));
    for (name, text) in named.chain(cases("sglang_map_empty")) {
        let file = written(folder.path(), &name, &text);
        let file = file.to_str().unwrap();
        faults.extend(refused(&["plan", "check", file, "--ranks", "2"]).err());
        faults.extend(refused(&["simulate", trace, "--ranks", "2", "--placement", file, "--json"]).err());
    }
    assert_refused(&faults);
}

#[cfg(feature = "serve")]
#[test]
fn hostile_configurations_are_refused_within_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut faults = Vec::new();
    for (name, text) in configurations() {
        let file = written(folder.path(), name, &format!("data = \"{}\"\n{text}", folder.path().display()));
        let listen = ["--listen", "127.0.0.1:0"];
        let args = [&["serve", "--config", file.to_str().unwrap()][..], &listen[..]].concat();
        faults.extend(refused(&args).err());
    }
    assert_refused(&faults);
}

/// The limits of this test leave room for valid plans.
#[test]
fn a_plan_at_the_edge_is_taken_within_the_same_memory() {
    let folder = tempfile::tempdir().unwrap();
    let text = plan("\"idle_layers\": []", "\"idle_layers\": [4095]");
    let file = written(folder.path(), "edge.json", &text);
    let file = file.to_str().unwrap();
    assert!(limited(&["plan", "check", file]).status.success());
    let output = limited(&["plan", "export", file, "--to", "sglang"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).matches("],").count(), 4095);
}
