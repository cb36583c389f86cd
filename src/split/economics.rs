//! Whether moving pays: time saved over the steps to come against time spent copying.
//!
//! In: the placement in force and another, batches that the coming ones will be like, for how long, what a copy costs. Out: a
//! [`Verdict`]. A batch takes as long as its slowest rank ([`step_time`]), split exactly; copying takes as long as the rank
//! that receives most.

use super::{Method, Roofline, Split, SplitError, Splitter, step_time};
use crate::forecast::History;
use crate::place::Placement;

/// For how long a plan will be used, and what a move costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Horizon {
    /// Steps until the next plan.
    pub steps: u64,
    /// Picoseconds that a rank takes to receive one expert.
    pub copy_ps: u64,
    /// The time of one expert's tokens.
    pub time: Roofline,
}

/// Whether a layer's moves pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Picoseconds saved over the horizon, by the exact split of the batches of the history; negative where time is lost.
    pub gain_ps: i64,
    /// Picoseconds that the busiest rank takes to receive its copies.
    pub cost_ps: u64,
    /// Moves that were considered.
    pub considered: usize,
    /// Are they made?
    pub made: bool,
}

impl Verdict {
    /// Picoseconds gained after the cost.
    pub fn net_ps(&self) -> i64 {
        self.gain_ps.saturating_sub(i64::try_from(self.cost_ps).unwrap_or(i64::MAX))
    }
}

impl Horizon {
    /// Whether going from one placement to another pays.
    ///
    /// # Errors
    /// When a batch cannot be split.
    pub fn judge(
        &self,
        before: &Placement,
        after: &Placement,
        history: &History<'_>,
    ) -> Result<Verdict, SplitError> {
        let moves = after.moves(before);
        let mut received = vec![0u64; after.ranks()];
        for m in &moves {
            received[m.to as usize] += 1;
        }
        let cost_ps = received.into_iter().max().unwrap_or(0).saturating_mul(self.copy_ps);
        let steps = history.batches().len().max(1) as i128;
        let saved = total_time(before, history, &self.time)? - total_time(after, history, &self.time)?;
        let gain = saved * i128::from(self.steps) / steps;
        let gain_ps = gain.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        let made = gain > i128::from(cost_ps) || moves.is_empty();
        Ok(Verdict { gain_ps, cost_ps, considered: moves.len(), made })
    }
}

/// Picoseconds that the batches of the history take, each as long as its slowest rank.
fn total_time(placement: &Placement, history: &History<'_>, time: &Roofline) -> Result<i128, SplitError> {
    let mut splitter = Splitter::new(placement.clone(), Method::Exact)?;
    let (mut split, mut sum) = (Split::default(), 0i128);
    for batch in history.batches() {
        splitter.split(batch, &mut split)?;
        sum += i128::from(step_time(time, &split.quotas, placement.slots_per_rank()));
    }
    Ok(sum)
}
