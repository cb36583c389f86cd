//! Correctness of the status of `evenkeel serve`: counters, a stopped feed, failing sources, a port in use.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::serve_support::{CONFIG, PATIENCE, Server, command, folder, loads, refusal, shape};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn config(path: &Path, more: &str) -> String {
    format!(
        "{CONFIG}\n[models.m]\nranks = 2\nredundant = 2\n[[source]]\nmodel = \"m\"\npoll_seconds = 0.05\npath = \"{}\"\n{more}",
        path.display()
    )
}

/// Returns the value of the metric whose line begins with `begin`.
fn metric(server: &Server, begin: &str) -> Option<f64> {
    let text = server.get("/metrics").text;
    let line = text.lines().find(|line| line.starts_with(begin))?.to_owned();
    Some(line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// Waits until a condition holds.
fn until(what: &str, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn source(server: &Server) -> Value {
    server.get("/v1/models/m").json()["sources"][0].clone()
}

#[test]
fn steps_of_sources_count_as_posted_ones_do() {
    let data = folder();
    let path = data.path().join("loads.csv");
    let rows = |steps: std::ops::Range<u64>| {
        let row = |step: u64| (0..6).map(move |expert| format!("{step},3,{expert},{}\n", 5 + expert));
        steps.flat_map(row).collect::<String>()
    };
    fs::write(&path, format!("step,layer,expert,tokens\n{}", rows(0..9))).unwrap();
    let server = Server::start(data.path(), &config(&path, ""));
    let accepted = |server: &Server| metric(server, "evenkeel_steps_accepted_total");
    until("nine steps", || accepted(&server) == Some(9.0));
    assert_eq!(metric(&server, "evenkeel_posts_total"), Some(0.0));
    server.terminate();
    // After a restart the file is read again, and repeated steps are counted as such.
    let server = Server::start(data.path(), &config(&path, ""));
    until("nine repeated steps", || metric(&server, "evenkeel_steps_repeated_total") == Some(9.0));
    assert_eq!(accepted(&server), Some(0.0));
    server.put_model("posted", &serde_json::to_value(shape()).unwrap());
    assert_eq!(server.loads("posted", &loads(0..5)).status, 200);
    assert_eq!((accepted(&server), metric(&server, "evenkeel_posts_total")), (Some(5.0), Some(1.0)));
    server.terminate();
}

#[test]
fn a_feed_that_stops_is_seen_to_have_stopped() {
    let data = folder();
    let server = Server::start(data.path(), CONFIG);
    server.put_model("m", &serde_json::to_value(shape()).unwrap());
    let name = "evenkeel_last_step_timestamp_seconds{model=\"m\",phase=\"all\"}";
    assert_eq!(metric(&server, name), None, "never fed");
    let begun = now().floor();
    server.loads("m", &loads(0..5));
    let fed = metric(&server, name).unwrap();
    assert!((begun..=now()).contains(&fed), "{fed}");
    server.settled("m", "all");
    std::thread::sleep(Duration::from_millis(2100));
    let state = server.settled("m", "all");
    assert_eq!(
        (state["last_step_unix_s"].as_f64(), state["stopped_after_seconds"].as_u64()),
        (Some(fed), Some(10))
    );
    assert!((2..PATIENCE.as_secs()).contains(&state["quiet_seconds"].as_u64().unwrap()), "{state}");
    // Known steps are no new loads.
    server.loads("m", &loads(0..5));
    assert_eq!(metric(&server, name), Some(fed));
    // A restart does not make a feed live.
    server.kill();
    let server = Server::start(data.path(), CONFIG);
    let again = metric(&server, name).unwrap();
    assert!((begun..=fed + 2.0).contains(&again), "{again} {fed}");
    server.loads("m", &loads(5..6));
    assert!(metric(&server, name).unwrap() > fed);
    assert!(server.settled("m", "all")["quiet_seconds"].as_u64().unwrap() <= 1);
    server.terminate();
}

#[test]
fn sources_that_fail_are_counted_and_named() {
    let data = folder();
    let path = data.path().join("loads.csv");
    let server = Server::start(data.path(), &config(&path, "phase = \"decode\"\n"));
    let of = format!("{{model=\"m\",phase=\"decode\",path=\"{}\"}}", path.display());
    let (up, errors) = (format!("evenkeel_source_up{of}"), format!("evenkeel_source_errors_total{of}"));
    until("an error", || metric(&server, &errors) > Some(1.0));
    assert_eq!(metric(&server, &up), Some(0.0));
    let state = source(&server);
    assert_eq!(
        (&state["up"], &state["phase"], state["path"].as_str()),
        (&false.into(), &"decode".into(), path.to_str())
    );
    assert!(state["error"].as_str().unwrap().contains("No such file"), "{state}");
    assert!(state["since_unix_s"].as_f64().unwrap() <= now() && state["errors"].as_u64() > Some(1));
    // An unreadable file is another error. A readable one ends it.
    fs::write(&path, "step,layer,expert,many\n0,3,0,1\n1,3,0,1\n").unwrap();
    until("what is wrong with the file", || {
        source(&server)["error"].as_str().is_some_and(|e| e.contains("tokens"))
    });
    fs::write(&path, "step,layer,expert,tokens\n0,3,0,7\n0,3,1,2\n").unwrap();
    until("the source to be up", || metric(&server, &up) == Some(1.0));
    let state = source(&server);
    assert_eq!((&state["error"], &state["since_unix_s"]), (&Value::Null, &Value::Null), "{state}");
    let counted = metric(&server, &errors);
    until("the step", || metric(&server, "evenkeel_steps_accepted_total") == Some(1.0));
    assert_eq!(metric(&server, &errors), counted, "nothing fails any more");
    server.terminate();
}

#[test]
fn a_recorder_that_does_not_answer_is_no_secret() {
    let data = folder();
    let dumps = data.path().join("dumps");
    fs::create_dir(&dumps).unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let more = format!("sglang = \"http://{closed}\"\ndump_seconds = 1\n");
    let server = Server::start(data.path(), &config(&dumps, &more));
    until("an error", || source(&server)["up"] == false);
    let state = source(&server);
    assert!(state["error"].as_str().unwrap().contains("refused"), "{state}");
    assert_eq!(state["sglang"], format!("http://{closed}"));
    assert!(server.said("start_expert_distribution_record").contains("refused"));
    // Between two attempts the source stays down, and every attempt is counted.
    for _ in 0..20 {
        assert_eq!(source(&server)["up"], false);
        std::thread::sleep(Duration::from_millis(20));
    }
    until("another try", || source(&server)["errors"].as_u64() > Some(1));
    server.terminate();
}

#[test]
fn a_taken_port_is_one_error_with_a_way_out() {
    let data = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let mut start = command(data.path(), &format!("listen = \"{address}\"\n"));
    let args: Vec<_> = start.get_args().map(std::ffi::OsStr::to_owned).collect();
    let mut plain = std::process::Command::new(start.get_program());
    let at = args.iter().position(|arg| arg == "--listen").unwrap();
    plain.args(&args[..at]).args(&args[at + 2..]);
    start = plain;
    let text = refusal(start);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with(&format!("error: cannot listen on {address}: ")), "{text}");
    assert!(text.trim_end().ends_with("--listen 127.0.0.1:0 selects a free port"), "{text}");
}
