//! Cuts: what no split of a placement can be below, cheap enough to price every move.
//!
//! A set `S` of ranks must serve the experts that live nowhere else, its *confined* experts, so in every scenario
//! `peak >= ceil(confined load(S) / |S|)` (solver: max-flow min-cut). The certificates of exact splits are such sets. The
//! largest of these bounds over a pool of cuts is a lower bound on the peak, and a move, which changes the hosts of two
//! experts, changes only the cuts that begin or cease to confine one of the two: the L-shaped method's (Benders')
//! approximation of the recourse from below, updated move by move.
//!
//! Confined loads are whole numbers below 2^24 and so exact in `f32`, in any order of summation; a bound is multiplied by a
//! reciprocal rounded down, so that rounding can only lower it.

use super::scenarios::{LANES, Scenarios};
use super::seating::{Change, Rank, Seating};

/// Most cuts in a pool: one bit each.
pub(crate) const MOST: usize = 128;

/// Rounds reciprocals down by more than the roundings of two multiplications can add.
const DOWN: f32 = 1.0 - 1.0 / (1u32 << 21) as f32;

/// A set of cuts, one bit each.
type Bits = u128;

/// The cuts that matter for one placement, and the peaks they prove.
#[derive(Debug, Clone)]
pub(crate) struct Cuts<'a> {
    scenarios: &'a Scenarios,
    /// The ranks of every cut, ascending; empty where the place is free.
    members: Vec<Vec<Rank>>,
    live: Bits,
    /// Which cuts contain each rank, `[R]`.
    containing: Vec<Bits>,
    /// Which cuts confine each expert, `[E + 1]`; expert `E` is nobody and never confined.
    confining: Vec<Bits>,
    /// 1 / |S|, rounded down.
    shares: Vec<f32>,
    /// Confined load, `[MOST][padded B]`.
    confined: Vec<f32>,
    /// Confined load over |S|, `[MOST][padded B]`.
    bounds: Vec<f32>,
    /// The lower bound on every scenario's peak, `[padded B]`, whole tokens.
    peaks: Vec<f32>,
    /// When each cut was last of use: added, or found to decide a scenario.
    used: Vec<u64>,
    now: u64,
}

/// What the cuts say about a step that has not been taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effect {
    changes: [Change; 2],
    /// The cuts that confine the two experts after the step.
    after: [Bits; 2],
}

