//! Time of a rank for the tokens that it serves.
//!
//! In: the tokens of every slot. Out: picoseconds. Each expert with tokens takes the longer of two times
//! (Williams et al., *Roofline*, 2009). One is the time to read its weights once, the other is the time to
//! multiply its tokens in tiles. Small decode batches are bound by the first, large prefill batches by the
//! second.

use crate::gpu::GpuSpec;
use crate::model::MoeModel;
use evenkeel_solver::objective::Roofline;

/// Tokens of one tile of a grouped matrix multiplication, in most kernels.
pub const TILE_TOKENS: u64 = 64;

/// Returns the time model of a model's expert on a GPU, in picoseconds, with tiles of [`TILE_TOKENS`] tokens.
pub fn expert_roofline(model: &MoeModel, gpu: &GpuSpec) -> Roofline {
    Roofline { read: gpu.read_ps(model), token: gpu.token_ps(model), tile: TILE_TOKENS }
}

/// Returns the time of this many tokens of one expert, saturating at the largest number.
pub(crate) fn expert_time(time: &Roofline, tokens: u64) -> u64 {
    time.piece_cost(tokens).unwrap_or(u64::MAX)
}

/// Returns the time of the slowest rank. `quotas` is `[R * S]`.
pub fn step_time(time: &Roofline, quotas: &[u64], slots_per_rank: usize) -> u64 {
    let rank = |slots: &[u64]| slots.iter().fold(0u64, |sum, &q| sum.saturating_add(expert_time(time, q)));
    quotas.chunks(slots_per_rank.max(1)).map(rank).max().unwrap_or(0)
}
