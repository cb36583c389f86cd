//! State that must survive: kill -9 at any instant, full disks, damaged and foreign stores. Also the orderly
//! end of the service, and the reload of its file.
//!
//! The number of kills is `EVENKEEL_KILLS`, by default 10. `make faults` makes 200.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::serve_support::{CONFIG, Server, command, folder, loads, noise, plan_of, refusal, shape, store};
use redb::{Database, TableDefinition};
use serde_json::json;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

#[test]
fn kills_lose_nothing_that_was_acknowledged() {
    let kills: u64 = std::env::var("EVENKEEL_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let data = folder();
    // The next step to post. All steps before it are acknowledged.
    let mut next = 0u64;
    let mut unclear = 0;
    for kill in 0..kills {
        let server = Server::start(data.path(), CONFIG);
        if kill == 0 {
            assert_eq!(server.put_model("m", &json!(shape())).status, 201);
        } else if next > 0 {
            // The service knows all acknowledged steps, so a second post only repeats them. The test posts
            // the last hundred, and one old step.
            let from = next.saturating_sub(100);
            let again = server.loads("m", &loads(from..next));
            assert_eq!(again.status, 200, "kill {kill}: {}", again.text);
            assert_eq!(again.json()["accepted"], 0, "kill {kill}: lost some of {from}..{next}");
            assert_eq!(server.loads("m", &loads(0..1)).json()["repeated"], 1);
        }
        let (stop, acknowledged) = (AtomicBool::new(false), AtomicU64::new(next));
        let url = server.url.clone();
        std::thread::scope(|scope| {
            let (stop, acknowledged) = (&stop, &acknowledged);
            let poster = scope.spawn(move || {
                let agent = ureq::Agent::new_with_defaults();
                while !stop.load(Ordering::Relaxed) {
                    let at = acknowledged.load(Ordering::Relaxed);
                    // One to three steps per post.
                    let end = at + 1 + at % 3;
                    let body = evenkeel_serve::binary::encode(&loads(at..end));
                    let posted = agent
                        .post(format!("{url}/v1/models/m/loads"))
                        .header("content-type", evenkeel_serve::binary::CONTENT_TYPE)
                        .send(&body[..]);
                    match posted {
                        Ok(_) => acknowledged.store(end, Ordering::Relaxed),
                        Err(ureq::Error::StatusCode(status)) => panic!("{status}"),
                        Err(_) => return true,
                    }
                }
                false
            });
            std::thread::sleep(Duration::from_secs_f64(0.15 * noise(kill)));
            server.kill();
            stop.store(true, Ordering::Relaxed);
            unclear += u64::from(poster.join().unwrap());
        });
        next = acknowledged.load(Ordering::Relaxed);
    }
    let server = Server::start(data.path(), CONFIG);
    // Steps in flight at the last kill may be stored or not. A second post settles that.
    let end = next + 1 + next % 3;
    assert_eq!(server.loads("m", &loads(next..end)).status, 200);
    let state = server.settled("m", "all");
    assert_eq!(state["accepted"].as_u64(), Some(end), "every step counts once");
    let (version, plan) = plan_of(0..end);
    assert_eq!(state["plan"].as_u64(), Some(version));
    assert_eq!(server.get("/v1/models/m/plan").text, plan, "the plan is that of the steps, kills or not");
    println!("{kills} kills, {unclear} of them with a post under way, {end} steps, plan {version}");
    server.terminate();
}

#[test]
fn ending_in_order_saves_and_starting_goes_on() {
    let data = folder();
    let server = Server::start(data.path(), CONFIG);
    server.put_model("m", &json!(shape()));
    server.loads("m", &loads(0..20));
    server.settled("m", "all");
    server.post("/v1/models/m/ranks/3/down");
    // The view without fields that change between two requests.
    let seen = |server: &Server| {
        let mut view = server.get("/v1/models/m/view").json();
        let state = view["state"].as_object_mut().unwrap();
        assert!(state.remove("quiet_seconds").is_some_and(|quiet| quiet.is_u64()));
        assert!(state.remove("last_step_unix_s").is_some_and(|at| at.is_u64()));
        view
    };
    let (plan, view) = (server.get("/v1/models/m/plan"), seen(&server));
    let history = server.get("/v1/models/m/history").json();
    let log = server.terminate();
    assert!(log.iter().any(|line| line.contains("ending")) && log.last().unwrap() == "ended", "{log:?}");
    let server = Server::start(data.path(), CONFIG);
    let again = server.get("/v1/models/m/plan");
    assert_eq!((&again.text, again.header("etag")), (&plan.text, plan.header("etag")));
    assert_eq!(seen(&server), view);
    assert_eq!(server.get("/v1/models/m/history").json(), history);
    server.terminate();
}

#[test]
fn a_full_disk_is_told_and_the_plan_is_served_on() {
    let data = folder();
    let served = command(data.path(), CONFIG);
    // Files may not grow beyond 1.5 MB, which simulates a full disk for one process.
    let mut limited = Command::new("bash");
    limited.arg("-c").arg("trap '' XFSZ; ulimit -f 1500; exec \"$@\"").arg("bash").arg(served.get_program());
    limited.args(served.get_args());
    let server = Server::run(limited, None);
    server.put_model("m", &json!(shape()));
    server.loads("m", &loads(0..20));
    server.settled("m", "all");
    let plan = server.get("/v1/models/m/plan").text;
    let mut at = 20;
    let refused = loop {
        let reply = server.loads("m", &loads(at..at + 400));
        match reply.status {
            200 => at += 400,
            429 => std::thread::sleep(Duration::from_millis(50)),
            _ => break reply,
        }
        assert!(at < 400_000);
    };
    assert_eq!(refused.status, 507, "{}", refused.text);
    assert!(refused.json()["error"].as_str().unwrap().contains("make room"), "{}", refused.text);
    let now = server.get("/v1/models/m/plan");
    assert!(now.status == 200 && !plan.is_empty());
    assert_eq!(server.get("/healthz").status, 200);
    // A rank can still be removed.
    assert_eq!(server.post("/v1/models/m/ranks/1/down").status, 200);
    server.kill();
    // After space is available again, no acknowledged step is missing, and the refused post is accepted.
    let server = Server::start(data.path(), CONFIG);
    server.settled("m", "all");
    let again = server.loads("m", &loads(at - 100..at));
    assert_eq!(again.json()["repeated"], 100, "{}", again.text);
    assert_eq!(server.loads("m", &loads(at..at + 400)).json()["accepted"], 400);
    server.terminate();
}

#[test]
fn stores_that_cannot_be_used_are_refused_with_advice() {
    let data = folder();
    let server = Server::start(data.path(), CONFIG);
    let message = refusal(command(data.path(), CONFIG));
    assert!(message.contains("is in use"), "{message}");
    server.put_model("m", &json!(shape()));
    server.loads("m", &loads(0..20));
    server.terminate();
    let good = std::fs::read(store(data.path())).unwrap();

    let meta: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
    for (schema, part) in [("3", "use the evenkeel that wrote it"), ("1", "another --data folder")] {
        let db = Database::create(store(data.path())).unwrap();
        let tx = db.begin_write().unwrap();
        tx.open_table(meta).unwrap().insert("schema", schema).unwrap();
        tx.commit().unwrap();
        drop(db);
        let message = refusal(command(data.path(), CONFIG));
        assert!(message.contains(&format!("has layout {schema}")) && message.contains(part), "{message}");
    }
    // Many kinds of damage are refused with advice, or harmless. None causes a panic.
    let mut refused = 0;
    for seed in 0..24u64 {
        let mut bad = good.clone();
        match seed % 4 {
            0 => bad.truncate((noise(seed) * good.len() as f64) as usize),
            1 => bad.iter_mut().take(512).for_each(|byte| *byte = 0xff),
            2 => (0..40).for_each(|k| bad[(noise(seed * 100 + k) * good.len() as f64) as usize] ^= 0x55),
            _ => {
                let at = (noise(seed) * (good.len() - 4096) as f64) as usize;
                bad[at..at + 4096].fill(0);
            }
        }
        std::fs::write(store(data.path()), &bad).unwrap();
        let mut start = command(data.path(), CONFIG);
        start.stderr(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = start.spawn().unwrap();
        let mut url = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut url)
            .unwrap();
        if url.starts_with("http") {
            child.kill().unwrap();
        } else {
            refused += 1;
        }
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!text.contains("RUST_BACKTRACE"), "seed {seed}: {text}");
        if !url.starts_with("http") {
            assert_eq!(output.status.code(), Some(1), "seed {seed}: {text}");
            assert!(text.starts_with("error: ") && text.contains("store"), "seed {seed}: {text}");
        }
    }
    assert!(refused >= 6, "{refused}");
}

#[test]
fn the_configuration_is_read_again() {
    let data = folder();
    let server = Server::start(data.path(), CONFIG);
    server.put_model("m", &json!(shape()));
    let every = |server: &Server| server.get("/v1/models/m").json()["decide"]["every"].as_u64();
    assert_eq!(every(&server), Some(6));
    drop(command(
        data.path(),
        &format!("{}\n[models.n]\nranks = 2\n", CONFIG.replace("every = 6", "every = 7")),
    ));
    server.signal("HUP");
    server.said("configuration reloaded");
    assert_eq!(every(&server), Some(7));
    assert_eq!(server.get("/v1/models/n").status, 200);
    drop(command(data.path(), "evry = 7"));
    server.signal("HUP");
    assert!(server.said("not reloaded").contains("unknown field `evry`"));
    drop(command(data.path(), &format!("data = \"elsewhere\"\n{CONFIG}")));
    server.signal("HUP");
    assert!(server.said("configuration reloaded").contains("restart the service to change data"));
    server.terminate();
}
