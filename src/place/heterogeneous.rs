//! Placement for unequal ranks: faster ranks should carry more.
//!
//! In: a placement for equal ranks, and the speed of each rank. Out: a placement for these speeds. The
//! placement for equal ranks is one start. In it, the parts with the highest load go to the fastest
//! ranks of the same node. A second start distributes replicas from scratch. The heaviest comes first, and
//! each goes to the rank with the lowest load for its speed. The second start ignores groups, so it is used
//! on one node only. The better start, by exact splits at these speeds, is refined by single moves. They are
//! judged in the same way, until none helps.

use super::evaluate::PeakEvaluator;
use super::partial::PartialPlacement;
use super::refine::{RefineLimits, refine_on_batches};
use super::{PlaceError, PlaceRequest, Placement};
use crate::cluster::Cluster;
use std::cmp::Reverse;

/// Returns a placement for ranks of these speeds, `[R]`, from a placement for equal ranks. `scenarios` are
/// judged at the speeds.
pub(super) fn place_for_speeds(
    equal: &Placement,
    request: &PlaceRequest<'_>,
    speeds: &[u32],
    scenarios: &mut PeakEvaluator<'_>,
) -> Result<Placement, PlaceError> {
    let (totals, cluster) = (request.history.totals(), request.cluster);
    let mut best = permute_by_speed(equal, totals, cluster, speeds)?;
    if cluster.nodes() == 1
        && let Some(start) = place_by_speed(totals, cluster, speeds)
        && scenarios.sum_for_placement(&start)? < scenarios.sum_for_placement(&best)?
    {
        best = start;
    }
    refine_on_batches(&best, scenarios, cluster, &RefineLimits::of_moves(cluster.slots()))
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
    use crate::forecast::History;
    use crate::place::refine::MAX_JUDGED_BATCHES;
    use crate::place::{self, Constrained, Policy as _};
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
            let request = PlaceRequest::new(&history, &cluster);
            let equal = plain.place(&request).unwrap().placement;
            let fast = Constrained::new(plain).speeds(speeds.clone());
            let placed = fast.place(&request).unwrap().placement;
            let turned = permute_by_speed(&equal, history.totals(), &cluster, &speeds).unwrap();
            prop_assert!(sum(&placed, &history, &speeds) <= sum(&turned, &history, &speeds));
            let after = fast.place(&request.previous(&equal).max_moves(most)).unwrap().placement;
            prop_assert!(after.moves_from(&equal) <= most);
            prop_assert!(sum(&after, &history, &speeds) <= sum(&equal, &history, &speeds));
            // A placement that already fits the speeds does not change.
            let again = fast.place(&request.previous(&placed)).unwrap().placement;
            prop_assert_eq!(again.moves_from(&placed), 0);
        }
    }

    #[test]
    fn the_fast_rank_gets_the_heavy_part() {
        let trace = Trace::from_loads(4, vec![0], vec!["0".into()], vec![30, 30, 20, 20]).unwrap();
        let cluster = Cluster::new(2, 1, 4, 0).unwrap();
        let history = History::from_trace(&trace, 0);
        let request = PlaceRequest::new(&history, &cluster);
        let policy = Constrained::new(place::policy("contiguous", 1, &cluster).unwrap()).speeds(vec![2, 3]);
        let placed = policy.place(&request).unwrap().placement;
        assert_eq!((placed.ranks_of(0), placed.ranks_of(1)), (vec![1], vec![1]));
        let wrong = Constrained::new(place::policy("contiguous", 1, &cluster).unwrap()).speeds(vec![2]);
        let message = wrong.place(&request).unwrap_err().to_string();
        assert!(message.contains("1 speeds for 2 ranks"), "{message}");
    }
}
