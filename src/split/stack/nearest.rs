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

/// Finds what SGLang's `_find_nearest_expert` finds: the only replica there is; else the first on the own
/// GPU; else the first on the own node if the node has some of the replicas and not all; else none.
pub(super) fn nearest(
    placement: &Placement,
    slots: &[u32],
    source: usize,
    ranks_per_node: usize,
) -> Option<u32> {
    if let &[slot] = slots {
        return Some(slot);
    }
    if let Some(&slot) = slots.iter().find(|&&slot| placement.rank_of(slot) == source) {
        return Some(slot);
    }
    let near = |slot: &&u32| placement.rank_of(**slot) / ranks_per_node == source / ranks_per_node;
    let first = slots.iter().find(near)?;
    (slots.iter().filter(near).count() < slots.len()).then_some(*first)
}

/// Returns vllm-ascend's replica for a source rank; `tp_size` ranks share one batch.
pub(super) fn of_source(slots: &[u32], source: usize, expert: usize, tp_size: usize) -> u32 {
    let at = if tp_size > 1 { source % tp_size + source / tp_size + expert } else { source };
    slots[at % slots.len()]
}
