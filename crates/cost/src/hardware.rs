//! Hardware figures of the GPUs whose kernels were measured.
//!
//! Bandwidths and peak rates are those of NVIDIA's table `systems/*.yaml`. Numbers of multiprocessors and
//! sizes of caches are from the data sheets. A fitted coefficient has a meaning only together with the
//! figures of its fit, so a database stores both.

use crate::dtype::{ActivationWidth, Dtype};
use serde::{Deserialize, Serialize};

/// Hardware figures that the features of the kernel model use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Memory bandwidth, bytes per second.
    pub bandwidth: u64,
    /// Dense arithmetic on 16-bit activations, operations per second.
    pub flops_16bit: u64,
    /// Dense arithmetic on 8-bit activations, operations per second. A GPU without it has the 16-bit rate.
    pub flops_8bit: u64,
    /// Dense arithmetic on 4-bit activations, operations per second. A GPU without it has the 8-bit rate.
    pub flops_4bit: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u64,
    /// Bytes of the L2 cache.
    pub l2_bytes: u64,
}

impl Hardware {
    /// Returns the peak rate of a number format, operations per second.
    pub fn flops(&self, dtype: Dtype) -> u64 {
        match dtype.activation_width() {
            ActivationWidth::Bits16 => self.flops_16bit,
            ActivationWidth::Bits8 => self.flops_8bit,
            ActivationWidth::Bits4 => self.flops_4bit,
        }
    }
}

/// Name of a GPU, its folder in NVIDIA's package, and its figures.
#[cfg(feature = "import")]
pub(crate) const KNOWN_GPUS: [(&str, &str, Hardware); 8] = [
    ("a100", "a100_sxm", figures(2_039, [312, 312, 312], 108, 40)),
    ("h100", "h100_sxm", figures(3_350, [989, 1_979, 1_979], 132, 50)),
    ("h200", "h200_sxm", figures(4_800, [989, 1_979, 1_979], 132, 50)),
    ("b200", "b200_sxm", figures(7_700, [2_250, 4_500, 9_000], 148, 126)),
    ("b300", "b300_sxm", figures(7_750, [2_250, 4_500, 14_000], 148, 126)),
    ("gb200", "gb200", figures(8_000, [2_500, 5_000, 10_000], 152, 126)),
    ("gb300", "gb300", figures(8_000, [2_500, 5_000, 15_000], 152, 126)),
    ("l40s", "l40s", figures(864, [362, 733, 733], 142, 96)),
];

/// Returns figures from gigabytes per second, 10^12 operations per second, multiprocessors, and megabytes.
#[cfg(feature = "import")]
const fn figures(gigabytes: u64, tera: [u64; 3], multiprocessors: u64, l2_megabytes: u64) -> Hardware {
    Hardware {
        bandwidth: gigabytes * 1_000_000_000,
        flops_16bit: tera[0] * 1_000_000_000_000,
        flops_8bit: tera[1] * 1_000_000_000_000,
        flops_4bit: tera[2] * 1_000_000_000_000,
        multiprocessors,
        l2_bytes: l2_megabytes * 1_000_000,
    }
}
