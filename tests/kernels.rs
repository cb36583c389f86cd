//! The GPU kernels against the CPU, bit for bit: the same sources compiled as C++, lanes in three orders.
#![allow(clippy::unwrap_used)]

#[allow(unexpected_cfgs, reason = "the instances come with a referee that is not used here")]
#[path = "../solver/tests/common/mod.rs"]
mod instances;
mod kernels_support;

use evenkeel::cluster::Cluster;
use evenkeel::kernels::{Program, ProgramError, copy_layout};
use evenkeel::place::Placement;
use evenkeel::planner::Planner;
use evenkeel::split::{Method, Shares, Split, Splitter};
use evenkeel_solver::bench::corpus::SIZES;
use evenkeel_solver::{Hosts, Problem, Workspace, solve};
use instances::{Limits, Speeds};
use kernels_support::{ORDERS, Requests, build, runs};
use rand::RngExt;
use std::path::Path;

/// A problem and the counts that its sources bring, `[sources][items]`.
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

/// Solves every case on both sides, in every order of lanes; returns how many there were.
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
            let program = Program::new(&case.problem).unwrap();
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
        for series in size.corpus(batches(size.ranks)).unwrap() {
            for counts in series.batches {
                let what = format!("{size:?} {:?} {}", series.law, series.graph);
                cases.push(Case { problem: series.problem.clone(), sources: 1, counts, what });
            }
        }
    }
    cases
}

