//! The price of a move in `evenkeel serve`. The tests cover assumed values, their report, and the share of
//! time that copies may take.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::command::{document, refusal, stdout};
use crate::serve_support::{EXPERTS, Server, folder, loads, step};
use evenkeel_serve::{
    AcceptedStep, Backtest, ControllerConfig, Decision, DecisionOutcome, ModelSpec, Phase, PhaseCommand,
    PhaseState, Trigger, backtest,
};
use evenkeel_trace::{self as trace, ReadOptions, Trace};
use serde_json::{Value, json};
use std::sync::atomic::AtomicBool;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../traces/sample-decode.csv.zst");

/// Returns the first steps of two layers of the sample.
fn sample(steps: usize) -> Trace {
    let trace = trace::read(&[SAMPLE.into()], &ReadOptions::default(), &()).unwrap();
    let layers = [0, 1];
    let counts = (0..steps).flat_map(|step| layers.iter().flat_map(move |&layer| [(step, layer)]));
    let counts: Vec<u64> = counts.flat_map(|(step, layer)| trace.loads(step, layer).to_vec()).collect();
    let labels = (0..steps).map(|step| step.to_string()).collect();
    Trace::from_loads(trace.experts(), layers.map(|layer| trace.layers()[layer]).to_vec(), labels, counts)
        .unwrap()
}

fn shape_of(value: Value) -> ModelSpec {
    serde_json::from_value(value).unwrap()
}

/// Returns options with the real policy, few iterations and frequent decisions.
fn often() -> ControllerConfig {
    ControllerConfig {
        policy: "recourse:iterations=1000".into(),
        every: 8,
        drift: 0.0,
        min_gain: 0.0,
        ..ControllerConfig::default()
    }
}

/// Asserts at every decision that copies, one after the other over one link, have taken at most this share of
/// the steps' time.
fn keeps_to(share: f64, step_ms: f64, online: &Backtest) {
    let mut spent = 0.0;
    for decision in &online.decisions {
        spent += decision.copy_ms;
        let passed = decision.accepted as f64 * step_ms;
        assert!(spent <= share * passed, "{spent} ms of {passed} ms: {decision:?}");
    }
    assert!((spent - online.copies.spent_ms).abs() < 1e-6, "{spent} {:?}", online.copies);
    assert!(online.copies.spent_share <= share);
}

#[test]
fn copies_take_at_most_one_percent_of_the_time() {
    let (trace, shape) = (sample(240), shape_of(json!({"ranks": 16, "redundant": 16})));
    // The defaults, over a link that is fast enough for moves to pay.
    let fast = shape_of(json!({"ranks": 16, "redundant": 16, "link_gbps": 8000}));
    for shape in [&shape, &fast] {
        keeps_to(0.01, 10.0, &backtest(&trace, shape, &often()).unwrap());
    }
    // At a price that nearly every move pays, only the share limits moves. A copy takes 4 ms.
    let shape = shape_of(json!({"ranks": 16, "redundant": 16, "link_gbps": 100}));
    let cheap = ControllerConfig { move_cost: Some(0.05), ..often() };
    let unlimited = backtest(&trace, &shape, &cheap).unwrap();
    assert_eq!(unlimited.copies.copy_share, None);
    assert!(unlimited.copies.spent_share > 0.02, "{:?}", unlimited.copies);
    let limited = backtest(&trace, &shape, &ControllerConfig { copy_share: Some(0.01), ..cheap }).unwrap();
    keeps_to(0.01, 10.0, &limited);
    assert!(limited.copies.spent_share > 0.005, "{:?}", limited.copies);
    assert!(limited.decisions.iter().any(|d| d.reason.contains("wait: copies may take 1 % of the time")));
    // Longer steps leave time for more copies.
    let cheap = ControllerConfig { move_cost: Some(0.05), copy_share: Some(0.01), step_ms: 25.0, ..often() };
    let longer = backtest(&trace, &shape, &cheap).unwrap();
    keeps_to(0.01, 25.0, &longer);
    assert!(longer.moves > limited.moves, "{} {}", longer.moves, limited.moves);
}

