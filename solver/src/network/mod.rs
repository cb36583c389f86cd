//! Compiled hosts of the fast loop: data that is the same for all batches and is computed once.
//!
//! In: the (item, host) pairs. Out: index lists. Items with one host are summed per rank and copied in runs.
//! Items with several hosts get *places*, dense numbers of their (item, host) pairs. Two-hosted items come
//! first. The two places of such an item are `2k` and `2k + 1`, so that each is the other's `^ 1`.

pub(crate) mod tables;

use crate::exact::{BLOCK_ITEMS, TABLE_ITEMS};

/// Number of ranks from which a second spanning forest saves time.
const TWO_FOREST_RANKS: usize = 48;

/// Highest number of passes. More cost more than they save the search.
const MAX_PASSES: usize = 6;

/// Compiled form of [`Hosts`](crate::Hosts).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct FlowNetwork {
    /// Items that have no other host, by rank.
    pub(crate) single: SparseRows<u32>,
    /// The rows of `single` in narrow numbers, if there are few enough items.
    pub(crate) narrow: Option<NarrowRows>,
    /// Maximal runs of consecutive items with one host each, whose pairs are consecutive too.
    pub(crate) runs: Vec<ItemRun>,
    /// The same runs in blocks of [`BLOCK_ITEMS`]. The last block of a run may exceed its end. Blocks that
    /// would exceed the end of all pairs are in `ends`, item by item. Both exist only for up to
    /// [`TABLE_ITEMS`] items.
    pub(crate) blocks: Vec<ItemBlock>,
    pub(crate) ends: Vec<ItemBlock>,
    /// Two-hosted items, ascending.
    pub(crate) two: Vec<TwoHosted>,
    /// Items with three hosts or more, ascending, and the rank of each of their places.
    pub(crate) many_items: Vec<u32>,
    pub(crate) many: SparseRows<u32>,
    /// Pair of every place.
    pub(crate) pair_of: Vec<u32>,
    /// Places by rank.
    pub(crate) seats: SparseRows<Seat>,
    /// Number of passes that level the two-hosted items. More ranks mean longer paths and need more.
    pub(crate) passes: usize,
    /// Spanning forests of the ranks, every parent before its children: one, or two if there are many ranks.
    pub(crate) forests: Vec<Vec<Branch>>,
}

/// Items by row, in narrow numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NarrowRows {
    /// Up to 256 items.
    Bytes(SparseRows<u8>),
    /// Up to [`TABLE_ITEMS`] items.
    Words(SparseRows<u16>),
}

/// Consecutive items with one host each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ItemRun {
    pub(crate) item: u32,
    pub(crate) pair: u32,
    pub(crate) count: u32,
}

/// First of [`BLOCK_ITEMS`] consecutive items and pairs, for tables of at most [`TABLE_ITEMS`] items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ItemBlock {
    pub(crate) item: u32,
    pub(crate) pair: u32,
}

/// Item with two hosts, `low < high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TwoHosted {
    pub(crate) item: u32,
    pub(crate) low: u32,
    pub(crate) high: u32,
}

/// Place on a rank. `other` is the item's other host for a two-hosted item, else the index of the item among
/// those with many hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seat {
    pub(crate) place: u32,
    pub(crate) other: u32,
}

/// Edge of a forest of ranks: an item that has places on both ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Branch {
    pub(crate) parent: u32,
    pub(crate) child: u32,
    pub(crate) parent_place: u32,
    pub(crate) child_place: u32,
}

/// Lists of values, one after the other (compressed sparse rows).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SparseRows<T> {
    bounds: Vec<u32>,
    values: Vec<T>,
}

impl<T> Default for SparseRows<T> {
    fn default() -> SparseRows<T> {
        SparseRows { bounds: vec![0], values: Vec::new() }
    }
}

impl<T: Copy + Default> SparseRows<T> {
    /// Sorts values by row and keeps their order within each.
    fn sort(rows: usize, values: impl Iterator<Item = (u32, T)> + Clone) -> SparseRows<T> {
        let mut bounds = vec![0u32; rows + 1];
        for (row, _) in values.clone() {
            bounds[row as usize + 1] += 1;
        }
        for row in 0..rows {
            bounds[row + 1] += bounds[row];
        }
        let mut next = bounds.clone();
        let mut sorted = vec![T::default(); bounds[rows] as usize];
        for (row, value) in values {
            sorted[next[row as usize] as usize] = value;
            next[row as usize] += 1;
        }
        SparseRows { bounds, values: sorted }
    }

    fn map<U>(&self, f: impl Fn(T) -> U) -> SparseRows<U> {
        SparseRows {
            bounds: self.bounds.clone(),
            values: self.values.iter().map(|&value| f(value)).collect(),
        }
    }

    pub(crate) fn row(&self, row: usize) -> &[T] {
        &self.values[self.bounds[row] as usize..self.bounds[row + 1] as usize]
    }

    pub(crate) fn bounds(&self) -> &[u32] {
        &self.bounds
    }

