//! `evenkeel calibrate`: measures this machine.

mod experts;
mod network;

use crate::output::Output;
use clap::Subcommand;

/// Measure the cost of experts and of exchanges on this machine
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum CalibrateCommand {
    Experts(Box<experts::ExpertsArgs>),
    Network(network::NetworkArgs),
}

pub(crate) fn run(command: &CalibrateCommand, output: Output) -> anyhow::Result<()> {
    match command {
        CalibrateCommand::Experts(args) => experts::run(args, output),
        CalibrateCommand::Network(args) => network::run(args, output),
    }
}
