//! Renaming of ranks and slots of a new placement, so that most experts stay in place.
//!
//! In: the current placement and the new one. Out: the new one with its ranks renamed and its slots
//! reordered. Equal ranks may be renamed freely, because no batch's peak changes. The choice of names is an
//! assignment problem over the common experts. With several nodes, the parts of one node stay together. Nodes
//! are matched by the common experts of their best matched ranks. Finally every expert that its rank already
//! holds keeps its slot.

use super::assignment::match_rows;
use super::{Placement, PlacementError};
use crate::cluster::Cluster;

/// Worth of a forbidden pair. Any permitted matching is worth more.
const FORBIDDEN: i64 = -(1 << 40);

/// Renames ranks and slots of `new` so that as few experts as possible have to be transferred from
/// `previous`.
///
/// The result has the peak of `new` in every batch. Its [`Placement::moves_from`] `previous` is the lowest
/// among all renamings that keep nodes together and respect the usable slots of each rank. If `previous` has
/// another number of ranks or slots, `new` is returned unchanged.
///
/// # Errors
/// Succeeds for every `new` that fits `cluster`.
pub fn relabel(
    previous: &Placement,
    new: &Placement,
    cluster: &Cluster,
) -> Result<Placement, PlacementError> {
    relabel_equals(previous, new, cluster, |_, _| true)
}

/// Renames as [`relabel()`] does, where rank `i` may take the name of rank `j` only if `equal(j, i)`.
///
/// # Errors
/// Succeeds for every `new` that fits `cluster`.
pub(super) fn relabel_equals(
    previous: &Placement,
    new: &Placement,
    cluster: &Cluster,
    equal: impl Fn(usize, usize) -> bool,
) -> Result<Placement, PlacementError> {
    let (ranks, per_rank) = (new.ranks(), new.slots_per_rank());
    if previous.ranks() != ranks || previous.slots_per_rank() != per_rank || cluster.ranks() != ranks {
        return Ok(new.clone());
    }
    let stays = match_ranks(previous, new, cluster, equal);
    let mut slots = vec![None; ranks * per_rank];
    for (old_rank, &new_rank) in stays.iter().enumerate() {
        let range = |rank: usize| rank * per_rank..(rank + 1) * per_rank;
        keep_slots(
            &previous.slots()[range(old_rank)],
            &new.slots()[range(new_rank)],
            &mut slots[range(old_rank)],
        );
    }
    Placement::new(new.experts(), ranks, slots)
}

/// Returns for each old rank the rank of `new` that takes its place.
fn match_ranks(
    previous: &Placement,
    new: &Placement,
    cluster: &Cluster,
    equal: impl Fn(usize, usize) -> bool,
) -> Vec<usize> {
    let (ranks, nodes) = (cluster.ranks(), cluster.nodes());
    let per_node = ranks / nodes;
    // Ties are broken in favour of the own name.
    let common = common_experts(previous, new);
    let scale = i64::try_from(ranks).unwrap_or(0) + 1;
    let filled: Vec<usize> = new
        .slots()
        .chunks(new.slots_per_rank())
        .map(|rank| rank.iter().filter(|slot| slot.is_some()).count())
        .collect();
    let worth = |old: usize, new: usize| {
        if filled[new] > cluster.slots_of(old) || !equal(old, new) {
            return FORBIDDEN;
        }
        common[old * ranks + new] * scale + i64::from(old == new)
    };
    let within = |old_node: usize, new_node: usize| {
        match_rows(per_node, |i, j| worth(old_node * per_node + i, new_node * per_node + j))
    };
    if nodes == 1 {
        return within(0, 0);
    }
    let pairs: Vec<Vec<usize>> = (0..nodes * nodes).map(|p| within(p / nodes, p % nodes)).collect();
    let node_worth = |old: usize, new: usize| {
        let columns = &pairs[old * nodes + new];
        columns.iter().enumerate().map(|(i, &j)| worth(old * per_node + i, new * per_node + j)).sum()
    };
    let chosen = match_rows(nodes, node_worth);
    (0..ranks)
        .map(|rank| {
            let (old, i) = (rank / per_node, rank % per_node);
            chosen[old] * per_node + pairs[old * nodes + chosen[old]][i]
        })
        .collect()
}

/// Returns the number of experts that old rank `i` and new rank `j` both hold: `[i * R + j]`.
fn common_experts(previous: &Placement, new: &Placement) -> Vec<i64> {
    let ranks = new.ranks();
    let mut common = vec![0; ranks * ranks];
    for expert in 0..new.experts().min(previous.experts()) {
        for old in previous.ranks_of(expert) {
            for new in new.ranks_of(expert) {
                common[old as usize * ranks + new as usize] += 1;
            }
        }
    }
    common
}

