//! Dynamic slots as users meet them: `simulate dynamic`, `bench dynamic` and `run --dynamic`.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::skip_support::skipped;
use serde_json::Value;
use std::fmt::Write as _;
use std::process::{Command, Output};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-decode.csv.zst");

fn evenkeel(args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args.split_whitespace()).output().unwrap()
}

fn document(args: &str) -> Value {
    let output = evenkeel(&format!("{args} --json"));
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns the only line of a command that must fail.
fn refusal(args: &str) -> String {
    let output = evenkeel(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{args}");
    stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default().to_owned()
}

fn mean(row: &Value, figure: &str) -> f64 {
    row[figure]["mean"].as_f64().unwrap()
}

#[test]
fn copies_balance_what_static_replicas_cannot() {
    let args =
        format!("simulate dynamic {SAMPLE} --ranks 8 --redundant 8 --layers 0-1 --policies contiguous,eplb");
    let document = document(&format!("{args} --splits exact --dynamic 1,2"));
    let rows = document["dynamic"]["rows"].as_array().unwrap();
    // Two memories, two numbers of slots, two policies.
    assert_eq!(rows.len(), 8);
    for row in rows {
        assert!(mean(row, "excess") <= mean(row, "static_excess") + 1e-12, "{row}");
        assert!(mean(row, "least_copies") <= mean(row, "copies") + 1e-12, "{row}");
    }
    // The static figures are those of the comparison.
    assert_eq!(rows[1]["static_imbalance"], document["results"][1]["imbalance"]);
    let find = |memory: &str, slots: u64| {
        let is = |row: &&Value| {
            (row["memory"].as_str(), row["slots"].as_u64(), row["policy"].as_str())
                == (Some(memory), Some(slots), Some("contiguous"))
        };
        rows.iter().find(is).unwrap()
    };
    assert!(mean(find("shared", 2), "excess") < 0.1 * mean(find("shared", 2), "static_excess"));
    assert!(mean(find("kept", 2), "copies") < mean(find("shared", 2), "copies"));
}

#[test]
fn foresight_is_worth_what_it_knows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("loads.csv");
    let mut text = "step,layer,expert,tokens\n".to_owned();
    // The heavy expert changes with every step.
    for step in 0..20 {
        for expert in 0..8 {
            let tokens = if expert == step * 3 % 8 { 200 } else { 20 };
            writeln!(text, "{step},0,{expert},{tokens}").unwrap();
        }
    }
    std::fs::write(&path, text).unwrap();
    let trace = path.display();
    let excess = |foresee: &str| {
        let args = format!(
            "simulate dynamic {trace} --ranks 4 --policies contiguous --splits exact --slot-memory shared --foresee {foresee}"
        );
        let document = document(&args);
        let row = &document["dynamic"]["rows"][0];
        (mean(row, "excess"), mean(row, "copies"))
    };
    let (routed, perfect) = (excess("routed"), excess("perfect"));
    assert_eq!(routed, perfect);
    assert_eq!(excess(&trace.to_string()), perfect);
    assert!(excess("previous").0 > routed.0 + 0.1);
    assert!(excess("mean:3").0 > routed.0 + 0.1);
}

#[test]
fn times_decide_whether_copies_pay() {
    let args = format!(
        "simulate dynamic {SAMPLE} --ranks 8 --layers 0 --policies contiguous --splits exact --slot-memory shared \
         --model gpt-oss-20b,h100"
    );
    let times = |more: &str| {
        let document = document(&format!("{args} {more}"));
        let row = &document["dynamic"]["rows"][0];
        let us = |name: &str| row["times"][name].as_f64().unwrap();
        (us("static_us"), us("experts_us"), us("exposed_us"), us("better_us"), mean(row, "copies"))
    };
    let (fixed, _, exposed, better, _) = times("--aim imbalance:0.01");
    assert!(exposed > 0.0 && better <= fixed);
    let hidden = times("--hidden-us 1e6");
    assert!(hidden.2 < 1e-9);
    let training = times("--training");
    assert!(training.2 > 1.5 * exposed);
    // The report shows growing batches.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    document(&format!("{args} --aim time --report {}", path.display()));
    let page = std::fs::read_to_string(&path).unwrap();
    assert!(page.contains("Static, copies or neither") && page.contains("Filled dots are the fastest"));
    // A decode batch reads its experts, so no copy pays.
    let (fixed, experts, exposed, _, copies) = times("--aim time");
    assert!(experts + exposed <= fixed * 1.001 && copies < 1.0, "{copies}");
}

#[test]
fn a_run_copies_and_serves_what_the_split_states() {
    let args = format!(
        "run {SAMPLE} --model gpt-oss-20b --hidden 64 --intermediate 32 --num-layers 2 --ranks 8 --policy contiguous --steps 20 \
         --check"
    );
    let fixed = document(&args);
    for more in ["--dynamic 1", "--dynamic 2 --slot-memory kept", "--dynamic 1 --aim copies:2"] {
        let run = document(&format!("{args} {more}"));
        assert_eq!((&run["check"]["ok"], &run["imbalance"]["to_the_token"]), (&true.into(), &true.into()));
        assert!(run["dynamic"]["copies"].as_u64().unwrap() > 0, "{more}");
        let imbalance = |run: &Value| run["imbalance"]["plan"]["mean"].as_f64().unwrap();
        assert!(imbalance(&run) < imbalance(&fixed));
        let memory = |run: &Value| run["ranks"][0]["memory_bytes"].as_u64().unwrap();
        assert!(memory(&run) > memory(&fixed));
    }
    let output = evenkeel(&format!("{args} --dynamic 1"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("1 dynamic slots per rank, shared"), "{text}");
}

#[test]
fn a_run_has_the_imbalance_of_its_simulation() {
    let Some(folder) = std::env::var_os("EVENKEEL_REAL_TRACES") else {
        skipped("no real traces");
        return;
    };
    let trace = std::path::PathBuf::from(folder).join("gptoss20b-decode");
    let common =
        format!("{} --decode-batch 64 --train-fraction 0.8 --ranks 8 --redundant 8", trace.display());
    for memory in ["shared", "kept"] {
        let run = document(&format!(
            "run {common} --model gpt-oss-20b --hidden 64 --intermediate 32 --num-layers 2 --policy lplb:ring --steps 100000 \
             --no-baseline --dynamic 1 --slot-memory {memory}"
        ));
        let simulated = document(&format!(
            "simulate dynamic {common} --layers 0-1 --policies lplb:ring --splits exact --slot-memory {memory}"
        ));
        let row = &simulated["dynamic"]["rows"][0];
        assert_eq!(run["imbalance"]["plan"], row["imbalance"]);
        let batches = run["steps"].as_array().unwrap().len() * 2;
        let copies = run["dynamic"]["copies"].as_u64().unwrap() as f64 / batches as f64;
        assert!((copies - mean(row, "copies")).abs() < 1e-9);
    }
}

#[test]
fn what_does_not_fit_is_one_message() {
    for (args, expected) in [
        (format!("simulate dynamic {SAMPLE} --ranks 8 --dynamic 65"), "--dynamic 65: expected 1 to 64"),
        (format!("simulate dynamic {SAMPLE} --ranks 8 --slot-memory none"), "expected shared or kept"),
        (format!("simulate dynamic {SAMPLE} --ranks 8 --aim best"), "expected imbalance:LIMIT"),
        (
            format!("simulate dynamic {SAMPLE} --ranks 8 --foresee nowhere.csv"),
            "there is no file of this name",
        ),
        (format!("simulate dynamic {SAMPLE} --ranks 8 --model deepseek-v3,h100"), "256 experts"),
        (format!("run {SAMPLE} --model gpt-oss-20b --ranks 8 --dynamic 0"), "--dynamic 0: expected 1 to 64"),
        (
            format!("run {SAMPLE} --model gpt-oss-20b --ranks 8 --dynamic 1 --split even"),
            "expected --split exact",
        ),
        (format!("run {SAMPLE} --model gpt-oss-20b --ranks 8 --dynamic 1 --aim time"), "--aim time"),
        (
            format!("run {SAMPLE} --model gpt-oss-20b --ranks 8 --dynamic 1 --replan-every 4"),
            "cannot be used with",
        ),
        (format!("run {SAMPLE} --model gpt-oss-20b --ranks 8 --slot-memory kept"), "required arguments"),
    ] {
        let message = refusal(&args);
        assert!(message.contains(expected), "{args}: {message}");
    }
    // A prediction for other steps.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short.csv");
    std::fs::write(&path, "step,layer,expert,tokens\n0,0,31,5\n").unwrap();
    let message =
        refusal(&format!("simulate dynamic {SAMPLE} --ranks 8 --layers 0 --foresee {}", path.display()));
    assert!(message.contains("the prediction lacks this batch"), "{message}");
}

#[test]
fn no_rule_does_better_than_the_solver() {
    let document = document(&format!(
        "bench dynamic {SAMPLE} --layers 0-1 --ranks 4,8 --slots 1 --batch-tokens 64 --resample 40 --top-k 4 --defeats"
    ));
    let rows = document["rows"].as_array().unwrap();
    // Two numbers of ranks, three objectives, the solver and five rules.
    assert_eq!(rows.len(), 2 * 3 * 6);
    for objective in ["copies", "peak", "time"] {
        let own = rows.iter().filter(|row| row["objective"] == objective);
        let solvers: Vec<&str> = own.filter_map(|row| row["solver"].as_str()).collect();
        assert_eq!(solvers[..6], ["evenkeel", "ultraep", "moonep", "llep", "topoep", "shadow"]);
    }
    for row in rows.iter().filter(|row| row["solver"] == "evenkeel") {
        let (copies, peak) = (row["copies"].as_f64().unwrap(), row["peak_over_mean"].as_f64().unwrap());
        assert!(row["bound_copies"].as_f64().unwrap() <= copies + 1e-9, "{row}");
        assert!(row["bound_peak_over_mean"].as_f64().unwrap() <= peak + 1e-9, "{row}");
    }
    for row in document["defeats"].as_array().unwrap() {
        for objective in ["copies", "peak", "time"] {
            assert_eq!(row[objective], 0, "{row}");
        }
    }
}

#[test]
fn drawn_batches_are_chosen_by_name() {
    let document = document("bench dynamic --corpus zipf --ranks 8 --slots 1 --seeds 1 --objectives copies");
    let rows = document["rows"].as_array().unwrap();
    // Two numbers of experts, three targets, two laws inside a rank, six solvers.
    assert_eq!(rows.len(), 2 * 3 * 2 * 6);
    assert!(rows.iter().all(|row| row["ranks"] == 8 && row["slots"] == 1));
    for (args, expected) in [
        ("--ranks 9", "no drawn corpus fits"),
        ("--corpus even --order shuffled", "--order has no effect without TRACE"),
        ("--objectives speed", "invalid value 'speed'"),
        ("--seeds 0", "invalid value '0'"),
    ] {
        let message = refusal(&format!("bench dynamic {args}"));
        assert!(message.contains(expected), "{args}: {message}");
    }
    let message = refusal(&format!("bench dynamic {SAMPLE} --ranks 9"));
    assert!(message.contains("expected a divisor of them"), "{message}");
}
