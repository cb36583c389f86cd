//! Replica graphs that are designed: `lplb:designed:D`.
//!
//! In: how many ranks, how many redundant slots each (`D`). Out: `D` columns of a [`Topology`](super::Topology). Every column
//! is one cycle through all ranks. A cycle crosses every cut at least twice and every rank has `2 D` neighbours, so the
//! graph's edge-connectivity is `2 D`, the most that it can be; what is left to be found is a union without parallel edges in
//! which ranks are near each other. The sum of all distances is what is made small (a graph whose distances are small has no
//! short cycles and expands): by exchanging two ranks of a cycle, as long as that helps, a fixed number of times, from a
//! fixed seed. The first column, which carries the heaviest experts, is given: LPLB deals experts out by load, so that ranks
//! with heavy experts stand beside each other, and a cycle in strides of nearly half of all ranks joins heavy with light.

use crate::trace::dice::Dice;
use std::collections::VecDeque;

/// Ranks that are visited while distances are computed; the number of exchanges follows from it.
const VISITS: usize = 60_000_000;
/// Most exchanges that are tried.
const EXCHANGES: usize = 6_000;

/// The columns for `ranks` ranks: `[d][rank]` is the rank that the `d`-th slot copies from. Where there are too few ranks
/// (`2 D >= ranks`), parallel edges cannot be avoided; there are few.
pub(super) fn columns(ranks: usize, slots: usize) -> Vec<Vec<u32>> {
    let mut dice = Dice::new(ranks as u64, slots as u64);
    let mut cycles: Vec<Vec<u32>> = (0..slots)
        .map(|column| {
            let mut cycle: Vec<u32> = (0..ranks).map(|at| (at * stride(ranks) % ranks) as u32).collect();
            if column > 0 {
                dice.shuffle(&mut cycle);
            }
            cycle
        })
        .collect();
    if slots > 1 && ranks > 3 {
        let each = ranks * ranks * 2 * slots;
        let mut best = cost(&cycles);
        for _ in 0..EXCHANGES.min(VISITS / each) {
            let column = 1 + dice.below(slots as u64 - 1) as usize;
            let (a, b) = (dice.below(ranks as u64) as usize, dice.below(ranks as u64) as usize);
            cycles[column].swap(a, b);
            let now = cost(&cycles);
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

/// The largest stride up to half of the ranks that visits all of them.
fn stride(ranks: usize) -> usize {
    let common = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (1..=ranks / 2).rev().find(|&stride| common(stride, ranks) == 1).unwrap_or(1)
}

/// Parallel edges first, then the sum of all distances.
fn cost(cycles: &[Vec<u32>]) -> (usize, usize) {
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
            let graph = Topology::named(&format!("designed:{slots}"), ranks).unwrap();
            let c = graph.connectivity();
            assert_eq!(graph.slots(), slots);
            assert_eq!(
                (c.components, c.edge_connectivity, c.parallel_edges),
                (1, 2 * slots, 0),
                "{ranks} {slots}"
            );
            assert_eq!(
                graph,
                Topology::named(&format!("designed:{slots}"), ranks).unwrap(),
                "no clock, no chance"
            );
        }
        // As near as any graph of 4 neighbours on 16 ranks can be: 4 at distance 1, 11 at distance 2 (or nearly all).
        let near = Topology::named("designed:2", 16).unwrap().connectivity().diameter.unwrap();
        assert!(near <= 3, "{near}");
        let far = Topology::named("torus:8x8", 64).unwrap().connectivity().diameter.unwrap();
        assert!(Topology::named("designed:2", 64).unwrap().connectivity().diameter.unwrap() < far);
        // Too few ranks for that many neighbours.
        assert!(Topology::named("designed:2", 4).unwrap().connectivity().parallel_edges > 0);
    }
}
