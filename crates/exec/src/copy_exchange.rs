//! Copies of experts into the dynamic slots of a layer, as one rank takes part in them.
//!
//! All ranks have chosen the same copies. Each sends its own after its tokens, and waits for those that it
//! receives before its first dynamic slot runs. Its static experts run in between. Backends carry the
//! weights.

use crate::comm::ProcessGroup;
use crate::error::ExecError;
use evenkeel::planner::Planner;
use std::collections::HashMap;

/// Weights for dynamic slots of ranks of this process: slot within the rank, and weights, by rank.
#[derive(Debug)]
pub(crate) struct LocalCopies<W>(HashMap<usize, Vec<(usize, W)>>);

impl<W> Default for LocalCopies<W> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<W> LocalCopies<W> {
    /// Adds weights for a slot of a rank.
    pub(crate) fn push(&mut self, rank: usize, slot: usize, weights: W) {
        self.0.entry(rank).or_default().push((slot, weights));
    }

    /// Removes and returns the weights for a rank.
    pub(crate) fn take(&mut self, rank: usize) -> Vec<(usize, W)> {
        self.0.remove(&rank).unwrap_or_default()
    }
}

/// A copy in which a rank takes part. Slots are those within the receiving rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RankCopy {
    /// An expert of this rank, for a rank of this process.
    Local {
        /// Expert.
        expert: u32,
        /// Receiver.
        to: usize,
        /// Slot of the receiver.
        slot: usize,
    },
    /// An expert of this rank, for another process.
    Sent {
        /// Expert.
        expert: u32,
        /// Receiver.
        to: usize,
    },
    /// An expert of another process, for this rank.
    Received {
        /// Sender.
        from: usize,
        /// Slot of this rank.
        slot: usize,
    },
}

/// Copies that one rank sends and receives in one layer.
#[derive(Debug, Default)]
pub(crate) struct CopyExchange {
    /// Slot within the rank, and sender, of copies from other processes, in the order of their slots.
    received: Vec<(usize, usize)>,
    /// True if messages to or from other processes are under way.
    is_pending: bool,
    /// Copies of all ranks.
    copies: u64,
}

impl CopyExchange {
    /// Begins the copies of rank `own` that its planner has chosen for a batch. `begin` begins each of them.
    pub(crate) fn start(
        &mut self,
        own: usize,
        planner: &Planner,
        group: &ProcessGroup,
        mut begin: impl FnMut(RankCopy) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let width = planner.placement().slots_per_rank();
        self.copies = planner.last_copies().len() as u64;
        for copy in planner.last_copies() {
            let (to, expert, slot) = (copy.to as usize, copy.expert, copy.slot as usize % width);
            let from = copy.from.map_or(to, |from| from as usize);
            if from == own && group.is_local(to) {
                begin(RankCopy::Local { expert, to, slot })?;
            } else if from == own {
                begin(RankCopy::Sent { expert, to })?;
                self.is_pending = true;
            } else if to == own && !group.is_local(from) {
                begin(RankCopy::Received { from, slot })?;
                self.received.push((slot, from));
                self.is_pending = true;
            }
        }
        Ok(())
    }

    /// Ends the exchange with other processes. Returns slots and senders of the copies that arrive, or `None`
    /// if nothing is under way. Only the first call has an effect.
    pub(crate) fn finish(&mut self) -> Option<Vec<(usize, usize)>> {
        std::mem::take(&mut self.is_pending).then(|| std::mem::take(&mut self.received))
    }

    /// Returns the number of copies of all ranks.
    pub(crate) fn copies(&self) -> u64 {
        self.copies
    }
}
