//! The greedy start: where load goes before the search corrects it.
//!
//! In: loads and rooms. Out: quotas and rank loads that conserve every load and respect the rooms as far
//! as the greedy can see; what it cannot place within the rooms it places above them.
//!
//! **Method.** Items with one host leave no choice. Each shared item in turn is poured like water into the
//! free room of its hosts: the emptiest fill first, and what remains free is level.

use crate::{Hosts, Problem, Split};

/// Scratch memory: the free room on the hosts of one item.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    basins: Vec<Basin>,
}

/// A host of the item in hand.
#[derive(Debug, Clone, Copy)]
struct Basin {
    free: u64,
    pair: u32,
}

impl Scratch {
    pub(super) fn fit(&mut self, hosts: &Hosts) {
        self.basins.clear();
        self.basins.reserve(hosts.ranks());
    }
}

/// Sets every rank to its base load and adds the items that have no second host.
pub(super) fn place_single_hosted(problem: &Problem, loads: &[u64], split: &mut Split) {
    split.rank_loads.copy_from_slice(problem.base());
    let (offsets, pairs) = (problem.hosts().offsets(), problem.hosts().pairs());
    for (bounds, &load) in offsets.windows(2).zip(loads) {
        let pair = bounds[0] as usize;
        if bounds[1] as usize == pair + 1 {
            split.quotas[pair] = load;
            split.rank_loads[pairs[pair] as usize] += load;
        }
    }
}

/// Pours every shared item over its hosts.
pub(super) fn place_shared(
    hosts: &Hosts,
    loads: &[u64],
    room: &[u64],
    scratch: &mut Scratch,
    split: &mut Split,
) {
    let (offsets, pairs) = (hosts.offsets(), hosts.pairs());
    for &item in hosts.shared() {
        let load = loads[item as usize];
        if load == 0 {
            continue;
        }
        scratch.basins.clear();
        let mut all_free = 0u128;
        for pair in offsets[item as usize]..offsets[item as usize + 1] {
            let rank = pairs[pair as usize] as usize;
            let free = room[rank].saturating_sub(split.rank_loads[rank]);
            all_free += u128::from(free);
            scratch.basins.push(Basin { free, pair });
        }
        let mut give = |pair: u32, amount: u64| {
            split.quotas[pair as usize] += amount;
            split.rank_loads[pairs[pair as usize] as usize] += amount;
        };
        if all_free >= u128::from(load) {
            pour(&mut scratch.basins, load, give);
        } else {
            // Fill all the room there is and share the rest evenly: the search will move it on.
            let rest = load - all_free as u64;
            let count = scratch.basins.len() as u64;
            let (each, over) = (rest / count, rest % count);
            for (basin, index) in scratch.basins.iter().zip(0..) {
                give(basin.pair, basin.free + each + u64::from(index < over));
            }
        }
    }
}

/// Pours a load that fits so that the least free room left is as large as can be.
///
/// The fullest basins stay dry; the `wet` emptiest end up level, free room differing by one at most.
fn pour(basins: &mut [Basin], load: u64, mut give: impl FnMut(u32, u64)) {
    // Emptiest first; ties in order of pair, that is of rank.
    basins.sort_unstable_by(|a, b| b.free.cmp(&a.free).then(a.pair.cmp(&b.pair)));
    let mut wet = 0;
    let mut free = 0u128;
    while let Some(basin) = basins.get(wet) {
        // Is the water level still below this basin's floor?
        if wet > 0 && free - u128::from(basin.free) * wet as u128 >= u128::from(load) {
            break;
        }
        free += u128::from(basin.free);
        wet += 1;
    }
    let left = free - u128::from(load);
    // The free room that each keeps, one more for the first few; at most what it had.
    let (level, over) = ((left / wet as u128) as u64, (left % wet as u128) as usize);
    for (index, basin) in basins[..wet].iter().enumerate() {
        give(basin.pair, basin.free - level - u64::from(index < over));
    }
}

#[cfg(test)]
impl Scratch {
    pub(super) fn capacity(&self) -> usize {
        self.basins.capacity()
    }
}
