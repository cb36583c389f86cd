//! DeepSeek's EPLB, bit for bit: replication by average load, then packing.
//!
//! In: total loads of one layer. Out: a placement. Source: deepseek-ai/EPLB, `rebalance_experts`. All its
//! weights are `f32`, so ties between replicas depend on `f32` values. Sorts are stable, so equal weights
//! keep the order of their indices.

use super::{PlaceError, PlaceRequest, PlaceResponse, Placement, Policy};
use crate::cluster::{Cluster, MAX_EXPERTS, MAX_RANKS, MAX_SLOTS};
use crate::forecast::History;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

/// Rule for the next replica if several experts have the same load per replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TieBreak {
    /// The expert with the lowest index, as in DeepSeek's reference, SGLang and vLLM.
    LowestExpert,
    /// The expert with the fewest replicas, then the lowest index, as in TensorRT-LLM.
    FewestReplicas,
}

/// The EPLB policy. It is hierarchical (expert groups stay within a node) if the groups divide over the
/// nodes, and global otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eplb {
    groups: usize,
    ties: TieBreak,
}

impl Eplb {
    /// Creates the policy for a model whose experts form `groups` equal groups.
    pub fn new(groups: usize, ties: TieBreak) -> Self {
        Self { groups, ties }
    }

    /// Returns the map from slots to logical experts, `[slots]`, for the loads `[E]` of one layer.
    ///
    /// # Errors
    /// Returns [`PlaceError::Shape`] if EPLB's divisibility rules are violated.
    pub fn physical_to_logical(
        &self,
        loads: &[f32],
        slots: usize,
        nodes: usize,
        ranks: usize,
    ) -> Result<Vec<u32>, PlaceError> {
        let experts = loads.len();
        let fail = |reason: String| Err(PlaceError::Shape { policy: Policy::name(self), reason });
        if experts > MAX_EXPERTS || slots > MAX_SLOTS || ranks > MAX_RANKS {
            return fail(format!(
                "{experts} experts in {slots} slots on {ranks} ranks: expected {MAX_EXPERTS}, {MAX_SLOTS} and \
                 {MAX_RANKS} at most"
            ));
        }
        if ranks == 0 || !slots.is_multiple_of(ranks) {
            return fail(format!("{slots} slots do not divide over {ranks} ranks"));
        }
        if slots < experts {
            return fail(format!("{slots} slots cannot hold {experts} experts"));
        }
        let hierarchical = nodes > 0 && self.groups.is_multiple_of(nodes);
        let (groups, nodes) = if hierarchical { (self.groups, nodes) } else { (1, 1) };
        if groups == 0 || !experts.is_multiple_of(groups) {
            return fail(format!("{experts} experts do not divide into {groups} groups"));
        }
        if !ranks.is_multiple_of(nodes) {
            return fail(format!("{ranks} ranks do not divide over {nodes} nodes"));
        }

        // First, groups of experts are packed to nodes.
        let group_size = experts / groups;
        let group_loads: Vec<f32> = loads.chunks(group_size).map(|group| group.iter().sum()).collect();
        let nodes_groups = balanced_packing(&group_loads, nodes);

        let (slots_per_node, ranks_per_node) = (slots / nodes, ranks / nodes);
        let mut physical = Vec::with_capacity(slots);
        for groups in &nodes_groups {
            // Experts of the node, in the order of its groups.
            let here: Vec<u32> = groups
                .iter()
                .flat_map(|&g| (g * group_size..(g + 1) * group_size).map(|e| e as u32))
                .collect();
            let here_loads: Vec<f32> = here.iter().map(|&e| loads[e as usize]).collect();
            // Experts of the node are replicated, and the replicas are packed to its ranks.
            let copies = self.replicate_experts(&here_loads, slots_per_node);
            let mut counts = vec![0usize; here.len()];
            for &e in &copies {
                counts[e] += 1;
            }
            let copy_loads: Vec<f32> = copies.iter().map(|&e| here_loads[e] / counts[e] as f32).collect();
            for rank in balanced_packing(&copy_loads, ranks_per_node) {
                physical.extend(rank.iter().map(|&copy| here[copies[copy]]));
            }
        }
        Ok(physical)
    }

