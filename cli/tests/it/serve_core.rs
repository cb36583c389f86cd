//! Decisions of `evenkeel serve` without a server: their time, reason and extent. They depend on nothing but
//! steps.

#![cfg(feature = "serve")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use crate::serve_support::{EXPERTS, LAYERS, options, shape, step};
use evenkeel_serve::{
    AcceptedStep, ControllerConfig, Decision, DecisionOutcome, ModelSpec, Phase, PhaseCommand, PhaseState,
    StepLoads, Trigger,
};
use serde_json::json;
use std::sync::atomic::AtomicBool;

fn lane(shape: ModelSpec, options: ControllerConfig) -> PhaseState {
    PhaseState::new(shape, options, Phase::All, vec![1, 2, 5], EXPERTS).unwrap()
}

fn ask(lane: &mut PhaseState, ask: &PhaseCommand) -> Decision {
    let proposal = lane.propose(ask, &AtomicBool::new(false)).unwrap().unwrap();
    lane.apply_proposal(&proposal).unwrap();
    proposal.decision
}

/// Feeds steps and makes each decision when it is due. `at` is the clock.
fn feed(lane: &mut PhaseState, steps: std::ops::Range<u64>, at: impl Fn(u64) -> u64) -> Vec<Decision> {
    let mut decisions = vec![];
    for id in steps {
        let seen = AcceptedStep { accepted: lane.accepted_steps() + 1, step: step(id) };
        if let Some(trigger) = lane.apply_step(seen, at(id)).unwrap() {
            decisions.push(ask(lane, &PhaseCommand::Replan { trigger, dry_run: false }));
        }
    }
    decisions
}

/// Returns decisions without the fields that depend on the clock.
fn timeless(decisions: &[Decision]) -> Vec<Decision> {
    decisions
        .iter()
        .map(|decision| Decision { duration_ms: 0.0, timestamp_unix_s: 0, ..decision.clone() })
        .collect()
}

#[test]
fn clocks_and_threads_decide_nothing() {
    let run = |threads: usize, at: fn(u64) -> u64| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let mut lane = lane(shape(), options());
            let decisions = feed(&mut lane, 0..60, at);
            (timeless(&decisions), lane.current_plan().unwrap().to_json().unwrap())
        })
    };
    let usual = run(1, |id| 1_800_000_000 + id);
    assert!(usual.0.len() > 8);
    // Clocks that stand still, run backwards, or jump by centuries.
    assert_eq!(run(4, |_| 0), usual);
    assert_eq!(run(2, |id| 1_000_000 - id), usual);
    assert_eq!(run(3, |id| if id % 7 == 3 { u64::MAX } else { id }), usual);
}

#[test]
fn plans_come_first_then_at_intervals_and_when_loads_drift() {
    let mut lane = lane(shape(), ControllerConfig { every: 100, min_every: 3, drift: 0.2, ..options() });
    let decisions = feed(&mut lane, 0..40, |_| 0);
    assert_eq!(
        (decisions[0].trigger, decisions[0].accepted, decisions[0].outcome),
        (Trigger::First, 4, DecisionOutcome::Applied)
    );
    // The hot expert changes after steps 11, 23 and 35.
    let drifts: Vec<u64> =
        decisions.iter().filter(|d| d.trigger == Trigger::Drift).map(|d| d.accepted).collect();
    // Decisions that are no drift follow each time that the steps have doubled.
    assert!(
        decisions[1..].iter().all(|d| (d.trigger == Trigger::Drift && d.reason.contains("rose to"))
            || d.trigger == Trigger::Interval),
        "{decisions:#?}"
    );
    assert!(drifts.first().is_some_and(|&at| (13..=16).contains(&at)), "{drifts:?}");
    let mut lane = self::lane(shape(), ControllerConfig { every: 10, drift: 0.0, ..options() });
    let at: Vec<u64> = feed(&mut lane, 0..40, |_| 0).iter().map(|d| d.accepted).collect();
    assert_eq!(at, [4, 14, 24, 34]);
}

#[test]
fn moves_keep_to_their_limits_and_have_to_pay() {
    let after_first = |options: ControllerConfig| {
        let decisions = feed(&mut lane(shape(), options), 0..60, |_| 0);
        decisions[1..].to_vec()
    };
    let free = after_first(ControllerConfig { max_moves: 2, ..options() });
    assert!(free.iter().any(|d| d.moves > 2) && free.iter().all(|d| d.moves <= 2 * LAYERS));
    let acted = free.iter().find(|d| d.outcome == DecisionOutcome::Applied).unwrap();
    assert!(acted.gain_ms > acted.cost_ms && acted.imbalance.after < acted.imbalance.before, "{acted:?}");
    assert!(
        acted.reason.contains("moves in") && acted.reason.contains("ms of transfers"),
        "{}",
        acted.reason
    );
    let budget = after_first(ControllerConfig { max_moves: 2, move_budget: 2, ..options() });
    assert!(budget.iter().any(|d| d.moves > 0) && budget.iter().all(|d| d.moves <= 2));
    let dear = after_first(ControllerConfig { move_cost: Some(1e6), ..options() });
    assert!(dear.iter().all(|d| d.outcome == DecisionOutcome::Kept && d.moves == 0));
    assert!(
        dear.iter().any(|d| d.reason.contains("would pay within 256 steps") && d.rejected_moves > 0),
        "{dear:#?}"
    );
    let still = after_first(ControllerConfig { min_gain: 10.0, ..options() });
    assert!(
        still.iter().all(|d| d.outcome == DecisionOutcome::Kept
            && d.imbalance.before.total_cmp(&d.imbalance.after).is_eq())
    );
    assert!(still.iter().any(|d| d.reason.contains("the gain is too small")));
}

