//! `evenkeel run`: a real forward pass that applies the plans, with measurements and checks.

mod args;
#[cfg_attr(not(any(feature = "mpi", feature = "cuda")), allow(dead_code, reason = "for processes alone"))]
mod communication;
#[cfg(any(feature = "mpi", feature = "cuda"))]
mod processes;
mod render;
mod request;

use args::TransportName;
pub(crate) use args::{BackendName, FfnName, RunArgs};
use communication::CommunicationStats;
#[cfg(feature = "mpi")]
pub(crate) use processes::exit_stuck_process;
use request::RunRequest;

use crate::args::trace::TraceArgs;
use crate::output::{Output, StderrBar, print_json, print_text, write_file};
use anyhow::bail;
use evenkeel::evaluate::busy_layers;
use evenkeel::place::Policy;
use evenkeel_exec::ExecConfig;
use evenkeel_exec::activations::ActivationGenerator;
use evenkeel_exec::batch_source::BatchSource;
use evenkeel_exec::checkpoint::Checkpoint;
use evenkeel_exec::comm::ProcessGroup;
use evenkeel_exec::cpu::CpuOptions;
#[cfg(feature = "cuda")]
use evenkeel_exec::cuda::{CudaOptions, GemmPath};
use evenkeel_exec::run::{ExecRun, RunReport};
use evenkeel_exec::weights::{RandomWeights, WeightSource};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Instruction for a build without MPI.
#[cfg(not(feature = "mpi"))]
pub(crate) const WITHOUT_MPI: &str = "this evenkeel was built without MPI: install Open MPI (Debian: libopenmpi-dev openmpi-bin \
     libclang1 libclang-common-14-dev) and build it with `cargo build --release -p evenkeel-cli --features mpi`";

#[cfg(not(feature = "cuda"))]
const WITHOUT_CUDA: &str = "this evenkeel was built without the feature `cuda`";

/// Bytes of experts above which a note precedes their allocation.
const LARGE_EXPERT_BYTES: u64 = 8 << 30;

pub(crate) fn run(args: &RunArgs, output: Output) -> anyhow::Result<()> {
    let request = args.resolve()?;
    match request.transport {
        TransportName::InProcess => run_in_process(&request, output),
        #[cfg(feature = "cuda")]
        TransportName::Nccl => processes::run_as_rank(&request, output),
        #[cfg(not(feature = "cuda"))]
        TransportName::Nccl => bail!(WITHOUT_CUDA),
        #[cfg(not(feature = "cuda"))]
        TransportName::Mpi if request.backend == BackendName::Cuda => bail!(WITHOUT_CUDA),
        #[cfg(feature = "mpi")]
        TransportName::Mpi => processes::run_as_rank(&request, output),
        #[cfg(not(feature = "mpi"))]
        TransportName::Mpi => bail!(WITHOUT_MPI),
    }
}

/// Runs all ranks in this process.
fn run_in_process(request: &RunRequest, output: Output) -> anyhow::Result<()> {
    request.backend.check_available(request.gpu, request.gpus, request.ffn)?;
    let inputs = RunInputs::new(request, output)?;
    let run = inputs.to_run(request);
    let bar = StderrBar::for_execution();
    let plan_on = inputs.plan_on.clone();
    let outcome = match request.backend {
        BackendName::Cpu => {
            let group = Rc::new(ProcessGroup::local(inputs.exec.cluster));
            run.run_on_cpu(&group, CpuOptions::default(), plan_on, &bar)?
        }
        #[cfg(feature = "cuda")]
        BackendName::Cuda => {
            run.run_on_cuda(cuda_options(request.gpu, request.gpus, request.ffn), plan_on, &bar)?
        }
        #[cfg(not(feature = "cuda"))]
        BackendName::Cuda => bail!(WITHOUT_CUDA),
    };
    drop(bar);
    report_run(request, &run, &inputs.plan_on, &outcome, None, output)?;
    check_outcome(&run, &outcome)
}

