//! `evenkeel run --transport mpi` and `--transport nccl`: this process is one rank.
//!
//! All ranks read and plan for themselves. Before the first step they compare what they are about to run; rank 0 prints. Where one
//! fails, all end, and each says what it knows.

#[cfg(feature = "mpi")]
use super::args::ChunkCount;
use super::args::TransportName;
#[cfg(all(feature = "mpi", feature = "cuda"))]
use super::args::{BackendName, CudaAware};
use super::sent::Sent;
use super::{RunArgs, Setup, placements, show, verdict};
use crate::cli::output::{Bar, Output, Said};
#[cfg(feature = "cuda")]
use anyhow::Context as _;
use anyhow::anyhow;
use evenkeel::cluster::Cluster;
#[cfg(feature = "mpi")]
use evenkeel::exec::cpu::PeerOptions;
use evenkeel::exec::feed::Feed;
#[cfg(feature = "mpi")]
use evenkeel::exec::overlap::Overlap;
use evenkeel::exec::run::Progress;
#[cfg(feature = "mpi")]
use evenkeel::exec::transport::Mpi;
use evenkeel::exec::transport::{At, Purpose, Tally, Transport, TransportError, Wire, ranks_in_words};
#[cfg(feature = "cuda")]
use evenkeel::exec::transport::{DeviceTransport, Nccl, rendezvous::Launch};
#[cfg(all(feature = "mpi", feature = "cuda"))]
use evenkeel::exec::transport::{Memory, MpiDevice};
use evenkeel::exec::{Backend, ExecError};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Why this rank stops.
enum Fault {
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
        .and_then(|setup| facts(args, setup, job));
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

/// What has to be the same on all ranks, by name; and the host, which has not.
fn facts(args: &RunArgs, setup: &Setup, job: &Job) -> Result<BTreeMap<String, String>, String> {
    let words = |error: ExecError| evenkeel::in_words(&error);
    let mut facts: BTreeMap<String, String> = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("host", job.host().to_owned()),
        ("model", format!("{:?}", setup.exec.model)),
        ("--ranks", setup.exec.cluster.ranks().to_string()),
        ("--nodes", setup.exec.cluster.nodes().to_string()),
        ("slots per rank", setup.exec.cluster.slots_per_rank().to_string()),
        ("router", format!("{} {:?}", setup.exec.router, setup.exec.capacity)),
        ("--dtype", setup.exec.dtype.to_string()),
        ("--seed", setup.exec.seed.to_string()),
        ("--policy", format!("{} groups {}", args.policy_name(), args.cluster.groups)),
        ("--split and --then", format!("{} {:?}", args.split, setup.exec.then)),
        ("--aggregate", args.aggregate.to_string()),
        ("--backend", args.backend.name().to_owned()),
        ("--cuda-aware", args.cuda_aware.map_or("auto".into(), |aware| format!("{aware:?}").to_lowercase())),
        ("--ffn", format!("{:?}", args.ffn)),
        ("--skew and --drift", format!("{} {}", args.skew, args.drift)),
        ("--replan-every, --move-budget and --max-moves", format!("{:?}", args.replan())),
        ("--check", args.check.to_string()),
        ("--alone", args.alone.to_string()),
        ("--prove-plans", args.prove_plans.to_string()),
        ("--chunks", format!("{:?}", args.chunks)),
        ("--rank-timeout", args.rank_timeout.to_string()),
        ("layers that run", format!("{:?}", setup.layers)),
        ("steps planned on and run", format!("{:?} {:?}", setup.plan_on, setup.steps)),
    ]
    .into_iter()
    .map(|(name, fact)| (name.to_owned(), fact))
    .collect();
    facts.insert("trace".into(), trace(setup));
    facts.insert("weights".into(), weights(setup).map_err(words)?);
    Ok(facts)
}

/// A digest of everything that is replayed.
fn trace(setup: &Setup) -> String {
    let mut hash = Sha256::new();
    let steps = setup.plan_on.start.min(setup.steps.start)..setup.steps.end;
    for step in steps {
        for &layer in &setup.layers {
            if let Some(trace) = setup.feed.trace() {
                trace.loads(step, layer).iter().for_each(|load| hash.update(load.to_le_bytes()));
            }
            if let (Feed::Tokens(tokens), true) = (&setup.feed, setup.steps.contains(&step)) {
                tokens.ids(step, layer).iter().for_each(|id| hash.update(id.to_le_bytes()));
            }
        }
    }
    let tokens = match &setup.feed {
        Feed::Tokens(_) => "single tokens".to_owned(),
        Feed::Counts { top_k, seed, .. } => format!("counts of top-{top_k} dealt by seed {seed}"),
        Feed::Made { tokens } => format!("none, {tokens} tokens a step"),
    };
    format!("{tokens}, digest {}", short(hash))
}

/// A digest of routers, norms and the first expert of every layer: what tells checkpoints apart without reading all of them.
fn weights(setup: &Setup) -> Result<String, ExecError> {
    let mut hash = Sha256::new();
    for layer in 0..setup.layers.len() {
        let (gate, expert) = (setup.weights.gate(layer)?, setup.weights.expert(layer, 0)?);
        let numbers =
            [gate.weight.wide(), gate.bias, setup.weights.norm(layer)?, expert.up.wide(), expert.down.wide()];
        numbers.iter().flatten().for_each(|number| hash.update(number.to_le_bytes()));
        gate.selection.iter().for_each(|number| hash.update(number.to_le_bytes()));
    }
    Ok(format!("digest {}", short(hash)))
}