#[test]
fn bytes_and_prices_are_those_of_the_model() {
    let priced = |gbps: u64| -> ModelSpec {
        let shape =
            json!({"ranks": 4, "redundant": 8, "model": "mixtral-8x7b", "gpu": "h100", "link_gbps": gbps});
        serde_json::from_value(shape).unwrap()
    };
    let options = || ControllerConfig { move_cost: None, copy_share: Some(0.0), ..options() };
    let run = |gbps: u64| feed(&mut lane(priced(gbps), options()), 0..40, |_| 0);
    let fast = run(100_000);
    let bytes = 3 * 4096 * 14336 * 2;
    for decision in &fast {
        assert_eq!(decision.bytes, Some(decision.moves as u64 * bytes));
        assert!(decision.busiest_bytes.unwrap_or(0) <= decision.bytes.unwrap());
    }
    assert!(fast[1..].iter().any(|d| d.moves > 0));
    assert!(run(1)[1..].iter().all(|d| d.moves == 0), "over a gigabit a copy takes longer than it gains");
}

#[test]
fn a_dry_run_changes_nothing_and_ranks_return() {
    let mut lane = lane(shape(), ControllerConfig { every: 1000, drift: 0.0, ..options() });
    feed(&mut lane, 0..30, |_| 0);
    let before = lane.current_plan().unwrap();
    let shown = ask(&mut lane, &PhaseCommand::Replan { trigger: Trigger::Manual, dry_run: true });
    assert_eq!((shown.outcome, lane.current_plan().unwrap()), (DecisionOutcome::DryRun, before.clone()));
    let down = ask(&mut lane, &PhaseCommand::Down(0));
    assert_eq!((down.outcome, lane.active_ranks()), (DecisionOutcome::Applied, vec![1, 2, 3]));
    let without = lane.current_plan().unwrap();
    // The remaining ranks keep their experts, except for the moves.
    let kept: usize = (before.layers.iter().zip(&without.layers))
        .map(|(old, new)| {
            let held = |plan: &evenkeel::place::Placement, rank: usize, slots: usize| -> Vec<Option<u32>> {
                plan.slots()[rank * slots..(rank + 1) * slots].to_vec()
            };
            (1..4)
                .map(|rank| {
                    let new = held(&new.placement, rank - 1, 6);
                    held(&old.placement, rank, 6).iter().filter(|expert| new.contains(expert)).count()
                })
                .sum::<usize>()
        })
        .sum();
    assert!(kept >= 3 * 18 - down.moves, "{kept}, {} moves", down.moves);
    let up = ask(&mut lane, &PhaseCommand::Up(0));
    assert_eq!(
        (up.outcome, lane.active_ranks(), lane.plan_version()),
        (DecisionOutcome::Applied, vec![0, 1, 2, 3], 3)
    );
    assert!(up.imbalance.after <= up.imbalance.before);
    let message = lane.propose(&PhaseCommand::Up(0), &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(message.contains("already up"), "{message}");
    assert!(
        lane.propose(&PhaseCommand::Down(9), &AtomicBool::new(false))
            .unwrap_err()
            .to_string()
            .contains("0 to 3")
    );
    assert!(lane.propose(&PhaseCommand::Down(1), &AtomicBool::new(true)).unwrap().is_none(), "given up");
}

#[test]
fn idle_layers_have_no_plan_until_they_are_busy() {
    let mut lane = lane(shape(), options());
    for id in 0..12 {
        let mut counts = step(id).counts.to_vec();
        if id < 6 {
            counts[EXPERTS..2 * EXPERTS].fill(0);
        }
        let seen = AcceptedStep { accepted: id + 1, step: StepLoads { id, counts: counts.into() } };
        if let Some(trigger) = lane.apply_step(seen, 0).unwrap() {
            ask(&mut lane, &PhaseCommand::Replan { trigger, dry_run: false });
        }
        let planned: Option<Vec<u32>> =
            lane.current_plan().map(|plan| plan.layers.iter().map(|layer| layer.layer).collect());
        match id {
            0..3 => assert_eq!(planned, None),
            3..6 => assert_eq!(planned.unwrap(), [1, 5]),
            _ => {}
        }
    }
    let plan = lane.current_plan().unwrap();
    assert_eq!((plan.layers.len(), plan.idle_layers.as_slice()), (3, &[0, 3, 4][..]));
    evenkeel::plan::Plan::from_json(&plan.to_json().unwrap()).unwrap();
}
