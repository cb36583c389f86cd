//! Compares experts on the CPU with the GEMM crate's rate on one large product, on one thread each.
//!
//! ```text
//! cargo bench -p evenkeel-exec --bench ffn
//! ```
//!
//! Rates are per processor time, the median of several rounds. Every round times the large product and all
//! experts in turn, so that other load of the machine affects all alike. A share is the median of the rounds'
//! own shares.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark may unwrap")]
#![allow(clippy::print_stdout, reason = "it prints what the docs quote")]

use evenkeel::model::MoeModel;
use evenkeel_exec::clock::time_work;
use evenkeel_exec::cpu::{Ffn, times_transposed};
use evenkeel_exec::random::RandomStream;
use evenkeel_exec::weights::{Dtype, Matrix, RandomWeights, WeightSource};
use std::time::Duration;

const ROUNDS: usize = 9;
const LARGE: usize = 2048;

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Returns the rate of `work` in 10^9 operations per second.
fn rate(operations: f64, work: impl FnOnce()) -> f64 {
    let mut time = Duration::ZERO;
    time_work(&mut time, work);
    operations / time.as_secs_f64() / 1e9
}

struct Case {
    model: MoeModel,
    dtype: Dtype,
    tokens: usize,
    /// Several experts, so that their weights do not stay in the cache.
    experts: Vec<evenkeel_exec::weights::ExpertWeights>,
    rates: Vec<f64>,
    shares: Vec<f64>,
}

fn main() {
    let numbers = |n: usize| RandomStream::new(1, &[n as u64]).uniform_weights(n, 1.0);
    let (a, b) = (numbers(LARGE * LARGE), Matrix::new(Dtype::F32, numbers(LARGE * LARGE + 1)[1..].to_vec()));
    let mut c = vec![0f32; LARGE * LARGE];
    let mut cases = Vec::new();
    for name in ["qwen3-30b-a3b", "deepseek-v2-lite"] {
        let model: MoeModel = name.parse().unwrap();
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let weights = RandomWeights { model, width: model.experts, dtype, seed: 1 };
            for tokens in [1, 4, 16, 64, 256, 512, 1024] {
                let experts = (0..8).map(|e| weights.expert_weights(0, e).unwrap()).collect();
                cases.push(Case { model, dtype, tokens, experts, rates: vec![], shares: vec![] });
            }
        }
    }
    let (mut large, mut ffn) = (Vec::new(), Ffn::default());
    for _ in 0..ROUNDS {
        let full = rate(2.0 * (LARGE as f64).powi(3), || {
            times_transposed(&a, &b, &mut c, [LARGE; 3], &mut vec![]);
        });
        large.push(full);
        for case in &mut cases {
            let hidden = case.model.hidden as usize;
            let x = numbers(case.tokens * hidden);
            let mut out = vec![0f32; x.len()];
            let operations =
                (case.model.token_operations() * (case.tokens * case.experts.len()) as u64) as f64;
            let reached = rate(operations, || {
                for expert in &case.experts {
                    ffn.run(expert, case.model.activation, &x, hidden, &mut out);
                }
            });
            case.rates.push(reached);
            case.shares.push(reached / full);
        }
    }
    println!(
        "large product {LARGE} x {LARGE} x {LARGE}, f32, one thread: {:.1} GF/s (median of {ROUNDS})",
        median(large)
    );
    println!("{:<18} {:<5} {:>7} {:>8} {:>9}", "expert", "dtype", "tokens", "GF/s", "of large");
    for case in cases {
        let share = median(case.shares) * 100.0;
        let (name, dtype, rate) = (case.model.name, case.dtype, median(case.rates));
        println!("{name:<18} {dtype:<5} {:>7} {rate:>8.1} {share:>8.1}%", case.tokens);
    }
}
