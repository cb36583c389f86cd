//! The CUDA backend against the reference: on a GPU where there is one, and in any case on the kernels compiled as C++ behind a
//! driver of our own (`kernels/host/driver.cpp`), on which the last tests here run all the others again.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod driver_support;
mod exec_support;

use driver_support::host_driver;
use evenkeel::cluster::Cluster;
use evenkeel::exec::cuda::{Cuda, Experts, Options, Path, Streams};
use evenkeel::exec::forward::step;
use evenkeel::exec::moves::Mover;
use evenkeel::exec::random::Stream;
use evenkeel::exec::reference::Reference;
use evenkeel::exec::router::{Capacity, Overflow, Router};
use evenkeel::exec::weights::Dtype;
use evenkeel::exec::{Backend, ExecConfig, ExecError, LayerInput, Routed};
use evenkeel::model::Model;
use evenkeel::place::Placement;
use evenkeel::split::Method;
use exec_support::{config, placement, refuses_other_input, small, tokens, weights};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

const ROUTERS: [&str; 8] =
    ["switch", "gshard", "noisy", "softmax", "softmax-renorm", "topk-softmax", "sigmoid", "soft"];

/// Both ways to multiply, both ways to share a GPU.
const OPTIONS: [(Path, Streams); 4] = [
    (Path::Own, Streams::Alone),
    (Path::Own, Streams::Own),
    (Path::Cublas, Streams::Alone),
    (Path::Cublas, Streams::Own),
];

/// This test's turn on the GPU, if there is one: how much memory is free is the same number for all tests of a process.
fn gpu() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    match evenkeel::cuda::probe() {
        Ok(_) => Some(TURN.lock().unwrap_or_else(PoisonError::into_inner)),
        Err(error) => {
            println!("skipped: no GPU ({error})");
            None
        }
    }
}

fn options(at: usize) -> Options {
    let (path, streams) = OPTIONS[at % OPTIONS.len()];
    // Ranks are dealt to all GPUs that there are, to three at most.
    let devices = evenkeel::cuda::probe().map_or(1, |found| found.len()).min(3);
    Options { device: 0, devices, path, streams }
}

fn backend(config: &ExecConfig, at: usize, placements: Vec<Placement>) -> (Cuda, Reference) {
    let weights = weights(config);
    let cuda = Cuda::new(config.clone(), options(at), weights.as_ref(), placements).unwrap();
    (cuda, Reference::new(config.clone(), weights))
}

/// Runs as many layers as there are placements, twice, and checks everything that the reference can say.
fn check(config: &ExecConfig, at: usize, placements: Vec<Placement>, per_rank: &[usize], seed: u64) {
    let layers = placements.len();
    let (mut cuda, mut reference) = backend(config, at, placements);
    for again in 0..2 {
        let mut x = tokens(config.model.hidden, per_rank, seed + again);
        let run = step(&mut cuda, layers, 5, &mut x, |_| Routed::Router, Some(&mut reference)).unwrap();
        let check = run.check.unwrap();
        assert!(check.ok(Dtype::Bf16), "{check:?} for {config:?}, {:?} and {per_rank:?}", options(at));
        for layer in &run.layers {
            let routed: u64 =
                layer.routed.iter().flat_map(|r| &r.routing.ids).map(|&id| u64::from(id >= 0)).sum();
            assert_eq!(layer.counts.iter().sum::<u64>(), routed, "every choice is counted");
            assert_eq!(layer.rank_loads.iter().sum::<u64>(), routed, "every choice is served, once");
            assert_eq!(layer.copies.pairs, routed);
        }
    }
}

#[test]
fn any_placement_router_and_capacity_gives_the_reference() {
    let Some(_turn) = gpu() else { return };
    let models = ["qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite", "glam-64b"];
    for case in 0..64u64 {
        let mut random = Stream::new(case, &[7]);
        let mut below = |n: usize| (random.bits() % n as u64) as usize;
        let (ranks, top_k) = (1 + below(4), 1 + below(3));
        let model = small(models[below(4)], 7, top_k);
        let per = (7 + below(5)).div_ceil(ranks);
        let cluster = Cluster::new(ranks, 1, 7, per * ranks - 7).unwrap();
        let router = ROUTERS[case as usize % ROUTERS.len()].parse().unwrap();
        let mut config = config(model, cluster, router, Dtype::Bf16);
        config.method =
            [None, Some(Method::Even), Some(Method::Lp), Some(Method::Exact), Some(Method::Exact)][below(5)];
        config.capacity =
            [None, Some((0.5, Overflow::Drop)), Some((0.7, Overflow::Next)), Some((1.0, Overflow::Drop))]
                [below(4)]
            .map(|(factor, overflow)| Capacity { factor, overflow });
        let placements = (0..2).map(|layer| placement(7, &cluster, case ^ layer)).collect();
        let per_rank: Vec<usize> = (0..ranks).map(|_| below(9)).collect();
        check(&config, below(4), placements, &per_rank, case);
    }
}

