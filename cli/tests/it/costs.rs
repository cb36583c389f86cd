//! Measured kernel times on the command line: databases, times of experts, and the verdict of `simulate`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::command;
use serde_json::Value;

const DECODE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-decode.csv.zst");
const PREFILL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-prefill.csv.zst");

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn document(line: &str) -> Value {
    command::document(&words(line))
}

fn stdout(line: &str) -> String {
    command::stdout(&words(line))
}

fn refusal(line: &str) -> String {
    command::refusal(&words(line))
}

#[test]
fn databases_are_listed_with_their_errors() {
    let list = document("costs show --json");
    let gpus: Vec<&str> =
        list["databases"].as_array().unwrap().iter().map(|one| one["gpu"].as_str().unwrap()).collect();
    for gpu in ["h100", "h200", "b200", "gb200", "l40s"] {
        assert!(gpus.contains(&gpu), "{gpus:?}");
    }
    let kernels = document("costs show h100 --json --framework sglang");
    for kernel in kernels["kernels"].as_array().unwrap() {
        assert_eq!(kernel["framework"], "sglang");
        let balanced = &kernel["errors"]["balanced"];
        assert!(balanced["model"]["median"].as_f64() < balanced["roofline"]["median"].as_f64(), "{kernel}");
    }
    assert!(stdout("costs show h100").contains("fp8_block"));
}

#[test]
fn times_of_a_model_grow_with_its_tokens() {
    let times = document("costs show h100 --model deepseek-v3 --ranks 32 --framework trtllm --json");
    assert_eq!(times["slots_per_rank"], 8);
    let us: Vec<f64> =
        times["rows"].as_array().unwrap().iter().map(|row| row["rank_us"].as_f64().unwrap()).collect();
    assert!(us.is_sorted() && us[0] > times["launch_floor_us"].as_f64().unwrap(), "{us:?}");
    // Eight experts of 44 MB at 3.35 TB/s: 105 microseconds at least.
    assert!((105.0..400.0).contains(&us[0]), "{us:?}");
}

#[test]
fn packages_without_tables_are_refused() {
    let folder = crate::trace_support::Folder::new();
    let file = folder.file("notes.txt", b"no wheel");
    let import = refusal(&format!("costs import {} -o {}.json", file.display(), file.display()));
    assert!(import.contains("notes.txt") && import.contains("expected a folder or wheel"), "{import}");
    let check = refusal(&format!("costs check h100 {}", file.display()));
    assert!(check.contains("notes.txt"), "{check}");
}

#[test]
fn sources_that_do_not_exist_are_refused_with_those_that_do() {
    assert!(refusal("costs show h999").contains("h100"));
    assert!(refusal("costs show h100 --framework nobody").contains("sglang, trtllm, vllm"));
    let network = |source: &str| {
        refusal(&format!(
            "simulate network {DECODE} --ranks 8 --network h100 --model gpt-oss-20b,h100 --expert-time {source}"
        ))
    };
    assert!(network("h100:nobody").contains("sglang"), "{}", network("h100:nobody"));
    assert!(network("h999:sglang").contains("h999"));
    assert!(network("h100:sglang:int9").contains("nvfp4"));
}

/// Returns the step times by policy and split.
fn step_ms(verdict: &Value, policy: &str, split: &str) -> f64 {
    let rows = verdict["results"].as_array().unwrap();
    let row = rows.iter().find(|row| row["policy"] == policy && row["split"] == split).unwrap();
    row["step_ms"].as_f64().unwrap()
}

#[test]
fn the_verdict_follows_the_times_and_not_the_imbalance() {
    let simulated = |trace: &str, model: &str| {
        let all = document(&format!(
            "simulate {trace} --ranks 8 --redundant 8 --model {model},h100 --policies contiguous,eplb --json"
        ));
        all["verdict"].clone()
    };
    for (trace, model) in [(DECODE, "gpt-oss-20b"), (PREFILL, "deepseek-v2-lite")] {
        let verdict = simulated(trace, model);
        let nothing = step_ms(&verdict, "contiguous", "even");
        let rows = verdict["results"].as_array().unwrap();
        let best = rows.iter().map(|row| row["step_ms"].as_f64().unwrap()).fold(f64::MAX, f64::min);
        let gain = 1.0 - best / nothing;
        assert!((verdict["gain"].as_f64().unwrap() - gain).abs() < 1e-12, "{verdict}");
        let worth = verdict["is_worth_it"].as_bool().unwrap();
        assert_eq!(worth, gain > verdict["error"].as_f64().unwrap(), "{verdict}");
        let text = verdict["text"].as_str().unwrap();
        assert!(text.starts_with(if worth { "Worth it: " } else { "Not worth it: " }), "{text}");
    }
}

#[test]
fn a_model_with_other_experts_has_no_times() {
    let message =
        refusal(&format!("simulate {PREFILL} --ranks 8 --policies contiguous --model gpt-oss-20b,h100"));
    assert!(message.contains("gpt-oss-20b has 32 experts per layer, the trace 64"), "{message}");
}

#[test]
fn a_verdict_needs_a_row_that_does_nothing() {
    let line = format!("simulate {DECODE} --ranks 8 --policies eplb --model gpt-oss-20b,h100");
    assert!(stdout(&line).starts_with("Worth it? Nothing to compare with"));
}

#[test]
fn a_simulation_without_a_gpu_says_what_is_missing() {
    let line = format!("simulate {DECODE} --ranks 8 --policies contiguous");
    assert!(stdout(&line).starts_with("Worth it? Times are not known"));
    assert!(document(&format!("{line} --json"))["verdict"].is_null());
}
