//! `evenkeel run --transport mpi` and `--transport nccl`: this process is one rank.
//!
//! All ranks read and plan independently. Before the first step they compare their inputs. Rank 0 prints the
//! results. If one rank fails, all end, and each reports its own error.

#[cfg(feature = "mpi")]
use super::args::ChunkCount;
use super::args::TransportName;
#[cfg(all(feature = "mpi", feature = "cuda"))]
use super::args::{BackendName, CudaAware};
use super::communication::CommunicationStats;
use super::fingerprint::{compare_fingerprints, refuse_failed, run_fingerprint};
use super::{RunInputs, RunRequest, check_outcome, initial_placements, report_run};
use crate::output::{Output, ReportedError, StderrBar, print_error};
#[cfg(feature = "cuda")]
use anyhow::Context as _;
use evenkeel::cluster::Cluster;
#[cfg(feature = "mpi")]
use evenkeel_exec::cpu::CpuOptions;
#[cfg(feature = "mpi")]
use evenkeel_exec::overlap::Overlap;
use evenkeel_exec::run::StepProgress;
#[cfg(all(feature = "mpi", feature = "cuda"))]
use evenkeel_exec::transport::format_ranks;
use evenkeel_exec::transport::{CallContext, ProcessGroup, Purpose, TrafficStats, Transport, TransportError};
#[cfg(feature = "cuda")]
use evenkeel_exec::transport::{DeviceTransport, NcclTransport, rendezvous::Launch};
#[cfg(all(feature = "mpi", feature = "cuda"))]
use evenkeel_exec::transport::{MessageMemory, MpiDeviceTransport};
#[cfg(feature = "mpi")]
use evenkeel_exec::transport::{MpiTransport, StuckCall};
use evenkeel_exec::{Backend, ExecError};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Reason for which this rank stops.
pub(super) enum RankFault {
    /// An error that all ranks have.
    All(anyhow::Error),
    /// An error of this rank alone, or its error about another rank.
    Own(anyhow::Error),
}

impl From<ExecError> for RankFault {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Transport(
                TransportError::Differ { .. } | TransportError::Ranks { .. } | TransportError::Joining(_),
            ) => RankFault::All(error.into()),
            _ => RankFault::Own(error.into()),
        }
    }
}

impl From<TransportError> for RankFault {
    fn from(error: TransportError) -> Self {
        ExecError::from(error).into()
    }
}

impl From<anyhow::Error> for RankFault {
    fn from(error: anyhow::Error) -> Self {
        RankFault::Own(error)
    }
}

/// The job of this process.
enum RankJob {
    #[cfg(feature = "mpi")]
    Mpi(MpiTransport),
    #[cfg(feature = "cuda")]
    Nccl(NcclTransport),
}

impl RankJob {
    fn join(request: &RunRequest) -> anyhow::Result<Self> {
        let timeout = Duration::from_secs(request.rank_timeout);
        match request.transport {
            #[cfg(feature = "cuda")]
            TransportName::Nccl => {
                let launch = Launch::from_environment().context("--transport nccl")?;
                let rank = launch.rank;
                Ok(RankJob::Nccl(NcclTransport::join(launch, request.gpu, timeout).map_err(|error| {
                    match error {
                        // All ranks find the same error, so one message is enough.
                        TransportError::Joining(_) if rank > 0 => anyhow::Error::from(ReportedError),
                        error => anyhow::Error::from(error).context(format!("rank {rank}")),
                    }
                })?))
            }
            #[cfg(feature = "mpi")]
            TransportName::Mpi => Ok(RankJob::Mpi(MpiTransport::join(timeout, exit_stuck_process)?)),
            _ => anyhow::bail!("--transport: this evenkeel was built without it"),
        }
    }