#[test]
fn groups_of_experts_limit_a_sigmoid_router() {
    let Some(_turn) = gpu() else { return };
    let cluster = Cluster::new(2, 1, 24, 2).unwrap();
    for (groups, top_groups) in [(4, 2), (8, 3), (24, 6), (1, 1)] {
        let router = Router::Sigmoid { groups, top_groups, scale: 2.5, bias: vec![] };
        let config = config(small("deepseek-v3", 24, 5), cluster, router, Dtype::Bf16);
        check(&config, 0, vec![placement(24, &cluster, 3)], &[33, 20], groups as u64);
    }
}

/// Tiles of all three sizes, groups of no, one and many rows, widths that no tile divides.
#[test]
fn experts_of_any_size_give_the_reference() {
    let Some(_turn) = gpu() else { return };
    let shapes: [(&str, usize, u64, u64, &[usize]); 8] = [
        ("qwen3-30b-a3b", 3, 136, 200, &[700]),
        ("qwen3-30b-a3b", 9, 72, 64, &[300, 0]),
        ("gpt-oss-20b", 4, 64, 72, &[129, 1]),
        ("glam-64b", 2, 192, 136, &[260]),
        ("deepseek-v2-lite", 5, 128, 128, &[64, 65, 63]),
        ("switch-c", 8, 88, 48, &[1, 0, 0, 0]),
        ("mixtral-8x7b", 8, 256, 320, &[90, 0]),
        ("kimi-k2", 40, 64, 48, &[17; 8]),
    ];
    for (at, (name, experts, hidden, intermediate, per_rank)) in shapes.into_iter().enumerate() {
        let model = Model { hidden, intermediate, ..small(name, experts, 2) };
        let ranks = per_rank.len();
        let cluster =
            Cluster::new(ranks, 1, experts, experts.next_multiple_of(ranks) + ranks - experts).unwrap();
        for path in [0, 2] {
            let config = config(model, cluster, Router::of(&model), Dtype::Bf16);
            check(&config, path, vec![placement(experts, &cluster, at as u64)], per_rank, 40 + at as u64);
        }
    }
}

/// Every kernel once, on few tokens: what a sanitiser of threads has time for.
#[test]
fn a_small_layer_gives_the_reference() {
    let Some(_turn) = gpu() else { return };
    let cluster = Cluster::new(2, 1, 4, 2).unwrap();
    for (path, router) in [(0, "sigmoid"), (2, "softmax")] {
        let model = Model { hidden: 72, ..small("deepseek-v2-lite", 4, 2) };
        let router = match router.parse().unwrap() {
            Router::Sigmoid { scale, bias, .. } => Router::Sigmoid { groups: 2, top_groups: 1, scale, bias },
            other => other,
        };
        let mut config = config(model, cluster, router, Dtype::Bf16);
        config.capacity = Some(Capacity { factor: 1.2, overflow: Overflow::Drop });
        check(&config, path, vec![placement(4, &cluster, 1)], &[5, 2], 3);
    }
}

