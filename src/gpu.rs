//! Memory, bandwidth and arithmetic rates of GPUs, by name.
//!
//! In: a name (`h100`). Out: a [`GpuSpec`]. The figures are peak rates from the vendors' data sheets, with
//! dense arithmetic. Real kernels reach a part of both rates. Their ratio, and so the shape of the roofline,
//! stays about right.

use crate::model::{MoeModel, Precision};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Peak rates and memory of one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuSpec {
    /// The name that selects it.
    pub name: &'static str,
    /// Memory bandwidth, gigabytes (10^9) per second.
    pub bandwidth: u64,
    /// Dense bfloat16 arithmetic, 10^12 operations per second.
    pub bf16: u64,
    /// Dense 8-bit floating-point arithmetic, 10^12 operations per second. A GPU without it has the rate of
    /// bfloat16.
    pub fp8: u64,
    /// Memory, gigabytes (10^9).
    pub memory: u64,
    /// GPUs that share one fast link: those of a node, or of a rack whose nodes share it.
    pub linked: u64,
}

const fn gpu(
    name: &'static str,
    bandwidth: u64,
    [bf16, fp8]: [u64; 2],
    [memory, linked]: [u64; 2],
) -> GpuSpec {
    GpuSpec { name, bandwidth, bf16, fp8, memory, linked }
}

/// Share of a data sheet's rates that kernels reach if none is measured.
pub const DATA_SHEET_SHARE: f64 = 0.7;

/// Relative error of a time by the data sheet.
pub const DATA_SHEET_ERROR: f64 = 0.5;

/// GPUs known by name.
pub const GPUS: [GpuSpec; 12] = [
    gpu("a100", 2_039, [312, 312], [80, 8]),
    gpu("h100", 3_350, [989, 1_979], [80, 8]),
    gpu("h800", 3_350, [989, 1_979], [80, 8]),
    gpu("h200", 4_800, [989, 1_979], [141, 8]),
    gpu("h20", 4_000, [148, 296], [96, 8]),
    gpu("b200", 8_000, [2_250, 4_500], [180, 8]),
    gpu("b300", 8_000, [2_250, 4_500], [288, 8]),
    gpu("gb200", 8_000, [2_500, 5_000], [186, 72]),
    gpu("gb300", 8_000, [2_500, 5_000], [288, 72]),
    gpu("l40s", 864, [362, 733], [48, 8]),
    gpu("mi300x", 5_300, [1_307, 2_614], [192, 8]),
    gpu("mi355x", 8_000, [2_500, 5_000], [288, 8]),
];

/// Error of an unknown GPU name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown GPU \"{0}\": expected one of {names}", names = GPUS.map(|gpu| gpu.name).join(", "))]
pub struct UnknownGpu(String);

impl FromStr for GpuSpec {
    type Err = UnknownGpu;

    fn from_str(text: &str) -> Result<Self, UnknownGpu> {
        GPUS.into_iter().find(|gpu| gpu.name == text).ok_or_else(|| UnknownGpu(text.to_owned()))
    }
}

impl fmt::Display for GpuSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

impl GpuSpec {
    /// Returns the picoseconds to read one expert's weights.
    pub fn read_ps(&self, model: &MoeModel) -> u64 {
        model.expert_bytes() * 1_000 / self.bandwidth
    }

    /// Returns the picoseconds of arithmetic for one token in one expert.
    pub fn token_ps(&self, model: &MoeModel) -> u64 {
        let rate = match model.precision {
            Precision::Fp8 => self.fp8,
            Precision::Bf16 => self.bf16,
        };
        model.token_operations().div_ceil(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ridge_lies_where_both_take_as_long() {
        for (gpu, ridge) in [("h100", 295), ("h200", 206), ("h20", 37)] {
            let gpu: GpuSpec = gpu.parse().unwrap();
            for model in ["deepseek-v3", "deepseek-v3:bf16", "qwen3-30b-a3b"] {
                let model: MoeModel = model.parse().unwrap();
                let (read, token) = (gpu.read_ps(&model), gpu.token_ps(&model));
                assert_eq!((read + token / 2) / token, ridge, "{gpu} {model}");
            }
        }
        assert!("h300".parse::<GpuSpec>().unwrap_err().to_string().contains("h100"));
    }
}