    /// Creates one replica of each expert. Then it adds one at a time to the expert with the largest load per
    /// replica.
    fn replicate_experts(&self, loads: &[f32], slots: usize) -> Vec<usize> {
        let mut copies: Vec<usize> = (0..loads.len()).collect();
        let mut counts = vec![1u32; loads.len()];
        // Load per replica. Only the value of the chosen expert changes.
        let mut shares: Vec<i32> = loads.iter().map(|&load| sortable_bits(load)).collect();
        while copies.len() < slots {
            let most = shares.iter().copied().max().unwrap_or(i32::MIN);
            let mut heaviest = (0..loads.len()).filter(|&e| shares[e] == most);
            let best = match self.ties {
                TieBreak::LowestExpert => heaviest.next(),
                TieBreak::FewestReplicas => heaviest.min_by_key(|&e| counts[e]),
            };
            let Some(best) = best else { break };
            copies.push(best);
            counts[best] += 1;
            shares[best] = sortable_bits(loads[best] / counts[best] as f32);
        }
        copies
    }
}

impl Policy for Eplb {
    fn name(&self) -> String {
        match self.ties {
            TieBreak::LowestExpert => "eplb".into(),
            TieBreak::FewestReplicas => "eplb:trtllm".into(),
        }
    }

    fn place(&self, request: &PlaceRequest<'_>) -> Result<PlaceResponse, PlaceError> {
        request.respond_with(self.place_from_scratch(request.history, request.cluster)?)
    }
}