#[test]
fn any_valid_split_gives_the_reference() {
    let Some(_turn) = gpu() else { return };
    for case in 0..24u64 {
        let mut random = Stream::new(case, &[]);
        let mut below = |n: usize| (random.bits() % n as u64) as usize;
        let (ranks, top_k) = (1 + below(4), 1 + below(3));
        let cluster = Cluster::new(ranks, 1, 6, 6 * ranks - 6).unwrap();
        let config = config(small("qwen3-30b-a3b", 6, top_k), cluster, Router::TopkSoftmax, Dtype::Bf16);
        let placement = placement(6, &cluster, case);
        let (mut cuda, mut reference) = backend(&config, case as usize, vec![placement.clone()]);
        let mut x = tokens(64, &(0..ranks).map(|_| below(7)).collect::<Vec<_>>(), case);
        let (mut ids, mut slots) = (vec![], vec![]);
        for x in &x {
            let mut of_source = vec![];
            for _ in 0..x.len() / 64 {
                // Different experts, or none.
                let mut of_token: Vec<i32> = vec![];
                while of_token.len() < top_k {
                    let id = below(7) as i32 - 1;
                    if id < 0 || !of_token.contains(&id) {
                        of_token.push(id);
                    }
                }
                of_source.extend(of_token);
            }
            let copy = |&id: &i32| match usize::try_from(id) {
                Ok(expert) => {
                    let copies = placement.copies(expert);
                    i64::from(copies[below(copies.len())])
                }
                Err(_) => -1,
            };
            slots.push(of_source.iter().map(copy).collect::<Vec<i64>>());
            ids.push(of_source);
        }
        for (slots, and_route) in [(Some(&slots[..]), false), (None, true), (None, false)] {
            let routed = |_| Routed::Replay { ids: &ids, top_k, weights: None, slots, and_route };
            let run = step(&mut cuda, 1, 0, &mut x, routed, Some(&mut reference)).unwrap();
            assert!(run.check.unwrap().ok(Dtype::Bf16), "{:?}", run.check);
        }
    }
}

#[test]
fn a_recorded_layer_is_the_layer() {
    let Some(_turn) = gpu() else { return };
    for (at, name) in ["qwen3-30b-a3b", "deepseek-v2-lite", "deepseek-v3"].into_iter().enumerate() {
        for streams in [Streams::Alone, Streams::Own] {
            for method in [None, Some(Method::Exact)] {
                let cluster = Cluster::new(4, 2, 8, 4).unwrap();
                let mut config =
                    config(small(name, 8, 2), cluster, Router::Softmax { renormalise: at == 0 }, Dtype::Bf16);
                config.method = method;
                config.capacity = Some(Capacity { factor: 1.5, overflow: Overflow::Drop });
                let options = Options { streams, ..Options::default() };
                let placements = vec![placement(8, &cluster, 5); 2];
                let mut cuda =
                    Cuda::new(config.clone(), options, weights(&config).as_ref(), placements).unwrap();
                let recorded = cuda.record(1, &[3, 0, 20, 5], false).unwrap();
                let with_residual = cuda.record(1, &[3, 0, 20, 5], true).unwrap();
                for seed in 0..3 {
                    let x = tokens(64, &[3, 0, 20, 5], seed);
                    let input = LayerInput { layer: 1, step: 0, tokens: &x, routed: Routed::Router };
                    let expected = cuda.layer(&input).unwrap().outputs;
                    assert_eq!(cuda.launch(&recorded, &x).unwrap(), expected);
                    let added: Vec<Vec<f32>> = x
                        .iter()
                        .zip(&expected)
                        .map(|(x, y)| x.iter().zip(y).map(|(x, y)| x + y).collect())
                        .collect();
                    assert_eq!(cuda.launch(&with_residual, &x).unwrap(), added);
                }
                assert_eq!(cuda.time(&recorded, 3).unwrap().len(), 3);
                let x = tokens(64, &[3, 0, 100, 5], 0);
                cuda.layer(&LayerInput { layer: 0, step: 0, tokens: &x, routed: Routed::Router }).unwrap();
                let refused = cuda.time(&recorded, 1).unwrap_err().to_string();
                assert!(refused.contains("record it again"), "{refused}");
                let recorded = cuda.record(0, &[1; 4], false).unwrap();
                let same = cuda.placement(0).clone();
                cuda.switch(0, same).unwrap();
                assert!(cuda.launch(&recorded, &tokens(64, &[1; 4], 0)).is_err());
            }
        }
    }
    let cluster = Cluster::new(2, 1, 8, 0).unwrap();
    let mut config = config(small("qwen3-30b-a3b", 8, 2), cluster, Router::Gshard, Dtype::Bf16);
    let (mut cuda, _) = backend(&config, 0, vec![placement(8, &cluster, 5)]);
    assert!(cuda.record(0, &[1, 1], false).unwrap_err().to_string().contains("router"));
    (config.router, config.method) = (Router::Switch, Some(Method::Lp));
    let (mut cuda, _) = backend(&config, 0, vec![placement(8, &cluster, 5)]);
    assert!(cuda.record(0, &[1, 1], false).unwrap_err().to_string().contains("split"));
    assert!(cuda.record(0, &[1], false).is_err() && cuda.record(1, &[1, 1], false).is_err());
}

