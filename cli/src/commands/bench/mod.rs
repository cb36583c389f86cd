//! `evenkeel bench`: compares methods on drawn and recorded batches.

mod dynamic;

use crate::output::Output;
use clap::Subcommand;

/// Compare the solvers with published methods and with proved optima
///
/// The batches are those of the published methods' own tests, or recorded ones. Every plan is checked by code
/// that shares nothing with the solver.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum BenchCommand {
    Dynamic(Box<dynamic::DynamicArgs>),
}

pub(crate) fn run(command: &BenchCommand, output: Output) -> anyhow::Result<()> {
    match command {
        BenchCommand::Dynamic(args) => dynamic::run(args, output),
    }
}
