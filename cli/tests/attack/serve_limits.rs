//! Requests that `evenkeel serve` refuses: unauthorised, too many, too slow and too large ones. Also TLS.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::serve_support::{CONFIG, PATIENCE, Server, command, folder, loads, refusal, shape};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

const TOKEN: &str = "a-token-of-many-letters";
const JSON: &str = "content-type: application/json\r\n";

/// Sends raw bytes and reads until the service closes the connection.
fn raw(server: &Server, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(bytes);
    let mut text = vec![];
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn strangers_are_refused() {
    let data = folder();
    let tokens = data.path().join("tokens");
    std::fs::write(&tokens, format!("# the poster\n  {TOKEN}  \nanother-long-token-123\n")).unwrap();
    let mut start = command(data.path(), CONFIG);
    start.arg("--token-file").arg(&tokens);
    let server = Server::run(start, None);
    for path in ["/v1/models", "/metrics", "/v1/models/m/plan", "/v1/models/m/events", "/nowhere"] {
        let reply = server.get(path);
        assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Bearer")), "{path}");
    }
    for path in ["/", "/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let with = |value: &str| server.send("GET", "/v1/models", &[("authorization", value)], None).status;
    for (value, status) in [
        (format!("Bearer {TOKEN}"), 200),
        ("bearer another-long-token-123".into(), 200),
        (format!("Bearer {TOKEN}x"), 401),
        (format!("Bearer {}", &TOKEN[1..]), 401),
        (format!("Basic {TOKEN}"), 401),
        ("Bearer ".into(), 401),
        (TOKEN.into(), 401),
    ] {
        assert_eq!(with(&value), status, "{value}");
    }
    // Another token file, read on SIGHUP.
    std::fs::write(&tokens, "a-token-that-is-new-now\n").unwrap();
    server.signal("HUP");
    server.said("configuration reloaded");
    assert_eq!((with(&format!("Bearer {TOKEN}")), with("Bearer a-token-that-is-new-now")), (401, 200));
    server.terminate();
}

#[test]
fn without_tokens_only_this_machines_names_are_answered() {
    let data = folder();
    let server = Server::run(command(data.path(), CONFIG), None);
    for (host, status) in
        [("localhost", "200"), ("127.0.0.1", "200"), ("[::1]:80", "200"), ("a.page.example", "403")]
    {
        let request = format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let reply = raw(&server, request.as_bytes());
        assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {reply}");
    }
    server.terminate();
}

#[test]
fn nobody_listens_to_everybody_without_a_token() {
    let data = folder();
    let mut open = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    open.args(["serve", "--listen", "0.0.0.0:0", "--data"]).arg(data.path()).current_dir(data.path());
    let message = refusal(open);
    assert!(
        message.contains("is reachable from other machines") && message.contains("--token-file"),
        "{message}"
    );
    for (config, part) in
        [("lisen = 1", "unknown field `lisen`"), ("token_file = \"nothing-here\"", "nothing-here")]
    {
        let message = refusal(command(data.path(), config));
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn large_and_slow_requests_end() {
    let data = folder();
    let config = format!("[limits]\nbody_mib = 1\nheader_seconds = 1\nbody_seconds = 1\n{CONFIG}");
    let server = Server::start(data.path(), &config);
    server.put_model("m", &json!(shape()));
    let path = "/v1/models/m/loads";
    let large = vec![b' '; (1 << 20) + 5000];
    let announced = server.send("POST", path, &[("content-type", "application/json")], Some(&large));
    assert_eq!(announced.status, 413, "{}", announced.text);
    assert!(announced.json()["expected"].as_str().unwrap().contains("limits.body_mib"));
    // The length is not announced.
    let mut chunked = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{JSON}transfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for _ in 0..17 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.resize(chunked.len() + 0x10000, b' ');
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert!(raw(&server, &chunked).starts_with("HTTP/1.1 413"));
    // A header that never ends, and a body that never arrives.
    let begun = Instant::now();
    raw(&server, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx-slow: ");
    let slow = raw(
        &server,
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\n{JSON}content-length: 10\r\n\r\n{{").as_bytes(),
    );
    assert!(slow.starts_with("HTTP/1.1 408") && slow.contains("limits.body_seconds"), "{slow}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(raw(&server, b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    let many = (0..200).fold(String::new(), |text, at| text + &format!("x-{at}: 1\r\n"));
    let answer = raw(&server, format!("GET / HTTP/1.1\r\nhost: localhost\r\n{many}\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(server.get("/healthz").status, 200);
    server.terminate();
}

#[test]
fn floods_are_held_to_their_rate() {
    let data = folder();
    let server = Server::start(data.path(), &format!("[limits]\nrequests_per_second = 20\n{CONFIG}"));
    let statuses: Vec<u16> = (0..80).map(|_| server.get("/healthz").status).collect();
    assert!(statuses[..40].iter().all(|&status| status == 200), "a burst is let through");
    assert!(statuses.contains(&429));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.get("/healthz").status, 200);
    server.terminate();
}

#[test]
fn connections_and_streams_are_limited() {
    let data = folder();
    let server = Server::start(data.path(), &format!("[limits]\nconnections = 5\nstreams = 2\n{CONFIG}"));
    server.put_model("m", &json!(shape()));
    server.loads("m", &loads(0..1));
    let open = || {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /v1/models/m/events HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).unwrap();
        (stream, String::from_utf8_lossy(&begin).into_owned())
    };
    let streams = [open(), open()];
    assert!(streams.iter().all(|(_, begin)| begin.ends_with("200")));
    let (third, begin) = open();
    assert!(begin.ends_with("503"), "{begin}");
    drop(third);
    // Idle connections make room for others, also beyond the limit.
    let mut idle: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    assert!(
        raw(&server, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .contains(" 200 ")
    );
    // Active connections stay: waiting plan requests, and two streams.
    let begun = Instant::now();
    loop {
        let mut waiting = TcpStream::connect(server.address()).unwrap();
        write!(waiting, "GET /v1/models/m/plan?wait=60 HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        idle.push(waiting);
        std::thread::sleep(Duration::from_millis(50));
        let refused = raw(&server, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        if refused.starts_with("HTTP/1.1 503") || refused.is_empty() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{refused}");
    }
    drop((idle, streams));
    let begun = Instant::now();
    while server.try_send("GET", "/healthz", &[], None).map_or(0, |reply| reply.status) != 200 {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    server.terminate();
}

#[test]
fn steps_wait_in_bounded_number() {
    let data = folder();
    // A slow decision makes all later steps wait.
    let config =
        "[limits]\nlag_steps = 3\n[decide]\nfirst_after = 1\nevery = 1\nmax_lag = 1000\nmax_moves = 8\n";
    let server = Server::start(data.path(), config);
    server.put_model("m", &json!(shape()));
    let refused =
        (0..400).map(|at| server.loads("m", &loads(at..at + 1))).find(|reply| reply.status != 200).unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{}", refused.text);
    server.kill();
}
