//! Step numbers of engines that restart, deleted models, and steps without tokens.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::serve_support::{CONFIG, EXPERTS, LAYERS, Server, command, folder, loads, shape, step, store};
use evenkeel_serve::{
    AcceptedStep, ControllerConfig, DecisionOutcome, Loads, MAX_STEP_JUMP, ModelSpec, Phase, PhaseCommand,
    PhaseState, StepLoads, Trigger,
};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::atomic::AtomicBool;

/// Returns steps of the artificial model with other numbers.
fn renumbered(first: u64, steps: std::ops::Range<u64>) -> Loads {
    let mut loads = loads(steps);
    (first..).zip(&mut loads.steps).for_each(|(id, step)| step.id = id);
    loads
}

fn with_model() -> (tempfile::TempDir, Server) {
    let data = folder();
    let server = Server::start(data.path(), CONFIG);
    assert_eq!(server.put_model("m", &json!(shape())).status, 201);
    (data, server)
}

#[test]
fn an_engine_that_starts_again_is_accepted() {
    let (data, server) = with_model();
    let mut events = std::net::TcpStream::connect(server.address()).unwrap();
    write!(events, "GET /v1/models/m/events HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert_eq!(server.loads("m", &loads(0..40)).json()["accepted"], 40);
    // Other counts for the first number show that the counter restarted.
    let second = server.loads("m", &renumbered(0, 100..101));
    assert_eq!((second.status, second.json()["run"].as_u64()), (200, Some(2)), "{}", second.text);
    let more = server.loads("m", &renumbered(0, 100..180)).json();
    assert_eq!((more["accepted"].as_u64(), more["repeated"].as_u64()), (Some(79), Some(1)));
    assert!(server.said("run 2 (id none) begins at step 0").contains("m/all"));
    let mut lines = BufReader::new(events).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "event: run"));
    let event: Value = serde_json::from_str(lines.next().unwrap().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!((&event["run"], &event["step"], &event["accepted"]), (&json!(2), &json!(0), &json!(41)));
    // With a run id, no restart has to be recognised.
    assert_eq!(server.loads_of("m", "boot-3", &renumbered(0, 100..110)).json()["run"], 3);
    let state = server.settled("m", "all");
    assert_eq!((state["accepted"].as_u64(), &state["run"]["id"]), (Some(130), &json!("boot-3")));
    server.kill();
    // Runs survive a restart of the service.
    let server = Server::start(data.path(), CONFIG);
    let again = server.loads_of("m", "boot-3", &renumbered(5, 105..111)).json();
    assert_eq!((again["accepted"].as_u64(), again["repeated"].as_u64()), (Some(1), Some(5)));
    server.loads_of("m", "boot-4", &renumbered(0, 0..3));
    let late = server.loads_of("m", "boot-3", &renumbered(20, 0..1));
    assert!(late.status == 409 && late.text.contains("run boot-3 has ended"), "{}", late.text);
    let wrong = server.loads_of("m", "a%20b", &loads(0..1));
    assert!(wrong.status == 400 && wrong.text.contains("run: "), "{}", wrong.text);
    assert_eq!(server.settled("m", "all")["accepted"], 134);
    server.terminate();
}

#[test]
fn one_number_far_ahead_stops_nobody() {
    let (_data, server) = with_model();
    server.loads("m", &loads(0..3));
    let far = server.loads("m", &renumbered(i64::MAX as u64, 3..4));
    assert!(far.status == 409 && far.text.contains(&MAX_STEP_JUMP.to_string()), "{}", far.text);
    assert_eq!(server.loads("m", &loads(3..5)).json()["accepted"], 2);
    // The largest number is accepted as the first of all. A counter from 0 is another run.
    server.put_model("n", &json!(shape()));
    assert_eq!(server.loads("n", &renumbered(i64::MAX as u64, 0..1)).json()["accepted"], 1);
    assert_eq!(server.loads("n", &loads(0..5)).json()["run"], 2);
    server.terminate();
}