fn short(hash: Sha256) -> String {
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    format!("{:016x}", u64::from_be_bytes(first))
}

/// Refuses ranks that cannot run together, naming what differs where; the same error on all of them. Out: the hosts.
fn compare(ranks: usize, told: &[Vec<u8>]) -> Result<Vec<String>, Fault> {
    type Facts = Result<BTreeMap<String, String>, String>;
    let mut all: Vec<BTreeMap<String, String>> = Vec::with_capacity(told.len());
    let mut failed: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (rank, bytes) in told.iter().enumerate() {
        let facts: Facts = serde_json::from_slice(bytes)
            .unwrap_or_else(|_| Err("it speaks of its run as no evenkeel of this version does".into()));
        match facts {
            Ok(facts) => all.push(facts),
            Err(why) => failed.entry(why).or_default().push(rank),
        }
    }
    refuse(&failed, told.len())?;
    let mut differ = Vec::new();
    for (name, fact) in all[0].iter().filter(|(name, _)| *name != "host") {
        let others: Vec<usize> = (0..all.len()).filter(|&rank| all[rank].get(name) != Some(fact)).collect();
        if let Some(&rank) = others.first() {
            let other = all[rank].get(name).map_or("nothing", String::as_str);
            differ.push(format!("{name} is {fact} on rank 0 and {other} on {}", ranks_in_words(&others)));
        }
    }
    if !differ.is_empty() {
        return Err(Fault::All(anyhow!("the ranks are not about to run the same: {}", differ.join("; "))));
    }
    let expected = all[0].get("--ranks").and_then(|ranks| ranks.parse().ok()).unwrap_or(0);
    if expected != ranks {
        return Err(TransportError::Ranks { given: ranks, expected }.into());
    }
    Ok(all.into_iter().map(|mut facts| facts.remove("host").unwrap_or_default()).collect())
}

/// The first reason for which ranks fail, where any does.
fn refuse(failed: &BTreeMap<String, Vec<usize>>, ranks: usize) -> Result<(), Fault> {
    match failed.iter().next() {
        None => Ok(()),
        Some((why, all)) if all.len() == ranks => Err(Fault::All(anyhow!("{why}"))),
        Some((why, some)) => Err(Fault::All(anyhow!("{}: {why}", ranks_in_words(some)))),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What a rank says, with something else under one name.
    fn told(other: Option<(&str, &str)>) -> Vec<u8> {
        let mut facts: BTreeMap<&str, &str> =
            [("version", "0.1.0"), ("host", "a"), ("model", "m"), ("trace", "digest 1"), ("--ranks", "3")]
                .into();
        facts.extend(other);
        serde_json::to_vec(&Ok::<_, String>(facts)).unwrap_or_default()
    }

    /// What all ranks find; the hosts, or the error that all of them have.
    fn found(ranks: usize, told: &[Vec<u8>]) -> Result<Vec<String>, String> {
        compare(ranks, told).map_err(|fault| match fault {
            Fault::All(error) => evenkeel::in_words(error.as_ref()),
            Fault::Own(error) => format!("one rank's own: {error}"),
        })
    }

    #[test]
    fn ranks_that_are_about_to_run_the_same_may_be_on_any_host() {
        let all = [told(None), told(Some(("host", "b"))), told(None)];
        assert_eq!(found(3, &all), Ok(vec!["a".to_owned(), "b".to_owned(), "a".to_owned()]));
    }

    #[test]
    fn what_differs_is_named_with_the_ranks() {
        for (name, other, expected) in [
            ("version", "0.2.0", "version is 0.1.0 on rank 0 and 0.2.0 on rank 1"),
            ("trace", "digest 2", "trace is digest 1 on rank 0 and digest 2 on rank 1"),
            ("model", "n", "model is m on rank 0 and n on rank 1"),
        ] {
            let error = found(3, &[told(None), told(Some((name, other))), told(None)]).unwrap_err();
            assert!(error.starts_with("the ranks are not about to run the same: "), "{error}");
            assert!(error.ends_with(expected), "{error}");
        }
        // Other options than this version's.
        let short =
            serde_json::to_vec(&Ok::<_, String>(BTreeMap::from([("version", "0.1.0")]))).unwrap_or_default();
        let error = found(3, &[told(None), told(None), short]).unwrap_err();
        assert!(error.contains("model is m on rank 0 and nothing on rank 2"), "{error}");
    }

    #[test]
    fn a_rank_that_failed_is_named_with_its_reason() {
        let failed = |why: &str| serde_json::to_vec(&Err::<(), _>(why)).unwrap_or_default();
        let some = [failed("no trace"), told(None), failed("no trace")];
        assert_eq!(found(3, &some), Err("ranks 0 and 2: no trace".to_owned()));
        // All of them for the same reason: it is nobody's in particular.
        assert_eq!(found(2, &[failed("no trace"), failed("no trace")]), Err("no trace".to_owned()));
    }

    #[test]
    fn what_no_evenkeel_of_this_version_says_is_refused() {
        for garbage in [&b""[..], b"\xff\x00", b"{}", b"[1]", b"{\"Ok\":{\"version\":1}}"] {
            let error = found(3, &[told(None), garbage.to_vec(), told(None)]).unwrap_err();
            assert_eq!(error, "rank 1: it speaks of its run as no evenkeel of this version does");
        }
    }

    #[test]
    fn another_number_of_processes_than_ranks_is_refused() {
        let error = found(2, &[told(None), told(None)]).unwrap_err();
        assert!(error.starts_with("2 processes were started for 3 ranks"), "{error}");
    }
}