/// Inputs of a run, read and checked.
struct RunInputs {
    exec: ExecConfig,
    weights: Arc<dyn WeightSource>,
    feed: BatchSource,
    layers: Vec<usize>,
    plan_on: Range<usize>,
    steps: Range<usize>,
    policy: Box<dyn Policy>,
}

impl RunInputs {
    fn new(request: &RunRequest, output: Output) -> anyhow::Result<Self> {
        let model = request.model;
        let feed = read_feed(request, output)?;
        let cluster = request.cluster.for_experts(model.experts)?;
        let policy = request.policy(&cluster)?;
        let layers = select_layers(request, &feed)?;
        let (plan_on, steps) = select_steps(request, &feed, output)?;
        let expert = model.expert_parameters() * request.dtype.bytes();
        let bytes = expert * (cluster.slots() * layers.len()) as u64;
        if bytes > LARGE_EXPERT_BYTES {
            output
                .print_note(&format!("experts take {:.0} GiB of memory", bytes as f64 / f64::from(1 << 30)));
        }
        let weights = open_weights(request)?;
        let exec = ExecConfig {
            model,
            cluster,
            router: request.router.clone(),
            capacity: request.capacity,
            method: Some(request.split),
            tie_break: request.tie_break,
            aggregate: request.aggregate,
            dynamic: request.dynamic,
            dtype: request.dtype,
            seed: request.trace.seed,
        };
        Ok(Self { exec, weights, feed, layers, plan_on, steps, policy })
    }

    fn to_run(&self, request: &RunRequest) -> ExecRun<'_> {
        ExecRun {
            exec: self.exec.clone(),
            weights: Arc::clone(&self.weights),
            feed: &self.feed,
            layers: self.layers.clone(),
            steps: self.steps.clone(),
            activations: ActivationGenerator {
                skew: request.skew,
                drift: request.drift,
                ..ActivationGenerator::new(self.exec.model.hidden as usize, request.trace.seed)
            },
            policy: self.policy.as_ref(),
            replan: request.replan.clone(),
            check: request.check,
            compare: !request.no_baseline,
        }
    }
}

/// Writes the report and prints the results.
fn report_run(
    request: &RunRequest,
    run: &ExecRun<'_>,
    plan_on: &Range<usize>,
    outcome: &RunReport,
    communication: Option<&CommunicationStats>,
    output: Output,
) -> anyhow::Result<()> {
    if let Some(path) = &request.record {
        evenkeel_trace::write(&outcome.load_trace()?, path)?;
    }
    if let Some(path) = &request.report {
        let page = render::report_page(request, run, outcome);
        write_file(path, &page)?;
    }
    if output.is_json() {
        let mut document = render::run_to_json(request, run, plan_on, outcome);
        if let (Some(communication), Some(fields)) = (communication, document.as_object_mut()) {
            fields.insert("transport".into(), communication.to_json(outcome));
        }
        return print_json(&document);
    }
    let communication = communication.map_or_else(String::new, |stats| stats.to_text(outcome));
    print_text(&(render::run_to_text(request, run, plan_on, outcome) + &communication))?;
    for (content, path) in [("loads", &request.record), ("report", &request.report)] {
        if let Some(path) = path {
            output.print_note(&format!("{content} written to {}", path.display()));
        }
    }
    Ok(())
}

/// Returns an error if the check failed.
fn check_outcome(run: &ExecRun<'_>, outcome: &RunReport) -> anyhow::Result<()> {
    if outcome.check.is_some_and(|check| !check.within_bounds(run.exec.dtype)) {
        bail!("the check failed: the run differs from the reference");
    }
    if !outcome.matches_prediction() {
        bail!("the loads of the ranks differ from the split");
    }
    Ok(())
}

