//! Tables of docs/dynamic.md: copies for each batch, by the solver and by published rules.
//!
//! ```text
//! cargo bench -p evenkeel-solver --bench copies -- [--json] [--seeds N] [--defeats] [--ranks R]
//! cargo bench -p evenkeel-solver --features highs --bench copies -- --milp 60 --ranks 8
//! ```
//!
//! `--defeats` counts the batches on which a rule does better with as many slots as it uses. `--milp` adds
//! the best plan that HiGHS finds in this many seconds per batch.

#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "a benchmark")]

use std::process::ExitCode;

use evenkeel_solver::SolverError;
use evenkeel_solver::bench::copy_corpus::{CopyLaw, CopyShape};
use evenkeel_solver::bench::copy_measure::{CopyCorpus, CopyRow, mean_load};
use evenkeel_solver::bench::copy_rules::CopyRule;
use evenkeel_solver::copies::{CopyEffort, CopyGoal, CopySolver, CopyTimes};

/// One token takes 64 ns and one copy 62 us: DeepSeek-V3 in FP8 on H100 with NVLink.
const TIMES: CopyTimes = CopyTimes { token: 64, receive: 62_000, send: 62_000, hidden: 0 };

#[derive(Debug, Default)]
struct Options {
    json: bool,
    defeats: bool,
    thorough: bool,
    seeds: u64,
    ranks: Option<usize>,
    milp: Option<f64>,
}

