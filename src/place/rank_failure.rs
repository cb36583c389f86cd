//! Loss of ranks: the effect of each loss, and recovery with few moves.
//!
//! In: a placement and the lost ranks. Out: the exact peaks without them ([`rank_loss_effects`]), or a
//! placement on the remaining ranks ([`recover_placement`]). The remaining ranks keep their experts. Experts
//! that lost their last replica take the slots whose content is needed least. Then single replicas are
//! replaced while each replacement makes a difference.

use super::evaluate::PeakEvaluator;
use super::partial::PartialPlacement;
use super::refine::{MAX_JUDGED_BATCHES, RefineLimits, refine_placement};
use super::{ExpertMove, PlaceError, Placement};
use crate::cluster::Cluster;
use crate::forecast::History;
use evenkeel_solver::{Hosts, Problem, RankSplit, Workspace, solve_into};

/// Gain that justifies a replacement: it has to lower the mean peak by this many thousandths of a rank's mean
/// load.
const MIN_MOVE_GAIN_PERMILLE: u64 = 2;
/// Number of slots that are evaluated exactly for an expert without a replica.
const CANDIDATES_EVALUATED: usize = 16;

/// Effect of the loss of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RankLossEffect {
    /// Lost rank.
    pub rank: usize,
    /// Number of experts that live on this rank alone.
    pub experts_at_risk: usize,
    /// Tokens of these experts over all batches, which no other rank could serve.
    pub tokens_at_risk: u64,
    /// Tokens of all experts, over all batches.
    pub tokens: u64,
    /// Mean over the batches of peak over mean on the remaining ranks, for the tokens that can be served.
    pub imbalance: f64,
    /// Highest peak over mean of a batch.
    pub worst: f64,
}

/// Computes the exact effect of the loss of each rank on these batches, each `[E]`.
///
/// # Errors
/// Fails if the solver refuses the loads, or if there is a single rank.
pub fn rank_loss_effects<'a>(
    placement: &Placement,
    batches: impl Iterator<Item = &'a [u64]>,
) -> Result<Vec<RankLossEffect>, PlaceError> {
    let batches: Vec<&[u64]> = batches.collect();
    let left = placement.ranks().saturating_sub(1);
    (0..placement.ranks())
        .map(|lost| {
            let hosts: Vec<Vec<u32>> = (0..placement.experts())
                .map(|e| {
                    let hosts = placement.ranks_of(e).into_iter().filter(|&rank| rank as usize != lost);
                    hosts.map(|rank| rank - u32::from(rank as usize > lost)).collect()
                })
                .collect();
            let gone: Vec<bool> = hosts.iter().map(Vec::is_empty).collect();
            let somewhere = hosts.iter().map(|hosts| if hosts.is_empty() { vec![0] } else { hosts.clone() });
            let problem = Problem::new(Hosts::new(left, somewhere)?);
            let (mut workspace, mut split) = (Workspace::new(&problem), RankSplit::default());
            let mut after = RankLossEffect {
                rank: lost,
                experts_at_risk: gone.iter().filter(|&&gone| gone).count(),
                ..RankLossEffect::default()
            };
            let mut judged = 0usize;
            for batch in &batches {
                let total: u64 = batch.iter().sum();
                let loads: Vec<u64> =
                    batch.iter().zip(&gone).map(|(&load, &gone)| if gone { 0 } else { load }).collect();
                let served: u64 = loads.iter().sum();
                after.tokens += total;
                after.tokens_at_risk += total - served;
                if served > 0 {
                    solve_into(&problem, &loads, &mut workspace, &mut split)?;
                    let imbalance = split.peak.load as f64 * left as f64 / served as f64;
                    after.imbalance += imbalance;
                    after.worst = after.worst.max(imbalance);
                    judged += 1;
                }
            }
            after.imbalance /= judged.max(1) as f64;
            Ok(after)
        })
        .collect()
}

/// Returns the cluster without some ranks. Nodes remain if all nodes with a rank have the same number of
/// ranks.
///
/// # Errors
/// Fails if a rank is unknown, if none remains, or if the remaining slots cannot hold all experts.
/// The message names the fault.
pub fn without_ranks(cluster: &Cluster, experts: usize, lost: &[usize]) -> Result<Cluster, PlaceError> {
    let fail = |reason: String| Err(PlaceError::Shape { policy: "lost-ranks".into(), reason });
    if let Some(rank) = lost.iter().find(|&&rank| rank >= cluster.ranks()) {
        return fail(format!("rank {rank} of only {} (0 to {})", cluster.ranks(), cluster.ranks() - 1));
    }
    let left: Vec<usize> = (0..cluster.ranks()).filter(|rank| !lost.contains(rank)).collect();
    if left.is_empty() {
        return fail("no rank is left".into());
    }
    let slots: usize = left.iter().map(|&rank| cluster.slots_of(rank)).sum();
    let Some(redundant) = slots.checked_sub(experts) else {
        return fail(format!("{slots} slots are left, {experts} experts need one each"));
    };
    let mut per_node: Vec<usize> = (0..cluster.nodes())
        .map(|node| left.iter().filter(|&&rank| cluster.node_of(rank) == node).count())
        .filter(|&ranks| ranks > 0)
        .collect();
    let nodes = per_node.len();
    per_node.dedup();
    let nodes = if per_node.len() == 1 { nodes } else { 1 };
    Cluster::with_uneven_slots(left.len(), nodes, experts, redundant).or_else(|error| fail(error.to_string()))
}

