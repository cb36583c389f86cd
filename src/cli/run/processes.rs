//! `evenkeel run --transport mpi` and `--transport nccl`: this process is one rank.
//!
//! All ranks read and plan for themselves. Before the first step they compare what they are about to run; rank 0 prints. Where one
//! fails, all end, and each says what it knows.

#[cfg(feature = "mpi")]
use super::args::ChunkCount;
use super::args::TransportName;
#[cfg(all(feature = "mpi", feature = "cuda"))]
use super::args::{BackendName, CudaAware};
use super::facts::{compare, facts, refuse};
use super::sent::Sent;
use super::{RunArgs, Setup, placements, show, verdict};
use crate::cli::output::{Bar, Output, Said};
#[cfg(feature = "cuda")]
use anyhow::Context as _;
use evenkeel::cluster::Cluster;
#[cfg(feature = "mpi")]
use evenkeel::exec::cpu::PeerOptions;
#[cfg(feature = "mpi")]
use evenkeel::exec::overlap::Overlap;
use evenkeel::exec::run::Progress;
#[cfg(feature = "mpi")]
use evenkeel::exec::transport::Mpi;
#[cfg(all(feature = "mpi", feature = "cuda"))]
use evenkeel::exec::transport::ranks_in_words;
use evenkeel::exec::transport::{At, Purpose, Tally, Transport, TransportError, Wire};
#[cfg(feature = "cuda")]
use evenkeel::exec::transport::{DeviceTransport, Nccl, rendezvous::Launch};
#[cfg(all(feature = "mpi", feature = "cuda"))]
use evenkeel::exec::transport::{Memory, MpiDevice};
use evenkeel::exec::{Backend, ExecError};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Why this rank stops.
pub(super) enum Fault {
    /// All ranks know it.
    All(anyhow::Error),
    /// This one alone does, or it is about another one.
    Own(anyhow::Error),
}

impl From<ExecError> for Fault {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Transport(
                TransportError::Differ { .. } | TransportError::Ranks { .. } | TransportError::Joining(_),
            ) => Fault::All(error.into()),
            _ => Fault::Own(error.into()),
        }
    }
}

impl From<TransportError> for Fault {
    fn from(error: TransportError) -> Self {
        ExecError::from(error).into()
    }
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        Fault::Own(error)
    }
}

/// The job that this process is one of.
enum Job {
    #[cfg(feature = "mpi")]
    Mpi(Mpi),
    #[cfg(feature = "cuda")]
    Nccl(Nccl),
}

impl Job {
    fn join(args: &RunArgs) -> anyhow::Result<Self> {
        let timeout = Duration::from_secs(args.rank_timeout);
        match args.transport {
            #[cfg(feature = "cuda")]
            TransportName::Nccl => {
                let launch = Launch::from_environment().context("--transport nccl")?;
                let rank = launch.rank;
                Ok(Job::Nccl(Nccl::join(launch, args.gpu, timeout).map_err(|error| match error {
                    // All ranks find the same; one message is enough.
                    TransportError::Joining(_) if rank > 0 => anyhow::Error::from(Said),
                    error => anyhow::Error::from(error).context(format!("rank {rank}")),
                })?))
            }
            #[cfg(feature = "mpi")]
            TransportName::Mpi => Ok(Job::Mpi(Mpi::join(timeout)?)),
            _ => anyhow::bail!("--transport: this evenkeel was built without it"),
        }
    }

    fn transport(&self) -> Box<dyn Transport> {
        match self {
            #[cfg(feature = "mpi")]
            Job::Mpi(mpi) => Box::new(mpi.clone()),
            #[cfg(feature = "cuda")]
            Job::Nccl(nccl) => Box::new(nccl.clone()),
        }
    }

