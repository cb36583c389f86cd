//! The expected traffic of a trace that holds only counts.
//!
//! Input is the loads of a batch and its split. Output is the expected [`RowTraffic`]. Every source is
//! assumed to have equally many tokens, `T / R`, which choose their experts according to [`RoutingModel`]. A
//! replica serves the tokens of its own rank first and those of its node second, as in
//! [`Shares`](evenkeel::split::SourceShares).

use super::routing_model::RoutingModel;
use super::traffic::{DuplexFlow, RowAggregation, RowTraffic, TrafficFlow};
use evenkeel::cluster::Cluster;
use evenkeel::place::Placement;

/// The origin of a token, seen from a replica.
const OWN_RANK: usize = 0;
const OWN_NODE: usize = 1;
const OTHER_NODE: usize = 2;

/// Returns the share of its expert's tokens that every slot serves, by the tokens' origin: own rank, rest of
/// its node, other nodes. `quotas` is `[R * S]`.
fn slot_shares(placement: &Placement, quotas: &[u64], cluster: &Cluster) -> Vec<[f64; 3]> {
    let (ranks, nodes) = (cluster.ranks() as f64, cluster.nodes() as f64);
    let per_node = ranks / nodes;
    let mut shares = vec![[0.0; 3]; quotas.len()];
    let mut left: Vec<(usize, usize, f64)> = Vec::new();
    for expert in 0..placement.experts() {
        let copies = placement.replicas(expert);
        let load: u64 = copies.iter().map(|&slot| quotas[slot as usize]).sum();
        if load == 0 {
            continue;
        }
        let each = load as f64 / ranks;
        left.clear();
        let (mut rank, mut supply) = (usize::MAX, 0.0);
        for &slot in copies {
            if placement.rank_of(slot) != rank {
                (rank, supply) = (placement.rank_of(slot), each);
            }
            let (slot, quota) = (slot as usize, quotas[slot as usize] as f64);
            let own = quota.min(supply);
            supply -= own;
            shares[slot][OWN_RANK] = own / each;
            left.push((slot, rank, quota - own));
        }
        // The slots of a node are consecutive.
        for copies in left.chunk_by_mut(|a, b| cluster.node_of(a.1) == cluster.node_of(b.1)) {
            let own: f64 = copies.iter().map(|&(slot, ..)| shares[slot][OWN_RANK] * each).sum();
            let (supply, demand) = (per_node * each - own, copies.iter().map(|copy| copy.2).sum::<f64>());
            let part = if demand > 0.0 { (supply / demand).clamp(0.0, 1.0) } else { 0.0 };
            for (slot, _, left) in copies {
                if per_node > 1.0 {
                    shares[*slot][OWN_NODE] = *left * part / ((per_node - 1.0) * each);
                }
                *left *= 1.0 - part;
            }
        }
        for &(slot, _, left) in &left {
            if nodes > 1.0 {
                shares[slot][OTHER_NODE] = left / ((ranks - per_node) * each);
            }
        }
    }
    shares
}

