//! Time of the second objectives compared with the exact split, per batch, on one core.
//!
//! ```text
//! cargo bench -p evenkeel-solver --bench objective
//! ```
//!
//! `R x D` is ranks by redundant slots per rank, on the corpus of the split's table: eight placements with
//! eight batches each, in turn. For traffic, eight ranks form a node. Every expert's tokens come from all
//! ranks, half of them from one node that differs between experts. Tiles have 64 tokens, pieces have at least
//! 1024 tokens. The roofline's ridge is at 300 tokens of 4096 on average. These four allocate their results.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use evenkeel_solver::bench::corpus::CorpusSize;
use evenkeel_solver::objective::{
    BalanceWorkspace, Cost, Objective, ObjectiveSolver, PrimaryObjective, Roofline, TrafficSplit,
    TrafficSplitter, balance_into,
};
use evenkeel_solver::{RankSplit, SolverError, solve_into};

const SIZES: [(usize, usize); 4] = [(8, 2), (16, 2), (64, 2), (288, 1)];
const NODE: usize = 8;

/// Returns counts `[source][item]` that add up to the loads.
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

fn objectives(criterion: &mut Criterion) -> Result<(), SolverError> {
    for (ranks, slots) in SIZES {
        let corpus = CorpusSize { ranks, slots }.build_corpus(8)?;
        let nodes: Vec<u32> = (0..ranks).map(|rank| (rank / NODE) as u32).collect();
        let mut batches = Vec::new();
        let mut planners = Vec::new();
        for (index, series) in corpus.iter().enumerate() {
            planners.push(TrafficSplitter::new(series.problem.clone(), &nodes)?);
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
        let (mut workspace, mut split) = (evenkeel_solver::Workspace::default(), RankSplit::default());
        group.bench_function("exact", |bencher| {
            bencher.iter(|| {
                let (series, loads, _) = &batches[next(batches.len())];
                solve_into(&corpus[*series].problem, black_box(loads), &mut workspace, &mut split)
            });
        });
        let mut workspaces = vec![BalanceWorkspace::default(); corpus.len()];
        group.bench_function("balance", |bencher| {
            bencher.iter(|| {
                let (series, loads, _) = &batches[next(batches.len())];
                balance_into(&corpus[*series].problem, black_box(loads), &mut workspaces[*series], &mut split)
            });
        });
        let mut answer = TrafficSplit::default();
        for (name, keep) in
            [("traffic-peak", PrimaryObjective::Peak), ("traffic-vector", PrimaryObjective::Vector)]
        {
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
                planners.push(ObjectiveSolver::new(series.problem.clone(), Objective::new(cost))?);
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
