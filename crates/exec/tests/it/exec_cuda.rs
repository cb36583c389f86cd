//! Compares the CUDA backend with the reference. It runs on a GPU if there is one, and always with the
//! kernels compiled as C++ behind a simulated driver (`crates/cuda/tests/cuda-sim/driver.cpp`). The last
//! tests here run all others on that driver.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod dynamic;

use crate::driver_support::host_driver;
use crate::exec_support::{config, placement, refuses_other_input, small, tokens, weights};
use crate::skip_support::skipped;
use evenkeel::cluster::Cluster;
use evenkeel::model::MoeModel;
use evenkeel::place::Placement;
use evenkeel::split::SplitMethod;
use evenkeel_cuda::{CudaError, DeviceGather as _, GpuContext, NcclGather};
use evenkeel_exec::cuda::{Cuda, CudaOptions, ExpertTimer, GemmPath, StreamSharing};
use evenkeel_exec::forward::run_step;
use evenkeel_exec::migration::ExpertMigrator;
use evenkeel_exec::random::RandomStream;
use evenkeel_exec::reference::Reference;
use evenkeel_exec::router::{Capacity, Overflow, Router};
use evenkeel_exec::weights::Dtype;
use evenkeel_exec::{Backend, ExecConfig, ExecError, LayerInput, RoutingSource};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

const ROUTERS: [&str; 8] =
    ["switch", "gshard", "noisy", "softmax", "softmax-renorm", "topk-softmax", "sigmoid", "soft"];

/// All combinations of matrix products and GPU sharing.
const OPTIONS: [(GemmPath, StreamSharing); 4] = [
    (GemmPath::Own, StreamSharing::Alone),
    (GemmPath::Own, StreamSharing::Own),
    (GemmPath::Cublas, StreamSharing::Alone),
    (GemmPath::Cublas, StreamSharing::Own),
];

/// Takes this test's turn on the GPU, if there is one. Tests run one at a time, because all tests of a
/// process share the free memory.
fn gpu() -> Option<MutexGuard<'static, ()>> {
    static TURN: Mutex<()> = Mutex::new(());
    match evenkeel_cuda::probe_devices() {
        Ok(_) => Some(TURN.lock().unwrap_or_else(PoisonError::into_inner)),
        Err(error) => {
            skipped(&format!("no GPU ({error})"));
            None
        }
    }
}

fn options(at: usize) -> CudaOptions {
    let (path, streams) = OPTIONS[at % OPTIONS.len()];
    // Ranks are distributed over all GPUs, three at most.
    let devices = evenkeel_cuda::probe_devices().map_or(1, |found| found.len()).min(3);
    CudaOptions::default().devices(devices).path(path).streams(streams)
}

fn backend(config: &ExecConfig, at: usize, placements: Vec<Placement>) -> (Cuda, Reference) {
    let weights = weights(config);
    let cuda = Cuda::new(config.clone(), options(at), weights.as_ref(), placements).unwrap();
    (cuda, Reference::new(config.clone(), weights))
}

/// Runs as many layers as there are placements, twice, and compares everything with the reference.
fn check(config: &ExecConfig, at: usize, placements: Vec<Placement>, per_rank: &[usize], seed: u64) {
    let layers = placements.len();
    let (mut cuda, mut reference) = backend(config, at, placements);
    for again in 0..2 {
        let mut x = tokens(config.model.hidden, per_rank, seed + again);
        let run =
            run_step(&mut cuda, layers, 5, &mut x, |_| RoutingSource::Router, Some(&mut reference)).unwrap();
        let check = run.check.unwrap();
        assert!(
            check.within_bounds(Dtype::Bf16),
            "{check:?} for {config:?}, {:?} and {per_rank:?}",
            options(at)
        );
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
        let mut random = RandomStream::new(case, &[7]);
        let mut below = |n: usize| (random.next_bits() % n as u64) as usize;
        let (ranks, top_k) = (1 + below(4), 1 + below(3));
        let model = small(models[below(4)], 7, top_k);
        let per = (7 + below(5)).div_ceil(ranks);
        let cluster = Cluster::new(ranks, 1, 7, per * ranks - 7).unwrap();
        let router = ROUTERS[case as usize % ROUTERS.len()].parse().unwrap();
        let mut config = config(model, cluster, router, Dtype::Bf16);
        config.method = [
            None,
            Some(SplitMethod::Even),
            Some(SplitMethod::Lp),
            Some(SplitMethod::Exact),
            Some(SplitMethod::Exact),
        ][below(5)];
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

/// Covers tiles of all three sizes, groups with no, one and many rows, and widths that no tile divides.
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
        let model = MoeModel { hidden, intermediate, ..small(name, experts, 2) };
        let ranks = per_rank.len();
        let cluster =
            Cluster::new(ranks, 1, experts, experts.next_multiple_of(ranks) + ranks - experts).unwrap();
        for path in [0, 2] {
            let config = config(model, cluster, Router::for_model(&model), Dtype::Bf16);
            check(&config, path, vec![placement(experts, &cluster, at as u64)], per_rank, 40 + at as u64);
        }
    }
}

