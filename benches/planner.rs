//! Measures the library call inside a serving loop: one layer's counts `[ranks][256]` are split and shared
//! out, then 4096 x 8 ids redirected.
//!
//! ```text
//! cargo bench --bench planner
//! ```
#![allow(missing_docs, clippy::unwrap_used, reason = "criterion's macros; a benchmark may unwrap")]

use criterion::{Criterion, criterion_group, criterion_main};
use evenkeel::cluster::Cluster;
use evenkeel::forecast::History;
use evenkeel::place::{self, PlaceRequest};
use evenkeel::planner::Planner;
use evenkeel_trace::synth;
use std::hint::black_box;

const EXPERTS: usize = 256;

fn calls(criterion: &mut Criterion) {
    let base = synth::SynthSpec::default().steps(64).seed(3);
    let trace = synth::generate(&base.experts(EXPERTS).top_k(8).layers(1)).unwrap();
    for (ranks, per_rank) in [(8, 1), (8, 2), (16, 2), (32, 2), (64, 2)] {
        let cluster = Cluster::new(ranks, 1, EXPERTS, ranks * per_rank).unwrap();
        let history = History::from_trace(&trace, 0);
        let policy = place::policy("lplb:ring", 1, &cluster).unwrap();
        let placed = policy.place(&PlaceRequest::new(&history, &cluster)).unwrap();
        let mut planner = Planner::new(placed.placement, cluster).unwrap();
        let batches: Vec<Vec<u64>> = (0..64usize.saturating_sub(ranks))
            .step_by(8)
            .chain([0])
            .map(|first| (0..ranks).flat_map(|rank| trace.loads((first + rank) % 64, 0)).copied().collect())
            .collect();
        let mut turn = 0;
        criterion.bench_function(&format!("split and shares, {ranks} ranks x {per_rank}"), |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % batches.len();
                planner.split(black_box(&batches[turn])).unwrap().peak()
            });
        });
    }
    let cluster = Cluster::new(8, 1, EXPERTS, 16).unwrap();
    let policy = place::policy("lplb:ring", 1, &cluster).unwrap();
    let history = History::from_trace(&trace, 0);
    let placed = policy.place(&PlaceRequest::new(&history, &cluster)).unwrap();
    let mut planner = Planner::new(placed.placement, cluster).unwrap();
    let mut ids: Vec<i32> = Vec::new();
    let loads = trace.totals(0);
    let total: u64 = loads.iter().sum();
    // Experts in proportion to their loads, spread over the batch.
    for at in 0..4096 * 8u64 {
        let mut left = at.wrapping_mul(2_654_435_761) % total;
        let expert = loads.iter().position(|&load| {
            let here = left < load;
            left = left.saturating_sub(load);
            here
        });
        ids.push(i32::try_from(expert.unwrap()).unwrap());
    }
    let mut counts = vec![0u64; 8 * EXPERTS];
    for &id in &ids {
        counts[2 * EXPERTS + id as usize] += 1;
    }
    planner.split(&counts).unwrap();
    let mut slots = vec![0i32; ids.len()];
    criterion.bench_function("redirect 4096 x 8 ids", |bencher| {
        bencher.iter(|| planner.redirect_into(black_box(&ids), 2, &mut slots).unwrap());
    });
}

criterion_group!(benches, calls);
criterion_main!(benches);
