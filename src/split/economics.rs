//! Economics of moves: time saved over the coming steps against time spent on transfers.
//!
//! In: the current placement and another, a history that represents the coming batches, the horizon, and the
//! cost of a transfer. Out: a [`MoveVerdict`]. A batch is split exactly and takes as long as its slowest rank
//! ([`step_time`]). The transfers take as long as the rank that receives the most experts.

use super::{Roofline, Split, SplitError, SplitMethod, SplitObjective, Splitter, expert_roofline, step_time};
use crate::forecast::History;
use crate::gpu::GpuSpec;
use crate::model::MoeModel;
use crate::place::Placement;

/// Horizon of a plan, and the cost of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizon {
    /// Steps until the next plan.
    pub steps: u64,
    /// Picoseconds in which a rank receives one expert.
    pub copy_ps: u64,
    /// Time model of one expert's tokens.
    pub time: Roofline,
}

/// Decision on a layer's moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoveVerdict {
    /// Picoseconds saved over the horizon by the exact split of the history's batches. Negative if time is
    /// lost.
    pub gain_ps: i64,
    /// Picoseconds in which the busiest rank receives its experts.
    pub cost_ps: u64,
    /// Number of moves considered.
    pub considered: usize,
    /// True if the moves are executed.
    pub accepted: bool,
}

impl MoveVerdict {
    /// Returns the picoseconds gained minus the cost.
    pub fn net_ps(&self) -> i64 {
        self.gain_ps.saturating_sub(i64::try_from(self.cost_ps).unwrap_or(i64::MAX))
    }
}

impl Horizon {
    /// Returns the horizon of `steps` steps for a model on a GPU whose link receives `link_gbps` gigabits per
    /// second. `None` if the link has no speed.
    pub fn on_link(steps: u64, link_gbps: u64, model: &MoeModel, gpu: &GpuSpec) -> Option<Self> {
        // 8 bits over 10^9 bits per second: 8000 / gbps picoseconds per byte.
        let copy_ps = model.expert_bytes().saturating_mul(8_000).checked_div(link_gbps)?;
        Some(Self { steps, copy_ps, time: expert_roofline(model, gpu) })
    }

    /// Judges the moves from one placement to another. `speeds` holds the speed of each rank, `[R]`, or
    /// nothing for equal ranks. A rank of speed 1 takes the time of the cost model.
    ///
    /// # Errors
    /// Fails if a batch cannot be split.
    pub fn judge_moves(
        &self,
        before: &Placement,
        after: &Placement,
        history: &History<'_>,
        speeds: &[u32],
    ) -> Result<MoveVerdict, SplitError> {
        let moves = after.moves(before);
        let mut received = vec![0u64; after.ranks()];
        for m in &moves {
            received[m.to as usize] += 1;
        }
        let cost_ps = received.into_iter().max().unwrap_or(0).saturating_mul(self.copy_ps);
        let steps = history.batches().len().max(1) as i128;
        let total = |placement| total_time(placement, history, &self.time, speeds);
        let saved = total(before)? - total(after)?;
        let gain = saved * i128::from(self.steps) / steps;
        let gain_ps = gain.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        let made = gain > i128::from(cost_ps) || moves.is_empty();
        Ok(MoveVerdict { gain_ps, cost_ps, considered: moves.len(), accepted: made })
    }
}

/// Returns the picoseconds that the batches of the history take, each as long as its slowest rank.
fn total_time(
    placement: &Placement,
    history: &History<'_>,
    time: &Roofline,
    speeds: &[u32],
) -> Result<i128, SplitError> {
    let mut sum = 0i128;
    if !speeds.is_empty() {
        let goal = SplitObjective { speeds: speeds.to_vec(), ..SplitObjective::default() };
        let mut splitter = Splitter::builder(placement.clone()).objective(goal).build()?;
        let mut split = Split::default();
        for batch in history.batches() {
            splitter.split(batch, &mut split)?;
            let ranks = split.quotas.chunks(placement.slots_per_rank()).zip(speeds);
            let slowest = ranks.map(|(slots, &speed)| {
                step_time(time, slots, placement.slots_per_rank()).div_ceil(u64::from(speed.max(1)))
            });
            sum += i128::from(slowest.max().unwrap_or(0));
        }
        return Ok(sum);
    }
    let mut splitter = Splitter::new(placement.clone(), SplitMethod::Exact)?;
    let mut split = Split::default();
    for batch in history.batches() {
        splitter.split(batch, &mut split)?;
        sum += i128::from(step_time(time, &split.quotas, placement.slots_per_rank()));
    }
    Ok(sum)
}
