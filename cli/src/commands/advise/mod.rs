//! `evenkeel advise`: the deployment to run, by recorded routing and measured kernels.

mod files;
mod render;

use crate::args::expert_time::read_database;
use crate::args::trace::TraceArgs;
use crate::output::{Output, StderrBar, command_line, print_json, print_text, write_file};
use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use evenkeel::gpu::GpuSpec;
use evenkeel::model::MoeModel;
use evenkeel_advise::{
    Advice, AdviceRequest, GpuCounts, ModelSpec, PlacementFiles, Serving, StepTimes, Workload,
    launch_commands,
};
use evenkeel_report::AdvicePage;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Serving framework whose kernels run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Framework {
    Sglang,
    Vllm,
    Trtllm,
}

impl Framework {
    fn name(self) -> &'static str {
        match self {
            Framework::Sglang => "sglang",
            Framework::Vllm => "vllm",
            Framework::Trtllm => "trtllm",
        }
    }
}

/// Use of the GPUs for prefill and decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ServingMode {
    /// Some instances prefill, others decode.
    Disaggregated,
    /// Every instance does both in turn.
    Mixed,
}

/// Number format of the key-value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CacheFormat {
    Bf16,
    Fp8,
}

/// Two numbers with a colon between them.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pair<T>(T, T);

impl<T: FromStr> FromStr for Pair<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("\"{text}\": expected two numbers with a colon between them");
        let (first, second) = text.split_once(':').ok_or_else(expected)?;
        let number = |text: &str| text.trim().parse().map_err(|_| expected());
        Ok(Self(number(first)?, number(second)?))
    }
}

/// Recommend a deployment: GPUs, parallelism, redundant experts, policy
///
/// The command prices all divisions of the model among the GPUs, with and without balancing. Times come from
/// measured kernels, imbalance from the batches of TRACE. A gain within its own error counts as none.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel advise dump.pt --model deepseek-r1 --gpu h100 --gpus 16..96 --context 4096:1024 \
                       --tpot-ms 50 --report advice.html\n  evenkeel advise TRACE --model config.json --gpu h200 --gpus 8,16 \
                       --context 2000:500 --framework vllm -o deployment"
)]
pub(crate) struct AdviseArgs {
    #[command(flatten)]
    trace: TraceArgs,
    /// Model: a known name, as in deepseek-v3 or deepseek-v3,h100, or its config.json of Hugging Face
    #[arg(long, value_name = "NAME[,GPU]|FILE", required = true)]
    model: String,
    /// GPU: a100, h100, h800, h200, h20, b200, b300, gb200, gb300, l40s, mi300x or mi355x
    #[arg(long, value_name = "GPU")]
    gpu: Option<GpuSpec>,
    /// GPUs of an instance to consider, as 8,16,32 or 16..96
    #[arg(long, value_name = "LIST|RANGE", required = true)]
    gpus: GpuCounts,
    /// Mean tokens of prompts and answers
    #[arg(long, value_name = "INPUT:OUTPUT", required = true)]
    context: Pair<u64>,
    /// Framework whose kernels run
    #[arg(long, value_enum, value_name = "NAME", default_value = "sglang")]
    framework: Framework,
    /// Highest time per output token, in milliseconds
    #[arg(long, value_name = "MS")]
    tpot_ms: Option<f64>,
    /// Highest time to the first token without queueing, in milliseconds
    #[arg(long, value_name = "MS")]
    ttft_ms: Option<f64>,
    /// Use of the GPUs for prefill and decode
    #[arg(long, value_enum, value_name = "MODE", default_value = "disaggregated", hide_short_help = true)]
    serving: ServingMode,
    /// Highest number of redundant slots per GPU to consider
    #[arg(
        long,
        value_name = "SLOTS",
        default_value_t = 2,
        value_parser = clap::value_parser!(u64).range(0..=8),
        hide_short_help = true
    )]
    max_redundant: u64,
    /// Number format of the key-value cache
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "bf16", hide_short_help = true)]
    kv_dtype: CacheFormat,
    /// Speculative drafts: tokens that a step verifies per request, and tokens that it accepts on average
    #[arg(long, value_name = "VERIFIED:ACCEPTED", hide_short_help = true)]
    drafts: Option<Pair<f64>>,
    /// Coefficient of variation of the requests' context
    #[arg(long, value_name = "CV", default_value_t = 0.0, hide_short_help = true)]
    length_spread: f64,
    /// Rate at which a GPU reads experts that do not fit from its host in every step, in gigabytes per second
    /// [default: all weights have to fit]
    #[arg(long, value_name = "GB/S", hide_short_help = true)]
    stream_gb_s: Option<f64>,
    /// Measured times: a file of `evenkeel costs import` [default: the table of the GPU, if there is one]
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    costs: Option<PathBuf>,
    /// List all deployments instead of the best ones
    #[arg(long, hide_short_help = true)]
    all: bool,
    /// Write a report with pictures to this file, as HTML
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write plans and the files for serving stacks into this folder
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

