//! Loads under a fixed rule: each replica's share of an expert's tokens depends on the expert's replicas
//! alone.
//!
//! In: scenarios, a placement, a [`ShareRule`]. Out: every rank's tokens in every scenario, the peaks, and
//! the peaks after a step that has not been taken. A step changes the hosts of two experts, so only the loads
//! of their ranks change. Pricing is exact, and far cheaper than an exact split.
//!
//! Loads are whole numbers below 2^24, and so exact in `f32` in any order of summation.

use super::incumbent::{HostChange, RankIndex, SearchPlacement};
use super::scenarios::{LANES, ScenarioSet};
use super::share_rule::ShareRule;
use crate::place::Placement;

/// Loads of the ranks of one placement in all scenarios, under a rule that depends on one expert at a time.
#[derive(Debug)]
pub(crate) struct RuleLoads<'a> {
    scenarios: &'a ScenarioSet,
    rule: ShareRule,
    /// Loads, `[R][padded B]`.
    loads: Vec<f32>,
    /// Load of the busiest rank, `[padded B]`.
    peaks: Vec<f32>,
    /// Loads of the ranks that a step changes, `[trial_ranks.len()][padded B]`, and the peaks with all other
    /// ranks.
    trial: Vec<f32>,
    trial_ranks: Vec<RankIndex>,
    trial_peaks: Vec<f32>,
    /// Position of a rank in `trial_ranks` plus 1, or 0 if it is not there, `[R]`.
    trial_of: Vec<u16>,
    hosts: Vec<RankIndex>,
    part: Vec<f32>,
}

impl<'a> RuleLoads<'a> {
    /// Computes the loads of a placement.
    pub(crate) fn new(
        scenarios: &'a ScenarioSet,
        mut rule: ShareRule,
        seating: &SearchPlacement,
    ) -> RuleLoads<'a> {
        let (ranks, padded) = (seating.ranks(), scenarios.padded_len());
        let loads = search_placement_loads(scenarios, &mut rule, seating);
        RuleLoads {
            scenarios,
            rule,
            peaks: max_over_ranks(&loads, padded),
            loads,
            trial: vec![],
            trial_ranks: vec![],
            trial_peaks: vec![0.0; padded],
            trial_of: vec![0; ranks],
            hosts: vec![],
            part: vec![0.0; padded],
        }
    }

    /// Returns the load of the busiest rank in every scenario, `[padded B]`.
    pub(crate) fn peaks(&self) -> &[f32] {
        &self.peaks
    }

    /// Returns the peaks after a step that has not been taken, `[padded B]`. [`RuleLoads::apply`] takes it.
    pub(crate) fn price(&mut self, seating: &SearchPlacement, changes: [HostChange; 2]) -> &[f32] {
        let padded = self.scenarios.padded_len();
        for &rank in &self.trial_ranks {
            self.trial_of[rank as usize] = 0;
        }
        self.trial_ranks.clear();
        self.trial.clear();
        for HostChange { expert, from, to } in changes {
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
                    self.rule.replica_part(self.scenarios, expert, &self.hosts, at, &mut self.part);
                    let rank = self.hosts[at];
                    let row = self.trial_row(rank);
                    add_scaled(&mut self.trial[row * padded..(row + 1) * padded], &self.part, sign);
                }
            }
        }
        self.trial_peaks.fill(0.0);
        for (rank, row) in self.loads.chunks(padded.max(1)).enumerate() {
            let row = match self.trial_of[rank] {
                0 => row,
                at => &self.trial[(at as usize - 1) * padded..at as usize * padded],
            };
            raise_peaks(&mut self.trial_peaks, row);
        }
        &self.trial_peaks
    }

    /// Takes the step that was priced last.
    pub(crate) fn apply(&mut self) {
        let padded = self.scenarios.padded_len();
        for (row, &rank) in self.trial_ranks.iter().enumerate() {
            let rank = rank as usize * padded;
            self.loads[rank..rank + padded].copy_from_slice(&self.trial[row * padded..(row + 1) * padded]);
        }
        self.peaks.copy_from_slice(&self.trial_peaks);
    }

    /// Returns the busiest rank in a scenario.
    pub(crate) fn busiest_rank(&self, scenario: usize) -> RankIndex {
        let padded = self.scenarios.padded_len();
        let at = |rank: usize| self.loads[rank * padded + scenario];
        let ranks = self.loads.len() / padded.max(1);
        (1..ranks).fold(0, |best, rank| if at(rank) > at(best) { rank } else { best }) as RankIndex
    }

    /// Returns the row of `trial` for a rank. A new row begins as the rank's load.
    fn trial_row(&mut self, rank: RankIndex) -> usize {
        let (at, padded) = (rank as usize, self.scenarios.padded_len());
        if self.trial_of[at] == 0 {
            self.trial_ranks.push(rank);
            self.trial_of[at] = self.trial_ranks.len() as u16;
            self.trial.extend_from_slice(&self.loads[at * padded..(at + 1) * padded]);
        }
        self.trial_of[at] as usize - 1
    }
}

