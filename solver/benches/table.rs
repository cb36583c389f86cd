//! Table of docs/fast-loop.md: every solver of this build on the whole corpus.
//!
//! ```text
//! cargo bench -p evenkeel-solver --bench table
//! ```

use std::time::Duration;

use evenkeel_solver::bench::corpus::SIZES;
use evenkeel_solver::bench::measure::{TimedSolver, list_absent_solvers, measure_solver};

fn main() -> Result<(), evenkeel_solver::SolverError> {
    println!(
        "{:>6} {:>6} {:<14} {:>11} {:>11} {:>9} {:>9} {:>10}",
        "size", "batch", "solver", "p50 us", "p99 us", "feasible", "optimal", "max gap"
    );
    for size in SIZES {
        let corpus = size.build_corpus(24)?;
        for solver in TimedSolver::ALL {
            let patience = Duration::from_secs(3);
            let Some(row) = measure_solver(size, &corpus, solver, patience)? else {
                continue;
            };
            println!(
                "{:>6} {:>6} {:<14} {:>11.2} {:>11.2} {:>8.1}% {:>8.1}% {:>9.4}%",
                format!("{}x{}", row.ranks, row.slots),
                row.instances,
                row.solver,
                row.p50_us,
                row.p99_us,
                100.0 * row.feasible,
                100.0 * row.optimal,
                100.0 * row.max_gap
            );
        }
    }
    println!("{}", list_absent_solvers());
    Ok(())
}