/// What latency is made of, per size; docs/kernels.md shows this table.
#[test]
fn waves_sections_and_shared_memory_per_size() {
    let Some(kernels) = build("sizes", &["-O2"]) else { return };
    println!("  size  fill  sweeps | sections p50   p99   max | state bytes  with tables");
    for size in SIZES {
        let mut requests = Requests::default();
        let mut expected = Vec::new();
        let (mut fill, mut sweeps, mut state, mut hot) = (0, 0, 0, 0);
        for series in size.corpus(24).unwrap() {
            let program = Program::new(&series.problem).unwrap();
            fill = program.waves().fill.max(fill);
            sweeps = program.waves().all_sweeps().max(sweeps);
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

/// Random instances of every shape and law; the counts of each item dealt to a few sources.
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

/// Totals around the width of 32-bit numbers.
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
    let sanitised = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let Some(kernels) = build("sanitised", &sanitised) else { return };
    let mut cases = corpus(|ranks| if ranks <= 64 { 4 } else { 1 });
    for (limits, seeds) in [(SMALL, 500), (MIDDLE, 100), (WIDE, 100), (LARGE, 4)] {
        cases.extend(random(limits, 0..seeds));
    }
    println!("{} instances agree under the sanitisers", agree(&kernels, &cases));
    let mut rng = instances::rng(3);
    for _ in 0..60 {
        share_and_map(&ORDERS, &kernels, &mut rng);
    }
}

/// Every lane a thread: a barrier too few is a data race.
#[test]
fn no_barrier_is_missing() {
    let threads = ["-O1", "-g", "-DEK_THREADS", "-pthread", "-fsanitize=thread"];
    let Some(kernels) = build("threads", &threads) else { return };
    if !runs(&kernels) {
        println!("skipped: the thread sanitiser does not run on this machine");
        return;
    }
    let mut cases = corpus(|ranks| usize::from(ranks <= 64));
    for (limits, seeds) in [(SMALL, 60), (MIDDLE, 25), (WIDE, 15)] {
        cases.extend(random(limits, 0..seeds));
    }
    println!("{} instances agree, a thread for every lane", agree_in(&ORDERS[..1], &kernels, &cases));
    let mut rng = instances::rng(4);
    for _ in 0..6 {
        share_and_map(&ORDERS[..1], &kernels, &mut rng);
    }
}

#[test]
fn shares_and_slots_are_those_of_the_planner() {
    let Some(kernels) = build("planner", &["-O2"]) else { return };
    let mut rng = instances::rng(1);
    for _ in 0..400 {
        share_and_map(&ORDERS, &kernels, &mut rng);
    }
}

/// Random copies on a random cluster, random ids on every source: count, share and map must all agree.
fn share_and_map(orders: &[(&str, u32)], kernels: &Path, rng: &mut rand_chacha::ChaCha8Rng) {
    let (nodes, per_node) = (rng.random_range(1..5), rng.random_range(1..5));
    let (ranks, experts) = (nodes * per_node, rng.random_range(1usize..40));
    let slots = ranks * (experts.div_ceil(ranks) + rng.random_range(0..4));
    let mut map: Vec<Option<u32>> = (0..slots)
        .map(|slot| if slot < experts { slot as u32 } else { rng.random_range(0..experts as u32) })
        .map(Some)
        .collect();
    for index in (1..slots).rev() {
        map.swap(index, rng.random_range(0..=index));
    }
    let placement = Placement::new(experts, ranks, map).unwrap();
    let cluster = Cluster::new(ranks, nodes, experts, slots - experts).unwrap();
    let end = i64::try_from(experts).unwrap();
    let ids: Vec<Vec<i64>> = (0..ranks)
        .map(|_| {
            let hot = rng.random_range(0..end);
            let skewed = |rng: &mut rand_chacha::ChaCha8Rng| match rng.random_range(0..4) {
                0 => hot,
                _ => rng.random_range(-1..end),
            };
            (0..rng.random_range(0..900)).map(|_| skewed(rng)).collect()
        })
        .collect();
    let mut counts = vec![0u64; ranks * experts];
    for (source, ids) in ids.iter().enumerate() {
        ids.iter().filter(|&&id| id >= 0).for_each(|&id| counts[source * experts + id as usize] += 1);
    }
    let narrow: Vec<u32> = counts.iter().map(|&count| count as u32).collect();

    let mut planner = Planner::new(placement.clone(), cluster).unwrap();
    planner.split(&counts).unwrap();
    let totals: Vec<u64> = (0..experts).map(|e| counts.iter().skip(e).step_by(experts).sum()).collect();
    let mut split = Split::default();
    Splitter::new(placement.clone(), Method::Exact).unwrap().split(&totals, &mut split).unwrap();
    let mut shares = Shares::new(&placement);
    shares.fill(&placement, &cluster, &split, &counts).unwrap();
    let problem = Problem::new(placement.hosts().unwrap());
    let answer = solve(&problem, &totals, &mut Workspace::default()).unwrap();
    let layout = copy_layout(&placement).unwrap();

    for &(name, order) in orders {
        let mut requests = Requests::default();
        requests.order(order, 5);
        for (source, ids) in ids.iter().enumerate() {
            let wide = source % 2;
            let head = |request: u32| [request, wide as u32, ids.len() as u32, experts as u32];
            let as_words: Vec<u64> = ids.iter().map(|&id| id as u64).collect();
            requests.words(&head(5));
            requests.wide(&as_words);
            requests.words(&[4, layout.len() as u32]);
            requests.words(&layout);
            requests.words(&[experts, ranks, per_node, source, answer.quotas.len()].map(|n| n as u32));
            requests.wide(&answer.quotas);
            requests.words(&narrow);
            requests.words(&head(6));
            requests.words(&[layout.len() as u32]);
            requests.words(&layout);
            let of_source: Vec<u64> = (0..experts).flat_map(|e| shares.of(source, e).to_vec()).collect();
            requests.wide(&of_source);
            requests.wide(&as_words);
        }
        let mut answers = requests.run(kernels);
        for (source, ids) in ids.iter().enumerate() {
            assert_eq!(
                answers.words(experts),
                &narrow[source * experts..][..experts],
                "counts, lanes {name}"
            );
            assert_eq!(answers.words(1), [0], "no fault");
            let of_source: Vec<u64> = (0..experts).flat_map(|e| shares.of(source, e).to_vec()).collect();
            assert_eq!(answers.wide(of_source.len()), of_source, "shares, lanes {name}, {placement:?}");
            let slots: Vec<i64> = answers.wide(ids.len()).into_iter().map(u64::cast_signed).collect();
            assert_eq!(slots, planner.redirect(ids, source).unwrap(), "slots, lanes {name}");
            assert_eq!(answers.words(1), [0], "no fault");
        }
        assert!(answers.finished());
    }
}

/// Ids that are no expert and tokens that were not counted: no slot, and a fault each.
#[test]
fn faults_are_counted() {
    let Some(kernels) = build("faults", &["-O2"]) else { return };
    let placement = Placement::new(2, 2, vec![Some(0), Some(1)]).unwrap();
    let layout = copy_layout(&placement).unwrap();
    let mut requests = Requests::default();
    let ids = [0i64, -1, 2, -2, 0, 1].map(|id| id as u64);
    requests.words(&[6, 1, 6, 2, layout.len() as u32]);
    requests.words(&layout);
    requests.wide(&[1, 1]);
    requests.wide(&ids);
    let mut answers = requests.run(&kernels);
    let slots: Vec<i64> = answers.wide(6).into_iter().map(u64::cast_signed).collect();
    assert_eq!(slots, [0, -1, -1, -1, -1, 1]);
    assert_eq!(answers.words(1), [3], "two ids that are no expert, one token too many");
}

#[test]
fn what_the_kernel_cannot_take_is_refused() {
    let hosts = Hosts::new(2, [[0, 1]]).unwrap();
    let unequal = Problem::new(hosts.clone()).with_speeds(vec![1, 2]).unwrap();
    assert_eq!(Program::new(&unequal), Err(ProgramError::UnequalSpeeds { rank: 1 }));
    let heavy = Problem::new(hosts).with_base(vec![i64::MAX as u64, 0]).unwrap();
    assert!(matches!(Program::new(&heavy), Err(ProgramError::Overflow { items: 1, .. })));
}