#[test]
fn models_are_deleted_and_shapes_corrected() {
    let (data, server) = with_model();
    // A shape can be corrected until a step is accepted.
    assert_eq!(server.put_model("m", &json!({"ranks": 8, "redundant": 8})).status, 201);
    assert_eq!(server.put_model("m", &json!(shape())).status, 201);
    server.loads("m", &loads(0..20));
    server.settled("m", "all");
    assert_eq!(server.put_model("m", &json!({"ranks": 8, "redundant": 8})).status, 409);
    assert_eq!(server.loads("m", &loads(20..21)).status, 200, "a refused shape changes nothing");
    let delete =
        |server: &Server, name: &str| server.send("DELETE", &format!("/v1/models/{name}"), &[], None);
    assert_eq!(delete(&server, "m").status, 204);
    assert_eq!((delete(&server, "m").status, server.get("/v1/models/m").status), (404, 404));
    assert_eq!(server.put_model("m", &json!({"ranks": 8, "redundant": 8})).status, 201);
    assert_eq!(server.loads("m", &loads(0..20)).json()["accepted"], 20, "its steps are deleted with it");
    server.put_model("n", &json!(shape()));
    server.loads("n", &loads(0..20));
    assert_eq!(delete(&server, "n").status, 204);
    server.kill();
    let server = Server::start(data.path(), CONFIG);
    assert_eq!(server.settled("m", "all")["accepted"], 20);
    assert_eq!(server.get("/v1/models/n").status, 404);
    server.terminate();
    // A model of the configuration is created again, empty.
    let server =
        Server::run(command(data.path(), &format!("{CONFIG}\n[models.c]\nranks = 4\nredundant = 8\n")), None);
    server.loads("c", &loads(0..20));
    assert_eq!(delete(&server, "c").status, 204);
    assert_eq!(server.get("/v1/models/c").json()["phases"], json!([]));
    server.terminate();
}

/// Returns steps of an artificial model whose loads change after 72 steps with tokens. Each is followed by
/// `idle` steps without tokens.
fn with_idle(idle: u64) -> Vec<StepLoads> {
    let mut steps = vec![];
    for live in 0..136u64 {
        let mut counts: Vec<u32> = step(live % 12).counts.to_vec();
        if live >= 72 {
            counts.reverse();
        }
        steps.push(StepLoads { id: live * (idle + 1), counts: counts.into() });
        for more in 1..=idle {
            steps.push(StepLoads { id: live * (idle + 1) + more, counts: vec![0; LAYERS * EXPERTS].into() });
        }
    }
    steps
}

fn drift_options() -> ControllerConfig {
    ControllerConfig {
        policy: "eplb".into(),
        every: 64,
        window: 64,
        move_cost: Some(0.05),
        copy_share: None,
        ..ControllerConfig::default()
    }
}

#[test]
fn steps_without_tokens_decide_nothing() {
    let shape: ModelSpec = serde_json::from_value(json!({"ranks": 4, "redundant": 8})).unwrap();
    let decisions = |idle: u64| {
        let mut lane =
            PhaseState::new(shape.clone(), drift_options(), Phase::All, vec![1, 2, 5], EXPERTS).unwrap();
        let never = AtomicBool::new(false);
        let mut decisions = vec![];
        for step in with_idle(idle) {
            let seen = AcceptedStep { accepted: lane.accepted_steps() + 1, step };
            if let Some(trigger) = lane.apply_step(seen, 0).unwrap() {
                let ask = PhaseCommand::Replan { trigger, dry_run: false };
                let proposal = lane.propose(&ask, &never).unwrap().unwrap();
                lane.apply_proposal(&proposal).unwrap();
                let decision = proposal.decision;
                let live = decision.accepted.div_ceil(idle + 1);
                decisions.push((
                    live,
                    decision.trigger,
                    decision.outcome,
                    decision.imbalance,
                    decision.moves,
                ));
            }
        }
        assert!(lane.last_imbalance().unwrap().0 >= 1.0, "no step without tokens counts as a perfect one");
        (decisions, lane.current_plan().unwrap().layers)
    };
    let without = decisions(0);
    let drift = without.0.iter().find(|d| d.1 == Trigger::Drift && d.0 > 72).expect("a drift");
    assert_eq!((drift.0, drift.2), (73, DecisionOutcome::Applied), "noticed in one live step");
    for idle in [1, 3, 40] {
        assert_eq!(decisions(idle), without, "{idle} idle steps behind each");
    }
}

