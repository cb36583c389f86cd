//! Cuts: lower bounds of all splits of a placement, cheap enough to price every move.
//!
//! A set `S` of ranks must serve its *confined* experts, which live nowhere else. So in every scenario
//! `peak >= ceil(confined load(S) / |S|)` (solver: max-flow min-cut). The certificates of exact splits are
//! such sets. The largest of these bounds over a pool of cuts is a lower bound of the peak. A move changes
//! the hosts of two experts. It changes only the cuts that begin or cease to confine one of the two. This is
//! the approximation of the recourse from below in the L-shaped method (Benders), updated move by move.
//!
//! Confined loads are whole numbers below 2^24, and so exact in `f32` in any order of summation. A bound is
//! multiplied by a reciprocal rounded down, so that rounding can only lower it.

use super::incumbent::{HostChange, RankIndex, SearchPlacement};
use super::scenarios::{LANES, ScenarioSet};

/// Highest number of cuts in a pool: one bit each.
pub(crate) const MAX_CUTS: usize = 128;

/// Factor that rounds reciprocals down by more than the rounding of two multiplications can add.
const ROUND_DOWN_FACTOR: f32 = 1.0 - 1.0 / (1u32 << 21) as f32;

/// Set of cuts, one bit each.
type CutSet = u128;

/// Relevant cuts of one placement, and the peaks that they prove.
#[derive(Debug, Clone)]
pub(crate) struct CutPool<'a> {
    scenarios: &'a ScenarioSet,
    /// Ranks of every cut, ascending. Empty for an unused entry.
    members: Vec<Vec<RankIndex>>,
    live: CutSet,
    /// Cuts that contain each rank, `[R]`.
    containing: Vec<CutSet>,
    /// Cuts that confine each expert, `[E + 1]`. Expert `E` stands for an empty slot and is never confined.
    confining: Vec<CutSet>,
    /// 1 / |S|, rounded down.
    shares: Vec<f32>,
    /// Confined load, `[MAX_CUTS][padded B]`.
    confined: Vec<f32>,
    /// Confined load over |S|, `[MAX_CUTS][padded B]`.
    bounds: Vec<f32>,
    /// Lower bound of every scenario's peak, `[padded B]`, in whole tokens.
    peaks: Vec<f32>,
    /// Time of the last use of each cut: when it was added, or decided a scenario.
    used: Vec<u64>,
    now: u64,
}

/// Effect of a step that has not been taken on the cuts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepEffect {
    changes: [HostChange; 2],
    /// Cuts that confine the two experts after the step.
    after: [CutSet; 2],
}

