//! Compares the kernels on a GPU with the CPU, bit for bit. Skipped without a GPU.
#![allow(clippy::unwrap_used)]

use crate::skip_support::skipped;
use evenkeel::cluster::Cluster;
use evenkeel::place::Placement;
use evenkeel::planner::Planner;
use evenkeel_cuda::{CudaError, DevicePlanner, DeviceSolver, GpuContext, SameDeviceGather, probe_devices};
use evenkeel_solver::bench::corpus::SIZES;
use evenkeel_solver::{Hosts, Problem, Workspace, solve};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

fn gpu() -> Option<Arc<GpuContext>> {
    match probe_devices() {
        Ok(_) => Some(GpuContext::open(0).unwrap()),
        Err(error) => {
            skipped(&format!("no GPU ({error})"));
            None
        }
    }
}

/// Splits all batches of a problem and compares each with the CPU.
fn agree(gpu: &Arc<GpuContext>, problem: &Problem, batches: &[Vec<u32>], workspace: &mut Workspace) -> usize {
    let layers = vec![problem.clone(); batches.len()];
    let mut solver = DeviceSolver::new(gpu, &layers, 1).unwrap();
    for (layer, counts) in batches.iter().enumerate() {
        solver.upload_counts(layer, counts).unwrap();
    }
    solver.solve(0..batches.len()).unwrap();
    for (layer, counts) in batches.iter().enumerate() {
        let loads: Vec<u64> = counts.iter().map(|&count| u64::from(count)).collect();
        let expected = solve(problem, &loads, workspace).unwrap();
        let got = solver.download(layer).unwrap();
        assert_eq!(got.quotas, expected.quotas);
        assert_eq!(got.rank_loads, expected.rank_loads);
        assert_eq!((got.peak, got.certificate), (expected.peak.load, expected.certificate));
    }
    batches.len()
}

#[test]
fn the_corpus_is_split_as_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let mut workspace = Workspace::default();
    let mut count = 0;
    for size in SIZES {
        for series in size.build_corpus(192 / 8).unwrap() {
            count += agree(&gpu, &series.problem, &series.batches, &mut workspace);
        }
    }
    println!("{count} instances of the corpus agree on {}", gpu.device().name);
}

#[test]
fn random_hosts_are_split_as_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut workspace = Workspace::default();
    for round in 0..200 {
        let (ranks, items) = (rng.random_range(1..=96usize), rng.random_range(1..=300));
        let most = rng.random_range(1..=ranks.min(12));
        let lists = (0..items).map(|_| {
            let count = rng.random_range(1..=most);
            let picked = rand::seq::index::sample(&mut rng, ranks, count).into_iter();
            picked.map(|rank| rank as u32).collect::<Vec<_>>()
        });
        let hosts = Hosts::new(ranks, lists.collect::<Vec<_>>()).unwrap();
        let base = (0..ranks).map(|_| rng.random_range(0..1 << (4 * (round % 9)))).collect();
        let problem = Problem::new(hosts).with_base_loads(base).unwrap();
        let top = u32::MAX >> rng.random_range(0..30);
        let batches: Vec<Vec<u32>> =
            (0..8).map(|_| (0..items).map(|_| rng.random_range(0..=top)).collect()).collect();
        agree(&gpu, &problem, &batches, &mut workspace);
    }
}

/// Runs all ranks of a small cluster on one GPU, directly and from a recorded graph.
#[test]
fn slots_are_those_of_the_planner() {
    let Some(gpu) = gpu() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let (ranks, nodes, experts, slots) = (8usize, 2, 64usize, 80);
    let mut map: Vec<Option<u32>> = (0..slots)
        .map(|slot| if slot < experts { slot as u32 } else { rng.random_range(0..experts as u32) })
        .map(Some)
        .collect();
    for index in (1..slots).rev() {
        map.swap(index, rng.random_range(0..=index));
    }
    let placement = Placement::new(experts, ranks, map).unwrap();
    let cluster = Cluster::new(ranks, nodes, experts, slots - experts).unwrap();
    let mut expected = Planner::new(placement.clone(), cluster).unwrap();
    let mut board = SameDeviceGather::new(&gpu, ranks, experts).unwrap();
    let mut planners: Vec<DevicePlanner> = (0..ranks)
        .map(|source| {
            DevicePlanner::new(&gpu, std::slice::from_ref(&placement), &cluster, source, 5000).unwrap()
        })
        .collect();
    let ids: Vec<Vec<i64>> = (0..ranks)
        .map(|_| (0..rng.random_range(1..5000)).map(|_| i64::from(rng.random_range(-1..64i32))).collect())
        .collect();
    let device_ids: Vec<_> = ids.iter().map(|ids| gpu.upload(ids).unwrap()).collect();
    let mut device_slots: Vec<_> =
        ids.iter().map(|ids| gpu.upload(&vec![0i64; ids.len()]).unwrap()).collect();
    let mut counts = vec![0u64; ranks * experts];
    for (source, ids) in ids.iter().enumerate() {
        ids.iter().filter(|&&id| id >= 0).for_each(|&id| counts[source * experts + id as usize] += 1);
    }
    expected.split(&counts).unwrap();

    let mut all_ranks = || -> Result<(), CudaError> {
        for (planner, ids) in planners.iter_mut().zip(&device_ids) {
            planner.count_ids(ids)?;
            planner.offer_counts(&mut board)?;
        }
        for ((planner, ids), slots) in planners.iter_mut().zip(&device_ids).zip(&mut device_slots) {
            planner.collect_counts(0, &mut board)?;
            planner.solve(0)?;
            planner.compute_shares(0)?;
            planner.map_ids(0, ids, slots)?;
        }
        Ok(())
    };
    all_ranks().unwrap();
    let graph = gpu.capture_graph(all_ranks).unwrap().unwrap();
    graph.launch().unwrap();
    for (source, ids) in ids.iter().enumerate() {
        assert_eq!(gpu.download(&device_slots[source]).unwrap(), expected.redirect(ids, source).unwrap());
        planners[source].check_faults().unwrap();
    }
}

#[test]
fn what_was_not_counted_is_a_fault() {
    let Some(gpu) = gpu() else { return };
    let placement = Placement::new(2, 2, vec![Some(0), Some(1)]).unwrap();
    let cluster = Cluster::new(2, 1, 2, 0).unwrap();
    let mut planner = DevicePlanner::new(&gpu, &[placement], &cluster, 0, 16).unwrap();
    let mut board = SameDeviceGather::new(&gpu, 2, 2).unwrap();
    let ids = gpu.upload(&[0i32, 5, -1]).unwrap();
    let mut slots = gpu.upload(&[9i32; 3]).unwrap();
    planner.run(0, &ids, &mut slots, &mut board).unwrap();
    assert_eq!(gpu.download(&slots).unwrap(), [0, -1, -1]);
    assert!(matches!(planner.check_faults(), Err(CudaError::Faults(1))));
    planner.check_faults().unwrap();
    let many = gpu.upload(&[0i32; 17]).unwrap();
    assert!(matches!(planner.count_ids(&many), Err(CudaError::Shape { what: "ids", .. })));
}