    /// Meets the other ranks for the first time.
    #[cfg_attr(not(feature = "mpi"), allow(clippy::unnecessary_wraps, reason = "over MPI it can fail"))]
    fn meet_ranks(&self) -> Result<(), TransportError> {
        match self {
            #[cfg(feature = "mpi")]
            RankJob::Mpi(mpi) => mpi.meet_ranks(),
            // The ranks have already met at their store.
            #[cfg(feature = "cuda")]
            RankJob::Nccl(_) => Ok(()),
        }
    }

    fn transport(&self) -> Box<dyn Transport> {
        match self {
            #[cfg(feature = "mpi")]
            RankJob::Mpi(mpi) => Box::new(mpi.clone()),
            #[cfg(feature = "cuda")]
            RankJob::Nccl(nccl) => Box::new(nccl.clone()),
        }
    }

    /// Returns the memory of tokens and weights. All ranks call it after they have agreed on their inputs.
    #[cfg_attr(
        not(all(feature = "mpi", feature = "cuda")),
        allow(unused_variables, clippy::unnecessary_wraps, reason = "of GPUs over MPI")
    )]
    fn token_memory(&self, request: &RunRequest) -> Result<TokenMemory, TransportError> {
        match self {
            #[cfg(all(feature = "mpi", feature = "cuda"))]
            RankJob::Mpi(mpi) if request.backend == BackendName::Cuda => {
                let gpus = MpiDeviceTransport::join(mpi, request.gpu, memory_mode(request))?;
                let notices = gpu_notices(request, &gpus);
                Ok(TokenMemory::Gpu { gpus: Rc::new(gpus), notices })
            }
            #[cfg(feature = "mpi")]
            RankJob::Mpi(_) => Ok(TokenMemory::Host),
            #[cfg(feature = "cuda")]
            RankJob::Nccl(nccl) => Ok(TokenMemory::Gpu { gpus: Rc::new(nccl.clone()), notices: Vec::new() }),
        }
    }

    fn host(&self) -> &str {
        match self {
            #[cfg(feature = "mpi")]
            RankJob::Mpi(mpi) => mpi.host(),
            #[cfg(feature = "cuda")]
            RankJob::Nccl(nccl) => nccl.host(),
        }
    }

    fn leave(&self) -> Result<(), TransportError> {
        let at = CallContext { step: None, layer: None, purpose: Purpose::Control };
        match self {
            #[cfg(feature = "mpi")]
            RankJob::Mpi(mpi) => mpi.leave_job(at),
            #[cfg(feature = "cuda")]
            RankJob::Nccl(nccl) => nccl.leave_job(at),
        }
    }

    fn abort_with(&self, reason: &str) {
        match self {
            #[cfg(feature = "mpi")]
            RankJob::Mpi(mpi) => mpi.give_up(reason),
            #[cfg(feature = "cuda")]
            RankJob::Nccl(nccl) => nccl.give_up(reason),
        }
    }
}

/// Ends a process whose MPI library does not return.
#[cfg(feature = "mpi")]
pub(crate) fn exit_stuck_process(stuck: StuckCall) {
    if !stuck.is_end_of_job() {
        let error = anyhow::Error::from(stuck.error.clone());
        print_error(&match stuck.rank {
            Some(rank) => error.context(format!("rank {rank}")),
            None => error,
        });
    }
    stuck.wait_for_reports();
    // Another thread is inside the library, so no exit handler of the library may run.
    signal_hook::low_level::exit(1);
}

/// Memory of a rank's tokens and weights, with the transport of a GPU's tokens.
enum TokenMemory {
    #[cfg(feature = "mpi")]
    Host,
    #[cfg(feature = "cuda")]
    Gpu { gpus: Rc<dyn DeviceTransport>, notices: Vec<String> },
}

impl TokenMemory {
    /// Returns the handover of device memory, and notices for the user.
    fn describe(&self) -> (Option<String>, Vec<String>) {
        match self {
            #[cfg(feature = "mpi")]
            TokenMemory::Host => (None, Vec::new()),
            #[cfg(feature = "cuda")]
            TokenMemory::Gpu { gpus, notices } => (Some(gpus.memory().to_string()), notices.clone()),
        }
    }
}