#[test]
fn placements_switch_at_every_step() {
    let Some(_turn) = gpu() else { return };
    for (at, streams) in [Streams::Alone, Streams::Own].into_iter().enumerate() {
        let cluster = Cluster::new(4, 1, 10, 6).unwrap();
        let config = config(small("deepseek-v2-lite", 10, 3), cluster, Router::TopkSoftmax, Dtype::Bf16);
        let (mut cuda, mut reference) = backend(&config, at, vec![placement(10, &cluster, 0); 2]);
        let mut mover = Mover::new(u64::MAX);
        for at in 0..100u64 {
            let mut x = tokens(64, &[3, 0, 5, 1], at);
            for layer in 0..2 {
                mover.aim(&cuda, layer, placement(10, &cluster, 1000 + 2 * at + layer as u64));
            }
            mover.between_steps(&mut cuda).unwrap();
            // The copies run beside this step; then everything is there.
            let run =
                step(&mut cuda, 2, at, &mut x.clone(), |_| Routed::Router, Some(&mut reference)).unwrap();
            assert!(run.check.unwrap().ok(Dtype::Bf16), "step {at}, {streams:?}: {:?}", run.check);
            let moved = mover.between_steps(&mut cuda).unwrap();
            assert_eq!(moved.switched, [0, 1], "step {at}");
            let run = step(&mut cuda, 2, at, &mut x, |_| Routed::Router, Some(&mut reference)).unwrap();
            assert!(run.check.unwrap().ok(Dtype::Bf16), "step {at}, {streams:?}: {:?}", run.check);
        }
        assert!(cuda.memory().iter().all(|&[_, staged]| staged == 0), "staging slots are empty again");
        let missing = cuda.switch(0, placement(10, &cluster, 2)).unwrap_err();
        assert!(matches!(missing, ExecError::NotStaged { layer: 0, .. }), "{missing}");
        assert!(cuda.copy(0, 9, 0).is_err() && cuda.copy(0, 0, 10).is_err() && cuda.copy(2, 0, 0).is_err());
    }
}

#[test]
fn another_backend_shares_what_ranks_hold() {
    let Some(_turn) = gpu() else { return };
    let cluster = Cluster::new(3, 1, 9, 6).unwrap();
    let config =
        config(small("qwen3-30b-a3b", 9, 2), cluster, Router::Softmax { renormalise: true }, Dtype::Bf16);
    let (mut first, mut reference) = backend(&config, 0, vec![placement(9, &cluster, 1)]);
    let (_, free) = (0, first.gpu().memory().unwrap().0);
    let mut same = first.with(weights(&config).as_ref(), vec![placement(9, &cluster, 1)], None).unwrap();
    let expert = first.bytes(0, 0).unwrap();
    assert!(free - same.gpu().memory().unwrap().0 < expert, "no expert is there twice");
    let mut other = first.with(weights(&config).as_ref(), vec![placement(9, &cluster, 2)], None).unwrap();
    for cuda in [&mut first, &mut same, &mut other] {
        let mut x = tokens(64, &[5, 2, 0], 8);
        let run = step(cuda, 1, 0, &mut x, |_| Routed::Router, Some(&mut reference)).unwrap();
        assert!(run.check.unwrap().ok(Dtype::Bf16), "{:?}", run.check);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(_turn) = gpu() else { return };
    let cluster = Cluster::new(2, 1, 4, 2).unwrap();
    let mut config = config(small("qwen3-30b-a3b", 4, 1), cluster, Router::TopkSoftmax, Dtype::Bf16);
    let new = |config: &ExecConfig, placements| {
        Cuda::new(config.clone(), Options::default(), weights(config).as_ref(), placements)
    };
    let other = Cluster::new(2, 1, 4, 0).unwrap();
    let refused = new(&config, vec![placement(4, &other, 0)]).unwrap_err();
    assert!(refused.to_string().contains("slots of a placement"), "{refused}");
    let (mut cuda, _) = backend(&config, 0, vec![placement(4, &cluster, 0)]);
    refuses_other_input(&mut cuda);

    config.dtype = Dtype::F32;
    let refused = new(&config, vec![placement(4, &cluster, 0)]).unwrap_err().to_string();
    assert!(refused.contains("bf16"), "{refused}");
    config.dtype = Dtype::Bf16;
    config.model.hidden = 60;
    let refused = new(&config, vec![placement(4, &cluster, 0)]).unwrap_err().to_string();
    assert!(refused.contains("multiples of 8"), "{refused}");
    // 58 layers of 256 experts of 88 MB.
    let model: Model = "deepseek-v3:bf16".parse().unwrap();
    let cluster = Cluster::new(8, 1, 256, 0).unwrap();
    let config = exec_support::config(model, cluster, Router::of(&model), Dtype::Bf16);
    let refused = new(&config, vec![placement(256, &cluster, 0); 58]).unwrap_err();
    assert!(matches!(refused, ExecError::Memory { needed, free, .. } if needed > free), "{refused}");
}

#[test]
fn experts_alone_are_timed() {
    let Some(_turn) = gpu() else { return };
    let cluster = Cluster::new(1, 1, 6, 0).unwrap();
    let config = config(small("gpt-oss-20b", 6, 2), cluster, Router::TopkSoftmax, Dtype::Bf16);
    let experts = Experts::new(0, &config.model, weights(&config).as_ref(), [6, 2, 40]).unwrap();
    for path in [Path::Own, Path::Cublas] {
        for tile in [None, Some(0), Some(1), Some(2)] {
            let times = experts.time(path, 1, &[3, 0, 20], tile, 4).unwrap();
            assert!(times.len() == 4 && times.iter().all(|&ms| ms >= 0.0));
        }
    }
    assert!(experts.time(Path::Own, 4, &[1, 1, 1], None, 1).is_err());
    assert_eq!(experts.dense([20, 30, 40], 2).unwrap().len(), 2);
}

/// Runs all other tests here on the driver in `folder`.
fn run_on(folder: &std::path::Path, order: u32, which: &[&str], environment: &[(&str, &str)]) {
    let cache = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--skip", "on_a_host", "--nocapture"])
        .args(which)
        .env("LD_LIBRARY_PATH", folder)
        .env("EVENKEEL_CACHE", cache.path())
        .env("EK_ORDER", order.to_string())
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "order {order}\n{said}\n{errors}");
    assert!(!said.contains("skipped"), "{said}");
}

