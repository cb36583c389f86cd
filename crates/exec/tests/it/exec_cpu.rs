//! Compares the forward pass with one dense memory in `f64`, for any placement, split, router and tokens.

#![allow(clippy::unwrap_used, reason = "tests")]

use crate::exec_support::{backend, config, placement, refuses_other_input, small, tokens, weights};
use evenkeel::cluster::Cluster;
use evenkeel::forecast::History;
use evenkeel::model::Activation;
use evenkeel::place::{self, PlaceRequest, Placement};
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;
use evenkeel_exec::cpu::Cpu;
use evenkeel_exec::forward::run_step;
use evenkeel_exec::random::RandomStream;
use evenkeel_exec::router::{Capacity, Overflow, Router};
use evenkeel_exec::weights::{Dtype, Matrix};
use evenkeel_exec::{Backend, ExecConfig, LayerInput, RoutingSource};
use proptest::prelude::*;

const ROUTERS: [&str; 8] =
    ["switch", "gshard", "noisy", "softmax", "softmax-renorm", "topk-softmax", "sigmoid", "soft"];

/// Runs two layers and compares everything with the reference.
fn check(config: &ExecConfig, placements: Vec<Placement>, per_rank: &[usize], seed: u64) {
    let (mut cpu, mut reference) = backend(config, placements);
    let mut x = tokens(config.model.hidden, per_rank, seed);
    let run = run_step(&mut cpu, 2, 5, &mut x, |_| RoutingSource::Router, Some(&mut reference)).unwrap();
    let check = run.check.unwrap();
    assert!(check.within_bounds(config.dtype), "{check:?} for {config:?} and {per_rank:?}");
    for layer in &run.layers {
        let routed: u64 =
            layer.routed.iter().flat_map(|r| &r.routing.ids).map(|&id| u64::from(id >= 0)).sum();
        assert_eq!(layer.counts.iter().sum::<u64>(), routed, "every choice is counted");
        assert_eq!(layer.rank_loads.iter().sum::<u64>(), routed, "every choice is served, once");
        assert_eq!(layer.copies.pairs, routed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_placement_router_and_capacity_gives_the_reference(
        router in 0..ROUTERS.len(), model in 0usize..4, ranks in 1usize..5, redundant in 0usize..5, top_k in 1usize..4,
        per_rank in prop::collection::vec(0usize..9, 4), method in 0usize..5, capacity in 0usize..4, bf16: bool, seed: u64,
    ) {
        let name = ["qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite", "glam-64b"][model];
        let model = small(name, 7, top_k);
        let per = (7 + redundant).div_ceil(ranks);
        let cluster = Cluster::new(ranks, 1, 7, per * ranks - 7).unwrap();
        let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F32 };
        let mut config = config(model, cluster, ROUTERS[router].parse().unwrap(), dtype);
        config.method = [None, Some(SplitMethod::Even), Some(SplitMethod::Lp), Some(SplitMethod::Exact), Some(SplitMethod::Affine5)][method];
        config.capacity = [None, Some((0.5, Overflow::Drop)), Some((0.7, Overflow::Next)), Some((1.0, Overflow::Next))]
            [capacity].map(|(factor, overflow)| Capacity { factor, overflow });
        let placements = (0..2).map(|layer| placement(7, &cluster, seed ^ layer)).collect();
        check(&config, placements, &per_rank[..ranks], seed);
    }

    #[test]
    fn any_valid_split_gives_the_reference(ranks in 1usize..5, top_k in 1usize..4, bf16: bool, seed: u64) {
        let cluster = Cluster::new(ranks, 1, 6, 6 * ranks - 6).unwrap();
        let dtype = if bf16 { Dtype::Bf16 } else { Dtype::F32 };
        let config = config(small("qwen3-30b-a3b", 6, top_k), cluster, Router::TopkSoftmax, dtype);
        let placement = placement(6, &cluster, seed);
        let (mut cpu, mut reference) = backend(&config, vec![placement.clone()]);
        let mut random = RandomStream::new(seed, &[]);
        let mut below = |n: usize| (random.next_bits() % n as u64) as usize;
        let mut x = tokens(64, &(0..ranks).map(|_| below(7)).collect::<Vec<_>>(), seed);
        let (mut ids, mut slots) = (vec![], vec![]);
        for x in &x {
            let mut of_source = vec![];
            for _ in 0..x.len() / 64 {
                // The experts of a token are different, or none.
                let mut of_token: Vec<i32> = vec![];
                while of_token.len() < top_k {
                    let id = below(7) as i32 - 1;
                    if id < 0 || !of_token.contains(&id) { of_token.push(id) }
                }
                of_source.extend(of_token);
            }
            let copy = |&id: &i32| match usize::try_from(id) {
                Ok(expert) => { let copies = placement.replicas(expert); i64::from(copies[below(copies.len())]) }
                Err(_) => -1,
            };
            slots.push(of_source.iter().map(copy).collect::<Vec<i64>>());
            ids.push(of_source);
        }
        let routed = |_| RoutingSource::Replay { ids: &ids, top_k, weights: None, slots: Some(&slots), also_run_router: false };
        let run = run_step(&mut cpu, 1, 0, &mut x, routed, Some(&mut reference)).unwrap();
        prop_assert!(run.check.unwrap().within_bounds(dtype), "{:?}", run.check);
    }
}

#[test]
fn every_policy_and_split_on_uneven_empty_and_single_tokens() {
    let model = small("qwen3-30b-a3b", 8, 2);
    let cluster = Cluster::new(4, 2, 8, 4).unwrap();
    let loads = Trace::from_loads(8, vec![0], vec!["0".into()], vec![90, 1, 0, 0, 50, 3, 2, 2]).unwrap();
    for policy in ["contiguous", "eplb", "eplb:trtllm", "lplb:ring"] {
        let placement = place::policy(policy, 1, &cluster).unwrap();
        let history = History::from_trace(&loads, 0);
        let placement = placement.place(&PlaceRequest::new(&history, &cluster)).unwrap().placement;
        for method in SplitMethod::ALL {
            let config = config(model, cluster, Router::Softmax { renormalise: true }, Dtype::F32);
            let config = ExecConfig { method: Some(method), ..config };
            // Uneven numbers of tokens with an empty rank; one token in total; no tokens.
            for per_rank in [[5, 0, 1, 17], [0, 0, 1, 0], [0; 4]] {
                check(&config, vec![placement.clone(); 2], &per_rank, 11);
            }
        }
    }
}

#[test]
fn gpt_oss_is_its_published_code() {
    // The formula of modeling_gpt_oss.py: gate.clamp(max=limit), up.clamp(-limit, limit), (up + 1) * gate *
    // sigmoid(1.702 gate).
    let cluster = Cluster::new(1, 1, 2, 0).unwrap();
    let config = config(small("gpt-oss-20b", 2, 1), cluster, Router::TopkSoftmax, Dtype::F32);
    let source = weights(&config);
    let mut expert = source.expert_weights(0, 1).unwrap();
    // The values are large enough for the clamps to apply.
    let scale = |m: &Matrix| m.to_f32().into_iter().map(|x| 14.0 * x).collect::<Vec<f32>>();
    let (gate, up, down) = (scale(expert.gate.as_ref().unwrap()), scale(&expert.up), expert.down.to_f32());
    expert.gate = Some(Matrix::new(Dtype::F32, gate.clone()));
    expert.up = Matrix::new(Dtype::F32, up.clone());
    let x = tokens(64, &[5], 1).remove(0);
    let mut out = vec![0f32; x.len()];
    evenkeel_exec::cpu::Ffn::default().run(&expert, Activation::ClampedSwiGlu, &x, 64, &mut out);
    let biases = expert.biases.unwrap();
    let (mut high, mut low) = (false, false);
    for (x, out) in x.chunks(64).zip(out.chunks(64)) {
        let dot =
            |w: &[f32], i: usize| (0..64).map(|k| f64::from(w[i * 64 + k]) * f64::from(x[k])).sum::<f64>();
        let inside: Vec<f64> = (0..48)
            .map(|i| {
                let (g, u) =
                    (dot(&gate, i) + f64::from(biases.gate[i]), dot(&up, i) + f64::from(biases.up[i]));
                high |= g > 7.0 || u > 7.0;
                low |= u < -7.0;
                let (g, u) = (g.min(7.0), u.clamp(-7.0, 7.0));
                (u + 1.0) * g / (1.0 + (-1.702 * g).exp())
            })
            .collect();
        for (h, &y) in out.iter().enumerate() {
            let sum: f64 = (0..48).map(|i| f64::from(down[h * 48 + i]) * inside[i]).sum();
            assert!((f64::from(y) - sum - f64::from(biases.down[h])).abs() < 2e-4);
        }
    }
    assert!(high && low, "the clamps bind");
}

#[test]
fn routing_twice_changes_nothing_but_time() {
    let cluster = Cluster::new(2, 1, 4, 0).unwrap();
    let config = config(small("qwen3-30b-a3b", 4, 1), cluster, Router::TopkSoftmax, Dtype::F32);
    let (mut cpu, _) = backend(&config, vec![placement(4, &cluster, 0)]);
    let x = tokens(64, &[2, 1], 4);
    let ids = [vec![0, 3], vec![-1]];
    let mut run = |and_route| {
        let routed = RoutingSource::Replay {
            ids: &ids,
            top_k: 1,
            weights: None,
            slots: None,
            also_run_router: and_route,
        };
        cpu.run_layer(&LayerInput { layer: 0, step: 0, tokens: &x, routed }).unwrap()
    };
    let (once, twice) = (run(false), run(true));
    assert_eq!((once.outputs, once.counts.clone()), (twice.outputs, twice.counts));
    assert_eq!(once.counts, [1, 0, 0, 1]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let cluster = Cluster::new(2, 1, 4, 2).unwrap();
    let config = config(small("qwen3-30b-a3b", 4, 1), cluster, Router::TopkSoftmax, Dtype::F32);
    let other = Cluster::new(2, 1, 4, 0).unwrap();
    let refused = Cpu::new(config.clone(), weights(&config).as_ref(), vec![placement(4, &other, 0)]);
    assert!(refused.unwrap_err().to_string().contains("slots of a placement"));
    let (mut cpu, _) = backend(&config, vec![placement(4, &cluster, 0)]);
    refuses_other_input(&mut cpu);
}
