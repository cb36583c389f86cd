//! Measures the planning time of 58 layers with 256 experts into 288 slots on 32 ranks, all layers on all
//! threads.
//!
//! ```text
//! cargo bench --bench place
//! ```
#![allow(missing_docs, clippy::unwrap_used, reason = "criterion's macros; a benchmark may unwrap")]

use criterion::{Criterion, criterion_group, criterion_main};
use evenkeel::cluster::Cluster;
use evenkeel::forecast::History;
use evenkeel::place::{self, PlaceRequest, Placement};
use evenkeel_trace::synth;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Duration;

fn plans(criterion: &mut Criterion) {
    let base = synth::SynthSpec::default().steps(100).seed(7);
    let spec = base.experts(256).top_k(8).layers(58).first_layer(3);
    let trace = synth::generate(&spec).unwrap();
    let cluster = Cluster::new(32, 1, 256, 32).unwrap();
    let mut group = criterion.benchmark_group("plan 58 layers, 256 experts, 32 x 9 slots");
    group.sample_size(10).measurement_time(Duration::from_secs(20));
    for name in ["eplb", "recourse:exact", "recourse:even", "recourse"] {
        let policy = place::policy(name, 1, &cluster).unwrap();
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let place = |layer| {
                    let history = History::from_trace(black_box(&trace), layer);
                    policy.place(&PlaceRequest::new(&history, &cluster)).unwrap().placement
                };
                (0..58usize).into_par_iter().map(place).collect::<Vec<Placement>>()
            });
        });
    }
}

criterion_group!(benches, plans);
criterion_main!(benches);
