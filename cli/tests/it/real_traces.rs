//! Acceptance tests on recorded traces, found through `EVENKEEL_REAL_TRACES` and skipped without it.
//!
//! `cargo test -p evenkeel-cli --test it -- --nocapture real_traces::` prints the tables.

#![allow(clippy::unwrap_used)]

use crate::skip_support::skipped;
use evenkeel::cluster::Cluster;
use evenkeel::place::{self, Policy};
use evenkeel::planner::Planner;
use evenkeel::split::{PrimaryObjective, SplitMethod, TokenTraffic, expert_roofline};
use evenkeel_simulate::{
    SimulationConfig, SimulationResult, compare_planning_cost, measure_locality, simulate,
};
use evenkeel_trace::{self as trace, Batching, ReadOptions, RequestOrder, Trace};
use std::path::PathBuf;

pub(crate) fn folder(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("EVENKEEL_REAL_TRACES").map(|root| PathBuf::from(root).join(name));
    let found = found.filter(|path| path.is_dir());
    if found.is_none() {
        skipped("no real traces");
    }
    found
}

fn decode(path: PathBuf, in_flight: usize, order: RequestOrder, seed: u64) -> Trace {
    let options = ReadOptions::default().batching(Batching::Decode { in_flight }).order(order).seed(seed);
    trace::read(&[path], &options, &()).unwrap()
}

fn run(
    trace: &Trace,
    ranks: usize,
    redundant: usize,
    policies: &[&str],
    methods: &[SplitMethod],
) -> SimulationResult {
    let cluster = Cluster::new(ranks, 1, trace.experts(), redundant).unwrap();
    let policies: Vec<Box<dyn Policy>> =
        policies.iter().map(|name| place::policy(name, 1, &cluster).unwrap()).collect();
    let config = SimulationConfig::first_part(trace, cluster, methods.to_vec(), 0.4).unwrap();
    simulate(trace, &config, &policies, &()).unwrap()
}

/// Ordering of policies on `gptoss20b-decode`, 8 ranks x 5 slots, decode batch 64, planned on the first 40 %.
#[test]
fn gptoss_decode_ordering_over_five_seeds() {
    let Some(path) = folder("gptoss20b-decode") else { return };
    println!("order     seed  contiguous-even  eplb-even  eplb-exact  lplb:ring-exact   (mean imbalance)");
    for order in [RequestOrder::Shuffled, RequestOrder::Recorded] {
        for seed in 0..5 {
            let trace = decode(path.clone(), 64, order, seed);
            let outcome = run(
                &trace,
                8,
                8,
                &["contiguous", "eplb", "lplb:ring"],
                &[SplitMethod::Even, SplitMethod::Exact],
            );
            let mean = |row: usize| outcome.rows[row].imbalance.mean;
            let table = [mean(0), mean(2), mean(3), mean(5)];
            println!(
                "{order:9} {seed:4}  {:15.3}  {:9.3}  {:10.3}  {:15.3}",
                table[0], table[1], table[2], table[3]
            );
            assert!(table.is_sorted_by(|a, b| a > b), "{order} {seed}: {table:?}");
        }
    }
}

/// The exact split is at or below every other one in every single batch of every real trace with batches.
#[test]
fn exact_is_never_above_any_other_split() {
    let cases = [
        ("gptoss20b-decode", Batching::Decode { in_flight: 64 }, 8),
        ("deepseek-v2-lite-domains", Batching::Prefill { tokens: 512 }, 16),
    ];
    for (name, batching, ranks) in cases {
        let Some(path) = folder(name) else { return };
        let options = ReadOptions::default().batching(batching);
        let trace = trace::read(&[path], &options, &()).unwrap();
        let redundant = ranks; // one per rank
        let outcome = run(&trace, ranks, redundant, &["contiguous", "eplb", "lplb:ring"], &SplitMethod::ALL);
        let methods = SplitMethod::ALL.len();
        let exact = SplitMethod::ALL.iter().position(|&m| m == SplitMethod::Exact).unwrap();
        let mut compared = 0;
        for policy in outcome.rows.chunks(methods) {
            for other in policy {
                for (ours, theirs) in policy[exact].layers.iter().zip(&other.layers) {
                    assert_eq!(ours.totals, theirs.totals);
                    for (batch, (a, b)) in ours.peaks.iter().zip(&theirs.peaks).enumerate() {
                        assert!(
                            a <= b,
                            "{name}, {}, batch {batch}: exact {a}, {} {b}",
                            outcome.planned[other.planned].policy,
                            other.method
                        );
                        compared += 1;
                    }
                }
            }
        }
        println!("{name}: exact at or below in all {compared} comparisons");
    }
}

