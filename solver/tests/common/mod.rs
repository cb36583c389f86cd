//! Seeded instances, shared by tests, benches and the `agreement` example.
//!
//! An instance is a pure function of its seed and its limits. It has a shape (the hosts of each item), a load
//! distribution, and optionally speeds and base loads.
#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::expect_used, reason = "a generator that builds nonsense must stop the test")]
#![allow(missing_docs, reason = "test support is no public interface")]

#[cfg(feature = "oracle")]
pub(crate) mod copy_cases;
#[cfg(feature = "oracle")]
pub(crate) mod referee;

use evenkeel_solver::{Hosts, Peak, Problem, SolverError};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal, Normal, Zipf};

/// Limits of an instance's size and content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) ranks: usize,
    pub(crate) items: usize,
    pub(crate) load: u64,
    pub(crate) speeds: Speeds,
    pub(crate) base: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speeds {
    One,
    Equal,
    Any(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    OneRank,
    Random,
    ManyHosts,
    Everywhere,
    Ring,
    Cube,
    Chain,
    Torus,
    Parallel,
    Star,
    Disconnected,
    Nested,
}

pub(crate) const SHAPES: [Shape; 12] = [
    Shape::OneRank,
    Shape::Random,
    Shape::ManyHosts,
    Shape::Everywhere,
    Shape::Ring,
    Shape::Cube,
    Shape::Chain,
    Shape::Torus,
    Shape::Parallel,
    Shape::Star,
    Shape::Disconnected,
    Shape::Nested,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Law {
    Zero,
    Sparse,
    Tiny,
    Equal,
    Uniform,
    Zipf,
    LogNormal,
    Normal,
    HotItem,
    HotRank,
    PowersOfTwo,
}

pub(crate) const LAWS: [Law; 11] = [
    Law::Zero,
    Law::Sparse,
    Law::Tiny,
    Law::Equal,
    Law::Uniform,
    Law::Zipf,
    Law::LogNormal,
    Law::Normal,
    Law::HotItem,
    Law::HotRank,
    Law::PowersOfTwo,
];

#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) shape: Shape,
    pub(crate) law: Law,
    pub(crate) problem: Problem,
    pub(crate) loads: Vec<u64>,
}

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Returns an instance of any shape and load distribution.
pub(crate) fn draw(seed: u64, limits: Limits) -> Instance {
    let mut rng = rng(seed);
    let shape = SHAPES[rng.random_range(0..SHAPES.len())];
    let law = LAWS[rng.random_range(0..LAWS.len())];
    draw_as(shape, law, &mut rng, limits).expect("the generator builds valid problems")
}

pub(crate) fn draw_as(
    shape: Shape,
    law: Law,
    rng: &mut ChaCha8Rng,
    limits: Limits,
) -> Result<Instance, SolverError> {
    let items = rng.random_range(1..=limits.items);
    let lists = host_lists(shape, rng.random_range(1..=limits.ranks), items, rng);
    let ranks = 1 + lists.iter().flatten().max().copied().unwrap_or(0) as usize;
    let loads = loads(law, &lists, limits.load, rng);
    let mut problem = Problem::new(Hosts::new(ranks, &lists)?);
    problem = match limits.speeds {
        Speeds::One => problem,
        Speeds::Equal => problem.with_speeds(vec![rng.random_range(1..=9); ranks])?,
        Speeds::Any(top) => problem.with_speeds((0..ranks).map(|_| rng.random_range(1..=top)).collect())?,
    };
    if limits.base && rng.random_bool(0.5) {
        problem = problem.with_base_loads((0..ranks).map(|_| rng.random_range(0..=limits.load)).collect())?;
    }
    Ok(Instance { shape, law, problem, loads })
}

/// Returns host lists on at most `ranks` ranks. The highest used rank determines the number of ranks.
fn host_lists(shape: Shape, ranks: usize, items: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<u32>> {
    let pair = |a: usize, b: usize| if a == b { vec![a as u32] } else { vec![a as u32, b as u32] };
    let side = (1..=ranks).take_while(|side| side * side <= ranks).last().unwrap_or(1);
    let block = ranks.clamp(1, 4);
    let lists = (0..items).map(|item| {
        let home = item % ranks;
        let round = item / ranks;
        match shape {
            Shape::OneRank => vec![0],
            Shape::Random => some_ranks(rng.random_range(1..=3), ranks, rng),
            Shape::ManyHosts => some_ranks(rng.random_range(1..=8), ranks, rng),
            Shape::Everywhere => (0..ranks as u32).collect(),
            // The first items of a rank have a second replica, the later ones do not.
            Shape::Ring if round < 2 => pair(home, (home + 1) % ranks),
            Shape::Chain if round < 2 => pair(home, (home + 1).min(ranks - 1)),
            Shape::Cube if round < 4 => {
                let other = home ^ (1 << round);
                pair(home, if other < ranks { other } else { home })
            }
            Shape::Torus if round < 2 => {
                let (row, column) = ((item % (side * side)) / side, item % side);
                let there = if round == 0 {
                    (row + 1) % side * side + column
                } else {
                    row * side + (column + 1) % side
                };
                pair(row * side + column, there)
            }
            Shape::Parallel => pair(home, home ^ usize::from(home ^ 1 < ranks)),
            Shape::Star if rng.random_bool(0.8) => pair(0, home),
            Shape::Disconnected => {
                let begin = home / block * block;
                let size = block.min(ranks - begin);
                pair(home, begin + rng.random_range(0..size))
            }
            // Every prefix of the ranks is a candidate cut.
            Shape::Nested => (0..=rng.random_range(0..ranks) as u32).collect(),
            _ => vec![home as u32],
        }
    });
    lists.collect()
}

fn some_ranks(count: usize, ranks: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    rand::seq::index::sample(rng, ranks, count.min(ranks)).into_iter().map(|rank| rank as u32).collect()
}

fn loads(law: Law, lists: &[Vec<u32>], top: u64, rng: &mut ChaCha8Rng) -> Vec<u64> {
    let scale = top as f64;
    let clamp = |x: f64| x.clamp(0.0, scale) as u64;
    let zipf = Zipf::new(lists.len() as f64, 1.2).expect("valid parameters");
    let log_normal = LogNormal::new(0.0, 1.5).expect("valid parameters");
    let normal = Normal::new(1.0, 0.3).expect("valid parameters");
    let hot = rng.random_range(0..lists.len());
    let hot_rank = lists[hot][0];
    let one = rng.random_range(0..=top);
    let each = lists.iter().enumerate().map(|(item, hosts)| match law {
        Law::Zero => 0,
        Law::Sparse => {
            if rng.random_bool(0.2) {
                rng.random_range(0..=top)
            } else {
                0
            }
        }
        Law::Tiny => rng.random_range(0..=top.min(3)),
        Law::Equal => one,
        Law::Uniform => rng.random_range(0..=top),
        Law::Zipf => clamp(scale / zipf.sample(rng)),
        Law::LogNormal => clamp(scale / 50.0 * log_normal.sample(rng)),
        Law::Normal => clamp(scale / 2.5 * normal.sample(rng)),
        Law::HotItem => {
            if item == hot {
                top
            } else {
                rng.random_range(0..=top / 20)
            }
        }
        Law::HotRank => rng.random_range(0..=if hosts[0] == hot_rank { top } else { top / 10 }),
        Law::PowersOfTwo => 1 << rng.random_range(0..=top.max(1).ilog2()),
    });
    each.collect()
}

/// Returns LPLB's layout without re-ordering. Each of `ranks` ranks owns `items / ranks` items, in order.
/// Slot `d` of rank `i` replicates the `d`-th item of rank `columns[d mod columns][i]`.
pub(crate) fn lplb(items: usize, redundant: usize, columns: &[Vec<usize>]) -> Hosts {
    let ranks = columns[0].len();
    let own = items / ranks;
    let mut lists: Vec<Vec<u32>> = (0..items).map(|item| vec![(item / own) as u32]).collect();
    for slot in 0..redundant {
        for (rank, &origin) in columns[slot % columns.len()].iter().enumerate() {
            lists[origin * own + slot].push(rank as u32);
        }
    }
    Hosts::new(ranks, lists).expect("a topology never sends a copy home")
}

/// Returns LPLB's ring topology, as columns of `redundant_to_original`.
pub(crate) fn ring(ranks: usize) -> Vec<Vec<usize>> {
    vec![(0..ranks).map(|rank| (rank + 1) % ranks).collect()]
}

pub(crate) fn cube() -> Vec<Vec<usize>> {
    vec![vec![3, 0, 1, 2, 7, 4, 5, 6], vec![6, 7, 4, 5, 0, 1, 2, 3]]
}

pub(crate) fn hypercube() -> Vec<Vec<usize>> {
    vec![
        vec![3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14],
        vec![12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    ]
}

pub(crate) fn torus(rows: usize, columns: usize) -> Vec<Vec<usize>> {
    let ranks = 0..rows * columns;
    let down = |rank: usize| (rank / columns + 1) % rows * columns + rank % columns;
    let right = |rank: usize| rank / columns * columns + (rank % columns + 1) % columns;
    vec![ranks.clone().map(down).collect(), ranks.map(right).collect()]
}

/// Returns LPLB's test loads: normal with mean 2^12 and deviation 0.3 of it, clamped at zero.
pub(crate) fn lplb_loads(items: usize, rng: &mut ChaCha8Rng) -> Vec<u64> {
    let normal = Normal::new(4096.0, 0.3 * 4096.0).expect("valid parameters");
    (0..items).map(|_| f64::max(normal.sample(rng), 0.0) as u64).collect()
}

/// Returns the least peak by enumeration of all rank sets, with bisection over the breakpoints of each. It
/// shares no code with the solver.
pub(crate) fn peak_by_enumeration(problem: &Problem, loads: &[u64]) -> Peak {
    let (hosts, speeds) = (problem.hosts(), problem.speeds());
    let masks: Vec<u32> =
        (0..hosts.items()).map(|item| hosts.ranks_of(item).iter().map(|rank| 1 << rank).sum()).collect();
    let mut worst = Peak { load: 0, speed: 1 };
    for set in 1u32..1 << hosts.ranks() {
        let inside = |rank: &usize| set >> rank & 1 == 1;
        let base: u64 = (0..hosts.ranks()).filter(inside).map(|rank| problem.base_loads()[rank]).sum();
        let must =
            base + masks.iter().zip(loads).filter(|(mask, _)| *mask & !set == 0).map(|(_, l)| l).sum::<u64>();
        let room = |load: u64, speed: u32| -> u128 {
            let at = |rank: usize| u128::from(load) * u128::from(speeds[rank]) / u128::from(speed);
            (0..hosts.ranks()).filter(inside).map(at).sum()
        };
        let breakpoint = |rank: usize| {
            let speed = speeds[rank];
            let (mut low, mut high) = (0, must);
            while low < high {
                let middle = low + (high - low) / 2;
                if room(middle, speed) >= u128::from(must) { high = middle } else { low = middle + 1 }
            }
            Peak { load: low, speed }
        };
        let least = (0..hosts.ranks()).filter(inside).map(breakpoint).min().expect("the set is not empty");
        worst = worst.max(least);
    }
    worst
}
