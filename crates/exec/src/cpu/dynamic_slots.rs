//! Copies of experts into dynamic slots on the CPU backend: clones within this process, and messages between
//! processes.

use super::all_to_all::ExchangeShape;
use super::codec;
use super::rank::{CpuRank, SlotWeights};
use crate::clock::time_work;
use crate::comm::{ProcessGroup, Purpose};
use crate::copy_exchange::{CopyExchange, LocalCopies, RankCopy};
use crate::error::ExecError;
use crate::weights::ExpertWeights;
use evenkeel::place::Placement;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Copies between ranks of this process.
pub(super) type LocalClones = LocalCopies<Arc<ExpertWeights>>;

/// Begins the copies that the rank's planner has chosen for a layer, whose static slots have a placement.
pub(super) fn start_copies(
    exchange: &mut CopyExchange,
    rank: &CpuRank,
    (layer, placement): (usize, &Placement),
    (group, shape): (&ProcessGroup, ExchangeShape),
    local: &mut LocalClones,
) -> Result<(), ExecError> {
    let Some(planner) = &rank.planners[layer] else { return Ok(()) };
    let held = |expert| {
        let missing = ExecError::NotStaged { layer, rank: rank.own, expert };
        rank.held_weights(placement, layer, expert).ok_or(missing)
    };
    exchange.start(rank.own, planner, group, |copy| {
        match copy {
            RankCopy::Local { expert, to, slot } => {
                let weights = held(expert)?;
                group.record_bytes(Purpose::Moves, [rank.own, to], weights.bytes() as usize);
                local.push(to, slot, Arc::new(ExpertWeights::clone(&weights)));
            }
            RankCopy::Sent { expert, to } => {
                group.isend(to, codec::encode_expert(&*held(expert)?, shape.hidden))?;
            }
            RankCopy::Received { from, .. } => group.irecv(from)?,
        }
        Ok(())
    })
}

/// Waits for the copies of a rank, and puts them into its slots. Returns the time of waiting. Only the first
/// call in a layer has an effect.
pub(super) fn receive_copies(
    exchange: &mut CopyExchange,
    (rank, slots): (usize, &mut SlotWeights),
    (group, shape): (&ProcessGroup, ExchangeShape),
    local: &mut LocalClones,
    time: &mut Duration,
) -> Result<Duration, ExecError> {
    for (slot, weights) in local.take(rank) {
        slots[slot] = Some(weights);
    }
    let Some(received) = exchange.finish() else { return Ok(Duration::ZERO) };
    let begun = Instant::now();
    let came = group.wait_all()?;
    let waited = begun.elapsed();
    time_work(time, || {
        for (bytes, (slot, from)) in came.iter().zip(received) {
            let weights = codec::decode_expert(bytes, shape.hidden, shape.dtype)
                .map_err(|reason| group.malformed_message(Purpose::Moves, from, reason))?;
            slots[slot] = Some(Arc::new(weights));
        }
        Ok(waited)
    })
}
