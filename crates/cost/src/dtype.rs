//! Number formats of MoE kernels: bytes per weight, and the width in which activations are multiplied.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Number format of a kernel's weights and activations, named as in NVIDIA's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Dtype {
    /// bfloat16 weights and activations.
    Bfloat16,
    /// 8-bit floating point with one scale per tensor.
    Fp8,
    /// 8-bit floating point with one 32-bit scale per block of 128 x 128 weights.
    Fp8Block,
    /// 4-bit floating point with one 8-bit scale per 16 weights; 4-bit activations.
    Nvfp4,
    /// 4-bit floating point with one 8-bit scale per 32 weights; bfloat16 activations.
    #[serde(rename = "w4a16_mxfp4")]
    W4a16Mxfp4,
    /// 4-bit floating point with one 8-bit scale per 32 weights; 8-bit activations.
    #[serde(rename = "w4a8_mxfp4_mxfp8")]
    W4a8Mxfp4Mxfp8,
    /// 4-bit integers with one 16-bit scale per 32 weights; bfloat16 activations.
    #[serde(rename = "int4_wo")]
    Int4Wo,
    /// 4-bit integers with one 16-bit scale per 32 weights; 8-bit activations.
    #[serde(rename = "w4afp8")]
    W4afp8,
}

/// Width in which a tensor core multiplies activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActivationWidth {
    /// 16 bits.
    Bits16,
    /// 8 bits.
    Bits8,
    /// 4 bits.
    Bits4,
}

/// Error of an unknown number format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown dtype \"{0}\": expected one of {names}", names = Dtype::ALL.map(Dtype::name).join(", "))]
pub struct UnknownDtype(String);

impl Dtype {
    /// All number formats.
    pub const ALL: [Dtype; 8] = [
        Dtype::Bfloat16,
        Dtype::Fp8,
        Dtype::Fp8Block,
        Dtype::Nvfp4,
        Dtype::W4a16Mxfp4,
        Dtype::W4a8Mxfp4Mxfp8,
        Dtype::Int4Wo,
        Dtype::W4afp8,
    ];

    /// Returns the name in tables and options.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bfloat16 => "bfloat16",
            Dtype::Fp8 => "fp8",
            Dtype::Fp8Block => "fp8_block",
            Dtype::Nvfp4 => "nvfp4",
            Dtype::W4a16Mxfp4 => "w4a16_mxfp4",
            Dtype::W4a8Mxfp4Mxfp8 => "w4a8_mxfp4_mxfp8",
            Dtype::Int4Wo => "int4_wo",
            Dtype::W4afp8 => "w4afp8",
        }
    }

    /// Returns the bytes per weight, with its share of the scales.
    pub fn bytes_per_weight(self) -> f64 {
        match self {
            Dtype::Bfloat16 => 2.0,
            Dtype::Fp8 => 1.0,
            Dtype::Fp8Block => 1.0 + 4.0 / 16_384.0,
            Dtype::W4a16Mxfp4 | Dtype::W4a8Mxfp4Mxfp8 => 0.531_25,
            Dtype::Nvfp4 | Dtype::Int4Wo | Dtype::W4afp8 => 0.562_5,
        }
    }

    /// Returns the width in which activations are multiplied.
    pub fn activation_width(self) -> ActivationWidth {
        match self {
            Dtype::Bfloat16 | Dtype::W4a16Mxfp4 | Dtype::Int4Wo => ActivationWidth::Bits16,
            Dtype::Fp8 | Dtype::Fp8Block | Dtype::W4a8Mxfp4Mxfp8 | Dtype::W4afp8 => ActivationWidth::Bits8,
            Dtype::Nvfp4 => ActivationWidth::Bits4,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dtype {
    type Err = UnknownDtype;

    fn from_str(text: &str) -> Result<Self, UnknownDtype> {
        Dtype::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| UnknownDtype(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_agree_with_the_json_form() {
        for dtype in Dtype::ALL {
            assert_eq!(serde_json::to_string(&dtype).unwrap(), format!("\"{dtype}\""));
            assert_eq!(dtype.name().parse(), Ok(dtype));
        }
        assert!("int8".parse::<Dtype>().unwrap_err().to_string().contains("nvfp4"));
    }
}
