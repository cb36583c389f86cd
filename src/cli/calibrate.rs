//! `evenkeel calibrate`: what experts cost on this machine, as a roofline that splits can aim at.

use super::output::{Bar, Output, print, table, write_file};
use super::run::BackendName;
use clap::Args;
#[cfg(feature = "cuda")]
use evenkeel::exec::calibrate::measure_on_cuda;
use evenkeel::exec::calibrate::{Fit, Sweep, measure};
use evenkeel::exec::weights::{Dtype, RandomWeights};
use evenkeel::model::Model;
use evenkeel::report::FitPage;
use std::path::{Path, PathBuf};

/// Measure what experts cost on this machine, and fit the roofline that `--cost roofline:FILE` takes.
///
/// Experts run alone on one core, with few and many tokens, one and several in a row; an expert with tokens is then said to take
/// the longer of two times: its weights are read, or its tokens are multiplied in tiles. The residual (measured over fitted,
/// less one) says how far that is from the truth.
///
/// With --network, what exchanges between the processes of an MPI job cost, as the file that `simulate --network FILE` takes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  evenkeel calibrate --backend cpu --model qwen3-30b-a3b -o roofline.json --report fit.html\n  \
                  evenkeel simulate traces/sample-decode.csv.zst --ranks 8 --cost roofline:roofline.json\n  mpirun -n 2 \
                  evenkeel calibrate --network -o network.json"
)]
pub(crate) struct CalibrateArgs {
    /// cpu or cuda
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    backend: BackendName,
    /// With --backend cuda: own or cublas, what multiplies
    #[arg(long, value_name = "NAME", default_value = "own")]
    ffn: super::run::FfnName,
    /// With --backend cuda: which GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpu: usize,
    /// Measure exchanges between processes instead, started by `mpirun -n R` from an evenkeel built with --features mpi
    #[arg(long, conflicts_with_all = ["model", "report"])]
    network: bool,
    /// With --network: nodes that the processes sit in; links inside and between them are measured apart
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: usize,
    /// Whose experts: mixtral-8x7b, qwen3-30b-a3b, gpt-oss-20b, deepseek-v2-lite, deepseek-v3, kimi-k2 and others
    #[arg(long, value_name = "MODEL", required_unless_present = "network")]
    model: Option<Model>,
    /// Another width of tokens, for small trials
    #[arg(long, value_name = "H", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    hidden: Option<u64>,
    /// Another width inside experts, for small trials
    #[arg(long, value_name = "I", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    intermediate: Option<u64>,
    /// What weights are kept in: f32 or bf16
    #[arg(long, value_name = "DTYPE", default_value = "bf16")]
    dtype: Dtype,
    /// Tokens per expert to measure
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = Sweep::default().tokens,
          value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    tokens: Vec<u64>,
    /// Experts in a row to measure
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = Sweep::default().experts,
          value_parser = clap::value_parser!(u64).range(1..=1 << 16))]
    experts: Vec<u64>,
    /// How often; medians count
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: u64,
    /// Write the fit here, as JSON; `-` is stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a plot of the fit and its residual here: one HTML file that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(crate) fn run(args: &CalibrateArgs, output: Output) -> anyhow::Result<()> {
    let Some(model) = args.model else {
        let (nodes, rounds, path) = (args.nodes, args.rounds as usize, args.output.as_deref());
        return super::calibrate_network::run(nodes, rounds, path, output);
    };
    args.backend.available(args.gpu, 1, args.ffn)?;
    if args.backend == BackendName::Cuda && args.dtype != Dtype::Bf16 {
        anyhow::bail!("--dtype {}: the cuda backend runs bf16", args.dtype);
    }
    let model = Model {
        hidden: args.hidden.unwrap_or(model.hidden),
        intermediate: args.intermediate.unwrap_or(model.intermediate),
        ..model
    };
    let weights = RandomWeights { model, width: model.experts, dtype: args.dtype, seed: 1 };
    let sweep = Sweep {
        tokens: args.tokens.clone(),
        experts: args.experts.clone(),
        rounds: args.rounds as usize,
        ..Sweep::default()
    };
    let bar = Bar::running();
    let points = match args.backend {
        #[cfg(feature = "cuda")]
        BackendName::Cuda => {
            measure_on_cuda(super::run::cuda(args.gpu, 1, args.ffn), &model, &weights, &sweep, &bar)?
        }
        _ => measure(&model, &weights, &sweep, &bar)?,
    };
    drop(bar);
    let fit = Fit::of(points)?;
    let file = fit.file(&model, &args.dtype.to_string(), args.backend.name());
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
        let page = FitPage { title, command: super::command_line(), setting: setting.clone(), fit: &fit };
        write_file(path, &page.html())?;
    }
    if let Some(path) = &args.output {
        let mut text = serde_json::to_string_pretty(&file)?;
        text.push('\n');
        write_file(path, &text)?;
    }
    if args.output.as_deref() == Some(Path::new("-")) {
        return Ok(());
    }
    if output.json() {
        return super::output::document(&file);
    }
    print(&text(&fit, &setting))?;
    for path in args.output.iter().chain(&args.report) {
        output.note(&format!("written to {}", path.display()));
    }
    Ok(())
}

fn text(fit: &Fit, setting: &str) -> String {
    let (roofline, residual) = (fit.roofline, fit.residual());
    let row = |(point, residual): (&evenkeel::exec::calibrate::Point, f64)| {
        vec![
            point.experts.to_string(),
            point.tokens.to_string(),
            format!("{:.1}", point.us),
            format!("{:.1}", fit.fitted(point)),
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
        table(&["experts", "tokens each", "us", "fitted us", "residual %"], rows, 0)
    )
}
