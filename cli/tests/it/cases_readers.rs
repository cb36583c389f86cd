//! Small traces that were once misread or refused, read by the program as users run it.
//!
//! Each file of `tests/data/cases` restates a real situation. Every test states the right result.
#![allow(clippy::unwrap_used, reason = "tests")]

use crate::command::{document, evenkeel, refusal};
use crate::trace_support::Folder;
use serde_json::Value;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn case(name: &str) -> String {
    format!("{}/../tests/data/cases/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Returns the document of `trace inspect --json` on a file, read with these options.
fn inspect(name: &str, options: &[&str]) -> Value {
    let path = case(name);
    document(&[&["trace", "inspect", "--json", &path], options].concat())
}

fn refused(name: &str, options: &[&str]) -> String {
    let path = case(name);
    let message = refusal(&[&["trace", "inspect", &path], options].concat());
    assert!(message.contains(name) && !message.contains("..."), "{message}");
    message
}

/// Returns steps, experts and tokens.
fn shape(found: &Value) -> (u64, u64, u64) {
    let number = |key: &str| found[key].as_u64().unwrap();
    (number("steps"), number("experts"), number("tokens"))
}

fn notices(found: &Value) -> String {
    let lines: Vec<&str> = found["notices"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    lines.join("\n")
}

#[test]
fn tables_as_spreadsheets_and_programs_write_them() {
    for (name, steps, tokens) in [
        ("csv-comment-lines.csv", 3, 1285),
        ("csv-excel-semicolon.csv", 3, 1285),
        ("csv-excel-utf16.csv", 3, 1285),
        ("csv-layer-expert-count.csv", 1, 1285),
        // Two of its cells are 0.0 where the other files have 2.
        ("csv-pandas-float-counts.csv", 3, 1281),
        ("parquet-gzip-duckdb.parquet", 3, 1285),
        ("parquet-double-duckdb-sum.parquet", 3, 1285),
    ] {
        let found = inspect(name, &[]);
        assert_eq!(shape(&found), (steps, 8, tokens), "{name}: {found}");
        let layers: Vec<u64> = found["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| layer["layer"].as_u64().unwrap())
            .collect();
        assert_eq!(layers, [3, 4], "{name}");
    }
    assert!(notices(&inspect("csv-comment-lines.csv", &[])).contains("2 lines that begin with #"));
}

#[test]
fn fractions_of_tokens_are_refused() {
    let message = refused("parquet-decimal-duckdb.parquet", &[]);
    assert!(message.contains("found 39.667") && message.contains("fraction of tokens"), "{message}");
}

#[test]
fn padding_of_255_is_no_expert() {
    for options in [&[][..], &["--batch-tokens", "10"], &["--experts", "64"]] {
        let found = inspect("npy-uint8-pad255.npy", options);
        let (_, experts, tokens) = shape(&found);
        assert_eq!((experts, tokens), (64, 180), "{found}");
        assert!(notices(&found).contains("repeat id 255 are padding"), "{found}");
        let skew = found["layers"][0]["max_over_mean"].as_f64().unwrap();
        assert!((skew - 4.27).abs() < 0.005, "{skew}");
    }
}

#[test]
fn arrays_of_counts_are_no_ids() {
    let message = refused("npy-counts-not-ids.npy", &[]);
    assert!(message.contains("more than once in a row of 64") && message.contains("npy-counts"), "{message}");
    let found = inspect("npy-counts-not-ids.npy", &["--format", "npy-counts"]);
    assert_eq!((found["steps"].as_u64(), found["experts"].as_u64()), (Some(5), Some(64)));
    assert_eq!(found["layers"].as_array().unwrap().len(), 3);
}

#[test]
fn arrays_among_others() {
    let found = inspect("npz-extra-arrays.npz", &[]);
    assert_eq!(shape(&found), (1, 64, 240));
    let said = notices(&found);
    assert!(said.contains("read array routed_experts, ignored prompt_lens (<i8 [3]), request_ids"), "{said}");
    assert!(said.contains("--arrays"), "{said}");
    let message = refused("npz-extra-arrays.npz", &["--arrays", "prompt_lens"]);
    assert!(message.contains("shape [3]") && message.contains("--arrays"), "{message}");

    let found = inspect("npz-short-requests.npz", &[]);
    assert_eq!(shape(&found), (1, 64, 150));
    assert!(notices(&found).contains("--batch-tokens"), "{found}");
    let message = refused("npz-short-requests.npz", &["--batch-tokens", "26"]);
    assert!(message.contains("--batch-tokens 26") && message.contains("--arrays"), "{message}");
    assert_eq!(shape(&inspect("npz-short-requests.npz", &["--batch-tokens", "5"])).0, 5);
}

#[test]
fn a_bare_tensor_is_one_step_of_counts() {
    let found = inspect("pt-bare-tensor.pt", &[]);
    assert_eq!(shape(&found), (1, 8, 1285));
    assert_eq!(found["layers"].as_array().unwrap().len(), 5);
    assert!(notices(&found).contains("read as counts"), "{found}");
}

#[test]
fn records_of_vllm() {
    let found = inspect("vllm-jsonl-restart.jsonl", &[]);
    assert_eq!(shape(&found), (8, 8, 2442));
    assert!(notices(&found).contains("2 runs"), "{found}");
    assert_eq!(shape(&inspect("vllm-jsonl-bom.jsonl", &[])), (4, 8, 1209));
    let message = refused("vllm-jsonl-nan.jsonl", &[]);
    assert!(message.contains("line 1") && message.contains("\"NaN\""), "{message}");
}

#[test]
fn steps_without_tokens_are_not_judged() {
    let path = case("vllm-jsonl-idle-tail.jsonl");
    for study in [&[][..], &["--json"], &["replay", "--replan-every", "4"], &["--hindsight"]] {
        let cluster = [&path, "--ranks", "4", "--redundant", "4"];
        let message = refusal(&[&["simulate"], study, &cluster[..]].concat());
        assert!(message.contains("none of the 24 step(s) to judge holds a token"), "{message}");
        assert!(message.contains("--train-fraction"), "{message}");
    }
    // Steps with tokens in both parts: 36 of 38 judged batches per layer are left out.
    let arguments =
        ["simulate", &path, "--ranks", "4", "--redundant", "4", "--train-fraction", "0.05", "--json"];
    let found = document(&arguments);
    assert_eq!(
        (found["trace"]["batches"].as_u64(), found["trace"]["empty_batches"].as_u64()),
        (Some(4), Some(72))
    );
    for row in found["results"].as_array().unwrap() {
        assert!(row["imbalance"]["mean"].as_f64().unwrap() >= 1.0, "{row}");
    }
}

#[test]
fn a_topology_that_does_not_fit_has_its_row() {
    let folder = Folder::new();
    let path = crate::command::trace_file(&folder.path(), "t.csv", 8, |step| step % 3);
    let policies = "contiguous,lplb:torus:3x3,lplb:ring";
    let arguments = ["simulate", &path, "--ranks", "4", "--redundant", "4", "--policies", policies];
    let found = document(&[&arguments[..], &["--json"]].concat());
    let rows = found["results"].as_array().unwrap();
    let unfit: Vec<&Value> = rows.iter().filter(|row| row["does_not_fit"].is_string()).collect();
    let [unfit] = unfit.as_slice() else { panic!("{found}") };
    assert_eq!((unfit["policy"].as_str(), &unfit["imbalance"]), (Some("lplb:torus:3x3"), &Value::Null));
    assert!(rows.iter().filter(|row| row["policy"] == "lplb:ring").count() == 2, "{found}");
    let output = evenkeel(&arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.lines().any(|line| line.contains("lplb:torus:3x3") && line.contains("does not fit")),
        "{text}"
    );
    let message =
        refusal(&["simulate", &path, "--ranks", "4", "--redundant", "4", "--policies", "lplb:torus:3x3"]);
    assert!(message.contains("no policy is left"), "{message}");
    assert!(
        refusal(&["simulate", &path, "--ranks", "4", "--policies", "lplb:rong"]).contains("unknown topology")
    );
}

#[test]
fn a_label_with_escape_sequences_is_read() {
    assert_eq!(shape(&inspect("label_with_escape.csv", &[])), (2, 2, 10));
}

#[cfg(unix)]
#[test]
fn pipes_are_read_once_and_whole() {
    let folder = Folder::new();
    for (name, options, expected) in [
        ("csv-excel-utf16.csv", &[][..], (3, 8, 1285)),
        ("parquet-gzip-duckdb.parquet", &[], (3, 8, 1285)),
        ("npy-uint8-pad255.npy", &["--batch-tokens", "40"], (1, 64, 180)),
        ("npz-extra-arrays.npz", &[], (1, 64, 240)),
        ("pt-bare-tensor.pt", &[], (1, 8, 1285)),
        ("vllm-jsonl-restart.jsonl", &[], (8, 8, 2442)),
    ] {
        // Two inputs are tested: a named pipe whose writer starts after the reader, and standard input.
        let pipe = folder.path().join(format!("{name}.pipe"));
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let (to, bytes) = (pipe.clone(), std::fs::read(case(name)).unwrap());
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            let mut pipe = std::fs::OpenOptions::new().write(true).open(to).unwrap();
            let (first, rest) = bytes.split_at(3);
            pipe.write_all(first).unwrap();
            std::thread::sleep(Duration::from_millis(50));
            pipe.write_all(rest).unwrap();
        });
        let pipe = pipe.to_str().unwrap().to_owned();
        let found = document(&[&["trace", "inspect", "--json", &pipe], options].concat());
        assert_eq!(shape(&found), expected, "{name}");
        writer.join().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .args(["trace", "inspect", "--json", "/dev/stdin"])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&std::fs::read(case(name)).unwrap()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(shape(&serde_json::from_slice(&output.stdout).unwrap()), expected, "{name}");
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_without_a_writer_is_an_error() {
    let folder = Folder::new();
    let pipe = folder.path().join("nobody");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let begun = Instant::now();
    let message = refusal(&["trace", "inspect", pipe.to_str().unwrap()]);
    assert!(message.contains("a pipe without a writer for 5 s"), "{message}");
    assert!(begun.elapsed() < Duration::from_secs(30));
    // An endless input ends at the memory limit.
    let message = refusal(&["trace", "inspect", "--memory", "1", "/dev/zero"]);
    assert!(message.contains("longer than the 1 MiB that a pipe may hold; raise --memory"), "{message}");
}
