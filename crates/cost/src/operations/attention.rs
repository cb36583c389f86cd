//! Attention with a cache of keys and values: grouped-query and multi-head, one layer.
//!
//! In: an [`AttentionWork`]. Out: microseconds. Decode reads the cache of every sequence for one new token.
//! Prefill computes all tokens of every sequence against each other.

use super::terms::{ParameterMut, miss_share, norm, parameters_mut, read_us, tera_us};
use crate::hardware::Hardware;
use crate::rank_kernel::CacheState;
use serde::{Deserialize, Serialize};

/// Rows of queries that a tensor core multiplies at once.
const QUERY_TILE: u64 = 16;

/// Tokens of a prefill that one multiprocessor computes at once.
pub(super) const PREFILL_TILE: u64 = 128;

/// Attention of one layer on one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionWork {
    /// Sequences.
    pub batch: u64,
    /// Tokens of each sequence, with the new ones.
    pub context: u64,
    /// Query heads on the GPU.
    pub heads: u64,
    /// Heads of keys and values on the GPU.
    pub kv_heads: u64,
    /// Width of a head.
    pub head_dim: u64,
    /// Tokens that a sliding window covers, if there is one.
    pub window: Option<u64>,
}

impl AttentionWork {
    fn visible(&self) -> f64 {
        self.window.map_or(self.context, |window| window.min(self.context)) as f64
    }

    /// Returns the width of a head in a kernel: the next power of two.
    fn padded_head_dim(&self) -> f64 {
        self.head_dim.max(1).checked_next_power_of_two().unwrap_or(self.head_dim) as f64
    }

    /// Returns the heads that kernels of this work have.
    pub fn grouping(&self) -> Grouping {
        if self.heads == self.kv_heads { Grouping::MultiHead } else { Grouping::Grouped }
    }
}

/// Heads to which a kernel was fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grouping {
    /// All heads. One kernel serves both cases.
    Any,
    /// Fewer heads of keys and values than of queries.
    Grouped,
    /// As many heads of keys and values as of queries.
    MultiHead,
}

/// Decode attention: one new token per sequence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DecodeAttention {
    /// Heads to which the kernel was fitted.
    pub grouping: Grouping,
    /// Bytes per element of the cache.
    pub kv_bytes: f64,
    /// Fixed time.
    pub floor_us: f64,
    /// Time to join the parts of split contexts.
    pub split_us: f64,
    /// Context at which half of that time is due, tokens.
    pub split_tokens: f64,
    /// Rate of memory, terabytes per second.
    pub tb_s: f64,
    /// Effective size of the L2 cache, megabytes.
    pub l2_mb: f64,
    /// Rate of the L2 cache over that of memory.
    pub l2_ratio: f64,
    /// Time per round of units on all multiprocessors. A unit is a sequence and head of the cache.
    pub unit_us: f64,
    /// Further time per round for heads of width 128.
    pub unit_head_us: f64,
    /// Rate of arithmetic, 10^12 operations per second.
    pub tflop_s: f64,
    /// Order of the norm that joins reading, units and arithmetic.
    pub p: f64,
}

impl DecodeAttention {
    /// Returns the bytes of the cache that a layer reads.
    pub(crate) fn cache_bytes(&self, work: &AttentionWork) -> f64 {
        let units = work.batch as f64 * work.kv_heads.max(1) as f64;
        units * work.visible() * 2.0 * work.head_dim as f64 * self.kv_bytes
    }

    /// Returns the time of one layer, microseconds.
    pub fn time_us(&self, work: &AttentionWork, hardware: &Hardware, cache: CacheState) -> f64 {
        let visible = work.visible();
        let (batch, kv_heads, heads) = (work.batch as f64, work.kv_heads.max(1), work.heads);
        let head_dim = work.head_dim as f64;
        let units = batch * kv_heads as f64;
        let bytes = self.cache_bytes(work) + batch * heads as f64 * head_dim * 4.0;
        let read = read_us(bytes, self.tb_s, miss_share(bytes, self.l2_mb, cache), self.l2_ratio);
        let rounds = (units / hardware.multiprocessors.max(1) as f64).ceil();
        let padded = work.padded_head_dim();
        let unit = self.unit_us + self.unit_head_us * padded / 128.0;
        let rows = QUERY_TILE * heads.div_ceil(kv_heads).div_ceil(QUERY_TILE);
        let flop = 4.0 * units * rows as f64 * padded * visible;
        let split = self.split_us * visible / (visible + self.split_tokens).max(1.0);
        self.floor_us + split + norm([read, rounds * unit, tera_us(flop, self.tflop_s)], self.p)
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        parameters_mut!(
            self; floor_us, split_us, split_tokens, tb_s, l2_mb, l2_ratio, unit_us, unit_head_us, tflop_s, p
        )
    }
}

/// Prefill attention: all tokens of every sequence, causal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PrefillAttention {
    /// Bytes per element of the cache.
    pub kv_bytes: f64,
    /// Times and rates of the kernel.
    pub rates: PrefillRates,
}

/// Times and rates of a prefill kernel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillRates {
    /// Fixed time.
    pub floor_us: f64,
    /// Time per tile of 128 tokens of one head on a multiprocessor.
    pub unit_us: f64,
    /// Rate of arithmetic with wide heads, 10^12 operations per second.
    pub tflop_s: f64,
    /// Width of a head with half of that rate.
    pub half_head_dim: f64,
    /// Tokens that the causal mask adds to the half of the pairs.
    pub tile_tokens: f64,
    /// Share of the keys that one multiprocessor sees for a tile. It is below 1 if kernels split the keys.
    pub chain_share: f64,
    /// Rate of memory, terabytes per second.
    pub tb_s: f64,
    /// Order of the norm that joins memory and arithmetic.
    pub p: f64,
    /// Order of the norm that joins arithmetic of all multiprocessors and of the slowest one.
    pub q: f64,
}

