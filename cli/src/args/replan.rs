//! Options of re-planning: lost ranks, limits of moves, and their payback.

use crate::args::model::ModelOnGpu;
use anyhow::Context as _;
use clap::Args;
use evenkeel::model::MoeModel;
use evenkeel::plan::{Horizon, LinkBudget};

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
    /// Move in a layer only if the move pays within this many steps; needs --link-gbps and --model MODEL,GPU
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
}

/// Returns the cost of a move at this many gigabits per second, together with the number of steps that a plan
/// is used.
pub(crate) fn move_horizon(steps: u64, gbps: u64, on: ModelOnGpu) -> anyhow::Result<Horizon> {
    Horizon::on_link(steps, gbps, &on.model, &on.gpu)
        .with_context(|| format!("--link-gbps {gbps}: expected at least 1 gigabit per second"))
}

/// Returns the limit of received bytes per rank.
pub(crate) fn link_limit(mib: u64, model: &MoeModel) -> anyhow::Result<LinkBudget> {
    let bytes =
        mib.checked_mul(MIB).with_context(|| format!("--link-budget {mib}: too many bytes to count"))?;
    Ok(LinkBudget { bytes, expert_bytes: model.expert_bytes() })
}
