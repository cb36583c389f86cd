//! Ranks of separate memories, here threads: bit for bit what ranks of one memory do, and an error where one is gone or differs.

#![allow(clippy::unwrap_used, reason = "tests")]

mod exec_support;

use evenkeel::cluster::Cluster;
use evenkeel::exec::activations::Activations;
use evenkeel::exec::cpu::Peer;
use evenkeel::exec::feed::Feed;
use evenkeel::exec::forward::step;
use evenkeel::exec::router::{Capacity, Overflow, Router};
use evenkeel::exec::run::{Outcome, Replan, Run};
use evenkeel::exec::transport::{Threads, TransportError, Wire};
use evenkeel::exec::weights::{Dtype, RandomWeights};
use evenkeel::exec::{Backend, ExecConfig, ExecError, Routed};
use evenkeel::place::{self, Placement};
use evenkeel::split::Method;
use exec_support::{config, placement, small, tokens};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `work` as every rank of a group of threads.
fn ranks<T: Send>(cluster: Cluster, timeout: Duration, work: impl Fn(Rc<Wire>) -> T + Sync) -> Vec<T> {
    let group = Threads::group(cluster.ranks(), timeout);
    std::thread::scope(|scope| {
        let work = &work;
        let start =
            |rank: Threads| scope.spawn(move || work(Rc::new(Wire::new(Box::new(rank), cluster).unwrap())));
        let threads: Vec<_> = group.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn weights(config: &ExecConfig) -> RandomWeights {
    let width = config.router.width(config.model.experts);
    RandomWeights { model: config.model, width, dtype: config.dtype, seed: 7 }
}

/// All of an outcome that is no time.
fn found(outcome: &Outcome) -> impl PartialEq + std::fmt::Debug + use<> {
    let steps: Vec<_> = outcome
        .steps
        .iter()
        .map(|row| {
            let moved = (row.moved.copies, row.moved.bytes, row.moved.switched.clone());
            (row.tokens, row.served.clone(), row.predicted.clone(), row.unplanned.clone(), moved)
        })
        .collect();
    let counts = (outcome.copies, outcome.dropped, outcome.loss.map(f64::to_bits), outcome.replans);
    (steps, outcome.check, outcome.memory.clone(), counts)
}

#[test]
fn threads_find_what_one_memory_finds() {
    let cluster = Cluster::new(4, 2, 10, 6).unwrap();
    let capacity = Some(Capacity { factor: 0.8, overflow: Overflow::Next });
    for (model, router, capacity, dtype) in [
        ("qwen3-30b-a3b", Router::TopkSoftmax, None, Dtype::F32),
        ("deepseek-v2-lite", Router::TopkSoftmax, capacity, Dtype::Bf16),
        ("gpt-oss-20b", Router::Soft { slots: 1 }, None, Dtype::Bf16),
    ] {
        let config = config(small(model, 10, 3), cluster, router, dtype);
        let config = ExecConfig { method: Some(Method::Exact), capacity, ..config };
        let policy = place::policy("eplb", 1, &cluster).unwrap();
        let feed = Feed::Made { tokens: 37 };
        let run = Run {
            weights: Arc::new(weights(&config)),
            feed: &feed,
            layers: vec![0, 1],
            steps: 3..15,
            activations: Activations { drift: 0.1, ..Activations::new(config.model.hidden as usize, 1) },
            policy: policy.as_ref(),
            replan: Some(Replan { every: 4, budget: 1 << 14, max_moves: None }),
            check: true,
            compare: true,
            exec: config,
        };
        let profile = run.profile(0..3, &()).unwrap();
        let expected = run.on_cpu(run.place(&profile, &[0, 1], 0..3).unwrap(), &()).unwrap();
        assert!(expected.check.unwrap().ok(dtype), "{model}: {:?}", expected.check);
        // Mixtures load all experts alike.
        assert_eq!(expected.moves().copies > 0, !matches!(run.exec.router, Router::Soft { .. }), "{model}");
        let place = |plain: &mut dyn Backend| -> Result<Vec<Placement>, ExecError> {
            run.place(&run.profile_on(plain, 0..3, &())?, &[0, 1], 0..3)
        };
        for outcome in ranks(cluster, PATIENCE, |wire| run.on_wire(&wire, true, place, &()).unwrap()) {
            assert_eq!(found(&outcome), found(&expected), "{model}");
        }
    }
}

/// What a rank says that runs three steps of two layers.
fn said(
    wire: &Rc<Wire>,
    config: ExecConfig,
    placements: Vec<Placement>,
    prove: bool,
) -> Result<(), ExecError> {
    let source = weights(&config);
    let mut peer = Peer::new(config, &source, placements, Rc::clone(wire), prove)?;
    for at in 0..3 {
        let mut x = tokens(64, &[3, 2, 5, 1], at);
        (0..4).filter(|&rank| !peer.holds(rank)).for_each(|rank| x[rank].clear());
        step(&mut peer, 2, at, &mut x, |_| Routed::Router, None)?;
    }
    Ok(())
}

#[test]
fn a_rank_with_another_plan_is_named_by_all() {
    let cluster = Cluster::new(4, 1, 10, 6).unwrap();
    let config = config(small("qwen3-30b-a3b", 10, 3), cluster, Router::TopkSoftmax, Dtype::F32);
    let of = |seed| vec![placement(10, &cluster, 1), placement(10, &cluster, seed)];
    for error in ranks(cluster, PATIENCE, |wire| {
        said(&wire, config.clone(), of(if wire.rank() == 2 { 9 } else { 3 }), false).unwrap_err()
    }) {
        assert!(
            error.to_string().starts_with("the placement of rank 2 differs from that of the others"),
            "{error}"
        );
        assert!(error.to_string().contains("layer 1"), "{error}");
    }
    // Another split of the same counts on the same placement: only the proof tells.
    let other = |rank| Some(if rank == 3 { Method::Even } else { Method::Exact });
    for error in ranks(cluster, PATIENCE, |wire| {
        let config = ExecConfig { method: other(wire.rank()), ..config.clone() };
        said(&wire, config, of(3), true).unwrap_err()
    }) {
        let ExecError::Transport(TransportError::Differ { what, ranks, at }) = &error else {
            unreachable!("{error}")
        };
        assert_eq!((*what, ranks.as_slice()), ("the split", [3].as_slice()));
        assert!(at.step.is_some() && at.layer.is_some(), "{error}");
    }
}

#[test]
fn a_rank_that_is_gone_is_named() {
    let cluster = Cluster::new(4, 1, 10, 6).unwrap();
    let config = config(small("qwen3-30b-a3b", 10, 3), cluster, Router::TopkSoftmax, Dtype::F32);
    let of = || vec![placement(10, &cluster, 1), placement(10, &cluster, 3)];
    let all = ranks(cluster, Duration::from_millis(500), |wire| {
        if wire.rank() == 1 {
            return None;
        }
        Some(said(&wire, config.clone(), of(), false).unwrap_err().to_string())
    });
    assert!(all.iter().flatten().any(|error| error.contains("rank 1 does not answer")), "{all:?}");
    assert_eq!(all.iter().flatten().count(), 3);
    let alone = Threads::group(3, PATIENCE).remove(0);
    let error = Wire::new(Box::new(alone), cluster).unwrap_err();
    assert!(error.to_string().contains("3 processes were started for 4 ranks"), "{error}");
}
