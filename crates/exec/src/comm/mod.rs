//! Exchanges between ranks with separate memories.
//!
//! Input: one rank's bytes for every other rank. Output: the bytes of every other rank for this one. A
//! [`Communicator`] carries bytes and names lost ranks. A [`ProcessGroup`] is one process's end of it: it
//! counts bytes by purpose and distance, and knows the current activity for error messages.
//!
//! The ranks of [`LocalCommunicator`] share one thread of this process, and those of
//! [`ThreadCommunicator`] are threads of it. Those of `MpiCommunicator` (feature `mpi`) are processes of
//! an MPI job, and those of `NcclCommunicator` (feature `cuda`) are processes with one GPU each. The last
//! two also carry device memory, with the feature `cuda`. NCCL itself keeps the order of streams; over MPI
//! the host waits.

#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod gpu_selection;
mod local;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "cuda")]
mod nccl;
mod process_group;
#[cfg(feature = "cuda")]
pub mod rendezvous;
mod threads;

#[cfg(feature = "cuda")]
pub use device::{DeviceCommunicator, DeviceOperation, DevicePiece, MessageMemory, RankDevice};
pub use local::LocalCommunicator;
#[cfg(feature = "mpi")]
pub use mpi::{MpiCommunicator, StuckCall};
#[cfg(feature = "cuda")]
pub use nccl::NcclCommunicator;
pub(super) use process_group::placement_digest;
pub use process_group::{Distance, ProcessGroup, Purpose, TrafficStats};
pub use threads::ThreadCommunicator;

use std::fmt;
use std::ops::Range;
use std::time::Duration;
use thiserror::Error;

/// A carrier of bytes between the ranks of one group. A process has one rank of the group, or all. Every
/// process calls the same methods in the same order.
pub trait Communicator: fmt::Debug {
    /// Returns the name that selects the communicator.
    fn name(&self) -> &'static str;

    /// Returns the number of ranks of the group, `R`.
    fn ranks(&self) -> usize;

    /// Returns the `L` ranks of this process: one, or all.
    fn local_ranks(&self) -> Range<usize>;

    /// Returns the rank of this process, the lowest one of several.
    fn rank(&self) -> usize {
        self.local_ranks().start
    }

    /// Returns the name of this process's host.
    fn host(&self) -> String {
        String::new()
    }

    /// Meets all other ranks. A process calls it once, before any other exchange.
    ///
    /// # Errors
    /// Fails if a rank is lost.
    fn meet(&self) -> Result<(), CommError> {
        Ok(())
    }

    /// Leaves the group, and waits for the other ranks to leave too.
    ///
    /// # Errors
    /// Fails if a rank is lost.
    fn leave(&self, _at: CallContext) -> Result<(), CommError> {
        Ok(())
    }

    /// Gives up after this rank has printed the reason, and notifies all others. The process should exit when
    /// this returns.
    fn abort(&self, _reason: &str) {}

