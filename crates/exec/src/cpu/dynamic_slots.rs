//! Copies of experts into the dynamic slots of a layer: within this process, and as messages between
//! processes.
//!
//! All ranks have chosen the same copies. Each sends its own after its tokens, and waits for those that it
//! receives before its first dynamic slot runs. Its static experts run in between.

use super::all_to_all::ExchangeShape;
use super::codec;
use super::rank::{CpuRank, SlotWeights};
use crate::clock::time_work;
use crate::comm::{ProcessGroup, Purpose};
use crate::error::ExecError;
use crate::weights::ExpertWeights;
use evenkeel::place::Placement;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Copies for ranks of this process: slot within the rank, and weights, by rank.
#[derive(Debug, Default)]
pub(super) struct LocalCopies(HashMap<usize, Vec<(usize, ExpertWeights)>>);

/// Copies that one rank sends and receives in one layer.
#[derive(Debug, Default)]
pub(super) struct CopyExchange {
    /// Slot within the rank, and sender, of copies from other processes, in the order of their slots.
    remote: Vec<(usize, usize)>,
    /// True if messages to or from other processes are under way.
    is_pending: bool,
    copies: u64,
    waited: Duration,
}

impl CopyExchange {
    /// Begins the copies that the rank's planner has chosen for a layer, whose static slots have a placement.
    pub(super) fn start(
        &mut self,
        rank: &CpuRank,
        (layer, placement): (usize, &Placement),
        (group, shape): (&ProcessGroup, ExchangeShape),
        local: &mut LocalCopies,
    ) -> Result<(), ExecError> {
        let Some(planner) = &rank.planners[layer] else { return Ok(()) };
        let width = planner.placement().slots_per_rank();
        self.copies = planner.last_copies().len() as u64;
        for copy in planner.last_copies() {
            let (to, expert, slot) = (copy.to as usize, copy.expert, copy.slot as usize % width);
            let from = copy.from.map_or(to, |from| from as usize);
            if from == rank.own {
                let missing = ExecError::NotStaged { layer, rank: from, expert };
                let weights = rank.held_weights(placement, layer, expert).ok_or(missing)?;
                if group.is_local(to) {
                    group.record_bytes(Purpose::Moves, [from, to], weights.bytes() as usize);
                    local.0.entry(to).or_default().push((slot, ExpertWeights::clone(&weights)));
                } else {
                    group.isend(to, codec::encode_expert(&weights, shape.hidden))?;
                    self.is_pending = true;
                }
            } else if to == rank.own && !group.is_local(from) {
                group.irecv(from)?;
                self.remote.push((slot, from));
                self.is_pending = true;
            }
        }
        Ok(())
    }

    /// Waits for the copies of a rank, and puts them into its slots. Only the first call has an effect.
    pub(super) fn receive(
        &mut self,
        (rank, slots): (usize, &mut SlotWeights),
        (group, shape): (&ProcessGroup, ExchangeShape),
        local: &mut LocalCopies,
        time: &mut Duration,
    ) -> Result<(), ExecError> {
        for (slot, weights) in local.0.remove(&rank).unwrap_or_default() {
            slots[slot] = Some(Arc::new(weights));
        }
        if !std::mem::take(&mut self.is_pending) {
            return Ok(());
        }
        let begun = Instant::now();
        let came = group.wait_all()?;
        self.waited += begun.elapsed();
        time_work(time, || {
            for (bytes, (slot, from)) in came.iter().zip(std::mem::take(&mut self.remote)) {
                let weights = codec::decode_expert(bytes, shape.hidden, shape.dtype)
                    .map_err(|reason| group.malformed_message(Purpose::Moves, from, reason))?;
                slots[slot] = Some(Arc::new(weights));
            }
            Ok(())
        })
    }

    /// Returns the number of copies of all ranks.
    pub(super) fn copies(&self) -> u64 {
        self.copies
    }

    /// Returns the time for which this rank waited.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }
}