impl Eplb {
    fn place_from_scratch(&self, history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError> {
        if !cluster.is_even() {
            let reason = format!(
                "{} slots do not divide over {} ranks: expected the same number on each",
                cluster.usable_slots(),
                cluster.ranks()
            );
            return Err(PlaceError::Shape { policy: Policy::name(self), reason });
        }
        let loads: Vec<f32> = history.totals().iter().map(|&load| load as f32).collect();
        let slots = self.physical_to_logical(&loads, cluster.slots(), cluster.nodes(), cluster.ranks())?;
        Ok(Placement::new(loads.len(), cluster.ranks(), slots.into_iter().map(Some).collect())?)
    }
}

/// Maps the bits of a number to an integer that sorts like [`f32::total_cmp`].
fn sortable_bits(number: f32) -> i32 {
    let bits = number.to_bits().cast_signed();
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

/// Packs items into `packs` of equal size. In descending order of weight, each item goes to the lightest pack
/// with room. Returns the items of each pack in the order of packing.
///
/// One item per pack keeps the items in order, as in the reference.
pub(super) fn balanced_packing(weights: &[f32], packs: usize) -> Vec<Vec<usize>> {
    let room = weights.len() / packs;
    if room == 1 {
        return (0..packs).map(|item| vec![item]).collect();
    }
    // Keys sort by descending weight, then by index. Each is one number.
    let mut order: Vec<u64> = weights
        .iter()
        .enumerate()
        .map(|(item, &weight)| {
            u64::from(!(sortable_bits(weight).cast_unsigned() ^ (1 << 31))) << 32 | item as u64
        })
        .collect();
    order.sort_unstable();
    let mut packed = vec![Vec::with_capacity(room); packs];
    let mut filled = vec![0f32; packs];
    // Keys of all packs with room, load and index as one number. The lowest is on top.
    let key = |load: f32, pack: usize| {
        u64::from(sortable_bits(load).cast_unsigned() ^ (1 << 31)) << 32 | pack as u64
    };
    let mut lightest: BinaryHeap<Reverse<u64>> = (0..packs).map(|pack| Reverse(key(0.0, pack))).collect();
    for item in order.into_iter().map(|key| key as u32 as usize) {
        let Some(mut top) = lightest.peek_mut() else { break };
        let pack = top.0 as u32 as usize;
        packed[pack].push(item);
        filled[pack] += weights[item];
        if packed[pack].len() == room {
            PeekMut::pop(top);
        } else {
            *top = Reverse(key(filled[pack], pack));
        }
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: [[f32; 12]; 2] = [
        [90., 132., 40., 61., 104., 165., 39., 4., 73., 56., 183., 86.],
        [20., 107., 104., 64., 19., 197., 187., 157., 172., 86., 16., 27.],
    ];

    fn peak_over_mean(loads: &[f32], physical: &[u32], ranks: usize) -> f32 {
        let mut copies = vec![0f32; loads.len()];
        for &e in physical {
            copies[e as usize] += 1.0;
        }
        let per_rank = physical.chunks(physical.len() / ranks);
        let rank_loads: Vec<f32> =
            per_rank.map(|r| r.iter().map(|&e| loads[e as usize] / copies[e as usize]).sum()).collect();
        rank_loads.iter().fold(0f32, |a, &b| a.max(b)) / (loads.iter().sum::<f32>() / ranks as f32)
    }

    #[test]
    fn reference_example() {
        let eplb = Eplb::new(4, TieBreak::LowestExpert);
        let plan = |layer: usize| eplb.physical_to_logical(&REFERENCE[layer], 16, 2, 8).unwrap();
        assert_eq!(plan(0), [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]);
        assert_eq!(plan(1), [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]);
        let imbalance = |layer: usize| (peak_over_mean(&REFERENCE[layer], &plan(layer), 8) * 1e3).round();
        assert_eq!((imbalance(0), imbalance(1)), (1208.0, 1242.0));
    }

    #[test]
    fn reference_example_global() {
        let eplb = Eplb::new(1, TieBreak::LowestExpert);
        let imbalance = |layer: usize| {
            let plan = eplb.physical_to_logical(&REFERENCE[layer], 16, 2, 8).unwrap();
            (peak_over_mean(&REFERENCE[layer], &plan, 8) * 1e3).round()
        };
        assert_eq!((imbalance(0), imbalance(1)), (1073.0, 1190.0));
    }

    #[test]
    fn replication_as_tensorrt_llm_tests_it() {
        type Case = (usize, usize, &'static [f32], &'static [usize]);
        let cases: [Case; 5] = [
            (2, 2, &[1., 2., 3., 4.], &[1, 1, 1, 1]),
            (3, 2, &[0., 0., 0., 0.], &[2, 2, 1, 1]),
            (4, 2, &[1., 4., 2., 1.], &[1, 4, 2, 1]),
            (3, 3, &[10., 5., 2., 15., 8.], &[2, 1, 1, 3, 2]),
            (2, 2, &[0., 10., 0.], &[1, 2, 1]),
        ];
        for (slots_per_rank, ranks, loads, expected) in cases {
            for ties in [TieBreak::FewestReplicas, TieBreak::LowestExpert] {
                let copies = Eplb::new(1, ties).replicate_experts(loads, slots_per_rank * ranks);
                let counts: Vec<usize> =
                    (0..loads.len()).map(|e| copies.iter().filter(|&&c| c == e).count()).collect();
                let all_zero = loads.iter().all(|&l| l == 0.0);
                if ties == TieBreak::LowestExpert && all_zero {
                    assert_eq!(counts, [3, 1, 1, 1], "the reference gives every spare slot to expert 0");
                } else {
                    assert_eq!(counts, expected, "{loads:?} {ties:?}");
                }
            }
        }
    }

    #[test]
    fn shapes_that_do_not_divide_are_refused() {
        let eplb = Eplb::new(5, TieBreak::LowestExpert);
        assert!(eplb.physical_to_logical(&REFERENCE[0], 16, 5, 8).is_err());
        assert!(eplb.physical_to_logical(&REFERENCE[0], 15, 1, 8).is_err());
        assert!(eplb.physical_to_logical(&REFERENCE[0], 8, 1, 8).is_err());
    }
}
