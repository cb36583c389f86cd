//! `evenkeel plan new`, the default of `plan`: from a trace to a placement.

use super::pipeline::{PlanJob, PlanStart};
use crate::args::cluster::ClusterArgs;
use crate::args::planning::PlanningArgs;
use crate::args::trace::TraceArgs;
use crate::output::Output;
use clap::Args;
use std::path::PathBuf;

/// Plan a placement from a trace (the default)
///
/// The policy plans on the whole trace. A placement is only as good as the split that runs on it: --for names
/// the runtime. Without --for, the plan is not worse than EPLB's under the even split, as far as held-out
/// batches show. Within that limit it is as balanced as possible under the exact split. Expected imbalances
/// are those of the planned batches. `evenkeel simulate` judges on batches that planning has not seen.
#[derive(Debug, Clone, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel plan traces/sample-prefill.csv.zst --ranks 8 --redundant 8 -o plan.json \
                             --report report.html\n  evenkeel plan dump.pt --ranks 32 --nodes 4 --redundant 32 --for sglang -o \
                             plan.json\n  evenkeel plan traces/sample-prefill.csv.zst --ranks 16 --policy lplb:hypercube \
                             --redundant 64 -o plan.json\n  evenkeel plan traces/sample-prefill.csv.zst --ranks 8 --redundant 64 \
                             --survive-rank-loss 1 -o plan.json"
)]
pub(crate) struct NewPlanArgs {
    #[command(flatten)]
    pub(crate) trace: TraceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    planning: PlanningArgs,
    /// Redundant slots of all layers together: a layer gets them where they lower its peaks most
    ///
    /// Slots that no layer gets stay empty.
    #[arg(
        long,
        value_name = "SLOTS",
        conflicts_with_all = ["redundant", "uneven"],
        hide_short_help = true,
        help_heading = "Cluster"
    )]
    memory_budget: Option<usize>,
    /// Write a report to this file: one HTML page that needs no network
    #[arg(long, value_name = "FILE", conflicts_with_all = ["memory_budget", "speeds"])]
    report: Option<PathBuf>,
}

impl NewPlanArgs {
    /// Checks the options against each other.
    pub(super) fn resolve(&self) -> anyhow::Result<PlanJob> {
        let cluster = self.cluster.resolve()?;
        let job =
            PlanJob::from_args(&self.trace, self.cluster.groups, &self.planning, PlanStart::Empty(cluster))?;
        let mut job = PlanJob { report: self.report.clone(), ..job };
        job.constraints.memory_budget = self.memory_budget;
        Ok(job)
    }
}

pub(super) fn run(args: &NewPlanArgs, output: Output) -> anyhow::Result<()> {
    args.resolve()?.execute(output)
}

#[cfg(test)]
mod tests {
    use crate::commands::plan::tests::refusal;

    #[test]
    fn missing_ranks_are_refused() {
        assert!(refusal("plan t.csv").starts_with("--ranks is missing"));
    }

    #[test]
    fn groups_without_a_policy_that_uses_them_are_refused() {
        assert!(refusal("plan t.csv --ranks 8 --groups 8").starts_with("--groups 8 has no effect"));
    }
}
