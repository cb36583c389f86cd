//! Initial placements of the search: experts placed by load, replicas along a replica graph or for the
//! heaviest.
//!
//! In: each expert's share of the load, and the number of slots of each rank. Out: placements with as many
//! slots filled as possible, no expert homeless, and none twice on a rank. `replicate_along_graph` gives
//! every expert a home and replicates the heaviest experts of each rank on others. This is LPLB's idea, with
//! rings and random permutations of all ranks. `place_greedily` gives replicas to the experts with the
//! largest load per replica and packs all of them, heaviest first. This is EPLB's idea.

use super::incumbent::{RankIndex, SearchPlacement};
use crate::rng::SeededRng;
use evenkeel_solver::SlotChange;
use std::cmp::Reverse;

/// Number of starts from random permutations, in addition to the rings.
const RANDOM_GRAPHS: usize = 3;

/// Returns all starts, or none if the slots cannot hold the experts.
pub(crate) fn initial_placements(
    shares: &[u64],
    slots: &[usize],
    dice: &mut SeededRng,
) -> Vec<SearchPlacement> {
    let total: usize = slots.iter().sum();
    if total < shares.len() || shares.is_empty() {
        return vec![];
    }
    let homes = place_homes(shares, slots);
    let ranks = slots.len();
    let mut all = vec![place_greedily(shares, slots)];
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
        for _ in 0..RANDOM_GRAPHS {
            graphs.push((0..4).map(|_| draw_cycle(ranks, dice)).collect());
        }
        all.extend(graphs.iter().map(|graph| replicate_along_graph(graph, &homes, shares, slots)));
    }
    all
}

/// Places one replica of every expert, heaviest first, each on the rank with the lowest load that has room.
fn place_homes(shares: &[u64], slots: &[usize]) -> Option<SearchPlacement> {
    let mut seating = SearchPlacement::with_empty_slots(shares.len(), slots);
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
    let mut next: Vec<usize> = (0..ranks).map(|rank| seating.slots_of(rank as RankIndex).start).collect();
    for expert in experts_by_load(shares) {
        let rank = (0..ranks).filter(|&rank| room[rank] > 0).min_by_key(|&rank| filled[rank])?;
        seating.apply(SlotChange::Replace(next[rank], expert));
        next[rank] += 1;
        room[rank] -= 1;
        filled[rank] += shares[expert as usize];
    }
    Some(seating)
}

/// Adds replicas along permutations. The `j`-th free slot of a rank takes an expert whose home is the source
/// rank in the `j`-th permutation. It is the heaviest of those with the fewest replicas.
fn replicate_along_graph(
    graph: &[Vec<usize>],
    homes: &SearchPlacement,
    shares: &[u64],
    slots: &[usize],
) -> SearchPlacement {
    let mut seating = homes.clone();
    let free: Vec<Vec<usize>> = (0..slots.len())
        .map(|rank| {
            let slots = homes.slots_of(rank as RankIndex);
            slots.filter(|&slot| homes.expert_in_slot(slot) as usize == shares.len()).collect()
        })
        .collect();
    for column in 0..free.iter().map(Vec::len).max().unwrap_or(0) {
        let sources = &graph[column % graph.len()];
        for (rank, free) in free.iter().enumerate() {
            let Some(&slot) = free.get(column) else { continue };
            let at_home = homes.slots_of(sources[rank] as RankIndex).map(|slot| homes.expert_in_slot(slot));
            let best = at_home
                .filter(|&expert| seating.allows_step(SlotChange::Replace(slot, expert)))
                .min_by_key(|&expert| (seating.hosts(expert).len(), Reverse(shares[expert as usize])));
            if let Some(expert) = best {
                seating.apply(SlotChange::Replace(slot, expert));
            }
        }
    }
    fill_empty_slots(&mut seating, shares);
    seating
}

/// Gives replicas to the largest load per replica. Then it packs all replicas, heaviest first, each on the
/// lightest rank with room.
fn place_greedily(shares: &[u64], slots: &[usize]) -> SearchPlacement {
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
    // Heaviest first balances best, but may run out of distinct ranks. Most replicas first never does.
    pack_replicas(&order, &copies, slots, |rank, filled, _| (filled[rank], 0), &weight).unwrap_or_else(|| {
        order.sort_by_key(|&expert| (Reverse(copies[expert as usize]), Reverse(weight(expert)), expert));
        let roomiest =
            |rank: usize, filled: &[u64], room: &[usize]| (u64::MAX - room[rank] as u64, filled[rank]);
        let mut seating = pack_replicas(&order, &copies, slots, roomiest, &weight)
            .unwrap_or_else(|| SearchPlacement::with_empty_slots(shares.len(), slots));
        fill_empty_slots(&mut seating, shares);
        seating
    })
}

fn pack_replicas(
    order: &[u32],
    copies: &[usize],
    slots: &[usize],
    key: impl Fn(usize, &[u64], &[usize]) -> (u64, u64),
    weight: &impl Fn(u32) -> u64,
) -> Option<SearchPlacement> {
    let mut seating = SearchPlacement::with_empty_slots(copies.len(), slots);
    let mut room = slots.to_vec();
    let mut filled = vec![0u64; slots.len()];
    for &expert in order {
        for _ in 0..copies[expert as usize] {
            let open =
                (0..slots.len()).filter(|&rank| room[rank] > 0 && !seating.holds(rank as RankIndex, expert));
            let rank = open.min_by_key(|&rank| key(rank, &filled, &room))?;
            let slot = seating.slots_of(rank as RankIndex).end - room[rank];
            seating.apply(SlotChange::Replace(slot, expert));
            room[rank] -= 1;
            filled[rank] += weight(expert);
        }
    }
    Some(seating)
}

/// Fills empty slots with the experts of the largest load per replica, if any fit.
pub(super) fn fill_empty_slots(seating: &mut SearchPlacement, shares: &[u64]) {
    for slot in 0..seating.slots() {
        if seating.expert_in_slot(slot) as usize == shares.len() {
            let fits =
                (0..shares.len() as u32).filter(|&e| seating.allows_step(SlotChange::Replace(slot, e)));
            let per_copy = |e: u32| shares[e as usize] / (seating.hosts(e).len() as u64 + 1);
            if let Some(expert) = fits.max_by_key(|&e| (per_copy(e), Reverse(e))) {
                seating.apply(SlotChange::Replace(slot, expert));
            }
        }
    }
}

fn experts_by_load(shares: &[u64]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..shares.len() as u32).collect();
    order.sort_by_key(|&expert| Reverse(shares[expert as usize]));
    order
}

/// Draws a random cyclic permutation, in which no rank is its own source.
fn draw_cycle(ranks: usize, dice: &mut SeededRng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..ranks).collect();
    dice.shuffle(&mut order);
    let mut sources = vec![0; ranks];
    for (at, &rank) in order.iter().enumerate() {
        sources[rank] = order[(at + 1) % ranks];
    }
    sources
}
