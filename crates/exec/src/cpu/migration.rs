//! Migration on the CPU backend: experts are copied by a background thread within this process, and sent as
//! messages between processes. Layers switch between steps.

use super::Cpu;
use super::codec;
use super::copy_thread::CopyThread;
use super::rank::{ReplicatedLayer, SlotWeights, experts_of_rank};
use crate::backend::Backend as _;
use crate::error::ExecError;
use crate::transport::Purpose;
use evenkeel::place::Placement;
use evenkeel::planner::Planner;
use std::sync::Arc;
use std::time::Duration;

impl Cpu {
    /// Returns the first rank that holds an expert.
    pub(super) fn home_rank(&self, layer: usize, expert: u32) -> Result<usize, ExecError> {
        let wrong = |what, given, expected| ExecError::Shape { what, given, expected };
        let placement =
            self.placements.get(layer).ok_or_else(|| wrong("layer", layer, self.placements.len()))?;
        if expert as usize >= placement.experts() {
            return Err(wrong("expert", expert as usize, placement.experts()));
        }
        Ok(placement.rank_of(placement.replicas(expert as usize)[0]))
    }

    /// Begins to copy an expert to a rank, unless it is there or on its way. Returns the bytes to copy.
    pub(super) fn stage_expert(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        let (from, bytes) = (self.home_rank(layer, expert)?, self.expert_bytes(layer, expert)?);
        if rank >= self.group.ranks() {
            return Err(ExecError::Shape { what: "rank", given: rank, expected: self.group.ranks() });
        }
        let there = experts_of_rank(&self.placements[layer], rank).contains(&Some(expert));
        if there || !self.staged.insert((layer, rank, expert)) {
            return Ok(0);
        }
        if self.group.is_local(from) {
            let missing = ExecError::NotStaged { layer, rank: from, expert };
            let weights = self.held_weights(from, layer, expert).ok_or(missing)?;
            if self.group.is_local(rank) {
                self.side.get_or_insert_with(CopyThread::new).start_copy(layer, rank, expert, weights)?;
            } else {
                self.group.isend(rank, codec::encode_expert(&weights, self.config.model.hidden as usize))?;
            }
        } else if self.group.is_local(rank) {
            self.group.irecv(from)?;
            self.coming.push((layer, rank, expert, from));
        }
        Ok(bytes)
    }

    /// Waits for all copies. Returns the copying times within this process. Those between processes are
    /// unknown, because the library copies while a rank waits for others.
    pub(super) fn collect_experts(&mut self) -> Result<Vec<Duration>, ExecError> {
        let mut took = vec![Duration::ZERO; self.group.ranks()];
        for done in self.side.as_mut().map_or_else(|| Ok(Vec::new()), CopyThread::wait_for_copies)? {
            took[done.rank] += done.took;
            if let Some(at) = self.local_index(done.rank) {
                self.ranks[at].staged.insert((done.layer, done.expert), done.weights);
            }
        }
        let came = self.group.wait_all()?;
        let (hidden, dtype) = (self.config.model.hidden as usize, self.config.dtype);
        for (bytes, (layer, rank, expert, from)) in came.iter().zip(std::mem::take(&mut self.coming)) {
            let weights = codec::decode_expert(bytes, hidden, dtype)
                .map_err(|reason| self.group.malformed_message(Purpose::Moves, from, reason))?;
            if let Some(at) = self.local_index(rank) {
                self.ranks[at].staged.insert((layer, expert), Arc::new(weights));
            }
        }
        Ok(took)
    }

    /// Switches a layer on all ranks of this process, or on none.
    pub(super) fn switch_layer(&mut self, layer: usize, next: Placement) -> Result<(), ExecError> {
        let expected = self.placements.len();
        let Some(placement) = self.placements.get(layer) else {
            return Err(ExecError::Shape { what: "layer", given: layer, expected });
        };
        self.config.expect_fit(&next)?;
        let mut ready: Vec<(SlotWeights, Option<Planner>)> = Vec::with_capacity(self.ranks.len());
        for rank in &self.ranks {
            ready.push((rank.next_slots([placement, &next], layer)?, self.config.create_planner(&next)?));
        }
        for (rank, (slots, planner)) in self.ranks.iter_mut().zip(ready) {
            rank.activate(layer, slots, planner);
        }
        self.staged.retain(|&(of, ..)| of != layer);
        self.placements[layer] = next;
        Ok(())
    }

    /// Returns two byte counts per rank: weights in use, and experts staged or on their way.
    pub(super) fn bytes_held(&self) -> Vec<[u64; 2]> {
        let expert = self.config.model.expert_parameters() * self.config.dtype.bytes();
        let replicated: u64 = self.layers.iter().map(ReplicatedLayer::bytes).sum();
        let of = |rank: usize| {
            let slots = self.placements.iter().flat_map(|placement| experts_of_rank(placement, rank));
            let staged = self.staged.iter().filter(|staged| staged.1 == rank);
            [slots.flatten().count() as u64 * expert + replicated, staged.count() as u64 * expert]
        };
        (0..self.group.ranks()).map(of).collect()
    }
}
