//! `evenkeel run`: a real forward pass that applies the plans, measured and checked.

mod args;
#[cfg(any(feature = "mpi", feature = "cuda"))]
mod facts;
#[cfg(any(feature = "mpi", feature = "cuda"))]
mod processes;
#[cfg_attr(not(any(feature = "mpi", feature = "cuda")), allow(dead_code, reason = "of processes alone"))]
mod sent;
mod show;

pub(super) use args::{BackendName, FfnName, RunArgs};
use args::{ChunkCount, TransportName};
use sent::Sent;

use super::output::{Bar, Output, print, write_file};
use super::trace_args::TraceArgs;
use anyhow::{Context as _, bail};
use evenkeel::exec::activations::Activations;
use evenkeel::exec::checkpoint::Checkpoint;
#[cfg(feature = "cuda")]
use evenkeel::exec::cuda::{Options, Path};
use evenkeel::exec::feed::Feed;
use evenkeel::exec::router::Router;
use evenkeel::exec::run::{Outcome, Run};
use evenkeel::exec::weights::{RandomWeights, WeightSource};
use evenkeel::exec::{Aggregate, ExecConfig, ExecError};
use evenkeel::model::Model;
use evenkeel::place::{Placement, Policy};
use evenkeel::simulate::busy_layers;
use evenkeel::trace::Trace;
use std::ops::Range;
use std::sync::Arc;

/// What to do about that.
#[cfg(not(feature = "mpi"))]
pub(crate) const WITHOUT_MPI: &str = "this evenkeel was built without MPI: install Open MPI (Debian: libopenmpi-dev openmpi-bin \
     libclang1 libclang-common-14-dev) and build it with `cargo build --release --features mpi`";

#[cfg(not(feature = "cuda"))]
const WITHOUT_CUDA: &str = "this evenkeel was built without the feature `cuda`";

/// Bytes of experts that are worth a word before they are made.
const LARGE: u64 = 8 << 30;

pub(super) fn run(args: &RunArgs, output: Output) -> anyhow::Result<()> {
    if args.aggregate != Aggregate::None && args.backend != BackendName::Cpu {
        bail!("--aggregate {}: expected --backend cpu; GPUs are no gateways yet", args.aggregate);
    }
    let over_mpi = args.transport == TransportName::Mpi;
    if args.chunks != ChunkCount::Fixed(1) && !(over_mpi && args.backend == BackendName::Cpu) {
        bail!(
            "--chunks: expected --transport mpi and --backend cpu; nothing travels in one process, and between GPUs all of a layer does at once"
        );
    }
    if args.cuda_aware.is_some() && !(over_mpi && args.backend == BackendName::Cuda) {
        bail!(
            "--cuda-aware: expected --transport mpi and --backend cuda; it is about device memory that goes over MPI"
        );
    }
    match args.transport {
        TransportName::InProcess if args.prove_plans => {
            bail!("--prove-plans: expected --transport mpi or nccl; in one process there is one plan")
        }
        TransportName::InProcess => here(args, output),
        TransportName::Nccl if args.backend != BackendName::Cuda => {
            bail!(
                "--transport nccl: expected --backend cuda; ranks on the CPU reach each other by --transport mpi"
            )
        }
        TransportName::Nccl | TransportName::Mpi if args.backend == BackendName::Cuda && args.gpus != 1 => {
            bail!(
                "--transport {}: --gpus {}: expected 1; every process has one rank, and one GPU",
                if over_mpi { "mpi" } else { "nccl" },
                args.gpus
            )
        }
        #[cfg(feature = "cuda")]
        TransportName::Nccl => processes::run(args, output),
        #[cfg(not(feature = "cuda"))]
        TransportName::Nccl => bail!(WITHOUT_CUDA),
        #[cfg(not(feature = "cuda"))]
        TransportName::Mpi if args.backend == BackendName::Cuda => bail!(WITHOUT_CUDA),
        #[cfg(feature = "mpi")]
        TransportName::Mpi => processes::run(args, output),
        #[cfg(not(feature = "mpi"))]
        TransportName::Mpi => bail!(WITHOUT_MPI),
    }
}

/// Runs all ranks in this process.
fn here(args: &RunArgs, output: Output) -> anyhow::Result<()> {
    args.backend.available(args.gpu, args.gpus, args.ffn)?;
    let setup = Setup::new(args, output)?;
    let run = setup.run(args);
    let bar = Bar::running();
    let outcome = match args.backend {
        BackendName::Cpu => {
            let placements = placements(&run, &setup.plan_on, |steps| run.profile(steps, &bar))?;
            run.on_cpu(placements, &bar)?
        }
        #[cfg(feature = "cuda")]
        BackendName::Cuda => run.on_cuda(
            cuda(args.gpu, args.gpus, args.ffn),
            |plain| placements(&run, &setup.plan_on, |steps| run.profile_on(plain, steps, &bar)),
            &bar,
        )?,
        #[cfg(not(feature = "cuda"))]
        BackendName::Cuda => bail!("built without the feature `cuda`"),
    };
    drop(bar);
    show(args, &run, &setup.plan_on, &outcome, None, output)?;
    verdict(&run, &outcome)
}

