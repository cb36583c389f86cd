//! Load in tiles and in active items, compared with enumeration. On larger instances the certificate is
//! checked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common;
use std::collections::BTreeSet;

use crate::common::{Instance, Limits, Speeds};
use evenkeel_solver::objective::{
    ActiveSplit, ActiveSplitter, TileSplit, TileSplitter, verify_active, verify_balanced, verify_tiles,
};
use evenkeel_solver::{Hosts, Peak, Problem, SolverError, Violation};
use rand::RngExt;

/// Returns all splits of a load over `count` hosts.
fn splits_of(load: u64, count: usize) -> Vec<Vec<u64>> {
    if count == 1 {
        return vec![vec![load]];
    }
    let firsts = (0..=load).flat_map(|first| {
        splits_of(load - first, count - 1).into_iter().map(move |rest| [vec![first], rest].concat())
    });
    firsts.collect()
}

/// Returns the least peak over all splits. `q` tokens of an item weigh `weight(q)`.
fn least_peak(instance: &Instance, base: &[u64], weight: impl Fn(u64) -> u64) -> Peak {
    let mut vectors = BTreeSet::from([base.to_vec()]);
    for (item, &load) in instance.loads.iter().enumerate() {
        let hosts = instance.problem.hosts().ranks_of(item);
        let choices = splits_of(load, hosts.len());
        let mut next = BTreeSet::new();
        for vector in &vectors {
            for quotas in &choices {
                let mut vector = vector.clone();
                for (&rank, &quota) in hosts.iter().zip(quotas) {
                    vector[rank as usize] += weight(quota);
                }
                next.insert(vector);
            }
        }
        vectors = next;
    }
    let peak_of = |vector: &Vec<u64>| {
        let ranks = vector.iter().zip(instance.problem.speeds());
        ranks.map(|(&load, &speed)| Peak { load, speed }).max().unwrap()
    };
    vectors.iter().map(peak_of).min().unwrap()
}

fn small(seed: u64) -> Instance {
    let speeds = if seed.is_multiple_of(3) { Speeds::Any(4) } else { Speeds::One };
    common::draw(seed, Limits { ranks: 4, items: 4, load: 6, speeds, base: true })
}

#[test]
fn tiles_agree_with_enumeration() {
    for seed in 0..2500 {
        let instance = small(seed);
        let tile = 1 + seed % 4;
        let answer =
            TileSplitter::new(instance.problem.clone(), tile).unwrap().solve(&instance.loads).unwrap();
        verify_tiles(&instance.problem, tile, &instance.loads, &answer)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        let base: Vec<u64> = instance.problem.base_loads().iter().map(|base| base.div_ceil(tile)).collect();
        let best = least_peak(&instance, &base, |quota| quota.div_ceil(tile));
        assert_eq!(answer.in_tiles.peak, best, "seed {seed}");
    }
}

#[test]
fn active_items_agree_with_enumeration() {
    for seed in 0..2500 {
        let instance = small(seed);
        let ranks = instance.problem.hosts().ranks();
        let base: Vec<u64> = (0..ranks as u64).map(|rank| (seed >> rank) % 3).collect();
        let mut active =
            ActiveSplitter::new(instance.problem.clone()).with_base_counts(base.clone()).unwrap();
        let answer = active.solve(&instance.loads).unwrap();
        verify_active(active.active_problem(), &instance.loads, &answer)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        let best = least_peak(&instance, &base, |quota| u64::from(quota > 0));
        assert_eq!(answer.active.peak, best, "seed {seed}");
    }
}

#[test]
fn large_instances_are_certified_and_their_counts_balanced() {
    let (mut tiled, mut whole) = (TileSplit::default(), ActiveSplit::default());
    for seed in 0..600 {
        let speeds = [Speeds::One, Speeds::Equal, Speeds::Any(9)][seed as usize % 3];
        let load = [30, 1 << 20, 1 << 54][seed as usize / 3 % 3];
        let instance = common::draw(seed, Limits { ranks: 48, items: 150, load, speeds, base: true });
        let tile = common::rng(seed).random_range(1..=300);
        let mut tiles = TileSplitter::new(instance.problem.clone(), tile).unwrap();
        tiles.solve_into(&instance.loads, &mut tiled).unwrap();
        verify_tiles(&instance.problem, tile, &instance.loads, &tiled).unwrap();

        let mut active = ActiveSplitter::new(instance.problem.clone());
        active.solve_into(&instance.loads, &mut whole).unwrap();
        verify_active(active.active_problem(), &instance.loads, &whole).unwrap();
        let ones: Vec<u64> = instance.loads.iter().map(|&load| u64::from(load > 0)).collect();
        verify_balanced(active.active_problem(), &ones, &whole.active).unwrap();
        let tokens: u64 = instance.loads.iter().chain(instance.problem.base_loads()).sum();
        assert_eq!(whole.rank_loads.iter().sum::<u64>(), tokens);
    }
}

/// Two items may use either rank. Each rank serves one of them in any case, and the tokens of the fixed items
/// decide which one.
#[test]
fn active_items_exchange_for_tokens() {
    let hosts = Hosts::new(2, [&[0, 1][..], &[0, 1], &[0], &[1]]).unwrap();
    let mut active = ActiveSplitter::new(Problem::new(hosts));
    for loads in [[10, 90, 100, 20], [90, 10, 100, 20], [90, 10, 20, 100], [10, 90, 20, 100]] {
        let answer = active.solve(&loads).unwrap();
        assert_eq!((answer.active.peak.load, answer.rank_loads), (2, vec![110, 110]));
    }
}

#[test]
fn wrong_answers_are_found() {
    let problem = Problem::new(Hosts::new(2, [&[0, 1][..], &[1]]).unwrap());
    assert_eq!(TileSplitter::new(problem.clone(), 0).unwrap_err(), SolverError::ZeroTile);
    let right = TileSplitter::new(problem.clone(), 8).unwrap().solve(&[50, 3]).unwrap();
    // Seven tiles and one make four each. The tile with two tokens goes to the rank with more tokens.
    assert_eq!((right.in_tiles.peak.load, right.quotas.as_slice()), (4, &[26, 24, 3][..]));
    let mut wrong = right.clone();
    (wrong.quotas, wrong.rank_loads) = (vec![25, 25, 3], vec![25, 28]);
    assert_eq!(verify_tiles(&problem, 8, &[50, 3], &wrong), Err(Violation::Tile { item: 0 }));

    let mut active = ActiveSplitter::new(problem);
    let mut wrong = active.solve(&[50, 3]).unwrap();
    assert_eq!(wrong.quotas, [50, 0, 3]);
    wrong.quotas = vec![49, 1, 3];
    let verdict = verify_active(active.active_problem(), &[50, 3], &wrong);
    assert!(matches!(verdict, Err(Violation::Conservation { item: 0, .. })), "{verdict:?}");
}
