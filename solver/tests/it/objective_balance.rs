//! Decreasingly minimal load vectors compared with enumeration, least squares, and the residual-path check.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common;
use std::cmp::Ordering;

use crate::common::{LAWS, Limits, SHAPES, Speeds};
use evenkeel_solver::objective::{BalanceWorkspace, balance, balance_into, verify_balanced};
use evenkeel_solver::{Hosts, Problem, RankSplit, Violation, solve};

/// Returns the ratios of a load vector, sorted in descending order.
fn ratios(problem: &Problem, loads: &[u64]) -> Vec<(u64, u32)> {
    let mut ratios: Vec<(u64, u32)> = loads.iter().copied().zip(problem.speeds().iter().copied()).collect();
    ratios.sort_by(|&a, &b| compare(b, a));
    ratios
}

fn compare(a: (u64, u32), b: (u64, u32)) -> Ordering {
    (u128::from(a.0) * u128::from(b.1)).cmp(&(u128::from(b.0) * u128::from(a.1)))
}

fn compare_vectors(a: &[(u64, u32)], b: &[(u64, u32)]) -> Ordering {
    a.iter().zip(b).map(|(&a, &b)| compare(a, b)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// Returns the best vector over all splits, by enumeration item by item.
fn by_enumeration(problem: &Problem, loads: &[u64]) -> Vec<(u64, u32)> {
    let mut vectors = std::collections::BTreeSet::from([problem.base_loads().to_vec()]);
    for (item, &load) in loads.iter().enumerate() {
        let hosts = problem.hosts().ranks_of(item);
        let mut next = std::collections::BTreeSet::new();
        for vector in &vectors {
            pour(vector.clone(), hosts, load, &mut next);
        }
        vectors = next;
    }
    let sorted = vectors.iter().map(|vector| ratios(problem, vector));
    sorted.min_by(|a, b| compare_vectors(a, b)).unwrap()
}

fn pour(mut vector: Vec<u64>, hosts: &[u32], load: u64, into: &mut std::collections::BTreeSet<Vec<u64>>) {
    let (&first, rest) = hosts.split_first().unwrap();
    if rest.is_empty() {
        vector[first as usize] += load;
        into.insert(vector);
        return;
    }
    for here in 0..=load {
        let mut vector = vector.clone();
        vector[first as usize] += here;
        pour(vector, rest, load - here, into);
    }
}

#[test]
fn small_instances_agree_with_enumeration() {
    let mut workspace = BalanceWorkspace::default();
    let mut counted = 0;
    for seed in 0..6000 {
        let speeds = if seed % 3 == 0 { Speeds::One } else { Speeds::Any(4) };
        let limits = Limits { ranks: 4, items: 4, load: 5, speeds, base: true };
        let instance = common::draw(seed, limits);
        let split = balance(&instance.problem, &instance.loads, &mut workspace).unwrap();
        let best = by_enumeration(&instance.problem, &instance.loads);
        let found = ratios(&instance.problem, &split.rank_loads);
        assert_eq!(
            compare_vectors(&found, &best),
            Ordering::Equal,
            "seed {seed}: {found:?} {best:?} {instance:?}"
        );
        verify_balanced(&instance.problem, &instance.loads, &split).unwrap();
        counted += 1;
    }
    println!("{counted} instances agree with enumeration");
}

#[test]
fn large_instances_have_no_improving_path() {
    let mut workspace = BalanceWorkspace::default();
    for seed in 0..3000 {
        let speeds = [Speeds::One, Speeds::Equal, Speeds::Any(9)][seed as usize % 3];
        let load = [30, 1 << 20, 1 << 50][seed as usize / 3 % 3];
        let limits = Limits { ranks: 48, items: 150, load, speeds, base: true };
        let instance = common::draw(seed, limits);
        let split = balance(&instance.problem, &instance.loads, &mut workspace).unwrap();
        verify_balanced(&instance.problem, &instance.loads, &split)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        let exact =
            solve(&instance.problem, &instance.loads, &mut evenkeel_solver::Workspace::default()).unwrap();
        assert_eq!(exact.peak, split.peak);
    }
}

#[test]
fn every_family_is_balanced() {
    let limits = Limits { ranks: 200, items: 500, load: 1 << 40, speeds: Speeds::Any(9), base: true };
    for shape in SHAPES {
        for law in LAWS {
            let instance = common::draw_as(shape, law, &mut common::rng(7), limits).unwrap();
            let split =
                balance(&instance.problem, &instance.loads, &mut BalanceWorkspace::default()).unwrap();
            verify_balanced(&instance.problem, &instance.loads, &split)
                .unwrap_or_else(|why| panic!("{shape:?} {law:?}: {why}"));
        }
    }
}

/// On a tie of ratios the faster rank serves the token: (1, 0) instead of (1, 1/2).
#[test]
fn on_equal_ratios_the_faster_rank_serves() {
    let hosts = Hosts::new(2, [&[0, 1][..], &[0, 1]]).unwrap();
    let problem = Problem::new(hosts).with_speeds(vec![1, 2]).unwrap();
    let split = balance(&problem, &[1, 1], &mut BalanceWorkspace::default()).unwrap();
    assert_eq!(split.rank_loads, [0, 2]);
}

#[test]
fn an_unbalanced_split_is_found() {
    // Rank 0 has a fixed load of 100. The item of ranks 1 and 2 may lie anywhere below.
    let problem = Problem::new(Hosts::new(3, [&[0][..], &[1, 2]]).unwrap());
    let mut split = balance(&problem, &[100, 50], &mut BalanceWorkspace::default()).unwrap();
    assert_eq!(split.rank_loads, [100, 25, 25]);
    split.quotas = vec![100, 26, 24];
    split.rank_loads = vec![100, 26, 24];
    let verdict = verify_balanced(&problem, &[100, 50], &split);
    assert_eq!(verdict, Err(Violation::Unbalanced { from: 1, to: 2 }));
}

#[test]
fn the_answer_does_not_depend_on_what_the_workspace_held() {
    let (mut used, mut split) = (BalanceWorkspace::default(), RankSplit::default());
    for seed in 0..500 {
        let limits = Limits { ranks: 24, items: 80, load: 1 << 20, speeds: Speeds::Any(3), base: true };
        let instance = common::draw(seed, limits);
        balance_into(&instance.problem, &instance.loads, &mut used, &mut split).unwrap();
        let fresh = balance(&instance.problem, &instance.loads, &mut BalanceWorkspace::default()).unwrap();
        assert_eq!(fresh, split);
    }
}

/// Long chains, nested host sets and many classes: every shape is fast.
#[test]
fn a_thousand_ranks_are_balanced() {
    let limits = Limits { ranks: 1024, items: 3000, load: 1 << 30, speeds: Speeds::One, base: true };
    for shape in SHAPES {
        for law in [common::Law::Uniform, common::Law::Zipf] {
            let instance = common::draw_as(shape, law, &mut common::rng(12), limits).unwrap();
            let begin = std::time::Instant::now();
            let split =
                balance(&instance.problem, &instance.loads, &mut BalanceWorkspace::default()).unwrap();
            println!(
                "{shape:?} {law:?}: {} ranks, {} items, {:?}",
                instance.problem.hosts().ranks(),
                instance.loads.len(),
                begin.elapsed()
            );
            verify_balanced(&instance.problem, &instance.loads, &split).unwrap();
        }
    }
}

/// Least squares by HiGHS. At equal speeds a vector is decreasingly minimal exactly if its sum of squares is
/// least. The `k`-th token of a rank adds `2k − 1` to its square, so the problem is a linear programme over a
/// network.
#[cfg(feature = "oracle")]
mod referee {
    use super::*;
    use good_lp::solvers::highs::highs;
    use good_lp::{Expression, ProblemVariables, Solution, SolverModel, variable};

    fn least_squares(problem: &Problem, loads: &[u64]) -> f64 {
        let mut variables = ProblemVariables::new();
        let mut rows = Vec::new();
        let mut cost = Expression::default();
        let mut ranks: Vec<Expression> =
            problem.base_loads().iter().map(|&base| (base as f64).into()).collect();
        for (item, &load) in loads.iter().enumerate() {
            let mut sum = Expression::default();
            for &rank in problem.hosts().ranks_of(item) {
                let quota = variables.add(variable().min(0.0));
                sum.add_mul(1.0, quota);
                ranks[rank as usize].add_mul(1.0, quota);
            }
            rows.push(sum.eq(load as f64));
        }
        for (rank, mut sum) in ranks.into_iter().enumerate() {
            let touching =
                (0..loads.len()).filter(|&item| problem.hosts().ranks_of(item).contains(&(rank as u32)));
            let most: u64 = problem.base_loads()[rank] + touching.map(|item| loads[item]).sum::<u64>();
            for token in 1..=most {
                let step = variables.add(variable().min(0.0).max(1.0));
                cost.add_mul((2 * token - 1) as f64, step);
                sum.add_mul(-1.0, step);
            }
            rows.push(sum.eq(0.0));
        }
        let mut model = variables.minimise(cost.clone()).using(highs).set_threads(1);
        for row in rows {
            model.add_constraint(row);
        }
        model.solve().unwrap().eval(cost)
    }

    #[test]
    fn middling_instances_have_least_squares() {
        for seed in 0..600 {
            let limits = Limits { ranks: 10, items: 20, load: 15, speeds: Speeds::One, base: true };
            let instance = common::draw(seed, limits);
            let split =
                balance(&instance.problem, &instance.loads, &mut BalanceWorkspace::default()).unwrap();
            let squares: u64 = split.rank_loads.iter().map(|load| load * load).sum();
            let best = least_squares(&instance.problem, &instance.loads);
            assert!((squares as f64 - best).abs() < 0.4, "seed {seed}: HiGHS {best}, found {squares}");
        }
    }
}
