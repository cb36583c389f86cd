//! The linear programme agrees with the exact split for every engine, and failures are errors.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common;
use crate::common::{Limits, Speeds};
use evenkeel_solver::lp::{self, LpEngine, LpError};
use evenkeel_solver::{Hosts, Problem, SolverError, Workspace, solve};

const SMALL: Limits = Limits { ranks: 12, items: 40, load: 10_000, speeds: Speeds::Any(4), base: true };

#[test]
fn microlp_finds_the_fluid_peak() {
    for seed in 0..300 {
        let instance = common::draw(seed, SMALL);
        let (problem, loads) = (&instance.problem, &instance.loads);
        let fluid = lp::solve(problem, loads, LpEngine::Microlp).expect("microlp solves it");
        let exact = solve(problem, loads, &mut Workspace::new(problem)).expect("valid").peak.as_f64();
        // Rounding to whole tokens costs less than one token per unit of speed.
        let tolerance = 1e-6 * (1.0 + exact);
        assert!(fluid.peak <= exact + tolerance, "seed {seed}: {} > {exact}", fluid.peak);
        assert!(exact < fluid.peak + 1.0 + tolerance, "seed {seed}: {exact} > {} + 1", fluid.peak);

        let hosts = problem.hosts();
        for (item, &load) in loads.iter().enumerate() {
            let quotas = &fluid.quotas[hosts.offset(item)..hosts.offset(item + 1)];
            assert!(quotas.iter().all(|&quota| quota >= 0.0), "seed {seed}, item {item}");
            let sum: f64 = quotas.iter().sum();
            assert!(
                (sum - load as f64).abs() <= 1e-6 * (1.0 + load as f64),
                "seed {seed}, item {item}: {sum}"
            );
        }
    }
}

#[test]
fn every_engine_finds_the_same_fluid_peak() {
    let mut engines = vec![LpEngine::Clarabel];
    #[cfg(feature = "highs")]
    engines.extend([LpEngine::Highs, LpEngine::HighsSimplex, LpEngine::HighsIpm]);
    for seed in 0..60 {
        let instance = common::draw(seed, Limits { load: 10_000, ..SMALL });
        let (problem, loads) = (&instance.problem, &instance.loads);
        let expected = lp::solve(problem, loads, LpEngine::Microlp).expect("microlp solves it").peak;
        for &engine in &engines {
            let peak = lp::solve(problem, loads, engine).expect("it solves it").peak;
            let tolerance = 1e-5 * (1.0 + expected);
            assert!((peak - expected).abs() <= tolerance, "seed {seed}, {engine:?}: {peak}, {expected}");
        }
    }
}

#[test]
fn microlp_proves_small_integer_peaks() {
    for seed in 0..60 {
        let instance = common::draw(seed, Limits { ranks: 3, items: 6, load: 20, ..SMALL });
        let (problem, loads) = (&instance.problem, &instance.loads);
        let integer = lp::solve_integer(problem, loads, LpEngine::Microlp).expect("microlp solves it");
        let exact = solve(problem, loads, &mut Workspace::new(problem)).expect("valid").peak;
        assert_eq!(integer.peak, exact, "seed {seed}");
    }
}

#[test]
fn what_an_engine_cannot_do_is_an_error() {
    let problem = Problem::new(Hosts::new(2, [[0, 1]]).expect("valid hosts"));
    assert_eq!(
        lp::solve(&problem, &[], LpEngine::Microlp),
        Err(LpError::Input(SolverError::Length { what: "loads", expected: 1, got: 0 }))
    );
    let beyond_its_range = lp::solve_integer(&problem, &[1 << 40], LpEngine::Microlp);
    assert!(matches!(beyond_its_range, Err(LpError::Engine { .. })), "{beyond_its_range:?}");
    let no_integers = lp::solve_integer(&problem, &[3], LpEngine::Clarabel);
    assert!(matches!(no_integers, Err(LpError::Engine { .. })), "{no_integers:?}");
    assert!(!LpEngine::best_available().name().is_empty());
}