/// What the arguments ask for, read and checked.
struct Setup {
    exec: ExecConfig,
    weights: Arc<dyn WeightSource>,
    feed: Feed,
    layers: Vec<usize>,
    plan_on: Range<usize>,
    steps: Range<usize>,
    policy: Box<dyn Policy>,
}

impl Setup {
    fn new(args: &RunArgs, output: Output) -> anyhow::Result<Self> {
        let model = args.model()?;
        let feed = feed(args, &model, output)?;
        let router = router(args, &model)?;
        let cluster = args.cluster.cluster(model.experts)?;
        let policy = args.policy(&cluster)?;
        let layers = layers(args, &feed)?;
        let (plan_on, steps) = steps(args, &feed, output)?;
        let expert = model.expert_parameters() * args.dtype.bytes();
        let bytes = expert * (cluster.slots() * layers.len()) as u64;
        if bytes > LARGE {
            output.note(&format!("experts take {:.0} GiB of memory", bytes as f64 / f64::from(1 << 30)));
        }
        let weights = weights(args, model, &router)?;
        let exec = ExecConfig {
            model,
            cluster,
            router,
            capacity: args.capacity(),
            method: Some(args.split),
            then: args.then()?,
            aggregate: args.aggregate,
            dtype: args.dtype,
            seed: args.trace.seed,
        };
        Ok(Self { exec, weights, feed, layers, plan_on, steps, policy })
    }

    fn run(&self, args: &RunArgs) -> Run<'_> {
        Run {
            exec: self.exec.clone(),
            weights: Arc::clone(&self.weights),
            feed: &self.feed,
            layers: self.layers.clone(),
            steps: self.steps.clone(),
            activations: Activations {
                skew: args.skew,
                drift: args.drift,
                ..Activations::new(self.exec.model.hidden as usize, args.trace.seed)
            },
            policy: self.policy.as_ref(),
            replan: args.replan(),
            check: args.check,
            compare: !args.alone,
        }
    }
}

/// Writes and prints.
fn show(
    args: &RunArgs,
    run: &Run<'_>,
    plan_on: &Range<usize>,
    outcome: &Outcome,
    sent: Option<&Sent>,
    output: Output,
) -> anyhow::Result<()> {
    if let Some(path) = &args.record {
        evenkeel::trace::write(&outcome.trace()?, path)?;
    }
    if let Some(path) = &args.report {
        let page = show::page(args, run, outcome);
        write_file(path, &page)?;
    }
    if output.json() {
        let mut document = show::document(args, run, plan_on, outcome);
        if let (Some(sent), Some(fields)) = (sent, document.as_object_mut()) {
            fields.insert("transport".into(), sent.document(outcome));
        }
        return super::output::document(&document);
    }
    let sent = sent.map_or_else(String::new, |sent| sent.text(outcome));
    print(&(show::text(args, run, plan_on, outcome) + &sent))?;
    for (what, path) in [("loads", &args.record), ("report", &args.report)] {
        if let Some(path) = path {
            output.note(&format!("{what} written to {}", path.display()));
        }
    }
    Ok(())
}

/// Fails where the check failed.
fn verdict(run: &Run<'_>, outcome: &Outcome) -> anyhow::Result<()> {
    if outcome.check.is_some_and(|check| !check.ok(run.exec.dtype)) {
        bail!("the check failed: what ran is not what the reference computes");
    }
    if !outcome.to_the_token() {
        bail!("what the ranks served is not what the split says");
    }
    Ok(())
}

/// Placements of the first step: of the first part of the trace, or of steps that are run for it.
fn placements(
    run: &Run<'_>,
    plan_on: &Range<usize>,
    profile: impl FnOnce(Range<usize>) -> Result<Trace, ExecError>,
) -> anyhow::Result<Vec<Placement>> {
    if let Some(trace) = run.feed.trace() {
        return Ok(run.place(trace, &run.layers, plan_on.clone())?);
    }
    let (layers, profile): (Vec<usize>, _) = ((0..run.layers.len()).collect(), profile(plan_on.clone())?);
    Ok(run.place(&profile, &layers, 0..plan_on.len())?)
}

