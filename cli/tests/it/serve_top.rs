//! `evenkeel top` against a running service, as users run it.
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
    // Layer 0 with its eight ranks and its peak, all as numbers.
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
        (vec!["top", url, "--phase", "decode", "--once"], vec!["--phase decode: no model has loads of it"]),
        (vec!["top", url, "--every", "0"], vec!["--every 0", "expected 0.1 to 3600"]),
        (vec!["top", url], vec!["stdout is not a terminal", "--once"]),
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

/// Answers every request with the document of its path.
fn answering(documents: Vec<(&'static str, Vec<u8>)>) -> String {
    use std::io::Write as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                continue;
            }
            let mut header = String::new();
            while reader.read_line(&mut header).unwrap_or(0) > 2 {
                header.clear();
            }
            let path = line.split(' ').nth(1).unwrap_or_default();
            let found = documents.iter().find(|(part, _)| path.contains(part));
            let body = found.map_or(&b"{}"[..], |(_, body)| body);
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    url
}

/// Collects the JSON pointers of a document. Of lists it takes the first two items.
fn pointers(value: &serde_json::Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        serde_json::Value::Array(list) => {
            for (index, inner) in list.iter().enumerate().take(2) {
                pointers(inner, &format!("{at}/{index}"), all);
            }
        }
        serde_json::Value::Object(map) => {
            for (key, inner) in map {
                pointers(inner, &format!("{at}/{key}"), all);
            }
        }
        _ => {}
    }
}

/// Returns variants of a document. Each replaces the value of one place by one odd value, in a fixed order.
fn variants(document: &serde_json::Value) -> Vec<serde_json::Value> {
    use serde_json::json;
    let odd = [
        json!(null),
        json!([]),
        json!({}),
        json!(-1),
        json!(1e308),
        json!(u64::MAX),
        json!("\u{1b}[31m\u{7}\u{202e}\n"),
        json!("x".repeat(5000)),
        json!([[[]]]),
    ];
    let mut all = vec![];
    pointers(document, "", &mut all);
    let mut made = vec![];
    for (turn, pointer) in all.iter().enumerate() {
        let mut variant = document.clone();
        if let Some(place) = variant.pointer_mut(pointer) {
            *place = odd[turn % odd.len()].clone();
            made.push(variant);
        }
    }
    made
}

#[test]
fn any_answer_is_survived() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path());
    let fed = [
        "trace",
        "replay",
        concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-decode.csv.zst"),
        "--to",
        &service.url,
        "--name",
        "m",
        "--layers",
        "1,2",
    ];
    text(&evenkeel(&fed));
    let shown = text(&evenkeel(&["top", &service.url, "--json"]));
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let models = serde_json::json!({ "models": shown["models"] });
    let bytes = |value: &serde_json::Value| serde_json::to_vec(value).unwrap();
    let whole = || {
        vec![
            ("/view", bytes(&shown["view"])),
            ("/history", bytes(&shown["history"])),
            ("/v1/models", bytes(&models)),
        ]
    };
    let run = |documents: Vec<(&'static str, Vec<u8>)>| {
        let url = answering(documents);
        for more in [&["--once"][..], &["--json"]] {
            let output = evenkeel(&[&["top", &url], more].concat());
            let both = [&output.stdout[..], &output.stderr].concat();
            let said = String::from_utf8_lossy(&both);
            assert!(matches!(output.status.code(), Some(0 | 1)), "{:?}: {said}", output.status);
            assert!(!said.contains("panicked"), "{said}");
            assert!(more != ["--once"] || !both.iter().any(|&byte| byte == 0x1b || byte == 7), "{said}");
        }
    };
    run(whole());
    // The test alternates over all places of every document. It adds text that is no JSON, truncated text,
    // deep nesting and an array.
    let every = if std::env::var("EVENKEEL_ATTACK").is_ok_and(|form| form == "full") { 1 } else { 8 };
    for (at, part) in ["/view", "/history", "/v1/models"].into_iter().enumerate() {
        let document: serde_json::Value = serde_json::from_slice(&whole()[at].1).unwrap();
        for variant in variants(&document).iter().step_by(every) {
            let mut documents = whole();
            documents[at].1 = bytes(variant);
            run(documents);
        }
        for odd in ["", "[]", "7", "{", "\u{0}", &"[".repeat(100_000), "null"] {
            let mut documents = whole();
            documents[at] = (part, odd.as_bytes().to_vec());
            run(documents);
        }
    }
}
