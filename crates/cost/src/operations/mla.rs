//! Multi-head latent attention of DeepSeek: decode, prefill, and the multiplications around it.
//!
//! In: an [`MlaWork`] or [`MlaBmmWork`]. Out: microseconds of one layer. The latent has 512 elements and the
//! rotated part 64, so the cache has 576 per token.

use super::attention::{PREFILL_TILE, PrefillRates, PrefillSize};
use super::terms::{ParameterMut, miss_share, norm, parameters_mut, read_us, tera_us};
use crate::hardware::Hardware;
use crate::rank_kernel::CacheState;
use serde::{Deserialize, Serialize};

/// Elements of the cache per token.
const CACHE_WIDTH: f64 = 576.0;
/// Bytes of query and answer per head in 16 bits: 576 and 512 elements.
const LATENT_HEAD_BYTES: f64 = 2176.0;
/// Operations per head and token of the cache: twice 576 and 512.
const LATENT_HEAD_FLOP: f64 = 2176.0;
/// Heads that one block of threads serves.
const UNIT_HEADS: u64 = 64;
/// Rows of a tensor core.
const QUERY_TILE: u64 = 16;

/// Latent attention of one layer on one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlaWork {
    /// Sequences.
    pub batch: u64,
    /// Tokens of each sequence, with the new ones.
    pub context: u64,
    /// Heads on the GPU.
    pub heads: u64,
}

/// Decode attention over the latent cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MlaDecode {
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
    /// Time per round of units on all multiprocessors. A unit is a sequence and 64 heads.
    pub unit_us: f64,
    /// Rate of arithmetic, 10^12 operations per second.
    pub tflop_s: f64,
    /// Order of the norm that joins reading, units and arithmetic.
    pub p: f64,
}

impl MlaDecode {
    /// Returns the time of one layer, microseconds.
    pub fn time_us(&self, work: &MlaWork, hardware: &Hardware, cache: CacheState) -> f64 {
        let (batch, context) = (work.batch as f64, work.context as f64);
        let bytes = batch * context * CACHE_WIDTH * self.kv_bytes;
        // Kernels that convert the cache read it slowly. Queries and answers are not converted.
        let queries = batch * LATENT_HEAD_BYTES * work.heads as f64;
        let queries = tera_us(queries, hardware.bandwidth as f64 / 1e12);
        let miss = miss_share(bytes, self.l2_mb, cache);
        let read = read_us(bytes, self.tb_s, miss, self.l2_ratio) + queries;
        let units = work.batch * work.heads.div_ceil(UNIT_HEADS);
        let rounds = units.div_ceil(hardware.multiprocessors.max(1)) as f64;
        let rows = QUERY_TILE * work.heads.div_ceil(QUERY_TILE);
        let flop = LATENT_HEAD_FLOP * batch * rows as f64 * context;
        let split = self.split_us * context / (context + self.split_tokens).max(1.0);
        self.floor_us + split + norm([read, rounds * self.unit_us, tera_us(flop, self.tflop_s)], self.p)
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        parameters_mut!(
            self; floor_us, split_us, split_tokens, tb_s, l2_mb, l2_ratio, unit_us, tflop_s, p
        )
    }
}

/// Prefill attention with latent keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MlaPrefill {
    /// True if heads attend to the latent itself, and false if keys and values are expanded first.
    pub absorbed: bool,
    /// Times and rates of the kernel.
    pub rates: PrefillRates,
}

impl MlaPrefill {
    /// Returns the time of one layer, microseconds.
    pub fn time_us(&self, work: &MlaWork, hardware: &Hardware) -> f64 {
        let (batch, heads, tokens) = (work.batch as f64, work.heads as f64, work.context as f64);
        // Mean width of keys and values: 192 and 128, or 576 and 512.
        let (head_dim, per_token) = if self.absorbed {
            (544.0, LATENT_HEAD_BYTES * heads + 2.0 * CACHE_WIDTH)
        } else {
            (160.0, 1280.0 * heads)
        };
        let size = PrefillSize {
            sequence_heads: batch * heads,
            tokens: work.context,
            visible: tokens,
            head_dim,
            bytes: batch * tokens * per_token,
        };
        self.rates.time_us(&size, hardware)
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        let mut parameters = self.rates.parameters_mut();
        // All heads have one width.
        parameters.retain(|(name, _)| *name != "half_head_dim");
        parameters
    }
}

