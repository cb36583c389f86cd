//! Options of re-planning: lost ranks, limits of moves, and their payback.

use crate::args::expert_time::ExpertTimeSource;
use crate::args::model::ModelMaybeOnGpu;
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel::cluster::Cluster;
use evenkeel::economics::MoveEconomics;
use evenkeel::model::MoeModel;
use evenkeel::plan::LinkBudget;

/// Bytes of a mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct MoveArgs {
    /// Maximum of moves per layer; a move is an expert that a rank newly holds
    #[arg(long, value_name = "N", help_heading = "Moves")]
    pub(crate) max_moves: Option<usize>,
    /// Ranks of PLAN that have failed; the other ranks keep their experts
    ///
    /// Only lost experts and experts that are no longer balanced move, at most as many replicas as were lost
    /// unless --max-moves states another limit. The remaining ranks are renumbered without gaps.
    #[arg(long, value_name = "RANK,..", value_delimiter = ',', help_heading = "Moves")]
    pub(crate) lost_ranks: Vec<usize>,
    /// Maximum of MiB of expert weights that any one rank receives, all layers together; needs --model
    ///
    /// Every layer is planned with room for 1, 2, 4, .. moves. The command selects the moves that lower the
    /// exact peaks most per move, while every receiver has room.
    #[arg(long, value_name = "MIB", requires = "model", help_heading = "Moves")]
    pub(crate) link_budget: Option<u64>,
    /// Move in a layer only if the moves pay within this many steps; needs --link-gbps and --model MODEL,GPU
    ///
    /// Moves pay if the time saved exceeds the time of the transfers. A batch takes as long as its slowest
    /// rank: the time of its experts, and that of the rows that it receives and returns over the link. The
    /// transfers take as long as the rank that receives the most experts.
    #[arg(
        long,
        value_name = "STEPS",
        requires_all = ["link_gbps", "model"],
        help_heading = "Moves"
    )]
    pub(crate) horizon_steps: Option<u64>,
    /// With --horizon-steps: gigabits per second that a rank receives
    #[arg(long, value_name = "GBPS", requires = "horizon_steps", help_heading = "Moves")]
    pub(crate) link_gbps: Option<u64>,
    /// With --horizon-steps: times of experts, instead of the GPU's data sheet
    ///
    /// A file of `evenkeel calibrate experts`, or measured kernels, as in h100:trtllm: a GPU of
    /// `evenkeel costs show` or a file of `evenkeel costs import`, and a framework.
    #[arg(
        long,
        value_name = "FILE|GPU:FRAMEWORK",
        requires = "horizon_steps",
        hide_short_help = true,
        help_heading = "Moves"
    )]
    pub(crate) expert_time: Option<ExpertTimeSource>,
}

/// Economics of moves, before the cluster is known.
#[derive(Debug, Clone)]
pub(crate) struct EconomicsSpec {
    /// Steps for which a plan is used.
    pub(crate) steps: u64,
    /// Gigabits per second that a rank receives.
    gbps: u64,
    on: ModelMaybeOnGpu,
    expert_time: Option<ExpertTimeSource>,
}

impl EconomicsSpec {
    /// Checks the options of the economics. `option` names the one that needs the times of experts.
    pub(crate) fn resolve(
        (steps, gbps): (u64, u64),
        on: ModelMaybeOnGpu,
        expert_time: Option<&ExpertTimeSource>,
        option: &str,
    ) -> anyhow::Result<Self> {
        if gbps == 0 {
            bail!("--link-gbps 0: expected at least 1 gigabit per second");
        }
        if expert_time.is_none() {
            on.with_gpu(option)?;
        }
        Ok(Self { steps, gbps, on, expert_time: expert_time.cloned() })
    }

    /// Returns the economics on a cluster. Experts take the times of their source, or those of the GPU's data
    /// sheet.
    pub(crate) fn for_cluster(&self, cluster: &Cluster) -> anyhow::Result<MoveEconomics> {
        let (steps, gbps, model) = (self.steps, self.gbps, &self.on.model);
        let economics = match &self.expert_time {
            Some(source) => {
                let times = source.cost_model(model, cluster)?;
                MoveEconomics::with_expert_times(steps, gbps, model, times)
            }
            None => MoveEconomics::on_link(steps, gbps, model, &self.on.with_gpu("--link-gbps")?.gpu),
        };
        economics.with_context(|| format!("--link-gbps {gbps}: expected at least 1 gigabit per second"))
    }
}

/// Returns the limit of received bytes per rank.
pub(crate) fn link_limit(mib: u64, model: &MoeModel) -> anyhow::Result<LinkBudget> {
    let bytes =
        mib.checked_mul(MIB).with_context(|| format!("--link-budget {mib}: too many bytes to count"))?;
    Ok(LinkBudget { bytes, expert_bytes: model.expert_bytes() })
}
