//! `evenkeel run` as users run it: the loads equal those of `simulate`, and the reference agrees.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::skip_support::skipped;
use serde_json::Value;
use std::process::{Command, Output};

fn evenkeel(args: &str, more: &[&str]) -> Output {
    let args = args.split_whitespace().chain(more.iter().copied());
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap()
}

fn document(args: &str, more: &[&str]) -> Value {
    let output = evenkeel(args, more);
    assert!(output.status.success(), "{args} {more:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns the only line of a command that must fail with exit code 1.
fn refusal(args: &str) -> String {
    let output = evenkeel(args, &[]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args}: {stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("note: ")).collect();
    assert!(errors.len() == 1 && errors[0].starts_with("error: "), "{stderr}");
    errors[0].to_owned()
}

/// Runs all judged steps of the first two layers and compares them with a simulation of the same steps.
fn as_simulated(trace: &str, reading: &str, model: &str, policy: &str, split: &str) {
    let common = format!("{reading} --ranks 8 --redundant 8");
    let run = document(
        &format!(
            "run {common} {model} --num-layers 2 --hidden 64 --intermediate 32 --policy {policy} --split {split} --steps \
             100000 --no-baseline --check --json"
        ),
        &[trace],
    );
    let simulated = document(
        &format!("simulate {common} --layers 0-1 --policies {policy} --splits {split} --json"),
        &[trace],
    );
    let expected = &simulated["results"][0]["imbalance"];
    assert_eq!(&run["imbalance"]["plan"], expected, "{policy} {split}");
    assert_eq!(&run["imbalance"]["simulated"], expected);
    assert_eq!(run["imbalance"]["to_the_token"], true);
    assert_eq!(
        run["steps"].as_array().unwrap().len() as u64,
        simulated["trace"]["judged_steps"].as_u64().unwrap()
    );
    assert_eq!(run["check"]["ok"], true, "{}", run["check"]);
    assert!(run["check"]["max_rel_err"].as_f64().unwrap() > 0.0);
}

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-decode.csv.zst");
const SMALL: &str =
    "run --model qwen3-30b-a3b --hidden 64 --intermediate 48 --experts 16 --experts-per-token 3 --ranks 4";

#[test]
fn what_the_ranks_serve_is_what_a_simulation_says() {
    for (policy, split, dtype) in
        [("eplb", "exact", "f32"), ("lplb:ring", "exact", "bf16"), ("contiguous", "even", "f32")]
    {
        as_simulated(SAMPLE, "", &format!("--model gpt-oss-20b --dtype {dtype}"), policy, split);
    }
}

#[test]
fn so_it_is_on_a_real_recording() {
    let Some(folder) = std::env::var_os("EVENKEEL_REAL_TRACES") else {
        skipped("no real traces");
        return;
    };
    let trace = std::path::PathBuf::from(folder).join("gptoss20b-decode");
    for dtype in ["f32", "bf16"] {
        let model = format!("--model gpt-oss-20b --dtype {dtype}");
        as_simulated(trace.to_str().unwrap(), "--decode-batch 64", &model, "lplb:ring", "exact");
    }
}

#[test]
fn a_router_of_its_own_drifts_and_the_plan_follows() {
    let folder = tempfile::tempdir().unwrap();
    let (loads, report) = (folder.path().join("loads.csv.zst"), folder.path().join("deep/run.html"));
    let files = ["--record", loads.to_str().unwrap(), "--report", report.to_str().unwrap()];
    for router in ["softmax-renorm", "sigmoid", "noisy"] {
        let d = document(
            &format!(
                "{SMALL} --redundant 8 --num-layers 2 --router {router} --batch-tokens 96 --steps 30 --drift 0.05 \
                 --replan-every 6 --check --json"
            ),
            &files,
        );
        assert_eq!(d["check"]["ok"], true, "{router}: {}", d["check"]);
        assert_eq!(d["imbalance"]["to_the_token"], true);
        let mean = |of: &str| d["imbalance"][of]["mean"].as_f64().unwrap();
        assert!(mean("plan") < mean("none"), "{router}: {}", d["imbalance"]);
        assert!(d["moves"]["copies"].as_u64().unwrap() > 0 && d["moves"]["switches"].as_u64().unwrap() > 0);
        assert!(d["share_of_balanced"].as_f64().unwrap() > 0.0);
        assert!(d["tokens_per_s"]["modelled_parallel"]["none"].as_f64().unwrap() > 0.0);
        assert_eq!(d["ranks"].as_array().unwrap().len(), 4);
    }
    // The recorded loads form a valid trace.
    let inspected = document("trace inspect --json", &[loads.to_str().unwrap()]);
    assert_eq!((inspected["steps"].as_u64(), inspected["experts"].as_u64()), (Some(30), Some(16)));
    let html = std::fs::read_to_string(report).unwrap();
    assert!(html.contains("of a perfect balance") && !html.contains("<script") && !html.contains("http://"));
}

#[test]
fn planning_again_moves_no_more_than_it_may() {
    for (policy, most) in [("recourse", 0), ("recourse", 2), ("eplb", 3)] {
        let d = document(
            &format!(
                "{SMALL} --redundant 8 --num-layers 2 --policy {policy} --batch-tokens 96 --steps 24 --drift 0.08 \
                 --replan-every 4 --max-moves {most} --check --no-baseline --json"
            ),
            &[],
        );
        assert_eq!(d["check"]["ok"], true, "{policy} {most}: {}", d["check"]);
        assert_eq!(d["imbalance"]["to_the_token"], true);
        let (plans, copies) = (d["moves"]["plans"].as_u64().unwrap(), d["moves"]["copies"].as_u64().unwrap());
        assert!(plans >= 4 && copies <= plans * 2 * most, "{policy} {most}: {}", d["moves"]);
        assert_eq!(copies == 0, most == 0, "{policy} {most}: {}", d["moves"]);
    }
    // A limit without anything to limit.
    assert_eq!(evenkeel(&format!("{SMALL} --max-moves 2"), &[]).status.code(), Some(2));
}

#[test]
fn capacity_drops_and_soft_mixtures_run_too() {
    let dropping = document(&format!("{SMALL} --router switch --capacity 0.5 --steps 3 --check --json"), &[]);
    assert!(dropping["router"]["dropped"].as_u64().unwrap() > 0 && dropping["check"]["ok"] == true);
    let soft = document(&format!("{SMALL} --router soft --steps 3 --check --json"), &[]);
    assert!(soft["check"]["ok"] == true && soft["imbalance"]["none"]["mean"] == 1.0);
}

#[test]
fn the_same_seed_serves_the_same_tokens() {
    let peaks = |seed: &str| {
        let d = document(
            &format!("{SMALL} --policy contiguous --steps 5 --seed {seed} --no-baseline --json"),
            &[],
        );
        d["steps"].as_array().unwrap().iter().map(|step| step["peaks"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(peaks("1"), peaks("1"));
    assert_ne!(peaks("1"), peaks("2"));
}

#[test]
fn what_cannot_run_says_why() {
    for (args, expected) in [
        (format!("{SMALL} --router replay"), "expected a TRACE"),
        (format!("{SMALL} --router best"), "unknown router"),
        (format!("{SMALL} --steps 0"), "--steps 0"),
        (format!("{SMALL} --num-layers 0"), "--num-layers 0"),
        (format!("{SMALL} --hidden 0"), "cannot be used multiple times"),
        (format!("run {SAMPLE} --model qwen3-30b-a3b --ranks 8"), "expected the same"),
        (format!("run {SAMPLE} --model gpt-oss-20b --ranks 8 --num-layers 99"), "expected 1 to 16"),
        (
            format!("run {SAMPLE} --model gpt-oss-20b --ranks 8 --router softmax"),
            "the trace determines the routing",
        ),
        (format!("{SMALL} --train-fraction 1"), "--train-fraction 1"),
        (format!("{SMALL} --skew nan"), "--skew NaN"),
        (format!("{SMALL} --capacity=-1"), "--capacity"),
        ("run --model olmoe-1b-7b --ranks 4 --hidden 0".into(), "--hidden 0"),
        ("run --model olmoe-1b-7b --ranks 4 --experts-per-token 65".into(), "top-65 of 64"),
        ("run no-such-trace --model olmoe-1b-7b --ranks 4".into(), "no-such-trace"),
    ] {
        if expected.contains("multiple") {
            assert_eq!(evenkeel(&args, &[]).status.code(), Some(2));
            continue;
        }
        let message = refusal(&args);
        assert!(message.contains(expected), "{args}: {message}");
    }
}