/// Multiplications that take queries into the latent, or answers out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MlaBmmWork {
    /// Tokens.
    pub tokens: u64,
    /// Heads on the GPU.
    pub heads: u64,
}

/// Time of one of the two batched multiplications per layer: 128 x 512 weights per head.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MlaBmm {
    /// Bytes per weight.
    pub weight_bytes: f64,
    /// Fixed time.
    pub floor_us: f64,
    /// Rate of memory, terabytes per second.
    pub tb_s: f64,
    /// Rate of arithmetic, 10^12 operations per second.
    pub tflop_s: f64,
    /// Time per tile of 128 tokens of one head on a multiprocessor.
    pub unit_us: f64,
    /// Order of the norm that joins memory, arithmetic and tiles.
    pub p: f64,
}

impl MlaBmm {
    /// Returns the time of one multiplication, microseconds.
    pub fn time_us(&self, work: &MlaBmmWork, hardware: &Hardware) -> f64 {
        let (tokens, heads) = (work.tokens as f64, work.heads as f64);
        let bytes = heads * (128.0 * 512.0 * self.weight_bytes + 1280.0 * tokens);
        let flop = 2.0 * 128.0 * 512.0 * heads * tokens;
        let tiles = (work.tokens.div_ceil(PREFILL_TILE) * work.heads) as f64;
        let unit = tiles / hardware.multiprocessors.max(1) as f64 * self.unit_us;
        self.floor_us + norm([tera_us(bytes, self.tb_s), tera_us(flop, self.tflop_s), unit], self.p)
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        parameters_mut!(self; floor_us, tb_s, tflop_s, unit_us, p)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::operations::attention::tests::prefill_rates;
    use crate::operations::tests::hardware;

    /// Returns a decode kernel with round figures. The norm is close to a maximum.
    pub(in crate::operations) fn decode() -> MlaDecode {
        MlaDecode {
            kv_bytes: 1.0,
            floor_us: 5.0,
            split_us: 0.0,
            split_tokens: 0.0,
            tb_s: 3.0,
            l2_mb: 40.0,
            l2_ratio: 2.0,
            unit_us: 1.0,
            tflop_s: 1e6,
            p: 200.0,
        }
    }

    #[test]
    fn decode_reads_the_latent() {
        let work = MlaWork { batch: 100, context: 4000, heads: 128 };
        // The cache at 3 TB/s, and queries and answers at the 3.35 TB/s of the data sheet.
        let read = 100.0 * (4000.0 * 576.0 / 3e6 + 2176.0 * 128.0 / 3.35e6);
        let cold = decode().time_us(&work, &hardware(), CacheState::Cold);
        assert!((cold / (5.0 + read) - 1.0).abs() < 1e-6);
        // 200 units are two rounds on 132 multiprocessors.
        let short = MlaWork { context: 1, ..work };
        let slow = MlaDecode { unit_us: 100.0, ..decode() };
        assert!((slow.time_us(&short, &hardware(), CacheState::Cold) / 205.0 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn prefill_is_wider_if_it_is_absorbed() {
        let work = MlaWork { batch: 1, context: 12_800, heads: 132 };
        let time = |absorbed| MlaPrefill { absorbed, rates: prefill_rates() }.time_us(&work, &hardware());
        let expected = |head_dim: f64| 132.0 * 4.0 * head_dim * 12_800f64.powi(2) / 2.0 / 600e6 + 105.0;
        assert!((time(false) / expected(160.0) - 1.0).abs() < 1e-6);
        assert!((time(true) / expected(544.0) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn multiplications_by_hand() {
        let kernel =
            MlaBmm { weight_bytes: 2.0, floor_us: 3.0, tb_s: 3.0, tflop_s: 600.0, unit_us: 1.0, p: 200.0 };
        let time = |tokens| kernel.time_us(&MlaBmmWork { tokens, heads: 128 }, &hardware());
        assert!((time(1) / (3.0 + 128.0 * (131_072.0 + 1280.0) / 3e6) - 1.0).abs() < 1e-6);
        assert!((time(12_800) / (3.0 + 128.0 * (131_072.0 + 1280.0 * 12_800.0) / 3e6) - 1.0).abs() < 1e-6);
    }
}