/// Three of the six recorder dumps contain only zeros. They cause a notice when read and a clear error when
/// planned.
#[test]
fn all_zero_dumps_are_told() {
    let Some(path) = folder("deepseek-r1-sglang-dumps") else { return };
    for part in ["1k1k", "1k8k", "8k1k"] {
        let file = path.join(format!("expert_distribution_fp8_{part}_compressed.pt"));
        let trace = trace::read(&[file], &ReadOptions::default(), &()).unwrap();
        assert!(
            trace.is_empty() && trace.notices().iter().any(|n| n.contains("no tokens")),
            "{:?}",
            trace.notices()
        );
        let error = evenkeel::evaluate::busy_layers(&trace).unwrap_err().to_string();
        assert!(error.contains("holds no tokens"), "{error}");
    }
    let trace = trace::read(&[path], &ReadOptions::default(), &()).unwrap();
    assert_eq!((trace.experts(), trace.layers().len(), trace.idle_layers()), (256, 61, vec![0, 1, 2]));
}

/// The rule that plans only if planning may pay, on recorded decode batches. It is compared with never and
/// always planning.
#[test]
fn planning_where_it_may_pay_on_decode_batches() {
    let Some(path) = folder("gptoss20b-decode") else { return };
    println!("batch  plan us  policy      even us  always us  rule us  planned");
    let (model, gpu) = ("gpt-oss-20b".parse().unwrap(), "h100".parse().unwrap());
    for in_flight in [16, 64] {
        let trace = decode(path.clone(), in_flight, RequestOrder::Recorded, 0);
        let cluster = Cluster::new(8, 1, trace.experts(), 8).unwrap();
        let policies: Vec<Box<dyn Policy>> =
            ["eplb", "lplb:ring"].map(|name| place::policy(name, 1, &cluster).unwrap()).into();
        let config = SimulationConfig::first_part(&trace, cluster, vec![SplitMethod::Exact], 0.4).unwrap();
        let outcome = simulate(&trace, &config, &policies, &()).unwrap();
        for plan_us in [1, 5, 20, 100] {
            let rows = compare_planning_cost(
                &trace,
                &config,
                &outcome,
                expert_roofline(&model, &gpu),
                plan_us * 1_000_000,
            )
            .unwrap();
            for row in rows {
                let us = |ps: u64| ps as f64 / 1e6 / row.batches as f64;
                println!(
                    "{in_flight:5}  {plan_us:7}  {:9}  {:8.2}  {:9.2}  {:7.2}  {:6.1}%",
                    outcome.planned[row.planned].policy,
                    us(row.even_ps),
                    us(row.always_ps),
                    us(row.rule_ps),
                    100.0 * row.planned_batches as f64 / row.batches as f64
                );
                assert!(row.rule_ps <= row.always_ps, "planning less must not cost more: {row:?}");
                assert!(row.bound_ps <= row.rule_ps);
                // If a plan costs more than most batches could gain, most batches skip it.
                assert!(plan_us < 20 || row.planned_batches * 10 < row.batches, "{row:?}");
            }
        }
    }
}

