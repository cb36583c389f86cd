//! `evenkeel calibrate experts`: measures the time of experts on this machine, as a roofline that splits can
//! use as objective.

#[cfg(feature = "cuda")]
use crate::commands::run::cuda_options;
use crate::commands::run::{BackendName, FfnName};
use crate::output::{
    Output, StderrBar, command_line, is_stdout, pretty_json, print_json, print_text, write_file,
};
use crate::render::table::render_table;
use anyhow::bail;
use clap::Args;
use evenkeel::model::MoeModel;
#[cfg(feature = "cuda")]
use evenkeel_exec::calibrate::measure_on_cuda;
use evenkeel_exec::calibrate::{CostSweep, RooflineFit, measure_experts};
use evenkeel_exec::weights::{Dtype, RandomWeights};
use evenkeel_report::FitPage;
use std::path::PathBuf;

/// Measure the time of experts, and fit a roofline
///
/// Experts run alone on one core, with few and many tokens, one and several in a row. By the fitted roofline,
/// an expert takes the longer of two times: reading its weights, and multiplying its tokens in tiles. The
/// residual is the measured time over the fitted one, less 1. `--cost roofline:FILE` and `--expert-time FILE`
/// of `evenkeel simulate` read the file.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel calibrate experts --model qwen3-30b-a3b -o roofline.json --report fit.html\n  evenkeel \
                       simulate objective traces/sample-decode.csv.zst --ranks 8 --cost roofline:roofline.json"
)]
pub(crate) struct ExpertsArgs {
    /// Model whose experts run: mixtral-8x7b, qwen3-30b-a3b, gpt-oss-20b, deepseek-v2-lite, deepseek-v3,
    /// kimi-k2 and others
    #[arg(long, value_name = "MODEL", required = true)]
    model: MoeModel,
    /// Hardware that runs the experts: cpu or cuda
    #[arg(long, value_name = "NAME", default_value = "cpu", hide = cfg!(not(feature = "cuda")))]
    backend: BackendName,
    /// With --backend cuda: matrix multiplication: own or cublas
    #[arg(
        long,
        value_name = "NAME",
        default_value = "own",
        hide = cfg!(not(feature = "cuda")),
        hide_short_help = true
    )]
    ffn: FfnName,
    /// With --backend cuda: index of the GPU
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide = cfg!(not(feature = "cuda")),
        hide_short_help = true
    )]
    gpu: usize,
    /// Width of tokens, instead of the model's, for small trials
    #[arg(long, value_name = "H", value_parser = clap::value_parser!(u64).range(1..=1 << 20), hide_short_help = true)]
    hidden: Option<u64>,
    /// Width inside experts, instead of the model's, for small trials
    #[arg(long, value_name = "I", value_parser = clap::value_parser!(u64).range(1..=1 << 20), hide_short_help = true)]
    intermediate: Option<u64>,
    /// Number format of weights: f32 or bf16
    #[arg(long, value_name = "DTYPE", default_value = "bf16")]
    dtype: Dtype,
    /// Numbers of tokens per expert to measure
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = CostSweep::default().tokens,
          value_parser = clap::value_parser!(u64).range(1..=1 << 20), hide_short_help = true)]
    tokens: Vec<u64>,
    /// Numbers of experts in a row to measure
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = CostSweep::default().experts,
          value_parser = clap::value_parser!(u64).range(1..=1 << 16), hide_short_help = true)]
    experts: Vec<u64>,
    /// Repetitions of each measurement; the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Write the fit to this file, as JSON; `-` is stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a report to this file: one HTML page with the fit and its residuals, which needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Measurement to run, from options that are valid together.
#[derive(Debug)]
struct ExpertsRequest {
    model: MoeModel,
    sweep: CostSweep,
}