impl<'a> Cuts<'a> {
    /// No cut but the one of all ranks.
    pub(crate) fn new(scenarios: &'a Scenarios, seating: &Seating) -> Cuts<'a> {
        let padded = scenarios.padded();
        Cuts {
            scenarios,
            members: vec![vec![]; MOST],
            live: 0,
            containing: vec![0; seating.ranks()],
            confining: vec![0; seating.experts() + 1],
            shares: vec![0.0; MOST],
            confined: vec![0.0; MOST * padded],
            bounds: vec![0.0; MOST * padded],
            peaks: scenarios.floors().to_vec(),
            used: vec![0; MOST],
            now: 0,
        }
    }

    /// The lower bound on every scenario's peak in the present placement, `[padded B]`, whole tokens.
    pub(crate) fn peaks(&self) -> &[f32] {
        &self.peaks
    }

    /// What a step would do.
    pub(crate) fn effect(&self, seating: &Seating, changes: [Change; 2]) -> Effect {
        let after = changes.map(|Change { expert, from, to }| {
            if expert as usize == seating.experts() {
                return 0;
            }
            let stay = seating.hosts(expert).iter().filter(|&&host| Some(host) != from);
            stay.chain(to.iter()).fold(self.live, |cuts, &host| cuts & self.containing[host as usize])
        });
        Effect { changes, after }
    }

    /// The lower bound on every scenario's peak after a step, into `peaks`, `[padded B]`; `go_on` is asked after every block
    /// of scenarios, with how many are done and the bounds so far. False where it said no.
    pub(crate) fn price(
        &self,
        effect: &Effect,
        peaks: &mut [f32],
        mut go_on: impl FnMut(usize, usize, &[f32]) -> bool,
    ) -> bool {
        let [first, second] = effect.changes.map(|change| self.scenarios.row(change.expert as usize));
        let [one, two] = self.signs(effect);
        let changed = one.0 | one.1 | two.0 | two.1;
        let floors = self.scenarios.floors();
        for block in 0..self.scenarios.padded() / LANES {
            let lanes = |row: &[f32]| lanes(row, block);
            let mut most = lanes(floors);
            for cut in ones(self.live & !changed) {
                raise(&mut most, &lanes(self.row(&self.bounds, cut)));
            }
            let (a, b) = (lanes(first), lanes(second));
            for cut in ones(changed) {
                let (s, t, share) = (sign(one, cut), sign(two, cut), self.shares[cut]);
                let mut bounds = lanes(self.row(&self.confined, cut));
                for lane in 0..LANES {
                    bounds[lane] = (bounds[lane] + s * a[lane] + t * b[lane]) * share;
                }
                raise(&mut most, &bounds);
            }
            let (from, upto) = (block * LANES, (block + 1) * LANES);
            for (peak, most) in peaks[from..upto].iter_mut().zip(most) {
                *peak = up(most);
            }
            if !go_on(from, upto, peaks) {
                return false;
            }
        }
        true
    }

    /// Takes a step whose price is `peaks`; the seating takes it as well.
    pub(crate) fn apply(&mut self, effect: &Effect, peaks: &[f32]) {
        for (change, signs) in effect.changes.iter().zip(self.signs(effect)) {
            let padded = self.scenarios.padded();
            let row = self.scenarios.row(change.expert as usize);
            for cut in ones(signs.0 | signs.1) {
                let s = sign(signs, cut);
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

    /// Adds the cut of these ranks, ascending, unless it is there already; the cut that has been
    /// of no use for longest makes room where there is none.
    pub(crate) fn add(&mut self, seating: &Seating, ranks: &[u32]) {
        let same = |cut: usize| self.members[cut].iter().map(|&r| u32::from(r)).eq(ranks.iter().copied());
        if ranks.len() == seating.ranks() || ones(self.live).any(same) {
            return;
        }
        let free = (!self.live).trailing_zeros() as usize;
        let cut = if free < MOST { free } else { self.idlest() };
        self.remove(cut);
        let bit = 1 << cut;
        self.live |= bit;
        self.now += 1;
        self.used[cut] = self.now;
        self.members[cut] = ranks.iter().map(|&rank| rank as Rank).collect();
        for &rank in ranks {
            self.containing[rank as usize] |= bit;
        }
        self.shares[cut] = DOWN / ranks.len() as f32;
        let padded = self.scenarios.padded();
        let confined = &mut self.confined[cut * padded..(cut + 1) * padded];
        confined.fill(0.0);
        for expert in 0..seating.experts() {
            let hosts = seating.hosts(expert as u32);
            if !hosts.is_empty() && hosts.iter().all(|&host| self.containing[host as usize] & bit != 0) {
                self.confining[expert] |= bit;
                for (sum, load) in confined.iter_mut().zip(self.scenarios.row(expert)) {
                    *sum += load;
                }
            }
        }
        let bounds = &mut self.bounds[cut * padded..(cut + 1) * padded];
        for ((bound, confined), peak) in bounds.iter_mut().zip(confined).zip(&mut self.peaks) {
            *bound = *confined * self.shares[cut];
            *peak = peak.max(up(*bound));
        }
    }

    /// The cut that proves a scenario's peak, if any is needed: its ranks, and whether it confines an expert.
    pub(crate) fn tight(&mut self, scenario: usize) -> Option<(&[Rank], impl Fn(u32) -> bool + '_)> {
        let padded = self.scenarios.padded();
        let at = |cut: usize| self.bounds[cut * padded + scenario];
        let cut = ones(self.live).reduce(|best, cut| if at(cut) > at(best) { cut } else { best })?;
        let needed = at(cut) > self.scenarios.floors()[scenario];
        self.now += 1;
        self.used[cut] = self.now;
        let confining = &self.confining;
        let inside = move |expert: u32| confining[expert as usize] >> cut & 1 == 1;
        needed.then_some((&self.members[cut][..], inside))
    }

    /// For both changes, the cuts that come to confine the expert and those that cease to.
    fn signs(&self, effect: &Effect) -> [(Bits, Bits); 2] {
        let pair = |i: usize| {
            let before = self.confining[effect.changes[i].expert as usize];
            (effect.after[i] & !before, before & !effect.after[i])
        };
        [pair(0), pair(1)]
    }

    fn remove(&mut self, cut: usize) {
        let keep = !(1 << cut);
        self.live &= keep;
        self.containing.iter_mut().chain(&mut self.confining).for_each(|cuts| *cuts &= keep);
    }

    /// The cut that has been of no use for longest.
    fn idlest(&self) -> usize {
        (0..MOST).min_by_key(|&cut| self.used[cut]).unwrap_or(0)
    }

    fn row<'b>(&self, rows: &'b [f32], cut: usize) -> &'b [f32] {
        let padded = self.scenarios.padded();
        &rows[cut * padded..(cut + 1) * padded]
    }
}

/// One block of a row.
fn lanes(row: &[f32], block: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&row[block * LANES..(block + 1) * LANES]);
    lanes
}

/// The larger of two, lane by lane.
fn raise(most: &mut [f32; LANES], other: &[f32; LANES]) {
    for lane in 0..LANES {
        most[lane] = if most[lane] < other[lane] { other[lane] } else { most[lane] };
    }
}

/// The numbers of the bits that are set.
fn ones(mut bits: Bits) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let next = (bits != 0).then(|| bits.trailing_zeros() as usize);
        bits &= bits.wrapping_sub(1);
        next
    })
}

