//! `evenkeel serve` from the view of its clients: every path, through the real program on loopback.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::serve_support::{CONFIG, Server, folder, loads, plan_of, shape};
use evenkeel::export::{Dialect, write};
use evenkeel::plan::Plan;
use evenkeel_serve::{Loads, Phase, binary};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

fn with_model(config: &str) -> (tempfile::TempDir, Server) {
    let data = folder();
    let server = Server::start(data.path(), config);
    assert_eq!(server.put_model("m", &json!(shape())).status, 201);
    (data, server)
}

#[test]
fn models_are_made_once_and_told_by_name() {
    let (_data, server) = with_model(CONFIG);
    assert_eq!(server.put_model("m", &json!(shape())).status, 200);
    server.loads("m", &loads(0..1));
    let other = server.put_model("m", &json!({"ranks": 8}));
    assert_eq!(other.status, 409, "{}", other.text);
    assert!(other.json()["expected"].as_str().unwrap().contains("\"ranks\":4"));
    for (name, shape, status) in [
        ("n", json!({"ranks": 0}), 422),
        ("n", json!({"ranks": 4, "model": "gpt-9"}), 422),
        ("n", json!({"ranks": 4, "colour": 1}), 400),
        ("n%20n", json!({"ranks": 4}), 400),
    ] {
        let reply = server.put_model(name, &shape);
        assert_eq!(reply.status, status, "{name} {shape}: {}", reply.text);
    }
    let missing = server.get("/v1/models/x/plan");
    assert_eq!((missing.status, missing.json()["error"].as_str()), (404, Some("no model \"x\"")));
    assert_eq!(server.get("/v1/models").json()["models"].as_array().unwrap().len(), 1);
    assert_eq!(server.get("/nowhere").status, 404);
    assert_eq!(server.post("/v1/models").status, 405);
    assert!(server.get("/").text.contains("<title>"));
    server.terminate();
}

#[test]
fn loads_are_taken_once_in_both_forms() {
    let (_data, server) = with_model(CONFIG);
    assert_eq!(server.get("/v1/models/m/plan").status, 404);
    let first = server.loads("m", &loads(0..3));
    assert_eq!((first.status, first.json()["accepted"].as_u64()), (200, Some(3)), "{}", first.text);
    let path = "/v1/models/m/loads";
    let kind = [("content-type", binary::CONTENT_TYPE)];
    let again = server.send("POST", path, &kind, Some(&binary::encode(&loads(1..5)))).json();
    assert_eq!((again["accepted"].as_u64(), again["repeated"].as_u64()), (Some(2), Some(2)));
    // Step 2 arrives with other counts, so the whole post is refused.
    let mut wrong = loads(7..9);
    wrong.steps[1].id = 2;
    let refused = server.loads("m", &wrong);
    assert_eq!(refused.status, 409, "{}", refused.text);
    assert!(refused.json()["error"].as_str().unwrap().contains("step 2"));
    assert_eq!(server.settled("m", "all")["accepted"], 5);
    let narrow = Loads { layers: vec![1, 2, 6], ..loads(9..10) };
    assert_eq!(server.loads("m", &narrow).status, 422);
    let garbage = server.send("POST", path, &kind, Some(b"EKLD"));
    assert!(
        garbage.status == 400 && garbage.json()["error"].as_str().unwrap().contains("byte 4"),
        "{}",
        garbage.text
    );
    assert_eq!(server.send("POST", path, &[("content-type", "text/csv")], Some(b"1,2")).status, 415);
    server.terminate();
}

#[test]
fn the_plan_is_that_of_the_decision_core_in_every_dialect() {
    let (_data, server) = with_model(CONFIG);
    for at in 0..40 {
        assert_eq!(server.loads("m", &loads(at..at + 1)).status, 200);
    }
    let state = server.settled("m", "all");
    let (version, expected) = plan_of(0..40);
    assert!(version > 2, "{version}");
    assert_eq!(state["plan"].as_u64(), Some(version));
    let reply = server.get("/v1/models/m/plan");
    assert_eq!(reply.text, expected);
    assert_eq!(reply.header("evenkeel-plan-version"), Some(version.to_string().as_str()));
    assert_eq!(reply.header("evenkeel-ranks"), Some("0,1,2,3"));
    let plan = Plan::from_json(&reply.text).unwrap();
    for dialect in Dialect::ALL {
        let text = server.get(&format!("/v1/models/m/plan?format={dialect}"));
        match write(&plan, dialect) {
            Ok(expected) => assert_eq!(text.text, expected),
            Err(error) => {
                assert!(text.status == 422 && text.text.contains(&error.to_string()), "{}", text.text);
            }
        }
    }
    let etag = reply.header("etag").unwrap().to_owned();
    let same = server.send("GET", "/v1/models/m/plan", &[("if-none-match", &etag)], None);
    assert_eq!((same.status, same.text.as_str()), (304, ""));
    for (query, status) in [
        ("?format=x", 400),
        ("?wait=-1", 400),
        ("?phase=both", 400),
        ("?colour=1", 400),
        ("?phase=decode", 404),
    ] {
        assert_eq!(server.get(&format!("/v1/models/m/plan{query}")).status, status, "{query}");
    }
    // The history has every step once, a decision for every change of plan, and reasons in words.
    let history = server.get("/v1/models/m/history").json();
    let points = history["points"].as_array().unwrap();
    assert_eq!(points.iter().map(|p| p["steps"].as_u64().unwrap()).sum::<u64>(), 40);
    let decisions = history["decisions"].as_array().unwrap();
    let acted = decisions.iter().filter(|d| d["outcome"] == "applied").count();
    assert_eq!(acted as u64, version);
    assert!(decisions.iter().all(|d| !d["reason"].as_str().unwrap().is_empty()));
    server.terminate();
}