/// Size of a prefill for [`PrefillRates::time_us`].
pub(super) struct PrefillSize {
    /// Sequences times heads.
    pub(super) sequence_heads: f64,
    /// Tokens per sequence.
    pub(super) tokens: u64,
    /// Tokens that a token sees at most.
    pub(super) visible: f64,
    /// Width of a head.
    pub(super) head_dim: f64,
    /// Bytes that are read and written.
    pub(super) bytes: f64,
}

impl PrefillRates {
    pub(super) fn time_us(&self, size: &PrefillSize, hardware: &Hardware) -> f64 {
        let PrefillSize { sequence_heads, tokens, visible, head_dim, bytes } = *size;
        let multiprocessors = hardware.multiprocessors.max(1) as f64;
        let peak = self.tflop_s * head_dim / (head_dim + self.half_head_dim).max(1e-9);
        let length = tokens as f64;
        let half_tile = self.tile_tokens / 2.0;
        let pairs = length * visible - visible * visible / 2.0 + length * half_tile;
        let tiles = tokens.div_ceil(PREFILL_TILE) as f64;
        let total = tera_us(sequence_heads * 4.0 * head_dim * pairs, peak)
            + sequence_heads * tiles / multiprocessors * self.unit_us;
        let row = 4.0 * PREFILL_TILE as f64 * head_dim * (visible + half_tile);
        let chain = self.unit_us + self.chain_share * tera_us(row, peak) * multiprocessors;
        let arithmetic = norm([total, chain], self.q);
        self.floor_us + norm([tera_us(bytes, self.tb_s), arithmetic], self.p)
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        parameters_mut!(self; floor_us, unit_us, tflop_s, half_head_dim, tile_tokens, chain_share, tb_s, p, q)
    }
}

impl PrefillAttention {
    /// Returns the time of one layer, microseconds.
    pub fn time_us(&self, work: &AttentionWork, hardware: &Hardware) -> f64 {
        let (batch, heads, kv_heads) = (work.batch as f64, work.heads as f64, work.kv_heads as f64);
        let per_token = work.head_dim as f64 * (4.0 * heads + 2.0 * kv_heads * (2.0 + self.kv_bytes));
        let size = PrefillSize {
            sequence_heads: batch * heads,
            tokens: work.context,
            visible: work.visible(),
            head_dim: work.padded_head_dim(),
            bytes: batch * work.context as f64 * per_token,
        };
        self.rates.time_us(&size, hardware)
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        self.rates.parameters_mut()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::operations::tests::hardware;

    const WORK: AttentionWork =
        AttentionWork { batch: 66, context: 1000, heads: 32, kv_heads: 4, head_dim: 128, window: None };

    /// Returns a prefill kernel with round figures. The norms are close to maxima.
    pub(in crate::operations) fn prefill_rates() -> PrefillRates {
        PrefillRates {
            floor_us: 5.0,
            unit_us: 1.0,
            tflop_s: 600.0,
            half_head_dim: 0.0,
            tile_tokens: 0.0,
            chain_share: 1.0,
            tb_s: 3.0,
            p: 200.0,
            q: 200.0,
        }
    }

    #[test]
    fn decode_reads_the_cache() {
        let kernel = DecodeAttention {
            grouping: Grouping::Any,
            kv_bytes: 2.0,
            floor_us: 5.0,
            split_us: 4.0,
            split_tokens: 1000.0,
            tb_s: 3.0,
            l2_mb: 40.0,
            l2_ratio: 2.0,
            unit_us: 1.0,
            unit_head_us: 0.5,
            tflop_s: 1e6,
            p: 200.0,
        };
        let time = |work: &AttentionWork, cache| kernel.time_us(work, &hardware(), cache);
        // 264 units of 512 kB, and 66 x 32 queries and answers of 512 bytes.
        let bytes = 264.0 * 512_000.0 + 66.0 * 32.0 * 512.0;
        let expected = 5.0 + 2.0 + bytes / 3e6;
        assert!((time(&WORK, CacheState::Cold) / expected - 1.0).abs() < 1e-6);
        // A window of ten tokens leaves two rounds of units.
        let window = AttentionWork { window: Some(10), ..WORK };
        let expected = 5.0 + 4.0 * 10.0 / 1010.0 + 3.0;
        assert!((time(&window, CacheState::Cold) / expected - 1.0).abs() < 1e-6);
        assert!(time(&WORK, CacheState::Warm) < time(&WORK, CacheState::Cold));
    }

    #[test]
    fn prefill_multiplies_half_of_the_pairs() {
        let kernel = PrefillAttention { kv_bytes: 2.0, rates: prefill_rates() };
        let work = AttentionWork { batch: 1, context: 12_800, heads: 132, ..WORK };
        // 132 heads with 12800^2 / 2 pairs of 512 operations, and 100 tiles per multiprocessor.
        let arithmetic = 132.0 * 512.0 * 12_800f64.powi(2) / 2.0 / 600e6 + 100.0;
        assert!((kernel.time_us(&work, &hardware()) / (5.0 + arithmetic) - 1.0).abs() < 1e-6);
        // Short sequences wait for one multiprocessor: the unit and 128 tokens against 64.
        let short = AttentionWork { batch: 1, context: 64, heads: 1, kv_heads: 1, ..WORK };
        let chain = 1.0 + 128.0 * 64.0 * 512.0 * 132.0 / 600e6;
        assert!((kernel.time_us(&short, &hardware()) / (5.0 + chain) - 1.0).abs() < 1e-6);
    }
}
