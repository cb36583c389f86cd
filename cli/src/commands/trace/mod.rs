//! `evenkeel trace`: inspects, converts, synthesizes and replays traces.

mod convert;
mod inspect;
#[cfg(feature = "serve")]
mod replay;
mod synth;

use crate::output::Output;
use clap::Subcommand;

/// Inspect, convert, synthesize and replay routing traces
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum TraceCommand {
    Inspect(inspect::InspectArgs),
    Convert(convert::ConvertArgs),
    Synth(Box<synth::SynthArgs>),
    #[cfg(feature = "serve")]
    Replay(Box<replay::ReplayArgs>),
}

pub(crate) fn run(command: &TraceCommand, output: Output) -> anyhow::Result<()> {
    match command {
        TraceCommand::Inspect(args) => inspect::run(args, output),
        TraceCommand::Convert(args) => convert::run(args, output),
        TraceCommand::Synth(args) => synth::run(args, output),
        #[cfg(feature = "serve")]
        TraceCommand::Replay(args) => replay::run(args, output),
    }
}
