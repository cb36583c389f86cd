//! Splits all layers of a model at once: 58 layers of 256 experts, on one thread and on all threads.
//!
//! ```text
//! cargo bench --bench layers
//! ```
#![allow(missing_docs, clippy::unwrap_used, reason = "criterion's macros; a benchmark may unwrap")]

use criterion::{Criterion, criterion_group, criterion_main};
use evenkeel::cluster::Cluster;
use evenkeel::forecast::History;
use evenkeel::place::{self, PlaceRequest};
use evenkeel::split::{LayerSplitters, SplitMethod};
use evenkeel_trace::{ReadOptions, read, synth};
use std::hint::black_box;

fn layers(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.csv");
    let base = synth::SynthSpec::default().steps(16);
    let spec = base.experts(256).top_k(8).layers(58).first_layer(3);
    synth::write(&spec, &path, &()).unwrap();
    let trace = read(&[path], &ReadOptions::default(), &()).unwrap();
    for (ranks, redundant) in [(8, 16), (32, 32), (64, 64)] {
        let cluster = Cluster::new(ranks, 1, 256, redundant).unwrap();
        let policy = place::policy("lplb:ring", 1, &cluster).unwrap();
        let place = |layer| {
            policy.place(&PlaceRequest::new(&History::from_trace(&trace, layer), &cluster)).unwrap().placement
        };
        let placements: Vec<_> = (0..58).map(place).collect();
        let batches: Vec<Vec<u64>> = (0..16)
            .map(|step| (0..58).flat_map(|layer| trace.loads(step, layer)).copied().collect())
            .collect();
        let mut group = criterion.benchmark_group(format!("58 layers, {ranks} ranks, {redundant} redundant"));
        for threads in [1, std::thread::available_parallelism().map_or(1, usize::from)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut layers = LayerSplitters::new(placements.clone(), SplitMethod::Exact).unwrap();
            let mut turn = 0;
            group.bench_function(format!("{threads} threads"), |bencher| {
                pool.install(|| {
                    bencher.iter(|| {
                        turn = (turn + 1) % batches.len();
                        layers.split(black_box(&batches[turn])).unwrap().len()
                    });
                });
            });
        }
    }
}

criterion_group!(benches, layers);
criterion_main!(benches);