    /// Where tokens and weights are; all ranks ask, when they know that they are about to run the same.
    #[cfg_attr(
        not(all(feature = "mpi", feature = "cuda")),
        allow(unused_variables, clippy::unnecessary_wraps, reason = "of GPUs over MPI")
    )]
    fn place(&self, args: &RunArgs) -> Result<Place, TransportError> {
        match self {
            #[cfg(all(feature = "mpi", feature = "cuda"))]
            Job::Mpi(mpi) if args.backend == BackendName::Cuda => {
                let gpus = MpiDevice::join(mpi, args.gpu, memory(args))?;
                let notices = notices(args, &gpus);
                Ok(Place::Gpu { gpus: Rc::new(gpus), notices })
            }
            #[cfg(feature = "mpi")]
            Job::Mpi(_) => Ok(Place::Host),
            #[cfg(feature = "cuda")]
            Job::Nccl(nccl) => Ok(Place::Gpu { gpus: Rc::new(nccl.clone()), notices: Vec::new() }),
        }
    }

    fn host(&self) -> &str {
        match self {
            #[cfg(feature = "mpi")]
            Job::Mpi(mpi) => mpi.host(),
            #[cfg(feature = "cuda")]
            Job::Nccl(nccl) => nccl.host(),
        }
    }

    fn end(&self) -> Result<(), TransportError> {
        let at = At { step: None, layer: None, purpose: Purpose::Control };
        match self {
            #[cfg(feature = "mpi")]
            Job::Mpi(mpi) => mpi.end(at),
            #[cfg(feature = "cuda")]
            Job::Nccl(nccl) => nccl.end(at),
        }
    }

    fn give_up(&self, why: &str) {
        match self {
            #[cfg(feature = "mpi")]
            Job::Mpi(mpi) => mpi.give_up(why),
            #[cfg(feature = "cuda")]
            Job::Nccl(nccl) => nccl.give_up(why),
        }
    }
}

/// Where a rank's tokens and weights are, and how those of a GPU travel.
enum Place {
    #[cfg(feature = "mpi")]
    Host,
    #[cfg(feature = "cuda")]
    Gpu { gpus: Rc<dyn DeviceTransport>, notices: Vec<String> },
}

impl Place {
    /// How device memory is handed on, and what is worth knowing.
    fn told(&self) -> (Option<String>, Vec<String>) {
        match self {
            #[cfg(feature = "mpi")]
            Place::Host => (None, Vec::new()),
            #[cfg(feature = "cuda")]
            Place::Gpu { gpus, notices } => (Some(gpus.memory().to_string()), notices.clone()),
        }
    }
}

/// How device memory is to be handed to the MPI library.
#[cfg(all(feature = "mpi", feature = "cuda"))]
fn memory(args: &RunArgs) -> Memory {
    let aware = match args.cuda_aware.unwrap_or(CudaAware::Auto) {
        CudaAware::Auto => MpiDevice::is_cuda_aware(),
        CudaAware::Yes => true,
        CudaAware::No => false,
    };
    if aware { Memory::Device } else { Memory::Staged }
}

/// What is worth knowing of GPUs over MPI.
#[cfg(all(feature = "mpi", feature = "cuda"))]
fn notices(args: &RunArgs, gpus: &MpiDevice) -> Vec<String> {
    let mut notices = Vec::new();
    if !gpus.shared().is_empty() {
        let each = |(host, ranks): &(String, Vec<usize>)| format!("{} of {host}", ranks_in_words(ranks));
        let all: Vec<String> = gpus.shared().iter().map(each).collect();
        notices.push(format!("ranks share a GPU, and wait for each other on it: {}", all.join("; ")));
    }
    if args.cuda_aware == Some(CudaAware::Yes) && !MpiDevice::is_cuda_aware() {
        notices.push("--cuda-aware yes: the MPI library does not say that it takes device memory".into());
    }
    notices
}

/// Joins the job, runs as one of its ranks and leaves it.
pub(super) fn run(args: &RunArgs, output: Output) -> anyhow::Result<()> {
    let job = Job::join(args)?;
    let rank = job.transport().rank();
    let first = rank == 0;
    let end = || job.end().map_err(Fault::from);
    let done = as_rank(args, if first { output } else { output.quiet() }, &job);
    let ended = match done {
        Ok(()) => end().map(Ok),
        Err(Fault::All(error)) => {
            // One message is enough; the other ranks end with the exit code alone, and not before it is out: the launcher ends
            // a job at the first such end.
            if first {
                crate::cli::output::error(&error);
            }
            end().map(|()| Err(Said.into()))
        }
        Err(own) => Err(own),
    };
    match ended {
        Ok(done) => done,
        Err(Fault::All(error) | Fault::Own(error)) => {
            let why = evenkeel::in_words(error.as_ref());
            crate::cli::output::error(&error.context(format!("rank {rank}")));
            job.give_up(&why);
            Err(Said.into())
        }
    }
}

