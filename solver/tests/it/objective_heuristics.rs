//! Fewest pieces and rooflines: always feasible, never below the bound. The tests also measure the distance
//! from the optimum.
//!
//! ```text
//! cargo test -p evenkeel-solver --features oracle --test it -- --nocapture objective_heuristics::
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common;
use crate::common::{Instance, Limits, Speeds};
use evenkeel_solver::objective::{
    MinPieceSplit, MinPieceSplitter, Roofline, RooflineSplit, RooflineSplitter,
};
use evenkeel_solver::{Hosts, Peak, Problem, SolverError, Workspace, solve, verify};
use rand::RngExt;

/// Ratios of value to reference, for the documentation.
#[derive(Default)]
struct Gaps {
    count: usize,
    optimal: usize,
    sum: f64,
    worst: f64,
}

impl Gaps {
    fn add(&mut self, value: f64, reference: f64) {
        let gap = if reference == 0.0 { 0.0 } else { value / reference - 1.0 };
        self.count += 1;
        self.optimal += usize::from(gap < 1e-9);
        self.sum += gap;
        self.worst = self.worst.max(gap);
    }

    fn print(&self, what: &str) {
        println!(
            "{what}: {} instances, {:.1} % equal, mean gap {:.2} %, worst {:.1} %",
            self.count,
            100.0 * self.optimal as f64 / self.count as f64,
            100.0 * self.sum / self.count as f64,
            100.0 * self.worst
        );
    }
}

fn check_min_piece(instance: &Instance, least: u64, answer: &MinPieceSplit) {
    let (problem, hosts) = (&instance.problem, instance.problem.hosts());
    let exact = solve(problem, &instance.loads, &mut Workspace::default()).unwrap();
    assert_eq!(exact.peak, answer.bound);
    assert!(answer.bound <= answer.split.peak);
    let mut rank_loads = problem.base_loads().to_vec();
    for (item, &load) in instance.loads.iter().enumerate() {
        let quotas = answer.split.quotas_of(item);
        assert_eq!(quotas.iter().sum::<u64>(), load);
        assert!(
            quotas.iter().all(|&q| q == 0 || q == load || q >= least),
            "{quotas:?} of {load}, least {least}"
        );
        for (&rank, quota) in hosts.ranks_of(item).iter().zip(quotas) {
            rank_loads[rank as usize] += quota;
        }
    }
    assert_eq!(rank_loads, answer.split.rank_loads);
    let peaks = rank_loads.iter().zip(problem.speeds()).map(|(&load, &speed)| Peak { load, speed });
    assert_eq!(peaks.max().unwrap(), answer.split.peak);
    if answer.split.peak == answer.bound {
        verify(problem, &instance.loads, &answer.split).unwrap();
    }
}

fn check_roofline(instance: &Instance, cost: Roofline, answer: &RooflineSplit) {
    let (problem, hosts) = (&instance.problem, instance.problem.hosts());
    let mut costs: Vec<u64> =
        problem.base_loads().iter().map(|&base| cost.piece_cost(base).unwrap()).collect();
    for (item, &load) in instance.loads.iter().enumerate() {
        let quotas = &answer.quotas[hosts.offset(item)..hosts.offset(item + 1)];
        assert_eq!(quotas.iter().sum::<u64>(), load);
        for (&rank, &quota) in hosts.ranks_of(item).iter().zip(quotas) {
            costs[rank as usize] += cost.piece_cost(quota).unwrap();
        }
    }
    assert_eq!(costs, answer.rank_costs);
    let peaks = costs.iter().zip(problem.speeds()).map(|(&load, &speed)| Peak { load, speed });
    assert_eq!(peaks.max().unwrap(), answer.peak);
    assert!(answer.bound <= answer.peak, "{:?} {:?}", answer.bound, answer.peak);
}

