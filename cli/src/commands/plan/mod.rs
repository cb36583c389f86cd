//! `evenkeel plan`: computes, changes, checks and exports plans.

mod check;
mod export;
pub(crate) mod fault_tolerance;
mod link_budget;
mod moves;
mod new;
mod pipeline;
mod render;
mod replan;
mod speeds;
mod topology;

use crate::output::Output;
use clap::{Args, Subcommand};

/// Plan where the replicas of every layer's experts are placed
///
/// `evenkeel plan TRACE` plans from a trace, as `evenkeel plan new TRACE` does. `evenkeel plan new --help`
/// explains the options.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    mut_arg("policy", |arg| arg.hide_short_help(true)),
    mut_arg("report", |arg| arg.hide_short_help(true))
)]
#[command(
    after_long_help = "Examples:\n  evenkeel plan traces/sample-prefill.csv.zst --ranks 8 --redundant 8 -o plan.json\n  \
                             evenkeel plan check plan.json\n  evenkeel plan replan plan.json loads.csv --max-moves 2 -o \
                             next.json\n  evenkeel plan export next.json --to sglang -o init.json"
)]
pub(crate) struct PlanCommand {
    #[command(subcommand)]
    subcommand: Option<PlanSubcommand>,
    #[command(flatten)]
    new: new::NewPlanArgs,
}

#[derive(Debug, Subcommand)]
enum PlanSubcommand {
    New(Box<new::NewPlanArgs>),
    Replan(Box<replan::ReplanArgs>),
    Check(check::CheckArgs),
    Export(export::ExportArgs),
    Topology(topology::TopologyArgs),
}

pub(crate) fn run(command: &PlanCommand, output: Output) -> anyhow::Result<()> {
    match &command.subcommand {
        None => new::run(&command.new, output),
        Some(PlanSubcommand::New(args)) => new::run(args, output),
        Some(PlanSubcommand::Replan(args)) => replan::run(args, output),
        Some(PlanSubcommand::Check(args)) => check::run(args, output),
        Some(PlanSubcommand::Export(args)) => export::run(args, output),
        Some(PlanSubcommand::Topology(args)) => topology::run(args, output),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Parses a command line of `plan` and returns the message with which `resolve` refuses it.
    pub(super) fn refusal(line: &str) -> String {
        let command = crate::parse_line(line);
        let crate::Command::Plan(command) = command else { panic!("{line}") };
        let request = match command.subcommand {
            None => command.new.resolve(),
            Some(PlanSubcommand::New(args)) => args.resolve(),
            Some(PlanSubcommand::Replan(args)) => args.resolve(),
            Some(_) => panic!("{line}: nothing to resolve"),
        };
        request.unwrap_err().to_string()
    }
}
