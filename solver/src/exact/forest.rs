//! Maximum flows on forests of ranks, in two passes.
//!
//! In: quotas, excesses and a forest, every parent before its children. Out: the same, with as much excess
//! moved to slack as the forest's edges carry. On a tree the paths are known, so that no search is needed.
//! One pass from the leaves to the roots adds up the capacity of each subtree. One pass back distributes the
//! excess.
//!
//! There are two kinds of forest. The spanning forests of the placement ([`settle_forest`]) are fixed, and
//! their edges work in both directions. They remove the long, shallow waves that remain after levelling
//! between neighbours. The forest of a search ([`drain_forest`]) leads from overloaded ranks down to slack,
//! along residual steps only. Each of its paths is a shortest one from the overloaded ranks.
//!
//! An edge's quota is set aside while it is on offer, because an item with many hosts may lie on several
//! edges.

use super::SplitFlow;
use super::count::Whole;
use crate::network::Branch;

/// Moves the load that a spanning forest can move.
///
/// From the leaves up, every rank first balances its own subtree. Then it passes the remaining excess to its
/// parent, within its quota of the item between them, or offers its parent the remaining slack. From the
/// roots down, excess follows these offers.
pub(super) fn settle_forest<N: Whole>(forest: &[Branch], flow: &mut SplitFlow<N>) {
    let SplitFlow { quota, excess, offer, subtree, .. } = flow;
    subtree.copy_from_slice(excess);
    for (branch, offer) in forest.iter().zip(offer.iter_mut()).rev() {
        let (child, parent) = (branch.child as usize, branch.parent as usize);
        let (child_place, parent_place) = (branch.child_place as usize, branch.parent_place as usize);
        // A positive amount goes up now. A negative one may come down later, and is set aside.
        let moved = subtree[child].min(quota[child_place]).max(N::ZERO - quota[parent_place]);
        let up = moved.max(N::ZERO);
        *offer = up - moved;
        quota[child_place] -= up;
        quota[parent_place] += moved;
        excess[child] -= up;
        excess[parent] += up;
        subtree[parent] += moved;
    }
    distribute_excess(forest, flow);
}

/// Moves the load that the forest of a search can move, at least one token if it reached slack.
pub(super) fn drain_forest<N: Whole>(forest: &[Branch], flow: &mut SplitFlow<N>) {
    let SplitFlow { quota, excess, offer, subtree, .. } = flow;
    for (slack, &excess) in subtree.iter_mut().zip(excess.iter()) {
        *slack = (N::ZERO - excess).max(N::ZERO);
    }
    for (branch, offer) in forest.iter().zip(offer.iter_mut()).rev() {
        *offer = subtree[branch.child as usize].min(quota[branch.parent_place as usize]);
        quota[branch.parent_place as usize] -= *offer;
        subtree[branch.parent as usize] += *offer;
    }
    distribute_excess(forest, flow);
}

/// Sends excess along the offers, roots first. Unused parts of an offer go back to their place.
fn distribute_excess<N: Whole>(forest: &[Branch], flow: &mut SplitFlow<N>) {
    let SplitFlow { quota, excess, offer, .. } = flow;
    for (branch, &offer) in forest.iter().zip(offer.iter()) {
        let (child, parent) = (branch.child as usize, branch.parent as usize);
        let down = excess[parent].max(N::ZERO).min(offer);
        quota[branch.child_place as usize] += down;
        quota[branch.parent_place as usize] += offer - down;
        excess[child] += down;
        excess[parent] -= down;
    }
}
