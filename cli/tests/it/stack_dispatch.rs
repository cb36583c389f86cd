//! The serving stacks' own rules: their properties, and the agreement of counts with ids if counts determine
//! the result.

#![allow(clippy::unwrap_used)]

use crate::command::{document, trace_file};
use crate::skip_support::skipped;
use evenkeel::cluster::Cluster;
use evenkeel::place::{self, Placement};
use evenkeel::split::{
    Split, SplitError, SplitMethod, Splitter, StackDispatch, StackRouter, StackRouterError,
    StackRouterOptions,
};
use evenkeel_simulate::{SimulationConfig, simulate};
use evenkeel_trace::{self as trace, Batching, ReadOptions};
use proptest::prelude::*;
use std::path::PathBuf;

/// Placements of three layers with random replicas on `nodes` x `per_node` ranks, with the number of ids of
/// each expert on every source, in its own order.
#[derive(Debug, Clone)]
struct Case {
    nodes: usize,
    layers: Vec<Placement>,
    loads: Vec<u64>,
}

fn cases() -> impl Strategy<Value = Case> {
    (1usize..4, 1usize..4, 1usize..9, 0usize..3)
        .prop_flat_map(|(nodes, per_node, experts, spare)| {
            let slots = nodes * per_node * (experts.div_ceil(nodes * per_node) + spare);
            let order = Just((0..slots).collect::<Vec<_>>()).prop_shuffle();
            let layer = (order, prop::collection::vec(0..experts, slots));
            let loads = prop::collection::vec(0u64..100, experts);
            (Just((nodes, per_node, experts, slots)), prop::collection::vec(layer, 3), loads)
        })
        .prop_map(|((nodes, per_node, experts, slots), layers, loads)| {
            let placement = |(order, extra): (Vec<usize>, Vec<usize>)| {
                let mut map = vec![None; slots];
                for (k, &slot) in order.iter().enumerate() {
                    map[slot] = Some(if k < experts { k } else { extra[k] } as u32);
                }
                Placement::new(experts, nodes * per_node, map).unwrap()
            };
            Case { nodes, layers: layers.into_iter().map(placement).collect(), loads }
        })
}

impl Case {
    fn ranks(&self) -> usize {
        self.layers[0].ranks()
    }

    fn router(&self, stack: StackDispatch, options: StackRouterOptions) -> StackRouter {
        StackRouter::new(stack, self.layers.clone(), options.nodes(self.nodes)).unwrap()
    }

    /// Returns a source's ids. Every source has the same number of ids of each expert, in a different order.
    fn ids(&self, source: usize) -> Vec<i32> {
        let mut ids: Vec<i32> =
            self.loads.iter().enumerate().flat_map(|(e, &n)| vec![e as i32; n as usize]).collect();
        let len = ids.len().max(1);
        ids.sort_by_key(|&id| (id as usize * 37 + source * 11) % 13);
        ids.rotate_left(source * 7 % len);
        ids
    }

    /// Returns the loads if every source has the same tokens: by slot, and by rank according to the router.
    fn served(&self, router: &StackRouter, layer: usize) -> (Vec<u64>, Vec<u64>) {
        let mut served = vec![0; self.layers[layer].slots().len()];
        let ids: Vec<Vec<i32>> = (0..self.ranks()).map(|source| self.ids(source)).collect();
        for (source, ids) in ids.iter().enumerate() {
            for slot in router.redirect(layer, ids, 1, source).unwrap() {
                served[slot as usize] += 1;
            }
        }
        let ids: Vec<&[i32]> = ids.iter().map(Vec::as_slice).collect();
        (served, router.loads(layer, &ids, 1).unwrap())
    }
}

