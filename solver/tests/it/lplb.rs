//! LPLB's topologies and loads: the exact split on inputs that break LPLB's solver, and the quality of
//! affine5.
//!
//! D1 to D6 are the defects of LPLB's published solver. D4 and D5 concern tokens, not the solver.
#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common;
use crate::common::{Limits, Speeds};
use evenkeel_solver::{Hosts, Problem, Workspace, affine_scaling, solve, verify};

/// Returns LPLB's topologies on 256 items, by name.
fn topologies() -> Vec<(&'static str, Hosts)> {
    vec![
        ("ring 8x1", common::lplb(256, 1, &common::ring(8))),
        ("ring 32x1", common::lplb(256, 1, &common::ring(32))),
        ("cube 8x2", common::lplb(256, 2, &common::cube())),
        ("cube 8x4", common::lplb(256, 4, &common::cube())),
        ("hypercube 16x2", common::lplb(256, 2, &common::hypercube())),
        ("torus 8x4x2", common::lplb(256, 2, &common::torus(8, 4))),
    ]
}

/// Returns the peak of these shares, in tokens before rounding.
fn peak_of(hosts: &Hosts, loads: &[u64], shares: &[f32]) -> f64 {
    let mut ranks = vec![0.0; hosts.ranks()];
    for (item, &load) in loads.iter().enumerate() {
        for (&rank, &share) in hosts.ranks_of(item).iter().zip(&shares[hosts.offset(item)..]) {
            ranks[rank as usize] += load as f64 * f64::from(share);
        }
    }
    ranks.into_iter().fold(0.0, f64::max)
}

fn check_shares(hosts: &Hosts, shares: &[f32]) {
    assert_eq!(shares.len(), hosts.len());
    for item in 0..hosts.items() {
        let own = &shares[hosts.offset(item)..hosts.offset(item + 1)];
        assert!(own.iter().all(|share| (0.0..=1.0).contains(share)), "item {item}: {own:?}");
        assert!((own.iter().sum::<f32>() - 1.0).abs() < 1e-5, "item {item}: {own:?}");
    }
}

/// D1: a step length that ignores variables gives negative fractions. D2: five iterations leave a gap. The
/// exact quotas are whole and non-negative by type, conserve every load, and leave no gap.
#[test]
fn d1_d2_the_exact_split_is_feasible_and_leaves_no_gap() {
    for (name, hosts) in topologies() {
        let problem = Problem::new(hosts);
        let mut rng = common::rng(42);
        let mut workspace = Workspace::new(&problem);
        for draw in 0..1000 {
            let loads = common::lplb_loads(256, &mut rng);
            let split = solve(&problem, &loads, &mut workspace).expect("valid");
            assert_eq!(verify(&problem, &loads, &split), Ok(()), "{name}, draw {draw}");
        }
    }
}

#[test]
fn affine5_is_feasible_and_never_beats_the_exact_peak() {
    for (name, hosts) in topologies() {
        let problem = Problem::new(hosts);
        let mut rng = common::rng(7);
        let (mut exact, mut approximate) =
            (Workspace::new(&problem), affine_scaling::AffineWorkspace::new(&problem));
        let (mut accepted, mut components, mut gap) = (0, 0, 0.0);
        for _ in 0..200 {
            let loads = common::lplb_loads(256, &mut rng);
            let shares = affine_scaling::solve(&problem, &loads, &mut approximate).expect("equal speeds");
            check_shares(problem.hosts(), &shares.shares);
            let optimum = solve(&problem, &loads, &mut exact).expect("valid").peak.load as f64;
            let peak = peak_of(problem.hosts(), &loads, &shares.shares);
            // Fractions may be below whole tokens by less than one token, plus an error of single precision.
            assert!(peak > optimum - 1.0 - 1e-5 * optimum, "{name}: {peak} < {optimum}");
            accepted += shares.accepted.iter().filter(|&&accepted| accepted).count();
            components += shares.accepted.len();
            gap += (peak / optimum - 1.0) / 200.0;
        }
        println!("{name}: {accepted} of {components} components accepted, mean gap {:.3} %", 100.0 * gap);
        assert!(2 * accepted > components, "{name}: {accepted} of {components} accepted");
        assert!(gap < 0.05, "{name}: mean gap {gap}");
    }
}

/// D3: with one rank at ten times the load, LPLB rejects its own answer and falls back to halves. The exact
/// split does not.
#[test]
fn d3_one_hot_rank_is_split_optimally() {
    for (name, hosts) in topologies() {
        let problem = Problem::new(hosts);
        let own = 256 / problem.hosts().ranks();
        let mut rng = common::rng(3);
        let mut workspace = Workspace::new(&problem);
        let mut lost = 0.0;
        for draw in 0..200 {
            let mut loads = common::lplb_loads(256, &mut rng);
            let hot = draw % problem.hosts().ranks();
            loads[hot * own..(hot + 1) * own].iter_mut().for_each(|load| *load *= 10);
            let split = solve(&problem, &loads, &mut workspace).expect("valid");
            assert_eq!(verify(&problem, &loads, &split), Ok(()), "{name}, draw {draw}");

            let hosts = problem.hosts();
            let even: Vec<f32> = (0..hosts.items())
                .flat_map(|item| {
                    hosts.ranks_of(item).iter().map(move |_| 1.0 / hosts.ranks_of(item).len() as f32)
                })
                .collect();
            lost += peak_of(hosts, &loads, &even) / split.peak.load as f64 - 1.0;
        }
        println!("{name}: halves lose {:.1} % on average", lost / 2.0);
        assert!(lost > 0.0, "{name}: halves are never better and mostly worse");
    }
}

/// D6: an empty batch has a peak of zero, without a division by zero.
#[test]
fn d6_zero_loads_are_fine() {
    for (name, hosts) in topologies() {
        let problem = Problem::new(hosts);
        let loads = [0; 256];
        let split = solve(&problem, &loads, &mut Workspace::new(&problem)).expect("valid");
        assert_eq!((split.peak.load, verify(&problem, &loads, &split)), (0, Ok(())), "{name}");
        let shares =
            affine_scaling::solve(&problem, &loads, &mut affine_scaling::AffineWorkspace::new(&problem))
                .expect("valid");
        check_shares(problem.hosts(), &shares.shares);
        assert!(shares.accepted.iter().all(|&accepted| accepted), "{name}");
    }
}

#[test]
fn affine5_is_feasible_on_every_family() {
    let limits = Limits { ranks: 24, items: 80, load: 1 << 40, speeds: Speeds::Equal, base: false };
    let mut workspace = affine_scaling::AffineWorkspace::default();
    for seed in 0..1500 {
        let instance = common::draw(seed, limits);
        let shares =
            affine_scaling::solve(&instance.problem, &instance.loads, &mut workspace).expect("equal speeds");
        check_shares(instance.problem.hosts(), &shares.shares);
        assert_eq!(shares.component.len(), instance.problem.hosts().ranks());
        let highest = shares.component.iter().max().map_or(0, |&component| component as usize + 1);
        assert_eq!(shares.accepted.len(), highest);
        let again = affine_scaling::solve(
            &instance.problem,
            &instance.loads,
            &mut affine_scaling::AffineWorkspace::default(),
        );
        assert_eq!(again, Ok(shares), "seed {seed}: the memory's past shows");
    }
}
