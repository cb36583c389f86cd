//! What ranks of separate memories exchange, and what carries it.
//!
//! In: one rank's bytes for every other. Out: everybody's for it. A [`Transport`] carries bytes and says which rank is gone when one
//! is; [`Wire`] is what a rank holds of it: it counts bytes by purpose and distance, and knows what the rank is doing, for messages.
//!
//! [`Threads`] are ranks that are threads of one process; `Mpi` (feature `mpi`) ranks that are processes of an MPI job; `Nccl`
//! (feature `cuda`) ranks that are processes with a GPU each. What lies in device memory goes by a `DeviceTransport`: over NCCL or, with
//! `MpiDevice` (both features), over MPI.

#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod gpu;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "cuda")]
mod nccl;
#[cfg(feature = "cuda")]
pub mod rendezvous;
mod threads;
mod wire;

#[cfg(feature = "cuda")]
pub use device::{DeviceTransport, Memory, Part, Piece};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(all(feature = "mpi", feature = "cuda"))]
pub use mpi::MpiDevice;
#[cfg(feature = "cuda")]
pub use nccl::Nccl;
pub use threads::Threads;
pub(super) use wire::digest;
pub use wire::{Purpose, Reach, Tally, Wire};

use std::fmt;
use std::time::Duration;
use thiserror::Error;

/// Carries bytes between the ranks of one group. Every rank calls the same methods in the same order.
pub trait Transport: fmt::Debug {
    /// The name that selects it.
    fn name(&self) -> &'static str;

    /// This rank, `0..R`.
    fn rank(&self) -> usize;

    /// Ranks of the group, `R`.
    fn ranks(&self) -> usize;

    /// All-to-all of uneven sizes: `parcels` `[R]` go to their ranks, and theirs for this one come back, `[R]`; its own as it is.
    /// `at` is what this rank is doing.
    ///
    /// # Errors
    /// When another rank is gone, or does not answer in time.
    fn exchange(&self, at: At, parcels: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, TransportError>;

    /// Begins an exchange with some of the other ranks: `to` goes to its ranks, and from each of `from` something is to come. All
    /// who have a part in it give it the same `number`, and no other that is under way; exchanges may begin and end in different
    /// orders on different ranks. Not all transports can.
    ///
    /// # Errors
    /// When another rank is known to be gone, or this transport cannot.
    fn begin(
        &self,
        _number: u64,
        _to: Vec<(usize, Vec<u8>)>,
        _from: Vec<usize>,
    ) -> Result<(), TransportError> {
        let reason = format!("{} has whole exchanges only", self.name());
        Err(TransportError::Library { call: "begin", reason })
    }

    /// Whether all of an exchange has been sent and has come; moves on what is under way.
    ///
    /// # Errors
    /// When the library fails.
    fn is_through(&self, _number: u64) -> Result<bool, TransportError> {
        Ok(true)
    }

    /// Waits for an exchange; what came, in the order of `from`.
    ///
    /// # Errors
    /// As [`Transport::exchange`], and when no such exchange was begun.
    fn end(&self, _at: At, number: u64) -> Result<Vec<Vec<u8>>, TransportError> {
        Err(TransportError::not_begun(number))
    }

    /// Begins to send `bytes` to another rank, which has to begin to receive them; between two ranks the first sent is the
    /// first received.
    ///
    /// # Errors
    /// When the other rank is known to be gone.
    fn send(&self, to: usize, bytes: Vec<u8>) -> Result<(), TransportError>;

    /// Begins to receive from another rank.
    ///
    /// # Errors
    /// When the other rank is known to be gone.
    fn receive(&self, from: usize) -> Result<(), TransportError>;

    /// Waits for everything that was begun; what was received, in the order in which it was begun.
    ///
    /// # Errors
    /// As [`Transport::exchange`].
    fn finish(&self, at: At) -> Result<Vec<Vec<u8>>, TransportError>;
}

/// What a rank is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Which step; none before the first and after the last.
    pub step: Option<u64>,
    /// Which of the layers that run.
    pub layer: Option<usize>,
    /// What for.
    pub purpose: Purpose,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "step {step}, ")?,
            None => f.write_str("outside of steps, ")?,
        }
        if let Some(layer) = self.layer {
            write!(f, "layer {layer}, ")?;
        }
        f.write_str(self.purpose.name())
    }
}