    pub(crate) fn values(&self) -> &[T] {
        &self.values
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[T]> {
        self.bounds.windows(2).map(|bounds| &self.values[bounds[0] as usize..bounds[1] as usize])
    }
}

impl FlowNetwork {
    pub(crate) fn compile(ranks: usize, offsets: &[u32], pairs: &[u32]) -> FlowNetwork {
        let mut net = FlowNetwork::default();
        let mut many_places = Vec::new();
        let hosts_of = |item: usize| &pairs[offsets[item] as usize..offsets[item + 1] as usize];
        let items = offsets.len() - 1;
        for item in 0..items {
            match *hosts_of(item) {
                [_] => net.extend_runs(item as u32, offsets[item]),
                [low, high] => {
                    net.two.push(TwoHosted { item: item as u32, low, high });
                    net.pair_of.extend([offsets[item], offsets[item] + 1]);
                }
                _ => {
                    net.many_items.push(item as u32);
                    many_places.extend(offsets[item]..offsets[item + 1]);
                }
            }
        }
        net.pair_of.extend(many_places);
        if items <= TABLE_ITEMS {
            net.cut_into_blocks(pairs.len());
        }
        let single = (0..items).filter(|&item| hosts_of(item).len() == 1);
        net.single = SparseRows::sort(ranks, single.map(|item| (hosts_of(item)[0], item as u32)));
        net.narrow = match items {
            0..=256 => Some(NarrowRows::Bytes(net.single.map(|item| item as u8))),
            257..=TABLE_ITEMS => Some(NarrowRows::Words(net.single.map(|item| item as u16))),
            _ => None,
        };
        let many = net.many_items.iter().enumerate();
        let many_ranks = many
            .flat_map(|(index, &item)| hosts_of(item as usize).iter().map(move |&rank| (index as u32, rank)));
        net.many = SparseRows::sort(net.many_items.len(), many_ranks);
        net.seats = SparseRows::sort(ranks, net.all_seats().collect::<Vec<_>>().into_iter());
        net.passes = (2 + ranks / 16).min(MAX_PASSES);
        net.forests.push(net.spanning_forest(ranks, false));
        if ranks >= TWO_FOREST_RANKS {
            net.forests.push(net.spanning_forest(ranks, true));
        }
        net
    }

    /// Returns the number of places.
    pub(crate) fn place_count(&self) -> usize {
        self.pair_of.len()
    }

    /// Returns the first place of an item with many hosts, by its index among these.
    pub(crate) fn many_place(&self, index: usize) -> usize {
        2 * self.two.len() + self.many.bounds()[index] as usize
    }

    fn extend_runs(&mut self, item: u32, pair: u32) {
        match self.runs.last_mut() {
            Some(run) if run.item + run.count == item => run.count += 1,
            _ => self.runs.push(ItemRun { item, pair, count: 1 }),
        }
    }

    fn cut_into_blocks(&mut self, pairs: usize) {
        for run in &self.runs {
            let block = |start: u32| ItemBlock { item: run.item + start, pair: run.pair + start };
            for start in (0..run.count).step_by(BLOCK_ITEMS) {
                if block(start).pair as usize + BLOCK_ITEMS <= pairs {
                    self.blocks.push(block(start));
                } else {
                    self.ends.extend((start..run.count.min(start + BLOCK_ITEMS as u32)).map(block));
                }
            }
        }
    }

    /// Returns every place with its rank, places ascending.
    fn all_seats(&self) -> impl Iterator<Item = (u32, Seat)> {
        let two = self.two.iter().zip(0u32..).flat_map(|(two, index)| {
            let place = 2 * index;
            [
                (two.low, Seat { place, other: two.high }),
                (two.high, Seat { place: place + 1, other: two.low }),
            ]
        });
        let many = (0..self.many_items.len()).flat_map(|index| {
            let first = self.many_place(index) as u32;
            let ranks = self.many.row(index).iter().zip(first..);
            ranks.map(move |(&rank, place)| (rank, Seat { place, other: index as u32 }))
        });
        two.chain(many)
    }

    /// Returns a spanning forest in breadth-first order. It starts from the lowest rank of every component by
    /// its first seats, or from the highest by its last. The two forests then differ as much as the order of
    /// ranks allows.
    fn spanning_forest(&self, ranks: usize, from_the_end: bool) -> Vec<Branch> {
        let mut forest = Vec::new();
        let mut seen = vec![false; ranks];
        let mut queue = Vec::with_capacity(ranks);
        for index in 0..ranks as u32 {
            let root = if from_the_end { ranks as u32 - 1 - index } else { index };
            if std::mem::replace(&mut seen[root as usize], true) {
                continue;
            }
            queue.clear();
            queue.push(root);
            let mut done = 0;
            while let Some(&parent) = queue.get(done) {
                done += 1;
                let seats = self.seats.row(parent as usize);
                for index in 0..seats.len() {
                    let seat = seats[if from_the_end { seats.len() - 1 - index } else { index }];
                    self.visit_neighbours(seat, |child, child_place| {
                        if !std::mem::replace(&mut seen[child as usize], true) {
                            queue.push(child);
                            forest.push(Branch { parent, child, parent_place: seat.place, child_place });
                        }
                    });
                }
            }
        }
        forest
    }

    /// Calls `each` with the rank and place of every other place of the item at a seat.
    fn visit_neighbours(&self, seat: Seat, mut each: impl FnMut(u32, u32)) {
        if (seat.place as usize) < 2 * self.two.len() {
            each(seat.other, seat.place ^ 1);
        } else {
            let first = self.many_place(seat.other as usize) as u32;
            for (&rank, place) in self.many.row(seat.other as usize).iter().zip(first..) {
                each(rank, place);
            }
        }
    }
}