fn as_rank(args: &RunArgs, output: Output, job: &Job) -> Result<(), Fault> {
    let setup = Setup::new(args, output);
    // Ranks are compared before anybody knows how many the arguments ask for.
    let ranks = job.transport().ranks();
    let group = Cluster::uneven(ranks, 1, ranks, 0).map_err(|error| Fault::Own(error.into()))?;
    let wire = Wire::new(job.transport(), group)?;
    let facts = setup
        .as_ref()
        .map_err(|error| evenkeel::in_words(error.as_ref()))
        .and_then(|setup| facts(args, setup, job.host()));
    let told = serde_json::to_vec(&facts).map_err(|error| Fault::Own(error.into()))?;
    let hosts = compare(wire.ranks(), &wire.all_gather(Purpose::Control, told)?)?;
    let setup = setup?;
    let tokens = job.place(args)?;
    let (memory, notices) = tokens.told();
    output.notices(&notices);

    let wire = Rc::new(Wire::new(job.transport(), setup.exec.cluster)?);
    let run = setup.run(args);
    let bar = (wire.rank() == 0).then(Bar::running);
    let progress: &dyn Progress = bar.as_ref().map_or(&(), |bar| bar);
    let place = |plain: &mut dyn Backend| {
        let profile = |steps| run.profile_on(plain, steps, progress);
        made(&wire, placements(&run, &setup.plan_on, profile))
    };
    let prove = args.prove_plans;
    let (outcome, chunks, overlap) = match &tokens {
        #[cfg(feature = "cuda")]
        Place::Gpu { gpus, .. } => {
            let options = super::cuda(args.gpu, 1, args.ffn);
            (run.on_gpus((&wire, gpus), options, prove, place, progress)?, 1, None)
        }
        #[cfg(feature = "mpi")]
        Place::Host => {
            let (chunks, overlap) = match args.chunks {
                ChunkCount::Fixed(count) => (count.min(setup.exec.cluster.slots_per_rank()), None),
                ChunkCount::Auto => {
                    let overlap = Overlap::measure(&run, &wire)?;
                    (overlap.chunks, Some(overlap))
                }
            };
            (run.on_wire(&wire, PeerOptions { prove, chunks }, place, progress)?, chunks, overlap)
        }
    };
    drop(bar);
    wire.doing(None, None);
    let (name, tallies, aggregate) = (wire.name(), tallies(&wire)?, args.aggregate);
    let sent = Sent { name, memory, notices, hosts, tallies, proved: prove, aggregate, chunks, overlap };
    if wire.rank() == 0 {
        show(args, &run, &setup.plan_on, &outcome, Some(&sent), output)?;
    }
    verdict(&run, &outcome).map_err(Fault::All)
}

/// What every rank made for itself, where all could make it; else the same error on all.
fn made<T>(wire: &Wire, made: anyhow::Result<T>) -> Result<T, Fault> {
    let error = made.as_ref().err();
    let lost = matches!(error.and_then(|error| error.downcast_ref()), Some(ExecError::Transport(_)));
    // Where a rank is gone nobody can be asked any more.
    if !lost {
        let why = error.map_or_else(String::new, |error| evenkeel::in_words(error.as_ref()));
        let mut failed: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let all = wire.all_gather(Purpose::Control, why.into_bytes())?;
        for (rank, why) in all.iter().enumerate().filter(|(_, why)| !why.is_empty()) {
            failed.entry(String::from_utf8_lossy(why).into_owned()).or_default().push(rank);
        }
        refuse(&failed, all.len())?;
    }
    Ok(made?)
}

/// Everybody's tally.
fn tallies(wire: &Wire) -> Result<Vec<Tally>, TransportError> {
    let own = wire.tally();
    let numbers: Vec<u64> = own
        .bytes
        .iter()
        .flatten()
        .copied()
        .chain(own.waited.iter().chain([&own.layers]).map(|time| time.as_nanos() as u64))
        .chain([own.runs])
        .collect();
    let all = wire.all_numbers(Purpose::Control, &numbers)?;
    let read = |numbers: &[u64]| {
        let mut tally = Tally::default();
        let (bytes, rest) = numbers.split_at(numbers.len() - tally.waited.len() - 2);
        let (waited, rest) = rest.split_at(tally.waited.len());
        tally.bytes.iter_mut().flatten().zip(bytes).for_each(|(to, from)| *to = *from);
        tally.waited.iter_mut().zip(waited).for_each(|(to, from)| *to = Duration::from_nanos(*from));
        (tally.layers, tally.runs) = (Duration::from_nanos(rest[0]), rest[1]);
        tally
    };
    Ok(all.chunks_exact(numbers.len()).map(read).collect())
}
