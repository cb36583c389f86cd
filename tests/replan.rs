//! Planning again, with a past, after losses and under budgets: as a user runs it.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn evenkeel(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap()
}

fn stdout(args: &[&str]) -> String {
    let output = evenkeel(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn document(args: &[&str]) -> Value {
    serde_json::from_str(&stdout(args)).unwrap()
}

/// The message of a command that must fail with exit code 1.
fn refusal(args: &[&str]) -> String {
    let output = evenkeel(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    stderr
}

/// A trace of `steps` x 2 layers (ids 3 and 5) x 16 experts whose heavy expert is `heavy(step)`.
fn trace_file(folder: &Path, name: &str, steps: u64, heavy: impl Fn(u64) -> u64) -> String {
    let mut text = String::from("step,layer,expert,tokens\n");
    for step in 0..steps {
        for layer in [3, 5] {
            for expert in 0..16u64 {
                let tokens = 20
                    + 90 * u64::from(expert == (layer + heavy(step)) % 16)
                    + (step * 31 + expert * expert * 17 + layer) % 23;
                text += &format!("{step},{layer},{expert},{tokens}\n");
            }
        }
    }
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn replanning_follows_a_drift_and_counts_its_moves() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path(), "drift.csv", 40, |step| step / 8);
    let base = ["simulate", &trace, "--ranks", "4", "--policies", "contiguous,eplb,lplb:ring", "--json"];
    for window in [&["--window", "auto"][..], &["--window", "4"], &["--decay", "3"]] {
        let d = document(&[&base[..], &["--replan-every", "4", "--max-moves", "1,3"], window].concat());
        let rows = d["replan"]["rows"].as_array().unwrap();
        // Three policies, two splits; never, again, two limits, oracle.
        assert_eq!(rows.len(), 3 * 2 * 5);
        for rows in rows.chunks(5) {
            let names: Vec<&str> = rows.iter().map(|row| row["planned_again"].as_str().unwrap()).collect();
            assert_eq!(names, ["never", "yes", "yes", "yes", "oracle"]);
            for (row, limit) in rows.iter().zip([Some(0), None, Some(1), Some(3), None]) {
                assert!(row["imbalance"]["mean"].as_f64() >= Some(1.0) && row["plan_ms"].is_f64());
                if let Some(limit) = limit {
                    // Two layers.
                    assert!(row["moves"].as_u64().unwrap() <= 2 * limit * row["replans"].as_u64().unwrap());
                }
            }
        }
        // The plain table is the row that is never planned again.
        let never = rows.iter().find(|row| row["policy"] == "eplb" && row["split"] == "exact").unwrap();
        let plain = d["results"].as_array().unwrap();
        let plain = plain.iter().find(|row| row["policy"] == "eplb" && row["split"] == "exact").unwrap();
        assert_eq!(never["imbalance"], plain["imbalance"]);
    }
    let text = stdout(&[&base[..6], &["--replan-every", "4", "--max-moves", "2"]].concat());
    assert!(text.contains("Planned again every 4 steps") && text.contains("<= 2 moves"), "{text}");
    assert!(document(&base)["replan"].is_null());
    assert!(refusal(&[&base[..], &["--replan-every", "0"]].concat()).contains("--replan-every 0"));
    assert!(refusal(&[&base[..], &["--replan-every", "2", "--decay", "0"]].concat()).contains("--decay 0"));
    let usage = evenkeel(&[&base[..], &["--replan-every", "2", "--window", "0"]].concat());
    assert!(String::from_utf8_lossy(&usage.stderr).contains("from 1 on, or auto"));
}

#[test]
fn replaying_does_not_depend_on_threads() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path(), "drift.csv", 30, |step| step / 5);
    let rows = |threads: &str| {
        let args = ["simulate", &trace, "--ranks", "4", "--replan-every", "3", "--max-moves", "2", "--json"];
        let mut d = document(&[&args[..], &["--threads", threads]].concat());
        for row in d["replan"]["rows"].as_array_mut().unwrap() {
            row["plan_ms"] = Value::Null;
        }
        d["replan"].clone()
    };
    assert_eq!(rows("1"), rows("3"));
}