fn split(placement: &Placement, method: SplitMethod, nodes: usize, loads: &[u64]) -> Split {
    let mut splitter = Splitter::builder(placement.clone()).method(method).nodes(nodes).build().unwrap();
    let mut split = Split::default();
    splitter.split(loads, &mut split).unwrap();
    splitter.check(loads, &split).unwrap();
    split
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_token_is_served_and_the_same_every_time(case in cases(), shift in 0u64..51) {
        let loads: Vec<u64> = case.loads.iter().map(|load| load << shift).collect();
        for stack in StackDispatch::ALL {
            let first = split(&case.layers[0], SplitMethod::Stack(stack), case.nodes, &loads);
            prop_assert_eq!(&first, &split(&case.layers[0], SplitMethod::Stack(stack), case.nodes, &loads));
            prop_assert_eq!(first.rank_loads.iter().sum::<u64>(), loads.iter().sum::<u64>());
        }
    }

    #[test]
    fn one_replica_per_expert_leaves_no_choice(case in cases()) {
        let (ranks, experts) = (case.ranks(), case.loads.len());
        let slots = experts.div_ceil(ranks) * ranks;
        let map = (0..slots).map(|slot| (slot < experts).then_some(slot as u32)).collect();
        let single = Placement::new(experts, ranks, map).unwrap();
        for stack in StackDispatch::ALL {
            let options = StackRouterOptions::default().nodes(case.nodes);
            let router = StackRouter::new(stack, [single.clone()], options).unwrap();
            let ids: Vec<i32> = (0..experts as i32).collect();
            prop_assert_eq!(router.redirect(0, &ids, 1, ranks - 1).unwrap(), ids);
            prop_assert_eq!(
                split(&single, SplitMethod::Stack(stack), case.nodes, &case.loads),
                split(&single, SplitMethod::Even, 1, &case.loads)
            );
        }
    }

    #[test]
    fn tokens_go_where_their_expert_is(case in cases(), rebalanced in any::<bool>()) {
        for stack in StackDispatch::ALL {
            let router = case.router(stack, StackRouterOptions::default().rebalanced(rebalanced));
            for (layer, placement) in case.layers.iter().enumerate() {
                let mut ids = case.ids(0);
                ids.push(-1);
                let slots = router.redirect(layer, &ids, 1, 0).unwrap();
                prop_assert_eq!(&slots, &router.redirect(layer, &ids, 1, 0).unwrap());
                for (&id, &slot) in ids.iter().zip(&slots) {
                    let held = usize::try_from(slot).ok().and_then(|slot| placement.slots()[slot]);
                    prop_assert_eq!(held, u32::try_from(id).ok());
                    prop_assert!(slot >= -1);
                }
                let (served, loads) = case.served(&router, layer);
                let of_ranks = served.chunks(placement.slots_per_rank());
                prop_assert_eq!(loads, of_ranks.map(|rank| rank.iter().sum()).collect::<Vec<u64>>());
            }
        }
    }

    #[test]
    fn counts_say_what_ids_do_where_the_source_decides(case in cases()) {
        // Each source's ids fit into one block of TensorRT-LLM.
        prop_assume!(case.loads.iter().sum::<u64>() <= 1024);
        let (ranks, placement) = (case.ranks() as u64, &case.layers[1]);
        let loads: Vec<u64> = case.loads.iter().map(|load| load * ranks).collect();
        for stack in [StackDispatch::VllmAscend, StackDispatch::Trtllm] {
            let router = case.router(stack, StackRouterOptions::default());
            let quotas = split(placement, SplitMethod::Stack(stack), case.nodes, &loads).quotas;
            prop_assert_eq!(quotas, case.served(&router, 1).0, "{}", stack);
        }
        // SGLang's choices are fair if all sources draw the same, up to the load of one source.
        let stack = StackDispatch::SglangStatic;
        let router = case.router(stack, StackRouterOptions::default().rebalanced(true));
        let quotas = split(placement, SplitMethod::Stack(stack), case.nodes, &loads).quotas;
        for (slot, (&quota, served)) in quotas.iter().zip(case.served(&router, 1).0).enumerate() {
            let one_source = placement.slots()[slot].map_or(0, |expert| case.loads[expert as usize]);
            prop_assert!(quota.abs_diff(served) <= one_source, "slot {}: {} for {}", slot, quota, served);
        }
    }
}

