//! Compares the kernel `solve` with the CPU, bit for bit. The same sources are compiled as C++, with lanes in
//! three orders.
#![allow(clippy::unwrap_used)]

#[allow(unexpected_cfgs, reason = "the instances come with a referee that is not used here")]
#[path = "../../../../solver/tests/common/mod.rs"]
mod instances;

use crate::kernels_support::{ORDERS, Requests, SANITISED, THREADS, build, runs};
use crate::skip_support::skipped;
use evenkeel_cuda::tables::{ProgramError, SolveProgram};
use evenkeel_solver::bench::corpus::SIZES;
use evenkeel_solver::{Hosts, Problem, Workspace, solve};
use instances::{Limits, Speeds};
use rand::RngExt;
use std::path::Path;

/// A problem with the counts of its sources, `[sources][items]`.
struct Case {
    problem: Problem,
    sources: usize,
    counts: Vec<u32>,
    what: String,
}

impl Case {
    fn loads(&self) -> Vec<u64> {
        let items = self.problem.hosts().items();
        (0..items)
            .map(|item| self.counts.iter().skip(item).step_by(items).map(|&n| u64::from(n)).sum())
            .collect()
    }
}

/// Solves every case on both sides, in every order of lanes. Returns the number of cases.
fn agree(kernels: &Path, cases: &[Case]) -> usize {
    agree_in(&ORDERS, kernels, cases)
}

fn agree_in(orders: &[(&str, u32)], kernels: &Path, cases: &[Case]) -> usize {
    let mut workspace = Workspace::default();
    for &(name, order) in orders {
        let mut requests = Requests::default();
        let mut expected = Vec::new();
        requests.order(order, 7);
        for (index, case) in cases.iter().enumerate() {
            let program = SolveProgram::new(&case.problem).unwrap();
            requests.program(&program);
            requests.split(&case.counts, case.sources, index % 2 == 0, index % 3 == 0);
            expected.push((program, solve(&case.problem, &case.loads(), &mut workspace).unwrap()));
        }
        let mut answers = requests.run(kernels);
        for ((program, split), case) in expected.iter().zip(cases) {
            assert_eq!(answers.compare(program, split), Ok(()), "lanes {name}, {}", case.what);
        }
        assert!(answers.finished());
    }
    cases.len()
}

fn corpus(batches: impl Fn(usize) -> usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for size in SIZES {
        for series in size.build_corpus(batches(size.ranks)).unwrap() {
            for counts in series.batches {
                let what = format!("{size:?} {:?} {}", series.law, series.graph);
                cases.push(Case { problem: series.problem.clone(), sources: 1, counts, what });
            }
        }
    }
    cases
}

/// Prints the quantities that determine latency, per size; docs/kernels.md shows this table.
#[test]
fn waves_sections_and_shared_memory_per_size() {
    let Some(kernels) = build("sizes", &["-O2"]) else { return };
    println!("  size  fill  sweeps | sections p50   p99   max | state bytes  with tables");
    for size in SIZES {
        let mut requests = Requests::default();
        let mut expected = Vec::new();
        let (mut fill, mut sweeps, mut state, mut hot) = (0, 0, 0, 0);
        for series in size.build_corpus(24).unwrap() {
            let program = SolveProgram::new(&series.problem).unwrap();
            fill = program.wave_counts().fill.max(fill);
            sweeps = program.wave_counts().all_sweeps().max(sweeps);
            state = program.shared_bytes(false).max(state);
            hot = program.shared_bytes(true).max(hot);
            requests.program(&program);
            for counts in &series.batches {
                requests.split(counts, 1, true, false);
                let loads: Vec<u64> = counts.iter().map(|&count| u64::from(count)).collect();
                let split = solve(&series.problem, &loads, &mut Workspace::default()).unwrap();
                expected.push((program.clone(), split));
            }
        }
        let mut answers = requests.run(&kernels);
        for (program, split) in &expected {
            assert_eq!(answers.compare(program, split), Ok(()), "{size:?}");
        }
        let mut sections = answers.sections;
        sections.sort_unstable();
        let [p50, p99, most] =
            [sections.len() / 2, sections.len() * 99 / 100, sections.len() - 1].map(|i| sections[i]);
        let name = format!("{}x{}", size.ranks, size.slots);
        println!("{name:>6} {fill:>5} {sweeps:>7} | {p50:>12} {p99:>5} {most:>5} | {state:>11} {hot:>12}");
        // The smallest limit of a supported device (compute capability 8.6).
        assert!(hot <= 99 * 1024, "{size:?} needs {hot} bytes");
    }
}