/// Placement after a loss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredPlacement {
    /// Placement on the remaining ranks, renumbered without gaps.
    pub placement: Placement,
    /// Moves to execute, with the new numbers of ranks. `from` is `None` if no replica remains.
    pub moves: Vec<ExpertMove>,
    /// Number of experts whose last replica was lost.
    pub unplaced: usize,
}

/// Places the experts without some ranks. The remaining ranks, `cluster` of [`without_ranks`], keep their
/// experts.
///
/// Without `max_moves` there are at most as many moves as lost replicas.
///
/// # Errors
/// Fails if more experts lost their last replica than moves are allowed, or if the solver refuses the loads.
pub fn recover_placement(
    previous: &Placement,
    lost: &[usize],
    history: &History<'_>,
    cluster: &Cluster,
    max_moves: Option<usize>,
) -> Result<RecoveredPlacement, PlaceError> {
    let per_rank = previous.slots_per_rank();
    let left: Vec<usize> = (0..previous.ranks()).filter(|rank| !lost.contains(rank)).collect();
    let width = cluster.slots_per_rank();
    let mut slots = Vec::with_capacity(cluster.slots());
    for &rank in &left {
        let mut own = previous.slots()[rank * per_rank..(rank + 1) * per_rank].to_vec();
        own.resize(width, None);
        slots.extend(own);
    }
    let before = PartialPlacement::from_slots(previous.experts(), left.len(), slots);
    let mut homeless: Vec<usize> =
        (0..previous.experts()).filter(|&expert| before.hosts[expert].is_empty()).collect();
    homeless.sort_by_key(|&expert| std::cmp::Reverse(history.totals()[expert]));
    let allowed = max_moves.unwrap_or(lost.len() * per_rank);
    if allowed < homeless.len() {
        let reason = format!(
            "{} experts lost their last replica: expected at least as many moves (--max-moves), not {allowed}",
            homeless.len()
        );
        return Err(PlaceError::Shape { policy: "lost-ranks".into(), reason });
    }
    let mut state = before.clone();
    let mut scenarios = PeakEvaluator::from_history(history, MAX_JUDGED_BATCHES);
    for &expert in &homeless {
        place_expert(&mut state, expert as u32, history.totals(), cluster, &mut scenarios)?;
    }
    let how = RefineLimits {
        towards: None,
        max_moves: allowed - homeless.len(),
        least_gain: MIN_MOVE_GAIN_PERMILLE,
        needs: &[],
    };
    let placement = refine_placement(&state.placement()?, history, cluster, &how)?;
    let mut moves = Vec::new();
    for expert in 0..placement.experts() {
        let held = &before.hosts[expert];
        for to in placement.ranks_of(expert).into_iter().filter(|rank| !held.contains(rank)) {
            let slot =
                placement.replicas(expert).iter().copied().find(|&s| placement.rank_of(s) == to as usize);
            let slot = slot.unwrap_or_default();
            moves.push(ExpertMove { expert: expert as u32, to, slot, from: held.first().copied() });
        }
    }
    moves.sort_by_key(|m| (m.to, m.expert));
    Ok(RecoveredPlacement { placement, moves, unplaced: homeless.len() })
}

