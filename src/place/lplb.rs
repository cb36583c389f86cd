//! LPLB's placement: every expert in its home, and replicas along a fixed replica graph.
//!
//! In: total loads of one layer and a [`Topology`]. Out: a placement in which the `j`-th redundant slot of
//! rank `i` holds the `j`-th heaviest expert of rank `columns[j mod D][i]`. Source: deepseek-ai/LPLB,
//! `Planner.update_redundancy_mapping`. It first re-orders experts over the ranks by EPLB without
//! replication. Then it sorts them by load within each rank, heaviest first.

use super::{Eplb, PlaceError, PlaceRequest, PlaceResponse, Placement, Policy, TieBreak, Topology};
use crate::cluster::Cluster;
use crate::forecast::History;

/// LPLB policy for one topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lplb {
    topology: Topology,
    reorder: Eplb,
}

impl Lplb {
    /// Creates the policy with the given replica graph, for a model whose experts form `groups` groups.
    pub fn new(topology: Topology, groups: usize) -> Self {
        Self { topology, reorder: Eplb::new(groups, TieBreak::LowestExpert) }
    }

    /// Adds replicas along the graph to the homes `[R][E / R]`. The experts of a home are in the order of
    /// their replicas.
    ///
    /// # Errors
    /// Fails if the slots are too few for the graph's columns, or too many for the experts of a rank.
    pub fn replicate_along_graph(
        &self,
        homes: &[Vec<u32>],
        cluster: &Cluster,
    ) -> Result<Placement, PlaceError> {
        let fail = |reason: String| Err(PlaceError::Shape { policy: Policy::name(self), reason });
        let (group, columns) = (self.topology.group_size(), self.topology.slots());
        let at_home = homes.first().map_or(0, Vec::len);
        let redundant = cluster.slots_per_rank() - at_home;
        if redundant < columns {
            return fail(format!(
                "needs {columns} redundant slots per rank ({} in all), there are {redundant}",
                columns * cluster.ranks()
            ));
        }
        if redundant > at_home {
            return fail(format!(
                "{redundant} redundant slots per rank, but only {at_home} experts live on a rank"
            ));
        }
        let mut slots = Vec::with_capacity(cluster.slots());
        for (rank, home) in homes.iter().enumerate() {
            slots.extend(home.iter().copied().map(Some));
            let first = rank - rank % group;
            slots.extend((0..redundant).map(|slot| {
                let source = self.topology.columns()[slot % columns][rank % group] as usize;
                Some(homes[first + source][slot])
            }));
        }
        Ok(Placement::new(homes.len() * at_home, cluster.ranks(), slots)?)
    }
}

impl Policy for Lplb {
    fn name(&self) -> String {
        format!("lplb:{}", self.topology.name())
    }

    fn place(&self, request: &PlaceRequest<'_>) -> Result<PlaceResponse, PlaceError> {
        request.respond_with(self.place_from_scratch(request.history, request.cluster)?)
    }
}

impl Lplb {
    fn place_from_scratch(&self, history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError> {
        let (loads, ranks) = (history.totals(), cluster.ranks());
        if !cluster.is_even() {
            let reason = format!(
                "{} slots do not divide over {ranks} ranks: expected the same number on each",
                cluster.usable_slots()
            );
            return Err(PlaceError::Shape { policy: Policy::name(self), reason });
        }
        if !loads.len().is_multiple_of(ranks) {
            return Err(PlaceError::Shape {
                policy: Policy::name(self),
                reason: format!("{} experts do not divide over {ranks} ranks", loads.len()),
            });
        }
        let weights: Vec<f32> = loads.iter().map(|&load| load as f32).collect();
        let order = self.reorder.physical_to_logical(&weights, loads.len(), cluster.nodes(), ranks)?;
        let mut homes: Vec<Vec<u32>> = order.chunks(loads.len() / ranks).map(<[u32]>::to_vec).collect();
        for home in &mut homes {
            home.sort_by_key(|&e| std::cmp::Reverse(loads[e as usize]));
        }
        self.replicate_along_graph(&homes, cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::Trace;

    fn place(
        topology: &str,
        loads: Vec<u64>,
        ranks: usize,
        redundant: usize,
    ) -> Result<Placement, PlaceError> {
        let experts = loads.len();
        let trace = Trace::from_loads(experts, vec![0], vec!["0".into()], loads).unwrap();
        let cluster = Cluster::new(ranks, 1, experts, redundant).unwrap();
        let policy = Lplb::new(Topology::from_name(topology, ranks)?, 1);
        policy.place_from_scratch(&History::from_trace(&trace, 0), &cluster)
    }

    #[test]
    fn each_rank_copies_the_heaviest_expert_of_the_next() {
        // EPLB packs the ranks to {0, 7}, {1, 6}, {2, 5}, {3, 4}, heaviest first.
        let ring = place("ring", vec![16, 15, 14, 13, 4, 3, 2, 1], 4, 4).unwrap();
        let slots: Vec<u32> = ring.slots().iter().map(|s| s.unwrap()).collect();
        assert_eq!(slots, [0, 7, 1, 1, 6, 2, 2, 5, 3, 3, 4, 0]);
    }

    #[test]
    fn too_few_slots_name_the_number_needed() {
        let message = place("cube", vec![1; 16], 8, 8).unwrap_err().to_string();
        assert!(message.contains("needs 2 redundant slots per rank (16 in all), there are 1"), "{message}");
        let message = place("ring", vec![1; 8], 8, 16).unwrap_err().to_string();
        assert!(message.contains("only 1 experts live on a rank"), "{message}");
        let message = place("ring", vec![1; 12], 8, 4).unwrap_err().to_string();
        assert!(message.contains("12 experts do not divide over 8 ranks"), "{message}");
    }

    #[test]
    fn more_slots_than_columns_wrap_around() {
        let cube = place("cube", vec![1; 32], 8, 32).unwrap();
        assert_eq!((cube.slots_per_rank(), cube.same_rank_duplicates()), (8, 0));
        assert!((0..32).all(|e| cube.replicas(e).len() == 2));
    }
}
