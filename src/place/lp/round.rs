//! The policy `lp-round`: fixed homes and relaxed redundant slots, rounded and repaired.
//!
//! **The programme.** The plain relaxation over (expert, rank) pairs is useless: a part `S / E` of every
//! expert on every rank reaches the mean. So every expert first gets a home, heaviest first on the least
//! loaded rank. The free slots of a rank are then shared by the experts of other ranks, as parts `z[e][r]` of
//! a replica each. A replica serves no more than its part of the expert's load:
//!
//! ```text
//!   min  Σ_b T_b
//!        0 ≤ z_er ≤ 1,  Σ_e z_er ≤ free slots of r            r not the home of e
//!        0 ≤ q_ber ≤ load_be · z_er,  Σ_r q_ber ≤ load_be     the rest stays at home
//!        load of r in b  ≤  T_b,   T_b ≥ 1                    loads in units of the batch's mean
//! ```
//!
//! This programme binds: load that leaves a full rank goes through replicas, whose number is that of the
//! slots. **Rounding:** replicas are placed in the order of `z`, as slots allow. **Repair:** empty slots go
//! to the largest load per replica. Then single exact moves follow, until none lowers the peaks.
//!
//! HiGHS solves the programme with the feature `highs`, Clarabel without it. Engines differ in the last
//! digits, and so may the placements.

use super::super::refine::{RefineLimits, refine_placement};
use super::super::{PlaceError, PlaceRequest, PlaceResponse, Placement, Policy};
use super::{MAX_BATCHES, policy_error, sample_batches};
use crate::cluster::Cluster;
use crate::forecast::History;
use good_lp::{Expression, ProblemVariables, Solution as _, SolverModel as _, Variable, variable};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Policy by a linear programme with fixed homes, rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LpRound;

/// Highest number of flow variables. The programme has fewer batches if it would exceed this number.
const MAX_FLOWS: usize = 12_000;
/// Part of a replica below which it is ignored.
const MIN_REPLICA_PART: f64 = 1e-3;

impl Policy for LpRound {
    fn name(&self) -> String {
        "lp-round".into()
    }

    fn place(&self, request: &PlaceRequest<'_>) -> Result<PlaceResponse, PlaceError> {
        request.respond_with(Self::place_from_scratch(request.history, request.cluster)?)
    }
}