/// Runs every kernel once, on few tokens, as a sanitiser of threads is slow.
#[test]
fn a_small_layer_gives_the_reference() {
    let Some(_turn) = gpu() else { return };
    let cluster = Cluster::new(2, 1, 4, 2).unwrap();
    for (path, router) in [(0, "sigmoid"), (2, "softmax")] {
        let model = MoeModel { hidden: 72, ..small("deepseek-v2-lite", 4, 2) };
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
        let mut random = RandomStream::new(case, &[]);
        let mut below = |n: usize| (random.next_bits() % n as u64) as usize;
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
                // The experts of a token are different, or none.
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
                    let copies = placement.replicas(expert);
                    i64::from(copies[below(copies.len())])
                }
                Err(_) => -1,
            };
            slots.push(of_source.iter().map(copy).collect::<Vec<i64>>());
            ids.push(of_source);
        }
        for (slots, and_route) in [(Some(&slots[..]), false), (None, true), (None, false)] {
            let routed = |_| RoutingSource::Replay {
                ids: &ids,
                top_k,
                weights: None,
                slots,
                also_run_router: and_route,
            };
            let run = run_step(&mut cuda, 1, 0, &mut x, routed, Some(&mut reference)).unwrap();
            assert!(run.check.unwrap().within_bounds(Dtype::Bf16), "{:?}", run.check);
        }
    }
}

#[test]
fn a_recorded_layer_is_the_layer() {
    let Some(_turn) = gpu() else { return };
    for (at, name) in ["qwen3-30b-a3b", "deepseek-v2-lite", "deepseek-v3"].into_iter().enumerate() {
        for streams in [StreamSharing::Alone, StreamSharing::Own] {
            for method in [None, Some(SplitMethod::Exact)] {
                let cluster = Cluster::new(4, 2, 8, 4).unwrap();
                let mut config =
                    config(small(name, 8, 2), cluster, Router::Softmax { renormalise: at == 0 }, Dtype::Bf16);
                config.method = method;
                config.capacity = Some(Capacity { factor: 1.5, overflow: Overflow::Drop });
                let options = CudaOptions::default().streams(streams);
                let placements = vec![placement(8, &cluster, 5); 2];
                let mut cuda =
                    Cuda::new(config.clone(), options, weights(&config).as_ref(), placements).unwrap();
                let recorded = cuda.record_layer(1, &[3, 0, 20, 5], false).unwrap();
                let with_residual = cuda.record_layer(1, &[3, 0, 20, 5], true).unwrap();
                for seed in 0..3 {
                    let x = tokens(64, &[3, 0, 20, 5], seed);
                    let input = LayerInput { layer: 1, step: 0, tokens: &x, routed: RoutingSource::Router };
                    let expected = cuda.run_layer(&input).unwrap().outputs;
                    assert_eq!(cuda.launch_recorded(&recorded, &x).unwrap(), expected);
                    let added: Vec<Vec<f32>> = x
                        .iter()
                        .zip(&expected)
                        .map(|(x, y)| x.iter().zip(y).map(|(x, y)| x + y).collect())
                        .collect();
                    assert_eq!(cuda.launch_recorded(&with_residual, &x).unwrap(), added);
                }
                assert_eq!(cuda.time_recorded(&recorded, 3).unwrap().len(), 3);
                let x = tokens(64, &[3, 0, 100, 5], 0);
                cuda.run_layer(&LayerInput { layer: 0, step: 0, tokens: &x, routed: RoutingSource::Router })
                    .unwrap();
                let refused = cuda.time_recorded(&recorded, 1).unwrap_err().to_string();
                assert!(refused.contains("record the layer again"), "{refused}");
                let recorded = cuda.record_layer(0, &[1; 4], false).unwrap();
                let same = cuda.placement(0).clone();
                cuda.activate_placement(0, same).unwrap();
                assert!(cuda.launch_recorded(&recorded, &tokens(64, &[1; 4], 0)).is_err());
            }
        }
    }
    let cluster = Cluster::new(2, 1, 8, 0).unwrap();
    let mut config = config(small("qwen3-30b-a3b", 8, 2), cluster, Router::Gshard, Dtype::Bf16);
    let (mut cuda, _) = backend(&config, 0, vec![placement(8, &cluster, 5)]);
    assert!(cuda.record_layer(0, &[1, 1], false).unwrap_err().to_string().contains("router"));
    (config.router, config.method) = (Router::Switch, Some(SplitMethod::Lp));
    let (mut cuda, _) = backend(&config, 0, vec![placement(8, &cluster, 5)]);
    assert!(cuda.record_layer(0, &[1, 1], false).unwrap_err().to_string().contains("split"));
    assert!(cuda.record_layer(0, &[1], false).is_err() && cuda.record_layer(1, &[1, 1], false).is_err());
}

