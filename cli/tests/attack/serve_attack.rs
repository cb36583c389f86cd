//! Clients that leave, flood, stall and send too much must not make other clients wait.
//!
//! `EVENKEEL_ATTACK=full` uses more clients and longer attacks. `make attack` sets it.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::serve_support::{CONFIG, PATIENCE, Server, folder, loads, shape};
use evenkeel_serve::{Loads, Phase, StepLoads};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Returns whether the long forms run.
fn full() -> bool {
    std::env::var("EVENKEEL_ATTACK").is_ok_and(|form| form == "full")
}

/// Returns steps of a model for which planning takes noticeable time.
fn large(ids: std::ops::Range<u64>, layers: u32) -> Loads {
    let experts = 128u64;
    let count = move |id: u64, at: u64| {
        let (layer, expert) = (at / experts, at % experts);
        let hot = (id / 12 * 5 + layer * 3) % experts;
        (20 + (id * 7 + expert * 13 + layer * 3) % 31 + 900 * u64::from(expert == hot)) as u32
    };
    let counts = |id: u64| (0..u64::from(layers) * experts).map(|at| count(id, at)).collect();
    let steps = ids.map(|id| StepLoads { id, counts: counts(id) }).collect();
    Loads { phase: Phase::All, layers: (0..layers).collect(), experts: experts as usize, steps }
}

/// Configuration that decides only on request.
const ON_REQUEST: &str = "[decide]\nfirst_after = 4\nevery = 1000000\nmin_every = 1000000\nwindow = 64\njudged = 64\nmax_moves = 64\nmove_cost = 0.01\n";

fn with_large_model(config: &str, layers: u32) -> (tempfile::TempDir, Server) {
    let data = folder();
    let server = Server::start(data.path(), config);
    server.put_model("m", &json!({"ranks": 8, "redundant": 32}));
    for at in 0..8 {
        let reply = server.loads("m", &large(8 * at..8 * at + 8, layers));
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    server.settled("m", "all");
    (data, server)
}

/// Sends a request and disconnects.
fn abandon(server: &Server, request: &str) {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    write!(stream, "{request}").unwrap();
    std::thread::sleep(Duration::from_millis(5));
}

/// Returns the longest allowed time. It is one second in the full form, which runs alone, and 15 seconds if
/// other tests use the cores. On a slow machine it is three times the time of the same requests without an
/// attack.
fn bound(alone: Duration) -> Duration {
    Duration::from_secs(if full() { 1 } else { 15 }).max(3 * alone)
}

#[test]
fn abandoned_dry_runs_delay_neither_rank_losses_nor_steps() {
    let (_data, server) = with_large_model(ON_REQUEST, 8);
    let lose = |rank: usize, step: u64| {
        let begun = Instant::now();
        assert_eq!(server.loads("m", &large(step..step + 1, 8)).status, 200);
        let down = server.post(&format!("/v1/models/m/ranks/{rank}/down"));
        let took = begun.elapsed();
        assert_eq!(down.json()["decisions"][0]["trigger"], "rank_down", "{}", down.text);
        took
    };
    let alone = lose(2, 64);
    assert_eq!(server.post("/v1/models/m/ranks/2/up").status, 200);
    let dry_run =
        "POST /v1/models/m/replan?dry_run=true HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";
    let plan = "POST /v1/models/m/replan HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";
    let clients = if full() { 1000 } else { 100 };
    for at in 0..clients {
        abandon(&server, if at % 10 == 9 { plan } else { dry_run });
    }
    let took = lose(3, 65);
    assert!(took < bound(alone), "a step and a rank loss took {took:?}, {alone:?} alone");
    println!("a step and a rank loss took {alone:?}, {took:?} after {clients} abandoned requests");
    server.terminate();
}

#[test]
fn one_dry_run_at_a_time_and_none_for_clients_that_left() {
    let (_data, server) = with_large_model(ON_REQUEST, 48);
    let path = "/v1/models/m/replan?dry_run=true";
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.post(path));
        std::thread::sleep(Duration::from_millis(100));
        let refused = server.post(path);
        assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{}", refused.text);
        // Steps are still processed, and a rank loss ends the dry run.
        server.loads("m", &large(64..72, 48));
        server.settled("m", "all");
        assert!(!first.is_finished(), "steps do not wait for the dry run");
        assert_eq!(server.post("/v1/models/m/ranks/0/down").status, 200);
        let first = first.join().unwrap();
        assert_eq!((first.status, first.header("retry-after")), (503, Some("1")), "{}", first.text);
    });
    // A client that disconnects frees the slot of its dry run long before the dry run would have ended.
    let begun = Instant::now();
    assert_eq!(server.post(path).status, 200);
    let alone = begun.elapsed();
    abandon(&server, &format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n"));
    let begun = Instant::now();
    while server.post(path).status == 429 {
        std::thread::sleep(Duration::from_millis(5));
        assert!(begun.elapsed() < PATIENCE);
    }
    println!("a dry run took {alone:?}, the next one after an abandoned one {:?}", begun.elapsed());
    server.terminate();
}

