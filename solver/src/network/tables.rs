//! The compiled problem as plain data, for implementations of the same method elsewhere (on a GPU).
//!
//! In: [`Hosts`]. Out: the index lists of the exact split, in the order in which it reads them. An
//! implementation that performs the same steps in an equivalent order gets the same quotas, bit for bit.
//! docs/fast-loop.md describes the method.
//!
//! **Places.** The (item, host) pairs of items with several hosts are numbered densely. The `k`-th two-hosted
//! item has the places `2k` (its lower rank) and `2k + 1`. The places of items with more hosts follow, hosts
//! ascending.

use crate::Hosts;

/// Highest number of drains on two-hosted items before blocking flows take over.
pub(crate) const MAX_DRAINS: usize = 64;

/// Data that the exact split computes once per problem. Lists of lists consist of bounds and values: the
/// values of row `i` are at `bounds[i]..bounds[i + 1]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SolverTables {
    /// Number of ranks.
    pub ranks: usize,
    /// Number of (item, host) pairs.
    pub pairs: usize,
    /// Bounds of every item's pairs, `items + 1`.
    pub offsets: Vec<u32>,
    /// Bounds of each rank's items that have no other host.
    pub single_bounds: Vec<u32>,
    /// Values of [`single_bounds`](Self::single_bounds).
    pub single: Vec<u32>,
    /// Two-hosted items, ascending: item, lower rank, higher rank.
    pub two: Vec<[u32; 3]>,
    /// Items with three hosts or more, ascending.
    pub many: Vec<u32>,
    /// Bounds of the ranks, ascending, of every item of [`many`](Self::many).
    pub many_bounds: Vec<u32>,
    /// Values of [`many_bounds`](Self::many_bounds).
    pub many_ranks: Vec<u32>,
    /// Pair of every place.
    pub pair_of: Vec<u32>,
    /// Bounds of each rank's places, ascending.
    pub seat_bounds: Vec<u32>,
    /// Values of [`seat_bounds`](Self::seat_bounds): the place, and a second number. It is the other rank of
    /// a two-hosted item, else the item's index in [`many`](Self::many).
    pub seats: Vec<[u32; 2]>,
    /// Highest number of passes that level the two-hosted items.
    pub passes: usize,
    /// Highest number of drains before blocking flows take over.
    pub drains: usize,
    /// Spanning forests, each from the roots down: parent, child, parent's place, child's place.
    pub forests: Vec<Vec<[u32; 4]>>,
}

impl Hosts {
    /// Returns a copy of the compiled form of these hosts.
    pub fn to_tables(&self) -> SolverTables {
        let net = self.flow_network();
        let branches = |forest: &Vec<crate::network::Branch>| {
            forest.iter().map(|b| [b.parent, b.child, b.parent_place, b.child_place]).collect()
        };
        SolverTables {
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
            drains: if net.many_items.is_empty() { MAX_DRAINS } else { 0 },
            forests: net.forests.iter().map(branches).collect(),
        }
    }
}