#[test]
fn placements_switch_at_every_step() {
    let Some(_turn) = gpu() else { return };
    for (at, streams) in [StreamSharing::Alone, StreamSharing::Own].into_iter().enumerate() {
        let cluster = Cluster::new(4, 1, 10, 6).unwrap();
        let config = config(small("deepseek-v2-lite", 10, 3), cluster, Router::TopkSoftmax, Dtype::Bf16);
        let (mut cuda, mut reference) = backend(&config, at, vec![placement(10, &cluster, 0); 2]);
        let mut mover = ExpertMigrator::new(u64::MAX);
        for at in 0..100u64 {
            let mut x = tokens(64, &[3, 0, 5, 1], at);
            for layer in 0..2 {
                mover.set_target(&cuda, layer, placement(10, &cluster, 1000 + 2 * at + layer as u64));
            }
            mover.between_steps(&mut cuda).unwrap();
            // The transfers run during this step, and have arrived afterwards.
            let run =
                run_step(&mut cuda, 2, at, &mut x.clone(), |_| RoutingSource::Router, Some(&mut reference))
                    .unwrap();
            assert!(run.check.unwrap().within_bounds(Dtype::Bf16), "step {at}, {streams:?}: {:?}", run.check);
            let moved = mover.between_steps(&mut cuda).unwrap();
            assert_eq!(moved.switched, [0, 1], "step {at}");
            let run =
                run_step(&mut cuda, 2, at, &mut x, |_| RoutingSource::Router, Some(&mut reference)).unwrap();
            assert!(run.check.unwrap().within_bounds(Dtype::Bf16), "step {at}, {streams:?}: {:?}", run.check);
        }
        assert!(cuda.memory().iter().all(|memory| memory.staged == 0), "staging slots are empty again");
        let missing = cuda.activate_placement(0, placement(10, &cluster, 2)).unwrap_err();
        assert!(matches!(missing, ExecError::NotStaged { layer: 0, .. }), "{missing}");
        assert!(
            cuda.start_copy(0, 9, 0).is_err()
                && cuda.start_copy(0, 0, 10).is_err()
                && cuda.start_copy(2, 0, 0).is_err()
        );
    }
}

