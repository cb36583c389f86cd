//! The acceptance on recorded traces, found through `EVENKEEL_REAL_TRACES`; skipped without it.
//!
//! `cargo test --test real_traces -- --nocapture` prints the tables.

#![allow(clippy::unwrap_used)]

use evenkeel::cluster::Cluster;
use evenkeel::place::{self, Policy};
use evenkeel::simulate::{Config, Outcome, simulate};
use evenkeel::split::Method;
use evenkeel::trace::{self, Batching, Order, ReadOptions, Trace};
use std::path::PathBuf;

fn folder(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("EVENKEEL_REAL_TRACES").map(|root| PathBuf::from(root).join(name));
    let found = found.filter(|path| path.is_dir());
    if found.is_none() {
        println!("skipped: no real traces");
    }
    found
}

fn decode(path: PathBuf, in_flight: usize, order: Order, seed: u64) -> Trace {
    let options =
        ReadOptions { batching: Batching::Decode { in_flight }, order, seed, ..ReadOptions::default() };
    trace::read(&[path], &options, &()).unwrap()
}

fn run(trace: &Trace, ranks: usize, redundant: usize, policies: &[&str], methods: &[Method]) -> Outcome {
    let cluster = Cluster::new(ranks, 1, trace.experts(), redundant).unwrap();
    let policies: Vec<Box<dyn Policy>> =
        policies.iter().map(|name| place::policy(name, 1, &cluster).unwrap()).collect();
    let config = Config::first_part(trace, cluster, methods.to_vec(), 0.4).unwrap();
    simulate(trace, &config, &policies, &()).unwrap()
}

/// DESIGN 4.3's ordering on `gptoss20b-decode`, 8 ranks x 5 slots, decode batch 64, planned on the first 40 %.
#[test]
fn gptoss_decode_ordering_over_five_seeds() {
    let Some(path) = folder("gptoss20b-decode") else { return };
    println!("order     seed  contiguous-even  eplb-even  eplb-exact  lplb:ring-exact   (mean imbalance)");
    for order in [Order::Shuffled, Order::Recorded] {
        for seed in 0..5 {
            let trace = decode(path.clone(), 64, order, seed);
            let outcome =
                run(&trace, 8, 8, &["contiguous", "eplb", "lplb:ring"], &[Method::Even, Method::Exact]);
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

/// The exact split is at or below every other in every single batch, on every real trace with batches.
#[test]
fn exact_is_never_above_any_other_split() {
    let cases = [
        ("gptoss20b-decode", Batching::Decode { in_flight: 64 }, 8),
        ("deepseek-v2-lite-domains", Batching::Prefill { tokens: 512 }, 16),
    ];
    for (name, batching, ranks) in cases {
        let Some(path) = folder(name) else { return };
        let options = ReadOptions { batching, ..ReadOptions::default() };
        let trace = trace::read(&[path], &options, &()).unwrap();
        let redundant = ranks; // one per rank
        let outcome = run(&trace, ranks, redundant, &["contiguous", "eplb", "lplb:ring"], &Method::ALL);
        let methods = Method::ALL.len();
        let exact = Method::ALL.iter().position(|&m| m == Method::Exact).unwrap();
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

/// Three of the six recorder dumps hold nothing but zeros: a notice when read, a clear error when planned.
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
        let error = evenkeel::simulate::busy_layers(&trace).unwrap_err().to_string();
        assert!(error.contains("holds no tokens"), "{error}");
    }
    let trace = trace::read(&[path], &ReadOptions::default(), &()).unwrap();
    assert_eq!((trace.experts(), trace.layers().len(), trace.idle_layers()), (256, 61, vec![0, 1, 2]));
}