/// Returns the peak memory of the service so far, in MiB.
fn peak_mib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Sends a request from the address of the stalled clients, and reads. Returns the time to the complete
/// reply. The service may close the oldest connection of an address to make room. Then the request is
/// repeated on a new connection, and its time counts.
fn ask(server: &Server, path: &str) -> Duration {
    let begun = Instant::now();
    loop {
        let mut text = vec![];
        let read = TcpStream::connect(server.address()).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
            stream.read_to_end(&mut text)
        });
        let text = String::from_utf8_lossy(&text);
        match read {
            Ok(length) if length > 0 => {
                assert!(text.starts_with("HTTP/1.1 200"), "{path}: {}", &text[..text.len().min(200)]);
                return begun.elapsed();
            }
            _ => assert!(begun.elapsed() < PATIENCE, "{read:?}"),
        }
    }
}

/// Opens connections that send some bytes and then nothing. Closed ones are opened again.
fn stall(server: &Server, number: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let open = |_| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        let _ = stream.write_all(bytes);
        stream
    };
    (0..number).map(open).collect()
}

/// Sends requests as a second client while up to `most` others stall. Every reply must arrive within the
/// bound.
fn served_throughout(server: &Server, path: &str, bytes: &[u8], most: usize) -> Duration {
    let alone = ask(server, path);
    let (rounds, clients) = if full() { (10, most) } else { (3, most.min(300)) };
    let (mut open, mut slowest) = (vec![], Duration::ZERO);
    for _ in 0..rounds {
        open.extend(stall(server, clients, bytes));
        for _ in 0..10 {
            let took = ask(server, path);
            slowest = slowest.max(took);
            assert!(took < bound(alone), "{took:?}, {alone:?} alone");
            std::thread::sleep(Duration::from_millis(10));
        }
        // The file descriptors of this process are limited too.
        open.drain(..open.len().saturating_sub(300));
    }
    slowest
}

