//! How long a rank takes for the tokens it serves.
//!
//! In: the tokens of every slot. Out: picoseconds. Each expert with tokens takes the longer of two times (Williams et al.,
//! *Roofline*, 2009): its weights are read once, and its tokens are multiplied in tiles. Small decode batches are bound by
//! the first, large prefill batches by the second.

use crate::gpu::Gpu;
use crate::model::Model;
use evenkeel_solver::objective::Roofline;

/// Tokens that a grouped matrix multiplication takes at a time, in most kernels.
pub const TILE: u64 = 64;

/// The time of a model's expert on a GPU, in picoseconds, in tiles of [`TILE`] tokens.
pub fn roofline(model: &Model, gpu: &Gpu) -> Roofline {
    Roofline { read: gpu.read_ps(model), token: gpu.token_ps(model), tile: TILE }
}

/// Time of this many tokens of one expert; the largest number where that is more.
pub(crate) fn expert_time(time: &Roofline, tokens: u64) -> u64 {
    time.cost(tokens).unwrap_or(u64::MAX)
}

/// Time of the slowest rank; `quotas` is `[R * S]`.
pub fn step_time(time: &Roofline, quotas: &[u64], slots_per_rank: usize) -> u64 {
    let rank = |slots: &[u64]| slots.iter().fold(0u64, |sum, &q| sum.saturating_add(expert_time(time, q)));
    quotas.chunks(slots_per_rank.max(1)).map(rank).max().unwrap_or(0)
}
