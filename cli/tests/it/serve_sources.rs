//! Loads that `evenkeel serve` fetches itself: a growing file, a folder of dumps, and the recorder of an
//! SGLang server.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::serve_support::{CONFIG, PATIENCE, Server, folder};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

fn config(path: &Path, more: &str) -> String {
    format!(
        "{CONFIG}\n[models.m]\nranks = 2\nredundant = 2\n[[source]]\nmodel = \"m\"\npoll_seconds = 0.05\npath = \"{}\"\n{more}",
        path.display()
    )
}

fn accepted(server: &Server, steps: u64) {
    let begun = Instant::now();
    loop {
        let state = server.get("/v1/models/m").json();
        let now = state["phases"][0]["accepted"].as_u64().unwrap_or(0);
        assert!(now <= steps && begun.elapsed() < PATIENCE, "{state}");
        if now == steps {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_file_is_followed_as_it_grows() {
    let data = folder();
    let path = data.path().join("loads.csv");
    fs::write(&path, "step,layer,expert,tokens\n").unwrap();
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    let mut write = |steps: std::ops::Range<u64>| {
        for step in steps {
            // Experts without tokens are left out. Only the first step has all six.
            for expert in (0..6).filter(|expert| step == 0 || expert % 2 == step % 2) {
                writeln!(file, "{step},3,{expert},{}", 5 + expert).unwrap();
            }
        }
    };
    write(0..5);
    let server = Server::start(data.path(), &config(&path, ""));
    accepted(&server, 5);
    write(5..9);
    accepted(&server, 9);
    server.terminate();
    // After a restart it reads the file from the beginning, and counts nothing twice.
    write(9..12);
    let server = Server::start(data.path(), &config(&path, ""));
    accepted(&server, 12);
    let state = server.settled("m", "all");
    assert_eq!((state["step"].as_u64(), state["layers"].as_array().unwrap().len()), (Some(11), 1));
    server.terminate();
}

#[test]
fn bad_lines_rotation_and_restarts_stop_nothing() {
    let data = folder();
    let path = data.path().join("loads.csv");
    let rows = |steps: std::ops::Range<u64>, tokens: u64| -> String {
        steps.fold(String::new(), |text, step| {
            text + &format!("{step},3,0,{tokens}\n{step},3,5,{}\n", step + 1)
        })
    };
    let header = "step,layer,expert,tokens\n";
    fs::write(&path, format!("{header}{}not a row\n{}", rows(0..3, 7), rows(3..6, 7))).unwrap();
    let server = Server::start(data.path(), &config(&path, ""));
    assert!(server.said("line 8 is skipped").contains("expected"));
    accepted(&server, 6);
    let source = server.get("/v1/models/m").json()["sources"][0].clone();
    assert_eq!((source["skipped_lines"].as_u64(), source["up"].as_bool()), (Some(1), Some(true)), "{source}");
    assert!(source["last_skipped"].as_str().unwrap().starts_with("line 8: "), "{source}");
    let metrics = server.get("/metrics").text;
    assert!(
        metrics
            .lines()
            .any(|line| { line.starts_with("evenkeel_source_skipped_lines_total{") && line.ends_with(" 1") })
    );
    // After a rotation, another file has the same numbers.
    fs::rename(&path, data.path().join("loads.csv.1")).unwrap();
    fs::write(&path, format!("{header}{}", rows(0..4, 9))).unwrap();
    accepted(&server, 10);
    server.said("run 2");
    // The engine restarts within the file.
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(rows(0..2, 11).as_bytes()).unwrap();
    accepted(&server, 12);
    server.terminate();
    // After a restart it reads the file from the beginning, and counts nothing twice.
    let server = Server::start(data.path(), &config(&path, ""));
    file.write_all(rows(2..3, 11).as_bytes()).unwrap();
    accepted(&server, 13);
    assert_eq!(server.get("/v1/models/m").json()["sources"][0]["errors"], 0);
    server.terminate();
}

#[test]
fn a_fifo_holds_nobody_up() {
    let data = folder();
    let path = data.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let server = Server::start(data.path(), &config(&path, ""));
    assert!(server.said("fifo").contains("expected one of these"));
    let begun = Instant::now();
    server.terminate();
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// Writes a dump in SGLang's JSON: `steps` x 2 layers x 6 experts, then an unused row.
fn dump(folder: &Path, name: &str, steps: u64) {
    let step = |at: u64| {
        let layer = |l: u64| {
            format!("[{}]", (0..6).map(|e| ((at + l + e) % 5 + 1).to_string()).collect::<Vec<_>>().join(","))
        };
        format!("[{},{}]", layer(0), layer(1))
    };
    let mut rows: Vec<String> = (0..steps).map(step).collect();
    rows.push("[[0,0,0,0,0,0],[0,0,0,0,0,0]]".into());
    fs::write(folder.join(name), format!("{{\"logical_count\": [{}]}}", rows.join(","))).unwrap();
}

#[test]
fn dumps_are_taken_from_a_folder() {
    let data = folder();
    let dumps = data.path().join("dumps");
    fs::create_dir(&dumps).unwrap();
    dump(&dumps, "expert_distribution_recorder_1.json", 4);
    let server = Server::start(data.path(), &config(&dumps, "phase = \"decode\"\n"));
    accepted(&server, 4);
    dump(&dumps, "expert_distribution_recorder_2.json", 3);
    accepted(&server, 7);
    fs::write(dumps.join("expert_distribution_recorder_3.json"), "{\"logical_count\": 7}").unwrap();
    assert!(server.said("recorder_3.json").contains("source"));
    server.terminate();
    let server = Server::start(data.path(), &config(&dumps, "phase = \"decode\"\n"));
    dump(&dumps, "expert_distribution_recorder_3.json", 2);
    accepted(&server, 9);
    server.terminate();
}

#[test]
fn a_recorder_is_asked_for_dumps() {
    let data = folder();
    let dumps = data.path().join("dumps");
    fs::create_dir(&dumps).unwrap();
    // Stand-in for an SGLang server: 200 to POST, and a file in its folder for every dump.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (told, asked) = mpsc::channel();
    let folder = dumps.clone();
    std::thread::spawn(move || {
        let mut number = 0;
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    break;
                }
                let mut header = String::new();
                while reader.read_line(&mut header).unwrap_or(0) > 2 {
                    header.clear();
                }
                let request = line.split(" HTTP").next().unwrap().to_owned();
                if request == "POST /dump_expert_distribution_record" {
                    number += 1;
                    dump(&folder, &format!("expert_distribution_recorder_{number}.json"), 2);
                }
                let _ = told.send(request);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nDone.\n").unwrap();
            }
        }
    });
    let more = format!("sglang = \"http://{address}\"\ndump_seconds = 1\n");
    let server = Server::start(data.path(), &config(&dumps, &more));
    assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), "POST /start_expert_distribution_record");
    assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), "POST /dump_expert_distribution_record");
    accepted(&server, 2);
    assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), "POST /dump_expert_distribution_record");
    server.terminate();
    let last = std::iter::from_fn(|| asked.recv_timeout(Duration::from_secs(1)).ok()).last();
    assert_eq!(last.as_deref(), Some("POST /stop_expert_distribution_record"));
}
