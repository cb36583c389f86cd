//! The compiled problem as plain data, for those who run the same method elsewhere (on a GPU).
//!
//! In: [`Hosts`]. Out: the index lists that the exact split walks, in the order in which it walks them. Whoever
//! performs the same steps in an equivalent order gets the same quotas, bit for bit; the method is described in
//! docs/fast-loop.md.
//!
//! **Places.** The (item, host) pairs that leave a choice are numbered densely: the `k`-th two-hosted item has the
//! places `2k` (its lower rank) and `2k + 1`; the places of items with more hosts follow, hosts ascending.

use crate::Hosts;

/// How many drains are tried on two-hosted items before blocking flows take over.
pub(crate) const DRAINS: usize = 64;

/// What the exact split works out once per problem. Lists of lists come as bounds and values: the values of row
/// `i` are `bounds[i]..bounds[i + 1]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// The number of ranks.
    pub ranks: usize,
    /// The number of (item, host) pairs.
    pub pairs: usize,
    /// Bounds of every item's pairs, `items + 1`.
    pub offsets: Vec<u32>,
    /// Rank by rank, the items that have no other host.
    pub single_bounds: Vec<u32>,
    /// Values of [`single_bounds`](Self::single_bounds).
    pub single: Vec<u32>,
    /// The two-hosted items, ascending: item, lower rank, higher rank.
    pub two: Vec<[u32; 3]>,
    /// The items with three hosts or more, ascending.
    pub many: Vec<u32>,
    /// For every item of [`many`](Self::many), its ranks, ascending.
    pub many_bounds: Vec<u32>,
    /// Values of [`many_bounds`](Self::many_bounds).
    pub many_ranks: Vec<u32>,
    /// The pair of every place.
    pub pair_of: Vec<u32>,
    /// Rank by rank, the places there, ascending.
    pub seat_bounds: Vec<u32>,
    /// Values of [`seat_bounds`](Self::seat_bounds): the place; and for a two-hosted item its other rank, else the
    /// item's index in [`many`](Self::many).
    pub seats: Vec<[u32; 2]>,
    /// How often the two-hosted items are levelled out at most.
    pub passes: usize,
    /// How many drains are tried before blocking flows take over.
    pub drains: usize,
    /// The spanning forests, each from the roots down: parent, child, parent's place, child's place.
    pub forests: Vec<Vec<[u32; 4]>>,
}

impl Hosts {
    /// The compiled form of these hosts, copied out.
    pub fn compiled(&self) -> Compiled {
        let net = self.net();
        let branches = |forest: &Vec<crate::net::Branch>| {
            forest.iter().map(|b| [b.parent, b.child, b.parent_place, b.child_place]).collect()
        };
        Compiled {
            ranks: self.ranks(),
            pairs: self.len(),
            offsets: self.offsets().to_vec(),
            single_bounds: net.single.bounds().to_vec(),
            single: net.single.values().to_vec(),
            two: net.two.iter().map(|two| [two.item, two.low, two.high]).collect(),
            many: net.many_items.clone(),
            many_bounds: net.many.bounds().to_vec(),
            many_ranks: net.many.values().to_vec(),
            pair_of: net.pair_of.clone(),
            seat_bounds: net.seats.bounds().to_vec(),
            seats: net.seats.values().iter().map(|seat| [seat.place, seat.other]).collect(),
            passes: net.passes,
            drains: if net.many_items.is_empty() { DRAINS } else { 0 },
            forests: net.forests.iter().map(branches).collect(),
        }
    }
}