impl<'a> CutPool<'a> {
    /// Creates a pool without cuts. The cut of all ranks is implied.
    pub(crate) fn new(scenarios: &'a ScenarioSet, seating: &SearchPlacement) -> CutPool<'a> {
        let padded = scenarios.padded_len();
        CutPool {
            scenarios,
            members: vec![vec![]; MAX_CUTS],
            live: 0,
            containing: vec![0; seating.ranks()],
            confining: vec![0; seating.experts() + 1],
            shares: vec![0.0; MAX_CUTS],
            confined: vec![0.0; MAX_CUTS * padded],
            bounds: vec![0.0; MAX_CUTS * padded],
            peaks: scenarios.peak_floors().to_vec(),
            used: vec![0; MAX_CUTS],
            now: 0,
        }
    }

    /// Returns the lower bound of every scenario's peak in the present placement, `[padded B]`, in whole
    /// tokens.
    pub(crate) fn peaks(&self) -> &[f32] {
        &self.peaks
    }

    /// Returns the effect of a step.
    pub(crate) fn step_effect(&self, seating: &SearchPlacement, changes: [HostChange; 2]) -> StepEffect {
        let after = changes.map(|HostChange { expert, from, to }| {
            if expert as usize == seating.experts() {
                return 0;
            }
            let stay = seating.hosts(expert).iter().filter(|&&host| Some(host) != from);
            stay.chain(to.iter()).fold(self.live, |cuts, &host| cuts & self.containing[host as usize])
        });
        StepEffect { changes, after }
    }

    /// Computes the lower bound of every scenario's peak after a step into `peaks`, `[padded B]`. It calls
    /// `go_on` after every block of scenarios with the block's range and the bounds so far. Returns false if
    /// `go_on` did.
    pub(crate) fn price(
        &self,
        effect: &StepEffect,
        peaks: &mut [f32],
        mut go_on: impl FnMut(usize, usize, &[f32]) -> bool,
    ) -> bool {
        let [first, second] =
            effect.changes.map(|change| self.scenarios.expert_loads(change.expert as usize));
        let [one, two] = self.changed_cuts(effect);
        let changed = one.0 | one.1 | two.0 | two.1;
        let floors = self.scenarios.peak_floors();
        for block in 0..self.scenarios.padded_len() / LANES {
            let lanes = |row: &[f32]| load_lanes(row, block);
            let mut most = lanes(floors);
            for cut in set_bits(self.live & !changed) {
                raise_lanes(&mut most, &lanes(self.cut_row(&self.bounds, cut)));
            }
            let (a, b) = (lanes(first), lanes(second));
            for cut in set_bits(changed) {
                let (s, t, share) = (cut_sign(one, cut), cut_sign(two, cut), self.shares[cut]);
                let mut bounds = lanes(self.cut_row(&self.confined, cut));
                for lane in 0..LANES {
                    bounds[lane] = (bounds[lane] + s * a[lane] + t * b[lane]) * share;
                }
                raise_lanes(&mut most, &bounds);
            }
            let (from, upto) = (block * LANES, (block + 1) * LANES);
            for (peak, most) in peaks[from..upto].iter_mut().zip(most) {
                *peak = round_up(most);
            }
            if !go_on(from, upto, peaks) {
                return false;
            }
        }
        true
    }

    /// Takes a step whose price is `peaks`. The caller also applies it to the seating.
    pub(crate) fn apply(&mut self, effect: &StepEffect, peaks: &[f32]) {
        for (change, signs) in effect.changes.iter().zip(self.changed_cuts(effect)) {
            let padded = self.scenarios.padded_len();
            let row = self.scenarios.expert_loads(change.expert as usize);
            for cut in set_bits(signs.0 | signs.1) {
                let s = cut_sign(signs, cut);
                let range = cut * padded..(cut + 1) * padded;
                let both = self.confined[range.clone()].iter_mut().zip(&mut self.bounds[range]);
                for ((confined, bound), load) in both.zip(row) {
                    *confined += s * load;
                    *bound = *confined * self.shares[cut];
                }
            }
        }
        for (change, after) in effect.changes.iter().zip(effect.after) {
            self.confining[change.expert as usize] = after;
        }
        self.peaks.copy_from_slice(peaks);
    }

    /// Adds the cut of these ranks, ascending, unless it is there already. A full pool drops the cut that has
    /// not been used for the longest time.
    pub(crate) fn add_cut(&mut self, seating: &SearchPlacement, ranks: &[u32]) {
        let same = |cut: usize| self.members[cut].iter().map(|&r| u32::from(r)).eq(ranks.iter().copied());
        if ranks.len() == seating.ranks() || set_bits(self.live).any(same) {
            return;
        }
        let free = (!self.live).trailing_zeros() as usize;
        let cut = if free < MAX_CUTS { free } else { self.least_recently_used() };
        self.remove_cut(cut);
        let bit = 1 << cut;
        self.live |= bit;
        self.now += 1;
        self.used[cut] = self.now;
        self.members[cut] = ranks.iter().map(|&rank| rank as RankIndex).collect();
        for &rank in ranks {
            self.containing[rank as usize] |= bit;
        }
        self.shares[cut] = ROUND_DOWN_FACTOR / ranks.len() as f32;
        let padded = self.scenarios.padded_len();
        let confined = &mut self.confined[cut * padded..(cut + 1) * padded];
        confined.fill(0.0);
        for expert in 0..seating.experts() {
            let hosts = seating.hosts(expert as u32);
            if !hosts.is_empty() && hosts.iter().all(|&host| self.containing[host as usize] & bit != 0) {
                self.confining[expert] |= bit;
                for (sum, load) in confined.iter_mut().zip(self.scenarios.expert_loads(expert)) {
                    *sum += load;
                }
            }
        }
        let bounds = &mut self.bounds[cut * padded..(cut + 1) * padded];
        for ((bound, confined), peak) in bounds.iter_mut().zip(confined).zip(&mut self.peaks) {
            *bound = *confined * self.shares[cut];
            *peak = peak.max(round_up(*bound));
        }
    }

    /// Returns the cut that proves a scenario's peak, if the peak exceeds its floor: its ranks, and a test
    /// for confined experts.
    pub(crate) fn tightest_cut(
        &mut self,
        scenario: usize,
    ) -> Option<(&[RankIndex], impl Fn(u32) -> bool + '_)> {
        let padded = self.scenarios.padded_len();
        let at = |cut: usize| self.bounds[cut * padded + scenario];
        let cut = set_bits(self.live).reduce(|best, cut| if at(cut) > at(best) { cut } else { best })?;
        let needed = at(cut) > self.scenarios.peak_floors()[scenario];
        self.now += 1;
        self.used[cut] = self.now;
        let confining = &self.confining;
        let inside = move |expert: u32| confining[expert as usize] >> cut & 1 == 1;
        needed.then_some((&self.members[cut][..], inside))
    }

    /// Returns for both changes the cuts that begin to confine the expert, and those that cease to.
    fn changed_cuts(&self, effect: &StepEffect) -> [(CutSet, CutSet); 2] {
        let pair = |i: usize| {
            let before = self.confining[effect.changes[i].expert as usize];
            (effect.after[i] & !before, before & !effect.after[i])
        };
        [pair(0), pair(1)]
    }

    fn remove_cut(&mut self, cut: usize) {
        let keep = !(1 << cut);
        self.live &= keep;
        self.containing.iter_mut().chain(&mut self.confining).for_each(|cuts| *cuts &= keep);
    }

    /// Returns the cut that has not been used for the longest time.
    fn least_recently_used(&self) -> usize {
        (0..MAX_CUTS).min_by_key(|&cut| self.used[cut]).unwrap_or(0)
    }

    fn cut_row<'b>(&self, rows: &'b [f32], cut: usize) -> &'b [f32] {
        let padded = self.scenarios.padded_len();
        &rows[cut * padded..(cut + 1) * padded]
    }
}

