//! Time of the exact split compared with affine5, per batch, on one core.
//!
//! ```text
//! cargo bench -p evenkeel-solver
//! ```
//!
//! `R x D` is ranks by redundant slots per rank, on rings at distances 1 and 3. There are 256 experts (288
//! for the last two), LPLB's loads, 64 different batches in turn, and warm caches.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use evenkeel_solver::{Problem, RankSplit, Workspace, affine_scaling, solve_into};

const SIZES: [(usize, usize, usize); 7] =
    [(8, 1, 256), (8, 2, 256), (16, 2, 256), (32, 2, 256), (64, 2, 256), (144, 2, 288), (288, 1, 288)];

fn split(criterion: &mut Criterion) {
    for (ranks, redundant, items) in SIZES {
        let shift = |by: usize| (0..ranks).map(|rank| (rank + by) % ranks).collect::<Vec<_>>();
        let problem = Problem::new(common::lplb(items, redundant, &[shift(1), shift(3)]));
        let mut rng = common::rng(42);
        let batches: Vec<Vec<u64>> = (0..64).map(|_| common::lplb_loads(items, &mut rng)).collect();

        let mut group = criterion.benchmark_group(format!("{ranks}x{redundant}"));
        let (mut workspace, mut answer) = (Workspace::new(&problem), RankSplit::default());
        let mut turn = 0;
        group.bench_function("exact", |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % batches.len();
                solve_into(&problem, black_box(&batches[turn]), &mut workspace, &mut answer)
            });
        });
        let (mut workspace, mut shares) =
            (affine_scaling::AffineWorkspace::new(&problem), affine_scaling::AffineShares::default());
        if ranks > 64 {
            group.sample_size(10);
        }
        group.bench_function("affine5", |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % batches.len();
                affine_scaling::solve_into(&problem, black_box(&batches[turn]), &mut workspace, &mut shares)
            });
        });
        group.finish();
    }
}

criterion_group!(benches, split);
criterion_main!(benches);
