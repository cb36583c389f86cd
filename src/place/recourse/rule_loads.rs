//! Loads under a fixed rule: each replica's part of an expert's tokens follows from the expert's replicas alone.
//!
//! In: scenarios, a placement, a [`ShareRule`]. Out: every rank's tokens in every scenario, the busiest rank's, and the same
//! after a step that has not been taken. A step changes the hosts of two experts, so only their ranks' loads change: pricing
//! is exact, and far cheaper than an exact split.
//!
//! Loads are whole numbers below 2^24 and so exact in `f32`, in any order of summation.

use super::scenarios::{LANES, Scenarios};
use super::seating::{Change, Rank, Seating};
use super::share_rule::ShareRule;
use crate::place::Placement;

/// The ranks' loads of one placement in all scenarios, under a rule that looks at one expert at a time.
#[derive(Debug)]
pub(crate) struct RuleLoads<'a> {
    scenarios: &'a Scenarios,
    rule: ShareRule,
    /// `[R][padded B]`
    loads: Vec<f32>,
    /// The busiest rank's load, `[padded B]`.
    peaks: Vec<f32>,
    /// The loads of the ranks that a step changes, `[ranks.len()][padded B]`, and their peaks with all others.
    trial: Vec<f32>,
    trial_ranks: Vec<Rank>,
    trial_peaks: Vec<f32>,
    /// Where a rank stands in `trial_ranks`, plus 1; 0 where it does not, `[R]`.
    trial_of: Vec<u16>,
    hosts: Vec<Rank>,
    part: Vec<f32>,
}