/// Every token of every real trace is redirected. The slots meet their quotas to the token, and least traffic
/// has the same peak. Totals have no tokens, so their tokens are dealt to the sources in turn.
#[test]
fn tokens_meet_their_quotas_on_every_real_trace() {
    println!("trace                    split                 own rank  own node  elsewhere");
    let cases = [
        ("gptoss20b-decode", Batching::Decode { in_flight: 64 }, 8, 8),
        ("deepseek-v2-lite-domains", Batching::Prefill { tokens: 512 }, 16, 16),
    ];
    for (name, batching, ranks, redundant) in cases {
        let Some(path) = folder(name) else { return };
        let options = ReadOptions::default().batching(batching);
        let tokens = trace::read_tokens(&[path], &options, &()).unwrap();
        let cluster = Cluster::new(ranks, 2, tokens.trace().experts(), redundant).unwrap();
        let policies = vec![place::policy("lplb:ring", 1, &cluster).unwrap()];
        let config =
            SimulationConfig::first_part(tokens.trace(), cluster, vec![SplitMethod::Exact], 0.4).unwrap();
        let outcome = simulate(tokens.trace(), &config, &policies, &()).unwrap();
        // An unmet quota would be an error.
        let rows = measure_locality(&tokens, &config, &outcome).unwrap();
        assert!(rows.iter().all(|row| row.peaks == rows[0].peaks && row.batches == outcome.batches));
        for row in &rows {
            print_traffic(name, row.keep, row.traffic);
        }
        assert!(rows[1].traffic.elsewhere <= rows[0].traffic.elsewhere.min(rows[2].traffic.elsewhere));
    }
    for (name, ranks, redundant) in [("deepseek-r1-sglang-dumps", 32, 32), ("gemma4-26b-families", 16, 16)] {
        let Some(path) = folder(name) else { return };
        let trace = trace::read(&[path], &ReadOptions::default(), &()).unwrap();
        let cluster = Cluster::new(ranks, 4, trace.experts(), redundant).unwrap();
        let mut sums = [TokenTraffic::default(); 3];
        for &layer in &evenkeel::evaluate::busy_layers(&trace).unwrap() {
            let history = evenkeel::forecast::History::from_trace(&trace, layer);
            let request = place::PlaceRequest::new(&history, &cluster);
            let placement = place::policy("eplb", 1, &cluster).unwrap().place(&request).unwrap().placement;
            let mut planners = [
                Planner::new(placement.clone(), cluster).unwrap(),
                Planner::with_min_traffic(placement.clone(), cluster, PrimaryObjective::Peak).unwrap(),
                Planner::with_min_traffic(placement.clone(), cluster, PrimaryObjective::Vector).unwrap(),
            ];
            for step in 0..trace.steps().len() {
                let ids = dealt(trace.loads(step, layer), ranks);
                let mut peaks = vec![];
                for (planner, sum) in planners.iter_mut().zip(&mut sums) {
                    let counts: Vec<u64> = ids.iter().flat_map(|ids| tally(ids, trace.experts())).collect();
                    let split = planner.split(&counts).unwrap().clone();
                    planner.check(&counts).unwrap();
                    let mut served = vec![0u64; split.quotas.len()];
                    for (source, ids) in ids.iter().enumerate() {
                        for slot in planner.redirect(ids, source).unwrap() {
                            served[slot as usize] += 1;
                        }
                    }
                    assert_eq!(served, split.quotas, "{name}, layer {layer}, step {step}");
                    peaks.push(split.peak());
                    *sum = sum.plus(planner.traffic());
                }
                assert!(peaks.iter().all(|&peak| peak == peaks[0]));
            }
        }
        for (keep, sum) in
            [None, Some(PrimaryObjective::Peak), Some(PrimaryObjective::Vector)].into_iter().zip(sums)
        {
            print_traffic(name, keep, sum);
        }
    }
}

fn print_traffic(name: &str, keep: Option<PrimaryObjective>, traffic: TokenTraffic) {
    let share = |pairs: u64| 100.0 * pairs as f64 / traffic.pairs() as f64;
    let split = match keep {
        None => "peak",
        Some(PrimaryObjective::Peak) => "peak, traffic",
        Some(PrimaryObjective::Vector) => "peak, vector, traffic",
    };
    println!(
        "{name:24} {split:21} {:7.1}%  {:7.1}%  {:8.1}%",
        share(traffic.own_rank),
        share(traffic.own_node),
        share(traffic.elsewhere)
    );
}

/// Returns one id per token, dealt to the sources in blocks of unequal size. A batch has at most 40 000
/// tokens.
fn dealt(loads: &[u64], ranks: usize) -> Vec<Vec<i32>> {
    let most = loads.iter().sum::<u64>().div_ceil(40_000).max(1);
    let mut ids = vec![vec![]; ranks];
    let mut next = 0usize;
    for (expert, &load) in loads.iter().enumerate() {
        for token in 0..load / most {
            ids[next % ranks].push(i32::try_from(expert).unwrap());
            next += usize::from(token % 3 != expert as u64 % 3);
        }
    }
    ids
}

fn tally(ids: &[i32], experts: usize) -> Vec<u64> {
    let mut counts = vec![0; experts];
    for &id in ids {
        counts[usize::try_from(id).unwrap()] += 1;
    }
    counts
}
