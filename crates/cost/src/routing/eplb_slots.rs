//! Rows per slot after EPLB, as TensorRT-LLM's collector for wide expert parallelism places replicas.
//!
//! In: a drawn load per expert and a number of slots. Out: rows per slot, with the slowest rank first. The
//! expert with the most rows per replica is replicated first. Replicas, fullest first, go to the rank with
//! the fewest rows that has a free slot. The placement sees the very batch that it serves.

use super::RoutingShape;
use super::power_law::legacy_expert_counts;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Draws rows per slot under EPLB. `slots` is the number of slots of all ranks: a multiple of the ranks
/// that is not less than the experts. The counts sum to [`RoutingShape::rows`].
pub fn draw_slot_counts(shape: &RoutingShape, exponent: f64, slots: u64, seed: u64) -> Vec<u64> {
    slot_counts(&mut ChaCha8Rng::seed_from_u64(seed), shape, exponent, slots)
}

pub(crate) fn slot_counts(rng: &mut ChaCha8Rng, shape: &RoutingShape, exponent: f64, slots: u64) -> Vec<u64> {
    let counts = legacy_expert_counts(rng, shape, exponent);
    let mut replicas = vec![1u64; counts.len()];
    let mut slot_expert: Vec<usize> = (0..counts.len()).collect();
    while (slot_expert.len() as u64) < slots && !counts.is_empty() {
        // Fractions are compared exactly, and the lowest expert wins a tie.
        let heavier = |a: usize, b: usize| {
            let (left, right) =
                (counts[a] as u128 * replicas[b] as u128, counts[b] as u128 * replicas[a] as u128);
            left.cmp(&right).then(b.cmp(&a))
        };
        let Some(expert) = (0..counts.len()).max_by(|&a, &b| heavier(a, b)) else { break };
        replicas[expert] += 1;
        slot_expert.push(expert);
    }
    let load: Vec<f64> =
        slot_expert.iter().map(|&expert| counts[expert] as f64 / replicas[expert] as f64).collect();
    let ranks = place_greedily(&load, shape.ranks.max(1) as usize);
    let sum = |rank: &Vec<usize>| rank.iter().map(|&slot| load[slot]).sum::<f64>();
    let slowest = (0..ranks.len()).max_by(|&a, &b| sum(&ranks[a]).total_cmp(&sum(&ranks[b])).then(b.cmp(&a)));
    let slowest = slowest.unwrap_or(0);
    let others = (0..ranks.len()).filter(|&rank| rank != slowest);
    let order: Vec<f64> = [slowest]
        .into_iter()
        .chain(others)
        .flat_map(|rank| ranks[rank].iter().map(|&slot| load[slot]))
        .collect();
    round_to_sum(&order, counts.iter().sum())
}

/// Returns the slots of every rank. Each slot, fullest first, goes to the emptiest rank with room.
fn place_greedily(load: &[f64], ranks: usize) -> Vec<Vec<usize>> {
    let room = load.len().div_ceil(ranks);
    let mut order: Vec<usize> = (0..load.len()).collect();
    order.sort_by(|&a, &b| load[b].total_cmp(&load[a]).then(a.cmp(&b)));
    let mut placed = vec![Vec::new(); ranks];
    let mut sums = vec![0.0f64; ranks];
    for slot in order {
        let open = (0..ranks).filter(|&rank| placed[rank].len() < room);
        let Some(rank) = open.min_by(|&a, &b| sums[a].total_cmp(&sums[b]).then(a.cmp(&b))) else { break };
        placed[rank].push(slot);
        sums[rank] += load[slot];
    }
    placed
}

/// Rounds down, and adds the missing rows where the fraction is largest.
fn round_to_sum(loads: &[f64], sum: u64) -> Vec<u64> {
    let mut rows: Vec<u64> = loads.iter().map(|load| load.floor() as u64).collect();
    let missing = sum.saturating_sub(rows.iter().sum());
    let fraction = |at: usize| loads[at] - loads[at].floor();
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by(|&a, &b| fraction(b).total_cmp(&fraction(a)).then(a.cmp(&b)));
    order.into_iter().take(missing as usize).for_each(|at| rows[at] += 1);
    rows
}
