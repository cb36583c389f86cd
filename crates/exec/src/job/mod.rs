//! A run as one rank of a job of processes: launch, agreement on inputs and failures, statistics.
//!
//! All ranks read and plan independently. Before the first step they compare their inputs ([`Job::compare`]).
//! If one rank fails, all end: with one message if all have the same error, otherwise each with its own
//! ([`Job::run`]).

mod agreement;
mod fingerprint;
mod stats;

pub use agreement::RankError;
pub(crate) use agreement::agree_on_result;
pub use fingerprint::{Fingerprint, run_fingerprint};
pub use stats::{JobStats, LayerTime};

use super::comm::{CallContext, Communicator, ProcessGroup, Purpose};
#[cfg(feature = "cuda")]
use super::comm::{MessageMemory, RankDevice};
use super::cpu::CpuOptions;
#[cfg(feature = "cuda")]
use super::cuda::CudaOptions;
use super::error::ExecError;
use super::overlap::Overlap;
use super::run::{ExecRun, RunReport, StepProgress};
use fingerprint::{compare_fingerprints, encode_fingerprint};
use stats::gather_traffic;
use std::ops::Range;
use std::rc::Rc;

/// The memory of a rank's tokens and weights.
#[derive(Debug, Clone)]
pub enum RankMemory {
    /// Memory of the host.
    Host,
    /// Memory of a GPU.
    #[cfg(feature = "cuda")]
    Device {
        /// The options of the backend, with the GPU that was assigned to this rank.
        options: CudaOptions,
        /// The memory that is passed to the communication library.
        memory: MessageMemory,
    },
}

/// Options of a run among processes, the same on all ranks. Results do not depend on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct JobOptions {
    /// True to compare digests of every split between the ranks.
    pub verify_splits: bool,
    /// Chunks of slots in which tokens travel in host memory; `None` selects a number from measured costs.
    pub chunks: Option<usize>,
}

impl JobOptions {
    /// Sets [`Self::verify_splits`](#structfield.verify_splits).
    #[must_use]
    pub fn verify_splits(mut self, verify_splits: bool) -> Self {
        self.verify_splits = verify_splits;
        self
    }

    /// Sets [`Self::chunks`](#structfield.chunks).
    #[must_use]
    pub fn chunks(mut self, chunks: Option<usize>) -> Self {
        self.chunks = chunks;
        self
    }
}

/// The results of a run among processes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct JobReport {
    /// The results of the run, the same on all ranks.
    pub run: RunReport,
    /// The statistics of all ranks.
    pub stats: JobStats,
}

/// A job of processes, as one of its ranks.
#[derive(Debug, Clone)]
pub struct Job {
    communicator: Rc<dyn Communicator>,
}

impl Job {
    /// Creates the job of the ranks that a communicator connects.
    pub fn new(communicator: Rc<dyn Communicator>) -> Self {
        Self { communicator }
    }

    /// Returns this rank.
    pub fn rank(&self) -> usize {
        self.communicator.rank()
    }

    /// Meets the other ranks, runs `work`, and leaves the job. Returns `None` if this or another rank failed.
    ///
    /// An error is reported by `report`, which returns it in words. Errors that all ranks have are reported
    /// once, by rank 0 and without a rank. Then no rank is left waiting: all leave the job, or it is aborted.
    pub fn run<T, E: From<ExecError>>(
        &self,
        work: impl FnOnce() -> Result<T, RankError<E>>,
        report: impl Fn(E, Option<usize>) -> String,
    ) -> Option<T> {
        let leave = || {
            let left = self.communicator.leave(CallContext::outside(Purpose::Control));
            left.map_err(RankError::from)
        };
        let done = self.communicator.meet().map_err(RankError::from).and_then(|()| work());
        let ended = match done {
            Ok(result) => leave().map(|()| Some(result)),
            Err(RankError::All(error)) => {
                // One message is enough. The other ranks end with only the exit code, after the message is
                // out: the launcher ends a job at the first such exit.
                if self.rank() == 0 {
                    report(error, None);
                }
                leave().map(|()| None)
            }
            Err(own) => Err(own),
        };
        ended.unwrap_or_else(|(RankError::All(error) | RankError::Own(error))| {
            let reason = report(error, Some(self.rank()));
            self.communicator.abort(&reason);
            None
        })
    }

