//! Economics of moves: planning, replay and the service give the same answer for the same loads.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use evenkeel::cluster::Cluster;
use evenkeel::economics::MoveEconomics;
use evenkeel::evaluate::{SummaryStats, evaluate_layer};
use evenkeel::forecast::HistoryWindow;
use evenkeel::place::{self, Placement};
use evenkeel::plan::{Plan, PlanRequest};
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;
use evenkeel_cost::CostDatabase;
use evenkeel_serve::{AcceptedStep, ControllerConfig, ModelSpec, Phase, PhaseCommand, PhaseState, StepLoads};
use evenkeel_simulate::{ReplanSchedule, ReplayOptions, SimulationConfig, replay_trace};
use serde_json::json;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const EXPERTS: usize = 16;
const LAYERS: [u32; 2] = [3, 4];
/// The steps between two plans, and the window of each.
const EVERY: usize = 32;
/// The bandwidth at which a rank receives.
const LINK_GBPS: u64 = 400;

/// Returns the loads of a step of a layer. The heavy experts change after each plan.
fn loads(step: usize, layer: usize) -> Vec<u64> {
    let heavy = (step / EVERY * 5 + layer) % EXPERTS;
    (0..EXPERTS)
        .map(|expert| {
            let noise = ((step * 31 + expert * 17 + layer * 7) % 23) as u64;
            60 + 3 * noise
                + 500 * u64::from(expert == heavy)
                + 200 * u64::from(expert == (heavy + 3) % EXPERTS)
        })
        .collect()
}

fn trace(steps: Range<usize>) -> Trace {
    let labels = steps.clone().map(|step| step.to_string()).collect();
    let counts = steps.flat_map(|step| (0..LAYERS.len()).flat_map(move |layer| loads(step, layer)));
    Trace::from_loads(EXPERTS, LAYERS.to_vec(), labels, counts.collect()).unwrap()
}

fn placements(plan: &Plan) -> Vec<Placement> {
    plan.layers.iter().map(|layer| layer.placement.clone()).collect()
}

/// Returns the mean imbalance of placements on steps of the trace.
fn imbalance(steps: Range<usize>, plans: &[(Range<usize>, Vec<Placement>)]) -> f64 {
    let all = trace(0..steps.end);
    let mut values = vec![];
    for layer in 0..LAYERS.len() {
        for (steps, placements) in plans {
            let judged =
                evaluate_layer(&all, layer, steps.clone(), &placements[layer], SplitMethod::Exact).unwrap();
            values.extend((0..judged.peaks.len()).map(|b| judged.imbalance(b)));
        }
    }
    SummaryStats::from_values(values).mean
}

/// Feeds the service with both windows. Returns its placements after each plan, and the moves of the second.
fn serve(policy: &str, gpu: &str, horizon: u64) -> (Vec<Placement>, Vec<Placement>, usize) {
    let shape: ModelSpec = serde_json::from_value(json!({
        "ranks": 4, "redundant": 4, "model": "deepseek-v3", "gpu": gpu, "link_gbps": LINK_GBPS,
    }))
    .unwrap();
    let steps = EVERY as u64;
    let options = ControllerConfig {
        policy: policy.into(),
        first_after: steps,
        every: steps,
        min_every: steps,
        drift: 0.0,
        window: EVERY,
        judged: EVERY,
        max_moves: 20,
        horizon,
        copy_share: Some(0.0),
        min_gain: 0.0,
        ..ControllerConfig::default()
    };
    let mut state = PhaseState::new(shape, options, Phase::All, LAYERS.to_vec(), EXPERTS).unwrap();
    let (mut plans, mut moves, never) = (vec![], 0, AtomicBool::new(false));
    for step in 0..2 * EVERY {
        let counts = (0..LAYERS.len()).flat_map(|layer| loads(step, layer));
        let counts = counts.map(|load| u32::try_from(load).unwrap()).collect();
        let seen = AcceptedStep { accepted: step as u64 + 1, step: StepLoads { id: step as u64, counts } };
        if let Some(trigger) = state.apply_step(seen, 0).unwrap() {
            let command = PhaseCommand::Replan { trigger, dry_run: false };
            let proposal = state.propose(&command, &never).unwrap().unwrap();
            state.apply_proposal(&proposal).unwrap();
            moves = proposal.decision.moves;
            plans.push(state.placements().to_vec());
        }
    }
    let [first, second] = plans.try_into().unwrap();
    (first, second, moves)
}

#[test]
fn planning_replay_and_service_agree_on_what_pays() {
    let model = "deepseek-v3".parse().unwrap();
    // The service takes the measured kernel of a stated GPU.
    let kernel = CostDatabase::builtin("h100").unwrap().measured_experts(&model, 20, 4).unwrap();
    agree("h100", |horizon| {
        let times = Arc::new(kernel.times.clone());
        MoveEconomics::with_expert_times(horizon, LINK_GBPS, &model, times).unwrap()
    });
    // No kernel of this GPU is measured, so the data sheet decides.
    let gpu = "h800".parse().unwrap();
    agree("h800", |horizon| MoveEconomics::on_link(horizon, LINK_GBPS, &model, &gpu).unwrap());
}

fn agree(gpu: &str, economics_of: impl Fn(u64) -> MoveEconomics) {
    let cluster = Cluster::new(4, 1, EXPERTS, 4).unwrap();
    let mut outcomes = vec![];
    for name in ["eplb", "recourse:exact:iterations=2000"] {
        for horizon in [1, 40, 400, 100_000] {
            let policy = place::policy(name, 1, &cluster).unwrap();
            let economics = economics_of(horizon);

            let (old, new) = (trace(0..EVERY), trace(EVERY..2 * EVERY));
            let first = PlanRequest::new(&old, cluster, policy.as_ref()).run(&()).unwrap().plan;
            let request = PlanRequest::new(&new, cluster, policy.as_ref()).previous(&first);
            let second = request.economics(economics.clone()).run(&()).unwrap();
            let moves: usize = second.changes.iter().map(|change| change.moves.len()).sum();
            let case = format!("{gpu}, {name}, horizon {horizon}: {moves} moves");

            let served = serve(name, gpu, horizon);
            assert_eq!(served.0, placements(&first), "{case}");
            assert_eq!(served.1, placements(&second.plan), "{case}");
            assert_eq!(served.2, moves, "{case}");

            let all = trace(0..3 * EVERY);
            let methods = vec![SplitMethod::Exact];
            let config = SimulationConfig::new(cluster, methods, 0..EVERY, EVERY..3 * EVERY);
            let replay = ReplayOptions {
                every: EVERY,
                window: HistoryWindow::Last(EVERY),
                max_moves: vec![],
                economics: Some(economics),
            };
            let rows = replay_trace(&all, &config, &replay, &[policy], &()).unwrap();
            let row = rows.iter().find(|row| row.schedule == ReplanSchedule::IfItPays).unwrap();
            let plans =
                [(EVERY..2 * EVERY, placements(&first)), (2 * EVERY..3 * EVERY, placements(&second.plan))];
            assert_eq!(row.moves, moves, "{case}");
            assert!((row.imbalance.mean - imbalance(0..3 * EVERY, &plans)).abs() < 1e-12, "{case}");
            outcomes.push(moves);
        }
    }
    // Nothing pays within a step, and more does within more steps.
    assert_eq!((outcomes[0], outcomes[4]), (0, 0));
    assert!(outcomes[3] > 0 && outcomes[7] > 0, "{outcomes:?}");
    assert!(outcomes[4..].is_sorted(), "{outcomes:?}");
}