/// Returns the load of the busiest rank in every scenario, `[padded B]`. The placement may have replicas that
/// share a rank.
pub(crate) fn placement_peaks(
    scenarios: &ScenarioSet,
    rule: &mut ShareRule,
    placement: &Placement,
) -> Vec<f32> {
    let per_rank = placement.slots_per_rank().max(1);
    let shape = (placement.experts(), placement.ranks());
    let loads = rank_loads(scenarios, rule, shape, |expert, hosts| {
        let slots = placement.replicas(expert as usize).iter();
        hosts.extend(slots.map(|&slot| (slot as usize / per_rank) as RankIndex));
    });
    max_over_ranks(&loads, scenarios.padded_len())
}

/// Returns the load of the busiest rank in every scenario, `[padded B]`, under a rule that is used again.
pub(crate) fn search_placement_peaks(
    scenarios: &ScenarioSet,
    rule: &mut ShareRule,
    seating: &SearchPlacement,
) -> Vec<f32> {
    max_over_ranks(&search_placement_loads(scenarios, rule, seating), scenarios.padded_len())
}

fn search_placement_loads(
    scenarios: &ScenarioSet,
    rule: &mut ShareRule,
    seating: &SearchPlacement,
) -> Vec<f32> {
    rank_loads(scenarios, rule, (seating.experts(), seating.ranks()), |expert, hosts| {
        hosts.extend_from_slice(seating.hosts(expert));
        hosts.sort_unstable();
    })
}

/// Returns the loads of all ranks, `[R][padded B]`. `list_hosts` lists the ranks of an expert's replicas in
/// the order of slots.
fn rank_loads(
    scenarios: &ScenarioSet,
    rule: &mut ShareRule,
    (experts, ranks): (usize, usize),
    list_hosts: impl Fn(u32, &mut Vec<RankIndex>),
) -> Vec<f32> {
    let padded = scenarios.padded_len();
    let mut loads = vec![0.0; ranks * padded];
    let (mut hosts, mut part) = (vec![], vec![0.0; padded]);
    for expert in 0..experts as u32 {
        hosts.clear();
        list_hosts(expert, &mut hosts);
        for at in 0..hosts.len() {
            rule.replica_part(scenarios, expert, &hosts, at, &mut part);
            let rank = hosts[at] as usize;
            add_scaled(&mut loads[rank * padded..(rank + 1) * padded], &part, 1.0);
        }
    }
    loads
}

fn max_over_ranks(loads: &[f32], padded: usize) -> Vec<f32> {
    let mut peaks = vec![0.0; padded];
    for row in loads.chunks(padded.max(1)) {
        raise_peaks(&mut peaks, row);
    }
    peaks
}

