//! Compares the kernels `count`, `share` and `map` with the CPU, bit for bit. The same sources are compiled
//! as C++.
#![allow(clippy::unwrap_used)]

use crate::kernels_support::{ORDERS, Requests, SANITISED, THREADS, build, runs};
use crate::skip_support::skipped;
use evenkeel::cluster::Cluster;
use evenkeel::place::Placement;
use evenkeel::planner::Planner;
use evenkeel::split::{SourceShares, Split, SplitMethod, Splitter};
use evenkeel_cuda::tables::replica_layout;
use evenkeel_solver::{Problem, Workspace, solve};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;

#[test]
fn shares_and_slots_are_those_of_the_planner() {
    let Some(kernels) = build("tokens", &["-O2"]) else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..200 {
        share_and_map(&ORDERS, &kernels, &mut rng);
    }
}

#[test]
fn nothing_is_undefined_or_out_of_bounds() {
    let Some(kernels) = build("tokens-sanitised", &SANITISED) else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..30 {
        share_and_map(&ORDERS, &kernels, &mut rng);
    }
}

#[test]
fn no_barrier_is_missing() {
    let Some(kernels) = build("tokens-threads", &THREADS) else { return };
    if !runs(&kernels) {
        skipped("no thread sanitiser");
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for _ in 0..2 {
        share_and_map(&ORDERS[..1], &kernels, &mut rng);
    }
}

/// Compares count, share and map for random replicas on a random cluster, with random ids on every source.
fn share_and_map(orders: &[(&str, u32)], kernels: &Path, rng: &mut ChaCha8Rng) {
    let (nodes, per_node) = (rng.random_range(1..5), rng.random_range(1..5));
    let (ranks, experts) = (nodes * per_node, rng.random_range(1usize..40));
    let slots = ranks * (experts.div_ceil(ranks) + rng.random_range(0..4));
    let mut map: Vec<Option<u32>> = (0..slots)
        .map(|slot| if slot < experts { slot as u32 } else { rng.random_range(0..experts as u32) })
        .map(Some)
        .collect();
    for index in (1..slots).rev() {
        map.swap(index, rng.random_range(0..=index));
    }
    let placement = Placement::new(experts, ranks, map).unwrap();
    let cluster = Cluster::new(ranks, nodes, experts, slots - experts).unwrap();
    let end = i64::try_from(experts).unwrap();
    let ids: Vec<Vec<i64>> = (0..ranks)
        .map(|_| {
            let hot = rng.random_range(0..end);
            let skewed = |rng: &mut ChaCha8Rng| match rng.random_range(0..4) {
                0 => hot,
                _ => rng.random_range(-1..end),
            };
            (0..rng.random_range(0..900)).map(|_| skewed(rng)).collect()
        })
        .collect();
    let mut counts = vec![0u64; ranks * experts];
    for (source, ids) in ids.iter().enumerate() {
        ids.iter().filter(|&&id| id >= 0).for_each(|&id| counts[source * experts + id as usize] += 1);
    }
    let narrow: Vec<u32> = counts.iter().map(|&count| count as u32).collect();

    let mut planner = Planner::new(placement.clone(), cluster).unwrap();
    planner.split(&counts).unwrap();
    let totals: Vec<u64> = (0..experts).map(|e| counts.iter().skip(e).step_by(experts).sum()).collect();
    let mut split = Split::default();
    Splitter::new(placement.clone(), SplitMethod::Exact).unwrap().split(&totals, &mut split).unwrap();
    let mut shares = SourceShares::new(&placement);
    shares.assign_quotas(&placement, &cluster, &split, &counts).unwrap();
    let problem = Problem::new(placement.hosts().unwrap());
    let answer = solve(&problem, &totals, &mut Workspace::default()).unwrap();
    let layout = replica_layout(&placement).unwrap();

    for &(name, order) in orders {
        let mut requests = Requests::default();
        requests.order(order, 5);
        for (source, ids) in ids.iter().enumerate() {
            let wide = source % 2;
            let head = |request: u32| [request, wide as u32, ids.len() as u32, experts as u32];
            let as_words: Vec<u64> = ids.iter().map(|&id| id as u64).collect();
            requests.words(&head(5));
            requests.wide(&as_words);
            requests.words(&[4, layout.len() as u32]);
            requests.words(&layout);
            requests.words(&[experts, ranks, per_node, source, answer.quotas.len()].map(|n| n as u32));
            requests.wide(&answer.quotas);
            requests.words(&narrow);
            requests.words(&head(6));
            requests.words(&[layout.len() as u32]);
            requests.words(&layout);
            let of_source: Vec<u64> =
                (0..experts).flat_map(|e| shares.replica_tokens(source, e).to_vec()).collect();
            requests.wide(&of_source);
            requests.wide(&as_words);
        }
        let mut answers = requests.run(kernels);
        for (source, ids) in ids.iter().enumerate() {
            assert_eq!(
                answers.words(experts),
                &narrow[source * experts..][..experts],
                "counts, lanes {name}"
            );
            assert_eq!(answers.words(1), [0], "no fault");
            let of_source: Vec<u64> =
                (0..experts).flat_map(|e| shares.replica_tokens(source, e).to_vec()).collect();
            assert_eq!(answers.wide(of_source.len()), of_source, "shares, lanes {name}, {placement:?}");
            let slots: Vec<i64> = answers.wide(ids.len()).into_iter().map(u64::cast_signed).collect();
            assert_eq!(slots, planner.redirect(ids, source).unwrap(), "slots, lanes {name}");
            assert_eq!(answers.words(1), [0], "no fault");
        }
        assert!(answers.finished());
    }
}

/// Checks that ids without an expert and tokens that were not counted get no slot, and are one fault each.
#[test]
fn faults_are_counted() {
    let Some(kernels) = build("faults", &["-O2"]) else { return };
    let placement = Placement::new(2, 2, vec![Some(0), Some(1)]).unwrap();
    let layout = replica_layout(&placement).unwrap();
    let mut requests = Requests::default();
    let ids = [0i64, -1, 2, -2, 0, 1].map(|id| id as u64);
    requests.words(&[6, 1, 6, 2, layout.len() as u32]);
    requests.words(&layout);
    requests.wide(&[1, 1]);
    requests.wide(&ids);
    let mut answers = requests.run(&kernels);
    let slots: Vec<i64> = answers.wide(6).into_iter().map(u64::cast_signed).collect();
    assert_eq!(slots, [0, -1, -1, -1, -1, 1]);
    assert_eq!(answers.words(1), [3], "two ids that are no expert, one token too many");
}
