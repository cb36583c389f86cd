//! Compares plans of copies with proved optima of HiGHS on small cases, 40 unless stated. The seeds of
//! the cases follow one another from SEED, 0 unless stated.
//!
//! ```text
//! cargo run --release -p evenkeel-solver --features oracle --example copies_referee -- [CASES] [SEED] [fast]
//! ```

#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "an example stops at nonsense")]

#[path = "../tests/common/mod.rs"]
mod common;

use common::copy_cases::{compare, draw_case};
use evenkeel_solver::copies::CopyEffort;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Vec<u64> = words.iter().filter_map(|word| word.parse().ok()).collect();
    let cases = numbers.first().map_or(40, |&cases| cases as usize);
    let first = numbers.get(1).copied().unwrap_or(0);
    let fast = words.iter().any(|word| word == "fast");
    let effort = if fast { CopyEffort::FAST } else { CopyEffort::THOROUGH };
    let mut results = vec![];
    let mut seed = first;
    while results.len() < cases {
        if let Some(result) = compare(&draw_case(seed), effort, 30.0) {
            if result.bound > result.optimum || result.value < result.optimum {
                println!("seed {seed}: {result:?}");
            }
            results.push(result);
        }
        seed += 1;
    }
    println!("{} cases with a proved optimum, of {}", results.len(), seed - first);
    for objective in ["copies", "peak", "time"] {
        let own: Vec<_> = results.iter().filter(|result| result.objective == objective).collect();
        let mean = |value: fn(&common::copy_cases::Comparison) -> f64| {
            own.iter().map(|result| value(result)).sum::<f64>() / own.len().max(1) as f64
        };
        let worst = own.iter().map(|result| result.gap).fold(0.0, f64::max);
        let exact = own.iter().filter(|result| result.value == result.optimum).count();
        println!(
            "{objective}: {} cases, {exact} optimal, gap {:.5} on average, {worst:.5} at worst; values {:.3}, optima {:.3}, bounds {:.3}",
            own.len(),
            mean(|result| result.gap),
            mean(|result| result.value as f64),
            mean(|result| result.optimum as f64),
            mean(|result| result.bound as f64),
        );
    }
}
