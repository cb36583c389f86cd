//! Compares the exact split with HiGHS on random instances of every family.
//!
//! ```text
//! cargo run -p evenkeel-solver --features oracle --example agreement -- [INSTANCES]
//! ```
//!
//! Two of three instances have equal speeds and counts up to 2^20. Their peak must be the LP optimum rounded
//! up. Every third is small with unequal speeds. Its peak must be the MILP optimum. The program exits with 1
//! on any disagreement or uncertified result.

#[path = "../tests/common/mod.rs"]
mod common;

use std::process::ExitCode;
use std::time::Instant;

use common::referee::{Objection, compare_fluid, compare_integer};
use common::{Limits, Speeds};

const FLUID: Limits = Limits { ranks: 64, items: 200, load: 1 << 20, speeds: Speeds::Equal, base: true };
const INTEGER: Limits = Limits { ranks: 6, items: 12, load: 60, speeds: Speeds::Any(6), base: true };

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let Ok(instances) = argument.as_deref().unwrap_or("10000").parse::<u64>() else {
        eprintln!("usage: agreement [INSTANCES]");
        return ExitCode::from(2);
    };
    let start = Instant::now();
    let (mut disagreements, mut uncertified) = (0, 0);
    for seed in 0..instances {
        let verdict = if seed % 3 == 2 {
            compare_integer(&common::draw(seed, INTEGER))
        } else {
            compare_fluid(&common::draw(seed, FLUID))
        };
        if let Err(objection) = verdict {
            match objection {
                Objection::Disagreement(_) => disagreements += 1,
                Objection::Uncertified(_) => uncertified += 1,
            }
            eprintln!("seed {seed}: {objection}");
        }
    }
    println!("instances      {instances:>8}");
    println!(
        "  LP           {:>8}   equal speeds, up to 64 ranks, counts up to 2^20",
        instances - instances / 3
    );
    println!("  MILP         {:>8}   unequal speeds, up to 6 ranks", instances / 3);
    println!("disagreements  {disagreements:>8}");
    println!("uncertified    {uncertified:>8}");
    println!("elapsed        {:>8.1} s", start.elapsed().as_secs_f64());
    ExitCode::from(u8::from(disagreements + uncertified > 0))
}
