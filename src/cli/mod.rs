//! The command line, one file per subcommand.

mod trace;
mod trace_args;

use clap::{Parser, Subcommand};

/// Load-balancing planner for Mixture-of-Experts models.
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look at, convert and make routing traces
    #[command(subcommand)]
    Trace(trace::TraceCommand),
}

/// Runs the command.
pub(crate) fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Trace(command) => trace::run(command),
    }
}
