//! Tables of docs/dynamic.md: copies for each batch, by the solver and by published rules.
//!
//! ```text
//! cargo bench -p evenkeel-solver --bench copies -- [--json] [--seeds N] [--defeats] [--ranks R]
//! cargo bench -p evenkeel-solver --bench copies -- --loads loads.csv --ranks R [--slots B]
//! cargo bench -p evenkeel-solver --features highs --bench copies -- --milp 60 --ranks 8
//! ```
//!
//! `--defeats` counts the batches on which a rule does better with as many slots as it uses. `--milp` adds
//! the best plan that HiGHS finds in this many seconds per batch. `--loads` takes the batches of a trace that
//! `evenkeel trace convert` has written.

#![allow(clippy::print_stdout, clippy::print_stderr, missing_docs, reason = "a benchmark")]

use std::collections::BTreeMap;
use std::error::Error;
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
    loads: Option<String>,
    slots: u32,
}

fn main() -> ExitCode {
    let options = match parse_options() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    match list_corpora(&options).and_then(|corpora| Ok(print_tables(&options, corpora)?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn parse_options() -> Result<Options, String> {
    let mut options = Options { seeds: 20, slots: 2, ..Options::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--loads" {
            options.loads = Some(words.next().ok_or("--loads needs a file")?);
            continue;
        }
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
            "--slots" => options.slots = number()? as u32,
            // The flag that `cargo bench` passes.
            "--bench" => {}
            _ => {
                return Err(format!(
                    "{word}: expected --json, --defeats, --thorough, --seeds N, --ranks R, --milp SECONDS, \
                     --loads FILE or --slots B"
                ));
            }
        }
    }
    Ok(options)
}

fn print_tables(options: &Options, corpora: Vec<CopyCorpus>) -> Result<(), SolverError> {
    let mut documents = vec![];
    if !options.json {
        println!(
            "{:<28} {:<9} {:<9} {:>5} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9}",
            "corpus", "objective", "solver", "cases", "copies", "bound", "peak", "bound", "p50 us", "p99 us"
        );
    }
    for corpus in corpora {
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

/// Returns the corpora of the options: those of a file, or the drawn ones.
fn list_corpora(options: &Options) -> Result<Vec<CopyCorpus>, Box<dyn Error>> {
    if let Some(file) = &options.loads {
        let ranks = options.ranks.ok_or("--loads: expected --ranks too")?;
        let batches = read_loads(file)?;
        let items = batches.first().map_or(0, Vec::len);
        if ranks == 0 || items == 0 || items % ranks != 0 {
            return Err(format!("{file}: {items} experts on {ranks} ranks: expected a multiple").into());
        }
        return Ok(vec![CopyCorpus::recorded(file.clone(), ranks, options.slots, batches)]);
    }
    let drawn = corpora().into_iter().filter(|(_, shape, _)| options.ranks.is_none_or(|r| r == shape.ranks));
    Ok(drawn.map(|(name, shape, slots)| CopyCorpus::draw(name, shape, slots, 0..options.seeds)).collect())
}

/// Reads the batches of all layers of a trace with the columns step, layer, expert and tokens.
fn read_loads(file: &str) -> Result<Vec<Vec<u32>>, Box<dyn Error>> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let mut lines = text.lines().enumerate();
    if lines.next().is_none_or(|(_, header)| header != "step,layer,expert,tokens") {
        return Err(format!("{file}: expected the header step,layer,expert,tokens").into());
    }
    let mut loads: BTreeMap<(u64, u64), BTreeMap<usize, u32>> = BTreeMap::new();
    let mut items = 0;
    for (line, text) in lines {
        let wrong = || format!("{file}, line {}: \"{text}\": expected four numbers", line + 1);
        let numbers: Vec<u64> =
            text.split(',').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?;
        let &[step, layer, expert, tokens] = &numbers[..] else { return Err(wrong().into()) };
        let tokens = u32::try_from(tokens).map_err(|_| wrong())?;
        items = items.max(expert as usize + 1);
        loads.entry((step, layer)).or_default().insert(expert as usize, tokens);
    }
    let fill =
        |of: BTreeMap<usize, u32>| (0..items).map(|item| of.get(&item).copied().unwrap_or(0)).collect();
    Ok(loads.into_values().map(fill).filter(|loads: &Vec<u32>| loads.iter().any(|&load| load > 0)).collect())
}

/// Returns name, shape and dynamic slots of all drawn corpora: UltraEP's generator, LLEP's injections, and
/// TopoEP's shape.
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
            corpora.push((format!("{ranks}x{items} even"), shape(CopyLaw::Even), slots));
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
    rows.push(corpus.measure_split()?);
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
