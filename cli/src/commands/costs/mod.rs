//! `evenkeel costs`: imports, shows and checks measured times of MoE kernels.

mod check;
mod import;
mod show;

use crate::output::Output;
use clap::Subcommand;

/// Import, show and check measured times of MoE kernels
///
/// A cost database holds fitted kernel times of one GPU, for the kernels of SGLang, TensorRT-LLM and vLLM.
/// Some databases are part of the program. `--expert-time GPU:FRAMEWORK` of other commands uses them.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
pub(crate) enum CostsCommand {
    Show(show::ShowArgs),
    Import(import::ImportArgs),
    Check(check::CheckArgs),
}

pub(crate) fn run(command: &CostsCommand, output: Output) -> anyhow::Result<()> {
    match command {
        CostsCommand::Show(args) => show::run(args, output),
        CostsCommand::Import(args) => import::run(args, output),
        CostsCommand::Check(args) => check::run(args, output),
    }
}
