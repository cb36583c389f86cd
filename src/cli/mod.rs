//! The command line: arguments in, library calls, one document or a few tables out.
//!
//! Exit codes: 0 done, 1 it could not be done (one message on stderr says why), 2 the arguments were wrong.

mod and_args;
mod bench;
#[cfg(feature = "serve")]
mod bench_online;
mod calibrate;
mod calibrate_network;
#[cfg(feature = "serve")]
mod client;
mod cluster_args;
mod explicit;
mod export;
mod figures;
mod further;
mod goal_args;
mod links;
mod memory;
mod model_args;
mod network_args;
mod output;
mod past_args;
mod plan;
mod plan_check;
mod plan_told;
#[cfg(feature = "serve")]
mod price_args;
mod replan_args;
mod run;
mod secure_args;
#[cfg(feature = "serve")]
mod serve;
mod shapes;
mod simulate;
mod sizing;
mod speeds;
#[cfg(feature = "serve")]
mod top;
mod topology;
mod trace;
mod trace_args;
#[cfg(feature = "serve")]
mod trace_replay;
mod unused_options;

use clap::{Args, Parser, Subcommand};
use output::Output;
use std::process::ExitCode;

/// Load-balancing planner for Mixture-of-Experts models under expert parallelism.
///
/// Give it routing statistics (recorded traces of many formats); it decides where redundant copies of experts should
/// live and how each batch's tokens are shared between the copies, and proves that the sharing cannot be better.
#[derive(Debug, Parser)]
#[command(
    name = "evenkeel",
    version,
    max_term_width = 110,
    after_help = "Start with:\n  evenkeel trace inspect TRACE                what is in a trace\n  \
                  evenkeel simulate TRACE --ranks 8           is balancing worth it, and which kind\n  \
                  evenkeel plan TRACE --ranks 8 -o plan.json  a placement to use\n\n\
                  TRACE is a file or a folder: CSV (also .gz, .zst), Parquet, .npy/.npz per-token arrays, SGLang \
                  recorder dumps, TensorRT-LLM folders, vLLM JSONL. Its format is found by looking."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

/// Options of every command.
#[derive(Debug, Clone, Copy, Args)]
struct Global {
    /// Print one JSON document on stdout instead of tables
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,
    /// Say more: notices in full, one line per layer
    #[arg(short, long, global = true, help_heading = "Everywhere")]
    verbose: bool,
    /// Threads to use; results do not depend on it [default: one per core]
    #[arg(long, global = true, value_name = "N", help_heading = "Everywhere")]
    threads: Option<usize>,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(subcommand)]
    Trace(trace::TraceCommand),
    Plan(Box<plan::PlanCommand>),
    Export(export::ExportArgs),
    Simulate(Box<simulate::SimulateArgs>),
    Run(Box<run::RunArgs>),
    Calibrate(calibrate::CalibrateArgs),
    #[cfg(feature = "serve")]
    Serve(serve::ServeArgs),
    #[cfg(feature = "serve")]
    Top(top::TopArgs),
    Topology(topology::TopologyArgs),
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// Parses the arguments, runs the command, and turns an error into one message and an exit code.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.global.json, cli.global.verbose);
    if let Some(threads) = cli.global.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build_global();
        if let Err(error) = pool {
            output::error(&anyhow::Error::new(error).context("--threads"));
            return ExitCode::FAILURE;
        }
    }
    let done = match cli.command {
        Command::Trace(command) => trace::run(command, output),
        Command::Plan(command) => plan::run(*command, output),
        Command::Export(args) => export::run(&args, output),
        Command::Simulate(args) => simulate::run(&args, output),
        Command::Run(args) => run::run(&args, output),
        Command::Calibrate(args) => calibrate::run(&args, output),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(args, output),
        #[cfg(feature = "serve")]
        Command::Top(args) => top::run(&args, output),
        Command::Topology(args) => topology::run(&args, output),
        Command::Bench(command) => bench::run(&command, output),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if output::is_said(&error) => ExitCode::FAILURE,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

/// The command as it was given, for reports.
fn command_line() -> String {
    let quoted = |arg: String| if arg.contains(char::is_whitespace) { format!("'{arg}'") } else { arg };
    let rest: Vec<String> =
        std::env::args_os().skip(1).map(|a| quoted(a.to_string_lossy().into_owned())).collect();
    format!("evenkeel {}", rest.join(" "))
}
