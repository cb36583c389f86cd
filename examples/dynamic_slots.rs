//! Copies experts before every batch, as a serving loop does, and compares with static slots.
//!
//! ```sh
//! cargo run --release --example dynamic_slots
//! ```

#![allow(clippy::print_stdout, reason = "an example")]

use evenkeel::cluster::Cluster;
use evenkeel::place::{Contiguous, ExpertMove};
use evenkeel::planner::Planner;
use evenkeel::split::{DynamicSlots, SlotMemory};
use std::error::Error;

const RANKS: usize = 4;
const EXPERTS: usize = 16;
const BATCHES: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let cluster = Cluster::new(RANKS, 1, EXPERTS, 0)?;
    let homes = Contiguous::placement(EXPERTS, &cluster)?;
    let mut fixed = Planner::new(homes.clone(), cluster)?;
    // One dynamic slot per rank. Copies stay until others replace them.
    let slots = DynamicSlots::new(1, SlotMemory::Kept);
    let mut planner = Planner::with_dynamic_slots(homes, cluster, slots)?;
    println!("batch  static peak  dynamic peak  copies");
    for batch in 0..BATCHES {
        // Every rank routes its tokens and counts them. Here one process plays all ranks.
        let ids: Vec<Vec<i64>> = (0..RANKS).map(|rank| route(batch, rank)).collect();
        let mut counts = vec![0; RANKS * EXPERTS];
        for (ids, counts) in ids.iter().zip(counts.chunks_mut(EXPERTS)) {
            planner.count_ids(ids, counts)?;
        }
        // After the all-gather of the counts, every rank computes the same copies and quotas.
        let before = fixed.split(&counts)?.peak();
        let split = planner.split(&counts)?;
        let (after, copies) = (split.peak(), planner.last_copies());
        let list: Vec<String> = copies.iter().map(describe).collect();
        println!("{batch:5}  {before:11}  {after:12}  {}", list.join(", "));
        // The transfers begin here. Tokens follow to static and dynamic slots.
        let mut served = 0;
        for (rank, ids) in ids.iter().enumerate() {
            let slots = planner.redirect(ids, rank)?;
            served += slots.iter().filter(|&&slot| slot >= 0).count();
        }
        if served != RANKS * TOKENS {
            return Err(format!("{served} tokens served, expected {}", RANKS * TOKENS).into());
        }
    }
    Ok(())
}

const TOKENS: usize = 240;

/// Returns the expert of every token of a rank. Two experts are hot, and others become hot over time.
fn route(batch: usize, rank: usize) -> Vec<i64> {
    let hot = [batch / 3 * 5 % EXPERTS, (batch / 4 * 7 + 2) % EXPERTS];
    let expert = |token: usize| match token % 4 {
        0 => hot[0],
        1 => hot[1],
        _ => (token * 7 + rank * 3 + batch) % EXPERTS,
    };
    (0..TOKENS).map(|token| expert(token) as i64).collect()
}

fn describe(copy: &ExpertMove) -> String {
    let from = copy.from.map_or_else(|| "nowhere".to_owned(), |rank| format!("rank {rank}"));
    format!("expert {} from {from} to slot {} of rank {}", copy.expert, copy.slot, copy.to)
}
