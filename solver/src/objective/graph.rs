//! Items with several hosts, as lists for searches, computed once per problem.
//!
//! In: hosts. Out: items, their places, and the places of every rank.

use std::sync::Arc;

use crate::Hosts;

/// Items with several hosts, and the possible moves of load. A *place* is such an item on one of its hosts.
#[derive(Debug, Clone, Default)]
pub(super) struct PlaceGraph {
    /// Items. The places of `items[k]` are `bounds[k]..bounds[k + 1]`.
    pub(super) items: Vec<u32>,
    pub(super) bounds: Vec<u32>,
    /// Rank, and (item, host) pair, of every place.
    pub(super) rank_of: Vec<u32>,
    pub(super) pair_of: Vec<u32>,
    /// Places by rank, with the index of their item.
    seat_bounds: Vec<u32>,
    seats: Vec<(u32, u32)>,
    /// True if no item has three hosts or more.
    pub(super) pairs_only: bool,
    built_for: Option<Arc<[u32]>>,
}

impl PlaceGraph {
    /// Computes the lists for these hosts, unless they are present.
    pub(super) fn build_for(&mut self, hosts: &Hosts) {
        if self.built_for.as_ref().is_some_and(|offsets| Arc::ptr_eq(offsets, hosts.offsets())) {
            return;
        }
        self.built_for = Some(Arc::clone(hosts.offsets()));
        self.items.clear();
        self.rank_of.clear();
        self.pair_of.clear();
        self.bounds.clear();
        self.bounds.push(0);
        let mut counts = vec![0u32; hosts.ranks() + 1];
        for &item in hosts.shared_items() {
            self.items.push(item);
            for (&rank, pair) in hosts.ranks_of(item as usize).iter().zip(hosts.offset(item as usize)..) {
                self.rank_of.push(rank);
                self.pair_of.push(pair as u32);
                counts[rank as usize + 1] += 1;
            }
            self.bounds.push(self.rank_of.len() as u32);
        }
        for rank in 0..hosts.ranks() {
            counts[rank + 1] += counts[rank];
        }
        self.pairs_only = self.bounds.windows(2).all(|bounds| bounds[1] - bounds[0] == 2);
        self.seat_bounds.clone_from(&counts);
        self.seats.clear();
        self.seats.resize(self.rank_of.len(), (0, 0));
        for index in 0..self.items.len() {
            for place in self.item_places(index) {
                let next = &mut counts[self.rank_of[place] as usize];
                self.seats[*next as usize] = (place as u32, index as u32);
                *next += 1;
            }
        }
    }

    /// Returns the places of an item, by its index in `items`.
    pub(super) fn item_places(&self, index: usize) -> std::ops::Range<usize> {
        self.bounds[index] as usize..self.bounds[index + 1] as usize
    }

    /// Returns the places on a rank, each with the index of its item.
    pub(super) fn seats(&self, rank: usize) -> &[(u32, u32)] {
        &self.seats[self.seat_bounds[rank] as usize..self.seat_bounds[rank + 1] as usize]
    }
}
