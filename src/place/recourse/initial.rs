//! Where the search begins: experts dealt out by load, copies along a replica graph or to the heaviest.
//!
//! In: each expert's share of the load and how many slots each rank has. Out: placements with every slot filled that can be,
//! no expert homeless and none twice on a rank. `graphs` gives every expert a home and copies the heaviest experts of each
//! rank to others (LPLB's idea, with rings and random permutations of all ranks); `greedy` gives copies to the experts with the largest load per copy and packs all of them, heaviest first (EPLB's idea).

use super::seating::{Rank, Seating, Step};
use crate::trace::dice::Dice;
use std::cmp::Reverse;

/// Random permutations tried besides the rings.
const PERMUTATIONS: usize = 3;

/// All starts. Empty where the slots cannot hold the experts.
pub(crate) fn starts(shares: &[u64], slots: &[usize], dice: &mut Dice) -> Vec<Seating> {
    let total: usize = slots.iter().sum();
    if total < shares.len() || shares.is_empty() {
        return vec![];
    }
    let homes = homes(shares, slots);
    let ranks = slots.len();
    let mut all = vec![greedy(shares, slots)];
    if let Some(homes) = homes {
        let turn = |by: usize, group: usize| -> Vec<usize> {
            (0..ranks).map(|rank| rank / group * group + (rank % group + by) % group).collect()
        };
        let mut graphs = vec![vec![turn(1, ranks), turn(2, ranks)]];
        for group in [4, 8] {
            if ranks.is_multiple_of(group) && ranks > group {
                let far = (0..ranks).map(|rank| (rank + group) % ranks).collect();
                graphs.push(vec![turn(1, group), far]);
            }
        }
        for _ in 0..PERMUTATIONS {
            graphs.push((0..4).map(|_| cycle(ranks, dice)).collect());
        }
        all.extend(graphs.iter().map(|graph| along(graph, &homes, shares, slots)));
    }
    all
}

/// One copy of every expert: heaviest first, each to the rank that is least loaded for its slots and has room.
fn homes(shares: &[u64], slots: &[usize]) -> Option<Seating> {
    let mut seating = Seating::empty(shares.len(), slots);
    let ranks = slots.len();
    // Every rank keeps its part of the redundant slots.
    let total: usize = slots.iter().sum();
    let share = |upto: usize| upto * shares.len() / total;
    let mut upto = 0;
    let mut room: Vec<usize> = vec![0; ranks];
    for rank in 0..ranks {
        room[rank] = share(upto + slots[rank]) - share(upto);
        upto += slots[rank];
    }
    let mut filled = vec![0u64; ranks];
    let mut next: Vec<usize> = (0..ranks).map(|rank| seating.slots_of(rank as Rank).start).collect();
    for expert in by_load(shares) {
        let rank = (0..ranks).filter(|&rank| room[rank] > 0).min_by_key(|&rank| filled[rank])?;
        seating.apply(Step::Retarget(next[rank], expert));
        next[rank] += 1;
        room[rank] -= 1;
        filled[rank] += shares[expert as usize];
    }
    Some(seating)
}

/// Copies along permutations: the `j`-th free slot of a rank takes the heaviest expert, of those with fewest copies, that the
/// `j`-th permutation's source has at home.
fn along(graph: &[Vec<usize>], homes: &Seating, shares: &[u64], slots: &[usize]) -> Seating {
    let mut seating = homes.clone();
    let free: Vec<Vec<usize>> = (0..slots.len())
        .map(|rank| {
            let slots = homes.slots_of(rank as Rank);
            slots.filter(|&slot| homes.held(slot) as usize == shares.len()).collect()
        })
        .collect();
    for column in 0..free.iter().map(Vec::len).max().unwrap_or(0) {
        let sources = &graph[column % graph.len()];
        for (rank, free) in free.iter().enumerate() {
            let Some(&slot) = free.get(column) else { continue };
            let at_home = homes.slots_of(sources[rank] as Rank).map(|slot| homes.held(slot));
            let best = at_home
                .filter(|&expert| seating.allows(Step::Retarget(slot, expert)))
                .min_by_key(|&expert| (seating.hosts(expert).len(), Reverse(shares[expert as usize])));
            if let Some(expert) = best {
                seating.apply(Step::Retarget(slot, expert));
            }
        }
    }
    fill(&mut seating, shares);
    seating
}

