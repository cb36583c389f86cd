//! Dense matrix multiplication.
//!
//! In: a [`GemmWork`]. Out: microseconds. A library picks the tile and the split of the inner dimension that
//! are fastest. The model takes the least time over the same choices.

use super::terms::{ParameterMut, miss_share, norm, parameters_mut, read_us, tera_us};
use crate::hardware::Hardware;
use crate::rank_kernel::CacheState;
use serde::{Deserialize, Serialize};

/// Rows and columns of a tile of the result.
const TILES: [(u64, u64); 9] =
    [(16, 128), (32, 128), (64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128), (64, 256)];
/// Splits of the inner dimension, and their binary logarithms.
const SPLITS: [(u64, f64); 5] = [(1, 0.0), (2, 1.0), (4, 2.0), (8, 3.0), (16, 4.0)];
/// Copies of the operands between which a measurement alternates.
const MEASURED_COPIES: f64 = 6.0;

/// Multiplication of `m` x `k` activations with `k` x `n` weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmWork {
    /// Rows: tokens.
    pub m: u64,
    /// Columns of the weights.
    pub n: u64,
    /// Inner dimension.
    pub k: u64,
}

/// Time of dense multiplications.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Gemm {
    /// Bytes per weight, with its share of the scales.
    pub weight_bytes: f64,
    /// Bytes per activation, with its share of the scales.
    pub activation_bytes: f64,
    /// Fixed time.
    pub floor_us: f64,
    /// Time per 1024 of the inner dimension.
    pub k_us: f64,
    /// Rate of arithmetic with large tiles, 10^12 operations per second.
    pub tflop_s: f64,
    /// Size of a tile with half of that rate, thousands of elements.
    pub half_tile: f64,
    /// Time to split the inner dimension in two.
    pub split_us: f64,
    /// Rate of memory, terabytes per second.
    pub tb_s: f64,
    /// Effective size of the L2 cache, megabytes.
    pub l2_mb: f64,
    /// Rate of the L2 cache over that of memory.
    pub l2_ratio: f64,
    /// Order of the norm that joins memory and arithmetic.
    pub p: f64,
    /// Rate at which activations are quantised, terabytes per second, if they are.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub quantise_tb_s: Option<f64>,
}

impl Gemm {
    /// Returns the time, microseconds.
    pub fn time_us(&self, work: &GemmWork, hardware: &Hardware, cache: CacheState) -> f64 {
        let [m, n, k] = [work.m, work.n, work.k].map(|size| size as f64);
        let bytes = n * k * self.weight_bytes + m * k * self.activation_bytes + 2.0 * m * n;
        let miss = miss_share(MEASURED_COPIES * bytes, self.l2_mb, cache);
        let read = read_us(bytes, self.tb_s, miss, self.l2_ratio);
        let quantised =
            self.quantise_tb_s.map_or(0.0, |tb_s| tera_us(m * k * (2.0 + self.activation_bytes), tb_s));
        let arithmetic = self.arithmetic_us(work, hardware);
        self.floor_us + self.k_us * k / 1024.0 + norm([arithmetic, read], self.p) + quantised
    }

    /// Returns the time of the arithmetic with the best tile and split.
    fn arithmetic_us(&self, work: &GemmWork, hardware: &Hardware) -> f64 {
        let multiprocessors = hardware.multiprocessors.max(1);
        let per_operation = multiprocessors as f64 / (self.tflop_s * 1e6);
        let mut best = f64::INFINITY;
        for (rows, columns) in TILES {
            let tiles = work.m.div_ceil(rows) * work.n.div_ceil(columns);
            let area = (rows * columns) as f64;
            let tile = 2.0 * area * work.k as f64 * per_operation * (1.0 + 1000.0 * self.half_tile / area);
            for (split, log) in SPLITS {
                let rounds = (split * tiles).div_ceil(multiprocessors) as f64;
                let joined = if split > 1 { self.split_us * (1.0 + log) } else { 0.0 };
                best = best.min(rounds * tile / split as f64 + joined);
            }
        }
        best
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        let mut parameters =
            parameters_mut!(self; floor_us, k_us, tflop_s, half_tile, split_us, tb_s, l2_mb, l2_ratio, p);
        parameters.extend(self.quantise_tb_s.as_mut().map(|rate| ("quantise_tb_s", rate)));
        parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::tests::hardware;

    fn gemm() -> Gemm {
        Gemm {
            weight_bytes: 2.0,
            activation_bytes: 2.0,
            floor_us: 3.0,
            k_us: 0.5,
            tflop_s: 660.0,
            half_tile: 0.0,
            split_us: 1e3,
            tb_s: 3.0,
            l2_mb: 50.0,
            l2_ratio: 2.0,
            p: 200.0,
            quantise_tb_s: None,
        }
    }

    #[test]
    fn one_row_reads_the_weights() {
        let work = GemmWork { m: 1, n: 4096, k: 8192 };
        let bytes = 2.0 * (4096.0 * 8192.0 + 8192.0 + 4096.0);
        let found = gemm().time_us(&work, &hardware(), CacheState::Cold);
        assert!((found / (3.0 + 4.0 + bytes / 3e6) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn many_rows_fill_rounds_of_tiles() {
        // 132 tiles of 128 x 128 are one round on 132 multiprocessors. Other tiles need no less.
        let work = GemmWork { m: 128 * 12, n: 128 * 11, k: 102_400 };
        let round = 2.0 * 128.0 * 128.0 * 102_400.0 / 5e6;
        let found = gemm().time_us(&work, &hardware(), CacheState::Cold);
        assert!((found / (3.0 + 50.0 + round) - 1.0).abs() < 1e-6, "{found}");
        // Quantising reads 16 bits and writes 8.
        let quantised = Gemm { activation_bytes: 1.0, quantise_tb_s: Some(1.5), ..gemm() };
        let more = quantised.time_us(&work, &hardware(), CacheState::Cold) - found;
        assert!((more - 1536.0 * 102_400.0 * 3.0 / 1.5e6).abs() < 1e-3, "{more}");
    }

    #[test]
    fn a_split_shortens_few_tiles() {
        // One column of tiles on few multiprocessors: a split in 16 is 16 times as fast, for its price.
        let work = GemmWork { m: 16, n: 128, k: 1 << 20 };
        let whole = Gemm { tb_s: 1e6, ..gemm() };
        let split = Gemm { split_us: 1.0, ..whole };
        let time = |gemm: &Gemm| gemm.time_us(&work, &hardware(), CacheState::Cold) - 3.0 - 512.0;
        let alone = 2.0 * 16.0 * 128.0 * f64::from(1 << 20) / 5e6;
        assert!((time(&whole) / alone - 1.0).abs() < 1e-6);
        assert!((time(&split) / (alone / 16.0 + 5.0) - 1.0).abs() < 1e-6);
    }
}
