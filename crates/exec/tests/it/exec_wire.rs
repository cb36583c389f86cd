//! Ranks of separate memories, here threads: bit for bit what ranks of one memory do, and an error where one is gone or differs.

#![allow(clippy::unwrap_used, reason = "tests")]

mod exec_support;

use evenkeel::cluster::Cluster;
use evenkeel::exec::activations::Activations;
use evenkeel::exec::cpu::{Cpu, Peer, PeerOptions};
use evenkeel::exec::feed::Feed;
use evenkeel::exec::forward::step;
use evenkeel::exec::router::{Capacity, Overflow, Router};
use evenkeel::exec::run::{Outcome, Replan, Run};
use evenkeel::exec::transport::{Purpose, Reach, Threads, TransportError, Wire};
use evenkeel::exec::weights::{Dtype, RandomWeights};
use evenkeel::exec::{Aggregate, Backend, ExecConfig, ExecError, Routed};
use evenkeel::place::{self, Placement};
use evenkeel::planner::Copies;
use evenkeel::split::{Keep, Method};
use exec_support::{config, placement, small, tokens};
use proptest::prelude::*;
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

/// A run of made-up tokens on threads finds what it finds in one memory, however its tokens travel; that.
fn as_in_one_memory(config: &ExecConfig, policy: &str, tokens: usize, chunks: &[usize]) -> Outcome {
    let (cluster, dtype, model) = (config.cluster, config.dtype, config.model.name);
    let policy = place::policy(policy, 1, &cluster).unwrap();
    let feed = Feed::Made { tokens };
    let run = Run {
        weights: Arc::new(weights(config)),
        feed: &feed,
        layers: vec![0, 1],
        steps: 3..15,
        activations: Activations { drift: 0.1, ..Activations::new(config.model.hidden as usize, 1) },
        policy: policy.as_ref(),
        replan: Some(Replan { every: 4, budget: 1 << 14, max_moves: None }),
        check: true,
        compare: true,
        exec: config.clone(),
    };
    let profile = run.profile(0..3, &()).unwrap();
    let expected = run.on_cpu(run.place(&profile, &[0, 1], 0..3).unwrap(), &()).unwrap();
    assert!(expected.check.unwrap().ok(dtype), "{model}: {:?}", expected.check);
    assert!(expected.to_the_token());
    let place = |plain: &mut dyn Backend| -> Result<Vec<Placement>, ExecError> {
        run.place(&run.profile_on(plain, 0..3, &())?, &[0, 1], 0..3)
    };
    for &chunks in chunks {
        let options = PeerOptions { prove: true, chunks };
        for outcome in ranks(cluster, PATIENCE, |wire| run.on_wire(&wire, options, place, &()).unwrap()) {
            assert_eq!(found(&outcome), found(&expected), "{model}, {chunks} chunks");
        }
    }
    expected
}