/// Question to answer, from options that are valid together.
#[derive(Debug)]
struct AdviseRequest {
    model: ModelSpec,
    times: StepTimes,
    workload: Workload,
}

impl AdviseArgs {
    /// Checks the options against each other, and reads the files that they name.
    fn resolve(&self) -> anyhow::Result<AdviseRequest> {
        let Pair(input, output) = self.context;
        let Pair(verified, accepted) = self.drafts.unwrap_or(Pair(1.0, 1.0));
        let kv_bytes = if self.kv_dtype == CacheFormat::Fp8 { 1.0 } else { 2.0 };
        let workload = Workload {
            input,
            output,
            tpot_ms: self.tpot_ms,
            ttft_ms: self.ttft_ms,
            verified,
            accepted,
            length_spread: self.length_spread,
            kv_bytes,
            stream_gb_s: self.stream_gb_s,
            serving: match self.serving {
                ServingMode::Disaggregated => Serving::Disaggregated,
                ServingMode::Mixed => Serving::Mixed,
            },
        };
        workload.check()?;
        let model = self.model_spec()?;
        let gpu = self.gpu_spec()?;
        let database =
            self.costs.as_ref().map(|path| read_database(&path.display().to_string())).transpose()?;
        let times = StepTimes::of_gpu(&model, gpu, database, self.framework.name(), kv_bytes)?;
        Ok(AdviseRequest { model, times, workload })
    }

    /// Returns the file of the model's configuration, if `--model` names one.
    fn config_file(&self) -> Option<&Path> {
        let path = Path::new(&self.model);
        (path.extension().is_some_and(|end| end == "json") || path.is_file()).then_some(path)
    }

    /// Returns the GPU of `--gpu`, or of `--model NAME,GPU`.
    fn gpu_spec(&self) -> anyhow::Result<GpuSpec> {
        if let Some(gpu) = self.gpu {
            return Ok(gpu);
        }
        let behind = self.model.split_once(',').filter(|_| self.config_file().is_none());
        match behind {
            Some((_, gpu)) => Ok(gpu.trim().parse()?),
            None => bail!("--gpu is missing: expected the GPU that runs the model, as in --gpu h100"),
        }
    }

    /// Returns the model by its name, or reads its configuration.
    fn model_spec(&self) -> anyhow::Result<ModelSpec> {
        let Some(path) = self.config_file() else {
            let name = self.model.split(',').next().unwrap_or_default().trim();
            return Ok(ModelSpec::of_known(name.parse::<MoeModel>()?)?);
        };
        let text = std::fs::read_to_string(path).with_context(|| self.model.clone())?;
        // Most configurations are called config.json, and their folder has the name of the model.
        let folder = path.parent().and_then(Path::file_name).filter(|_| path.ends_with("config.json"));
        let name = folder.or(path.file_stem()).unwrap_or_default().to_string_lossy().into_owned();
        ModelSpec::from_config_json(&name, &text).with_context(|| self.model.clone())
    }
}

pub(crate) fn run(args: &AdviseArgs, output: Output) -> anyhow::Result<()> {
    let AdviseRequest { model, times, workload } = args.resolve()?;
    let trace = args.trace.read_small_batches(model.moe)?;
    if model.moe.experts != trace.experts() {
        let (name, experts, found) = (&model.name, model.moe.experts, trace.experts());
        bail!("--model {name} has {experts} experts per layer, the trace {found}");
    }
    output.print_notices(trace.notices());
    if !times.is_measured() {
        output.print_note(&format!(
            "no kernel of {} is measured: times are shares of its data sheet, off by up to half",
            times.gpu()
        ));
    }
    let request = AdviceRequest {
        model: &model,
        times: &times,
        trace: &trace,
        workload,
        gpus: args.gpus.counts(times.linked()),
        max_redundant: args.max_redundant,
        seed: args.trace.seed,
    };
    let bar = StderrBar::for_placements();
    let advice = Advice::find(&request, &bar)?;
    drop(bar);
    let files = match &args.output {
        Some(folder) => files::write_files(folder, &advice, &request, output)?,
        None => PlacementFiles::default(),
    };
    let launch = launch_commands(&launch_name(args), advice.best(), workload.serving, &files);
    if let Some(path) = &args.report {
        let page = AdvicePage::new(&advice, &request, &launch).command(command_line());
        write_file(path, &page.to_html())?;
    }
    if output.is_json() {
        return print_json(&advice.to_json(&request, &launch, args.all));
    }
    print_text(&render::to_text(&advice, &request, &launch, args.framework.name(), args.all))?;
    if let Some(path) = &args.report {
        output.print_note(&format!("report written to {}", path.display()));
    }
    Ok(())
}

/// Returns the name of the model in commands: the folder of its configuration, or a placeholder.
fn launch_name(args: &AdviseArgs) -> String {
    let path = Path::new(&args.model);
    match path.parent().filter(|_| path.ends_with("config.json")) {
        Some(folder) if !folder.as_os_str().is_empty() => folder.display().to_string(),
        _ => "MODEL".to_owned(),
    }
}