/// Returns random instances of every shape and distribution. The counts of each item are divided between a
/// few sources.
fn random(limits: Limits, seeds: std::ops::Range<u64>) -> Vec<Case> {
    let case = |seed: u64| {
        let drawn = instances::draw(seed, limits);
        let mut rng = instances::rng(!seed);
        let sources = rng.random_range(1..=drawn.problem.hosts().ranks().min(4));
        let mut counts = vec![0u32; sources * drawn.loads.len()];
        for (item, &load) in drawn.loads.iter().enumerate() {
            let mut left = load;
            for source in 0..sources {
                let most = left.min(u64::from(u32::MAX));
                let count = if source + 1 == sources { most } else { rng.random_range(0..=most) };
                counts[source * drawn.loads.len() + item] = count as u32;
                left -= count;
            }
        }
        let what = format!("seed {seed}, {limits:?}, {:?} {:?}", drawn.shape, drawn.law);
        Case { problem: drawn.problem, sources, counts, what }
    };
    seeds.map(case).collect()
}

/// Returns instances with totals around the limit of 32-bit numbers.
fn edges() -> Vec<Case> {
    let case = |total: u32| {
        let problem = Problem::new(Hosts::new(3, [&[0, 1][..], &[0, 1, 2], &[1]]).unwrap());
        let counts = vec![total - 9, 5, 4];
        Case { problem, sources: 1, counts, what: format!("total {total}") }
    };
    (i32::MAX as u32 - 3..i32::MAX as u32 + 3).map(case).collect()
}

const SMALL: Limits = Limits { ranks: 9, items: 24, load: 40, speeds: Speeds::One, base: true };
const MIDDLE: Limits = Limits { ranks: 64, items: 300, load: 1 << 20, speeds: Speeds::Equal, base: true };
const WIDE: Limits = Limits { ranks: 80, items: 300, load: 1 << 34, speeds: Speeds::One, base: true };
const LARGE: Limits = Limits { ranks: 1024, items: 3000, load: 1 << 31, speeds: Speeds::One, base: true };

#[test]
fn the_corpus_is_split_as_on_the_cpu() {
    let Some(kernels) = build("corpus", &["-O2"]) else { return };
    let batches = |ranks: usize| if ranks <= 16 { 192 / 8 } else { 12 };
    println!("{} instances of the corpus agree in 3 orders", agree(&kernels, &corpus(batches)));
}

#[test]
fn random_instances_are_split_as_on_the_cpu() {
    let Some(kernels) = build("random", &["-O2"]) else { return };
    let mut count = 0;
    for (limits, seeds) in [(SMALL, 6000), (MIDDLE, 1600), (WIDE, 1200), (LARGE, 60)] {
        for begin in (0..seeds).step_by(400) {
            count += agree(&kernels, &random(limits, begin..seeds.min(begin + 400)));
        }
    }
    count += agree(&kernels, &edges());
    println!("{count} random instances agree in 3 orders");
}

#[test]
fn nothing_is_undefined_or_out_of_bounds() {
    let Some(kernels) = build("sanitised", &SANITISED) else { return };
    let mut cases = corpus(|ranks| if ranks <= 64 { 4 } else { 1 });
    for (limits, seeds) in [(SMALL, 500), (MIDDLE, 100), (WIDE, 100), (LARGE, 4)] {
        cases.extend(random(limits, 0..seeds));
    }
    println!("{} instances agree under the sanitisers", agree(&kernels, &cases));
}

/// Runs every lane as a thread with the code of a GPU, so that a missing barrier is a data race.
#[test]
fn no_barrier_is_missing() {
    let Some(kernels) = build("threads", &THREADS) else { return };
    if !runs(&kernels) {
        skipped("no thread sanitiser");
        return;
    }
    let mut cases = corpus(|ranks| usize::from(ranks <= 64));
    for (limits, seeds) in [(SMALL, 30), (MIDDLE, 15), (WIDE, 10)] {
        cases.extend(random(limits, 0..seeds));
    }
    println!("{} instances agree, a thread for every lane", agree_in(&ORDERS[..1], &kernels, &cases));
}

#[test]
fn what_the_kernel_cannot_take_is_refused() {
    let hosts = Hosts::new(2, [[0, 1]]).unwrap();
    let unequal = Problem::new(hosts.clone()).with_speeds(vec![1, 2]).unwrap();
    assert_eq!(SolveProgram::new(&unequal), Err(ProgramError::UnequalSpeeds { rank: 1 }));
    let heavy = Problem::new(hosts).with_base_loads(vec![i64::MAX as u64, 0]).unwrap();
    assert!(matches!(SolveProgram::new(&heavy), Err(ProgramError::Overflow { items: 1, .. })));
}
