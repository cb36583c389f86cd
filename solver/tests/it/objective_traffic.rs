//! Least traffic compared with enumeration, HiGHS and the check of prices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use crate::common;
use crate::common::{Instance, Limits, Speeds};
use evenkeel_solver::objective::{
    BalanceWorkspace, PrimaryObjective, TrafficSplit, TrafficSplitter, balance, verify_balanced,
    verify_traffic,
};
use evenkeel_solver::{Hosts, Peak, Problem, Violation, solve};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Returns nodes of ranks, in any numbering, and counts `[source][item]` that add up to the loads.
fn sources(instance: &Instance, rng: &mut ChaCha8Rng) -> (Vec<u32>, Vec<u64>) {
    let (ranks, items) = (instance.problem.hosts().ranks(), instance.problem.hosts().items());
    let per_node = rng.random_range(1..=ranks);
    let scattered = rng.random_bool(0.2);
    let nodes = (0..ranks)
        .map(|rank| if scattered { rng.random_range(0..4) * 7 } else { 90 - (rank / per_node) as u32 })
        .collect();
    let mut counts = vec![0; ranks * items];
    for (item, &load) in instance.loads.iter().enumerate() {
        // Few sources, or many. The last one contributes the rest.
        let most = rng.random_range(1..=ranks);
        let mut left = load;
        for _ in 0..most {
            let tokens = rng.random_range(0..=left);
            counts[rng.random_range(0..ranks) * items + item] += tokens;
            left -= tokens;
        }
        counts[rng.random_range(0..ranks) * items + item] += left;
    }
    (nodes, counts)
}

fn cost_of(problem: &Problem, nodes: &[u32], counts: &[u64], item: usize, quotas: &[u64]) -> (u64, u64) {
    let items = problem.hosts().items();
    let hosts = problem.hosts().ranks_of(item);
    let own = |rank: usize| counts[rank * items + item];
    let off_rank = hosts.iter().zip(quotas).map(|(&rank, &q)| q.saturating_sub(own(rank as usize))).sum();
    let mut names = nodes.to_vec();
    names.sort_unstable();
    names.dedup();
    let off_node = names.iter().map(|&node| {
        let come: u64 = (0..nodes.len()).filter(|&rank| nodes[rank] == node).map(own).sum();
        let there = hosts.iter().zip(quotas).filter(|&(&rank, _)| nodes[rank as usize] == node);
        there.map(|(_, &q)| q).sum::<u64>().saturating_sub(come)
    });
    (off_node.sum(), off_rank)
}

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

/// Returns the least cost per reachable load vector, over all splits.
fn by_enumeration(
    instance: &Instance,
    nodes: &[u32],
    counts: &[u64],
    allowed: impl Fn(&[u64]) -> bool,
) -> (u64, u64) {
    let problem = &instance.problem;
    let mut best = std::collections::BTreeMap::from([(problem.base_loads().to_vec(), (0, 0))]);
    for (item, &load) in instance.loads.iter().enumerate() {
        let hosts = problem.hosts().ranks_of(item);
        let choices: Vec<_> = splits_of(load, hosts.len())
            .into_iter()
            .map(|quotas| (cost_of(problem, nodes, counts, item, &quotas), quotas))
            .collect();
        let mut next = std::collections::BTreeMap::new();
        for (vector, cost) in &best {
            for (more, quotas) in &choices {
                let mut vector = vector.clone();
                for (&rank, quota) in hosts.iter().zip(quotas) {
                    vector[rank as usize] += quota;
                }
                let cost: (u64, u64) = (cost.0 + more.0, cost.1 + more.1);
                let entry = next.entry(vector).or_insert(cost);
                *entry = cost.min(*entry);
            }
        }
        best = next;
    }
    best.into_iter().filter(|(vector, _)| allowed(vector)).map(|(_, cost)| cost).min().unwrap()
}

/// Returns the ratios over a common denominator, sorted in descending order.
fn ratios(problem: &Problem, loads: &[u64]) -> Vec<u64> {
    let common: u64 = problem.speeds().iter().map(|&speed| u64::from(speed)).product();
    let mut ratios: Vec<u64> =
        loads.iter().zip(problem.speeds()).map(|(&load, &speed)| load * common / u64::from(speed)).collect();
    ratios.sort_unstable_by(|a, b| b.cmp(a));
    ratios
}