#[test]
fn larger_instances_are_feasible_and_above_the_bound() {
    let (mut pieces, mut roofs) = (Gaps::default(), Gaps::default());
    for seed in 0..180 {
        let speeds = [Speeds::One, Speeds::Equal, Speeds::Any(9)][seed as usize % 3];
        let load = [30, 4096, 1 << 40][seed as usize / 3 % 3];
        let instance = common::draw(seed, Limits { ranks: 24, items: 80, load, speeds, base: true });
        let mut rng = common::rng(seed);
        let least = rng.random_range(0..=load / 2);
        let answer = MinPieceSplitter::new(instance.problem.clone(), least).solve(&instance.loads).unwrap();
        check_min_piece(&instance, least, &answer);
        pieces.add(answer.split.peak.as_f64(), answer.bound.as_f64());

        let tile = rng.random_range(1..=128);
        let cost = Roofline { read: rng.random_range(0..=load), token: rng.random_range(0..=3), tile };
        let answer =
            RooflineSplitter::new(instance.problem.clone(), cost).unwrap().solve(&instance.loads).unwrap();
        check_roofline(&instance, cost, &answer);
        roofs.add(answer.peak.as_f64(), answer.bound.as_f64());
    }
    pieces.print("least piece, to the bound");
    roofs.print("roofline, to the bound");
}

/// At both ends the roofline is an exact problem, and is solved as one.
#[test]
fn the_ends_of_the_roofline_are_exact() {
    for seed in 0..300 {
        let instance = common::draw(
            seed,
            Limits { ranks: 16, items: 60, load: 5000, speeds: Speeds::Any(3), base: false },
        );
        for cost in [Roofline { read: 0, token: 3, tile: 64 }, Roofline { read: 1 << 40, token: 3, tile: 64 }]
        {
            let answer = RooflineSplitter::new(instance.problem.clone(), cost)
                .unwrap()
                .solve(&instance.loads)
                .unwrap();
            check_roofline(&instance, cost, &answer);
            assert_eq!(answer.peak, answer.bound, "seed {seed} {cost:?}");
        }
    }
}

#[test]
fn input_is_checked() {
    let problem = Problem::new(Hosts::new(2, [&[0, 1][..], &[1]]).unwrap());
    let cost = Roofline { read: 1, token: u64::MAX / 2, tile: 2 };
    assert!(matches!(
        RooflineSplitter::new(problem.clone(), Roofline { tile: 0, ..cost }),
        Err(SolverError::ZeroTile)
    ));
    let mut rooflines = RooflineSplitter::new(problem.clone(), cost).unwrap();
    assert_eq!(rooflines.solve(&[9, 9]).unwrap_err(), SolverError::Overflow);
    assert!(rooflines.solve(&[0, 0]).is_ok());
    assert!(rooflines.solve(&[1]).is_err());
    assert!(MinPieceSplitter::new(problem, 4).solve(&[1]).is_err());
}

#[cfg(feature = "oracle")]
mod referee {
    use super::*;
    use good_lp::solvers::highs::highs;
    use good_lp::{Expression, ProblemVariables, Solution, SolverModel, constraint, variable};

    /// Returns the least peak by branch and bound. `piece` defines one (item, host) pair. It receives the
    /// programme, the rows and the load, and returns the terms of the item and of the rank.
    fn optimum(
        instance: &Instance,
        base: &[u64],
        amounts: &[u64],
        piece: impl Fn(&mut ProblemVariables, &mut Vec<good_lp::Constraint>, u64) -> (Expression, Expression),
    ) -> f64 {
        let problem = &instance.problem;
        let mut variables = ProblemVariables::new();
        let peak = variables.add(variable().min(0.0));
        let mut rows = Vec::new();
        let mut ranks: Vec<Expression> = base.iter().map(|&base| (base as f64).into()).collect();
        for (item, &amount) in amounts.iter().enumerate() {
            let mut sum = Expression::default();
            for &rank in problem.hosts().ranks_of(item) {
                let (tokens, weight) = piece(&mut variables, &mut rows, amount);
                sum += tokens;
                ranks[rank as usize] += weight;
            }
            rows.push(constraint!(sum == amount as f64));
        }
        for (rank, &speed) in ranks.into_iter().zip(problem.speeds()) {
            rows.push(constraint!(rank <= f64::from(speed) * peak));
        }
        let mut model = variables
            .minimise(peak)
            .using(highs)
            .set_threads(1)
            .set_option("mip_rel_gap", 0.0)
            .set_option("mip_abs_gap", 1e-6)
            .set_time_limit(30.0);
        for row in rows {
            model.add_constraint(row);
        }
        model.solve().unwrap().value(peak)
    }

