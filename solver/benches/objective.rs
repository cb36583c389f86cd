//! The second objectives beside the exact split, per batch, on one core.
//!
//! ```text
//! cargo bench -p evenkeel-solver --bench objective
//! ```
//!
//! `R x D` is ranks by redundant slots per rank, on the corpus of the split's table: eight placements with eight batches
//! each, in turn. For traffic, eight ranks make a node, and every expert's tokens come from all ranks, half of them from
//! one node that differs from expert to expert. Tiles have 64 tokens, pieces at least 1024; the roofline's ridge is at 300
//! tokens of 4096 on average. These four allocate their answers.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use evenkeel_solver::bench::corpus::Size;
use evenkeel_solver::objective::{
    Cost, Keep, Objective, Objectives, Roofline, Traffic, TrafficSplit, Workspace, balance_into,
};
use evenkeel_solver::{Error, Split, solve_into};

const SIZES: [(usize, usize); 4] = [(8, 2), (16, 2), (64, 2), (288, 1)];
const NODE: usize = 8;

/// Counts `[source][item]` that add up to the loads.
fn counts(loads: &[u64], ranks: usize) -> Vec<u64> {
    let (items, nodes) = (loads.len(), ranks / NODE);
    let mut counts = vec![0; ranks * items];
    for (item, &load) in loads.iter().enumerate() {
        let near = item * 7 % nodes * NODE;
        for token in 0..load as usize {
            let spread = token.wrapping_mul(2_654_435_761) >> 7;
            let source = if token % 2 == 0 { near + spread % NODE } else { spread % ranks };
            counts[source * items + item] += 1;
        }
    }
    counts
}

fn objectives(criterion: &mut Criterion) -> Result<(), Error> {
    for (ranks, slots) in SIZES {
        let corpus = Size { ranks, slots }.corpus(8)?;
        let nodes: Vec<u32> = (0..ranks).map(|rank| (rank / NODE) as u32).collect();
        let mut batches = Vec::new();
        let mut planners = Vec::new();
        for (index, series) in corpus.iter().enumerate() {
            planners.push(Traffic::new(series.problem.clone(), &nodes)?);
            for batch in &series.batches {
                let loads: Vec<u64> = batch.iter().map(|&count| u64::from(count)).collect();
                let by_source = counts(&loads, ranks);
                batches.push((index, loads, by_source));
            }
        }
        let mut group = criterion.benchmark_group(format!("{ranks}x{slots}"));
        group
            .sample_size(20)
            .measurement_time(Duration::from_secs(2))
            .warm_up_time(Duration::from_millis(500));
        let mut turn = 0;
        let mut next = |count: usize| {
            turn = (turn + 1) % count;
            turn
        };
        let (mut workspace, mut split) = (evenkeel_solver::Workspace::default(), Split::default());
        group.bench_function("exact", |bencher| {
            bencher.iter(|| {
                let (series, loads, _) = &batches[next(batches.len())];
                solve_into(&corpus[*series].problem, black_box(loads), &mut workspace, &mut split)
            });
        });
        let mut workspaces = vec![Workspace::default(); corpus.len()];
        group.bench_function("balance", |bencher| {
            bencher.iter(|| {
                let (series, loads, _) = &batches[next(batches.len())];
                balance_into(&corpus[*series].problem, black_box(loads), &mut workspaces[*series], &mut split)
            });
        });
        let mut answer = TrafficSplit::default();
        for (name, keep) in [("traffic-peak", Keep::Peak), ("traffic-vector", Keep::Vector)] {
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    let (series, _, by_source) = &batches[next(batches.len())];
                    planners[*series].solve_into(black_box(by_source), keep, &mut answer)
                });
            });
        }
        let costs = [
            ("tiles", Cost::Tiles(64)),
            ("active", Cost::Active),
            ("min-piece", Cost::MinPiece(1024)),
            ("roofline", Cost::Roofline(Roofline { read: 300, token: 1, tile: 64 })),
        ];
        for (name, cost) in costs {
            let mut planners = Vec::new();
            for series in &corpus {
                planners.push(Objectives::new(series.problem.clone(), Objective::new(cost))?);
            }
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    let (series, loads, _) = &batches[next(batches.len())];
                    planners[*series].solve(black_box(loads))
                });
            });
        }
        group.finish();
    }
    Ok(())
}

fn all(criterion: &mut Criterion) {
    if let Err(error) = objectives(criterion) {
        eprintln!("{error}");
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
