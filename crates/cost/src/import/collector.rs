//! Meaning of a table's rows: the tokens that enter the timed layer, and the rows that it computes.
//!
//! In: framework, version, kernel, dtype and shape. Out: a [`CollectorRule`]. In every table `num_tokens`
//! counts the tokens of all ranks. The rules were read from the published collectors
//! (`ai-dynamo/aiconfigurator`, folder `collector/`). For vLLM 0.24 and TensorRT-LLM 1.3.0rc20 and later
//! they were inferred from the data.
//!
//! - TensorRT-LLM and vLLM: all tokens enter, and the rows of rank 0's experts are computed.
//! - vLLM 0.19 with `w4a16_mxfp4`: all rows are computed whatever the number of ranks.
//! - SGLang before 0.5.14: tokens with an expert on rank 0 enter, and their remote rows count for expert 0.
//!   Later versions do so for a few shapes with Triton kernels.
//! - SGLang from 0.5.14 and vLLM from 0.24 route DeepSeek-V3's shape with its limit on groups of experts.

use crate::dtype::Dtype;
use crate::kernel_entry::version_key;
use crate::moe_shape::ModelShape;

/// Way in which a collector loads the timed rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum LoadRule {
    /// All tokens enter; the rows of the rank's own experts are computed.
    Local,
    /// As `Local`, with the older rule for rounding differences.
    LocalOlderSampler,
    /// All rows are computed at any number of ranks.
    AllRows,
    /// Tokens with an own expert enter; remote rows count for the first own expert.
    Clamped,
    /// Tokens with an own slot enter; the older sampler; one draw, of which the entering tokens are
    /// recorded.
    WideEp,
    /// As `Local`, but every expert has the same whole number of rows if routing is even.
    DeepEp,
}

impl LoadRule {
    /// Returns a name for seeds. It never changes, or the draws would.
    pub(crate) fn seed_name(self) -> &'static str {
        match self {
            LoadRule::Local => "local",
            LoadRule::LocalOlderSampler => "local, older sampler",
            LoadRule::AllRows => "all rows",
            LoadRule::Clamped => "clamped",
            LoadRule::WideEp => "wide EP",
            LoadRule::DeepEp => "DeepEP",
        }
    }
}

/// Meaning of the rows of one kernel and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CollectorRule {
    pub(crate) load: LoadRule,
    /// True if the router limits a token to half of the groups of experts.
    pub(crate) grouped: bool,
    /// Matrices per expert.
    pub(crate) matrices: u64,
}

/// Router with groups of experts.
const DEEPSEEK_V3: ModelShape = ModelShape { hidden: 7168, intermediate: 2048, top_k: 8, experts: 256 };

/// Shapes that SGLang 0.5.14 times by its older collector if the kernel is Triton's.
const CLAMPED_SHAPES: [(u64, u64, u64, u64); 4] =
    [(4096, 14336, 2, 8), (6144, 16384, 2, 8), (2816, 704, 8, 128), (1024, 2688, 22, 512)];

/// Hidden and inner width and experts per token of models without a gate (Nemotron).
const UNGATED_SHAPES: [(u64, u64, u64); 5] =
    [(2688, 1856, 6), (1024, 2688, 22), (4096, 2688, 22), (2048, 5120, 22), (8192, 5120, 22)];

/// Returns the meaning of the rows of `moe_perf`.
pub(crate) fn moe_rule(
    framework: &str,
    version: &str,
    kernel: &str,
    dtype: Dtype,
    model: ModelShape,
) -> CollectorRule {
    let from = |first: &str| version_key(version) >= version_key(first);
    let ModelShape { hidden, intermediate, top_k, experts } = model;
    let ungated = UNGATED_SHAPES.contains(&(hidden, intermediate, top_k));
    let matrices = if ungated { 2 } else { 3 };
    let local = CollectorRule { load: LoadRule::Local, grouped: false, matrices: 3 };
    let grouped = model == DEEPSEEK_V3;
    match framework {
        "trtllm" => {
            let older = version == "1.3.0rc10";
            let load = if older { LoadRule::LocalOlderSampler } else { LoadRule::Local };
            CollectorRule { load, matrices: if kernel.ends_with("_nongated") { 2 } else { 3 }, ..local }
        }
        "vllm" if from("0.24.0") => CollectorRule { grouped, matrices, ..local },
        "vllm" if version == "0.19.0" && dtype == Dtype::W4a16Mxfp4 => {
            CollectorRule { load: LoadRule::AllRows, ..local }
        }
        "sglang" if from("0.5.14") => {
            let clamped = CLAMPED_SHAPES.contains(&(hidden, intermediate, top_k, experts))
                && kernel.contains("triton")
                && matches!(dtype, Dtype::Bfloat16 | Dtype::Fp8Block);
            let load = if clamped { LoadRule::Clamped } else { LoadRule::Local };
            CollectorRule { load, grouped, matrices }
        }
        "sglang" if dtype != Dtype::W4a16Mxfp4 => CollectorRule { load: LoadRule::Clamped, ..local },
        _ => local,
    }
}

/// Kernel of which the rows have another router for every model, so they fit no rule.
pub(crate) const EXCLUDED_KERNEL: &str = "moe_torch_flow_min_latency";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_follow_version_and_shape() {
        let rule =
            |framework, version, kernel, model| moe_rule(framework, version, kernel, Dtype::Bfloat16, model);
        let mixtral = ModelShape { hidden: 4096, intermediate: 14336, top_k: 2, experts: 8 };
        let nemotron = ModelShape { hidden: 2688, intermediate: 1856, top_k: 6, experts: 128 };
        assert!(rule("sglang", "0.5.14", "fused_moe_triton", DEEPSEEK_V3).grouped);
        assert!(!rule("sglang", "0.5.10", "fused_moe_triton", DEEPSEEK_V3).grouped);
        assert_eq!(rule("sglang", "0.5.10", "fused_moe_triton", DEEPSEEK_V3).load, LoadRule::Clamped);
        assert_eq!(rule("sglang", "0.5.14", "fused_moe_triton", mixtral).load, LoadRule::Clamped);
        assert_eq!(rule("sglang", "0.5.14", "flashinfer_cutlass", mixtral).load, LoadRule::Local);
        assert_eq!(rule("vllm", "0.22.0", "x", nemotron).matrices, 3);
        assert_eq!(rule("vllm", "0.24.0", "x", nemotron).matrices, 2);
        assert_eq!(rule("trtllm", "1.3.0rc10", "x", nemotron).load, LoadRule::LocalOlderSampler);
        assert_eq!(rule("trtllm", "1.3.0rc20", "moe_torch_flow_nongated", nemotron).matrices, 2);
    }
}