/// Copies for the largest load per copy, then all packed, heaviest first, each to the lightest rank with room.
fn greedy(shares: &[u64], slots: &[usize]) -> Seating {
    let (total, ranks) = (slots.iter().sum::<usize>(), slots.len());
    let mut copies = vec![1usize; shares.len()];
    let mut heap: std::collections::BinaryHeap<(u64, Reverse<u32>)> =
        (0..shares.len() as u32).map(|e| (shares[e as usize], Reverse(e))).collect();
    let mut used = shares.len();
    while used < total {
        let Some((_, Reverse(expert))) = heap.pop() else { break };
        let count = &mut copies[expert as usize];
        if *count < ranks {
            *count += 1;
            used += 1;
            heap.push((shares[expert as usize] / *count as u64, Reverse(expert)));
        }
    }
    let weight = |expert: u32| shares[expert as usize] / copies[expert as usize] as u64;
    let mut order: Vec<u32> = (0..shares.len() as u32).collect();
    order.sort_by_key(|&expert| (Reverse(weight(expert)), expert));
    // Heaviest first balances best; where it runs into a corner, most copies first never does.
    pack(&order, &copies, slots, |rank, filled, _| (filled[rank], 0), &weight).unwrap_or_else(|| {
        order.sort_by_key(|&expert| (Reverse(copies[expert as usize]), Reverse(weight(expert)), expert));
        let roomiest =
            |rank: usize, filled: &[u64], room: &[usize]| (u64::MAX - room[rank] as u64, filled[rank]);
        let mut seating = pack(&order, &copies, slots, roomiest, &weight)
            .unwrap_or_else(|| Seating::empty(shares.len(), slots));
        fill(&mut seating, shares);
        seating
    })
}

fn pack(
    order: &[u32],
    copies: &[usize],
    slots: &[usize],
    key: impl Fn(usize, &[u64], &[usize]) -> (u64, u64),
    weight: &impl Fn(u32) -> u64,
) -> Option<Seating> {
    let mut seating = Seating::empty(copies.len(), slots);
    let mut room = slots.to_vec();
    let mut filled = vec![0u64; slots.len()];
    for &expert in order {
        for _ in 0..copies[expert as usize] {
            let open =
                (0..slots.len()).filter(|&rank| room[rank] > 0 && !seating.holds(rank as Rank, expert));
            let rank = open.min_by_key(|&rank| key(rank, &filled, &room))?;
            let slot = seating.slots_of(rank as Rank).end - room[rank];
            seating.apply(Step::Retarget(slot, expert));
            room[rank] -= 1;
            filled[rank] += weight(expert);
        }
    }
    Some(seating)
}

/// Fills empty slots with the experts of the largest load per copy, where any fit.
pub(super) fn fill(seating: &mut Seating, shares: &[u64]) {
    for slot in 0..seating.slots() {
        if seating.held(slot) as usize == shares.len() {
            let fits = (0..shares.len() as u32).filter(|&e| seating.allows(Step::Retarget(slot, e)));
            let per_copy = |e: u32| shares[e as usize] / (seating.hosts(e).len() as u64 + 1);
            if let Some(expert) = fits.max_by_key(|&e| (per_copy(e), Reverse(e))) {
                seating.apply(Step::Retarget(slot, expert));
            }
        }
    }
}

fn by_load(shares: &[u64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..shares.len() as u32).collect();
    order.sort_by_key(|&expert| Reverse(shares[expert as usize]));
    order
}

/// A random cyclic permutation: no rank copies from itself.
fn cycle(ranks: usize, dice: &mut Dice) -> Vec<usize> {
    let mut order: Vec<usize> = (0..ranks).collect();
    dice.shuffle(&mut order);
    let mut sources = vec![0; ranks];
    for (at, &rank) in order.iter().enumerate() {
        sources[rank] = order[(at + 1) % ranks];
    }
    sources
}
