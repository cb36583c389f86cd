//! Invalid input is an error that names its place. Sums beyond 64 bits are errors and never wrap.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use evenkeel_solver::{
    Hosts, Peak, Problem, RankSplit, SolverError, Workspace, affine_scaling, solve, solve_into, verify,
};

#[test]
fn hosts_must_be_non_empty_sets_of_ranks() {
    let none: [[u32; 1]; 0] = [];
    assert_eq!(Hosts::new(0, none), Err(SolverError::RankCount { ranks: 0 }));
    assert_eq!(Hosts::new(1025, none), Err(SolverError::RankCount { ranks: 1025 }));
    assert_eq!(Hosts::new(2, [vec![0], vec![]]), Err(SolverError::NoHost { item: 1 }));
    assert_eq!(Hosts::new(2, [vec![0, 2]]), Err(SolverError::HostOutOfRange { item: 0, host: 2, ranks: 2 }));
    assert_eq!(Hosts::new(2, [vec![0], vec![1, 0, 1]]), Err(SolverError::DuplicateHost { item: 1, host: 1 }));
}

#[test]
fn hosts_come_out_sorted_and_numbered() {
    let hosts = Hosts::new(4, [vec![3, 1], vec![2], vec![0, 3, 2]]).expect("valid hosts");
    assert_eq!((hosts.ranks(), hosts.items(), hosts.len(), hosts.is_empty()), (4, 3, 6, false));
    assert_eq!(
        (hosts.ranks_of(0), hosts.ranks_of(1), hosts.ranks_of(2)),
        (&[1, 3][..], &[2][..], &[0, 2, 3][..])
    );
    assert_eq!([0, 1, 2, 3].map(|item| hosts.offset(item)), [0, 2, 3, 6]);
}

#[test]
fn speeds_bases_and_loads_must_fit() {
    let problem = Problem::new(Hosts::new(2, [[0, 1]]).expect("valid hosts"));
    let length = |what, expected, got| SolverError::Length { what, expected, got };
    assert_eq!(problem.clone().with_speeds(vec![1]), Err(length("speeds", 2, 1)));
    assert_eq!(problem.clone().with_speeds(vec![1, 0]), Err(SolverError::ZeroSpeed { rank: 1 }));
    assert_eq!(problem.clone().with_base_loads(vec![1, 2, 3]), Err(length("base loads", 2, 3)));
    assert_eq!(solve(&problem, &[], &mut Workspace::default()), Err(length("loads", 1, 0)));
}

#[test]
fn overflow_is_an_error_and_leaves_the_answer() {
    let problem = Problem::new(Hosts::new(2, [[0, 1], [0, 1]]).expect("valid hosts"));
    let mut workspace = Workspace::new(&problem);
    let mut split = RankSplit::default();
    solve_into(&problem, &[3, 4], &mut workspace, &mut split).expect("valid");
    let before = split.clone();
    let overflow = solve_into(&problem, &[u64::MAX, 1], &mut workspace, &mut split);
    assert_eq!((overflow, &split), (Err(SolverError::Overflow), &before));

    // The sums are at the limit and one above it, from many small or few large loads.
    for loads in [[u64::MAX / 2, u64::MAX / 2 + 1], [1, u64::MAX - 1], [u64::MAX, 0]] {
        let edge = solve(&problem, &loads, &mut workspace).expect("the sum is 2^64 - 1");
        assert_eq!(edge.peak.load, 1 << 63);
        let beyond = loads.map(|load| load.saturating_add(1));
        assert_eq!(solve(&problem, &beyond, &mut workspace), Err(SolverError::Overflow));
    }

    let loaded = problem.with_base_loads(vec![u64::MAX, 0]).expect("two base loads");
    assert_eq!(solve(&loaded, &[0, 1], &mut workspace), Err(SolverError::Overflow));
    assert_eq!(
        affine_scaling::solve(&loaded, &[0, 1], &mut affine_scaling::AffineWorkspace::default()),
        Err(SolverError::Overflow)
    );
}

#[test]
fn the_largest_sums_are_exact() {
    let hosts = Hosts::new(3, [vec![0, 1], vec![1, 2], vec![0]]).expect("valid hosts");
    for speeds in [[1, 1, 1], [u32::MAX, 1, 7], [1, u32::MAX, u32::MAX]] {
        let problem = Problem::new(hosts.clone()).with_speeds(speeds.to_vec()).expect("three speeds");
        for loads in [[u64::MAX, 0, 0], [u64::MAX - 2, 1, 1], [1 << 63, 1 << 62, (1 << 62) - 1]] {
            let split = solve(&problem, &loads, &mut Workspace::default()).expect("the sum fits");
            assert_eq!(verify(&problem, &loads, &split), Ok(()), "{speeds:?} {loads:?}");
        }
    }
}

#[test]
fn affine5_refuses_what_lplb_cannot_state() {
    let problem = Problem::new(Hosts::new(2, [[0, 1]]).expect("valid hosts"));
    let uneven = problem.clone().with_speeds(vec![1, 2]).expect("two speeds");
    let loaded = problem.with_base_loads(vec![0, 5]).expect("two base loads");
    for problem in [uneven, loaded] {
        let refusal = affine_scaling::solve(&problem, &[3], &mut affine_scaling::AffineWorkspace::default());
        assert_eq!(refusal, Err(SolverError::AffineUnsupported { rank: 1 }));
    }
}

#[test]
fn errors_say_what_to_look_at() {
    let message = SolverError::HostOutOfRange { item: 7, host: 9, ranks: 8 }.to_string();
    assert_eq!(message, "item 7 names host 9, but there are only 8 ranks");
    assert_eq!(Peak { load: 3, speed: 2 }.max(Peak { load: 1, speed: 1 }).load, 3);
}