#[test]
fn a_stated_price_is_the_price_and_sets_no_limit() {
    let trace = sample(64);
    let options = ControllerConfig { move_cost: Some(0.4), ..often() };
    let bare = backtest(&trace, &shape_of(json!({"ranks": 16, "redundant": 16})), &options).unwrap();
    let shape =
        json!({"ranks": 16, "redundant": 16, "model": "gpt-oss-20b", "gpu": "h100", "link_gbps": 400});
    let named = backtest(&trace, &shape_of(shape), &options).unwrap();
    assert!(bare.moves > 0);
    assert_eq!(bare.moves, named.moves);
    for (one, other) in bare.decisions.iter().zip(&named.decisions) {
        assert!(one.cost_ms > 0.0 || one.moves == 0, "{one:?}");
        assert_eq!((one.cost_ms, one.gain_ms, &one.reason), (other.cost_ms, other.gain_ms, &other.reason));
    }
    assert_eq!((bare.copies.move_cost, bare.copies.copy_share), (Some(0.4), None));
}

/// Returns decisions without the fields that depend on the clock.
fn timeless(decisions: Vec<Decision>) -> Vec<Decision> {
    decisions
        .into_iter()
        .map(|decision| Decision { duration_ms: 0.0, timestamp_unix_s: 0, ..decision })
        .collect()
}

#[test]
fn a_killed_service_goes_on_with_what_copies_have_left() {
    let config = "[decide]\npolicy = \"eplb\"\nfirst_after = 4\nevery = 6\nmin_every = 3\nmax_moves = 3\nwindow = 16\njudged = 8\n\
                  max_lag = 100000\nmove_cost = 0.5\ncopy_share = 0.01\nstep_ms = 60\n";
    let options = evenkeel_serve::ServiceConfig::from_toml(config, std::path::Path::new("test")).unwrap();
    let options = options.controller_config(None).unwrap();
    let shape = json!({"ranks": 4, "redundant": 8, "link_gbps": 100});
    let mut lane =
        PhaseState::new(shape_of(shape.clone()), options, Phase::All, vec![1, 2, 5], EXPERTS).unwrap();
    let (mut decisions, never) = (vec![], AtomicBool::new(false));
    for id in 0..90 {
        let seen = AcceptedStep { accepted: id + 1, step: step(id) };
        if let Some(trigger) = lane.apply_step(seen, 0).unwrap() {
            let proposal =
                lane.propose(&PhaseCommand::Replan { trigger, dry_run: false }, &never).unwrap().unwrap();
            lane.apply_proposal(&proposal).unwrap();
            decisions.push(proposal.decision);
        }
    }
    let held = |d: &Decision| d.reason.contains("wait: copies may take");
    assert!(decisions.iter().any(held) && decisions[1..].iter().any(|d| d.moves > 0), "{decisions:#?}");
    let data = folder();
    let server = Server::start(data.path(), config);
    server.put_model("m", &shape);
    server.loads("m", &loads(0..30));
    server.loads("m", &loads(30..60));
    server.settled("m", "all");
    server.loads("m", &loads(60..90));
    server.kill();
    let server = Server::start(data.path(), config);
    let state = server.settled("m", "all");
    let history: Vec<Decision> =
        serde_json::from_value(server.get("/v1/models/m/history").json()["decisions"].clone()).unwrap();
    assert_eq!(timeless(history), timeless(decisions));
    assert_eq!(state["copies"], serde_json::to_value(lane.copy_status()).unwrap());
    let gains = lane.gain_status();
    assert!(gains.calm.trials + gains.after_break.trials > 0, "{gains:?}");
    assert_eq!(state["gains"], serde_json::to_value(gains).unwrap());
    server.terminate();
}

#[test]
fn copies_that_cannot_wait_are_a_debt() {
    let options = ControllerConfig { policy: "eplb".into(), first_after: 4, ..ControllerConfig::default() };
    let shape = shape_of(json!({"ranks": 4, "redundant": 8}));
    let mut lane = PhaseState::new(shape, options, Phase::All, vec![1, 2, 5], EXPERTS).unwrap();
    let never = AtomicBool::new(false);
    let ask = |lane: &mut PhaseState, ask: PhaseCommand| {
        let proposal = lane.propose(&ask, &never).unwrap().unwrap();
        lane.apply_proposal(&proposal).unwrap();
        proposal.decision
    };
    for id in 0..4 {
        lane.apply_step(AcceptedStep { accepted: id + 1, step: step(id) }, 0).unwrap();
    }
    let first = ask(&mut lane, PhaseCommand::Replan { trigger: Trigger::First, dry_run: false });
    assert_eq!(
        (first.outcome, first.copy_ms),
        (DecisionOutcome::Applied, 0.0),
        "the first plan comes with the weights"
    );
    let down = ask(&mut lane, PhaseCommand::Down(1));
    let copies = lane.copy_status();
    assert!(down.moves > 0 && copies.available_ms.unwrap() < 0.0, "{copies:?}");
    assert!((copies.spent_ms - down.copy_ms).abs() < 1e-9);
}

