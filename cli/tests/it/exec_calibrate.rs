//! Calibration through the program: measured, fitted, written, and used by a split.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::{Command, Output};

fn evenkeel(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).args(args).output().unwrap()
}

#[test]
fn a_fit_is_written_shown_and_aimed_at() {
    let folder = tempfile::tempdir().unwrap();
    let (json, html) = (folder.path().join("roofline.json"), folder.path().join("fit.html"));
    let calibrated = evenkeel(&[
        "calibrate",
        "experts",
        "--model",
        "qwen3-30b-a3b",
        "--hidden",
        "64",
        "--intermediate",
        "32",
        "--rounds",
        "3",
        "--tokens",
        "1,4,16,64",
        "--experts",
        "1,2",
        "-o",
        json.to_str().unwrap(),
        "--report",
        html.to_str().unwrap(),
        "--json",
    ]);
    assert!(calibrated.status.success(), "{}", String::from_utf8_lossy(&calibrated.stderr));
    let document: serde_json::Value = serde_json::from_slice(&calibrated.stdout).unwrap();
    assert_eq!(document["points"].as_array().unwrap().len(), 8);
    assert!(document["read_ps"].as_u64().unwrap() > 0 && document["residual"]["max"].as_f64().unwrap() > 0.0);
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(written["read_ps"], document["read_ps"]);
    let page = std::fs::read_to_string(html).unwrap();
    assert!(
        page.contains("Time of one expert") && page.contains("class=\"fit\"") && !page.contains("<script")
    );

    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-decode.csv.zst");
    let cost = format!("roofline:{}", json.display());
    let simulated = evenkeel(&[
        "simulate",
        "objective",
        sample,
        "--ranks",
        "8",
        "--layers",
        "0",
        "--policies",
        "eplb",
        "--cost",
        &cost,
        "--json",
    ]);
    assert!(simulated.status.success(), "{}", String::from_utf8_lossy(&simulated.stderr));
    let document: serde_json::Value = serde_json::from_slice(&simulated.stdout).unwrap();
    assert_eq!(document["goal"].as_array().unwrap().len(), 3);
    std::fs::write(&json, "{}").unwrap();
    let refused = evenkeel(&["simulate", "objective", sample, "--ranks", "8", "--cost", &cost]);
    assert!(
        refused.status.code() == Some(2)
            && String::from_utf8_lossy(&refused.stderr).contains("roofline.json")
    );
}
