//! The replicas of an expert as a stack lists them, and which of them SGLang calls nearest.

use super::StackDispatch;
use crate::place::Placement;

/// Returns the slots that a stack chooses from, ascending. vllm-ascend's tables have one replica per rank: of
/// two on one rank, the second is never addressed.
pub(super) fn replicas(stack: StackDispatch, placement: &Placement, expert: usize) -> Vec<u32> {
    let mut slots = placement.copies(expert).to_vec();
    if stack == StackDispatch::VllmAscend {
        slots.dedup_by_key(|&mut slot| placement.rank_of(slot));
    }
    slots
}

/// Finds what SGLang's `_find_nearest_expert` finds, as a position among the replicas, whose ranks are given: the
/// only replica there is; else the first on the own GPU; else the first on the own node if the node has some of the
/// replicas and not all; else none.
pub(super) fn nearest(ranks: &[usize], source: usize, ranks_per_node: usize) -> Option<usize> {
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

/// Returns the position of vllm-ascend's replica among `replicas`, for a source rank; `tp_size` ranks share one batch.
pub(super) fn of_source(replicas: usize, source: usize, expert: usize, tp_size: usize) -> usize {
    let at = if tp_size > 1 { source % tp_size + source / tp_size + expert } else { source };
    at % replicas
}
