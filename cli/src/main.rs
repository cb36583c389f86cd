//! The `evenkeel` command: from arguments over library calls to one document or a few tables.
//!
//! Exit codes: 0 success, 1 failure (one message on stderr states the reason), 2 invalid arguments.

#![allow(clippy::disallowed_methods, reason = "a program may change its process, and libraries may not")]

mod args;
#[cfg(feature = "serve")]
mod client;
mod commands;
mod config;
mod output;
mod render;

use clap::{Args, Parser, Subcommand};
use output::Output;
use std::process::ExitCode;

/// Load-balancing planner for Mixture-of-Experts models under expert parallelism
///
/// Evenkeel reads routing statistics from recorded traces. It decides where redundant replicas of experts are
/// placed, and splits the tokens of each batch over the replicas. It proves that no split is better.
#[derive(Debug, Parser)]
#[command(
    name = "evenkeel",
    version,
    max_term_width = 110,
    disable_help_subcommand = true,
    disable_version_flag = true,
    after_help = "Start with `evenkeel trace inspect TRACE`, then `evenkeel simulate TRACE --ranks 8`.",
    after_long_help = "Start with:\n  evenkeel trace inspect TRACE                the content of a trace\n  \
                       evenkeel simulate TRACE --ranks 8           the benefit of balancing, by policy\n  \
                       evenkeel plan TRACE --ranks 8 -o plan.json  a placement to use\n\n\
                       TRACE is a file or a folder: CSV (also .gz, .zst), Parquet, .npy/.npz per-token arrays, SGLang \
                       recorder dumps, TensorRT-LLM folders, vLLM JSONL. The format is detected by content."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: GlobalArgs,
    #[command(flatten)]
    config: config::ConfigArgs,
    /// Print version
    #[arg(short = 'V', long, action = clap::ArgAction::Version, hide_short_help = true)]
    version: Option<bool>,
}

/// Options of every command.
#[derive(Debug, Clone, Copy, Args)]
struct GlobalArgs {
    /// Print one JSON document on stdout instead of tables
    #[arg(long, global = true)]
    json: bool,
    /// Print more: all notices, and one line per layer
    #[arg(short, long, global = true, hide_short_help = true)]
    verbose: bool,
    /// Threads; results do not depend on their number [default: one per core]
    #[arg(long, global = true, value_name = "N", hide_short_help = true)]
    threads: Option<usize>,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(subcommand)]
    Trace(commands::trace::TraceCommand),
    Plan(Box<commands::plan::PlanCommand>),
    Simulate(Box<commands::simulate::SimulateCommand>),
    Advise(Box<commands::advise::AdviseArgs>),
    Run(Box<commands::run::RunArgs>),
    #[command(subcommand)]
    Bench(commands::bench::BenchCommand),
    #[command(subcommand)]
    Calibrate(commands::calibrate::CalibrateCommand),
    #[command(subcommand)]
    Costs(commands::costs::CostsCommand),
    #[cfg(feature = "serve")]
    Serve(commands::serve::ServeArgs),
    #[cfg(feature = "serve")]
    Top(commands::top::TopArgs),
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Completions(config::CompletionsArgs),
    Man(config::ManArgs),
}

/// Parses the arguments, runs the command, and turns an error into one message and an exit code.
fn main() -> ExitCode {
    let cli = match config::parse() {
        Ok(cli) => cli,
        Err(error) => {
            output::print_error(&error);
            return ExitCode::FAILURE;
        }
    };
    let output = Output::new(cli.global.json, cli.global.verbose);
    if let Some(threads) = cli.global.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build_global();
        if let Err(error) = pool {
            output::print_error(&anyhow::Error::new(error).context("--threads"));
            return ExitCode::FAILURE;
        }
    }
    let done = match cli.command {
        Command::Trace(command) => commands::trace::run(&command, output),
        Command::Plan(command) => commands::plan::run(&command, output),
        Command::Simulate(command) => commands::simulate::run(&command, output),
        Command::Advise(args) => commands::advise::run(&args, output),
        Command::Run(args) => commands::run::run(&args, output),
        Command::Bench(command) => commands::bench::run(&command, output),
        Command::Calibrate(command) => commands::calibrate::run(&command, output),
        Command::Costs(command) => commands::costs::run(&command, output),
        #[cfg(feature = "serve")]
        Command::Serve(args) => commands::serve::run(args, output),
        #[cfg(feature = "serve")]
        Command::Top(args) => commands::top::run(&args, output),
        Command::Config(command) => config::run(&command, output),
        Command::Completions(args) => config::run_completions(&args),
        Command::Man(args) => config::run_man(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if output::is_reported(&error) => ExitCode::FAILURE,
        Err(error) => {
            output::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Parses a command line of words without the program's name.
#[cfg(test)]
fn parse_line(line: &str) -> Command {
    let words = std::iter::once("evenkeel").chain(line.split_whitespace());
    Cli::try_parse_from(words).map_or_else(|error| panic!("{line}: {error}"), |cli| cli.command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Adds the lines of the short help of this command and of those below it.
    fn short_helps(command: &mut clap::Command, path: &str, found: &mut Vec<(String, usize)>) {
        found.push((path.to_owned(), command.render_help().to_string().lines().count()));
        for sub in command.get_subcommands_mut() {
            let below = format!("{path} {}", sub.get_name());
            short_helps(sub, &below, found);
        }
    }

    #[test]
    fn short_help_fits_on_a_screen_of_24_lines() {
        let mut program = config::command().term_width(100);
        program.build();
        let mut found = vec![];
        short_helps(&mut program, "evenkeel", &mut found);
        found.retain(|(_, lines)| *lines > 24);
        assert!(found.is_empty(), "{found:?}");
    }
}
