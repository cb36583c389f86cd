//! What traffic to expect where a trace holds counts alone.
//!
//! In: the loads of a batch and where its split serves them. Out: the expected [`Traffic`]. Every source is taken to have the
//! same tokens, `T / R` of them, which choose their experts as [`Choice`] says. Of an expert's tokens a copy serves those of its own
//! rank first, then those of its node, as [`Shares`](crate::split::Shares) are made.

use super::choice::Choice;
use super::traffic::{Flow, OneCopyPer, Traffic};
use crate::cluster::Cluster;
use crate::place::Placement;

/// Where a token comes from, seen from a copy.
const OWN: usize = 0;
const NODE: usize = 1;
const FAR: usize = 2;

/// The share of its expert's tokens that every slot serves, of those from its own rank, the rest of its node, other nodes;
/// `quotas` is `[R * S]`.
fn shares(placement: &Placement, quotas: &[u64], cluster: &Cluster) -> Vec<[f64; 3]> {
    let (ranks, nodes) = (cluster.ranks() as f64, cluster.nodes() as f64);
    let per_node = ranks / nodes;
    let mut shares = vec![[0.0; 3]; quotas.len()];
    let mut left: Vec<(usize, usize, f64)> = Vec::new();
    for expert in 0..placement.experts() {
        let copies = placement.copies(expert);
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
            shares[slot][OWN] = own / each;
            left.push((slot, rank, quota - own));
        }
        // Slots of a node follow each other.
        for copies in left.chunk_by_mut(|a, b| cluster.node_of(a.1) == cluster.node_of(b.1)) {
            let own: f64 = copies.iter().map(|&(slot, ..)| shares[slot][OWN] * each).sum();
            let (supply, demand) = (per_node * each - own, copies.iter().map(|copy| copy.2).sum::<f64>());
            let part = if demand > 0.0 { (supply / demand).clamp(0.0, 1.0) } else { 0.0 };
            for (slot, _, left) in copies {
                if per_node > 1.0 {
                    shares[*slot][NODE] = *left * part / ((per_node - 1.0) * each);
                }
                *left *= 1.0 - part;
            }
        }
        for &(slot, _, left) in &left {
            if nodes > 1.0 {
                shares[slot][FAR] = left / ((ranks - per_node) * each);
            }
        }
    }
    shares
}

/// The expected traffic of a batch.
pub(super) fn expect(
    choice: &Choice,
    placement: &Placement,
    quotas: &[u64],
    cluster: &Cluster,
    traffic: &mut Traffic,
) {
    traffic.clear();
    let (ranks, nodes) = (cluster.ranks(), cluster.nodes());
    let per_node = ranks / nodes;
    let each = choice.tokens() / ranks as f64;
    let shares = shares(placement, quotas, cluster);
    let flow = |slots: std::ops::Range<usize>| {
        let mut on: Vec<(usize, [f64; 3])> = Vec::with_capacity(slots.len());
        for slot in slots {
            let Some(expert) = placement.slots()[slot] else { continue };
            match on.iter_mut().find(|(e, _)| *e == expert as usize) {
                Some((_, sum)) => sum.iter_mut().zip(shares[slot]).for_each(|(sum, share)| *sum += share),
                None => on.push((expert as usize, shares[slot])),
            }
        }
        let pairs = |class: usize| on.iter().map(|(e, s)| choice.frequency(*e) * s[class]).sum::<f64>();
        let visits = [pairs(OWN), pairs(NODE), pairs(FAR)];
        let rows = if traffic.one_copy() == OneCopyPer::Visit { visits } else { choice.visits(&on) };
        std::array::from_fn::<Flow, 3, _>(|class| Flow {
            rows: each * rows[class],
            visits: each * visits[class],
        })
    };
    let slots = placement.slots_per_rank();
    // From one source of each kind to a rank.
    let to_rank: Vec<[Flow; 3]> = (0..ranks).map(|rank| flow(rank * slots..(rank + 1) * slots)).collect();
    // From one source to its own node; to another one and, where every rank is sent to by itself, to its ranks.
    let sums = |class: usize| -> Vec<Flow> {
        to_rank.chunks(per_node).map(|node| node.iter().map(|to| to[class]).sum()).collect()
    };
    let (in_node, forwarded) = (sums(NODE), sums(FAR));
    let by_node = traffic.one_copy() == OneCopyPer::Node;
    let to_node: Vec<Flow> = if by_node && nodes > 1 {
        let width = per_node * slots;
        (0..nodes).map(|node| flow(node * width..(node + 1) * width)[FAR]).collect()
    } else {
        forwarded.clone()
    };
    let to_all: Flow = to_node.iter().copied().sum();
    for (rank, (to, flows)) in to_rank.iter().zip(&mut traffic.ranks).enumerate() {
        let node = rank / per_node;
        flows.node = [in_node[node].minus(to[NODE]), to[NODE].times(per_node - 1)];
        flows.cross = [to_all.minus(to_node[node]), to[FAR].times(ranks - per_node)];
        if by_node {
            // A gateway for the sources of its place in the other nodes.
            flows.cross[1] = to_node[node].times(nodes - 1);
            flows.node[0] += forwarded[node].minus(to[FAR]).times(nodes - 1);
            flows.node[1] += to[FAR].times((nodes - 1) * (per_node - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// All tokens are served, and those of a rank first by its own copies.
        #[test]
        fn shares_serve_every_token(quotas in prop::collection::vec(0u64..50, 12), nodes in prop::sample::select(vec![1usize, 2, 6])) {
            // 4 experts on 6 ranks x 2 slots: three copies each.
            let slots = (0..12).map(|slot| Some(slot % 4)).collect();
            let placement = Placement::new(4, 6, slots).unwrap();
            let cluster = Cluster::new(6, nodes, 4, 8).unwrap();
            let shares = shares(&placement, &quotas, &cluster);
            for (slot, share) in shares.iter().enumerate() {
                prop_assert!(share.iter().all(|&share| (-1e-9..=1.0 + 1e-9).contains(&share)), "{slot} {share:?}");
            }
            for e in 0..4 {
                let copies = placement.copies(e);
                let load: u64 = copies.iter().map(|&slot| quotas[slot as usize]).sum();
                let each = load as f64 / 6.0;
                for &slot in copies {
                    let s = shares[slot as usize];
                    let per_node = 6 / nodes;
                    let served = each * (s[OWN] + s[NODE] * (per_node - 1) as f64 + s[FAR] * (6 - per_node) as f64);
                    prop_assert!((served - quotas[slot as usize] as f64).abs() < 1e-6);
                }
            }
        }
    }
}
