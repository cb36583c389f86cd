//! Assignment of ranks to nodes, so that tokens find a replica on their own node.
//!
//! In: a placement and the loads of its experts. Out: the same sets of experts on other ranks. Equal ranks
//! may exchange their experts without a change of any peak, so traffic between nodes is lowered at equal
//! peaks. If tokens come from all nodes alike, the tokens of an expert that can stay on their node are
//! proportional to the number of nodes that hold a replica. The sum of load times nodes is maximised by
//! exchanges of two ranks, until none raises it (a local optimum of a graph partition: Kernighan and Lin,
//! Bell System Technical Journal 49, 1970). Splits that keep tokens on their node are those of
//! [`TokenTraffic`](crate::split::TokenTraffic).

use super::{Placement, PlacementError};
use crate::cluster::Cluster;

/// Exchanges the experts of equal ranks so that the replicas of loaded experts are on different nodes.
///
/// `loads` holds the tokens of each expert, `[E]`. Every batch has the same peak as with `placement`. The
/// expected number of tokens that can stay on their node is no lower. The result is a pure function of the
/// input.
///
/// # Errors
/// Succeeds for every `placement` that fits `cluster`.
pub(crate) fn assign_ranks_to_nodes(
    placement: &Placement,
    cluster: &Cluster,
    loads: &[u64],
) -> Result<Placement, PlacementError> {
    let (ranks, nodes) = (placement.ranks(), cluster.nodes());
    if nodes < 2 || cluster.ranks() != ranks {
        return Ok(placement.clone());
    }
    let per_rank = placement.slots_per_rank();
    let mut partition = NodePartition::new(placement, cluster, loads);
    // Every exchange raises an integer with an upper limit, so the sweeps end.
    let mut is_improved = true;
    while is_improved {
        is_improved = false;
        for a in 0..ranks {
            for b in a + 1..ranks {
                if cluster.slots_of(a) == cluster.slots_of(b) && partition.exchange_if_better(a, b) {
                    is_improved = true;
                }
            }
        }
    }
    let slots = placement.slots();
    let slots = partition.content.iter().flat_map(|&from| &slots[from * per_rank..(from + 1) * per_rank]);
    Placement::new(placement.experts(), ranks, slots.copied().collect())
}

/// Sets of experts on the ranks of nodes, with the number of replicas per node.
struct NodePartition<'a> {
    cluster: &'a Cluster,
    loads: &'a [u64],
    /// Experts of the sets with a replica elsewhere: only they matter. `[R]`.
    sets: Vec<Vec<usize>>,
    /// Index of the set on each rank, `[R]`.
    content: Vec<usize>,
    /// Number of replicas, `[E][nodes]`.
    replicas: Vec<u32>,
}

impl<'a> NodePartition<'a> {
    fn new(placement: &Placement, cluster: &'a Cluster, loads: &'a [u64]) -> NodePartition<'a> {
        let (ranks, nodes) = (placement.ranks(), cluster.nodes());
        let mut sets = vec![vec![]; ranks];
        let mut replicas = vec![0; placement.experts() * nodes];
        for expert in 0..placement.experts() {
            let hosts = placement.ranks_of(expert);
            for &host in hosts.iter().filter(|_| hosts.len() > 1) {
                sets[host as usize].push(expert);
                replicas[expert * nodes + cluster.node_of(host as usize)] += 1;
            }
        }
        NodePartition { cluster, loads, sets, content: (0..ranks).collect(), replicas }
    }

    /// Exchanges the sets of two ranks if that raises the sum of load times nodes.
    fn exchange_if_better(&mut self, a: usize, b: usize) -> bool {
        let (node_a, node_b) = (self.cluster.node_of(a), self.cluster.node_of(b));
        if node_a == node_b {
            return false;
        }
        let before = self.shift(self.content[a], node_a, node_b);
        let after = self.shift(self.content[b], node_b, node_a);
        if before + after > 0 {
            self.content.swap(a, b);
            return true;
        }
        self.shift(self.content[b], node_a, node_b);
        self.shift(self.content[a], node_b, node_a);
        false
    }

    /// Moves a set to another node. Returns the change of the sum of load times nodes.
    fn shift(&mut self, set: usize, from: usize, to: usize) -> i128 {
        let nodes = self.cluster.nodes();
        let mut change = 0;
        for &expert in &self.sets[set] {
            let load = i128::from(self.loads[expert]);
            let row = &mut self.replicas[expert * nodes..(expert + 1) * nodes];
            row[from] -= 1;
            change -= if row[from] == 0 { load } else { 0 };
            change += if row[to] == 0 { load } else { 0 };
            row[to] += 1;
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::SeededRng;

    /// Returns the sum over the experts of load times nodes that hold a replica.
    fn spread(placement: &Placement, cluster: &Cluster, loads: &[u64]) -> u64 {
        let nodes = |expert: usize| {
            let mut nodes: Vec<usize> =
                placement.ranks_of(expert).iter().map(|&rank| cluster.node_of(rank as usize)).collect();
            nodes.sort_unstable();
            nodes.dedup();
            nodes.len() as u64
        };
        (0..placement.experts()).map(|expert| loads[expert] * nodes(expert)).sum()
    }

    fn sorted_ranks(placement: &Placement) -> Vec<Vec<Option<u32>>> {
        let mut ranks: Vec<_> =
            placement.slots().chunks(placement.slots_per_rank()).map(<[_]>::to_vec).collect();
        ranks.sort();
        ranks
    }

    #[test]
    fn ranks_keep_their_sets_and_no_other_assignment_of_four_ranks_is_better() {
        let cluster = Cluster::new(4, 2, 6, 6).unwrap();
        let (mut dice, mut judged) = (SeededRng::new(5, 0), 0);
        for _ in 0..400 {
            let mut ids: Vec<Option<u32>> = (0..12).map(|slot| Some(slot % 6)).collect();
            dice.shuffle(&mut ids);
            let Ok(placement) = Placement::new(6, 4, ids) else { continue };
            let loads: Vec<u64> = (0..6).map(|_| dice.draw_below(100)).collect();
            let assigned = assign_ranks_to_nodes(&placement, &cluster, &loads).unwrap();
            assert_eq!(sorted_ranks(&assigned), sorted_ranks(&placement));
            assert_eq!(assign_ranks_to_nodes(&assigned, &cluster, &loads).unwrap(), assigned);
            // Two nodes of two ranks: the mate of rank 0 determines all.
            let best = (1..4).map(|mate| {
                let mut order = vec![0, mate];
                order.extend((1..4).filter(|&rank| rank != mate));
                let slots = order.iter().flat_map(|&rank| &placement.slots()[rank * 3..][..3]);
                spread(&Placement::new(6, 4, slots.copied().collect()).unwrap(), &cluster, &loads)
            });
            assert_eq!(Some(spread(&assigned, &cluster, &loads)), best.max());
            judged += 1;
        }
        assert!(judged > 10, "{judged}");
    }

    #[test]
    fn unequal_ranks_and_single_nodes_stay() {
        let placement = Placement::new(2, 4, vec![Some(0), Some(0), Some(1), Some(1)]).unwrap();
        let one = Cluster::new(4, 1, 2, 2).unwrap();
        assert_eq!(assign_ranks_to_nodes(&placement, &one, &[1, 1]).unwrap(), placement);
        let two = Cluster::new(4, 2, 2, 2).unwrap();
        let apart = assign_ranks_to_nodes(&placement, &two, &[1, 1]).unwrap();
        assert_eq!((spread(&placement, &two, &[1, 1]), spread(&apart, &two, &[1, 1])), (2, 4));
    }
}
