//! Ranks with separate memories, here threads: they match ranks of one memory bit for bit, and fail if one is
//! lost or differs.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::exec_support::{config, placement, small, tokens};
use evenkeel::cluster::Cluster;
use evenkeel::place::{self, Placement};
use evenkeel::planner::TokenCopies;
use evenkeel::split::{PrimaryObjective, SplitMethod};
use evenkeel_exec::activations::ActivationGenerator;
use evenkeel_exec::batch_source::BatchSource;
use evenkeel_exec::comm::{CommError, Distance, ProcessGroup, Purpose, ThreadCommunicator};
use evenkeel_exec::cpu::{Cpu, CpuOptions};
use evenkeel_exec::forward::run_step;
use evenkeel_exec::router::{Capacity, Overflow, Router};
use evenkeel_exec::run::{ExecRun, RunReplan, RunReport};
use evenkeel_exec::weights::{Dtype, RandomWeights};
use evenkeel_exec::{Aggregate, Backend as _, ExecConfig, ExecError, RoutingSource};
use proptest::prelude::*;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `work` as every rank of a group of threads.
fn ranks<T: Send>(
    cluster: Cluster,
    timeout: Duration,
    work: impl Fn(Rc<ProcessGroup>) -> T + Sync,
) -> Vec<T> {
    let group = ThreadCommunicator::create_group(cluster.ranks(), timeout);
    std::thread::scope(|scope| {
        let work = &work;
        let start = |rank: ThreadCommunicator| {
            scope.spawn(move || work(Rc::new(ProcessGroup::new(Rc::new(rank), cluster).unwrap())))
        };
        let threads: Vec<_> = group.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn weights(config: &ExecConfig) -> RandomWeights {
    let width = config.router.logit_width(config.model.experts);
    RandomWeights { model: config.model, width, dtype: config.dtype, seed: 7 }
}

/// Returns all parts of an outcome except times.
fn found(outcome: &RunReport) -> impl PartialEq + std::fmt::Debug + use<> {
    let steps: Vec<_> = outcome
        .steps
        .iter()
        .map(|row| {
            let moved = (row.moved.copies, row.moved.bytes, row.moved.switched.clone());
            (row.tokens, row.served.clone(), row.predicted.clone(), row.unplanned.clone(), moved)
        })
        .collect();
    let counts = (
        outcome.copies,
        outcome.dropped,
        [outcome.loss.balance, outcome.loss.z].map(f64::to_bits),
        outcome.replans,
    );
    (steps, outcome.check, outcome.memory.clone(), counts)
}

/// Checks that a run of synthetic tokens on threads equals one in one memory, for any way of sending tokens.
/// Returns that outcome.
fn as_in_one_memory(config: &ExecConfig, policy: &str, tokens: usize, chunks: &[usize]) -> RunReport {
    let (cluster, dtype, model) = (config.cluster, config.dtype, config.model.name);
    let policy = place::policy(policy, 1, &cluster).unwrap();
    let feed = BatchSource::Synthetic { tokens };
    let run = ExecRun {
        weights: Arc::new(weights(config)),
        feed: &feed,
        layers: vec![0, 1],
        steps: 3..15,
        activations: ActivationGenerator {
            drift: 0.1,
            ..ActivationGenerator::new(config.model.hidden as usize, 1)
        },
        policy: policy.as_ref(),
        replan: Some(RunReplan { every: 4, budget: 1 << 14, max_moves: None, economics: None }),
        check: true,
        compare: true,
        exec: config.clone(),
    };
    let local = Rc::new(ProcessGroup::local(cluster));
    let expected = run.run_on_cpu(&local, CpuOptions::default(), 0..3, &()).unwrap();
    assert!(expected.check.unwrap().within_bounds(dtype), "{model}: {:?}", expected.check);
    assert!(expected.matches_prediction());
    for &chunks in chunks {
        let options = CpuOptions::default().verify_splits(true).chunks(chunks);
        for outcome in ranks(cluster, PATIENCE, |group| run.run_on_cpu(&group, options, 0..3, &()).unwrap()) {
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
        ("qwen3-30b-a3b", Router::TopkSoftmax, None, Dtype::F32, Some(PrimaryObjective::Vector)),
        ("deepseek-v2-lite", Router::TopkSoftmax, capacity, Dtype::Bf16, None),
        ("gpt-oss-20b", Router::Soft { slots: 1 }, None, Dtype::Bf16, None),
    ] {
        for aggregate in Aggregate::ALL {
            let config = config(small(model, 10, 3), cluster, router.clone(), dtype);
            let config = ExecConfig { capacity, tie_break: then, aggregate, ..config };
            let outcome = as_in_one_memory(&config, "eplb", 37, &[1, 2]);
            // Mixtures load all experts equally, so no expert moves.
            assert_eq!(outcome.total_moves().copies > 0, !matches!(router, Router::Soft { .. }), "{model}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Covers nodes of one rank and of all ranks, ranks without tokens, and more chunks than slots.
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

/// Returns the bytes for a purpose that all ranks sent to other ranks of their node and to other nodes. The
/// run has three steps of two layers.
fn far(config: &ExecConfig, chunks: usize, purpose: Purpose) -> [u64; 2] {
    let placements = || vec![placement(10, &config.cluster, 1), placement(10, &config.cluster, 3)];
    let sent = ranks(config.cluster, PATIENCE, |group| {
        let options = CpuOptions::default().chunks(chunks);
        said(&group, config.clone(), placements(), options).unwrap();
        Distance::ALL.map(|reach| group.traffic_stats().bytes(purpose, reach))
    });
    [Distance::Node, Distance::Cluster].map(|reach| sent.iter().map(|bytes| bytes[reach as usize]).sum())
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
    let (mut cpu, mut copies) = (cpu.unwrap(), TokenCopies::default());
    for at in 0..3 {
        let run = run_step(&mut cpu, 2, at, &mut said_tokens(at), |_| RoutingSource::Router, None).unwrap();
        copies = run.layers.iter().fold(copies, |copies, layer| copies.plus(layer.copies));
    }
    let [_, plain] = far(&config, 1, Purpose::Combine);
    let config = ExecConfig { aggregate: Aggregate::Node, ..config };
    let [_, once] = far(&config, 1, Purpose::Combine);
    assert_eq!(once, copies.to_nodes * row);
    assert!(plain > once);
    // Chunks send no data twice.
    for purpose in [Purpose::Dispatch, Purpose::Combine] {
        assert_eq!(far(&config, 4, purpose), far(&config, 1, purpose));
    }
}

#[test]
fn one_process_counts_the_traffic_of_many() {
    let cluster = Cluster::new(4, 2, 10, 6).unwrap();
    let config = config(small("qwen3-30b-a3b", 10, 3), cluster, Router::TopkSoftmax, Dtype::Bf16);
    let placements = || vec![placement(10, &cluster, 1), placement(10, &cluster, 3)];
    for aggregate in Aggregate::ALL {
        let config = ExecConfig { aggregate, ..config.clone() };
        let local = Rc::new(ProcessGroup::local(cluster));
        said(&local, config.clone(), placements(), CpuOptions::default()).unwrap();
        let many = ranks(cluster, PATIENCE, |group| {
            said(&group, config.clone(), placements(), CpuOptions::default()).unwrap();
            group.traffic_stats()
        });
        for purpose in [Purpose::Counts, Purpose::Dispatch, Purpose::Combine] {
            let of_many: [u64; 3] =
                Distance::ALL.map(|reach| many.iter().map(|stats| stats.bytes(purpose, reach)).sum());
            assert_eq!(
                Distance::ALL.map(|reach| local.traffic_stats().bytes(purpose, reach)),
                of_many,
                "{aggregate} {purpose:?}"
            );
        }
    }
}

/// Returns the tokens of a step of four ranks.
fn said_tokens(at: u64) -> Vec<Vec<f32>> {
    tokens(64, &[3, 2, 5, 1], at)
}

/// Runs three steps of two layers as one rank. Returns its error, if any.
fn said(
    group: &Rc<ProcessGroup>,
    config: ExecConfig,
    placements: Vec<Placement>,
    options: CpuOptions,
) -> Result<(), ExecError> {
    let source = weights(&config);
    let mut peer = Cpu::join(config, &source, placements, Rc::clone(group), options)?;
    for at in 0..3 {
        let mut x = said_tokens(at);
        (0..4).filter(|&rank| !peer.is_local(rank)).for_each(|rank| x[rank].clear());
        run_step(&mut peer, 2, at, &mut x, |_| RoutingSource::Router, None)?;
    }
    Ok(())
}

#[test]
fn a_rank_with_another_plan_is_named_by_all() {
    let cluster = Cluster::new(4, 1, 10, 6).unwrap();
    let config = config(small("qwen3-30b-a3b", 10, 3), cluster, Router::TopkSoftmax, Dtype::F32);
    let of = |seed| vec![placement(10, &cluster, 1), placement(10, &cluster, seed)];
    for error in ranks(cluster, PATIENCE, |group| {
        said(&group, config.clone(), of(if group.rank() == 2 { 9 } else { 3 }), CpuOptions::default())
            .unwrap_err()
    }) {
        assert!(
            error.to_string().starts_with("the placement of rank 2 differs from that of the others"),
            "{error}"
        );
        assert!(error.to_string().contains("layer 1"), "{error}");
    }
    // Another split of the same counts on the same placement, which only the proof detects.
    let other = |rank| Some(if rank == 3 { SplitMethod::Even } else { SplitMethod::Exact });
    for error in ranks(cluster, PATIENCE, |group| {
        let config = ExecConfig { method: other(group.rank()), ..config.clone() };
        said(&group, config, of(3), CpuOptions::default().verify_splits(true)).unwrap_err()
    }) {
        let ExecError::Comm(CommError::Differ { what, ranks, at }) = &error else { unreachable!("{error}") };
        assert_eq!((*what, ranks.as_slice()), ("the split", [3].as_slice()));
        assert!(at.step.is_some() && at.layer.is_some(), "{error}");
    }
}

#[test]
fn a_rank_that_is_gone_is_named() {
    let cluster = Cluster::new(4, 1, 10, 6).unwrap();
    let config = config(small("qwen3-30b-a3b", 10, 3), cluster, Router::TopkSoftmax, Dtype::F32);
    let of = || vec![placement(10, &cluster, 1), placement(10, &cluster, 3)];
    let all = ranks(cluster, Duration::from_millis(500), |group| {
        if group.rank() == 1 {
            return None;
        }
        Some(said(&group, config.clone(), of(), CpuOptions::default()).unwrap_err().to_string())
    });
    assert!(all.iter().flatten().any(|error| error.contains("rank 1 does not answer")), "{all:?}");
    assert_eq!(all.iter().flatten().count(), 3);
    let alone = ThreadCommunicator::create_group(3, PATIENCE).remove(0);
    let error = ProcessGroup::new(Rc::new(alone), cluster).unwrap_err();
    assert!(error.to_string().contains("3 processes were started for 4 ranks"), "{error}");
}
