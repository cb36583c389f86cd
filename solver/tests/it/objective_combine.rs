//! Objectives in lexicographic order: each equals the result of its own module, and invalid combinations are
//! refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common;
use crate::common::{Limits, Speeds};
use evenkeel_solver::objective::{
    ActiveSplitter, BalanceWorkspace, Cost, MinPieceSplitter, Objective, ObjectiveSolver, PrimaryObjective,
    Roofline, RooflineSplitter, TileSplitter, TrafficSplitter, balance,
};
use evenkeel_solver::{Hosts, Problem, SolverError, solve};

#[test]
fn each_objective_is_its_modules_own() {
    let roofline = Roofline { read: 500, token: 3, tile: 16 };
    for seed in 0..150 {
        let limits = Limits { ranks: 12, items: 30, load: 900, speeds: Speeds::Any(2), base: true };
        let instance = common::draw(seed, limits);
        let (problem, loads) = (&instance.problem, &instance.loads);
        let outcome = |objective: Objective, batch: &[u64]| {
            ObjectiveSolver::new(problem.clone(), objective).unwrap().solve(batch).unwrap()
        };
        let plain = outcome(Objective::default(), loads);
        let exact = solve(problem, loads, &mut evenkeel_solver::Workspace::default()).unwrap();
        assert_eq!((plain.peak, plain.bound, plain.quotas), (exact.peak, exact.peak, exact.quotas));

        let vector = outcome(Objective::new(Cost::Tokens).then_vector(), loads);
        assert_eq!(vector.quotas, balance(problem, loads, &mut BalanceWorkspace::default()).unwrap().quotas);

        let tiles = outcome(Objective::new(Cost::Tiles(16)).then_vector(), loads);
        assert_eq!(
            tiles.quotas,
            TileSplitter::new(problem.clone(), 16).unwrap().solve(loads).unwrap().quotas
        );
        let active = outcome(Objective::new(Cost::Active), loads);
        assert_eq!(active.quotas, ActiveSplitter::new(problem.clone()).solve(loads).unwrap().quotas);
        let roof = outcome(Objective::new(Cost::Roofline(roofline)), loads);
        let own = RooflineSplitter::new(problem.clone(), roofline).unwrap().solve(loads).unwrap();
        assert_eq!((roof.quotas, roof.bound, roof.peak), (own.quotas, own.bound, own.peak));
        let piece = outcome(Objective::new(Cost::MinPiece(64)), loads);
        let own = MinPieceSplitter::new(problem.clone(), 64).solve(loads).unwrap();
        assert_eq!((piece.quotas, piece.bound), (own.split.quotas, own.bound));

        // All tokens come from rank 0.
        let ranks = problem.hosts().ranks();
        let mut counts = vec![0; ranks * loads.len()];
        counts[..loads.len()].copy_from_slice(loads);
        let nodes: Vec<u32> = (0..ranks as u32).map(|rank| rank / 4).collect();
        for (objective, keep) in [
            (Objective::new(Cost::Tokens).then_traffic(nodes.clone()), PrimaryObjective::Peak),
            (
                Objective::new(Cost::Tokens).then_vector().then_traffic(nodes.clone()),
                PrimaryObjective::Vector,
            ),
        ] {
            let traffic = outcome(objective, &counts);
            let own = TrafficSplitter::new(problem.clone(), &nodes).unwrap().solve(&counts, keep).unwrap();
            assert_eq!(traffic.quotas, own.split.quotas);
            let left = traffic.traffic.unwrap();
            assert_eq!((left.off_node, left.off_rank), (own.off_node, own.off_rank));
        }
    }
}

#[test]
fn what_does_not_combine_is_refused() {
    let problem = Problem::new(Hosts::new(2, [&[0, 1][..], &[1]]).unwrap());
    let refused = |objective| ObjectiveSolver::new(problem.clone(), objective).unwrap_err();
    let roofline = Roofline { read: 1, token: 1, tile: 1 };
    for cost in [Cost::Tiles(4), Cost::Active, Cost::Roofline(roofline), Cost::MinPiece(4)] {
        let error = refused(Objective::new(cost).then_traffic(vec![0, 0]));
        assert!(matches!(error, SolverError::Combination { then: "traffic", .. }), "{error}");
    }
    let error = refused(Objective::new(Cost::Roofline(roofline)).then_vector());
    assert_eq!(error.to_string(), "the whole vector cannot come after the peak in the roofline");
    assert_eq!(refused(Objective::new(Cost::Tiles(0))), SolverError::ZeroTile);
    assert!(matches!(
        refused(Objective::default().then_traffic(vec![0])),
        SolverError::Length { what: "nodes", .. }
    ));
}

#[test]
fn no_items_and_no_tokens_are_no_trouble() {
    let roofline = Roofline { read: u64::MAX, token: 0, tile: u64::MAX };
    let costs = [
        Cost::Tokens,
        Cost::Tiles(u64::MAX),
        Cost::Active,
        Cost::Roofline(roofline),
        Cost::MinPiece(u64::MAX),
        Cost::MinPiece(0),
    ];
    let none: [&[u32]; 0] = [];
    let empty = Problem::new(Hosts::new(3, none).unwrap());
    let silent = Problem::new(Hosts::new(3, [&[0, 1, 2][..], &[1, 2], &[2]]).unwrap());
    for cost in costs {
        let outcome = ObjectiveSolver::new(empty.clone(), Objective::new(cost)).unwrap().solve(&[]).unwrap();
        assert_eq!((outcome.peak.load, outcome.quotas), (0, vec![]));
        let outcome =
            ObjectiveSolver::new(silent.clone(), Objective::new(cost)).unwrap().solve(&[0; 3]).unwrap();
        assert_eq!((outcome.peak.load, outcome.quotas), (0, vec![0; 6]));
    }
    for (problem, counts) in [(empty, vec![]), (silent, vec![0; 9])] {
        let objective = Objective::default().then_vector().then_traffic(vec![7, 7, 3]);
        assert_eq!(ObjectiveSolver::new(problem, objective).unwrap().solve(&counts).unwrap().peak.load, 0);
    }
}