/// Returns one block of a row.
fn load_lanes(row: &[f32], block: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&row[block * LANES..(block + 1) * LANES]);
    lanes
}

/// Takes the larger of two values, lane by lane.
fn raise_lanes(most: &mut [f32; LANES], other: &[f32; LANES]) {
    for lane in 0..LANES {
        most[lane] = if most[lane] < other[lane] { other[lane] } else { most[lane] };
    }
}

/// Returns the indices of the set bits.
fn set_bits(mut bits: CutSet) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = (bits != 0).then(|| bits.trailing_zeros() as usize);
        bits &= bits.wrapping_sub(1);
        next
    })
}

fn cut_sign((plus, minus): (CutSet, CutSet), cut: usize) -> f32 {
    f32::from((plus >> cut & 1) as i8 - (minus >> cut & 1) as i8)
}

/// Rounds up to a whole number, for numbers from 0 to 2^22. It needs no library call, so that it vectorises.
fn round_up(x: f32) -> f32 {
    // From 2^23 on, `f32` has only whole numbers.
    const WHOLE: f32 = (1 << 23) as f32;
    let near = (x + WHOLE) - WHOLE;
    if near < x { near + 1.0 } else { near }
}

#[cfg(test)]
mod tests {
    use super::super::evaluate::ExactEvaluator;
    use super::super::initial::initial_placements;
    use super::*;
    use crate::rng::SeededRng;
    use evenkeel_solver::SlotChange;
    use proptest::prelude::*;

    proptest! {
        /// States that the bound never exceeds the exact peak, through any steps, while cuts come and go. It
        /// reaches the peak in a scenario whose certificate was just added.
        #[test]
        fn bounds_stay_below_exact_peaks(seed: u64, ranks in 2usize..9, experts in 9usize..20, loads in 1u64..400) {
            let mut dice = SeededRng::new(seed, 0);
            let batches: Vec<Vec<u64>> =
                (0..40).map(|_| (0..experts).map(|_| dice.draw_below(loads) * dice.draw_below(3)).collect()).collect();
            let scenarios = ScenarioSet::new(experts, ranks, batches.iter().map(Vec::as_slice));
            let per_rank = experts.div_ceil(ranks) + 1;
            let mut seating = initial_placements(&scenarios.expert_shares(), &vec![per_rank; ranks], &mut dice).swap_remove(0);
            let mut cuts = CutPool::new(&scenarios, &seating);
            let mut peaks = vec![0.0; scenarios.padded_len()];
            let mut exact = ExactEvaluator::default();
            for _ in 0..60 {
                let step = if dice.draw_below(2) == 0 {
                    let slot = |dice: &mut SeededRng| dice.draw_below((ranks * per_rank) as u64) as usize;
                    SlotChange::Swap(slot(&mut dice), slot(&mut dice))
                } else {
                    SlotChange::Replace(dice.draw_below((ranks * per_rank) as u64) as usize, dice.draw_below(experts as u64) as u32)
                };
                if seating.allows_step(step) {
                    let effect = cuts.step_effect(&seating, seating.step_changes(step));
                    cuts.price(&effect, &mut peaks, |_, _, _| true);
                    cuts.apply(&effect, &peaks);
                    seating.apply(step);
                }
                let problem = ExactEvaluator::build_problem(&seating).unwrap();
                for scenario in 0..scenarios.len() {
                    let (peak, certificate) = exact.peak(&problem, &scenarios, scenario).unwrap();
                    prop_assert!(cuts.peaks()[scenario] <= peak);
                    if peak > cuts.peaks()[scenario] && dice.draw_below(2) == 0 {
                        cuts.add_cut(&seating, certificate);
                        prop_assert!(cuts.peaks()[scenario] >= peak);
                    }
                }
            }
        }
    }
}
