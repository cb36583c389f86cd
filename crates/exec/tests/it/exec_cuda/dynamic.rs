//! Experts copied into dynamic slots on the CUDA backend. Results are those of the reference, and loads and
//! copies those of the CPU backend.

use super::{backend, gpu};
use crate::exec_dynamic::{LAYERS, copies_of, expected_copies, run_steps};
use crate::exec_support::{backend as cpu_backend, config, placement, small, tokens, weights};
use evenkeel::cluster::Cluster;
use evenkeel::split::{CopyAim, DynamicSlots, SlotMemory};
use evenkeel_exec::cuda::{Cuda, CudaOptions};
use evenkeel_exec::forward::run_step;
use evenkeel_exec::random::RandomStream;
use evenkeel_exec::router::Router;
use evenkeel_exec::weights::Dtype;
use evenkeel_exec::{Backend, ExecConfig, ExecError, LayerStage, RoutingSource};
use std::time::Duration;

/// Returns a random configuration with dynamic slots, and the tokens of every rank.
fn random_case(case: u64) -> (ExecConfig, Vec<usize>) {
    let mut random = RandomStream::new(case, &[11]);
    let mut below = |n: usize| (random.next_bits() % n as u64) as usize;
    let (ranks, top_k, experts) = (2 + below(3), 1 + below(3), 8);
    let redundant = (ranks - experts % ranks) % ranks + below(2) * ranks;
    let cluster = Cluster::new(ranks, 1, experts, redundant).unwrap();
    let model =
        small(["qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite", "glam-64b"][below(4)], experts, top_k);
    let memory = [SlotMemory::Shared, SlotMemory::Kept][below(2)];
    let aim = [CopyAim::Imbalance(10_000), CopyAim::Copies(3)][below(2)];
    let dynamic = Some(DynamicSlots::new(1 + below(2), memory).aim(aim));
    let plain = config(model, cluster, Router::TopkSoftmax, Dtype::Bf16);
    (ExecConfig { dynamic, ..plain }, (0..ranks).map(|_| below(20)).collect())
}

fn placements(config: &ExecConfig, seed: u64) -> Vec<evenkeel::place::Placement> {
    (0..LAYERS as u64).map(|layer| placement(config.model.experts, &config.cluster, seed + layer)).collect()
}

#[test]
fn copies_change_nothing_but_the_ranks_of_tokens() {
    let Some(_turn) = gpu() else { return };
    let mut copied = 0;
    for case in 0..24 {
        let (config, per_rank) = random_case(case);
        let placements = placements(&config, case);
        let (mut cuda, _) = backend(&config, case as usize, placements.clone());
        let steps = run_steps(&mut cuda, &config, &per_rank, true);
        assert_eq!(copies_of(&steps), expected_copies(&config, &cuda, &steps), "{config:?}");
        copied += copies_of(&steps).iter().sum::<u64>();
        let slots = config.dynamic.unwrap();
        let layers = if slots.memory == SlotMemory::Shared { 1 } else { LAYERS };
        let expert = cuda.expert_bytes(0, 0).unwrap();
        let (plain, _) = backend(&ExecConfig { dynamic: None, ..config.clone() }, 0, placements);
        for (with, without) in cuda.memory().iter().zip(plain.memory()) {
            assert_eq!(with.in_use - without.in_use, (slots.per_rank * layers) as u64 * expert);
        }
    }
    assert!(copied > 50, "{copied}");
}

#[test]
fn the_cpu_serves_the_same_tokens_with_the_same_copies() {
    let Some(_turn) = gpu() else { return };
    for case in 100..112 {
        let (config, per_rank) = random_case(case);
        let (mut cuda, mut reference) = backend(&config, case as usize, placements(&config, case));
        let (mut cpu, _) = cpu_backend(&config, placements(&config, case));
        let (experts, top_k) = (config.model.experts, config.model.top_k);
        for step in 0..4 {
            let mut random = RandomStream::new(case, &[step]);
            // The first experts are hot.
            let mut choice =
                || ((random.next_bits() % experts as u64) * (random.next_bits() % 3) / 2) as usize;
            let mut of_token = || -> Vec<i32> {
                let first = choice().min(experts - 1);
                (0..top_k).map(|k| ((first + k) % experts) as i32).collect()
            };
            let ids: Vec<Vec<i32>> =
                per_rank.iter().map(|&n| (0..n).flat_map(|_| of_token()).collect()).collect();
            let routed = |_| RoutingSource::Replay {
                ids: &ids,
                top_k,
                weights: None,
                slots: None,
                also_run_router: false,
            };
            let mut x = tokens(64, &per_rank, step);
            let expected = run_step(&mut cpu, LAYERS, step, &mut x.clone(), routed, None).unwrap();
            let found = run_step(&mut cuda, LAYERS, step, &mut x, routed, Some(&mut reference)).unwrap();
            assert!(found.check.unwrap().within_bounds(Dtype::Bf16), "{config:?}: {:?}", found.check);
            for (found, expected) in found.layers.iter().zip(&expected.layers) {
                assert_eq!(found.rank_loads, expected.rank_loads);
                assert_eq!((found.expert_copies, found.copies), (expected.expert_copies, expected.copies));
                assert_eq!(found.copy_waits.len(), config.cluster.ranks());
            }
        }
    }
}

