//! `evenkeel top` against a running service, as a user runs it.
#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const TOKEN: &str = "a-token-for-the-terminal-0123";

fn evenkeel(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(arguments)
        .env("EVENKEEL_TOKEN", TOKEN)
        .env("COLUMNS", "100")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = evenkeel(arguments);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

struct Service {
    child: Child,
    url: String,
}

impl Service {
    fn start(folder: &Path) -> Self {
        let (config, tokens) = (folder.join("evenkeel.toml"), folder.join("tokens"));
        std::fs::write(&config, "[decide]\nfirst_after = 8\nevery = 8\n").unwrap();
        std::fs::write(&tokens, TOKEN).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
            .args(["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&config)
            .arg("--token-file")
            .arg(&tokens)
            .arg("--data")
            .arg(folder.join("data"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, url: line.trim().trim_end_matches('/').to_owned() }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn one_frame_as_text_and_as_a_document() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    let url = service.url.as_str();
    let empty = text(&evenkeel(&["top", url, "--once"]));
    assert!(empty.contains("No model yet") && empty.contains("evenkeel trace replay TRACE --to"), "{empty}");

    let trace = folder.path().join("loads.csv");
    let trace = trace.to_str().unwrap();
    let synth =
        ["trace", "synth", "--like", "gptoss20b-decode", "--layers", "4", "--steps", "20", "-o", trace];
    text(&evenkeel(&synth));
    text(&evenkeel(&[
        "trace",
        "replay",
        trace,
        "--to",
        url,
        "--name",
        "m",
        "--lockstep",
        "--ranks",
        "8",
        "--redundant",
        "8",
    ]));

    let frame = text(&evenkeel(&["top", url, "--once"]));
    for part in [
        "m / all",
        "The busiest rank does 1.",
        " instead of ",
        "Plan ",
        "step 19",
        "4 layers, 32 experts, 8 of 8 ranks",
        "Where the load sits",
        "Decisions",
        "re-planned",
        "Hottest experts",
        "▼",
    ] {
        assert!(frame.contains(part), "{part} is missing in\n{frame}");
    }
    assert!(frame.lines().all(|line| line.chars().count() <= 100), "{frame}");
    assert!(!frame.contains('\u{1b}'), "plain text");
    // Layer 0 with its eight ranks and its peak, all in numbers.
    let heat = frame.lines().skip_while(|line| !line.starts_with("layer")).nth(1).unwrap();
    let numbers: Vec<f64> = heat.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers.len(), 1 + 8 + 1, "{heat}");
    assert!((numbers[1..9].iter().sum::<f64>() - 8.0).abs() < 0.05, "{heat}");

    let document: serde_json::Value =
        serde_json::from_str(&text(&evenkeel(&["top", url, "--json"]))).unwrap();
    assert_eq!(document["view"]["model"], "m");
    assert_eq!(document["history"]["points"].as_array().unwrap().len(), 20);
}

#[test]
fn what_is_wrong_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    let url = service.url.as_str();
    for (arguments, parts) in [
        (vec!["top", "http://127.0.0.1:1", "--once"], vec!["http://127.0.0.1:1", "evenkeel serve"]),
        (vec!["top", "localhost", "--once"], vec!["localhost", "expected http://HOST:PORT"]),
        (vec!["top", url, "--name", "x", "--once"], vec!["--name x: no such model"]),
        (vec!["top", url, "--phase", "decode", "--once"], vec!["--phase decode: no model is fed that"]),
        (vec!["top", url, "--every", "0"], vec!["--every 0", "expected 0.1 to 3600"]),
        (vec!["top", url], vec!["stdout is no terminal", "--once"]),
    ] {
        let message = refused(&arguments);
        for part in parts {
            assert!(message.contains(part), "{arguments:?}: {message}");
        }
    }
    let output = Command::new(env!("CARGO_BIN_EXE_evenkeel"))
        .args(["top", url, "--once"])
        .env_remove("EVENKEEL_TOKEN")
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && message.contains("no token (401)"), "{message}");
}