fn main() -> ExitCode {
    let options = match parse_options() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    match print_tables(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn parse_options() -> Result<Options, String> {
    let mut options = Options { seeds: 20, ..Options::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<f64, String> {
            let text = words.next().ok_or(format!("{word} needs a number"))?;
            text.parse().map_err(|_| format!("{word} {text}: expected a number"))
        };
        match word.as_str() {
            "--json" => options.json = true,
            "--defeats" => options.defeats = true,
            "--thorough" => options.thorough = true,
            "--seeds" => options.seeds = number()? as u64,
            "--ranks" => options.ranks = Some(number()? as usize),
            "--milp" => options.milp = Some(number()?),
            // The flag that `cargo bench` passes.
            "--bench" => {}
            _ => {
                return Err(format!(
                    "{word}: expected --json, --defeats, --thorough, --seeds N, --ranks R or --milp SECONDS"
                ));
            }
        }
    }
    Ok(options)
}

fn print_tables(options: &Options) -> Result<(), SolverError> {
    let mut documents = vec![];
    if !options.json {
        println!(
            "{:<28} {:<9} {:<9} {:>5} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9}",
            "corpus", "objective", "solver", "cases", "copies", "bound", "peak", "bound", "p50 us", "p99 us"
        );
    }
    for (name, shape, slots) in corpora() {
        if options.ranks.is_some_and(|ranks| ranks != shape.ranks) {
            continue;
        }
        let corpus = CopyCorpus::draw(name, shape, slots, 0..options.seeds);
        if options.defeats {
            print_defeats(&corpus)?;
            continue;
        }
        for row in measure(&corpus, options)? {
            if options.json {
                documents.push(to_json(&corpus, &row));
            } else {
                print_row(&corpus, &row);
            }
        }
    }
    if options.json {
        println!("{{\"rows\":[{}]}}", documents.join(","));
    }
    Ok(())
}

/// Returns name, shape and dynamic slots of all corpora: UltraEP's generator, LLEP's injections, and TopoEP's
/// shape.
fn corpora() -> Vec<(String, CopyShape, u32)> {
    let mut corpora = vec![];
    for (ranks, items, slots) in [
        (8, 256, 1),
        (8, 128, 1),
        (8, 256, 2),
        (32, 256, 1),
        (32, 256, 2),
        (64, 256, 1),
        (64, 256, 2),
        (32, 640, 2),
    ] {
        let shape = |law| CopyShape { ranks, items, top_k: 8, tokens_per_rank: 8192, law };
        for inside in [4.0, 1.0] {
            for target in [1.5, 2.0, 3.0] {
                let name = format!("{ranks}x{items} zipf {target} i^-{inside}");
                corpora.push((name, shape(CopyLaw::RankZipf { target, inside }), slots));
            }
        }
        if slots == 2 {
            for percent in [30, 50, 80, 95] {
                let name = format!("{ranks}x{items} one item {percent} %");
                corpora.push((name, shape(CopyLaw::OneItem { share: f64::from(percent) / 100.0 }), slots));
            }
        }
    }
    corpora
}

fn measure(corpus: &CopyCorpus, options: &Options) -> Result<Vec<CopyRow>, SolverError> {
    let effort = if options.thorough { CopyEffort::THOROUGH } else { CopyEffort::FAST };
    let problem = corpus.problem(corpus.slots)?;
    let mut solver = CopySolver::new(&problem).with_effort(effort);
    // UltraEP raises its threshold where it misses 1 % above the mean. The solver gets the threshold reached.
    let target = |loads: &[u32]| {
        let least = (f64::from(mean_load(loads, corpus.shape.ranks)) * 1.01).ceil() as u32;
        CopyGoal::FewestCopies { peak: least.max(corpus.peak_of(CopyRule::UltraEp, loads)) }
    };
    let lowest = |_: &[u32]| CopyGoal::LowestPeak { copies: u32::MAX };
    let mut rows = vec![
        corpus.measure_solver(&mut solver, "copies", target)?,
        corpus.measure_solver(&mut solver, "peak", lowest)?,
        corpus.measure_solver(&mut solver, "time", |_| CopyGoal::LeastTime(TIMES))?,
    ];
    if let Some(seconds) = options.milp {
        rows.extend(corpus.measure_milp("copies", target, seconds));
        rows.extend(corpus.measure_milp("peak", lowest, seconds));
    }
    rows.extend(CopyRule::ALL.map(|rule| corpus.measure_rule(rule, "rule")));
    Ok(rows)
}

fn print_row(corpus: &CopyCorpus, row: &CopyRow) {
    let number = |value: f64, digits: usize| {
        if value.is_nan() { "-".to_owned() } else { format!("{value:.digits$}") }
    };
    println!(
        "{:<28} {:<9} {:<9} {:>5} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9}",
        format!("{} B={}", corpus.name, corpus.slots),
        row.objective,
        row.solver,
        row.instances,
        number(row.copies, 2),
        number(row.bound_copies, 2),
        number(row.peak_over_mean, 4),
        number(row.bound_peak_over_mean, 4),
        number(row.p50_us, 1),
        number(row.p99_us, 1),
    );
}

fn print_defeats(corpus: &CopyCorpus) -> Result<(), SolverError> {
    for rule in CopyRule::ALL {
        let defeats = corpus.count_defeats(rule, TIMES)?;
        println!(
            "{:<28} {:<9} better than the solver on {} of {} batches by copies, {} by peak, {} by time",
            format!("{} B={}", corpus.name, corpus.slots),
            rule.name(),
            defeats.copies,
            corpus.batches.len(),
            defeats.peak,
            defeats.time
        );
    }
    Ok(())
}

fn to_json(corpus: &CopyCorpus, row: &CopyRow) -> String {
    let number = |value: f64| if value.is_finite() { value.to_string() } else { "null".to_owned() };
    format!(
        "{{\"corpus\":\"{}\",\"ranks\":{},\"experts\":{},\"slots\":{},\"objective\":\"{}\",\"solver\":\"{}\",\
         \"instances\":{},\"copies\":{},\"peak_over_mean\":{},\"bound_copies\":{},\"bound_peak_over_mean\":{},\
         \"p50_us\":{},\"p99_us\":{}}}",
        corpus.name,
        corpus.shape.ranks,
        corpus.shape.items,
        corpus.slots,
        row.objective,
        row.solver,
        row.instances,
        number(row.copies),
        number(row.peak_over_mean),
        number(row.bound_copies),
        number(row.bound_peak_over_mean),
        number(row.p50_us),
        number(row.p99_us),
    )
}