/// Returns a placement of 2 nodes x 2 ranks x 2 slots: expert 0 on ranks 0 and 1, expert 1 on ranks 0 and 3,
/// expert 2 on all.
fn two_nodes() -> Placement {
    let slots = [0, 1, 0, 2, 2, 3, 1, 2].map(Some);
    Placement::new(4, 4, slots.to_vec()).unwrap()
}

#[test]
fn sglang_looks_at_the_own_gpu_then_the_own_node() {
    let quotas =
        |stack, nodes| split(&two_nodes(), SplitMethod::Stack(stack), nodes, &[80, 80, 80, 8]).quotas;
    let ranks = quotas(StackDispatch::SglangStatic, 2);
    // Expert 0: node 0 has both of its replicas, so ranks 2 and 3 use either.
    assert_eq!((ranks[0], ranks[2]), (40, 40));
    // Expert 1: one replica on each node.
    assert_eq!((ranks[1], ranks[6]), (40, 40));
    // Expert 2: ranks 1, 2 and 3 have it, and rank 0 uses that of rank 1 on its node.
    assert_eq!((ranks[3], ranks[4], ranks[7]), (40, 20, 20));
    let one_node = quotas(StackDispatch::SglangStatic, 1);
    assert_eq!((one_node[3], one_node[4], one_node[7]), (27, 27, 26), "rank 0 takes any of the three");
    let random = quotas(StackDispatch::SglangRandom, 2);
    assert_eq!((random[3], random[4], random[7]), (40, 20, 20), "nothing is left to chance");
    assert_eq!(random[1] + random[6], 80);
}

#[test]
fn rows_and_sources_decide_as_published() {
    let of = |stack, options: StackRouterOptions| StackRouter::new(stack, [two_nodes()], options).unwrap();
    let ids = [2, 0, 2, 1, 2, -1, 2, 1];
    let redirect =
        |stack, source| of(stack, StackRouterOptions::default()).redirect(0, &ids, 2, source).unwrap();
    assert_eq!(redirect(StackDispatch::SglangDynamic, 3), [3, 0, 4, 6, 7, -1, 3, 6]);
    // 2654435769 * (0, 1, 2, 3), low 32 bits: 0, 2654435769, 1013904242, 3668340011; modulo 3: 0, 0, 2, 2;
    // modulo 2: 0, 1, 0, 1.
    assert_eq!(redirect(StackDispatch::Vllm, 3), [3, 0, 3, 6, 7, -1, 7, 6]);
    assert_eq!(redirect(StackDispatch::VllmAscend, 3), [3, 2, 3, 6, 3, -1, 3, 6]);
    assert_eq!(redirect(StackDispatch::VllmAscend, 1), [4, 2, 4, 6, 4, -1, 4, 6]);
    // (1 + 1 + 2) modulo 3 of expert 2, (1 + 1 + 0) modulo 2 of expert 0, (1 + 1 + 1) modulo 2 of expert 1.
    let tp = StackRouterOptions::default().tp_size(2);
    let tp = of(StackDispatch::VllmAscend, tp).redirect(0, &ids, 2, 3).unwrap();
    assert_eq!(tp, [4, 0, 4, 6, 4, -1, 4, 6]);
    assert_eq!(redirect(StackDispatch::Trtllm, 0), [3, 0, 4, 1, 7, -1, 3, 6]);
    assert_eq!(redirect(StackDispatch::Trtllm, 1), [4, 2, 7, 6, 3, -1, 4, 1]);
    // A second block begins one replica further.
    let long =
        of(StackDispatch::Trtllm, StackRouterOptions::default()).redirect(0, &[2i64; 1026], 2, 0).unwrap();
    assert_eq!((long[0], long[1023], long[1024], long[1025]), (3, 3, 4, 7));
}