impl LpRound {
    fn place_from_scratch(history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError> {
        let (experts, ranks) = (history.experts(), cluster.ranks());
        let homes = assign_homes(history.totals(), cluster)?;
        let mut held: Vec<Vec<u32>> = vec![vec![]; ranks];
        for (expert, &home) in homes.iter().enumerate() {
            held[home].push(expert as u32);
        }
        let free: Vec<usize> = (0..ranks).map(|rank| cluster.slots_of(rank) - held[rank].len()).collect();
        // Replicas of light experts do not repay their slots.
        let mut candidates: Vec<usize> = (0..experts).collect();
        candidates.sort_by_key(|&e| std::cmp::Reverse(history.totals()[e]));
        candidates.truncate((2 * free.iter().sum::<usize>()).max(1));
        let per_batch = candidates.len() * ranks.saturating_sub(1);
        if per_batch > MAX_FLOWS {
            let reason = format!(
                "replicas of {} experts on {ranks} ranks need {per_batch} flows per batch: expected at most {MAX_FLOWS}; try recourse",
                candidates.len()
            );
            return Err(policy_error("lp-round", reason));
        }
        let batches = sample_batches(history, (MAX_FLOWS / per_batch.max(1)).min(MAX_BATCHES));
        if per_batch > 0 && !batches.is_empty() {
            // An engine that panics has failed, and nothing of it is used afterwards.
            let state = || relaxed_replicas(&batches, &homes, &free, &candidates);
            let mut parts = match catch_unwind(AssertUnwindSafe(state)) {
                Ok(Ok(parts)) => parts,
                Ok(Err(error)) => {
                    return Err(policy_error("lp-round", format!("{} failed: {error}", engine::NAME)));
                }
                Err(_) => {
                    return Err(policy_error("lp-round", format!("{} failed: it panicked", engine::NAME)));
                }
            };
            parts.retain(|&(part, ..)| part >= MIN_REPLICA_PART);
            parts.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
            for (_, expert, rank) in parts {
                if held[rank].len() < cluster.slots_of(rank) {
                    held[rank].push(expert);
                }
            }
        }
        fill_free_slots(&mut held, history.totals(), cluster);
        let mut slots = Vec::with_capacity(cluster.slots());
        for own in &held {
            let padding = cluster.slots_per_rank() - own.len();
            slots.extend(own.iter().copied().map(Some).chain(std::iter::repeat_n(None, padding)));
        }
        let rounded = Placement::new(experts, ranks, slots)?;
        let how = RefineLimits::of_moves(cluster.slots());
        refine_placement(&rounded, history, cluster, &how)
    }
}

/// Returns the home of every expert. The heaviest comes first, each goes to the least loaded rank with room,
/// and all ranks have about the same number.
fn assign_homes(totals: &[u64], cluster: &Cluster) -> Result<Vec<usize>, PlaceError> {
    let (experts, ranks) = (totals.len(), cluster.ranks());
    let mut room: Vec<usize> =
        (0..ranks).map(|rank| experts / ranks + usize::from(rank < experts % ranks)).collect();
    if (0..ranks).any(|rank| room[rank] > cluster.slots_of(rank)) {
        let reason = format!("{} slots cannot hold {experts} experts", cluster.usable_slots());
        return Err(policy_error("lp-round", reason));
    }
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by_key(|&e| std::cmp::Reverse(totals[e]));
    let (mut homes, mut loads) = (vec![0; experts], vec![0u64; ranks]);
    for expert in order {
        let open = (0..ranks).filter(|&rank| room[rank] > 0);
        let Some(rank) = open.min_by_key(|&rank| loads[rank]) else { continue };
        homes[expert] = rank;
        room[rank] -= 1;
        loads[rank] = loads[rank].saturating_add(totals[expert]);
    }
    Ok(homes)
}

/// Fills empty slots with the experts of the largest load per replica.
fn fill_free_slots(held: &mut [Vec<u32>], totals: &[u64], cluster: &Cluster) {
    let mut copies = vec![0u64; totals.len()];
    held.iter().flatten().for_each(|&expert| copies[expert as usize] += 1);
    for (rank, own) in held.iter_mut().enumerate() {
        while own.len() < cluster.slots_of(rank) {
            let open = (0..totals.len()).filter(|&e| !own.contains(&(e as u32)));
            let Some(best) = open.max_by_key(|&e| (totals[e] / (copies[e] + 1), std::cmp::Reverse(e))) else {
                break;
            };
            copies[best] += 1;
            own.push(best as u32);
        }
    }
}

/// Solves the programme. Returns the part of a replica for every candidate and rank.
fn relaxed_replicas(
    batches: &[&[u64]],
    homes: &[usize],
    free: &[usize],
    candidates: &[usize],
) -> Result<Vec<(f64, u32, usize)>, good_lp::ResolutionError> {
    let ranks = free.len();
    let mut variables = ProblemVariables::new();
    let mut rows = Vec::new();
    let mut parts: Vec<(Variable, usize, usize)> = Vec::new();
    for &expert in candidates {
        for rank in (0..ranks).filter(|&rank| rank != homes[expert] && free[rank] > 0) {
            parts.push((variables.add(variable().min(0.0).max(1.0)), expert, rank));
        }
    }
    for (rank, &free) in free.iter().enumerate() {
        let on = parts.iter().filter(|part| part.2 == rank);
        rows.push(on.map(|part| part.0).sum::<Expression>().leq(free as f64));
    }
    let mut objective = Expression::default();
    for batch in batches {
        let mean = batch.iter().sum::<u64>() as f64 / ranks as f64;
        let peak = variables.add(variable().min(1.0));
        objective.add_mul(1.0, peak);
        let mut loads = vec![Expression::default(); ranks];
        for (expert, &home) in homes.iter().enumerate() {
            loads[home] += batch[expert] as f64 / mean;
        }
        let mut leaving: Vec<Option<Expression>> = vec![None; homes.len()];
        for &(part, expert, rank) in &parts {
            let load = batch[expert] as f64 / mean;
            if load <= 0.0 {
                continue;
            }
            let flow = variables.add(variable().min(0.0));
            let mut row = Expression::from(flow);
            row.add_mul(-load, part);
            rows.push(row.leq(0.0));
            loads[rank].add_mul(1.0, flow);
            loads[homes[expert]].add_mul(-1.0, flow);
            leaving[expert].get_or_insert_default().add_mul(1.0, flow);
        }
        for (expert, leaving) in leaving.into_iter().enumerate() {
            if let Some(leaving) = leaving {
                rows.push(leaving.leq(batch[expert] as f64 / mean));
            }
        }
        rows.extend(loads.into_iter().map(|load| (load - peak).leq(0.0)));
    }
    let mut model = engine::model(variables.minimise(objective));
    for row in rows {
        model.add_constraint(row);
    }
    let solution = model.solve()?;
    Ok(parts.iter().map(|&(part, expert, rank)| (solution.value(part), expert as u32, rank)).collect())
}

#[cfg(feature = "highs")]
mod engine {
    use good_lp::solvers::highs::{HighsProblem, highs};
    use good_lp::variable::UnsolvedProblem;

    pub(super) const NAME: &str = "HiGHS";

    pub(super) fn model(problem: UnsolvedProblem) -> HighsProblem {
        problem.using(highs).set_threads(1)
    }
}

#[cfg(not(feature = "highs"))]
mod engine {
    use good_lp::solvers::clarabel::{ClarabelProblem, clarabel};
    use good_lp::variable::UnsolvedProblem;

    pub(super) const NAME: &str = "Clarabel";

    pub(super) fn model(problem: UnsolvedProblem) -> ClarabelProblem {
        problem.using(clarabel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;
    use proptest::prelude::*;

    #[test]
    fn a_heavy_expert_is_copied() {
        let loads = vec![60, 10, 10, 10, 10, 10, 10, 10];
        let trace = Trace::from_loads(8, vec![0], vec!["0".into()], loads).unwrap();
        let cluster = Cluster::new(4, 1, 8, 4).unwrap();
        let placement = LpRound::place_from_scratch(&History::from_trace(&trace, 0), &cluster).unwrap();
        assert!(placement.replicas(0).len() >= 2, "{placement:?}");
        assert_eq!(placement.same_rank_duplicates(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_slot_is_used_and_no_expert_twice_on_a_rank(
            loads in prop::collection::vec(0u64..100, 3 * 10), ranks in 2usize..6, redundant in 0usize..8
        ) {
            let trace = Trace::from_loads(10, vec![0], (0..3).map(|s| s.to_string()).collect(), loads).unwrap();
            let cluster = Cluster::with_uneven_slots(ranks, 1, 10, redundant).unwrap();
            let placement = LpRound::place_from_scratch(&History::from_trace(&trace, 0), &cluster).unwrap();
            prop_assert_eq!(placement.same_rank_duplicates(), 0);
            let filled = placement.slots().iter().flatten().count();
            prop_assert_eq!(filled, cluster.usable_slots().min(10 * ranks));
        }
    }
}
