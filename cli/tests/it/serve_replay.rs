//! `evenkeel trace replay` and `evenkeel simulate backtest`: a trace with and without the service.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::command::{document, refusal};
use crate::serve_support::{CONFIG, Server, folder};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::Duration;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-prefill.csv.zst");

/// Options with few iterations of the real policy: the same rules, faster.
const RECOURSE: &str = "policy = \"recourse:iterations=1000\"\nfirst_after = 8\nevery = 8\nmin_every = 2\nmax_moves = 2\nmove_cost = 0.05\nmax_lag = 100000";

fn replay(server: &Server, more: &[&str]) -> Value {
    let args = ["trace", "replay", SAMPLE, "--to", &server.url, "--name", "s", "--json", "--layers", "1,9"];
    document(&[&args[..], more].concat())
}

#[test]
fn the_service_and_the_decision_core_agree() {
    let data = folder();
    let server = Server::start(data.path(), &format!("[decide]\n{RECOURSE}\n"));
    // Steps are posted as fast as they are accepted. Decisions depend on the order of steps alone.
    let answer = replay(&server, &["--ranks", "8", "--redundant", "8"]);
    assert_eq!((answer["accepted"].as_u64(), answer["repeated"].as_u64()), (Some(48), Some(0)));
    server.settled("s", "all");
    let decide = RECOURSE.replace('\n', ", ");
    let alone = document(&[
        "simulate",
        "backtest",
        SAMPLE,
        "--ranks",
        "8",
        "--redundant",
        "8",
        "--layers",
        "1,9",
        "--skip-every-batch",
        "--json",
        "--decide",
        &decide,
    ]);
    let history = server.get("/v1/models/s/history").json();
    let decisions = |document: &Value| -> Vec<Value> {
        let mut decisions = document["decisions"].as_array().unwrap().clone();
        for decision in &mut decisions {
            let decision = decision.as_object_mut().unwrap();
            decision.remove("duration_ms");
            decision.remove("timestamp_unix_s");
        }
        decisions
    };
    assert!(decisions(&history).len() >= 5);
    assert_eq!(decisions(&history), decisions(&alone));
    let judged: Vec<&Value> =
        history["points"].as_array().unwrap().iter().filter(|p| p["plan"] != 0).collect();
    let mean = judged.iter().map(|p| p["mean"].as_f64().unwrap()).sum::<f64>() / judged.len() as f64;
    assert!((mean - alone["online"]["imbalance"].as_f64().unwrap()).abs() < 1e-9);
    let foreseen: f64 = decisions(&alone)
        .iter()
        .skip(1)
        .filter(|d| d["outcome"] == "applied" && d["accepted"] != 48)
        .map(|d| d["gain_ms"].as_f64().unwrap())
        .sum();
    assert!(foreseen > 0.0 && (alone["foreseen_ms"].as_f64().unwrap() - foreseen).abs() < 1e-9, "{foreseen}");
    assert!(alone["gained_ms"].as_f64().is_some());
    server.terminate();
}

#[test]
fn a_replay_goes_on_where_it_was() {
    let data = folder();
    let server = Server::start(data.path(), CONFIG);
    let url = server.url.clone();
    // The service is killed and restarted during a replay. The replay waits and continues.
    let port = server.address().split(':').nth(1).unwrap().to_owned();
    let running = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["trace", "replay", SAMPLE, "--to", &url, "--name", "s", "--json", "--speed", "40"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(600));
    server.kill();
    std::thread::sleep(Duration::from_millis(200));
    let again = Server::run(on_port(&crate::serve_support::command(data.path(), CONFIG), &port), None);
    let done = running.wait_with_output().unwrap();
    assert!(done.status.success());
    let answer: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(answer["retries"].as_u64().unwrap() > 0, "{answer}");
    assert_eq!(again.settled("s", "all")["accepted"], 48);
    // In a second replay all steps are known.
    let answer = document(&["trace", "replay", SAMPLE, "--to", &url, "--name", "s", "--json"]);
    assert_eq!((answer["accepted"].as_u64(), answer["repeated"].as_u64()), (Some(0), Some(48)));
    again.terminate();
}

/// Returns the same command on a given port.
fn on_port(command: &Command, port: &str) -> Command {
    let mut other = Command::new(command.get_program());
    let mut args: Vec<std::ffi::OsString> = command.get_args().map(std::ffi::OsStr::to_owned).collect();
    let at = args.iter().position(|arg| arg == "--listen").unwrap();
    args[at + 1] = format!("127.0.0.1:{port}").into();
    other.args(args);
    other
}

#[test]
fn what_cannot_be_replayed_is_told() {
    let data = folder();
    let server = Server::start(data.path(), CONFIG);
    let message = refusal(&["trace", "replay", SAMPLE, "--to", "here"]);
    assert!(message.contains("expected http://HOST:PORT"), "{message}");
    let message =
        refusal(&["trace", "replay", SAMPLE, "--to", &server.url, "--ranks", "7", "--redundant", "3"]);
    assert!(message.contains("do not divide"), "{message}");
    let message = refusal(&["trace", "replay", SAMPLE, "--to", "http://127.0.0.1:9", "--patience", "0"]);
    assert!(message.contains("127.0.0.1:9"), "{message}");
    server.terminate();
}
