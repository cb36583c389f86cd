//! The theorems of the exact split: feasible, conserving, certified optimal, deterministic.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common;
use crate::common::{Limits, Speeds};
use evenkeel_solver::bench::corpus::SIZES;
use evenkeel_solver::{
    Hosts, Peak, Problem, RankSplit, WarmSplitter, Workspace, coordinate_descent, solve, solve_counts_into,
    solve_into, verify,
};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use rand::seq::SliceRandom;

const PINNED: u64 = 0x3010_5a12_7420_188f;

const SMALL: Limits = Limits { ranks: 9, items: 24, load: 40, speeds: Speeds::One, base: true };
const MIDDLE: Limits = Limits { ranks: 64, items: 300, load: 1 << 20, speeds: Speeds::Equal, base: true };
const LARGE: Limits =
    Limits { ranks: 1024, items: 3000, load: 1 << 40, speeds: Speeds::Any(100), base: true };

fn answer(problem: &Problem, loads: &[u64]) -> RankSplit {
    solve(problem, loads, &mut Workspace::new(problem)).expect("the instance is valid")
}

/// Returns hosts, speeds, base loads and loads that shrink well: up to 6 ranks and 10 items.
fn problems() -> impl Strategy<Value = (Problem, Vec<u64>)> {
    (1usize..=6, 0usize..=10).prop_flat_map(|(ranks, items)| {
        let all: Vec<u32> = (0..ranks as u32).collect();
        let lists = prop::collection::vec(prop::sample::subsequence(all, 1..=ranks), items);
        let speeds = prop::collection::vec(1u32..8, ranks);
        let base = prop::collection::vec(0u64..12, ranks);
        let loads = prop::collection::vec(0u64..30, items);
        (lists, speeds, base, loads).prop_map(move |(lists, speeds, base, loads)| {
            let hosts = Hosts::new(ranks, lists).expect("valid hosts");
            let problem = Problem::new(hosts).with_speeds(speeds).expect("one speed per rank");
            (problem.with_base_loads(base).expect("one base load per rank"), loads)
        })
    })
}