#[test]
fn an_idle_night_leaves_nothing_behind() {
    let (data, server) = with_model();
    server.loads("m", &loads(0..30));
    let before = server.settled("m", "all");
    let metrics = |server: &Server| {
        let text = server.get("/metrics").text;
        text.lines().find(|line| line.starts_with("evenkeel_imbalance{")).unwrap().to_owned()
    };
    let shown = metrics(&server);
    for post in 0..5u64 {
        let idle =
            |at: u64| StepLoads { id: 30 + 4000 * post + at, counts: vec![0; LAYERS * EXPERTS].into() };
        let loads = Loads { steps: (0..4000).map(idle).collect(), ..loads(0..1) };
        while server.loads_of("m", "night", &loads).status == 429 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    let after = server.settled("m", "all");
    assert_eq!(after["accepted"], 20_030);
    for key in ["plan", "decisions", "latest", "due_in"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert_eq!(metrics(&server), shown);
    let history = server.get("/v1/models/m/history").json();
    let points = history["points"].as_array().unwrap();
    assert!(points.len() == 30 && points.iter().all(|point| point["mean"].as_f64().unwrap() >= 1.0));
    server.kill();
    let server = Server::start(data.path(), CONFIG);
    assert_eq!(server.settled("m", "all")["accepted"], 20_030);
    assert_eq!(server.get("/v1/models/m/history").json()["points"].as_array().unwrap().len(), 30);
    server.terminate();
    let steps: TableDefinition<'_, (u32, u8, u64), (u64, &[u8])> = TableDefinition::new("steps");
    let db = Database::open(store(data.path())).unwrap();
    let stored = db.begin_read().unwrap().open_table(steps).unwrap().iter().unwrap().count();
    assert!(stored <= 40, "{stored} steps are stored");
}

/// Runs a script of tests/data/cases against a service with the defaults.
fn script(name: &str, more: &[&str]) -> String {
    let data = folder();
    let server = Server::start(data.path(), "");
    let path = format!("{}/../tests/data/cases/{name}", env!("CARGO_MANIFEST_DIR"));
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let output = std::process::Command::new(python).arg(path).arg(&server.url).args(more).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    server.terminate();
    text
}

#[test]
fn scripts_of_engines_that_restart_and_idle_are_served() {
    let restart = script("serve-restart.py", &[]);
    let lines: Vec<&str> = restart.lines().collect();
    assert!(lines[..3].iter().all(|line| line.contains("(200, ")), "{restart}");
    assert!(lines[1].contains("\"accepted\":1") && lines[2].contains("\"accepted\":79"), "{restart}");
    assert!(lines[3].contains("204"), "{restart}");
    // The drift is noticed in one step with tokens, for any number of idle steps between them.
    let drift = |idle: u64| {
        let text = script("serve-idle-steps.py", &[&idle.to_string()]);
        assert!(text.contains("points below 1, which no imbalance can be: 0 of 136"), "{text}");
        // The loads change after 72 steps. Smaller rises before are noticed too.
        let drifts = text.lines().filter(|line| line.contains(" drift "));
        let accepted = drifts.map(|line| line.split(' ').next().unwrap().parse::<u64>().unwrap());
        let mut live = accepted.map(|accepted| accepted.div_ceil(idle + 1));
        live.find(|&live| live > 72).unwrap_or_else(|| panic!("{text}"))
    };
    assert_eq!([0, 1, 3].map(drift), [73; 3]);
}