#[test]
fn small_instances_agree_with_enumeration() {
    for seed in 0..3000 {
        let speeds = if seed % 3 == 0 { Speeds::Any(4) } else { Speeds::One };
        let limits = Limits { ranks: 4, items: 4, load: 4, speeds, base: true };
        let instance = common::draw(seed, limits);
        let (nodes, counts) = sources(&instance, &mut common::rng(seed + 1_000_000));
        let mut traffic = TrafficSplitter::new(instance.problem.clone(), &nodes).unwrap();

        let exact =
            solve(&instance.problem, &instance.loads, &mut evenkeel_solver::Workspace::default()).unwrap();
        let answer = traffic.solve(&counts, PrimaryObjective::Peak).unwrap();
        let within = |loads: &[u64]| {
            loads
                .iter()
                .zip(instance.problem.speeds())
                .all(|(&load, &speed)| Peak { load, speed } <= exact.peak)
        };
        let best = by_enumeration(&instance, &nodes, &counts, within);
        assert_eq!((answer.off_node, answer.off_rank), best, "seed {seed} {instance:?} {nodes:?} {counts:?}");
        verify_traffic(&instance.problem, &nodes, &counts, PrimaryObjective::Peak, &answer)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));

        let balanced = balance(&instance.problem, &instance.loads, &mut BalanceWorkspace::default()).unwrap();
        let least = ratios(&instance.problem, &balanced.rank_loads);
        let answer = traffic.solve(&counts, PrimaryObjective::Vector).unwrap();
        let best =
            by_enumeration(&instance, &nodes, &counts, |loads| ratios(&instance.problem, loads) == least);
        assert_eq!((answer.off_node, answer.off_rank), best, "seed {seed} {instance:?} {nodes:?} {counts:?}");
        assert_eq!(ratios(&instance.problem, &answer.split.rank_loads), least);
        verify_balanced(&instance.problem, &instance.loads, &answer.split).unwrap();
        verify_traffic(&instance.problem, &nodes, &counts, PrimaryObjective::Vector, &answer)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

#[test]
fn large_instances_are_proved_by_their_prices() {
    for seed in 0..1500 {
        let speeds = [Speeds::One, Speeds::Equal, Speeds::Any(9)][seed as usize % 3];
        let load = [30, 1 << 20, 1 << 45][seed as usize / 3 % 3];
        let limits = Limits { ranks: 40, items: 120, load, speeds, base: true };
        let instance = common::draw(seed, limits);
        let (nodes, counts) = sources(&instance, &mut common::rng(seed + 1_000_000));
        let mut traffic = TrafficSplitter::new(instance.problem.clone(), &nodes).unwrap();
        let mut kept = TrafficSplit::default();
        for keep in [PrimaryObjective::Peak, PrimaryObjective::Vector, PrimaryObjective::Peak] {
            traffic.solve_into(&counts, keep, &mut kept).unwrap();
            verify_traffic(&instance.problem, &nodes, &counts, keep, &kept)
                .unwrap_or_else(|why| panic!("seed {seed} {keep:?}: {why}"));
            let fresh =
                TrafficSplitter::new(instance.problem.clone(), &nodes).unwrap().solve(&counts, keep).unwrap();
            assert_eq!(fresh, kept, "what was solved before does not show");
        }
    }
}

/// Returns an example in which ranks 0 and 1 are node 0, and ranks 2 and 3 are node 1.
fn example() -> (Problem, [u32; 4], Vec<u64>) {
    let hosts = Hosts::new(4, [&[0, 2][..], &[1, 2, 3], &[0, 3]]).unwrap();
    let counts = vec![9, 0, 1, 2, 5, 0, 0, 5, 6, 3, 1, 0];
    (Problem::new(hosts), [0, 0, 1, 1], counts)
}

#[test]
fn wrong_answers_are_found() {
    let (problem, nodes, counts) = example();
    let right = TrafficSplitter::new(problem.clone(), &nodes)
        .unwrap()
        .solve(&counts, PrimaryObjective::Vector)
        .unwrap();
    let verdict = |change: &dyn Fn(&mut TrafficSplit)| {
        let mut wrong = right.clone();
        change(&mut wrong);
        verify_traffic(&problem, &nodes, &counts, PrimaryObjective::Vector, &wrong)
    };
    assert_eq!(verdict(&|_| ()), Ok(()));
    assert!(matches!(verdict(&|a| a.off_node += 1), Err(Violation::Traffic { .. })));
    assert!(matches!(verdict(&|a| a.off_rank -= 1), Err(Violation::Traffic { .. })));
    assert!(matches!(verdict(&|a| a.prices[0] += 1000), Err(Violation::Exchange { .. })));
    assert!(matches!(verdict(&|a| a.levels[0].load += 2), Err(Violation::Level { .. })));
    assert!(matches!(verdict(&|a| a.levels.clear()), Err(Violation::Length { what: "levels", .. })));
    // A circular exchange keeps all loads. From a best answer, every circle costs as much or more.
    let worse = verdict(&|a| {
        a.split.quotas[0] -= 1; // item 0: rank 0 to rank 2
        a.split.quotas[1] += 1;
        a.split.quotas[3] -= 1; // item 1: rank 2 to rank 3
        a.split.quotas[4] += 1;
        a.split.quotas[6] -= 1; // item 2: rank 3 to rank 0
        a.split.quotas[5] += 1;
        (a.off_node, a.off_rank) = (a.off_node + 1, a.off_rank + 2);
    });
    assert!(worse.is_err(), "{worse:?}");
}