#[test]
fn clients_that_stall_keep_nobody_waiting() {
    let data = folder();
    let server = Server::start(data.path(), &format!("[limits]\nstreams_per_address = 20\n{CONFIG}"));
    server.put_model("m", &json!(shape()));
    server.loads("m", &loads(0..8));
    server.settled("m", "all");
    let path = "/v1/models/m/plan";
    let headers =
        served_throughout(&server, path, b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-slow: ", 1000);
    let nothing = served_throughout(&server, path, b"", 1000);
    let body = b"POST /v1/models/m/loads HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 900000\r\n\r\n{";
    let bodies = served_throughout(&server, path, body, 1000);
    // Unread event streams do not occupy the slots of waiting plan requests.
    let streams = stall(&server, 60, b"GET /v1/models/m/events HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let waited = ask(&server, "/v1/models/m/plan?wait=1");
    drop(streams);
    println!(
        "slowest answer: {headers:?} with slow headers, {nothing:?} with silent connections, {bodies:?} with slow bodies, {waited:?} with event streams"
    );
    let log = server.terminate();
    assert!(log.iter().all(|line| !line.contains("panicked")), "{log:?}");
}

#[test]
fn slow_readers_of_a_large_plan_keep_nobody_waiting_and_share_its_text() {
    let data = folder();
    let config = format!("[limits]\nwrite_seconds = 2\nconnections_per_address = 256\n{CONFIG}");
    let server = Server::start(data.path(), &config);
    server.put_model("m", &json!({"ranks": 128, "redundant": 8192}));
    for at in 0..5 {
        assert_eq!(server.loads("m", &large(at..at + 1, if full() { 240 } else { 120 })).status, 200);
    }
    server.settled("m", "all");
    let path = "/v1/models/m/plan";
    let size = server.get(path).text.len();
    assert!(size > 2 << 20, "{size} bytes");
    let before = peak_mib(&server);
    // More readers at once would only measure the machine's speed of copying plans into sockets.
    let readers = 300;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let slowest = served_throughout(&server, path, request.as_bytes(), readers);
    let sglang = format!("{path}?format=sglang");
    let request = format!("GET {sglang} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let slowest = slowest.max(served_throughout(&server, &sglang, request.as_bytes(), readers));
    let grown = peak_mib(&server) - before;
    println!(
        "plan of {size} bytes; slowest answer {slowest:?}; memory grew by {grown} MiB to {} MiB",
        peak_mib(&server)
    );
    assert!(grown < 64, "memory grew by {grown} MiB");
    // A client that reads nothing loses its connection, since it requests more than the sockets hold.
    let requests = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").repeat(10);
    let mut stalled = stall(&server, 1, requests.as_bytes()).remove(0);
    std::thread::sleep(Duration::from_secs(4));
    stalled.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = vec![];
    let ended = stalled.read_to_end(&mut text);
    assert!(ended.is_err() || text.len() < 10 * size, "all plans were sent to a client that did not read");
    server.terminate();
}

#[test]
fn memory_of_bodies_is_bounded() {
    let data = folder();
    let server = Server::start(data.path(), &format!("[limits]\nbody_mib = 16\nmemory_mib = 256\n{CONFIG}"));
    server.put_model("m", &json!({"ranks": 2}));
    server.loads("m", &loads(0..1));
    let before = peak_mib(&server);
    // Bodies with the highest memory per byte: one step of small counts, in both forms, and rows without
    // counts.
    let mebibytes = 15;
    let counts = (mebibytes << 20) / 2 - 100;
    let row = vec!["0"; 65_536].join(",");
    let rows = vec![format!("[{row}]"); counts / 65_536].join(",");
    let json = format!("{{\"steps\": [{{\"step\": 1, \"counts\": [{rows}]}}]}}").into_bytes();
    let empty = format!("{{\"steps\": [{{\"step\": 1, \"counts\": [{}]}}]}}", vec!["[]"; 5 << 20].join(","))
        .into_bytes();
    let mut binary = b"EKLD\x01\x00\x00\x01".to_vec();
    let layers = (mebibytes as u32) << 4;
    for number in [layers, 65_536, 1] {
        binary.extend_from_slice(&number.to_le_bytes());
    }
    (0..layers).for_each(|layer| binary.extend_from_slice(&layer.to_le_bytes()));
    binary.extend_from_slice(&1u64.to_le_bytes());
    binary.extend_from_slice(&(layers * 65_536).to_le_bytes());
    binary.resize(binary.len() + (layers * 65_536) as usize, 0);
    let forms =
        [("application/json", json), ("application/json", empty), ("application/x-evenkeel-loads", binary)];
    let clients = if full() { 48 } else { 12 };
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for (kind, body) in &forms {
        std::thread::scope(|scope| {
            let posts: Vec<_> = (0..clients)
                .map(|_| {
                    scope.spawn(|| {
                        let headers = [("content-type", *kind)];
                        server
                            .try_send("POST", "/v1/models/m/loads", &headers, Some(body))
                            .map_or(0, |r| r.status)
                    })
                })
                .collect();
            for post in posts {
                *statuses.entry(post.join().unwrap()).or_default() += 1;
            }
        });
        // Small posts are accepted all the time.
        assert_eq!(server.loads("m", &loads(0..1)).json()["repeated"], 1);
    }
    let peak = peak_mib(&server);
    println!(
        "{clients} clients, three bodies of {mebibytes} MiB: statuses {statuses:?}, {before} MiB before, {peak} MiB at most"
    );
    assert!(statuses.keys().all(|status| [400, 422, 503].contains(status)), "{statuses:?}");
    assert!(peak < before + 256 + 64, "{peak} MiB");
    server.terminate();
}

#[test]
fn cross_site_requests_and_posts_without_a_type_are_refused() {
    let data = folder();
    let server = Server::start(data.path(), CONFIG);
    server.put_model("m", &json!(shape()));
    server.loads("m", &loads(0..8));
    server.settled("m", "all");
    let own = format!("http://{}", server.address());
    let json = ("content-type", "application/json");
    let body = serde_json::to_vec(&loads(8..9).to_body()).unwrap();
    for path in ["/v1/models/m/replan?dry_run=true", "/v1/models/m/loads", "/v1/models/m/ranks/1/down"] {
        let body = path.ends_with("loads").then_some(body.as_slice());
        let send = |headers: &[(&str, &str)]| {
            let headers: Vec<(&str, &str)> = [json].into_iter().chain(headers.iter().copied()).collect();
            server.send("POST", path, &headers, body).status
        };
        for origin in ["http://evil.example", "null", "http://localhost:1", "https://127.0.0.1"] {
            assert_eq!(send(&[("origin", origin)]), 403, "{path} {origin}");
            assert_eq!(send(&[("origin", origin), ("sec-fetch-site", "none")]), 403, "{path} {origin}");
        }
        for site in ["cross-site", "same-site"] {
            assert_eq!(send(&[("sec-fetch-site", site)]), 403, "{path} {site}");
        }
        assert_eq!(send(&[("origin", &own), ("host", "evil.example")]), 403, "{path}");
        assert_eq!(send(&[("origin", &own)]), 200, "{path}");
    }
    assert_eq!(
        server.send("PUT", "/v1/models/x", &[json, ("origin", "null")], Some(b"{\"ranks\": 2}")).status,
        403
    );
    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let headers: Vec<(&str, &str)> = kind.map(|kind| ("content-type", kind)).into_iter().collect();
        for (method, path) in [("POST", "/v1/models/m/loads"), ("PUT", "/v1/models/x")] {
            let reply = server.send(method, path, &headers, Some(b"{}"));
            assert_eq!(reply.status, 415, "{method} {kind:?}: {}", reply.text);
            assert!(reply.json()["expected"].as_str().unwrap().contains("application/json"));
        }
    }
    server.terminate();
}
