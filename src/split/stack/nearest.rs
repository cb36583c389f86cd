//! Replicas of an expert in the order of a stack, and SGLang's choice of the nearest one.

use super::StackDispatch;
use crate::place::Placement;

/// Returns the slots from which a stack chooses, ascending. vllm-ascend's tables have one replica per rank.
/// The second of two replicas on one rank never receives tokens.
pub(super) fn stack_replicas(stack: StackDispatch, placement: &Placement, expert: usize) -> Vec<u32> {
    let mut slots = placement.replicas(expert).to_vec();
    if stack == StackDispatch::VllmAscend {
        slots.dedup_by_key(|&mut slot| placement.rank_of(slot));
    }
    slots
}

/// Returns the result of SGLang's `_find_nearest_expert` as a position among the replicas, whose ranks are
/// given. It is the only replica if there is one. Otherwise it is the first on the own GPU. Otherwise it is
/// the first on the own node, if the node has some of the replicas and not all. Otherwise there is none.
pub(super) fn nearest_replica(ranks: &[usize], source: usize, ranks_per_node: usize) -> Option<usize> {
    if ranks.len() == 1 {
        return Some(0);
    }
    if let Some(own) = ranks.iter().position(|&rank| rank == source) {
        return Some(own);
    }
    let near = |&rank: &usize| rank / ranks_per_node == source / ranks_per_node;
    let first = ranks.iter().position(near)?;
    (ranks.iter().filter(|&rank| near(rank)).count() < ranks.len()).then_some(first)
}

/// Returns the position among `replicas` that vllm-ascend chooses for a source rank. `tp_size` ranks share
/// one batch.
pub(super) fn replica_of_source(replicas: usize, source: usize, expert: usize, tp_size: usize) -> usize {
    let at = if tp_size > 1 { source % tp_size + source / tp_size + expert } else { source };
    at % replicas
}