    /// Exchanges buffers of any size between all ranks (all-to-all). `parcels` `[L][R]` contains a buffer for
    /// every rank from each rank of this process. The result `[L][R]` contains the buffers from every rank. A
    /// buffer of a rank to itself returns unchanged. `at` is the rank's current activity.
    ///
    /// # Errors
    /// Fails if another rank is lost, or does not answer in time.
    fn all_to_all_v(&self, at: CallContext, parcels: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CommError>;

    /// Gathers a buffer of every rank. `own` contains those of the ranks of this process, and the result
    /// `[R]` those of all.
    ///
    /// # Errors
    /// Fails as [`Communicator::all_to_all_v`] does.
    fn all_gather(&self, at: CallContext, own: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CommError> {
        let ranks = self.ranks();
        let parcels = own.into_iter().flat_map(|own| std::iter::repeat_n(own, ranks)).collect();
        let mut came = self.all_to_all_v(at, parcels)?;
        came.truncate(ranks);
        Ok(came)
    }

    /// Begins an exchange with some of the other ranks. Each entry of `to` goes to its rank, and one
    /// message is expected from each rank of `from`. All participants pass the same `number`, which no
    /// other exchange under way uses. Exchanges may begin and end in different orders on different ranks.
    /// Not all communicators support this.
    ///
    /// # Errors
    /// Fails if another rank is known to be lost, or if the communicator does not support it.
    fn start_exchange(
        &self,
        _number: u64,
        _to: Vec<(usize, Vec<u8>)>,
        _from: Vec<usize>,
    ) -> Result<(), CommError> {
        let reason = format!("{} supports exchanges between all ranks only", self.name());
        Err(CommError::Library { call: "starting an exchange", reason })
    }

    /// Returns whether an exchange is complete in both directions, and advances the messages under way.
    ///
    /// # Errors
    /// Fails if the library fails.
    fn test(&self, _number: u64) -> Result<bool, CommError> {
        Ok(true)
    }

    /// Waits for an exchange. Returns the received messages in the order of `from`.
    ///
    /// # Errors
    /// Fails as [`Communicator::all_to_all_v`] does, and if no such exchange was begun.
    fn wait(&self, _at: CallContext, number: u64) -> Result<Vec<Vec<u8>>, CommError> {
        Err(CommError::not_started(number))
    }

    /// Begins to send `bytes` to another process, which must begin to receive them. Messages between two
    /// ranks arrive in the order in which they were sent.
    ///
    /// # Errors
    /// Fails if the other rank is known to be lost, or if there is no other process.
    fn isend(&self, to: usize, _bytes: Vec<u8>) -> Result<(), CommError> {
        Err(CommError::no_process("starting to send", to))
    }

    /// Begins to receive from another process.
    ///
    /// # Errors
    /// Fails as [`Communicator::isend`] does.
    fn irecv(&self, from: usize) -> Result<(), CommError> {
        Err(CommError::no_process("starting to receive", from))
    }

    /// Waits for all sends and receives. Returns the received messages in the order in which their receives
    /// began.
    ///
    /// # Errors
    /// Fails as [`Communicator::all_to_all_v`] does.
    fn wait_all(&self, _at: CallContext) -> Result<Vec<Vec<u8>>, CommError> {
        Ok(Vec::new())
    }

    /// Returns the way of device memory to the other ranks.
    ///
    /// # Errors
    /// Fails if ranks of this kind have no GPUs.
    #[cfg(feature = "cuda")]
    fn devices(&self) -> Result<&dyn DeviceCommunicator, CommError> {
        Err(CommError::no_devices(self.name()))
    }
}

/// The current activity of a rank, for error messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallContext {
    /// Step; none before the first and after the last.
    pub step: Option<u64>,
    /// Index among the layers that run.
    pub layer: Option<usize>,
    /// Purpose of the exchange.
    pub purpose: Purpose,
}

impl CallContext {
    /// Returns the activity before the first step, and after the last one.
    pub const fn outside(purpose: Purpose) -> Self {
        Self { step: None, layer: None, purpose }
    }
}

impl fmt::Display for CallContext {
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

/// An error of an exchange.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CommError {
    /// Ranks that do not answer.
    #[error("{} ({at}, after {:.1} s)", format_lost(silent, failed), waited.as_secs_f64())]
    Lost {
        /// Activity of this rank.
        at: CallContext,
        /// Ranks that send nothing: killed, hung or cut off.
        silent: Vec<usize>,
        /// Ranks that reported why they gave up.
        failed: Vec<(usize, String)>,
        /// Waiting time of this rank.
        waited: Duration,
    },
    /// Ranks are alive but have sent nothing in time.
    #[error(
        "{}, although all ranks are alive ({at}): a larger --rank-timeout may help",
        format_late(missing, waited)
    )]
    Late {
        /// Activity of this rank.
        at: CallContext,
        /// Ranks that sent nothing. Empty if another rank that waited called the roll.
        missing: Vec<usize>,
        /// Waiting time of this rank.
        waited: Duration,
    },
    /// The launcher ended the job.
    #[error("the launcher ended the job ({at}); all ranks were alive")]
    Ended {
        /// Activity of this rank.
        at: CallContext,
    },
    /// Ranks hold different data although all must hold the same.
    #[error("{what} of {} from that of the others ({at})", format_differ(ranks))]
    Differ {
        /// The data.
        what: &'static str,
        /// The ranks in the minority.
        ranks: Vec<usize>,
        /// Activity of this rank.
        at: CallContext,
    },
    /// A rank sent a message in an unexpected form.
    #[error("malformed message from rank {from} ({at}): {reason}")]
    Malformed {
        /// The sender.
        from: usize,
        /// Activity of this rank.
        at: CallContext,
        /// The fault in it.
        reason: &'static str,
    },
    /// A library call waits for other ranks and does not return.
    #[error("{}", format_blocked(call, silent, *waited, why))]
    Blocked {
        /// The call.
        call: &'static str,
        /// Ranks that do not answer: killed, hung or cut off.
        silent: Vec<usize>,
        /// Waiting time of this rank.
        waited: Duration,
        /// The cause if all known ranks answer.
        why: String,
    },
    /// The number of processes differs from the ranks of the run.
    #[error(
        "{given} processes were started for {expected} ranks, expected {expected} (mpirun -n or torchrun --nproc-per-node {expected}, or --ranks {given})"
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
    /// Ranks cannot run together, for a reason that all ranks have found.
    #[error("{0}")]
    Refused(String),
    /// A library call failed.
    #[error("{call} failed: {reason}")]
    Library {
        /// The call.
        call: &'static str,
        /// The message of the library.
        reason: String,
    },
}

