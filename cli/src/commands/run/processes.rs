//! `evenkeel run --transport mpi` and `--transport nccl`: this process is one rank.
//!
//! All ranks read and plan independently. Rank 0 prints the results. If one rank fails, all end, and each
//! reports its own error.

use super::args::{BackendName, ChunkCount, CudaAware, TransportName};
use super::communication::CommunicationStats;
use super::{RunInputs, RunRequest, check_outcome, report_run};
use crate::output::{Output, ReportedError, StderrBar, print_error};
#[cfg(feature = "cuda")]
use anyhow::Context as _;
use evenkeel_exec::ExecError;
#[cfg(feature = "cuda")]
use evenkeel_exec::comm::{CommError, NcclCommunicator, rendezvous::Launch};
#[cfg(feature = "mpi")]
use evenkeel_exec::comm::{MpiCommunicator, StuckCall};
use evenkeel_exec::job::{Fingerprint, Job, JobOptions, RankError, RankMemory, run_fingerprint};
use evenkeel_exec::run::StepProgress;
use std::rc::Rc;
use std::time::Duration;

/// Joins the job of this process.
fn join_job(request: &RunRequest) -> anyhow::Result<Job> {
    let timeout = Duration::from_secs(request.rank_timeout);
    match request.transport {
        #[cfg(feature = "cuda")]
        TransportName::Nccl => {
            let launch = Launch::from_environment().context("--transport nccl")?;
            let rank = launch.rank;
            let joined =
                NcclCommunicator::join(launch, request.gpu, timeout).map_err(|error| match error {
                    // All ranks find the same error, so one message is enough.
                    CommError::Joining(_) if rank > 0 => anyhow::Error::from(ReportedError),
                    error => anyhow::Error::from(error).context(format!("rank {rank}")),
                })?;
            Ok(Job::new(Rc::new(joined)))
        }
        #[cfg(feature = "mpi")]
        TransportName::Mpi => Ok(Job::new(Rc::new(MpiCommunicator::join(timeout, exit_stuck_process)?))),
        _ => anyhow::bail!("--transport: this evenkeel was built without it"),
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

/// Joins the job, runs as one of its ranks and leaves it.
pub(super) fn run_as_rank(request: &RunRequest, output: Output) -> anyhow::Result<()> {
    let job = join_job(request)?;
    let output = if job.rank() == 0 { output } else { output.without_notes() };
    let report = |error: anyhow::Error, rank: Option<usize>| {
        let reason = evenkeel::error_chain(error.as_ref());
        print_error(&match rank {
            Some(rank) => error.context(format!("rank {rank}")),
            None => error,
        });
        reason
    };
    job.run(|| execute_rank(request, output, &job), report).ok_or_else(|| ReportedError.into())
}

fn execute_rank(request: &RunRequest, output: Output, job: &Job) -> Result<(), RankError<anyhow::Error>> {
    let inputs = RunInputs::new(request, output);
    let fingerprint = inputs
        .as_ref()
        .map_err(|error| evenkeel::error_chain(error.as_ref()))
        .and_then(|inputs| fingerprint(request, inputs).map_err(|error| evenkeel::error_chain(&error)));
    let hosts = job.compare(fingerprint)?;
    let inputs = inputs.map_err(RankError::Own)?;
    let (memory, notices) = rank_memory(request, job)?;
    output.print_notices(&notices);

    let run = inputs.to_run(request);
    let bar = (job.rank() == 0).then(StderrBar::for_execution);
    let progress: &dyn StepProgress = bar.as_ref().map_or(&(), |bar| bar);
    let chunks = match request.chunks {
        ChunkCount::Fixed(count) => Some(count),
        ChunkCount::Auto => None,
    };
    let options = JobOptions::default().verify_splits(request.verify_plans).chunks(chunks);
    let done = job.execute(&run, inputs.plan_on.clone(), hosts, &memory, options, progress)?;
    let outcome = done.run;
    drop(bar);
    if job.rank() == 0 {
        let stats = CommunicationStats { stats: done.stats, notices };
        report_run(request, &run, &inputs.plan_on, &outcome, Some(&stats), output).map_err(RankError::Own)?;
    }
    check_outcome(&run, &outcome).map_err(RankError::All)
}

/// Returns the memory of tokens and weights, and notices for the user. All ranks call it after they have
/// agreed on their inputs.
fn rank_memory(request: &RunRequest, job: &Job) -> Result<(RankMemory, Vec<String>), ExecError> {
    match request.backend {
        #[cfg(feature = "cuda")]
        BackendName::Cuda => {
            let cuda_aware = match request.cuda_aware.unwrap_or(CudaAware::Auto) {
                CudaAware::Auto => None,
                CudaAware::Yes => Some(true),
                CudaAware::No => Some(false),
            };
            let device = job.open_devices(request.gpu, cuda_aware)?;
            let options = super::cuda_options(device.index, 1, request.ffn);
            Ok((RankMemory::Device { options, memory: device.memory }, device.notices))
        }
        _ => Ok((RankMemory::Host, Vec::new())),
    }
}

/// Returns the values that have to be equal on all ranks.
fn fingerprint(request: &RunRequest, inputs: &RunInputs) -> Result<Fingerprint, ExecError> {
    let cuda_aware = request.cuda_aware.map_or("auto".into(), |aware| format!("{aware:?}").to_lowercase());
    let options = [
        ("--dtype", inputs.exec.dtype.to_string()),
        ("--seed", inputs.exec.seed.to_string()),
        ("--policy", format!("{} groups {}", request.policy_name(), request.cluster.groups)),
        ("--split and --tie-break", format!("{} {:?}", request.split, inputs.exec.tie_break)),
        ("--dynamic, --slot-memory and --aim", format!("{:?}", inputs.exec.dynamic)),
        ("--aggregate", request.aggregate.to_string()),
        ("--backend", request.backend.name().to_owned()),
        ("--cuda-aware", cuda_aware),
        ("--ffn", format!("{:?}", request.ffn)),
        ("--skew and --drift", format!("{} {}", request.skew, request.drift)),
        ("--replan-every with its options", format!("{:?}", request.replan)),
        ("--check", request.check.to_string()),
        ("--no-baseline", request.no_baseline.to_string()),
        ("--verify-plans", request.verify_plans.to_string()),
        ("--chunks", format!("{:?}", request.chunks)),
        ("--rank-timeout", request.rank_timeout.to_string()),
    ];
    run_fingerprint(&inputs.to_run(request), &inputs.plan_on, options)
}