/// Why nothing came.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// Ranks that do not answer.
    #[error("{} ({at}, after {:.1} s)", lost(silent, failed), waited.as_secs_f64())]
    Lost {
        /// What this rank was doing.
        at: At,
        /// Ranks from which nothing comes: killed, hung or cut off.
        silent: Vec<usize>,
        /// Ranks that said why they gave up.
        failed: Vec<(usize, String)>,
        /// How long this rank waited.
        waited: Duration,
    },
    /// Ranks that are there and have sent nothing in time.
    #[error("{}, though all ranks are there ({at}): more --rank-timeout may help", late(missing, waited))]
    Late {
        /// What this rank was doing.
        at: At,
        /// Ranks from which nothing came; none where this rank was called by another that waited.
        missing: Vec<usize>,
        /// How long this rank waited.
        waited: Duration,
    },
    /// The launcher ended the job.
    #[error("the job was ended from outside ({at}); all ranks were there")]
    Ended {
        /// What this rank was doing.
        at: At,
    },
    /// Ranks that hold something else than the others where all must hold the same.
    #[error("{what} of {} from that of the others ({at})", differ(ranks))]
    Differ {
        /// What it is.
        what: &'static str,
        /// The fewer.
        ranks: Vec<usize>,
        /// What this rank was doing.
        at: At,
    },
    /// What came is not what was to come.
    #[error("what rank {from} sent is broken ({at}): {reason}")]
    Malformed {
        /// Its sender.
        from: usize,
        /// What this rank was doing.
        at: At,
        /// What is wrong.
        reason: &'static str,
    },
    /// Another size of the group than the run's.
    #[error(
        "{given} processes were started for {expected} ranks: expected as many (mpirun -n or torchrun --nproc-per-node {expected}, or --ranks {given})"
    )]
    Ranks {
        /// Processes.
        given: usize,
        /// Ranks.
        expected: usize,
    },
    /// The group could not be formed.
    #[error("{0}")]
    Joining(String),
    /// The library failed.
    #[error("{call} failed: {reason}")]
    Library {
        /// What was called.
        call: &'static str,
        /// What it says.
        reason: String,
    },
}

impl TransportError {
    /// An exchange is to end that was never begun; a defect of this program.
    pub(in crate::exec) fn not_begun(number: u64) -> Self {
        TransportError::Library { call: "end", reason: format!("exchange {number} was not begun") }
    }
}

/// `rank 3`, `ranks 3 and 5`, `ranks 1, 3 and 5`.
pub fn ranks_in_words(ranks: &[usize]) -> String {
    match ranks {
        [] => "no rank".into(),
        [one] => format!("rank {one}"),
        [most @ .., last] => {
            let most: Vec<String> = most.iter().map(ToString::to_string).collect();
            format!("ranks {} and {last}", most.join(", "))
        }
    }
}

fn lost(silent: &[usize], failed: &[(usize, String)]) -> String {
    let mut parts: Vec<String> =
        failed.iter().map(|(rank, why)| format!("rank {rank} gave up: {why}")).collect();
    if !silent.is_empty() {
        let is = if silent.len() == 1 { "does" } else { "do" };
        parts.push(format!("{} {is} not answer: killed, hung or cut off", ranks_in_words(silent)));
    }
    parts.join("; ")
}

fn late(missing: &[usize], waited: &Duration) -> String {
    match missing {
        [] => "another rank has waited too long".into(),
        _ => format!("nothing came from {} for {:.1} s", ranks_in_words(missing), waited.as_secs_f64()),
    }
}

fn differ(ranks: &[usize]) -> String {
    format!("{} {}", ranks_in_words(ranks), if ranks.len() == 1 { "differs" } else { "differ" })
}
