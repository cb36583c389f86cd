//! `evenkeel plan replan`: from a plan and a trace to the next plan.

use super::pipeline::{PlanRequest, PlanStart, PreviousPlan};
use crate::args::planning::PlanningArgs;
use crate::args::replan::{MoveArgs, link_limit, move_horizon};
use crate::args::trace::TraceArgs;
use crate::output::Output;
use clap::Args;
use std::path::PathBuf;

/// Plan again from the placements of a plan, with few moves
///
/// The cluster is that of PLAN. Experts keep their slots where that is as good. The command counts the moves
/// from PLAN and lists them (-v, --json). A move is an expert that a rank newly holds.
#[derive(Debug, Clone, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel plan replan plan.json loads.csv --max-moves 2 -o next.json\n  evenkeel plan \
                             replan plan.json loads.csv --lost-ranks 7 -o next.json\n  evenkeel plan replan plan.json loads.csv \
                             --horizon-steps 20000 --link-gbps 400 --model deepseek-v2-lite,h20 -o next.json\n  evenkeel plan \
                             replan plan.json loads.csv --link-budget 66 --model deepseek-v2-lite -o next.json"
)]
pub(crate) struct ReplanArgs {
    /// Plan that runs now
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
    #[command(flatten)]
    trace: TraceArgs,
    #[command(flatten)]
    moves: MoveArgs,
    #[command(flatten)]
    planning: PlanningArgs,
    /// Expert groups of the model's routing (DeepSeek-V3: 8)
    ///
    /// EPLB and LPLB keep a group within a node where the groups divide by the nodes.
    #[arg(long, value_name = "G", default_value_t = 1, hide_short_help = true, help_heading = "Cluster")]
    groups: usize,
}

impl ReplanArgs {
    /// Checks the options against each other.
    pub(super) fn resolve(&self) -> anyhow::Result<PlanRequest> {
        let (moves, model) = (&self.moves, self.planning.model);
        let horizon = match (moves.horizon_steps, moves.link_gbps, model) {
            (Some(steps), Some(gbps), Some(on)) => {
                Some(move_horizon(steps, gbps, on.with_gpu("--horizon-steps")?)?)
            }
            _ => None,
        };
        let link_budget = match (moves.link_budget, model) {
            (Some(mib), Some(on)) => Some(link_limit(mib, &on.model)?),
            _ => None,
        };
        let start = PlanStart::Previous(PreviousPlan {
            path: self.plan.clone(),
            lost_ranks: moves.lost_ranks.clone(),
            max_moves: moves.max_moves,
            horizon,
            link_budget,
        });
        PlanRequest::from_args(&self.trace, self.groups, &self.planning, start)
    }
}

pub(super) fn run(args: &ReplanArgs, output: Output) -> anyhow::Result<()> {
    args.resolve()?.execute(output)
}

#[cfg(test)]
mod tests {
    use crate::commands::plan::tests::refusal;

    #[test]
    fn a_horizon_without_the_gpu_is_refused() {
        let message =
            refusal("plan replan p.json t.csv --horizon-steps 9 --link-gbps 400 --model deepseek-v3");
        assert!(message.contains("--horizon-steps needs the GPU too"), "{message}");
    }

    #[test]
    fn a_link_of_no_speed_is_refused() {
        let message =
            refusal("plan replan p.json t.csv --horizon-steps 9 --link-gbps 0 --model deepseek-v3,h100");
        assert!(message.starts_with("--link-gbps 0"), "{message}");
    }

    #[test]
    fn a_link_budget_that_overflows_is_refused() {
        let message =
            refusal("plan replan p.json t.csv --link-budget 18446744073709551615 --model deepseek-v3");
        assert!(message.contains("too many bytes"), "{message}");
    }

    #[test]
    fn groups_without_a_policy_that_uses_them_are_refused() {
        assert!(refusal("plan replan p.json t.csv --groups 8").starts_with("--groups 8 has no effect"));
    }
}