fn sign((plus, minus): (Bits, Bits), cut: usize) -> f32 {
    f32::from((plus >> cut & 1) as i8 - (minus >> cut & 1) as i8)
}

/// The next whole number, of numbers from 0 to 2^22; without a library call, so that it vectorises.
fn up(x: f32) -> f32 {
    // Beside 2^23, only whole numbers are left.
    const WHOLE: f32 = (1 << 23) as f32;
    let near = (x + WHOLE) - WHOLE;
    if near < x { near + 1.0 } else { near }
}

#[cfg(test)]
mod tests {
    use super::super::exact::Exact;
    use super::super::starts::starts;
    use super::*;
    use crate::place::recourse::seating::Step;
    use crate::trace::dice::Dice;
    use proptest::prelude::*;

    proptest! {
        /// Through any steps, kept or undone, with cuts coming and going, the bound never exceeds the exact peak, and
        /// reaches it in a scenario whose certificate was just added.
        #[test]
        fn bounds_stay_below_exact_peaks(seed: u64, ranks in 2usize..9, experts in 9usize..20, loads in 1u64..400) {
            let mut dice = Dice::new(seed, 0);
            let batches: Vec<Vec<u64>> =
                (0..40).map(|_| (0..experts).map(|_| dice.below(loads) * dice.below(3)).collect()).collect();
            let scenarios = Scenarios::new(experts, ranks, batches.iter().map(Vec::as_slice));
            let per_rank = experts.div_ceil(ranks) + 1;
            let mut seating = starts(&scenarios.shares(), &vec![per_rank; ranks], &mut dice).swap_remove(0);
            let mut cuts = Cuts::new(&scenarios, &seating);
            let mut peaks = vec![0.0; scenarios.padded()];
            let mut exact = Exact::default();
            for _ in 0..60 {
                let step = if dice.below(2) == 0 {
                    let slot = |dice: &mut Dice| dice.below((ranks * per_rank) as u64) as usize;
                    Step::Swap(slot(&mut dice), slot(&mut dice))
                } else {
                    Step::Retarget(dice.below((ranks * per_rank) as u64) as usize, dice.below(experts as u64) as u32)
                };
                if seating.allows(step) {
                    let effect = cuts.effect(&seating, seating.changes(step));
                    cuts.price(&effect, &mut peaks, |_, _, _| true);
                    cuts.apply(&effect, &peaks);
                    seating.apply(step);
                }
                let problem = Exact::problem(&seating).unwrap();
                for scenario in 0..scenarios.len() {
                    let (peak, certificate) = exact.peak(&problem, &scenarios, scenario).unwrap();
                    prop_assert!(cuts.peaks()[scenario] <= peak);
                    if peak > cuts.peaks()[scenario] && dice.below(2) == 0 {
                        cuts.add(&seating, certificate);
                        prop_assert!(cuts.peaks()[scenario] >= peak);
                    }
                }
            }
        }
    }
}
