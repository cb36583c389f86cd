//! Migration on the CPU backend: experts are copied by a background thread within this process, and sent as
//! messages between processes. Layers switch between steps.

use super::Cpu;
use super::codec;
use super::copy_thread::CopyThread;
use super::rank::SlotWeights;
use crate::comm::Purpose;
use crate::error::ExecError;
use evenkeel::place::Placement;
use evenkeel::planner::Planner;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

impl Cpu {
    /// Begins to copy an expert to a rank, unless it is there or on its way. Returns the bytes to copy.
    pub(super) fn copy_expert(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError> {
        let Some(from) = self.state.stage_expert(layer, rank, expert)? else { return Ok(0) };
        let group = self.state.group();
        if group.is_local(from) {
            let missing = ExecError::NotStaged { layer, rank: from, expert };
            let weights = self.held_weights(from, layer, expert).ok_or(missing)?;
            if group.is_local(rank) {
                self.side.get_or_insert_with(CopyThread::new).start_copy(layer, rank, expert, weights)?;
            } else {
                group.isend(rank, codec::encode_expert(&weights, self.config.model.hidden as usize))?;
            }
        } else if group.is_local(rank) {
            group.irecv(from)?;
            self.coming.push((layer, rank, expert, from));
        }
        Ok(self.state.expert_bytes())
    }

    /// Waits for all copies. Returns the copying times within this process. Those between processes are
    /// unknown, because the library copies while a rank waits for others.
    pub(super) fn collect_copies(&mut self) -> Result<Vec<Duration>, ExecError> {
        let group = Rc::clone(self.state.group());
        let mut took = vec![Duration::ZERO; group.ranks()];
        for done in self.side.as_mut().map_or_else(|| Ok(Vec::new()), CopyThread::wait_for_copies)? {
            took[done.rank] += done.took;
            if let Some(at) = self.local_index(done.rank) {
                self.ranks[at].staged.insert((done.layer, done.expert), done.weights);
            }
        }
        let came = group.wait_all()?;
        let (hidden, dtype) = (self.config.model.hidden as usize, self.config.dtype);
        for (bytes, (layer, rank, expert, from)) in came.iter().zip(std::mem::take(&mut self.coming)) {
            let weights = codec::decode_expert(bytes, hidden, dtype)
                .map_err(|reason| group.malformed_message(Purpose::Moves, from, reason))?;
            if let Some(at) = self.local_index(rank) {
                self.ranks[at].staged.insert((layer, expert), Arc::new(weights));
            }
        }
        Ok(took)
    }

    /// Switches a layer on all ranks of this process, or on none.
    pub(super) fn switch_layer(&mut self, layer: usize, next: Placement) -> Result<(), ExecError> {
        let placement = self.state.expect_next(layer, &next)?;
        let mut ready: Vec<(SlotWeights, Option<Planner>)> = Vec::with_capacity(self.ranks.len());
        for rank in &self.ranks {
            ready.push((rank.next_slots([placement, &next], layer)?, self.config.create_planner(&next)?));
        }
        for (rank, (slots, planner)) in self.ranks.iter_mut().zip(ready) {
            rank.activate(layer, slots, planner);
        }
        self.state.replace(layer, next);
        Ok(())
    }
}