#[test]
fn a_hot_expert_is_copied_and_the_copying_is_timed() {
    let Some(_turn) = gpu() else { return };
    let cluster = Cluster::new(4, 1, 4, 0).unwrap();
    let plain = config(small("gpt-oss-20b", 4, 1), cluster, Router::TopkSoftmax, Dtype::Bf16);
    let config = ExecConfig { dynamic: Some(DynamicSlots::new(1, SlotMemory::Shared)), ..plain };
    let ids: Vec<Vec<i32>> = vec![vec![2; 30]; 4];
    let routed =
        |_| RoutingSource::Replay { ids: &ids, top_k: 1, weights: None, slots: None, also_run_router: false };
    for at in 0..4 {
        let (mut cuda, mut reference) = backend(&config, at, vec![placement(4, &cluster, 0)]);
        let mut x = tokens(64, &[30; 4], 5);
        let run = run_step(&mut cuda, 1, 0, &mut x, routed, Some(&mut reference)).unwrap();
        assert!(run.check.unwrap().within_bounds(Dtype::Bf16));
        let layer = &run.layers[0];
        assert_eq!((layer.expert_copies, layer.rank_loads.as_slice()), (3, &[30; 4][..]));
        let copying = |times: &&evenkeel_exec::StageTimes| times[LayerStage::Copy as usize] > Duration::ZERO;
        assert_eq!(layer.times.iter().filter(copying).count(), 3, "those that receive");
        // The rank that sends waits for nothing.
        assert!(layer.copy_waits.iter().any(Duration::is_zero), "{:?}", layer.copy_waits);
    }
}

#[test]
fn what_excludes_dynamic_slots_is_refused() {
    let Some(_turn) = gpu() else { return };
    let cluster = Cluster::new(2, 1, 4, 2).unwrap();
    let plain = config(small("qwen3-30b-a3b", 4, 1), cluster, Router::TopkSoftmax, Dtype::Bf16);
    let dynamic = |per_rank| ExecConfig {
        dynamic: Some(DynamicSlots::new(per_rank, SlotMemory::Kept)),
        ..plain.clone()
    };
    let (mut cuda, _) = backend(&dynamic(1), 0, vec![placement(4, &cluster, 0)]);
    assert!(matches!(cuda.start_copy(0, 0, 0), Err(ExecError::Combination(_))));
    // The host chooses copies, so a graph cannot contain the layer.
    assert!(cuda.record_layer(0, &[1, 1], false).unwrap_err().to_string().contains("split"));
    let (ids, stated) = ([vec![0], vec![0]], [vec![0], vec![0]]);
    let slots = Some(&stated[..]);
    let routed =
        |_| RoutingSource::Replay { ids: &ids, top_k: 1, weights: None, slots, also_run_router: false };
    let error = run_step(&mut cuda, 1, 0, &mut tokens(64, &[1, 1], 0), routed, None).unwrap_err();
    assert!(matches!(error, ExecError::Combination(_)), "{error}");
}

/// Uses a model whose static experts alone exceed the memory.
#[test]
fn dynamic_slots_count_as_memory() {
    let Some(_turn) = gpu() else { return };
    let cluster = Cluster::new(8, 1, 256, 0).unwrap();
    let model: evenkeel::model::MoeModel = "deepseek-v3:bf16".parse().unwrap();
    let plain = config(model, cluster, Router::for_model(&model), Dtype::Bf16);
    let needed = |dynamic| {
        let config = ExecConfig { dynamic, ..plain.clone() };
        let placements = vec![placement(256, &cluster, 0); 58];
        let weights = weights(&config);
        match Cuda::new(config, CudaOptions::default(), weights.as_ref(), placements).unwrap_err() {
            ExecError::Memory { needed, .. } => needed,
            other => panic!("{other}"),
        }
    };
    let (none, expert) = (needed(None), 3 * 7168 * 2048 * 2);
    assert_eq!(needed(Some(DynamicSlots::new(2, SlotMemory::Shared))) - none, 8 * 2 * expert);
    assert_eq!(needed(Some(DynamicSlots::new(2, SlotMemory::Kept))) - none, 8 * 2 * 58 * expert);
}
