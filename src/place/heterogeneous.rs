//! Placement for unequal ranks: faster ranks should carry more.
//!
//! In: any policy and the speed of each rank. Out: the policy that places for these speeds. Policies plan for
//! equal ranks, and their result is one start here. In it, the parts with the highest load go to the fastest
//! ranks of the same node. A second start distributes replicas from scratch. The heaviest comes first, and
//! each goes to the rank with the lowest load for its speed. The second start ignores groups, so it is used
//! on one node only. The better start, by exact splits at these speeds, is refined by single moves. They are
//! judged in the same way, until none helps.

use super::evaluate::PeakEvaluator;
use super::partial::PartialPlacement;
use super::refine::{MAX_JUDGED_BATCHES, RefineLimits, refine_on_batches};
use super::relabel::relabel_equals;
use super::{PlaceError, Placement, Policy};
use crate::cluster::Cluster;
use crate::forecast::History;
use std::cmp::Reverse;

/// Policy for ranks of unequal speeds.
#[derive(Debug)]
pub struct SpeedAware<P> {
    policy: P,
    speeds: Vec<u32>,
}

impl<P: std::ops::Deref<Target = dyn Policy>> SpeedAware<P> {
    /// Creates the policy from any policy and the speed of each rank, `[R]`. A rank of speed 2 does twice the
    /// work.
    pub fn new(policy: P, speeds: Vec<u32>) -> Self {
        Self { policy, speeds }
    }

    fn refine_for_speeds(
        &self,
        from: &Placement,
        towards: Option<&Placement>,
        max_moves: usize,
        history: &History<'_>,
        cluster: &Cluster,
    ) -> Result<Placement, PlaceError> {
        let how = RefineLimits { towards, max_moves, least_gain: 0, needs: &[] };
        refine_on_batches(from, &mut self.peak_evaluator(history), cluster, &how)
    }

    fn peak_evaluator<'a>(&self, history: &History<'a>) -> PeakEvaluator<'a> {
        PeakEvaluator::from_history(history, MAX_JUDGED_BATCHES).with_speeds(&self.speeds)
    }
}

impl<P: std::ops::Deref<Target = dyn Policy> + Send + Sync> Policy for SpeedAware<P> {
    fn name(&self) -> String {
        format!("{}, for speeds", self.policy.name())
    }

