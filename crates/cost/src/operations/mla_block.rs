//! Attention block of DeepSeek-V3: projections and latent attention of one layer, as frameworks time it.
//!
//! In: an [`MlaWork`]. Out: microseconds. The projections have 187 million weights with all 128 heads.

use super::mla::{MlaDecode, MlaPrefill, MlaWork};
use super::terms::{ParameterMut, norm, parameters_mut, tera_us};
use crate::hardware::Hardware;
use crate::rank_kernel::CacheState;
use serde::{Deserialize, Serialize};

/// Hidden width.
const HIDDEN: f64 = 7168.0;
/// Latent widths of queries, and of keys and values with the rotated part.
const QUERY_LATENT: f64 = 1536.0;
const CACHE_LATENT: f64 = 576.0;
/// Width of a head's query, with the rotated part, and of its answer.
const HEAD_QUERY: f64 = 192.0;
const HEAD_ANSWER: f64 = 128.0;
/// Bytes per token of the input and the output in 16 bits.
const TOKEN_BYTES: f64 = 4.0 * HIDDEN;
/// Bytes per token and head between the projections, for decode and for prefill.
const DECODE_HEAD_BYTES: f64 = 4352.0;
const PREFILL_HEAD_BYTES: f64 = 2048.0;

/// Rates of the projections of a block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlaProjections {
    /// Bytes per weight.
    pub weight_bytes: f64,
    /// Rate of memory, terabytes per second.
    pub weight_tb_s: f64,
    /// Rate of arithmetic, 10^12 operations per second.
    pub gemm_tflop_s: f64,
    /// Order of the norm that joins both.
    pub gemm_p: f64,
}

impl MlaProjections {
    fn time_us(&self, tokens: f64, heads: u64, head_bytes: f64) -> f64 {
        let heads = heads as f64;
        let shared = HIDDEN * (QUERY_LATENT + CACHE_LATENT);
        let per_head = QUERY_LATENT * HEAD_QUERY + 2.0 * HEAD_ANSWER * 512.0 + HEAD_ANSWER * HIDDEN;
        let weights = shared + heads * per_head;
        let bytes = weights * self.weight_bytes + tokens * (TOKEN_BYTES + heads * head_bytes);
        let read = tera_us(bytes, self.weight_tb_s);
        norm([read, tera_us(2.0 * tokens * weights, self.gemm_tflop_s)], self.gemm_p)
    }

    fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        parameters_mut!(self; weight_tb_s, gemm_tflop_s, gemm_p)
    }
}

/// Attention block for decoding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MlaBlockDecode {
    /// Rates of the projections.
    pub projections: MlaProjections,
    /// Attention. Its fixed time is that of the block.
    pub attention: MlaDecode,
}

impl MlaBlockDecode {
    /// Returns the time of one layer, microseconds.
    pub fn time_us(&self, work: &MlaWork, hardware: &Hardware, cache: CacheState) -> f64 {
        self.projections.time_us(work.batch as f64, work.heads, DECODE_HEAD_BYTES)
            + self.attention.time_us(work, hardware, cache)
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        let mut parameters = self.projections.parameters_mut();
        parameters.extend(self.attention.parameters_mut());
        parameters
    }
}

/// Attention block for prefill.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MlaBlockPrefill {
    /// Rates of the projections.
    pub projections: MlaProjections,
    /// Attention. Its fixed time is that of the block.
    pub attention: MlaPrefill,
}

impl MlaBlockPrefill {
    /// Returns the time of one layer, microseconds.
    pub fn time_us(&self, work: &MlaWork, hardware: &Hardware) -> f64 {
        let tokens = work.batch as f64 * work.context as f64;
        self.projections.time_us(tokens, work.heads, PREFILL_HEAD_BYTES)
            + self.attention.time_us(work, hardware)
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        let mut parameters = self.projections.parameters_mut();
        parameters.extend(self.attention.parameters_mut());
        parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::attention::tests::prefill_rates;
    use crate::operations::mla::tests::decode;
    use crate::operations::tests::hardware;

    #[test]
    fn blocks_add_projections_to_attention() {
        let projections =
            MlaProjections { weight_bytes: 1.0, weight_tb_s: 3.0, gemm_tflop_s: 1000.0, gemm_p: 200.0 };
        let weights = 187_105_280.0;
        // One token reads all weights.
        let one = MlaWork { batch: 1, context: 1, heads: 128 };
        let block = MlaBlockDecode { projections, attention: decode() };
        let attention = decode().time_us(&one, &hardware(), CacheState::Cold);
        let read = (weights + 28_672.0 + 128.0 * 4352.0) / 3e6;
        let found = block.time_us(&one, &hardware(), CacheState::Cold);
        assert!((found / (attention + read) - 1.0).abs() < 1e-6, "{found}");
        // Many tokens multiply all weights.
        let many = MlaWork { batch: 4, context: 8192, heads: 128 };
        let attention = MlaPrefill { absorbed: false, rates: prefill_rates() };
        let block = MlaBlockPrefill { projections, attention };
        let expected = attention.time_us(&many, &hardware()) + 2.0 * 32_768.0 * weights / 1e9;
        assert!((block.time_us(&many, &hardware()) / expected - 1.0).abs() < 1e-6);
    }
}