#[test]
fn chance_is_seeded_and_fair() {
    let placement = Placement::new(1, 2, vec![Some(0), Some(0)]).unwrap();
    let mut peaks = 0;
    for batch in 0..400 {
        let quotas = split(&placement, SplitMethod::Stack(StackDispatch::Vllm), 1, &[1000 + batch]).quotas;
        let deviation = quotas[0] as f64 - (1000 + batch) as f64 / 2.0;
        peaks += u64::from(deviation.abs() > ((1000 + batch) as f64).sqrt());
    }
    // Two standard deviations: 4.6 % of 400 are 18.
    assert!((6..36).contains(&peaks), "{peaks}");

    let four = Placement::new(2, 4, [0, 0, 0, 1].map(Some).to_vec()).unwrap();
    let ids = [0i32; 600];
    let sample = |seed, rebalanced, source| {
        let options = StackRouterOptions::default().seed(seed).rebalanced(rebalanced);
        let router = StackRouter::new(StackDispatch::SglangRandom, [four.clone()], options).unwrap();
        router.redirect(0, &ids, 1, source).unwrap()
    };
    assert_eq!(sample(1, false, 3), sample(1, false, 3));
    assert_ne!(sample(1, false, 3), sample(2, false, 3));
    assert_eq!(sample(1, false, 1), [1; 600], "the own GPU has it");
    for (rebalanced, source) in [(false, 3), (true, 1)] {
        for slot in 0..3 {
            let served = sample(7, rebalanced, source).iter().filter(|&&s| s == slot).count();
            assert!((150..250).contains(&served), "{served}");
        }
    }
}

#[test]
fn names_are_parsed_and_listed() {
    for stack in StackDispatch::ALL {
        assert_eq!(stack.to_string().parse::<StackDispatch>().unwrap(), stack);
        assert_eq!(stack.name().parse::<SplitMethod>().unwrap(), SplitMethod::Stack(stack));
        let message = "sglang".parse::<SplitMethod>().unwrap_err().to_string();
        assert!(message.contains(stack.name()) && message.contains("exact"), "{message}");
        assert!("even".parse::<StackDispatch>().unwrap_err().to_string().contains(stack.name()));
    }
}

#[test]
fn what_cannot_be_routed_is_refused() {
    let options = StackRouterOptions::default();
    let new = |placements: Vec<Placement>, options| {
        StackRouter::new(StackDispatch::Vllm, placements, options).map(|_| ()).unwrap_err().to_string()
    };
    assert!(new(vec![], options).contains("a placement per layer"));
    let other = Placement::new(4, 2, [0, 1, 2, 3].map(Some).to_vec()).unwrap();
    assert!(
        new(vec![two_nodes(), other], options).contains("layer 1 has (experts, ranks, slots) = (4, 2, 4)")
    );
    assert_eq!(new(vec![two_nodes()], options.nodes(3)), "nodes 3: expected a divisor of 4, the ranks");
    assert!(new(vec![two_nodes()], options.tp_size(0)).contains("tp_size 0"));
    let router = StackRouter::new(StackDispatch::Vllm, [two_nodes()], options).unwrap();
    let refused = |layer, ids: &[i64], top_k, source| {
        router.redirect(layer, ids, top_k, source).unwrap_err().to_string()
    };
    assert_eq!(refused(1, &[0], 1, 0), "layer 1: expected 0 to 0");
    assert_eq!(refused(0, &[0], 1, 4), "source 4: expected 0 to 3");
    assert_eq!(refused(0, &[0, 1, 2], 2, 0), "top_k 2: expected a divisor of 3, the ids");
    assert_eq!(refused(0, &[0], 0, 0), "top_k 0: expected a divisor of 1, the ids");
    assert_eq!(refused(0, &[0, 4], 2, 0), "position 1: expert id 4, expected -1 (no expert) to 3");
    let room = router.redirect_into(0, &[0i32], 1, 0, &mut [0, 0]);
    assert_eq!(room, Err(StackRouterError::Room { ids: 1, room: 2 }));
    let nodes = Splitter::builder(two_nodes()).method(SplitMethod::Even).nodes(3).build().unwrap_err();
    assert!(matches!(nodes, SplitError::Nodes { ranks: 4, nodes: 3 }));
}

