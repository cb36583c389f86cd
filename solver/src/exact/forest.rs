//! The best that a forest of ranks can do: maximum flows on trees, in two passes.
//!
//! In: quotas, excesses and a forest, every parent before its children. Out: the same, with as much excess moved to
//! slack as the forest's edges carry. On a tree the paths are known, so no path is ever searched: one pass from
//! the leaves to the roots adds up what each subtree can take, one pass back hands it out.
//!
//! There are two kinds of forest. The spanning forests of the placement ([`settle`]) are fixed; their edges
//! work in both directions. They take away the long, shallow waves that levelling out between neighbours
//! leaves. The forest of a search ([`drain`]) leads from overloaded ranks down to slack, along residual steps
//! only, and each of its paths is a shortest one from the overloaded ranks.
//!
//! An edge's quota is set aside while it is on offer: an item with many hosts may lie on several edges.

use super::Flow;
use super::count::Whole;
use crate::net::Branch;

/// Moves what a spanning forest can move.
///
/// From the leaves up, every rank first counts on its own subtree; then it hands the excess that is left to its
/// parent, as far as its quota of the item between them goes, or else offers its parent the slack that is
/// left. From the roots down, excess follows these offers.
pub(super) fn settle<N: Whole>(forest: &[Branch], flow: &mut Flow<N>) {
    let Flow { quota, excess, offer, subtree, .. } = flow;
    subtree.copy_from_slice(excess);
    for (branch, offer) in forest.iter().zip(offer.iter_mut()).rev() {
        let (child, parent) = (branch.child as usize, branch.parent as usize);
        let (child_place, parent_place) = (branch.child_place as usize, branch.parent_place as usize);
        // Positive: goes up now. Negative: may come down later, and is set aside.
        let moved = subtree[child].min(quota[child_place]).max(N::ZERO - quota[parent_place]);
        let up = moved.max(N::ZERO);
        *offer = up - moved;
        quota[child_place] -= up;
        quota[parent_place] += moved;
        excess[child] -= up;
        excess[parent] += up;
        subtree[parent] += moved;
    }
    hand_down(forest, flow);
}

/// Moves what the forest of a search can move, at least one token if it reached slack.
pub(super) fn drain<N: Whole>(forest: &[Branch], flow: &mut Flow<N>) {
    let Flow { quota, excess, offer, subtree, .. } = flow;
    for (slack, &excess) in subtree.iter_mut().zip(excess.iter()) {
        *slack = (N::ZERO - excess).max(N::ZERO);
    }
    for (branch, offer) in forest.iter().zip(offer.iter_mut()).rev() {
        *offer = subtree[branch.child as usize].min(quota[branch.parent_place as usize]);
        quota[branch.parent_place as usize] -= *offer;
        subtree[branch.parent as usize] += *offer;
    }
    hand_down(forest, flow);
}

/// Excess follows the offers, roots first; what of an offer is not used goes back to its place.
fn hand_down<N: Whole>(forest: &[Branch], flow: &mut Flow<N>) {
    let Flow { quota, excess, offer, .. } = flow;
    for (branch, &offer) in forest.iter().zip(offer.iter()) {
        let (child, parent) = (branch.child as usize, branch.parent as usize);
        let down = excess[parent].max(N::ZERO).min(offer);
        quota[branch.child_place as usize] += down;
        quota[branch.parent_place as usize] += offer - down;
        excess[child] += down;
        excess[parent] -= down;
    }
}