    fn small(seed: u64) -> Instance {
        let speeds = if seed.is_multiple_of(3) { Speeds::Any(3) } else { Speeds::One };
        common::draw(seed, Limits { ranks: 5, items: 8, load: 40, speeds, base: true })
    }

    #[test]
    fn least_pieces_beside_the_optimum() {
        let mut gaps = Gaps::default();
        for seed in 0..600 {
            let instance = small(seed);
            let least = 2 + seed % 20;
            let answer =
                MinPieceSplitter::new(instance.problem.clone(), least).solve(&instance.loads).unwrap();
            check_min_piece(&instance, least, &answer);
            let best = optimum(
                &instance,
                instance.problem.base_loads(),
                &instance.loads,
                |variables, rows, load| {
                    let quota = variables.add(variable().integer().min(0.0).max(load as f64));
                    let open = variables.add(variable().binary());
                    let piece = least.min(load) as f64;
                    rows.push(constraint!(quota >= piece * open));
                    rows.push(constraint!(quota <= load as f64 * open));
                    (quota.into(), quota.into())
                },
            );
            assert!(answer.split.peak.as_f64() > best - 1e-4, "seed {seed}: below the optimum {best}");
            gaps.add(answer.split.peak.as_f64(), best.max(answer.bound.as_f64()));
        }
        gaps.print("least piece, to the optimum");
        assert!(gaps.sum / (gaps.count as f64) < 0.01 && gaps.worst <= 0.5);
    }

    #[test]
    fn rooflines_beside_the_optimum() {
        let (mut gaps, mut bounds) = (Gaps::default(), Gaps::default());
        for seed in 0..300 {
            let instance = small(seed);
            let cost = Roofline { read: 5 + seed * 7 % 40, token: 1 + seed % 3, tile: 1 + seed % 8 };
            let answer = RooflineSplitter::new(instance.problem.clone(), cost)
                .unwrap()
                .solve(&instance.loads)
                .unwrap();
            check_roofline(&instance, cost, &answer);
            let base: Vec<u64> =
                instance.problem.base_loads().iter().map(|&base| cost.piece_cost(base).unwrap()).collect();
            let tiles: Vec<u64> = instance.loads.iter().map(|load| load.div_ceil(cost.tile)).collect();
            let best = optimum(&instance, &base, &tiles, |variables, rows, tiles| {
                let count = variables.add(variable().integer().min(0.0).max(tiles as f64));
                let open = variables.add(variable().binary());
                let paid = variables.add(variable().min(0.0));
                rows.push(constraint!(count <= tiles as f64 * open));
                rows.push(constraint!(paid >= cost.read as f64 * open));
                rows.push(constraint!(paid >= (cost.token * cost.tile) as f64 * count));
                (count.into(), paid.into())
            });
            assert!(answer.peak.as_f64() > best - 1e-4, "seed {seed}: below the optimum {best}");
            assert!(answer.bound.as_f64() < best + 1e-4, "seed {seed}: bound above the optimum {best}");
            gaps.add(answer.peak.as_f64(), best.max(answer.bound.as_f64()));
            bounds.add(best, answer.bound.as_f64());
        }
        gaps.print("roofline, to the optimum");
        bounds.print("roofline, optimum to the bound");
        assert!(gaps.sum / (gaps.count as f64) < 0.01 && gaps.worst <= 0.5);
    }
}