#[test]
fn another_backend_shares_what_ranks_hold() {
    let Some(_turn) = gpu() else { return };
    let cluster = Cluster::new(3, 1, 9, 6).unwrap();
    let config =
        config(small("qwen3-30b-a3b", 9, 2), cluster, Router::Softmax { renormalise: true }, Dtype::Bf16);
    let (mut first, mut reference) = backend(&config, 0, vec![placement(9, &cluster, 1)]);
    let free = first.first_gpu().device_memory().unwrap().free;
    let mut same =
        first.with_placements(weights(&config).as_ref(), vec![placement(9, &cluster, 1)], None).unwrap();
    let expert = first.expert_bytes(0, 0).unwrap();
    assert!(free - same.first_gpu().device_memory().unwrap().free < expert, "no expert is there twice");
    let mut other =
        first.with_placements(weights(&config).as_ref(), vec![placement(9, &cluster, 2)], None).unwrap();
    for cuda in [&mut first, &mut same, &mut other] {
        let mut x = tokens(64, &[5, 2, 0], 8);
        let run = run_step(cuda, 1, 0, &mut x, |_| RoutingSource::Router, Some(&mut reference)).unwrap();
        assert!(run.check.unwrap().within_bounds(Dtype::Bf16), "{:?}", run.check);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(_turn) = gpu() else { return };
    let cluster = Cluster::new(2, 1, 4, 2).unwrap();
    let mut config = config(small("qwen3-30b-a3b", 4, 1), cluster, Router::TopkSoftmax, Dtype::Bf16);
    let new = |config: &ExecConfig, placements| {
        Cuda::new(config.clone(), CudaOptions::default(), weights(config).as_ref(), placements)
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
    assert!(refused.contains("multiple of 8"), "{refused}");
    // 58 layers of 256 experts with 88 MB each.
    let model: MoeModel = "deepseek-v3:bf16".parse().unwrap();
    let cluster = Cluster::new(8, 1, 256, 0).unwrap();
    let config = crate::exec_support::config(model, cluster, Router::for_model(&model), Dtype::Bf16);
    let refused = new(&config, vec![placement(256, &cluster, 0); 58]).unwrap_err();
    assert!(matches!(refused, ExecError::Memory { needed, free, .. } if needed > free), "{refused}");
}

#[test]
fn experts_alone_are_timed() {
    let Some(_turn) = gpu() else { return };
    let cluster = Cluster::new(1, 1, 6, 0).unwrap();
    let config = config(small("gpt-oss-20b", 6, 2), cluster, Router::TopkSoftmax, Dtype::Bf16);
    let experts = ExpertTimer::new(0, &config.model, weights(&config).as_ref(), [6, 2, 40]).unwrap();
    for path in [GemmPath::Own, GemmPath::Cublas] {
        for tile in [None, Some(0), Some(1), Some(2)] {
            let times = experts.time_experts(path, 1, &[3, 0, 20], tile, 4).unwrap();
            assert!(times.len() == 4 && times.iter().all(|&ms| ms >= 0.0));
        }
    }
    assert!(experts.time_experts(GemmPath::Own, 4, &[1, 1, 1], None, 1).is_err());
    assert_eq!(experts.time_gemm([20, 30, 40], 2).unwrap().len(), 2);
}

#[test]
fn counts_are_gathered_over_nccl() {
    let Some(_gpu) = gpu() else { return };
    let context = GpuContext::open(0).unwrap();
    let group = match NcclGather::create_group_id() {
        Ok(group) => group,
        Err(error) => return skipped(&format!("no NCCL ({error})")),
    };
    let mut nccl = NcclGather::join_group(&context, group, 0, 1).unwrap();
    let stream = context.stream();
    let own = stream.clone_htod(&[3_u32, 1, 4, 1, 5]).unwrap();
    let mut all = stream.alloc_zeros::<u32>(5).unwrap();
    nccl.offer_counts(0, &own, &context).unwrap();
    nccl.collect_counts(0, &own, &mut all.as_view_mut(), &context).unwrap();
    assert_eq!(stream.clone_dtoh(&all).unwrap(), [3, 1, 4, 1, 5]);
    assert!(matches!(nccl.offer_counts(1, &own, &context), Err(CudaError::Shape { .. })));
    assert!(matches!(NcclGather::join_group(&context, group, 1, 1), Err(CudaError::Shape { .. })));
}

/// The tests of this module.
const ALL: &[&str] = &["exec_cuda::"];

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
    assert!(!errors.contains("skipped"), "{errors}");
}

#[test]
fn all_of_it_on_a_host_in_every_order_of_lanes() {
    let Some(folder) = host_driver("plain", &["-O2"]) else { return };
    (0..3).for_each(|order| run_on(&folder, order, ALL, &[]));
}

/// Runs all tests with three devices. On this driver, kernels of one GPU cannot touch another's memory.
#[test]
fn all_of_it_on_a_host_with_three_devices() {
    let Some(folder) = host_driver("devices", &["-O2"]) else { return };
    run_on(&folder, 2, ALL, &[("EK_DEVICES", "3")]);
}

#[test]
fn all_of_it_on_a_host_within_bounds() {
    let flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let Some(folder) = host_driver("sanitised", &flags) else { return };
    let Some(library) = sanitiser("libasan.so") else { return };
    run_on(&folder, 2, ALL, &[("LD_PRELOAD", &library), ("ASAN_OPTIONS", "detect_leaks=0")]);
}

/// Runs a thread per lane, so that a missing barrier is a data race.
#[test]
fn no_barrier_is_missing_on_a_host() {
    let flags = ["-O1", "-g", "-DEK_THREADS", "-pthread", "-fsanitize=thread"];
    let Some(folder) = host_driver("threads", &flags) else { return };
    let Some(library) = sanitiser("libtsan.so") else { return };
    // This program is not instrumented, so races reported in it are false.
    let quiet = folder.join("suppressions");
    std::fs::write(&quiet, "race:deps/it-\nthread:deps/it-\nmutex:deps/it-\n").unwrap();
    let options = format!("suppressions={} report_thread_leaks=0 exitcode=66", quiet.display());
    let which = ["exec_cuda::a_small_layer", "--test-threads", "1"];
    let environment = [
        ("LD_PRELOAD", library.as_str()),
        ("TSAN_OPTIONS", &options),
        ("EK_MULTIPROCESSORS", "1"),
        ("RAYON_NUM_THREADS", "1"),
    ];
    run_on(&folder, 0, &which, &environment);
}

/// Returns a sanitiser's library if programs start with it. Otherwise prints a notice.
fn sanitiser(name: &str) -> Option<String> {
    let named = Command::new("c++").arg(format!("-print-file-name={name}")).output();
    let library = named.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    let starts =
        Command::new("true").env("LD_PRELOAD", &library).env("ASAN_OPTIONS", "detect_leaks=0").output();
    if library.starts_with('/') && starts.is_ok_and(|o| o.status.success() && o.stderr.is_empty()) {
        return Some(library);
    }
    skipped(if name == "libtsan.so" { "no thread sanitiser" } else { "no address sanitiser" });
    None
}