#[test]
fn the_command_compares_stacks() {
    let folder = tempfile::tempdir().unwrap();
    let trace = trace_file(folder.path(), "loads.csv", 20, |step| step / 10);
    let mean = |nodes: &str| {
        let splits = "even,sglang-static,sglang-dynamic,sglang-random,vllm,vllm-ascend,trtllm,exact";
        let options = ["simulate", &trace, "--ranks", "4", "--redundant", "8", "--nodes", nodes];
        let more = ["--policies", "eplb", "--splits", splits, "--json"];
        let results = document(&[&options[..], &more[..]].concat())["results"].as_array().unwrap().clone();
        assert_eq!(results.len(), 8);
        let all: Vec<(String, f64)> = results
            .iter()
            .map(|row| (row["split"].as_str().unwrap().into(), row["imbalance"]["mean"].as_f64().unwrap()))
            .collect();
        let exact = all[7].1;
        assert!(all.iter().all(|(_, mean)| *mean >= exact), "{all:?}");
        all
    };
    let (one, two) = (mean("1"), mean("2"));
    let of = |all: &[(String, f64)], name: &str| all.iter().find(|(split, _)| split == name).unwrap().1;
    let apart = |a: f64, b: f64| (a - b).abs() > 1e-9;
    assert!(!apart(of(&one, "vllm"), of(&one, "sglang-dynamic")), "both are draws, of the same numbers");
    assert!(apart(of(&one, "vllm"), of(&one, "even")), "draws are not even");
    assert!(apart(of(&one, "sglang-static"), of(&two, "sglang-static")));
}

/// Compares two predictions for recorded batches on 8 ranks x 5 slots in two nodes. One is `simulate`, from
/// counts alone. The other redirects every token, with the batch dealt out in equal consecutive parts.
/// `--nocapture` prints both.
#[test]
fn counts_foretell_recorded_batches() {
    let root =
        std::env::var_os("EVENKEEL_REAL_TRACES").map(|root| PathBuf::from(root).join("gptoss20b-decode"));
    let Some(path) = root.filter(|path| path.is_dir()) else {
        skipped("no real traces");
        return;
    };
    println!("batches                rule            from counts  from tokens   (mean imbalance)");
    let batchings = [Batching::Decode { in_flight: 64 }, Batching::Prefill { tokens: 512 }];
    for (name, batching) in ["64 requests decoding", "512 consecutive tokens"].into_iter().zip(batchings) {
        let options = ReadOptions::default().batching(batching);
        let tokens = trace::read_tokens(std::slice::from_ref(&path), &options, &()).unwrap();
        let (trace, top_k) = (tokens.trace(), tokens.top_k());
        let cluster = Cluster::new(8, 2, trace.experts(), 8).unwrap();
        let methods = StackDispatch::ALL.map(SplitMethod::Stack).to_vec();
        let config = SimulationConfig::first_part(trace, cluster, methods, 0.4).unwrap();
        let outcome = simulate(trace, &config, &[place::policy("eplb", 1, &cluster).unwrap()], &()).unwrap();
        for (stack, row) in StackDispatch::ALL.into_iter().zip(&outcome.rows) {
            let options = StackRouterOptions::default().nodes(2);
            let router = StackRouter::new(stack, outcome.planned[0].placements.clone(), options).unwrap();
            let (mut sum, mut batches) = (0.0, 0.0);
            for step in config.judge_on.clone() {
                for (at, &layer) in outcome.layers.iter().enumerate() {
                    let ids = tokens.expert_ids(step, layer);
                    let start = |rank: usize| rank * (ids.len() / top_k) / 8 * top_k;
                    let parts: Vec<&[i32]> = match stack {
                        StackDispatch::SglangDynamic => vec![&ids],
                        _ => (0..8).map(|rank| &ids[start(rank)..start(rank + 1)]).collect(),
                    };
                    let loads = router.loads(at, &parts, top_k).unwrap();
                    sum += *loads.iter().max().unwrap() as f64 * 8.0 / ids.len() as f64;
                    batches += 1.0;
                }
            }
            let (counts, each) = (row.imbalance.mean, sum / batches);
            println!("{name:22} {:14}  {counts:11.3}  {each:11.3}", stack.name());
            assert!((counts - each).abs() < 0.15 * each, "{stack}: {counts} for {each}");
        }
    }
}