fn add_scaled(to: &mut [f32], part: &[f32], sign: f32) {
    for (to, part) in to.chunks_exact_mut(LANES).zip(part.chunks_exact(LANES)) {
        for lane in 0..LANES {
            to[lane] += sign * part[lane];
        }
    }
}

fn raise_peaks(to: &mut [f32], row: &[f32]) {
    for (to, row) in to.chunks_exact_mut(LANES).zip(row.chunks_exact(LANES)) {
        for lane in 0..LANES {
            to[lane] = if to[lane] < row[lane] { row[lane] } else { to[lane] };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::initial::initial_placements;
    use super::*;
    use crate::cluster::Cluster;
    use crate::rng::SeededRng;
    use crate::split::{Split, SplitMethod, Splitter, StackDispatch};
    use evenkeel_solver::SlotChange;
    use proptest::prelude::*;

    const RULES: [SplitMethod; 4] = [
        SplitMethod::Even,
        SplitMethod::Stack(StackDispatch::Vllm),
        SplitMethod::Stack(StackDispatch::VllmAscend),
        SplitMethod::Stack(StackDispatch::Trtllm),
    ];

    proptest! {
        /// States that the peaks equal those of the split method, to the token, through any steps, taken or
        /// not.
        #[test]
        fn peaks_are_the_split_methods(
            seed: u64, ranks in 2usize..9, experts in 9usize..20, loads in 1u64..400, rule in prop::sample::select(RULES.to_vec()),
        ) {
            let mut dice = SeededRng::new(seed, 0);
            let batches: Vec<Vec<u64>> =
                (0..10).map(|_| (0..experts).map(|_| dice.draw_below(loads) * dice.draw_below(3)).collect()).collect();
            let scenarios = ScenarioSet::new(experts, ranks, batches.iter().map(Vec::as_slice));
            let per_rank = experts.div_ceil(ranks) + 1;
            let cluster = Cluster::new(ranks, 1, experts, ranks * per_rank - experts).unwrap();
            let mut seating = initial_placements(&scenarios.expert_shares(), &vec![per_rank; ranks], &mut dice).swap_remove(0);
            let mut loads = RuleLoads::new(&scenarios, ShareRule::new(rule, &cluster), &seating);
            for _ in 0..30 {
                let slot = |dice: &mut SeededRng| dice.draw_below((ranks * per_rank) as u64) as usize;
                let step = match dice.draw_below(2) {
                    0 => SlotChange::Swap(slot(&mut dice), slot(&mut dice)),
                    _ => SlotChange::Replace(slot(&mut dice), dice.draw_below(experts as u64) as u32),
                };
                if seating.allows_step(step) {
                    loads.price(&seating, seating.step_changes(step));
                    if dice.draw_below(2) == 0 {
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
                let busiest = loads.busiest_rank(scenario) as usize;
                prop_assert_eq!(split.rank_loads[busiest], split.peak());
            }
        }
    }

    #[test]
    fn on_several_nodes_the_nearest_replica_serves_more() {
        // Four ranks are on two nodes, and both replicas on the first node. The ranks of the second node
        // share them.
        let scenarios = ScenarioSet::new(1, 4, [&[400u64][..]]);
        let rule = SplitMethod::Stack(StackDispatch::SglangStatic);
        let mut rule = ShareRule::new(rule, &Cluster::new(4, 2, 1, 3).unwrap());
        let mut part = vec![0.0; scenarios.padded_len()];
        let mut parts = |hosts: &[RankIndex]| -> Vec<f32> {
            (0..hosts.len())
                .map(|at| {
                    rule.replica_part(&scenarios, 0, hosts, at, &mut part);
                    part[0]
                })
                .collect()
        };
        assert_eq!(parts(&[0, 1]), [200.0, 200.0]);
        assert_eq!(parts(&[0, 2]), [200.0, 200.0]);
        assert_eq!(parts(&[0, 1, 2]), [100.0, 100.0, 200.0]);
    }
}