fn weights(args: &RunArgs, model: Model, router: &Router) -> anyhow::Result<Arc<dyn WeightSource>> {
    Ok(match &args.weights {
        Some(folder) => Arc::new(Checkpoint::open(folder, model, args.dtype)?),
        None => Arc::new(RandomWeights {
            model,
            width: router.width(model.experts),
            dtype: args.dtype,
            seed: args.trace.seed,
        }),
    })
}

fn feed(args: &RunArgs, model: &Model, output: Output) -> anyhow::Result<Feed> {
    let trace_args = &args.trace;
    if trace_args.traces.is_empty() {
        return Ok(Feed::Made { tokens: trace_args.decode_batch.unwrap_or(trace_args.batch_tokens) });
    }
    // The seed is also that of weights and activations.
    let trace_args = &TraceArgs { explicit: trace_args.explicit.without("seed"), ..trace_args.clone() };
    let trace = trace_args.read_for(Some(*model))?;
    output.notices(trace.notices());
    if trace.experts() != model.experts {
        bail!(
            "the trace has {} experts, {} has {}: expected the same (--model, or --experts)",
            trace.experts(),
            model.name,
            model.experts
        );
    }
    let per_token = trace.format().holds_tokens() && trace.resampling().is_none();
    Ok(if per_token {
        Feed::Tokens(trace_args.read_tokens()?)
    } else {
        Feed::Counts { trace, top_k: model.top_k, seed: trace_args.seed }
    })
}

fn router(args: &RunArgs, model: &Model) -> anyhow::Result<Router> {
    let replayed = !args.trace.traces.is_empty();
    match args.router.as_deref() {
        None | Some("replay") if replayed => Ok(Router::of(model)),
        Some("replay") => bail!("--router replay: expected a TRACE to replay"),
        None => Ok(Router::of(model)),
        Some(name) => {
            let router: Router = name.parse().context("--router")?;
            if replayed {
                bail!(
                    "--router {name}: the trace says where its tokens go; leave TRACE out, or take --router replay"
                );
            }
            Ok(router)
        }
    }
}

/// The layers that run: the first that routed tokens, or any where nothing was recorded.
fn layers(args: &RunArgs, feed: &Feed) -> anyhow::Result<Vec<usize>> {
    let all = match feed.trace() {
        Some(trace) => busy_layers(trace)?,
        None => (0..args.num_layers).collect(),
    };
    if args.num_layers == 0 || args.num_layers > all.len() {
        bail!("--num-layers {}: expected 1 to {}", args.num_layers, all.len().max(1));
    }
    Ok(all[..args.num_layers].to_vec())
}

/// Steps to plan on and steps to run.
fn steps(args: &RunArgs, feed: &Feed, output: Output) -> anyhow::Result<(Range<usize>, Range<usize>)> {
    if args.steps == 0 {
        bail!("--steps 0: expected 1 or more");
    }
    if !(args.plan_on > 0.0 && args.plan_on < 1.0) {
        bail!("--plan-on {}: expected more than 0 and less than 1", args.plan_on);
    }
    let Some(trace) = feed.trace() else {
        let first = (args.steps as f64 * args.plan_on / (1.0 - args.plan_on)).ceil().min(1e6) as usize;
        return Ok((0..first, first..first + args.steps));
    };
    let all = trace.steps().len();
    if all < 2 {
        bail!("the trace has {all} step(s): at least 2 are needed to plan on one part and run the rest");
    }
    // As a simulation cuts it.
    let cut = ((all as f64 * args.plan_on).floor() as usize).clamp(1, all - 1);
    let run = args.steps.min(all - cut);
    if run < args.steps {
        output.note(&format!("{run} steps run: the trace has no more behind the {cut} planned on"));
    }
    Ok((0..cut, cut..cut + run))
}

impl BackendName {
    /// Whether it can run here.
    pub(in crate::cli) fn available(self, gpu: usize, gpus: u16, ffn: FfnName) -> anyhow::Result<()> {
        match self {
            BackendName::Cpu => Ok(()),
            #[cfg(feature = "cuda")]
            BackendName::Cuda => Ok(cuda(gpu, gpus, ffn).available()?),
            #[cfg(not(feature = "cuda"))]
            BackendName::Cuda => {
                let _ = (gpu, gpus, ffn);
                let reason = "built without the feature `cuda`".into();
                Err(evenkeel::exec::ExecError::Unavailable { backend: "cuda", reason }.into())
            }
        }
    }
}

/// What a CUDA backend runs on.
#[cfg(feature = "cuda")]
pub(super) fn cuda(device: usize, devices: u16, ffn: FfnName) -> Options {
    let path = match ffn {
        FfnName::Own => Path::Own,
        FfnName::Cublas => Path::Cublas,
    };
    Options { device, devices: devices.into(), path, ..Options::default() }
}
