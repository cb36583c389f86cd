//! The guarantee of [`Workspace`]: no allocation after set-up, for any batch.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait; this one only counts")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{Limits, Speeds};
use evenkeel_solver::objective::{
    self, ActiveSplit, ActiveSplitter, PrimaryObjective, TrafficSplit, TrafficSplitter, balance_into,
};
use evenkeel_solver::{Hosts, Problem, RankSplit, Workspace, solve_counts_into, solve_into};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator with a count of this thread's requests.
struct Counting;

// SAFETY: every call is passed on unchanged; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations_of(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations_of(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

/// Covers sparse, dense and uneven problems. Batches range from empty to beyond 63 bits, in both kinds of
/// counts.
#[test]
fn nothing_is_allocated_after_set_up() {
    let ranks = 40u32;
    let lists = (0..200).map(|item| match item % 5 {
        0 => vec![item % ranks],
        1 => (0..ranks).collect(),
        step => vec![item % ranks, (item + step) % ranks],
    });
    let even = Problem::new(Hosts::new(ranks as usize, lists).expect("valid hosts"));
    let uneven = even.clone().with_speeds((1..=ranks).collect()).expect("positive speeds");
    for problem in [even, uneven] {
        let mut workspace = Workspace::new(&problem);
        let mut split = RankSplit::default();
        solve_into(&problem, &[0; 200], &mut workspace, &mut split).expect("valid");
        for seed in 0..300u64 {
            let counts: Vec<u32> =
                (0..200).map(|item| ((item * 7919 + seed * 104_729) % 1013) as u32).collect();
            let scale = [1, 1 << 24, 1 << 46][seed as usize % 3];
            let loads: Vec<u64> = counts.iter().map(|&count| u64::from(count) * scale).collect();
            let allocations = allocations_of(|| {
                solve_counts_into(&problem, &counts, &mut workspace, &mut split).expect("valid");
                solve_into(&problem, &loads, &mut workspace, &mut split).expect("valid");
            });
            assert_eq!(allocations, 0, "seed {seed}");
        }
    }
}

/// Covers the families of the other tests: one problem, set up by an empty batch, then its loads.
#[test]
fn no_family_allocates() {
    for seed in 0..400 {
        let limits = Limits { ranks: 200, items: 500, load: 1 << 40, speeds: Speeds::Any(9), base: true };
        let instance = common::draw(seed, limits);
        let (mut workspace, mut split) = (Workspace::new(&instance.problem), RankSplit::default());
        let silence = vec![0; instance.loads.len()];
        solve_into(&instance.problem, &silence, &mut workspace, &mut split).expect("valid");
        let allocations = allocations_of(|| {
            solve_into(&instance.problem, &instance.loads, &mut workspace, &mut split).expect("valid");
        });
        assert_eq!(allocations, 0, "seed {seed}: {instance:?}");
    }
}

/// With second objectives, nothing is allocated after the first batch of a problem.
#[test]
fn objectives_allocate_for_the_first_batch_only() {
    let limits = Limits { ranks: 60, items: 150, load: 1 << 30, speeds: Speeds::Any(5), base: true };
    for seed in 0..100 {
        let instance = common::draw(seed, limits);
        let (problem, loads) = (&instance.problem, &instance.loads);
        let (ranks, items) = (problem.hosts().ranks(), loads.len());
        let nodes: Vec<u32> = (0..ranks as u32).map(|rank| rank / 8).collect();
        let mut traffic = TrafficSplitter::new(problem.clone(), &nodes).expect("valid");
        let mut active = ActiveSplitter::new(problem.clone());
        let mut workspace = objective::BalanceWorkspace::default();
        let (mut split, mut served, mut whole) =
            (RankSplit::default(), TrafficSplit::default(), ActiveSplit::default());
        let mut counts = vec![0; ranks * items];
        for (index, &load) in loads.iter().enumerate() {
            counts[index * 7 % ranks * items + index] = load / 3;
            counts[index * 5 % ranks * items + index] += load - load / 3;
        }
        let mut batch = |loads: &[u64], counts: &[u64]| {
            balance_into(problem, loads, &mut workspace, &mut split).expect("valid");
            active.solve_into(loads, &mut whole).expect("valid");
            traffic.solve_into(counts, PrimaryObjective::Vector, &mut served).expect("valid");
            traffic.solve_into(counts, PrimaryObjective::Peak, &mut served).expect("valid");
        };
        batch(&vec![0; items], &vec![0; ranks * items]);
        assert_eq!(allocations_of(|| batch(loads, &counts)), 0, "seed {seed}");
    }
}
