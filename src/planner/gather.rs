//! How ranks learn each other's counts.
//!
//! In: one rank's counts, `[E]`. Out: everybody's, `[R][E]`. What carries them is behind [`AllGather`]; this file has
//! the one that needs no wire: ranks that are threads of one process.

use std::sync::{Arc, Barrier, Mutex};
use thiserror::Error;

/// Gathers the counts of all ranks on every rank.
pub trait AllGather {
    /// Puts the `own` counts of rank `source` where all ranks find them, and fills `all` with the counts of every
    /// rank, `[R][E]`. Every rank of the group has to call it; all get the same answer.
    ///
    /// # Errors
    /// When the shapes do not fit the group or another rank is gone.
    fn all_gather(&mut self, source: usize, own: &[u64], all: &mut [u64]) -> Result<(), GatherError>;
}

/// Why counts could not be gathered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GatherError {
    /// Counts of another shape than the group's.
    #[error(
        "rank {source_rank} brings {given} counts and room for {room}; the group holds {ranks} x {experts}"
    )]
    Shape {
        /// The rank that called.
        source_rank: usize,
        /// Counts that it brought.
        given: usize,
        /// Room for everybody's.
        room: usize,
        /// Ranks of the group.
        ranks: usize,
        /// Counts per rank.
        experts: usize,
    },
    /// Another rank failed while it held the counts.
    #[error("another rank failed while gathering")]
    Lost,
}

/// Ranks that are threads of one process: each holds a clone.
#[derive(Debug, Clone)]
pub struct InProcess {
    ranks: usize,
    experts: usize,
    board: Arc<Mutex<Vec<u64>>>,
    barrier: Arc<Barrier>,
}

impl InProcess {
    /// A group of `ranks` threads with `experts` counts each.
    pub fn new(ranks: usize, experts: usize) -> Self {
        let board = Arc::new(Mutex::new(vec![0; ranks * experts]));
        Self { ranks, experts, board, barrier: Arc::new(Barrier::new(ranks)) }
    }
}

impl AllGather for InProcess {
    fn all_gather(&mut self, source: usize, own: &[u64], all: &mut [u64]) -> Result<(), GatherError> {
        let fits = source < self.ranks && own.len() == self.experts && all.len() == self.ranks * self.experts;
        if fits {
            let mut board = self.board.lock().map_err(|_| GatherError::Lost)?;
            board[source * self.experts..][..self.experts].copy_from_slice(own);
        }
        // A rank that brings nothing still has to meet the others, or they would wait for ever.
        self.barrier.wait();
        if fits {
            all.copy_from_slice(&self.board.lock().map_err(|_| GatherError::Lost)?);
        }
        // Nobody writes the next batch before everybody has read this one.
        self.barrier.wait();
        if !fits {
            let (given, room, ranks, experts) = (own.len(), all.len(), self.ranks, self.experts);
            return Err(GatherError::Shape { source_rank: source, given, room, ranks, experts });
        }
        Ok(())
    }
}