fn open_weights(request: &RunRequest) -> anyhow::Result<Arc<dyn WeightSource>> {
    let model = request.model;
    Ok(match &request.weights {
        Some(folder) => Arc::new(Checkpoint::open(folder, model, request.dtype)?),
        None => Arc::new(RandomWeights {
            model,
            width: request.router.logit_width(model.experts),
            dtype: request.dtype,
            seed: request.trace.seed,
        }),
    })
}

fn read_feed(request: &RunRequest, output: Output) -> anyhow::Result<BatchSource> {
    let (model, trace_args) = (&request.model, &request.trace);
    if trace_args.traces.is_empty() {
        return Ok(BatchSource::Synthetic {
            tokens: trace_args.decode_batch.unwrap_or(trace_args.batch_tokens),
        });
    }
    // `--seed` is also the seed of weights and activations, so it is not a trace option here.
    let trace_args = &TraceArgs { stated: trace_args.stated.without_id("seed"), ..trace_args.clone() };
    let trace = trace_args.read_for_model(Some(*model))?;
    output.print_notices(trace.notices());
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
        BatchSource::Tokens(trace_args.read_tokens()?)
    } else {
        BatchSource::Counts { trace, top_k: model.top_k, seed: trace_args.seed }
    })
}

/// Returns the layers to run: the first that routed tokens, or the first of the model without a trace.
fn select_layers(request: &RunRequest, feed: &BatchSource) -> anyhow::Result<Vec<usize>> {
    let all = match feed.trace() {
        Some(trace) => busy_layers(trace)?,
        None => (0..request.num_layers).collect(),
    };
    if request.num_layers == 0 || request.num_layers > all.len() {
        bail!("--num-layers {}: expected 1 to {}", request.num_layers, all.len().max(1));
    }
    Ok(all[..request.num_layers].to_vec())
}

/// Returns the steps to plan on and the steps to run.
fn select_steps(
    request: &RunRequest,
    feed: &BatchSource,
    output: Output,
) -> anyhow::Result<(Range<usize>, Range<usize>)> {
    let Some(trace) = feed.trace() else {
        let first = (request.steps as f64 * request.train_fraction / (1.0 - request.train_fraction))
            .ceil()
            .min(1e6) as usize;
        return Ok((0..first, first..first + request.steps));
    };
    let all = trace.steps().len();
    if all < 2 {
        bail!(
            "the trace has too few steps ({all}): at least 2 are needed to plan on one part and run the rest"
        );
    }
    // The cut is that of a simulation.
    let cut = ((all as f64 * request.train_fraction).floor() as usize).clamp(1, all - 1);
    let run = request.steps.min(all - cut);
    if run < request.steps {
        output.print_note(&format!("{run} steps run: the trace has no more after the {cut} planned steps"));
    }
    Ok((0..cut, cut..cut + run))
}

impl BackendName {
    /// Returns an error if the backend cannot run on this machine.
    pub(crate) fn check_available(self, gpu: usize, gpus: u16, ffn: FfnName) -> anyhow::Result<()> {
        match self {
            BackendName::Cpu => Ok(()),
            #[cfg(feature = "cuda")]
            BackendName::Cuda => Ok(cuda_options(gpu, gpus, ffn).check_available()?),
            #[cfg(not(feature = "cuda"))]
            BackendName::Cuda => {
                let _ = (gpu, gpus, ffn);
                let reason = WITHOUT_CUDA.into();
                Err(evenkeel_exec::ExecError::Unavailable { backend: "cuda", reason }.into())
            }
        }
    }
}

/// Returns the options of a CUDA backend.
#[cfg(feature = "cuda")]
pub(crate) fn cuda_options(device: usize, devices: u16, ffn: FfnName) -> CudaOptions {
    let path = match ffn {
        FfnName::Own => GemmPath::Own,
        FfnName::Cublas => GemmPath::Cublas,
    };
    CudaOptions::default().device(device).devices(devices.into()).path(path)
}
