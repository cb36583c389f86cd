//! Solves the corpus of one size a number of times, to count instructions.
//!
//! ```text
//! cargo run --release -p evenkeel-solver --example instructions -- [RANKS SLOTS ROUNDS]
//! ```
//!
//! `benches/instructions.sh` runs it under callgrind, which counts within [`solve`] alone.

use std::process::ExitCode;

use evenkeel_solver::bench::corpus::CorpusSize;
use evenkeel_solver::{Problem, RankSplit, Workspace, solve_counts_into};

fn main() -> ExitCode {
    let arguments: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let (ranks, slots, rounds) = match arguments[..] {
        [] => (8, 2, 1),
        [ranks, slots, rounds] => (ranks, slots, rounds),
        _ => {
            eprintln!("usage: instructions [RANKS SLOTS ROUNDS]");
            return ExitCode::from(2);
        }
    };
    let Ok(corpus) = (CorpusSize { ranks, slots }).build_corpus(24) else { return ExitCode::FAILURE };
    let (mut solves, mut peaks) = (0u64, 0u64);
    for series in &corpus {
        let (mut workspace, mut split) = (Workspace::new(&series.problem), RankSplit::default());
        for batch in (0..rounds).flat_map(|_| &series.batches) {
            solve(&series.problem, batch, &mut workspace, &mut split);
            solves += 1;
            peaks += split.peak.load;
        }
    }
    println!("{ranks}x{slots}: {solves} solves, peaks add up to {peaks}");
    ExitCode::SUCCESS
}

/// Solves one batch. Callgrind counts the instructions of this function.
#[inline(never)]
fn solve(problem: &Problem, batch: &[u32], workspace: &mut Workspace, split: &mut RankSplit) {
    if let Err(error) = solve_counts_into(problem, batch, workspace, split) {
        eprintln!("{error}");
    }
}
