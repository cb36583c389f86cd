//! `evenkeel plan replan`: from a plan and a trace to the next plan.

use super::pipeline::{PlanJob, PlanStart, PreviousPlan, RankChange};
use crate::args::planning::PlanningArgs;
use crate::args::replan::{EconomicsSpec, MoveArgs, link_limit};
use crate::args::trace::TraceArgs;
use crate::output::Output;
use clap::Args;
use std::path::PathBuf;

/// Plan again from the placements of a plan, with few moves
///
/// The cluster is that of PLAN, unless ranks are lost or join, or their slots change.
/// Experts keep their slots where that is as good. Ranks that stay keep their experts if others leave or
/// join. The command counts the moves from PLAN and lists them (-v, --json). A move is an expert that a rank
/// newly holds.
#[derive(Debug, Clone, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel plan replan plan.json loads.csv --max-moves 2 -o next.json\n  evenkeel plan \
                             replan plan.json loads.csv --lost-ranks 7 -o next.json\n  evenkeel plan replan plan.json loads.csv \
                             --horizon-steps 20000 --link-gbps 400 --model deepseek-v2-lite,h20 -o next.json\n  evenkeel plan \
                             replan plan.json loads.csv --link-budget 66 --model deepseek-v2-lite -o next.json\n  evenkeel \
                             plan replan plan.json loads.csv --add-ranks 8 -o next.json"
)]
pub(crate) struct ReplanArgs {
    /// Plan that runs now, or a file of a serving stack
    ///
    /// Files for SGLang, TensorRT-LLM, vLLM, vllm-ascend or EPLB do not state their ranks: see --from-ranks.
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
    /// Ranks that join, without experts; the ranks of PLAN come first
    ///
    /// The ranks that stay keep their experts. An expert moves between them only if that lowers the mean peak
    /// by 0.2 % of a rank's mean load.
    #[arg(long, value_name = "N", default_value_t = 0, hide_short_help = true, help_heading = "Cluster")]
    add_ranks: usize,
    /// Slots of each rank [default: those of PLAN]
    #[arg(long, value_name = "SLOTS", hide_short_help = true, help_heading = "Cluster")]
    slots_per_rank: Option<usize>,
    /// Redundant slots of all layers together: a layer gets them where they lower its peaks most
    ///
    /// Slots that no layer gets stay empty.
    #[arg(
        long,
        value_name = "SLOTS",
        conflicts_with = "slots_per_rank",
        hide_short_help = true,
        help_heading = "Cluster"
    )]
    memory_budget: Option<usize>,
    /// Ranks that share the slots of PLAN, if it is a file of a serving stack
    #[arg(long, value_name = "R", hide_short_help = true, help_heading = "Cluster")]
    from_ranks: Option<usize>,
}

impl ReplanArgs {
    /// Checks the options against each other.
    pub(super) fn resolve(&self) -> anyhow::Result<PlanJob> {
        let (moves, model) = (&self.moves, self.planning.model);
        let economics = match (moves.horizon_steps, moves.link_gbps, model) {
            (Some(steps), Some(gbps), Some(on)) => {
                let times = moves.expert_time.as_ref();
                Some(EconomicsSpec::resolve((steps, gbps), on, times, "--horizon-steps")?)
            }
            _ => None,
        };
        let link_budget = match (moves.link_budget, model) {
            (Some(mib), Some(on)) => Some(link_limit(mib, &on.model)?),
            _ => None,
        };
        let start = PlanStart::Previous(PreviousPlan {
            path: self.plan.clone(),
            from_ranks: self.from_ranks,
            change: RankChange { add_ranks: self.add_ranks, slots_per_rank: self.slots_per_rank },
        });
        let mut job = PlanJob::from_args(&self.trace, self.groups, &self.planning, start)?;
        job.constraints.memory_budget = self.memory_budget;
        job.constraints.lost_ranks.clone_from(&moves.lost_ranks);
        job.constraints.max_moves = moves.max_moves;
        job.economics = economics;
        job.constraints.link_budget = link_budget;
        Ok(job)
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
