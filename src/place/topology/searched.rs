//! Designed replica graphs: `lplb:designed:D`.
//!
//! In: the number of ranks, and of redundant slots per rank (`D`). Out: `D` columns of a
//! [`Topology`](super::Topology).
//!
//! Every column is one cycle through all ranks. A cycle crosses every cut at least twice, and every rank has
//! `2 D` neighbours. The edge-connectivity of the graph is therefore `2 D`, the highest possible. The search
//! looks for a union without parallel edges in which ranks are near each other. It minimises the sum of all
//! distances, because a graph with small distances has no short cycles and expands. It exchanges two ranks of
//! a cycle and keeps improvements, a fixed number of times from a fixed seed.
//!
//! The first column carries the heaviest experts and is fixed. LPLB assigns experts by load, so that ranks
//! with heavy experts are adjacent. A cycle in strides of nearly half of all ranks joins heavy with light
//! ones.

use crate::rng::SeededRng;
use std::collections::VecDeque;

/// Ranks visited by all computations of distances together. The number of exchanges follows from it.
const MAX_VISITED_RANKS: usize = 60_000_000;
/// Highest number of evaluated exchanges.
const MAX_EXCHANGES: usize = 6_000;

/// Returns the columns for `ranks` ranks: `[d][rank]` is the source rank of the `d`-th slot. With too few
/// ranks (`2 D >= ranks`) a few parallel edges cannot be avoided.
pub(super) fn search_columns(ranks: usize, slots: usize) -> Vec<Vec<u32>> {
    let mut dice = SeededRng::new(ranks as u64, slots as u64);
    let mut cycles: Vec<Vec<u32>> = (0..slots)
        .map(|column| {
            let mut cycle: Vec<u32> =
                (0..ranks).map(|at| (at * largest_stride(ranks) % ranks) as u32).collect();
            if column > 0 {
                dice.shuffle(&mut cycle);
            }
            cycle
        })
        .collect();
    if slots > 1 && ranks > 3 {
        let each = ranks * ranks * 2 * slots;
        let mut best = graph_cost(&cycles);
        for _ in 0..MAX_EXCHANGES.min(MAX_VISITED_RANKS / each) {
            let column = 1 + dice.draw_below(slots as u64 - 1) as usize;
            let (a, b) = (dice.draw_below(ranks as u64) as usize, dice.draw_below(ranks as u64) as usize);
            cycles[column].swap(a, b);
            let now = graph_cost(&cycles);
            if now <= best {
                best = now;
            } else {
                cycles[column].swap(a, b);
            }
        }
    }
    cycles
        .iter()
        .map(|cycle| {
            let mut column = vec![0; ranks];
            for (at, &rank) in cycle.iter().enumerate() {
                column[rank as usize] = cycle[(at + 1) % ranks];
            }
            column
        })
        .collect()
}

/// Returns the largest stride up to half of the ranks that visits all of them.
fn largest_stride(ranks: usize) -> usize {
    let common = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (1..=ranks / 2).rev().find(|&stride| common(stride, ranks) == 1).unwrap_or(1)
}

/// Returns the number of parallel edges, then the sum of all distances.
fn graph_cost(cycles: &[Vec<u32>]) -> (usize, usize) {
    let ranks = cycles.first().map_or(0, Vec::len);
    let mut neighbours = vec![Vec::with_capacity(2 * cycles.len()); ranks];
    for cycle in cycles {
        for (at, &rank) in cycle.iter().enumerate() {
            let next = cycle[(at + 1) % ranks];
            neighbours[rank as usize].push(next);
            neighbours[next as usize].push(rank);
        }
    }
    let parallel = neighbours.iter_mut().map(|own| {
        own.sort_unstable();
        own.windows(2).filter(|pair| pair[0] == pair[1]).count()
    });
    let parallel = parallel.sum();
    let (mut sum, mut distance) = (0, vec![usize::MAX; ranks]);
    let mut queue = VecDeque::with_capacity(ranks);
    for from in 0..ranks {
        distance.fill(usize::MAX);
        distance[from] = 0;
        queue.push_back(from as u32);
        while let Some(at) = queue.pop_front() {
            let here = distance[at as usize];
            sum += here;
            for &next in &neighbours[at as usize] {
                if distance[next as usize] == usize::MAX {
                    distance[next as usize] = here + 1;
                    queue.push_back(next);
                }
            }
        }
    }
    (parallel, sum)
}

#[cfg(test)]
mod tests {
    use super::super::Topology;

    #[test]
    fn designed_graphs_are_as_connected_as_can_be() {
        for (ranks, slots) in [(8, 1), (8, 2), (12, 3), (16, 2), (30, 2), (64, 2), (64, 4)] {
            let graph = Topology::from_name(&format!("designed:{slots}"), ranks).unwrap();
            let c = graph.connectivity();
            assert_eq!(graph.slots(), slots);
            assert_eq!(
                (c.components, c.edge_connectivity, c.parallel_edges),
                (1, 2 * slots, 0),
                "{ranks} {slots}"
            );
            assert_eq!(
                graph,
                Topology::from_name(&format!("designed:{slots}"), ranks).unwrap(),
                "no clock, no chance"
            );
        }
        // In the nearest possible graph of 4 neighbours on 16 ranks, 4 ranks are at distance 1 and 11 at
        // distance 2. The search may miss that for a few ranks.
        let near = Topology::from_name("designed:2", 16).unwrap().connectivity().diameter.unwrap();
        assert!(near <= 3, "{near}");
        let far = Topology::from_name("torus:8x8", 64).unwrap().connectivity().diameter.unwrap();
        assert!(Topology::from_name("designed:2", 64).unwrap().connectivity().diameter.unwrap() < far);
        // Four ranks are too few for 4 neighbours each.
        assert!(Topology::from_name("designed:2", 4).unwrap().connectivity().parallel_edges > 0);
    }
}