impl<'a> RuleLoads<'a> {
    /// The loads of a placement.
    pub(crate) fn new(scenarios: &'a Scenarios, rule: ShareRule, seating: &Seating) -> RuleLoads<'a> {
        let (ranks, padded) = (seating.ranks(), scenarios.padded());
        let mut new = RuleLoads {
            scenarios,
            rule,
            loads: vec![0.0; ranks * padded],
            peaks: vec![0.0; padded],
            trial: vec![],
            trial_ranks: vec![],
            trial_peaks: vec![0.0; padded],
            trial_of: vec![0; ranks],
            hosts: vec![],
            part: vec![0.0; padded],
        };
        for expert in 0..seating.experts() as u32 {
            new.hosts.clear();
            new.hosts.extend_from_slice(seating.hosts(expert));
            new.hosts.sort_unstable();
            for at in 0..new.hosts.len() {
                new.rule.part(scenarios, expert, &new.hosts, at, &mut new.part);
                let rank = new.hosts[at] as usize;
                add(&mut new.loads[rank * padded..(rank + 1) * padded], &new.part, 1.0);
            }
        }
        new.peaks = peaks(&new.loads, padded);
        new
    }

    /// The busiest rank's load in every scenario, `[padded B]`.
    pub(crate) fn peaks(&self) -> &[f32] {
        &self.peaks
    }

    /// The peaks after a step that has not been taken, `[padded B]`. [`RuleLoads::apply`] takes it.
    pub(crate) fn price(&mut self, seating: &Seating, changes: [Change; 2]) -> &[f32] {
        let padded = self.scenarios.padded();
        for &rank in &self.trial_ranks {
            self.trial_of[rank as usize] = 0;
        }
        self.trial_ranks.clear();
        self.trial.clear();
        for Change { expert, from, to } in changes {
            if expert as usize == seating.experts() {
                continue;
            }
            for sign in [-1.0, 1.0] {
                self.hosts.clear();
                self.hosts.extend_from_slice(seating.hosts(expert));
                if sign > 0.0 {
                    self.hosts.retain(|&host| Some(host) != from);
                    self.hosts.extend(to);
                }
                self.hosts.sort_unstable();
                for at in 0..self.hosts.len() {
                    self.rule.part(self.scenarios, expert, &self.hosts, at, &mut self.part);
                    let rank = self.hosts[at];
                    let row = self.trial_row(rank);
                    add(&mut self.trial[row * padded..(row + 1) * padded], &self.part, sign);
                }
            }
        }
        self.trial_peaks.fill(0.0);
        for (rank, row) in self.loads.chunks(padded.max(1)).enumerate() {
            let row = match self.trial_of[rank] {
                0 => row,
                at => &self.trial[(at as usize - 1) * padded..at as usize * padded],
            };
            raise(&mut self.trial_peaks, row);
        }
        &self.trial_peaks
    }

    /// Takes the step that was priced last.
    pub(crate) fn apply(&mut self) {
        let padded = self.scenarios.padded();
        for (row, &rank) in self.trial_ranks.iter().enumerate() {
            let rank = rank as usize * padded;
            self.loads[rank..rank + padded].copy_from_slice(&self.trial[row * padded..(row + 1) * padded]);
        }
        self.peaks.copy_from_slice(&self.trial_peaks);
    }

    /// The rank that has the peak in a scenario.
    pub(crate) fn busiest(&self, scenario: usize) -> Rank {
        let padded = self.scenarios.padded();
        let at = |rank: usize| self.loads[rank * padded + scenario];
        let ranks = self.loads.len() / padded.max(1);
        (1..ranks).fold(0, |best, rank| if at(rank) > at(best) { rank } else { best }) as Rank
    }

    /// The row of `trial` for a rank, which begins as the rank's load.
    fn trial_row(&mut self, rank: Rank) -> usize {
        let (at, padded) = (rank as usize, self.scenarios.padded());
        if self.trial_of[at] == 0 {
            self.trial_ranks.push(rank);
            self.trial_of[at] = self.trial_ranks.len() as u16;
            self.trial.extend_from_slice(&self.loads[at * padded..(at + 1) * padded]);
        }
        self.trial_of[at] as usize - 1
    }
}

/// The busiest rank's load in every scenario, `[padded B]`, of any placement, also with replicas that share a rank.
pub(crate) fn placement_peaks(
    scenarios: &Scenarios,
    rule: &mut ShareRule,
    placement: &Placement,
) -> Vec<f32> {
    let (padded, per_rank) = (scenarios.padded(), placement.slots_per_rank().max(1));
    let mut loads = vec![0.0; placement.ranks() * padded];
    let (mut hosts, mut part) = (vec![], vec![0.0; padded]);
    for expert in 0..placement.experts() {
        hosts.clear();
        hosts.extend(placement.copies(expert).iter().map(|&slot| (slot as usize / per_rank) as Rank));
        for at in 0..hosts.len() {
            rule.part(scenarios, expert as u32, &hosts, at, &mut part);
            let rank = hosts[at] as usize;
            add(&mut loads[rank * padded..(rank + 1) * padded], &part, 1.0);
        }
    }
    peaks(&loads, padded)
}

fn peaks(loads: &[f32], padded: usize) -> Vec<f32> {
    let mut peaks = vec![0.0; padded];
    for row in loads.chunks(padded.max(1)) {
        raise(&mut peaks, row);
    }
    peaks
}

fn add(to: &mut [f32], part: &[f32], sign: f32) {
    for (to, part) in to.chunks_exact_mut(LANES).zip(part.chunks_exact(LANES)) {
        for lane in 0..LANES {
            to[lane] += sign * part[lane];
        }
    }
}

fn raise(to: &mut [f32], row: &[f32]) {
    for (to, row) in to.chunks_exact_mut(LANES).zip(row.chunks_exact(LANES)) {
        for lane in 0..LANES {
            to[lane] = if to[lane] < row[lane] { row[lane] } else { to[lane] };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::seating::Step;
    use super::super::starts::starts;
    use super::*;
    use crate::cluster::Cluster;
    use crate::split::{Method, Split, Splitter, StackDispatch};
    use crate::trace::dice::Dice;
    use proptest::prelude::*;

    const RULES: [Method; 4] = [
        Method::Even,
        Method::Stack(StackDispatch::Vllm),
        Method::Stack(StackDispatch::VllmAscend),
        Method::Stack(StackDispatch::Trtllm),
    ];

    proptest! {
        /// Through any steps, taken or not, the peaks are those of the split method itself, to the token.
        #[test]
        fn peaks_are_the_split_methods(
            seed: u64, ranks in 2usize..9, experts in 9usize..20, loads in 1u64..400, rule in prop::sample::select(RULES.to_vec()),
        ) {
            let mut dice = Dice::new(seed, 0);
            let batches: Vec<Vec<u64>> =
                (0..10).map(|_| (0..experts).map(|_| dice.below(loads) * dice.below(3)).collect()).collect();
            let scenarios = Scenarios::new(experts, ranks, batches.iter().map(Vec::as_slice));
            let per_rank = experts.div_ceil(ranks) + 1;
            let cluster = Cluster::new(ranks, 1, experts, ranks * per_rank - experts).unwrap();
            let mut seating = starts(&scenarios.shares(), &vec![per_rank; ranks], &mut dice).swap_remove(0);
            let mut loads = RuleLoads::new(&scenarios, ShareRule::new(rule, &cluster), &seating);
            for _ in 0..30 {
                let slot = |dice: &mut Dice| dice.below((ranks * per_rank) as u64) as usize;
                let step = match dice.below(2) {
                    0 => Step::Swap(slot(&mut dice), slot(&mut dice)),
                    _ => Step::Retarget(slot(&mut dice), dice.below(experts as u64) as u32),
                };
                if seating.allows(step) {
                    loads.price(&seating, seating.changes(step));
                    if dice.below(2) == 0 {
                        loads.apply();
                        seating.apply(step);
                    }
                }
            }
            let placement = seating.placement().unwrap();
            let mut splitter = Splitter::new(placement.clone(), rule).unwrap();
            let mut split = Split::default();
            let whole = placement_peaks(&scenarios, &mut ShareRule::new(rule, &cluster), &placement);
            for (scenario, whole) in whole.iter().enumerate().take(scenarios.len()) {
                let batch: Vec<u64> = scenarios.loads(scenario).iter().map(|&load| u64::from(load)).collect();
                splitter.split(&batch, &mut split).unwrap();
                prop_assert_eq!(loads.peaks()[scenario] as u64, split.peak());
                prop_assert_eq!(*whole as u64, split.peak());
                let busiest = loads.busiest(scenario) as usize;
                prop_assert_eq!(split.rank_loads[busiest], split.peak());
            }
        }
    }

    #[test]
    fn on_several_nodes_the_nearest_replica_serves_more() {
        // Four ranks on two nodes. Both replicas are on the first node: its other ranks go to the first one.
        let scenarios = Scenarios::new(1, 4, [&[400u64][..]]);
        let rule = Method::Stack(StackDispatch::SglangStatic);
        let mut rule = ShareRule::new(rule, &Cluster::new(4, 2, 1, 3).unwrap());
        let mut part = vec![0.0; scenarios.padded()];
        let mut parts = |hosts: &[Rank]| -> Vec<f32> {
            (0..hosts.len())
                .map(|at| {
                    rule.part(&scenarios, 0, hosts, at, &mut part);
                    part[0]
                })
                .collect()
        };
        assert_eq!(parts(&[0, 1]), [200.0, 200.0]);
        assert_eq!(parts(&[0, 2]), [200.0, 200.0]);
        assert_eq!(parts(&[0, 1, 2]), [100.0, 100.0, 200.0]);
    }
}
