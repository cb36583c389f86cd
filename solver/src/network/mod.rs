//! The hosts as the fast loop wants them: what never changes from batch to batch, worked out once.
//!
//! In: the (item, host) pairs. Out: index lists. Items with one host are summed per rank and copied in runs.
//! Items with a choice get *places*, dense numbers of their (item, host) pairs: the two-hosted items come
//! first, so that the two places of such an item are `2k` and `2k + 1` and each is the other's `^ 1`.

use crate::exact::{BLOCK, TABLE};

/// From this many ranks on, a second spanning forest pays for itself.
const TWO_FORESTS: usize = 48;

/// More passes than this cost more than they save the search.
const MOST_PASSES: usize = 6;

/// The compiled form of [`Hosts`](crate::Hosts).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Net {
    /// Rank by rank, the items that have no other host.
    pub(crate) single: Rows<u32>,
    /// The same in narrow numbers, where items are few enough.
    pub(crate) short: Option<Short>,
    /// Maximal runs of consecutive items with one host each, whose pairs are consecutive too.
    pub(crate) runs: Vec<Run>,
    /// The same runs in blocks of [`BLOCK`], the last of a run reaching over its end; and item by item where a block would
    /// reach over the end of everything. Both only for up to [`TABLE`] items.
    pub(crate) blocks: Vec<Block>,
    pub(crate) ends: Vec<Block>,
    /// The two-hosted items, ascending.
    pub(crate) two: Vec<Two>,
    /// The items with three hosts or more, ascending, and the rank of each of their places.
    pub(crate) many_items: Vec<u32>,
    pub(crate) many: Rows<u32>,
    /// The pair of every place.
    pub(crate) pair_of: Vec<u32>,
    /// Rank by rank, the places there.
    pub(crate) seats: Rows<Seat>,
    /// How often the two-hosted items are levelled out: more ranks, longer ways.
    pub(crate) passes: usize,
    /// Spanning forests of the ranks, every parent before its children: one, or two where ranks are many.
    pub(crate) forests: Vec<Vec<Branch>>,
}

/// Row by row, items in narrow numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Short {
    /// Up to 256 items.
    Bytes(Rows<u8>),
    /// Up to [`TABLE`] items.
    Words(Rows<u16>),
}

/// Consecutive items with one host each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) item: u32,
    pub(crate) pair: u32,
    pub(crate) count: u32,
}

/// The first of [`BLOCK`] consecutive items and pairs, for tables of at most [`TABLE`] items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) item: u32,
    pub(crate) pair: u32,
}

/// An item with two hosts; `low < high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Two {
    pub(crate) item: u32,
    pub(crate) low: u32,
    pub(crate) high: u32,
}

/// A place on a rank. `other` is the item's other host for a two-hosted item, else the index of the item
/// among those with many hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Seat {
    pub(crate) place: u32,
    pub(crate) other: u32,
}

/// An edge of a forest of ranks: an item that has places on both ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Branch {
    pub(crate) parent: u32,
    pub(crate) child: u32,
    pub(crate) parent_place: u32,
    pub(crate) child_place: u32,
}

/// Lists of values, one after the other (compressed sparse rows).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rows<T> {
    bounds: Vec<u32>,
    values: Vec<T>,
}

impl<T> Default for Rows<T> {
    fn default() -> Rows<T> {
        Rows { bounds: vec![0], values: Vec::new() }
    }
}

impl<T: Copy + Default> Rows<T> {
    /// Sorts values by row, keeping their order within each.
    fn sort(rows: usize, values: impl Iterator<Item = (u32, T)> + Clone) -> Rows<T> {
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
        Rows { bounds, values: sorted }
    }

    fn map<U>(&self, f: impl Fn(T) -> U) -> Rows<U> {
        Rows { bounds: self.bounds.clone(), values: self.values.iter().map(|&value| f(value)).collect() }
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

impl Net {
    pub(crate) fn compile(ranks: usize, offsets: &[u32], pairs: &[u32]) -> Net {
        let mut net = Net::default();
        let mut many_places = Vec::new();
        let hosts_of = |item: usize| &pairs[offsets[item] as usize..offsets[item + 1] as usize];
        let items = offsets.len() - 1;
        for item in 0..items {
            match *hosts_of(item) {
                [_] => net.extend_runs(item as u32, offsets[item]),
                [low, high] => {
                    net.two.push(Two { item: item as u32, low, high });
                    net.pair_of.extend([offsets[item], offsets[item] + 1]);
                }
                _ => {
                    net.many_items.push(item as u32);
                    many_places.extend(offsets[item]..offsets[item + 1]);
                }
            }
        }
        net.pair_of.extend(many_places);
        if items <= TABLE {
            net.cut_into_blocks(pairs.len());
        }
        let single = (0..items).filter(|&item| hosts_of(item).len() == 1);
        net.single = Rows::sort(ranks, single.map(|item| (hosts_of(item)[0], item as u32)));
        net.short = match items {
            0..=256 => Some(Short::Bytes(net.single.map(|item| item as u8))),
            257..=TABLE => Some(Short::Words(net.single.map(|item| item as u16))),
            _ => None,
        };
        let many = net.many_items.iter().enumerate();
        let many_ranks = many
            .flat_map(|(index, &item)| hosts_of(item as usize).iter().map(move |&rank| (index as u32, rank)));
        net.many = Rows::sort(net.many_items.len(), many_ranks);
        net.seats = Rows::sort(ranks, net.all_seats().collect::<Vec<_>>().into_iter());
        net.passes = (2 + ranks / 16).min(MOST_PASSES);
        net.forests.push(net.spanning_forest(ranks, false));
        if ranks >= TWO_FORESTS {
            net.forests.push(net.spanning_forest(ranks, true));
        }
        net
    }

    /// The number of places.
    pub(crate) fn places(&self) -> usize {
        self.pair_of.len()
    }

    /// The first place of an item with many hosts, by its index among these.
    pub(crate) fn many_place(&self, index: usize) -> usize {
        2 * self.two.len() + self.many.bounds()[index] as usize
    }

    fn extend_runs(&mut self, item: u32, pair: u32) {
        match self.runs.last_mut() {
            Some(run) if run.item + run.count == item => run.count += 1,
            _ => self.runs.push(Run { item, pair, count: 1 }),
        }
    }

    fn cut_into_blocks(&mut self, pairs: usize) {
        for run in &self.runs {
            let block = |start: u32| Block { item: run.item + start, pair: run.pair + start };
            for start in (0..run.count).step_by(BLOCK) {
                if block(start).pair as usize + BLOCK <= pairs {
                    self.blocks.push(block(start));
                } else {
                    self.ends.extend((start..run.count.min(start + BLOCK as u32)).map(block));
                }
            }
        }
    }

    /// Every place with its rank, places ascending.
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

    /// Breadth first, from the lowest rank of every component by its first seats, or from the highest by its
    /// last, so that the two forests differ as much as the order of ranks allows.
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
                    self.neighbours(seat, |child, child_place| {
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

    /// Every other place of the item at a seat, with its rank.
    fn neighbours(&self, seat: Seat, mut each: impl FnMut(u32, u32)) {
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