impl CommError {
    /// Returns whether all ranks of a job have this error, so that one message is enough.
    pub fn is_common(&self) -> bool {
        matches!(
            self,
            CommError::Differ { .. }
                | CommError::Ranks { .. }
                | CommError::Joining(_)
                | CommError::Refused(_)
        )
    }

    /// Returns the error for a message to a rank that is in no other process. This is a defect of this
    /// program.
    pub(crate) fn no_process(call: &'static str, rank: usize) -> Self {
        CommError::Library { call, reason: format!("rank {rank} is in no other process") }
    }

    /// Returns the error for device memory of ranks without GPUs.
    #[cfg(feature = "cuda")]
    pub(crate) fn no_devices(name: &str) -> Self {
        CommError::Joining(format!("ranks over {name} have no GPUs"))
    }

    /// Returns the error for the end of an exchange that was never begun. This is a defect of this program.
    pub(crate) fn not_started(number: u64) -> Self {
        let reason = format!("exchange {number} was not started");
        CommError::Library { call: "waiting for an exchange", reason }
    }
}

/// Formats ranks as `rank 3`, `ranks 3 and 5`, `ranks 1, 3 and 5`.
pub fn format_ranks(ranks: &[usize]) -> String {
    match ranks {
        [] => "no rank".into(),
        [one] => format!("rank {one}"),
        [most @ .., last] => {
            let most: Vec<String> = most.iter().map(ToString::to_string).collect();
            format!("ranks {} and {last}", most.join(", "))
        }
    }
}

fn format_lost(silent: &[usize], failed: &[(usize, String)]) -> String {
    let mut parts: Vec<String> =
        failed.iter().map(|(rank, why)| format!("rank {rank} gave up: {why}")).collect();
    if !silent.is_empty() {
        let is = if silent.len() == 1 { "does" } else { "do" };
        parts.push(format!("{} {is} not answer: killed, hung or cut off", format_ranks(silent)));
    }
    parts.join("; ")
}

fn format_blocked(call: &str, silent: &[usize], waited: Duration, why: &str) -> String {
    let waited = waited.as_secs_f64();
    match silent {
        [] => format!("{call} did not return within {waited:.1} s: {why}"),
        _ => format!("{} ({call}, after {waited:.1} s)", format_lost(silent, &[])),
    }
}

fn format_late(missing: &[usize], waited: &Duration) -> String {
    match missing {
        [] => "another rank has waited too long".into(),
        _ => format!("no message from {} for {:.1} s", format_ranks(missing), waited.as_secs_f64()),
    }
}

fn format_differ(ranks: &[usize]) -> String {
    format!("{} {}", format_ranks(ranks), if ranks.len() == 1 { "differs" } else { "differ" })
}