#[test]
fn all_of_it_on_a_host_in_every_order_of_lanes() {
    let Some(folder) = host_driver("plain", &["-O2"]) else { return };
    (0..3).for_each(|order| run_on(&folder, order, &[], &[]));
}

/// Kernels of one GPU cannot touch another's memory there.
#[test]
fn all_of_it_on_a_host_with_three_devices() {
    let Some(folder) = host_driver("devices", &["-O2"]) else { return };
    run_on(&folder, 2, &[], &[("EK_DEVICES", "3")]);
}

#[test]
fn all_of_it_on_a_host_within_bounds() {
    let flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let Some(folder) = host_driver("sanitised", &flags) else { return };
    let Some(library) = sanitiser("libasan.so") else { return };
    run_on(&folder, 2, &[], &[("LD_PRELOAD", &library), ("ASAN_OPTIONS", "detect_leaks=0")]);
}

/// With a thread for every lane: a barrier too few is a data race.
#[test]
fn no_barrier_is_missing_on_a_host() {
    let flags = ["-O1", "-g", "-DEK_THREADS", "-pthread", "-fsanitize=thread"];
    let Some(folder) = host_driver("threads", &flags) else { return };
    let Some(library) = sanitiser("libtsan.so") else { return };
    // This program itself is not instrumented: races that seem to be in it are none.
    let quiet = folder.join("suppressions");
    std::fs::write(&quiet, "race:exec_cuda\nthread:exec_cuda\nmutex:exec_cuda\n").unwrap();
    let options = format!("suppressions={} report_thread_leaks=0 exitcode=66", quiet.display());
    let which = ["a_small_layer", "--test-threads", "1"];
    let environment = [
        ("LD_PRELOAD", library.as_str()),
        ("TSAN_OPTIONS", &options),
        ("EK_MULTIPROCESSORS", "1"),
        ("RAYON_NUM_THREADS", "1"),
    ];
    run_on(&folder, 0, &which, &environment);
}

/// A sanitiser's library, where programs start with it; says so if not.
fn sanitiser(name: &str) -> Option<String> {
    let named = Command::new("c++").arg(format!("-print-file-name={name}")).output();
    let library = named.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    let starts =
        Command::new("true").env("LD_PRELOAD", &library).env("ASAN_OPTIONS", "detect_leaks=0").output();
    if library.starts_with('/') && starts.is_ok_and(|o| o.status.success() && o.stderr.is_empty()) {
        return Some(library);
    }
    println!("skipped: no {name}");
    None
}
