//! Residual paths from overloaded ranks to slack, and a blocking flow along them.
//!
//! In: quotas, rank loads and rooms. Out: either load moved (fewer tokens above the rooms), or the set of
//! reached ranks, which is then a cut.
//!
//! **Method** (Dinic 1970). Load can move from rank `r` to rank `t` if a shared item has a quota on `r` and
//! `t` among its hosts. A breadth-first search from all overloaded ranks at once gives every rank and item
//! its level; an item is expanded once, by the first rank that carries it, because all its hosts are then
//! reached. Depth-first walks that go up one level per step then push load until no such path to slack is
//! left; *current arcs* remember what is exhausted. Unlike Dinic's, the search does not stop at the first
//! level with slack: walks may end at any level. What they add to the residual graph still leads down one
//! level, so the shortest path grows from search to search all the same, at most as often as there are
//! ranks, and there are about half as many searches.
//!
//! **Memory.** Levels are numbers on a clock that never runs backwards: whatever lies before this search's
//! first tick, as fresh zeros do, is "not reached". No array is ever cleared.

use crate::{Hosts, Split};

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Every rank is within its room.
    NothingOverloaded,
    /// Load can reach slack: [`block`] moves it.
    Slack,
    /// No slack in reach: [`Scratch::reached`] is a cut.
    Cut,
}

/// Scratch memory of the search.
#[derive(Debug, Clone, Default)]
pub(super) struct Scratch {
    /// The last tick of the clock: no level lies beyond it.
    clock: u64,
    rank_level: Vec<u64>,
    item_level: Vec<u64>,
    /// Ranks in the order they were reached; the first `overloaded` are the sources.
    queue: Vec<u32>,
    overloaded: usize,
    /// Current arcs: per rank the next seat to try, per item the next pair to try.
    rank_arc: Vec<u32>,
    item_arc: Vec<u32>,
    path: Vec<Step>,
}

/// One step of a walk: some of `item` moves from the rank of pair `from` to the rank of pair `to`.
#[derive(Debug, Clone, Copy)]
struct Step {
    item: u32,
    from: u32,
    to: u32,
}

impl Scratch {
    pub(super) fn fit(&mut self, hosts: &Hosts) {
        self.rank_level.resize(hosts.ranks(), 0);
        self.rank_arc.resize(hosts.ranks(), 0);
        self.item_level.resize(hosts.items(), 0);
        self.item_arc.resize(hosts.items(), 0);
        self.queue.clear();
        self.queue.reserve(hosts.ranks());
        self.path.clear();
        self.path.reserve(hosts.ranks());
    }

    /// The ranks that the last search reached.
    pub(super) fn reached(&self) -> &[u32] {
        &self.queue
    }
}

/// Breadth-first search from all overloaded ranks.
pub(super) fn levels(hosts: &Hosts, room: &[u64], split: &Split, scratch: &mut Scratch) -> Found {
    let Scratch { rank_level, item_level, queue, rank_arc, item_arc, .. } = scratch;
    let start = scratch.clock + 1;
    let mut level = start;
    queue.clear();
    for (rank, (&load, &room)) in split.rank_loads.iter().zip(room).enumerate() {
        if load > room {
            rank_level[rank] = level;
            rank_arc[rank] = hosts.seat_offsets()[rank];
            queue.push(rank as u32);
        }
    }
    scratch.overloaded = queue.len();
    if queue.is_empty() {
        scratch.clock = level;
        return Found::NothingOverloaded;
    }

    let mut slack = false;
    let mut done = 0;
    while done < queue.len() {
        let level_end = queue.len();
        while done < level_end {
            let rank = queue[done] as usize;
            done += 1;
            let seats = hosts.seat_offsets()[rank] as usize..hosts.seat_offsets()[rank + 1] as usize;
            for seat in &hosts.seats()[seats] {
                let item = seat.item as usize;
                if item_level[item] >= start || split.quotas[seat.pair as usize] == 0 {
                    continue;
                }
                item_level[item] = level;
                item_arc[item] = hosts.offsets()[item];
                for &host in hosts.of(item) {
                    let to = host as usize;
                    if rank_level[to] < start {
                        rank_level[to] = level + 1;
                        rank_arc[to] = hosts.seat_offsets()[to];
                        slack |= split.rank_loads[to] < room[to];
                        queue.push(host);
                    }
                }
            }
        }
        level += 1;
    }
    scratch.clock = level;
    if slack { Found::Slack } else { Found::Cut }
}