/// Puts an expert without a replica into the slot whose content is needed least.
fn place_expert(
    state: &mut PartialPlacement,
    expert: u32,
    totals: &[u64],
    cluster: &Cluster,
    scenarios: &mut PeakEvaluator<'_>,
) -> Result<(), PlaceError> {
    let per_rank = state.per_rank;
    let loads = state.even_loads(totals);
    let mut spare: Vec<(u64, usize)> = Vec::new();
    for slot in (0..state.slots.len()).filter(|&slot| slot % per_rank < cluster.slots_of(slot / per_rank)) {
        if state.is_spare(slot, |_| 1) {
            let share = |e: u32| totals[e as usize] / state.hosts[e as usize].len().max(1) as u64;
            let freed = state.slots[slot].map_or(0, share);
            spare.push((loads[slot / per_rank].saturating_sub(freed), slot));
        }
    }
    spare.sort_unstable();
    let mut best: Option<(u64, PartialPlacement)> = None;
    for &(_, slot) in spare.iter().take(CANDIDATES_EVALUATED) {
        let mut next = state.clone();
        next.set_slot(slot, Some(expert));
        let sum = scenarios.sum_of_peaks(next.solver_hosts()?)?;
        if best.as_ref().is_none_or(|(least, _)| sum < *least) {
            best = Some((sum, next));
        }
    }
    let Some((_, next)) = best else {
        let reason = format!("no slot can be spared for expert {expert}");
        return Err(PlaceError::Shape { policy: "lost-ranks".into(), reason });
    };
    *state = next;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::{Eplb, Policy as _, TieBreak};
    use crate::trace::Trace;
    use proptest::prelude::*;

    #[test]
    fn the_cluster_that_is_left() {
        let cluster = Cluster::new(8, 2, 16, 8).unwrap();
        let left = |lost: &[usize]| without_ranks(&cluster, 16, lost);
        assert_eq!(left(&[3]).unwrap(), Cluster::new(7, 1, 16, 5).unwrap());
        assert_eq!(left(&[3, 6]).unwrap(), Cluster::new(6, 2, 16, 2).unwrap());
        assert_eq!(
            left(&[0, 1, 2, 3]).unwrap_err().to_string(),
            "lost-ranks: 12 slots are left, 16 experts need one each"
        );
        assert!(left(&[8]).unwrap_err().to_string().contains("rank 8 of only 8"));
        let roomy = Cluster::new(4, 2, 4, 12).unwrap();
        assert_eq!(without_ranks(&roomy, 4, &[0, 1]).unwrap(), Cluster::new(2, 1, 4, 4).unwrap());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn survivors_keep_what_they_have(
            loads in prop::collection::vec(0u64..100, 5 * 12), lost in 0usize..4, more in 0usize..3
        ) {
            let trace = Trace::from_loads(12, vec![0], (0..5).map(|s| s.to_string()).collect(), loads).unwrap();
            let cluster = Cluster::new(4, 1, 12, 8).unwrap();
            let history = History::from_trace(&trace, 0);
            let previous = Eplb::new(1, TieBreak::LowestExpert).place(&history, &cluster).unwrap();
            let left = without_ranks(&cluster, 12, &[lost]).unwrap();
            let least = recover_placement(&previous, &[lost], &history, &left, None).unwrap();
            let homeless = (0..12).filter(|&e| previous.ranks_of(e) == [lost as u32]).count();
            prop_assert_eq!(least.unplaced, homeless);
            prop_assert!(least.moves.len() >= homeless && least.moves.len() <= 5);
            let limited = recover_placement(&previous, &[lost], &history, &left, Some(homeless + more)).unwrap();
            prop_assert!(limited.moves.len() <= homeless + more);
            // The listed experts are new on their rank, and all others were there before.
            for expert in 0..12 {
                for rank in limited.placement.ranks_of(expert) {
                    let was = rank + u32::from(rank >= lost as u32);
                    let listed = limited.moves.iter().any(|m| m.expert as usize == expert && m.to == rank);
                    prop_assert_eq!(previous.ranks_of(expert).contains(&was), !listed);
                }
            }
            if homeless > 0 {
                let message = recover_placement(&previous, &[lost], &history, &left, Some(0)).unwrap_err().to_string();
                prop_assert!(message.contains("lost their last replica"), "{}", message);
            }
        }
    }

    #[test]
    fn a_loss_is_judged_exactly() {
        // Ranks hold {0, 1}, {1, 2}, {2, 0}, so every expert lives twice.
        let placement = Placement::new(3, 3, [0, 1, 1, 2, 2, 0].map(Some).to_vec()).unwrap();
        let batches = [vec![6, 6, 6], vec![0, 10, 0]];
        let losses = rank_loss_effects(&placement, batches.iter().map(Vec::as_slice)).unwrap();
        // Without rank 0, expert 0 is on rank 2 alone, 1 on rank 1 alone, 2 on both: peaks 9 and 9. The
        // second batch has 10 of 10 tokens on one rank.
        assert_eq!((losses[0].experts_at_risk, losses[0].tokens_at_risk, losses[0].tokens), (0, 0, 28));
        assert!((losses[0].imbalance - 1.5).abs() < 1e-12 && (losses[0].worst - 2.0).abs() < 1e-12);
        // Without rank 2, expert 1 keeps both its ranks.
        assert!((losses[2].imbalance - 1.0).abs() < 1e-12);
        let single = Placement::new(2, 2, [0, 1].map(Some).to_vec()).unwrap();
        let losses = rank_loss_effects(&single, [vec![3, 5]].iter().map(Vec::as_slice)).unwrap();
        assert_eq!((losses[1].experts_at_risk, losses[1].tokens_at_risk), (1, 5));
    }
}