fn config() -> ProptestConfig {
    let persistence = FileFailurePersistence::WithSource("regressions");
    ProptestConfig {
        cases: 3000,
        failure_persistence: Some(Box::new(persistence)),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_answer_is_certified_and_equals_the_enumeration((problem, loads) in problems()) {
        let split = answer(&problem, &loads);
        prop_assert_eq!(verify(&problem, &loads, &split), Ok(()));
        prop_assert_eq!(split.peak, common::peak_by_enumeration(&problem, &loads));
    }

    #[test]
    fn more_load_or_less_speed_never_lowers_the_peak((problem, mut loads) in problems(), extra in 0u64..9) {
        let before = answer(&problem, &loads).peak;
        if let Some(load) = loads.first_mut() {
            *load += extra;
        }
        prop_assert!(answer(&problem, &loads).peak >= before);
        let halved = problem.speeds().iter().map(|speed| speed.div_ceil(2)).collect();
        let slower = problem.with_speeds(halved).expect("as many speeds");
        prop_assert!(answer(&slower, &loads).peak >= before);
    }
}

#[test]
fn families_are_certified_at_every_size() {
    let mut workspace = Workspace::default();
    for (limits, draws) in [(SMALL, 4000), (MIDDLE, 1500), (LARGE, 150)] {
        for seed in 0..draws {
            for speeds in [limits.speeds, Speeds::Any(7)] {
                let instance = common::draw(seed, Limits { speeds, ..limits });
                let split = solve(&instance.problem, &instance.loads, &mut workspace).expect("valid");
                if let Err(violation) = verify(&instance.problem, &instance.loads, &split) {
                    panic!("seed {seed}, {limits:?}, {:?} {:?}: {violation}", instance.shape, instance.law);
                }
            }
        }
    }
}

#[test]
fn families_equal_the_enumeration_of_all_rank_sets() {
    for seed in 0..600 {
        for speeds in [Speeds::One, Speeds::Any(9)] {
            let instance = common::draw(seed, Limits { ranks: 10, speeds, ..SMALL });
            let peak = answer(&instance.problem, &instance.loads).peak;
            let expected = common::peak_by_enumeration(&instance.problem, &instance.loads);
            assert_eq!(peak, expected, "seed {seed}: {instance:?}");
        }
    }
}

#[test]
fn totals_at_the_edge_of_a_width_are_split() {
    let problem = Problem::new(Hosts::new(2, [[0, 1]]).expect("valid hosts"));
    for edge in [i32::MAX as u64, i64::MAX as u64, u64::MAX] {
        for load in [edge - 1, edge, edge.saturating_add(1)] {
            let split = answer(&problem, &[load]);
            assert_eq!(split.quotas, [load.div_ceil(2), load / 2]);
            assert_eq!(verify(&problem, &[load], &split), Ok(()));
        }
    }
}

#[test]
fn relabelling_ranks_and_items_leaves_the_peak() {
    for seed in 0..500 {
        let instance = common::draw(seed, Limits { ranks: 40, items: 100, speeds: Speeds::Any(5), ..MIDDLE });
        let (problem, loads) = (&instance.problem, &instance.loads);
        let mut rng = common::rng(!seed);
        let mut new_rank: Vec<u32> = (0..problem.hosts().ranks() as u32).collect();
        let mut old_item: Vec<usize> = (0..loads.len()).collect();
        new_rank.shuffle(&mut rng);
        old_item.shuffle(&mut rng);

        let relabel = |&item: &usize| -> Vec<u32> {
            problem.hosts().ranks_of(item).iter().map(|&rank| new_rank[rank as usize]).collect()
        };
        let hosts = Hosts::new(new_rank.len(), old_item.iter().map(relabel)).expect("valid hosts");
        let mut speeds = vec![0; new_rank.len()];
        let mut base = vec![0; new_rank.len()];
        for (old, &new) in new_rank.iter().enumerate() {
            speeds[new as usize] = problem.speeds()[old];
            base[new as usize] = problem.base_loads()[old];
        }
        let relabelled =
            Problem::new(hosts).with_speeds(speeds).expect("speeds").with_base_loads(base).expect("base");
        let moved: Vec<u64> = old_item.iter().map(|&item| loads[item]).collect();
        assert_eq!(answer(problem, loads).peak, answer(&relabelled, &moved).peak, "seed {seed}");
    }
}

#[test]
fn the_answer_does_not_depend_on_what_the_memory_held() {
    let mut workspace = Workspace::default();
    let mut split = RankSplit::default();
    for seed in 0..1500 {
        let instance = common::draw(seed, Limits { speeds: Speeds::Any(3), ..MIDDLE });
        let fresh = answer(&instance.problem, &instance.loads);
        for _ in 0..2 {
            solve_into(&instance.problem, &instance.loads, &mut workspace, &mut split).expect("valid");
            assert_eq!(split, fresh, "seed {seed}");
        }
    }
}

#[test]
fn counts_of_32_bits_and_every_width_of_numbers_give_the_same_bits() {
    let mut workspace = Workspace::default();
    for seed in 0..600 {
        let instance = common::draw(seed, Limits { speeds: Speeds::One, base: false, ..MIDDLE });
        let counts: Vec<u32> = instance.loads.iter().map(|&load| load as u32).collect();
        let cold = answer(&instance.problem, &instance.loads);
        let mut split = RankSplit::default();
        solve_counts_into(&instance.problem, &counts, &mut workspace, &mut split).expect("valid");
        assert_eq!(split, cold, "seed {seed}");

        // An additional rank with a load of 2^40 or 2^63 makes the numbers wider and changes nothing else.
        let ranks = instance.problem.hosts().ranks();
        let hosts = instance.problem.hosts();
        let alone = [vec![ranks as u32]];
        let lists = (0..hosts.items()).map(|item| hosts.ranks_of(item).to_vec()).chain(alone);
        let wider = Problem::new(Hosts::new(ranks + 1, lists).expect("one more rank"));
        let with = |load: u64| instance.loads.iter().copied().chain([load]).collect::<Vec<_>>();
        let [wide, widest] = [1 << 40, 1 << 63].map(|load| answer(&wider, &with(load)));
        let quotas = |split: &RankSplit| split.quotas[..hosts.len()].to_vec();
        assert_eq!(quotas(&wide), quotas(&widest), "seed {seed}");
    }
}

#[test]
fn a_warm_answer_is_the_cold_one() {
    for size in SIZES.iter().take(6) {
        for series in size.build_corpus(6).expect("valid sizes") {
            let mut warm = WarmSplitter::new(series.problem.clone());
            for batch in series.batches.iter().flat_map(|batch| [batch, batch, &series.batches[0]]) {
                let loads: Vec<u64> = batch.iter().map(|&count| u64::from(count)).collect();
                assert_eq!(warm.solve(batch), Ok(&answer(&series.problem, &loads)));
            }
            assert!(warm.solve(&[]).is_err());
        }
    }
}

#[test]
fn the_bench_corpus_is_certified_and_no_edge_descent_beats_it() {
    for size in SIZES {
        for series in size.build_corpus(3).expect("valid sizes") {
            let edges =
                coordinate_descent::DescentWorkspace::new(&series.problem).expect("two hosts at most");
            let mut quotas = coordinate_descent::DescentQuotas::default();
            for batch in &series.batches {
                let loads: Vec<u64> = batch.iter().map(|&count| u64::from(count)).collect();
                let split = answer(&series.problem, &loads);
                assert_eq!(verify(&series.problem, &loads, &split), Ok(()), "{size:?} {}", series.graph);
                coordinate_descent::solve_counts_into(&series.problem, batch, &edges, &mut quotas)
                    .expect("valid");
                let peak = quotas.rank_loads.iter().copied().max().expect("ranks");
                assert!(peak >= split.peak.load, "{size:?} {:?} {}", series.law, series.graph);
                for (item, &load) in loads.iter().enumerate() {
                    let pairs = series.problem.hosts().offset(item)..series.problem.hosts().offset(item + 1);
                    assert_eq!(quotas.quotas[pairs].iter().sum::<u64>(), load, "item {item}");
                }
            }
        }
    }
}

/// Pins the bits of the answers. A change here changes plans in use, and belongs in the changelog. The
/// instances come from splitmix64, which no library version can change.
#[test]
fn the_answers_keep_their_bits() {
    let mut state = 0u64;
    let mut next = |below: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    };
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    for ranks in 1..=40u32 {
        let mut lists = Vec::new();
        for item in 0..4 * ranks {
            let mut hosts = vec![item % ranks];
            for _ in 0..next(3) {
                hosts.push(next(u64::from(ranks)) as u32);
            }
            hosts.sort_unstable();
            hosts.dedup();
            lists.push(hosts);
        }
        let problem = Problem::new(Hosts::new(ranks as usize, lists).expect("valid hosts"));
        let speeds = (0..ranks).map(|_| 1 + next(3) as u32).collect();
        let base = (0..ranks).map(|_| next(500)).collect();
        let uneven =
            problem.clone().with_speeds(speeds).expect("speeds").with_base_loads(base).expect("base");
        for problem in [problem, uneven] {
            let loads: Vec<u64> = (0..4 * ranks).map(|_| next(10) * next(200)).collect();
            let split = answer(&problem, &loads);
            let certificate = split.certificate.iter().map(|&rank| u64::from(rank));
            for value in split.quotas.iter().copied().chain(certificate) {
                digest = (digest ^ value).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    assert_eq!(digest, PINNED, "the digest is now {digest:#018x}");
}

#[test]
fn a_long_chain_carries_load_from_end_to_end() {
    // The loads of the items decrease along a path of 1024 ranks, so load has to move along the whole chain.
    let ranks = 1024;
    let lists = (0..ranks as u32 - 1).map(|rank| [rank, rank + 1]);
    let problem = Problem::new(Hosts::new(ranks, lists).expect("a path"));
    let loads: Vec<u64> = (0..ranks as u64 - 1).map(|item| 1_000_000 - 900 * item).collect();
    let split = answer(&problem, &loads);
    assert_eq!(verify(&problem, &loads, &split), Ok(()));
}

#[test]
fn ratios_are_compared_not_numbers() {
    assert_eq!(Peak { load: 2, speed: 1 }, Peak { load: 4, speed: 2 });
    assert!(Peak { load: u64::MAX, speed: 2 } > Peak { load: u64::MAX, speed: 3 });
    assert!((Peak { load: 7, speed: 2 }.as_f64() - 3.5).abs() < 1e-12);
}

#[test]
fn a_fast_rank_takes_more() {
    let hosts = Hosts::new(2, [[0, 1]]).expect("valid hosts");
    let problem = Problem::new(hosts).with_speeds(vec![3, 1]).expect("two speeds");
    let split = answer(&problem, &[10]);
    // The bounds are 8/3 and 2/1: at any peak below 8/3 the ranks carry 7 and 2.
    assert_eq!(split.peak, Peak { load: 8, speed: 3 });
    assert_eq!(split.quotas_of(0), [8, 2]);
}

#[test]
fn nothing_to_do_is_fine() {
    let none = Problem::new(Hosts::new(3, std::iter::empty::<[u32; 0]>()).expect("no items"));
    let split = answer(&none, &[]);
    assert_eq!((split.peak.load, split.rank_loads.as_slice()), (0, &[0, 0, 0][..]));
    assert_eq!(verify(&none, &[], &split), Ok(()));
}