#[test]
fn what_is_assumed_is_said() {
    let data = folder();
    // Prices do not depend on the effort of a search, and the default one takes minutes in tests.
    let server = Server::start(data.path(), "[decide]\npolicy = \"recourse:exact:iterations=2000\"\n");
    let replay = |name: &str, more: &[&str]| {
        let fixed = ["trace", "replay", SAMPLE, "--to", &server.url, "--name", name, "--layers", "0,1"];
        [&fixed[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |args: Vec<String>| stdout(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let text = run(replay("bare", &["--ranks", "16", "--redundant", "16", "--speed", "2000"]));
    assert!(text.contains("an expert of gpt-oss-20b:bf16 (assumed) over 374 Gbit/s (assumed)"), "{text}");
    assert!(text.contains("copies may take 1 % of the time, at 10 ms a step"), "{text}");
    let line = server.said("bare/all: a copy takes");
    assert!(line.contains("1.06 ms") && line.contains("batches run on h100 (assumed)"), "{line}");
    let copies = server.settled("bare", "all")["copies"].clone();
    assert_eq!(copies["assumed"], json!(["model", "gpu", "link_gbps"]));
    assert_eq!((copies["copy_share"].as_f64(), copies["step_ms"].as_f64()), (Some(0.01), Some(10.0)));
    assert!(copies["spent_share"].as_f64().unwrap() <= 0.01, "{copies}");
    let view = server.get("/v1/models/bare/view").json();
    assert_eq!(view["state"]["copies"]["model"], "gpt-oss-20b:bf16");
    // Stated names are posted, and nothing is assumed.
    let stated =
        ["--ranks", "16", "--redundant", "16", "--model", "gpt-oss-20b:fp8,h200", "--link-gbps", "400"];
    run(replay("stated", &stated));
    let model = server.get("/v1/models/stated").json();
    assert_eq!(
        (&model["shape"]["model"], &model["shape"]["gpu"], &model["shape"]["link_gbps"]),
        (&json!("gpt-oss-20b:fp8"), &json!("h200"), &json!(400))
    );
    assert_eq!(model["phases"][0]["copies"]["assumed"], json!([]));
    // A link can be stated alone. The model is still assumed.
    run(replay("link", &["--ranks", "16", "--redundant", "16", "--link-gbps", "50"]));
    let model = server.get("/v1/models/link").json();
    assert_eq!(model["phases"][0]["copies"]["assumed"], json!(["model", "gpu"]));
    let other = replay("stated", &["--link-gbps", "50"]);
    let message = refusal(&other.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(message.contains("link_gbps = 400") && message.contains("another --name"), "{message}");
    server.terminate();
}

#[test]
fn a_trace_without_a_server_has_the_same_price() {
    let args = [
        "simulate",
        "backtest",
        SAMPLE,
        "--ranks",
        "16",
        "--redundant",
        "16",
        "--layers",
        "0",
        "--skip-every-batch",
    ];
    let decide = ["--decide", "policy = \"eplb\", every = 200, drift = 0.0"];
    let bare = document(&[&args[..], &decide, &["--json"]].concat());
    assert_eq!(bare["copies"]["model"], "gpt-oss-20b:bf16");
    let stated = ["--model", "deepseek-v3,h200", "--link-gbps", "200"];
    let stated = document(&[&args[..], &decide, &stated, &["--json"]].concat());
    assert_eq!((&stated["copies"]["gpu"], &stated["copies"]["assumed"]), (&json!("h200"), &json!([])));
    let text = stdout(&[&args[..], &decide].concat());
    assert!(text.contains("% of 10 ms a step"), "{text}");
}