/// Returns the form in which the MPI library receives device memory.
#[cfg(all(feature = "mpi", feature = "cuda"))]
fn memory_mode(request: &RunRequest) -> MessageMemory {
    let aware = match request.cuda_aware.unwrap_or(CudaAware::Auto) {
        CudaAware::Auto => MpiDeviceTransport::is_cuda_aware(),
        CudaAware::Yes => true,
        CudaAware::No => false,
    };
    if aware { MessageMemory::Device } else { MessageMemory::Staged }
}

/// Returns notices on GPUs over MPI.
#[cfg(all(feature = "mpi", feature = "cuda"))]
fn gpu_notices(request: &RunRequest, gpus: &MpiDeviceTransport) -> Vec<String> {
    let mut notices = Vec::new();
    if !gpus.shared_gpus().is_empty() {
        let each = |(host, ranks): &(String, Vec<usize>)| format!("{} of {host}", format_ranks(ranks));
        let all: Vec<String> = gpus.shared_gpus().iter().map(each).collect();
        notices.push(format!("ranks share a GPU, and wait for each other on it: {}", all.join("; ")));
    }
    if request.cuda_aware == Some(CudaAware::Yes) && !MpiDeviceTransport::is_cuda_aware() {
        notices.push("--cuda-aware yes: the MPI library does not say that it takes device memory".into());
    }
    notices
}

/// Joins the job, runs as one of its ranks and leaves it.
pub(super) fn run_as_rank(request: &RunRequest, output: Output) -> anyhow::Result<()> {
    let job = RankJob::join(request)?;
    let rank = job.transport().rank();
    let first = rank == 0;
    let end = || job.leave().map_err(RankFault::from);
    let output = if first { output } else { output.without_notes() };
    let done = job.meet_ranks().map_err(RankFault::from).and_then(|()| execute_rank(request, output, &job));
    let ended = match done {
        Ok(()) => end().map(Ok),
        Err(RankFault::All(error)) => {
            // One message is enough. The other ranks end with only the exit code, after the message is out:
            // the launcher ends a job at the first such exit.
            if first {
                print_error(&error);
            }
            end().map(|()| Err(ReportedError.into()))
        }
        Err(own) => Err(own),
    };
    match ended {
        Ok(done) => done,
        Err(RankFault::All(error) | RankFault::Own(error)) => {
            let reason = evenkeel::error_chain(error.as_ref());
            print_error(&error.context(format!("rank {rank}")));
            job.abort_with(&reason);
            Err(ReportedError.into())
        }
    }
}

