//! Exchange of counts between ranks.
//!
//! In: the counts of one rank, `[E]`. Out: those of all ranks, `[R][E]`. The transport is behind
//! [`AllGather`]. This file has the one for ranks that are threads of one process.

use std::sync::{Arc, Barrier, Mutex};
use thiserror::Error;

/// All-gather of the counts of all ranks.
pub trait AllGather {
    /// Publishes the `own` counts of rank `source`, and fills `all` with the counts of every rank, `[R][E]`.
    /// Every rank of the group has to call it. All ranks get the same result.
    ///
    /// # Errors
    /// Fails if the shapes do not fit the group, or if another rank is lost.
    fn all_gather(&mut self, source: usize, own: &[u64], all: &mut [u64]) -> Result<(), GatherError>;
}

/// Reasons for which counts cannot be gathered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GatherError {
    /// The shape of the counts differs from the group's.
    #[error(
        "rank {source_rank} brings {given} counts and room for {room}; the group holds {ranks} x {experts}"
    )]
    Shape {
        /// Rank that called.
        source_rank: usize,
        /// Number of counts of that rank.
        given: usize,
        /// Length of the output.
        room: usize,
        /// Number of ranks of the group.
        ranks: usize,
        /// Number of counts per rank.
        experts: usize,
    },
    /// Another rank failed while it held the counts.
    #[error("another rank failed while gathering")]
    Lost,
}

/// Communicator of ranks that are threads of one process. Each rank holds a clone.
#[derive(Debug, Clone)]
pub struct ThreadGather {
    ranks: usize,
    experts: usize,
    board: Arc<Mutex<Vec<u64>>>,
    barrier: Arc<Barrier>,
}

impl ThreadGather {
    /// Creates a group of `ranks` threads with `experts` counts each.
    pub fn new(ranks: usize, experts: usize) -> Self {
        let board = Arc::new(Mutex::new(vec![0; ranks * experts]));
        Self { ranks, experts, board, barrier: Arc::new(Barrier::new(ranks)) }
    }
}

impl AllGather for ThreadGather {
    fn all_gather(&mut self, source: usize, own: &[u64], all: &mut [u64]) -> Result<(), GatherError> {
        let fits = source < self.ranks && own.len() == self.experts && all.len() == self.ranks * self.experts;
        if fits {
            let mut board = self.board.lock().map_err(|_| GatherError::Lost)?;
            board[source * self.experts..][..self.experts].copy_from_slice(own);
        }
        // A rank with a wrong shape still has to reach the barrier, or the others would wait forever.
        self.barrier.wait();
        if fits {
            all.copy_from_slice(&self.board.lock().map_err(|_| GatherError::Lost)?);
        }
        // The second barrier prevents that a rank writes the next batch before all have read this one.
        self.barrier.wait();
        if !fits {
            let (given, room, ranks, experts) = (own.len(), all.len(), self.ranks, self.experts);
            return Err(GatherError::Shape { source_rank: source, given, room, ranks, experts });
        }
        Ok(())
    }
}
