//! Options of re-planning: lost ranks, limits of moves, and their payback.

use crate::args::model::ModelMaybeOnGpu;
use anyhow::Context as _;
use clap::Args;
use evenkeel::economics::MoveEconomics;
use evenkeel::model::MoeModel;
use evenkeel::plan::LinkBudget;
use evenkeel::split::MeasuredCost;
use evenkeel_exec::calibrate::RooflineFile;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// With --horizon-steps: times of experts, a file of `evenkeel calibrate experts`, instead of the GPU's
    #[arg(
        long,
        value_name = "FILE",
        requires = "horizon_steps",
        hide_short_help = true,
        help_heading = "Moves"
    )]
    pub(crate) expert_time: Option<PathBuf>,
}

/// Returns the economics of the moves of a model over a link of `gbps` gigabits per second, if a plan is used
/// for `steps` steps. Experts take the times of the file, or those of the GPU's data sheet. `option` names
/// the option that needs these times.
pub(crate) fn move_economics(
    (steps, gbps): (u64, u64),
    on: ModelMaybeOnGpu,
    expert_time: Option<&Path>,
    option: &str,
) -> anyhow::Result<MoveEconomics> {
    let economics = match expert_time {
        Some(path) => {
            let times = read_expert_times(path)?;
            MoveEconomics::with_expert_times(steps, gbps, &on.model, Arc::new(times))
        }
        None => MoveEconomics::on_link(steps, gbps, &on.model, &on.with_gpu(option)?.gpu),
    };
    economics.with_context(|| format!("--link-gbps {gbps}: expected at least 1 gigabit per second"))
}

/// Reads the measured times of a file of `evenkeel calibrate experts`.
pub(crate) fn read_expert_times(path: &Path) -> anyhow::Result<MeasuredCost> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    RooflineFile::parse_measured(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
}

/// Returns the limit of received bytes per rank.
pub(crate) fn link_limit(mib: u64, model: &MoeModel) -> anyhow::Result<LinkBudget> {
    let bytes =
        mib.checked_mul(MIB).with_context(|| format!("--link-budget {mib}: too many bytes to count"))?;
    Ok(LinkBudget { bytes, expert_bytes: model.expert_bytes() })
}