impl ExpertsArgs {
    /// Checks the options against each other.
    fn resolve(&self) -> anyhow::Result<ExpertsRequest> {
        if self.backend == BackendName::Cuda && self.dtype != Dtype::Bf16 {
            bail!("--dtype {}: expected bf16 with --backend cuda", self.dtype);
        }
        let model = MoeModel {
            hidden: self.hidden.unwrap_or(self.model.hidden),
            intermediate: self.intermediate.unwrap_or(self.model.intermediate),
            ..self.model
        };
        let sweep = CostSweep::default()
            .tokens(self.tokens.clone())
            .experts(self.experts.clone())
            .rounds(self.rounds as usize);
        Ok(ExpertsRequest { model, sweep })
    }
}

pub(super) fn run(args: &ExpertsArgs, output: Output) -> anyhow::Result<()> {
    let ExpertsRequest { model, sweep } = args.resolve()?;
    args.backend.check_available(args.gpu, 1, args.ffn)?;
    let weights = RandomWeights { model, width: model.experts, dtype: args.dtype, seed: 1 };
    let bar = StderrBar::for_execution();
    let points = match args.backend {
        #[cfg(feature = "cuda")]
        BackendName::Cuda => {
            measure_on_cuda(cuda_options(args.gpu, 1, args.ffn), &model, &weights, &sweep, &bar)?
        }
        _ => measure_experts(&model, &weights, &sweep, &bar)?,
    };
    drop(bar);
    let fit = RooflineFit::from_points(points)?;
    let file = fit.to_file(&model, &args.dtype.to_string(), args.backend.name());
    let setting = format!(
        "Experts of {} ({} x {}) in {}, {} rounds, {}.",
        model.name,
        model.hidden,
        model.intermediate,
        args.dtype,
        args.rounds,
        if args.backend == BackendName::Cpu { "one core" } else { "one GPU" }
    );
    if let Some(path) = &args.report {
        let title = format!("Calibration of {}", model.name);
        let page = FitPage::new(&fit).title(title).command(command_line()).setting(&setting);
        write_file(path, &page.to_html())?;
    }
    if let Some(path) = &args.output {
        write_file(path, &pretty_json(&file)?)?;
    }
    if args.output.as_deref().is_some_and(is_stdout) {
        return Ok(());
    }
    if output.is_json() {
        return print_json(&file);
    }
    print_text(&fit_to_text(&fit, &setting))?;
    for path in args.output.iter().chain(&args.report) {
        output.print_note(&format!("written to {}", path.display()));
    }
    Ok(())
}

fn fit_to_text(fit: &RooflineFit, setting: &str) -> String {
    let (roofline, residual) = (fit.roofline, fit.residual_summary());
    let row = |(point, residual): (&evenkeel_exec::calibrate::CostPoint, f64)| {
        vec![
            point.experts.to_string(),
            point.tokens.to_string(),
            format!("{:.1}", point.us),
            format!("{:.1}", fit.predicted_us(point)),
            format!("{:+.1}", residual * 100.0),
        ]
    };
    let rows = fit.points.iter().zip(fit.residuals()).map(row).collect();
    format!(
        "{setting}\n\nread {:.1} us, token {:.3} us, tiles of {}; residual: half within {:.1} %, worst {:.1} %\n\n{}",
        roofline.read as f64 / 1e6,
        roofline.token as f64 / 1e6,
        roofline.tile,
        residual.p50 * 100.0,
        residual.max * 100.0,
        render_table(&["experts", "tokens each", "us", "fitted us", "residual %"], rows, 0)
    )
}

#[cfg(test)]
mod tests {
    use super::super::CalibrateCommand;

    #[test]
    fn other_formats_than_bf16_on_a_gpu_are_refused() {
        let command = crate::parse_line("calibrate experts --model gpt-oss-20b --backend cuda --dtype f32");
        let crate::Command::Calibrate(CalibrateCommand::Experts(args)) = command else { panic!("calibrate") };
        assert!(args.resolve().unwrap_err().to_string().starts_with("--dtype f32"));
    }
}
