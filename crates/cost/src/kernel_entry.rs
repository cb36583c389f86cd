//! A fitted kernel: identity, coefficients, and errors on rows that its fit did not use.

use crate::dtype::Dtype;
use crate::features::{FEATURE_COUNT, Feature};
use crate::moe_shape::{ModelShape, MoeShape};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Kind of measured table. Tables differ in the layer that they time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KernelTable {
    /// The framework's MoE layer under tensor and expert parallelism, `moe_perf`.
    Moe,
    /// TensorRT-LLM's layer of wide expert parallelism, with EPLB's slots, `wideep_moe_perf`.
    WideEp,
    /// SGLang's DeepEP layer for prefill, `wideep_context_moe_perf`.
    WideEpContext,
    /// SGLang's DeepEP layer for decoding, `wideep_generation_moe_perf`.
    WideEpGeneration,
}

impl KernelTable {
    /// All kinds of tables.
    pub const ALL: [KernelTable; 4] =
        [KernelTable::Moe, KernelTable::WideEp, KernelTable::WideEpContext, KernelTable::WideEpGeneration];

    /// Returns the name in databases.
    pub fn name(self) -> &'static str {
        match self {
            KernelTable::Moe => "moe",
            KernelTable::WideEp => "wide_ep",
            KernelTable::WideEpContext => "wide_ep_context",
            KernelTable::WideEpGeneration => "wide_ep_generation",
        }
    }
}

impl fmt::Display for KernelTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Fitted time of one kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct KernelEntry {
    /// Kind of the measured table.
    pub table: KernelTable,
    /// Serving framework: `sglang`, `trtllm` or `vllm`.
    pub framework: String,
    /// Version of the framework.
    pub version: String,
    /// Name of the kernel in the table.
    pub kernel: String,
    /// Number format.
    pub dtype: Dtype,
    /// Effective size of the L2 cache over its size by the data sheet.
    pub l2_scale: f64,
    /// Coefficient of each feature, in microseconds per unit of the feature. Missing features count as
    /// zero.
    pub coefficients: BTreeMap<Feature, f64>,
    /// Inner widths of a rank for which the framework ships tuned tiles, by the experts of the rank. Other
    /// shapes run with default tiles.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tuned_widths: BTreeMap<u64, Vec<u64>>,
    /// Coefficients for shapes with tuned tiles. There are some if and only if there are tuned widths.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tuned_coefficients: BTreeMap<Feature, f64>,
    /// Measured models. Frameworks choose the kernel of a number format by model.
    pub models: Vec<ModelShape>,
    /// Measured rows of the kernel.
    pub rows: u64,
    /// Rows that contradict others of the table. Neither fit nor errors use them.
    pub broken_rows: u64,
    /// Errors on the shapes that the fit did not use.
    pub errors: HeldOutErrors,
}

/// Errors on held-out rows, for both kinds of routing.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutErrors {
    /// Errors on rows with balanced routing, if there are any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub balanced: Option<MethodErrors>,
    /// Errors on rows with skewed routing, if there are any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub skewed: Option<MethodErrors>,
}

impl HeldOutErrors {
    /// Returns true if the errors are acceptable. For balanced routing the median is at most 8 % and the
    /// 90th percentile at most 25 %. For skewed routing they are at most 12 % and 35 %.
    pub fn meets_limits(&self) -> bool {
        let meets = |errors: Option<MethodErrors>, median: f64, p90: f64| {
            errors.is_none_or(|errors| errors.model.median <= median && errors.model.p90 <= p90)
        };
        meets(self.balanced, 8.0, 25.0) && meets(self.skewed, 12.0, 35.0)
    }
}

/// Errors of the kernel model and of two simpler methods on the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MethodErrors {
    /// Number of rows.
    pub rows: u64,
    /// Errors of the kernel model.
    pub model: ErrorQuantiles,
    /// Errors of the roofline: reading all active experts, or all arithmetic at 60 % of the peak rate.
    pub roofline: ErrorQuantiles,
    /// Errors of linear interpolation over tokens in the nearest other shape, if there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub interpolation: Option<ErrorQuantiles>,
}