/// Computes the expected traffic of a batch.
pub(super) fn estimate_traffic(
    choice: &RoutingModel,
    placement: &Placement,
    quotas: &[u64],
    cluster: &Cluster,
    traffic: &mut RowTraffic,
) {
    traffic.clear();
    let (ranks, nodes) = (cluster.ranks(), cluster.nodes());
    let per_node = ranks / nodes;
    let each = choice.token_count() / ranks as f64;
    let shares = slot_shares(placement, quotas, cluster);
    let flow = |slots: std::ops::Range<usize>| {
        let mut on: Vec<(usize, [f64; 3])> = Vec::with_capacity(slots.len());
        for slot in slots {
            let Some(expert) = placement.slots()[slot] else { continue };
            match on.iter_mut().find(|(e, _)| *e == expert as usize) {
                Some((_, sum)) => sum.iter_mut().zip(shares[slot]).for_each(|(sum, share)| *sum += share),
                None => on.push((expert as usize, shares[slot])),
            }
        }
        let pairs =
            |class: usize| on.iter().map(|(e, s)| choice.expert_frequency(*e) * s[class]).sum::<f64>();
        let visits = [pairs(OWN_RANK), pairs(OWN_NODE), pairs(OTHER_NODE)];
        let rows = if traffic.one_copy() == RowAggregation::Visit {
            visits
        } else {
            choice.visit_probabilities(&on)
        };
        std::array::from_fn::<TrafficFlow, 3, _>(|class| TrafficFlow {
            rows: each * rows[class],
            visits: each * visits[class],
        })
    };
    let slots = placement.slots_per_rank();
    // The flows from one source of each kind to a rank.
    let to_rank: Vec<[TrafficFlow; 3]> =
        (0..ranks).map(|rank| flow(rank * slots..(rank + 1) * slots)).collect();
    // The flows from one source to its own node, and to another node. The latter is the sum over its ranks if
    // every rank receives its own rows.
    let sums = |class: usize| -> Vec<TrafficFlow> {
        to_rank.chunks(per_node).map(|node| node.iter().map(|to| to[class]).sum()).collect()
    };
    let (in_node, forwarded) = (sums(OWN_NODE), sums(OTHER_NODE));
    let by_node = traffic.one_copy() == RowAggregation::Node;
    let to_node: Vec<TrafficFlow> = if by_node && nodes > 1 {
        let width = per_node * slots;
        (0..nodes).map(|node| flow(node * width..(node + 1) * width)[OTHER_NODE]).collect()
    } else {
        forwarded.clone()
    };
    let to_all: TrafficFlow = to_node.iter().copied().sum();
    for (rank, (to, flows)) in to_rank.iter().zip(&mut traffic.ranks).enumerate() {
        let node = rank / per_node;
        flows.node = DuplexFlow {
            sent: in_node[node].subtract_flow(to[OWN_NODE]),
            received: to[OWN_NODE].scale_by(per_node - 1),
        };
        flows.cross = DuplexFlow {
            sent: to_all.subtract_flow(to_node[node]),
            received: to[OTHER_NODE].scale_by(ranks - per_node),
        };
        if by_node {
            // The rank is a gateway for the sources at its position in the other nodes.
            flows.cross.received = to_node[node].scale_by(nodes - 1);
            flows.node.sent += forwarded[node].subtract_flow(to[OTHER_NODE]).scale_by(nodes - 1);
            flows.node.received += to[OTHER_NODE].scale_by((nodes - 1) * (per_node - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Checks that all tokens are served, and those of a rank first by its own replicas.
        #[test]
        fn shares_serve_every_token(quotas in prop::collection::vec(0u64..50, 12), nodes in prop::sample::select(vec![1usize, 2, 6])) {
            // 4 experts on 6 ranks x 2 slots have three replicas each.
            let slots = (0..12).map(|slot| Some(slot % 4)).collect();
            let placement = Placement::new(4, 6, slots).unwrap();
            let cluster = Cluster::new(6, nodes, 4, 8).unwrap();
            let shares = slot_shares(&placement, &quotas, &cluster);
            for (slot, share) in shares.iter().enumerate() {
                prop_assert!(share.iter().all(|&share| (-1e-9..=1.0 + 1e-9).contains(&share)), "{slot} {share:?}");
            }
            for e in 0..4 {
                let copies = placement.replicas(e);
                let load: u64 = copies.iter().map(|&slot| quotas[slot as usize]).sum();
                let each = load as f64 / 6.0;
                for &slot in copies {
                    let s = shares[slot as usize];
                    let per_node = 6 / nodes;
                    let served = each * (s[OWN_RANK] + s[OWN_NODE] * (per_node - 1) as f64 + s[OTHER_NODE] * (6 - per_node) as f64);
                    prop_assert!((served - quotas[slot as usize] as f64).abs() < 1e-6);
                }
            }
        }
    }
}
