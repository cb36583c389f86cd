//! `evenkeel simulate`: compares policies and splits on recorded batches.
//!
//! Every study starts from the same comparison and adds a table and a document of its own.

#[cfg(feature = "serve")]
mod backtest;
mod cluster_table;
mod comparison;
mod dynamic;
mod dynamic_table;
mod network;
mod objective;
mod planning_cost;
mod policies;
mod policy_selection;
mod replay;
mod traffic;
pub(crate) mod verdict;

use crate::output::Output;
use clap::{Args, Subcommand};

/// Compare placement policies and splits on a recorded trace
///
/// The policies plan on the first part of the trace, and their placements are judged on the rest.
/// `evenkeel simulate TRACE` compares policies, as `evenkeel simulate policies TRACE` does. The other
/// subcommands add a study to the comparison. `evenkeel simulate policies --help` explains the columns.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    mut_arg("redundant", |arg| arg.hide_short_help(true)),
    mut_arg("policies", |arg| arg.hide_short_help(true)),
    mut_arg("splits", |arg| arg.hide_short_help(true)),
    mut_arg("report", |arg| arg.hide_short_help(true))
)]
#[command(
    after_long_help = "Examples:\n  evenkeel simulate traces/sample-decode.csv.zst --ranks 8 --redundant 8\n  evenkeel \
                             simulate replay traces/sample-decode.csv.zst --ranks 8 --layers 0-3 --replan-every 64 --max-moves \
                             1,2,4\n  evenkeel simulate planning-cost traces/sample-decode.csv.zst --ranks 8 --model-gpu \
                             gpt-oss-20b,h100"
)]
pub(crate) struct SimulateCommand {
    #[command(subcommand)]
    subcommand: Option<SimulateSubcommand>,
    #[command(flatten)]
    policies: policies::PoliciesArgs,
}

#[derive(Debug, Subcommand)]
enum SimulateSubcommand {
    Policies(Box<policies::PoliciesArgs>),
    Replay(Box<replay::ReplayArgs>),
    Network(Box<network::NetworkArgs>),
    Traffic(Box<traffic::TrafficArgs>),
    Objective(Box<objective::ObjectiveArgs>),
    PlanningCost(Box<planning_cost::PlanningCostArgs>),
    Dynamic(Box<dynamic::DynamicArgs>),
    #[cfg(feature = "serve")]
    Backtest(Box<backtest::BacktestArgs>),
}

pub(crate) fn run(command: &SimulateCommand, output: Output) -> anyhow::Result<()> {
    match &command.subcommand {
        None => policies::run(&command.policies, output),
        Some(SimulateSubcommand::Policies(args)) => policies::run(args, output),
        Some(SimulateSubcommand::Replay(args)) => replay::run(args, output),
        Some(SimulateSubcommand::Network(args)) => network::run(args, output),
        Some(SimulateSubcommand::Traffic(args)) => traffic::run(args, output),
        Some(SimulateSubcommand::Objective(args)) => objective::run(args, output),
        Some(SimulateSubcommand::PlanningCost(args)) => planning_cost::run(args, output),
        Some(SimulateSubcommand::Dynamic(args)) => dynamic::run(args, output),
        #[cfg(feature = "serve")]
        Some(SimulateSubcommand::Backtest(args)) => backtest::run(args, output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses a command line of `simulate` and returns the message with which `resolve` refuses it.
    pub(super) fn refusal(line: &str) -> String {
        let command = crate::parse_line(&format!("simulate {line}"));
        let crate::Command::Simulate(command) = command else { panic!("{line}") };
        let error = match command.subcommand {
            None => command.policies.resolve().err(),
            Some(SimulateSubcommand::Policies(args)) => args.resolve().err(),
            Some(SimulateSubcommand::Replay(args)) => args.resolve().err(),
            Some(SimulateSubcommand::Network(args)) => args.resolve().err(),
            Some(SimulateSubcommand::Traffic(args)) => args.resolve().err(),
            Some(SimulateSubcommand::Objective(args)) => args.resolve().err(),
            Some(SimulateSubcommand::PlanningCost(args)) => args.resolve().err(),
            Some(SimulateSubcommand::Dynamic(args)) => args.resolve().err(),
            #[cfg(feature = "serve")]
            Some(SimulateSubcommand::Backtest(args)) => args.resolve().err(),
        };
        format!("{:#}", error.unwrap())
    }

    #[test]
    fn every_study_needs_ranks() {
        for study in [
            "",
            "replay --replan-every 4",
            "network --network h800 --model deepseek-v3,h800",
            "traffic",
            "objective --cost active",
            "planning-cost --model-gpu deepseek-v3,h100",
            "dynamic",
        ] {
            assert!(refusal(&format!("{study} t.csv")).starts_with("--ranks is missing"), "{study}");
        }
    }

    #[test]
    fn groups_without_a_policy_that_uses_them_are_refused() {
        let message = refusal("traffic t.csv --ranks 8 --groups 8 --policies recourse");
        assert!(message.starts_with("--groups 8 has no effect"), "{message}");
    }
}
