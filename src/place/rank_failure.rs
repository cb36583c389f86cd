//! Loss of ranks: its effect on the peaks, and the cluster that is left.
//!
//! In: a placement and the lost ranks. Out: the exact peaks without them ([`rank_loss_effects`]), or the
//! cluster without them ([`without_ranks`]). [`Constrained::place_on_changed_ranks`] places the experts
//! there.
//!
//! [`Constrained::place_on_changed_ranks`]: super::Constrained::place_on_changed_ranks

use super::{PlaceError, Placement};
use crate::cluster::Cluster;
use evenkeel_solver::{Hosts, Problem, RankSplit, Workspace, solve_into};

/// Effect of the loss of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
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

#[cfg(test)]
mod tests {
    use super::*;

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