    /// Compares the inputs of all ranks, each of which has a fingerprint or a reason for having none. Returns
    /// the hosts of the ranks.
    ///
    /// # Errors
    /// Fails if ranks differ or failed, with the same error on all ranks, and if a rank is lost.
    pub fn compare(&self, fingerprint: Result<Fingerprint, String>) -> Result<Vec<String>, ExecError> {
        let encoded = encode_fingerprint(fingerprint, &self.communicator.host())?;
        let all = self.communicator.all_gather(CallContext::outside(Purpose::Control), vec![encoded])?;
        Ok(compare_fingerprints(self.communicator.ranks(), &all)?)
    }

    /// Assigns a GPU to every rank, from `first` on. All ranks must call it.
    ///
    /// # Errors
    /// Fails if ranks of this kind have no GPUs. Otherwise fails as
    /// [`DeviceCommunicator::open_devices`](super::comm::DeviceCommunicator::open_devices) does.
    #[cfg(feature = "cuda")]
    pub fn open_devices(&self, first: usize, cuda_aware: Option<bool>) -> Result<RankDevice, ExecError> {
        Ok(self.communicator.devices()?.open_devices(first, cuda_aware)?)
    }

    /// Executes a run, planned on the steps `plan_on`, as one rank. Every rank calls it with the same
    /// arguments, and gets the same results. `hosts` are those that [`Job::compare`] returned.
    ///
    /// # Errors
    /// Fails as [`ExecRun::run`] does, if a placement fails on any rank, and if a rank is lost or has another
    /// plan.
    pub fn execute(
        &self,
        run: &ExecRun<'_>,
        plan_on: Range<usize>,
        hosts: Vec<String>,
        memory: &RankMemory,
        options: JobOptions,
        progress: &dyn StepProgress,
    ) -> Result<JobReport, ExecError> {
        let group = Rc::new(ProcessGroup::new(Rc::clone(&self.communicator), run.exec.cluster)?);
        let verify_splits = options.verify_splits;
        let (outcome, memory, chunks, overlap) = match memory {
            RankMemory::Host => {
                let (chunks, overlap) = if let Some(count) = options.chunks {
                    (count.min(run.exec.cluster.slots_per_rank()), None)
                } else {
                    let overlap = Overlap::measure(run, &group)?;
                    (overlap.chunks, Some(overlap))
                };
                let options = CpuOptions { verify_splits, chunks };
                (run.run_on_cpu(&group, options, plan_on, progress)?, None, chunks, overlap)
            }
            #[cfg(feature = "cuda")]
            RankMemory::Device { options, memory } => {
                let outcome = run.run_on_devices(&group, *options, verify_splits, plan_on, progress)?;
                (outcome, Some(memory.to_string()), 1, None)
            }
        };
        group.set_context(None, None);
        let stats = JobStats {
            name: group.name(),
            memory,
            hosts,
            traffic: gather_traffic(&group)?,
            verified: verify_splits,
            aggregate: run.exec.aggregate,
            chunks,
            overlap,
        };
        Ok(JobReport { run: outcome, stats })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::{CommError, LocalCommunicator};
    use std::cell::RefCell;

    /// Runs a job whose work has a result. Returns its outcome, and the reports with their ranks.
    fn run(result: Result<u8, RankError<ExecError>>) -> (Option<u8>, Vec<(String, Option<usize>)>) {
        let (job, reports) = (Job::new(Rc::new(LocalCommunicator::new(1))), RefCell::new(Vec::new()));
        let report = |error: ExecError, rank: Option<usize>| {
            reports.borrow_mut().push((error.to_string(), rank));
            error.to_string()
        };
        let done = job.run(|| result, report);
        (done, reports.into_inner())
    }

    #[test]
    fn common_errors_are_reported_without_a_rank() {
        assert_eq!(run(Ok(7)), (Some(7), Vec::new()));
        let refused = CommError::Refused("no".into());
        assert_eq!(run(Err(refused.into())), (None, vec![("no".into(), None)]));
        let own = ExecError::Nothing("nothing to run".into());
        assert_eq!(run(Err(own.into())), (None, vec![("nothing to run".into(), Some(0))]));
    }
}