fn execute_rank(request: &RunRequest, output: Output, job: &RankJob) -> Result<(), RankFault> {
    let inputs = RunInputs::new(request, output);
    // Ranks are compared before the number of ranks in the arguments is known.
    let ranks = job.transport().ranks();
    let group =
        Cluster::with_uneven_slots(ranks, 1, ranks, 0).map_err(|error| RankFault::Own(error.into()))?;
    let wire = ProcessGroup::new(job.transport(), group)?;
    let fingerprint = inputs
        .as_ref()
        .map_err(|error| evenkeel::error_chain(error.as_ref()))
        .and_then(|inputs| run_fingerprint(request, inputs, job.host()));
    let encoded = serde_json::to_vec(&fingerprint).map_err(|error| RankFault::Own(error.into()))?;
    let hosts = compare_fingerprints(wire.ranks(), &wire.all_gather(Purpose::Control, vec![encoded])?)?;
    let inputs = inputs?;
    let tokens = job.token_memory(request)?;
    let (memory, notices) = tokens.describe();
    output.print_notices(&notices);

    let wire = Rc::new(ProcessGroup::new(job.transport(), inputs.exec.cluster)?);
    let run = inputs.to_run(request);
    let bar = (wire.rank() == 0).then(StderrBar::for_execution);
    let progress: &dyn StepProgress = bar.as_ref().map_or(&(), |bar| bar);
    let place = |plain: &mut dyn Backend| {
        let profile = |steps| run.profile_on(plain, steps, progress);
        agree_on_result(&wire, initial_placements(&run, &inputs.plan_on, profile))
    };
    let prove = request.verify_plans;
    let (outcome, chunks, overlap) = match &tokens {
        #[cfg(feature = "cuda")]
        TokenMemory::Gpu { gpus, .. } => {
            let options = super::cuda_options(request.gpu, 1, request.ffn);
            (run.on_gpus((&wire, gpus), options, prove, place, progress)?, 1, None)
        }
        #[cfg(feature = "mpi")]
        TokenMemory::Host => {
            let (chunks, overlap) = match request.chunks {
                ChunkCount::Fixed(count) => (count.min(inputs.exec.cluster.slots_per_rank()), None),
                ChunkCount::Auto => {
                    let overlap = Overlap::measure(&run, &wire)?;
                    (overlap.chunks, Some(overlap))
                }
            };
            (
                run.on_communicator(&wire, CpuOptions { verify_splits: prove, chunks }, place, progress)?,
                chunks,
                overlap,
            )
        }
    };
    drop(bar);
    wire.set_context(None, None);
    let (name, tallies, aggregate) = (wire.name(), gather_tallies(&wire)?, request.aggregate);
    let stats = CommunicationStats {
        name,
        memory,
        notices,
        hosts,
        tallies,
        verified: prove,
        aggregate,
        chunks,
        overlap,
    };
    if wire.rank() == 0 {
        report_run(request, &run, &inputs.plan_on, &outcome, Some(&stats), output)?;
    }
    check_outcome(&run, &outcome).map_err(RankFault::All)
}

/// Returns the result that every rank computed for itself. If one rank failed, all ranks return the same
/// error.
fn agree_on_result<T>(wire: &ProcessGroup, result: anyhow::Result<T>) -> Result<T, RankFault> {
    let error = result.as_ref().err();
    let lost = matches!(error.and_then(|error| error.downcast_ref()), Some(ExecError::Transport(_)));
    // After the loss of a rank no exchange is possible.
    if !lost {
        let reason = error.map_or_else(String::new, |error| evenkeel::error_chain(error.as_ref()));
        let mut failed: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let all = wire.all_gather(Purpose::Control, vec![reason.into_bytes()])?;
        for (rank, reason) in all.iter().enumerate().filter(|(_, reason)| !reason.is_empty()) {
            failed.entry(String::from_utf8_lossy(reason).into_owned()).or_default().push(rank);
        }
        refuse_failed(&failed, all.len())?;
    }
    Ok(result?)
}

/// Returns the tallies of all ranks.
fn gather_tallies(wire: &ProcessGroup) -> Result<Vec<TrafficStats>, TransportError> {
    let own = wire.traffic_stats();
    let numbers: Vec<u64> = own
        .bytes
        .iter()
        .flatten()
        .copied()
        .chain(own.waited.iter().chain([&own.layers]).map(|time| time.as_nanos() as u64))
        .chain([own.runs])
        .collect();
    let all = wire.all_gather_u64(Purpose::Control, &numbers)?;
    let read = |numbers: &[u64]| {
        let mut tally = TrafficStats::default();
        let (bytes, rest) = numbers.split_at(numbers.len() - tally.waited.len() - 2);
        let (waited, rest) = rest.split_at(tally.waited.len());
        tally.bytes.iter_mut().flatten().zip(bytes).for_each(|(to, from)| *to = *from);
        tally.waited.iter_mut().zip(waited).for_each(|(to, from)| *to = Duration::from_nanos(*from));
        (tally.layers, tally.runs) = (Duration::from_nanos(rest[0]), rest[1]);
        tally
    };
    Ok(all.chunks_exact(numbers.len()).map(read).collect())
}
