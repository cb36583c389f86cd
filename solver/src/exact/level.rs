//! Lowest admissible peak of a rank set.
//!
//! In: ranks and the whole tokens that they must carry. Out: the lowest `T` with `Σ ⌊T·s_r⌋ ≥ must`, as a
//! ratio. The candidates are the breakpoints `a / s_r`, where the room of one rank grows by a token.
//!
//! **Method.** At `T₀ = must / Σ s_r`, the fluid optimum, the rooms fall short by less than one token per
//! rank. A heap of each rank's next breakpoint supplies the missing tokens in ascending order of `T`.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::{Hosts, Peak, Problem, RankSplit};

/// Next breakpoint of every rank, lowest first.
pub(super) type BreakpointHeap = BinaryHeap<Reverse<Breakpoint>>;

/// Scratch memory: the heap of breakpoints and the list of all ranks.
#[derive(Debug, Clone, Default)]
pub(super) struct LevelScratch {
    pub(super) heap: BreakpointHeap,
    all: Vec<u32>,
}

impl LevelScratch {
    pub(super) fn resize_for(&mut self, hosts: &Hosts) {
        if self.all.len() != hosts.ranks() {
            self.all.clear();
            self.all.extend(0..hosts.ranks() as u32);
        }
        // `reserve` counts from the length, and the last use left breakpoints behind.
        self.heap.clear();
        self.heap.reserve(hosts.ranks());
    }
}

/// Breakpoint of a rank: the peak at which its room reaches `peak.load`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Breakpoint {
    peak: Peak,
    rank: u32,
}

impl Ord for Breakpoint {
    fn cmp(&self, other: &Breakpoint) -> Ordering {
        self.peak.cmp(&other.peak).then(self.rank.cmp(&other.rank))
    }
}

impl PartialOrd for Breakpoint {
    fn partial_cmp(&self, other: &Breakpoint) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Returns the lowest peak that neither the total nor any single rank's fixed load rules out. The stronger of
/// the two becomes the certificate: all ranks, or the one rank (the lowest, on a tie).
///
/// The rank loads in `split` are the fixed ones: base loads and items with a single host.
pub(super) fn initial_peak(
    problem: &Problem,
    total: u64,
    scratch: &mut LevelScratch,
    split: &mut RankSplit,
) -> Peak {
    let mean = lowest_peak(problem, &scratch.all, total, &mut scratch.heap);
    let fixed = match problem.common_speed() {
        Some(speed) => Peak { load: split.rank_loads.iter().copied().fold(0, u64::max), speed },
        None => super::busiest_ratio(problem, &split.rank_loads),
    };
    if fixed > mean {
        let attains = |(&load, &speed): (&u64, &u32)| Peak { load, speed } == fixed;
        let rank = split.rank_loads.iter().zip(problem.speeds()).position(attains);
        split.certificate.extend(rank.map(|rank| rank as u32));
        fixed
    } else {
        split.certificate.extend_from_slice(&scratch.all);
        mean
    }
}

/// Returns the lowest peak at which these ranks, at least one, can carry `must` tokens.
pub(super) fn lowest_peak(problem: &Problem, ranks: &[u32], must: u64, heap: &mut BreakpointHeap) -> Peak {
    if let Some(speed) = problem.common_speed() {
        // All rooms grow at the same breakpoints.
        return Peak { load: must.div_ceil(ranks.len() as u64), speed };
    }
    let speed_of = |rank: u32| problem.speeds()[rank as usize];
    let speed_sum: u128 = ranks.iter().map(|&rank| u128::from(speed_of(rank))).sum();
    let mut missing = must;
    heap.clear();
    for &rank in ranks {
        let speed = speed_of(rank);
        // The room is at most `must`, because `speed` is at most `speed_sum`.
        let room = (u128::from(must) * u128::from(speed) / speed_sum) as u64;
        missing -= room;
        // If this saturates, the rooms already add up to `must`, and the heap is not read.
        let next = Peak { load: room.saturating_add(1), speed };
        heap.push(Reverse(Breakpoint { peak: next, rank }));
    }
    let mut least = Peak { load: 0, speed: 1 };
    if missing == 0 {
        // Every division above had no remainder, so T₀ itself is a breakpoint of each of these ranks.
        if let Some(&rank) = ranks.first() {
            let speed = speed_of(rank);
            least = Peak { load: (u128::from(must) * u128::from(speed) / speed_sum) as u64, speed };
        }
    }
    for _ in 0..missing {
        let Some(mut lowest) = heap.peek_mut() else { break };
        least = lowest.0.peak;
        // At most `must` tokens are distributed, so this saturates only after the last one.
        lowest.0.peak.load = least.load.saturating_add(1);
    }
    least
}