#[test]
fn threads_find_what_one_memory_finds() {
    let cluster = Cluster::new(4, 2, 10, 6).unwrap();
    let capacity = Some(Capacity { factor: 0.8, overflow: Overflow::Next });
    for (model, router, capacity, dtype, then) in [
        ("qwen3-30b-a3b", Router::TopkSoftmax, None, Dtype::F32, Some(Keep::Vector)),
        ("deepseek-v2-lite", Router::TopkSoftmax, capacity, Dtype::Bf16, None),
        ("gpt-oss-20b", Router::Soft { slots: 1 }, None, Dtype::Bf16, None),
    ] {
        for aggregate in Aggregate::ALL {
            let config = config(small(model, 10, 3), cluster, router.clone(), dtype);
            let config = ExecConfig { capacity, then, aggregate, ..config };
            let outcome = as_in_one_memory(&config, "eplb", 37, &[1, 2]);
            // Mixtures load all experts alike.
            assert_eq!(outcome.moves().copies > 0, !matches!(router, Router::Soft { .. }), "{model}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Nodes of one rank and of all, ranks without tokens, more chunks than slots.
    #[test]
    fn any_grouping_in_any_number_of_chunks_finds_the_same(
        (ranks, nodes) in prop::sample::select(vec![(2, 1), (2, 2), (3, 3), (4, 2), (4, 4), (6, 2), (6, 3)]),
        top_k in 1usize..7,
        tokens in 1usize..60,
        chunks in 2usize..10,
        aggregate in prop::sample::select(Aggregate::ALL.to_vec()),
        dtype in prop::sample::select(vec![Dtype::F32, Dtype::Bf16]),
    ) {
        let cluster = Cluster::new(ranks, nodes, 12, 12).unwrap();
        let config = config(small("qwen3-30b-a3b", 12, top_k), cluster, Router::TopkSoftmax, dtype);
        as_in_one_memory(&ExecConfig { aggregate, ..config }, "eplb", tokens, &[1, chunks]);
    }
}

/// Bytes that all ranks sent to other ranks of their node and to other nodes, for a purpose, in three steps of two layers.
fn far(config: &ExecConfig, chunks: usize, purpose: Purpose) -> [u64; 2] {
    let placements = || vec![placement(10, &config.cluster, 1), placement(10, &config.cluster, 3)];
    let sent = ranks(config.cluster, PATIENCE, |wire| {
        let options = PeerOptions { prove: false, chunks };
        said(&wire, config.clone(), placements(), options).unwrap();
        wire.tally().bytes[purpose as usize]
    });
    [Reach::Node, Reach::Cluster].map(|reach| sent.iter().map(|bytes| bytes[reach as usize]).sum())
}

#[test]
fn one_copy_per_node_crosses_and_one_row_comes_back() {
    let cluster = Cluster::new(4, 2, 10, 6).unwrap();
    let row = 64 * 4;
    let config = config(small("qwen3-30b-a3b", 10, 3), cluster, Router::TopkSoftmax, Dtype::F32);
    let cpu = Cpu::new(
        config.clone(),
        &weights(&config),
        vec![placement(10, &cluster, 1), placement(10, &cluster, 3)],
    );
    let (mut cpu, mut copies) = (cpu.unwrap(), Copies::default());
    for at in 0..3 {
        let run = step(&mut cpu, 2, at, &mut said_tokens(at), |_| Routed::Router, None).unwrap();
        copies = run.layers.iter().fold(copies, |copies, layer| copies.plus(layer.copies));
    }
    let [_, plain] = far(&config, 1, Purpose::Combine);
    let config = ExecConfig { aggregate: Aggregate::Node, ..config };
    let [_, once] = far(&config, 1, Purpose::Combine);
    assert_eq!(once, copies.to_nodes * row);
    assert!(plain > once);
    // Chunks send nothing twice.
    for purpose in [Purpose::Dispatch, Purpose::Combine] {
        assert_eq!(far(&config, 4, purpose), far(&config, 1, purpose));
    }
}

/// Tokens of a step of four ranks.
fn said_tokens(at: u64) -> Vec<Vec<f32>> {
    tokens(64, &[3, 2, 5, 1], at)
}

/// What a rank says that runs three steps of two layers.
fn said(
    wire: &Rc<Wire>,
    config: ExecConfig,
    placements: Vec<Placement>,
    options: PeerOptions,
) -> Result<(), ExecError> {
    let source = weights(&config);
    let mut peer = Peer::new(config, &source, placements, Rc::clone(wire), options)?;
    for at in 0..3 {
        let mut x = said_tokens(at);
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
        said(&wire, config.clone(), of(if wire.rank() == 2 { 9 } else { 3 }), PeerOptions::default())
            .unwrap_err()
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
        said(&wire, config, of(3), PeerOptions { prove: true, chunks: 1 }).unwrap_err()
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
        Some(said(&wire, config.clone(), of(), PeerOptions::default()).unwrap_err().to_string())
    });
    assert!(all.iter().flatten().any(|error| error.contains("rank 1 does not answer")), "{all:?}");
    assert_eq!(all.iter().flatten().count(), 3);
    let alone = Threads::group(3, PATIENCE).remove(0);
    let error = Wire::new(Box::new(alone), cluster).unwrap_err();
    assert!(error.to_string().contains("3 processes were started for 4 ranks"), "{error}");
}