#[test]
fn input_is_checked() {
    let (problem, nodes, counts) = example();
    assert!(TrafficSplitter::new(problem.clone(), &nodes[1..]).is_err());
    let mut traffic = TrafficSplitter::new(problem, &nodes).unwrap();
    assert!(traffic.solve(&counts[1..], PrimaryObjective::Peak).is_err());
    assert!(traffic.solve(&[u64::MAX; 12], PrimaryObjective::Peak).is_err());
    assert!(traffic.solve(&[0; 12], PrimaryObjective::Vector).is_ok());
}

/// Linear programmes by HiGHS, on instances too large for enumeration. The matrix is a network, so the
/// optimum of the continuous programme is the optimum in whole tokens.
#[cfg(feature = "oracle")]
mod referee {
    use super::*;
    use good_lp::solvers::highs::highs;
    use good_lp::{Expression, ProblemVariables, Solution, SolverModel, variable};

    fn by_highs(instance: &Instance, nodes: &[u32], counts: &[u64], rooms: &[u64]) -> f64 {
        let problem = &instance.problem;
        let items = problem.hosts().items();
        let mut variables = ProblemVariables::new();
        let mut rows = Vec::new();
        let mut cost = Expression::default();
        let mut rank_sums = vec![Expression::default(); nodes.len()];
        for (item, &load) in instance.loads.iter().enumerate() {
            let mut item_sum = Expression::default();
            let mut node_sums = std::collections::BTreeMap::<u32, Expression>::new();
            for &rank in problem.hosts().ranks_of(item) {
                let rank = rank as usize;
                let quota = variables.add(variable().min(0.0));
                let off = variables.add(variable().min(0.0));
                rows.push((off - quota).geq(-(counts[rank * items + item] as f64)));
                cost.add_mul(1.0, off);
                item_sum.add_mul(1.0, quota);
                rank_sums[rank].add_mul(1.0, quota);
                node_sums.entry(nodes[rank]).or_default().add_mul(1.0, quota);
            }
            rows.push(item_sum.eq(load as f64));
            for (node, sum) in node_sums {
                let come: u64 =
                    (0..nodes.len()).filter(|&r| nodes[r] == node).map(|r| counts[r * items + item]).sum();
                let off = variables.add(variable().min(0.0));
                rows.push((off - sum).geq(-(come as f64)));
                cost.add_mul(evenkeel_solver::objective::node_cost(nodes.len()) as f64, off);
            }
        }
        for (rank, sum) in rank_sums.into_iter().enumerate() {
            rows.push(sum.leq((rooms[rank] - problem.base_loads()[rank]) as f64));
        }
        let mut model = variables.minimise(cost.clone()).using(highs).set_threads(1);
        for row in rows {
            model.add_constraint(row);
        }
        model.solve().unwrap().eval(cost)
    }

    #[test]
    fn middling_instances_agree_with_highs() {
        for seed in 0..800 {
            let speeds = if seed % 2 == 0 { Speeds::One } else { Speeds::Any(5) };
            let limits = Limits { ranks: 16, items: 40, load: 1000, speeds, base: true };
            let instance = common::draw(seed, limits);
            let (nodes, counts) = sources(&instance, &mut common::rng(seed + 1_000_000));
            let answer = TrafficSplitter::new(instance.problem.clone(), &nodes)
                .unwrap()
                .solve(&counts, PrimaryObjective::Peak)
                .unwrap();
            let peak = answer.split.peak;
            let rooms: Vec<u64> = instance
                .problem
                .speeds()
                .iter()
                .map(|&speed| peak.load * u64::from(speed) / u64::from(peak.speed))
                .collect();
            let best = by_highs(&instance, &nodes, &counts, &rooms);
            let weight = evenkeel_solver::objective::node_cost(nodes.len()) as f64;
            let found = answer.off_node as f64 * weight + answer.off_rank as f64;
            assert!((found - best).abs() < 0.4, "seed {seed}: HiGHS {best}, found {found}");
        }
    }
}