/// Pushes a blocking flow: afterwards every path to slack has to go down a level somewhere.
pub(super) fn block(hosts: &Hosts, room: &[u64], split: &mut Split, scratch: &mut Scratch) {
    for source in 0..scratch.overloaded {
        let source = scratch.queue[source];
        scratch.path.clear();
        while split.rank_loads[source as usize] > room[source as usize] {
            if !walk(source, hosts, room, split, scratch) {
                break;
            }
            push(source, hosts, room, split, scratch);
        }
    }
}

/// Extends the path, depth first, until it ends at a rank with slack; false if there is no such path.
fn walk(source: u32, hosts: &Hosts, room: &[u64], split: &Split, scratch: &mut Scratch) -> bool {
    loop {
        let at = scratch.path.last().map_or(source, |step| hosts.pairs()[step.to as usize]);
        if split.rank_loads[at as usize] < room[at as usize] {
            return true;
        }
        if let Some(step) = next_step(at, hosts, split, scratch) {
            scratch.path.push(step);
            continue;
        }
        // A dead end: never go there again, by this item or (its arcs being spent) by another.
        match scratch.path.pop() {
            Some(step) => scratch.item_arc[step.item as usize] += 1,
            None => return false,
        }
    }
}

/// The next step one level up from a rank, by its current arcs; does not advance past the step it returns.
fn next_step(rank: u32, hosts: &Hosts, split: &Split, scratch: &mut Scratch) -> Option<Step> {
    let level = scratch.rank_level[rank as usize];
    let end = hosts.seat_offsets()[rank as usize + 1];
    let arc = &mut scratch.rank_arc[rank as usize];
    while *arc < end {
        let seat = hosts.seats()[*arc as usize];
        let item = seat.item as usize;
        if scratch.item_level[item] == level && split.quotas[seat.pair as usize] > 0 {
            let to = &mut scratch.item_arc[item];
            while *to < hosts.offsets()[item + 1] {
                if scratch.rank_level[hosts.pairs()[*to as usize] as usize] == level + 1 {
                    return Some(Step { item: seat.item, from: seat.pair, to: *to });
                }
                *to += 1;
            }
        }
        *arc += 1;
    }
    None
}

/// Moves as much as the path allows, then cuts the path back to before its first exhausted step.
fn push(source: u32, hosts: &Hosts, room: &[u64], split: &mut Split, scratch: &mut Scratch) {
    let Some(last) = scratch.path.last() else { return };
    let sink = hosts.pairs()[last.to as usize] as usize;
    let source = source as usize;
    let mut amount = (split.rank_loads[source] - room[source]).min(room[sink] - split.rank_loads[sink]);
    for step in &scratch.path {
        amount = amount.min(split.quotas[step.from as usize]);
    }
    let mut keep = scratch.path.len();
    for (index, step) in scratch.path.iter().enumerate() {
        split.quotas[step.from as usize] -= amount;
        split.quotas[step.to as usize] += amount;
        if split.quotas[step.from as usize] == 0 {
            keep = keep.min(index);
        }
    }
    split.rank_loads[source] -= amount;
    split.rank_loads[sink] += amount;
    scratch.path.truncate(keep);
}

#[cfg(test)]
impl Scratch {
    pub(super) fn capacities(&self) -> [usize; 6] {
        [
            self.rank_level.capacity(),
            self.item_level.capacity(),
            self.queue.capacity(),
            self.rank_arc.capacity(),
            self.item_arc.capacity(),
            self.path.capacity(),
        ]
    }
}