    fn place(&self, history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError> {
        if self.speeds.len() != cluster.ranks() || self.speeds.contains(&0) {
            let reason = format!(
                "{} speeds for {} ranks: expected one whole number from 1 for each rank",
                self.speeds.len(),
                cluster.ranks()
            );
            return Err(PlaceError::Shape { policy: self.name(), reason });
        }
        let equal = self.policy.place(history, cluster)?;
        let mut starts = vec![permute_by_speed(&equal, history.totals(), cluster, &self.speeds)?];
        if cluster.nodes() == 1 {
            starts.extend(place_by_speed(history.totals(), cluster, &self.speeds));
        }
        let mut scenarios = self.peak_evaluator(history);
        let mut best: Option<(u64, Placement)> = None;
        for start in starts {
            let sum = scenarios.sum_for_placement(&start)?;
            if best.as_ref().is_none_or(|(least, _)| sum < *least) {
                best = Some((sum, start));
            }
        }
        let start = best.map_or(equal, |(_, start)| start);
        self.refine_for_speeds(&start, None, cluster.slots(), history, cluster)
    }

    fn replan(
        &self,
        history: &History<'_>,
        cluster: &Cluster,
        previous: &Placement,
        max_moves: Option<usize>,
    ) -> Result<Placement, PlaceError> {
        let new = self.place(history, cluster)?;
        // Only ranks of the same speed may exchange names.
        let new = relabel_equals(previous, &new, cluster, |old, new| self.speeds[old] == self.speeds[new])?;
        match max_moves {
            Some(most) if new.moves_from(previous) > most => {
                self.refine_for_speeds(previous, Some(&new), most, history, cluster)
            }
            _ => Ok(new),
        }
    }
}

/// Moves the parts to other ranks of their node: the part with the highest load, evenly split, goes to the
/// fastest rank.
fn permute_by_speed(
    placement: &Placement,
    totals: &[u64],
    cluster: &Cluster,
    speeds: &[u32],
) -> Result<Placement, PlaceError> {
    let loads = PartialPlacement::from_placement(placement).even_loads(totals);
    let (ranks, per_rank) = (cluster.ranks(), cluster.slots_per_rank());
    let mut slots = vec![None; cluster.slots()];
    let filled = |rank: usize| placement.slots()[rank * per_rank..][..per_rank].iter().flatten();
    for node in 0..cluster.nodes() {
        let of_node = || (0..ranks).filter(|&rank| cluster.node_of(rank) == node);
        let (mut parts, mut places): (Vec<usize>, Vec<usize>) = (of_node().collect(), of_node().collect());
        parts.sort_by_key(|&rank| Reverse(loads[rank]));
        places.sort_by_key(|&rank| Reverse(speeds[rank]));
        // Full parts choose first. A part then goes to the fastest rank that has enough slots.
        parts.sort_by_key(|&rank| Reverse(filled(rank).count() > cluster.slots_per_rank() - 1));
        for part in parts {
            let fits = places.iter().position(|&rank| filled(part).count() <= cluster.slots_of(rank));
            let Some(at) = fits else { return Ok(placement.clone()) };
            let rank = places.remove(at);
            for (slot, &expert) in filled(part).enumerate() {
                slots[rank * per_rank + slot] = Some(expert);
            }
        }
    }
    Ok(Placement::new(placement.experts(), ranks, slots)?)
}

/// Gives replicas to the largest load per replica. Then it places all replicas, heaviest first, each on the
/// rank with room and the lowest load for its speed. Returns `None` if no rank can take a replica.
fn place_by_speed(totals: &[u64], cluster: &Cluster, speeds: &[u32]) -> Option<Placement> {
    let (experts, ranks) = (totals.len(), cluster.ranks());
    let mut copies = vec![1u64; experts];
    for _ in experts..cluster.usable_slots() {
        let open = (0..experts).filter(|&e| copies[e] < ranks as u64);
        let Some(most) = open.max_by_key(|&e| (totals[e] / copies[e], Reverse(e))) else { break };
        copies[most] += 1;
    }
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by_key(|&e| Reverse(totals[e] / copies[e]));
    let (mut held, mut loads): (Vec<Vec<u32>>, Vec<u64>) = (vec![vec![]; ranks], vec![0; ranks]);
    for expert in order {
        let share = totals[expert] / copies[expert];
        for _ in 0..copies[expert] {
            let open = (0..ranks)
                .filter(|&r| held[r].len() < cluster.slots_of(r) && !held[r].contains(&(expert as u32)));
            let after = |&rank: &usize| {
                (u128::from(loads[rank].saturating_add(share)) << 16) / u128::from(speeds[rank])
            };
            let rank = open.min_by_key(after)?;
            held[rank].push(expert as u32);
            loads[rank] = loads[rank].saturating_add(share);
        }
    }
    let width = cluster.slots_per_rank();
    let slots = held.iter().flat_map(|own| (0..width).map(|slot| own.get(slot).copied()));
    Placement::new(experts, ranks, slots.collect()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place;
    use crate::trace::Trace;
    use proptest::prelude::*;

    fn sum(placement: &Placement, history: &History<'_>, speeds: &[u32]) -> u64 {
        PeakEvaluator::from_history(history, MAX_JUDGED_BATCHES)
            .with_speeds(speeds)
            .sum_for_placement(placement)
            .unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn never_worse_than_planning_for_equal_ranks(
            loads in prop::collection::vec(1u64..100, 4 * 12),
            speeds in prop::collection::vec(1u32..5, 4),
            name in prop::sample::select(vec!["contiguous", "eplb", "lplb:ring"]),
            most in 0usize..6,
        ) {
            let trace = Trace::from_loads(12, vec![0], (0..4).map(|s| s.to_string()).collect(), loads).unwrap();
            let cluster = Cluster::new(4, 1, 12, 4).unwrap();
            let history = History::from_trace(&trace, 0);
            let plain = place::policy(name, 1, &cluster).unwrap();
            let equal = plain.place(&history, &cluster).unwrap();
            let fast = SpeedAware::new(plain, speeds.clone());
            let placed = fast.place(&history, &cluster).unwrap();
            let turned = permute_by_speed(&equal, history.totals(), &cluster, &speeds).unwrap();
            prop_assert!(sum(&placed, &history, &speeds) <= sum(&turned, &history, &speeds));
            let after = fast.replan(&history, &cluster, &equal, Some(most)).unwrap();
            prop_assert!(after.moves_from(&equal) <= most);
            prop_assert!(sum(&after, &history, &speeds) <= sum(&equal, &history, &speeds));
            // A placement that already fits the speeds does not change.
            prop_assert_eq!(fast.replan(&history, &cluster, &placed, None).unwrap().moves_from(&placed), 0);
        }
    }

    #[test]
    fn the_fast_rank_gets_the_heavy_part() {
        let trace = Trace::from_loads(4, vec![0], vec!["0".into()], vec![30, 30, 20, 20]).unwrap();
        let cluster = Cluster::new(2, 1, 4, 0).unwrap();
        let history = History::from_trace(&trace, 0);
        let policy = SpeedAware::new(place::policy("contiguous", 1, &cluster).unwrap(), vec![2, 3]);
        let placed = policy.place(&history, &cluster).unwrap();
        assert_eq!((placed.ranks_of(0), placed.ranks_of(1)), (vec![1], vec![1]));
        let wrong = SpeedAware::new(place::policy("contiguous", 1, &cluster).unwrap(), vec![2]);
        let message = wrong.place(&history, &cluster).unwrap_err().to_string();
        assert!(message.contains("1 speeds for 2 ranks"), "{message}");
    }
}
