//! `evenkeel trace` as users run it.
#![allow(clippy::unwrap_used, reason = "tests")]

use crate::trace_support::{Folder, npy, stat};
use std::process::{Command, Output};

fn evenkeel(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel")).arg("trace").args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_str(&text(output)).unwrap()
}

#[test]
fn synth_convert_inspect() {
    let folder = Folder::new();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let made = json(&evenkeel(&[
        "synth",
        "--experts",
        "16",
        "--top-k",
        "2",
        "--layers",
        "3",
        "--first-layer",
        "5",
        "--steps",
        "10",
        "--batch-tokens",
        "64",
        "--seed",
        "7",
        "-o",
        &at("a.csv"),
        "--json",
    ]));
    assert_eq!((made["steps"].as_u64(), made["experts"].as_u64()), (Some(10), Some(16)));
    json(&evenkeel(&["convert", &at("a.csv"), "-o", &at("b.csv.zst"), "--json"]));
    let one = json(&evenkeel(&["inspect", &at("a.csv"), "--json"]));
    let two = json(&evenkeel(&["inspect", &at("b.csv.zst"), "--json"]));
    assert_eq!(one["layers"], two["layers"]);
    assert_eq!(one["tokens"].as_u64(), Some(10 * 3 * 128));
    assert_eq!(one["tokens_per_step"]["p50"].as_u64(), Some(128));
    let shown = text(&evenkeel(&["inspect", &at("a.csv"), "--per-layer"]));
    for part in
        ["format     csv", "steps      10 (0 .. 9)", "layers     3 (ids 5 to 7)", "experts    16", "Gini"]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn an_empty_trace_is_no_error_to_inspect() {
    let folder = Folder::new();
    let file = folder.file("zero.pt", &stat(&[2, 4], &[0; 8]));
    let shown = text(&evenkeel(&["inspect", file.to_str().unwrap()]));
    assert!(shown.contains("the trace holds no tokens at all"), "{shown}");
}

#[test]
fn mistakes_are_told() {
    let folder = Folder::new();
    let array = folder.file("a.npy", &npy("|u1", &[4, 1, 1], &[0, 1, 0, 1]));
    let array = array.to_str().unwrap();
    for (arguments, expected) in [
        (vec!["inspect"], "TRACE"),
        (vec!["inspect", "nowhere.csv"], "nowhere.csv"),
        (vec!["inspect", array, "--format", "tsv"], "expected one of csv, parquet"),
        (vec!["inspect", array, "--layers", "a-b"], "expected ids like 0,3,6"),
        (vec!["inspect", array, "--batch-tokens", "2", "--decode-batch", "2"], "cannot be used with"),
        (vec!["inspect", array, "--decode-batch", "2"], "needs a requests CSV"),
        (vec!["convert", array, "--batch-tokens", "2", "-o", "a.xlsx"], "ends in .csv"),
        (vec!["synth", "--like", "llama", "-o", "a.csv"], "expected one of gptoss20b-decode"),
    ] {
        let output = evenkeel(&arguments);
        let message = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
        assert!(!output.status.success() && message.contains(expected), "{arguments:?}: {message}");
    }
}