/// Puts experts that stay into their old slots, and the rest into the lowest free ones.
fn keep_slots(old: &[Option<u32>], new: &[Option<u32>], slots: &mut [Option<u32>]) {
    let mut coming = Vec::new();
    for &expert in new.iter().flatten() {
        let own = (0..slots.len()).find(|&slot| old[slot] == Some(expert) && slots[slot].is_none());
        match own {
            Some(slot) => slots[slot] = Some(expert),
            None => coming.push(expert),
        }
    }
    let mut coming = coming.into_iter();
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        *slot = coming.next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn placement(ranks: usize, slots: &[u32]) -> Placement {
        let experts = *slots.iter().max().unwrap() as usize + 1;
        Placement::new(experts, ranks, slots.iter().map(|&e| Some(e)).collect()).unwrap()
    }

    #[test]
    fn renamed_ranks_cost_nothing() {
        let old = placement(4, &[0, 1, 2, 3, 4, 5, 6, 7]);
        let new = placement(4, &[7, 6, 5, 4, 1, 0, 3, 2]);
        let cluster = Cluster::new(4, 1, 8, 0).unwrap();
        assert_eq!(relabel(&old, &new, &cluster).unwrap(), old);
    }

    #[test]
    fn nodes_stay_together() {
        let old = placement(4, &[0, 1, 2, 3, 4, 5, 6, 7]);
        // Ranks {0, 2} and {1, 3} of the old placement have changed nodes. No renaming within nodes can
        // repair that.
        let new = placement(4, &[0, 1, 4, 5, 2, 3, 6, 7]);
        let cluster = Cluster::new(4, 2, 8, 0).unwrap();
        let named = relabel(&old, &new, &cluster).unwrap();
        let node = |p: &Placement, n: usize| {
            let mut on: Vec<_> = p.slots()[n * 4..(n + 1) * 4].to_vec();
            on.sort_unstable();
            on
        };
        let mut nodes = [node(&named, 0), node(&named, 1)];
        nodes.sort();
        assert_eq!(nodes, [node(&new, 0), node(&new, 1)]);
        assert_eq!(named.moves_from(&old), 4);
        assert_eq!(relabel(&old, &new, &Cluster::new(4, 1, 8, 0).unwrap()).unwrap(), old);
    }

    fn permuted(ranks: usize, of: &Placement, order: &[usize]) -> Placement {
        let per = of.slots_per_rank();
        let slots = order.iter().flat_map(|&r| of.slots()[r * per..(r + 1) * per].to_vec()).collect();
        Placement::new(of.experts(), ranks, slots).unwrap()
    }

    proptest! {
        #[test]
        fn no_renaming_of_four_ranks_moves_less(
            old in prop::collection::vec(0u32..8, 4), new in prop::collection::vec(0u32..8, 4)
        ) {
            // Eight homes and one random replica per rank.
            let with = |copies: &[u32], step: u32| {
                let slots: Vec<u32> =
                    (0..4u32).flat_map(|r| [2 * r * step % 8, (2 * r * step + 1) % 8, copies[r as usize]]).collect();
                placement(4, &[slots, vec![]].concat())
            };
            let (old, new) = (with(&old, 1), with(&new, 3));
            prop_assume!(old.experts() == 8 && new.experts() == 8);
            let cluster = Cluster::new(4, 1, 8, 4).unwrap();
            let named = relabel(&old, &new, &cluster).unwrap();
            let mut least = usize::MAX;
            for a in 0..4 { for b in 0..4 { for c in 0..4 { for d in 0..4 {
                let mut sorted = [a, b, c, d];
                sorted.sort_unstable();
                if sorted == [0, 1, 2, 3] {
                    least = least.min(permuted(4, &new, &[a, b, c, d]).moves_from(&old));
                }
            }}}}
            prop_assert_eq!(named.moves_from(&old), least);
            // The result is only renamed: it has the same parts, and experts that stay have their old slots.
            let parts = |p: &Placement| {
                let mut parts: Vec<Vec<_>> = p.slots().chunks(3).map(|c| { let mut c = c.to_vec(); c.sort_unstable(); c }).collect();
                parts.sort();
                parts
            };
            prop_assert_eq!(parts(&named), parts(&new));
            prop_assert_eq!(relabel(&named, &new, &cluster).unwrap(), named);
        }
    }
}
