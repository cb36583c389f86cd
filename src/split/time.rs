//! How long a rank takes for the tokens it serves.
//!
//! In: the tokens of every slot. Out: picoseconds. Each expert with tokens takes the longer of two times (Williams et al.,
//! *Roofline*, 2009): its weights are read once, and its tokens are multiplied in tiles. Small decode batches are bound by
//! the first, large prefill batches by the second.

use crate::gpu::Gpu;
use crate::model::Model;

/// Tokens that a grouped matrix multiplication takes at a time, in most kernels.
pub const TILE: u64 = 64;

/// Time of one expert on one rank: `max(read, token * tile * ceil(tokens / tile))`, nothing for no tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roofline {
    /// Picoseconds to read the expert's weights.
    pub read_ps: u64,
    /// Picoseconds of arithmetic per token.
    pub token_ps: u64,
    /// Tokens per tile, at least 1.
    pub tile: u64,
}

impl Roofline {
    /// That of a model's expert on a GPU, in tiles of [`TILE`] tokens.
    pub fn of(model: &Model, gpu: &Gpu) -> Self {
        Self { read_ps: gpu.read_ps(model), token_ps: gpu.token_ps(model), tile: TILE }
    }

    /// Picoseconds for this many tokens of one expert; the largest number where that is more.
    pub fn expert(&self, tokens: u64) -> u64 {
        if tokens == 0 {
            return 0;
        }
        let tile = self.tile.max(1);
        self.token_ps.saturating_mul(tokens.div_ceil(tile).saturating_mul(tile)).max(self.read_ps)
    }

    /// Picoseconds of the slowest rank; `quotas` is `[R * S]`.
    pub fn step(&self, quotas: &[u64], slots_per_rank: usize) -> u64 {
        let rank = |slots: &[u64]| slots.iter().fold(0u64, |sum, &q| sum.saturating_add(self.expert(q)));
        quotas.chunks(slots_per_rank.max(1)).map(rank).max().unwrap_or(0)
    }
}