/// Quantiles of absolute relative errors, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorQuantiles {
    /// The median.
    pub median: f64,
    /// The 90th percentile.
    pub p90: f64,
}

impl KernelEntry {
    /// Creates an entry of the table `moe` without rows and errors, such as for coefficients from other
    /// measurements.
    pub fn new(
        framework: impl Into<String>,
        version: impl Into<String>,
        kernel: impl Into<String>,
        dtype: Dtype,
        coefficients: BTreeMap<Feature, f64>,
    ) -> Self {
        Self {
            table: KernelTable::Moe,
            framework: framework.into(),
            version: version.into(),
            kernel: kernel.into(),
            dtype,
            l2_scale: 1.0,
            coefficients,
            tuned_widths: BTreeMap::new(),
            tuned_coefficients: BTreeMap::new(),
            models: Vec::new(),
            rows: 0,
            broken_rows: 0,
            errors: HeldOutErrors::default(),
        }
    }

    /// Returns the median relative error on rows that the fit did not use, for skewed routing if there is
    /// any. `None` without such rows.
    pub fn median_error(&self) -> Option<f64> {
        let errors = self.errors.skewed.or(self.errors.balanced)?;
        Some(errors.model.median / 100.0)
    }

    /// Returns the coefficients for a shape, in the order of [`Feature::ALL`].
    pub(crate) fn coefficients_of(&self, shape: &MoeShape) -> [f64; FEATURE_COUNT] {
        let is_tuned = has_tuned_tiles(&self.tuned_widths, shape);
        let chosen = if is_tuned { &self.tuned_coefficients } else { &self.coefficients };
        Feature::ALL.map(|feature| chosen.get(&feature).copied().unwrap_or(0.0))
    }

    pub(crate) fn key(&self) -> (KernelTable, &str, Dtype, &str, &str) {
        (self.table, &self.framework, self.dtype, &self.version, &self.kernel)
    }

    pub(crate) fn describe(&self) -> String {
        format!("{} {} {} {} {}", self.table, self.framework, self.version, self.kernel, self.dtype)
    }
}

/// Returns true if a shape has tuned tiles. Hidden width and experts per token do not matter.
pub(crate) fn has_tuned_tiles(widths: &BTreeMap<u64, Vec<u64>>, shape: &MoeShape) -> bool {
    widths.get(&shape.slots).is_some_and(|widths| widths.contains(&shape.intermediate))
}

/// Returns a key that orders versions: the numbers in turn, a release after its candidates and before its
/// posts.
pub(crate) fn version_key(version: &str) -> Vec<u64> {
    let mut key: Vec<u64> = Vec::new();
    let mut is_final = true;
    for part in version.split(|c: char| !c.is_ascii_alphanumeric()) {
        let bounds = part.char_indices().zip(part.chars().skip(1));
        let cuts = bounds.filter(|((_, a), b)| a.is_ascii_digit() != b.is_ascii_digit());
        let mut from = 0;
        let ends: Vec<usize> = cuts.map(|((at, a), _)| at + a.len_utf8()).chain([part.len()]).collect();
        for end in ends {
            match &part[from..end] {
                "rc" | "a" | "b" | "dev" => is_final = false,
                "post" => {
                    key.push(u64::MAX);
                    is_final = false;
                }
                digits => key.extend(digits.parse::<u64>().ok()),
            }
            from = end;
        }
    }
    if is_final {
        key.push(u64::MAX);
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered() {
        let ordered = ["0.5.6", "0.5.6.post2", "0.5.10", "0.24.0", "1.3.0rc10", "1.3.0rc20", "1.3.0"];
        assert!(ordered.is_sorted_by(|a, b| version_key(a) < version_key(b)));
    }
}