#[test]
fn waiting_for_a_plan_ends_when_it_comes() {
    let (_data, server) = with_model(CONFIG);
    server.loads("m", &loads(0..1));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.get("/v1/models/m/plan?wait=30"));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        server.loads("m", &loads(1..4));
        let first = waiting.join().unwrap();
        assert_eq!(first.header("evenkeel-plan-version"), Some("1"), "{}", first.text);
        let etag = first.header("etag").unwrap().to_owned();
        let begun = Instant::now();
        let same = server.send("GET", "/v1/models/m/plan?wait=0.2", &[("if-none-match", &etag)], None);
        assert_eq!(same.status, 304);
        assert!(begun.elapsed() >= Duration::from_millis(200));
        let (server, known) = (&server, etag.clone());
        let waiting = scope.spawn(move || {
            server.send("GET", "/v1/models/m/plan?wait=30", &[("if-none-match", &known)], None)
        });
        server.loads("m", &loads(4..40));
        let next = waiting.join().unwrap();
        assert!(next.status == 200 && next.header("etag") != Some(etag.as_str()));
    });
    server.terminate();
}

#[test]
fn what_happens_is_streamed() {
    let (_data, server) = with_model(CONFIG);
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(crate::serve_support::PATIENCE)).unwrap();
    write!(stream, "GET /v1/models/m/events HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().contains("200"));
    server.loads("m", &loads(0..4));
    let mut seen = vec![];
    while !seen.contains(&"plan".to_owned()) {
        let line = lines.next().unwrap();
        if let Some(name) = line.strip_prefix("event: ") {
            let data = lines.next().unwrap();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(data["phase"], "all");
            seen.push(name.to_owned());
        }
    }
    assert!(seen.contains(&"planning".into()) && seen.contains(&"decision".into()), "{seen:?}");
    // An open stream does not keep the service from ending.
    let begun = Instant::now();
    server.terminate();
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn asking_shows_before_it_acts() {
    let (_data, server) =
        with_model(&CONFIG.replace("every = 6", "every = 1000").replace("min_every = 3", "min_every = 1000"));
    assert_eq!(server.post("/v1/models/m/replan").status, 404);
    server.loads("m", &loads(0..30));
    let before = server.settled("m", "all");
    let shown = server.post("/v1/models/m/replan?dry_run=true").json();
    assert_eq!(shown["decision"]["outcome"], "dry_run", "{shown}");
    let moves = shown["preview"]["moves"].as_array().unwrap().len();
    assert!(moves > 0 && shown["decision"]["moves"].as_u64() == Some(moves as u64));
    assert!(
        shown["decision"]["imbalance"]["after"].as_f64() < shown["decision"]["imbalance"]["before"].as_f64()
    );
    let after = server.settled("m", "all");
    assert_eq!(
        (&before["plan"], &before["decisions"]),
        (&after["plan"], &after["decisions"]),
        "it left no trace"
    );
    let made = server.post("/v1/models/m/replan").json();
    assert_eq!(
        (made["decision"]["outcome"].as_str(), &made["preview"]["moves"]),
        (Some("applied"), &shown["preview"]["moves"])
    );
    assert_eq!(server.settled("m", "all")["plan"], 2);
    server.terminate();
}

#[test]
fn dry_runs_publish_nothing() {
    let (_data, server) = with_model(&format!("{CONFIG}dry_run = true\n"));
    server.loads("m", &loads(0..30));
    server.settled("m", "all");
    assert_eq!(server.get("/v1/models/m/plan").status, 404);
    let history = server.get("/v1/models/m/history").json();
    let decisions = history["decisions"].as_array().unwrap();
    assert!(!decisions.is_empty() && decisions.iter().all(|d| d["outcome"] == "dry_run"), "{decisions:?}");
    server.terminate();
}

#[test]
fn ranks_go_and_come_back() {
    let (_data, server) = with_model(CONFIG);
    server.loads("m", &loads(0..10));
    server.settled("m", "all");
    let down = server.post("/v1/models/m/ranks/2/down").json();
    let decision = &down["decisions"][0];
    assert_eq!(
        (decision["trigger"].as_str(), decision["outcome"].as_str()),
        (Some("rank_down"), Some("applied")),
        "{down}"
    );
    let reply = server.get("/v1/models/m/plan");
    assert_eq!(reply.header("evenkeel-ranks"), Some("0,1,3"));
    assert_eq!(Plan::from_json(&reply.text).unwrap().cluster.ranks(), 3);
    assert_eq!(server.post("/v1/models/m/ranks/2/down").status, 409);
    assert_eq!(server.post("/v1/models/m/ranks/4/down").status, 404);
    let view = server.get("/v1/models/m/view").json();
    assert_eq!(view["ranks"], json!([0, 1, 3]));
    assert!(
        view["heat"].as_array().unwrap().iter().all(|layer| layer["ranks"].as_array().unwrap().len() == 3)
    );
    // Planning continues without the rank, and later with it again.
    server.loads("m", &loads(10..20));
    server.settled("m", "all");
    let up = server.post("/v1/models/m/ranks/2/up").json();
    assert_eq!(up["decisions"][0]["outcome"], "applied");
    let plan = Plan::from_json(&server.get("/v1/models/m/plan").text).unwrap();
    assert_eq!(plan.cluster.ranks(), 4);
    // With one more rank down, 12 slots remain for 16 experts.
    assert_eq!(server.post("/v1/models/m/ranks/0/down").status, 200);
    let last = server.post("/v1/models/m/ranks/1/down");
    assert!(last.status == 422 && last.text.contains("12 slots are left"), "{}", last.text);
    server.terminate();
}

#[test]
fn prefill_and_decode_have_plans_of_their_own() {
    let (_data, server) = with_model(CONFIG);
    for (phase, steps) in [(Phase::Prefill, 0..8), (Phase::Decode, 60..68)] {
        assert_eq!(server.loads("m", &Loads { phase, ..loads(steps) }).status, 200);
        server.settled("m", phase.name());
    }
    let which = server.get("/v1/models/m/plan");
    assert!(which.status == 400 && which.text.contains("prefill, decode"), "{}", which.text);
    let plan = |phase: &str| server.get(&format!("/v1/models/m/plan?phase={phase}")).text;
    assert_ne!(
        Plan::from_json(&plan("prefill")).unwrap().layers,
        Plan::from_json(&plan("decode")).unwrap().layers
    );
    let down = server.post("/v1/models/m/ranks/1/down").json();
    assert_eq!(down["decisions"].as_array().unwrap().len(), 2);
    server.terminate();
}

#[test]
fn the_view_has_what_a_page_shows_and_metrics_are_bounded() {
    let (_data, server) = with_model(CONFIG);
    server.loads("m", &loads(0..30));
    server.settled("m", "all");
    let view = server.get("/v1/models/m/view").json();
    assert_eq!((view["heat"].as_array().unwrap().len(), view["steps"].as_u64()), (3, Some(16)));
    let hot = &view["hottest"][0];
    assert!(hot["over_mean"].as_f64().unwrap() > 2.0 && hot["replicas"].as_u64().unwrap() >= 1, "{hot}");
    assert_eq!(hot["ranks"].as_array().unwrap().len() as u64, hot["replicas"].as_u64().unwrap());
    assert!(
        view["preview"]["layers"].as_array().unwrap().iter().all(|l| l["ranks_after"]
            .as_array()
            .unwrap()
            .len()
            == 4)
    );
    let metrics = server.get("/metrics").text;
    let series = metrics.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series < 40, "{series}");
    for part in [
        "evenkeel_rank_load{model=\"m\",phase=\"all\",rank=\"3\"}",
        "evenkeel_steps_accepted_total 30",
        "# EOF",
    ] {
        assert!(metrics.contains(part), "{part}: {metrics}");
    }
    assert_eq!(server.get("/healthz").json()["status"], "ok");
    assert_eq!(server.get("/readyz").status, 200);
    let document = server.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    for path in
        ["/v1/models/{model}/loads", "/v1/models/{model}/ranks/{rank}/down", "/metrics", "/openapi.json"]
    {
        assert!(paths.contains_key(path), "{path}");
    }
    assert_eq!(paths.len(), 14);
    let wait = document["paths"]["/v1/models/{model}/plan"]["get"]["parameters"].as_array().unwrap();
    assert!(
        wait.iter().any(|parameter| parameter["name"] == "wait" && parameter["in"] == "query"),
        "{wait:?}"
    );
    server.terminate();
}

/// Returns the blocks of a language in a Markdown file.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_documentation_lists_the_defaults() {
    use evenkeel_serve::ServiceConfig;
    use std::path::Path;
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/serve.md")).unwrap();
    let [all, models] = blocks(&text, "toml").try_into().unwrap();
    let (mut listed, default) =
        (ServiceConfig::from_toml(&all, Path::new("docs")).unwrap(), ServiceConfig::default());
    assert_eq!(listed.controller_config(None).unwrap(), default.controller_config(None).unwrap());
    let keys = serde_json::to_value(default.controller_config(None).unwrap()).unwrap();
    assert_eq!(listed.decide.len(), keys.as_object().unwrap().len(), "every key of [decide] is listed");
    listed.decide = default.decide.clone();
    assert_eq!(listed, default);
    let config = ServiceConfig::from_toml(&models, Path::new("docs")).unwrap();
    assert_eq!((config.models["r1"].ranks, config.source.len()), (32, 1));
}
