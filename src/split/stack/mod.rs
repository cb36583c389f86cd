//! Rules by which serving stacks split an expert's tokens over its replicas without planning.
//!
//! A [`StackDispatch`] names the rule. [`StackRouter`] applies it to top-k ids, token by token, as the stack
//! does. [`SplitMethod::Stack`](super::SplitMethod::Stack) splits a batch from its counts per expert alone:
//!
//! - **Rules of the source rank** (`sglang-static`, `vllm-ascend`, `trtllm`): every source is assumed to have
//!   an equal share of every expert's tokens. Shares are apportioned by largest remainder, the lowest slot
//!   first on ties. Real sources differ, so the split is the average effect of the rule.
//! - **Rules of the row, and of chance** (`sglang-dynamic`, `vllm`, `sglang-random`): counts do not contain
//!   the row of a token. Its replica is therefore an independent uniform draw. The counts of the batch seed
//!   the generator, and the expert selects its stream. The split is a pure function of placement and counts.
//!   Rows of a batch are distinct, so the rule splits an expert that most rows visit a little more evenly
//!   than such draws do.

mod mersenne_twister;
mod nearest;
mod router;
mod stack_quotas;

pub use router::{LayerShape, StackRouter, StackRouterError, StackRouterOptions};
pub(super) use stack_quotas::StackQuotas;
pub(crate) use stack_quotas::{ReplicaShares, batch_seed};

use super::SplitError;
use std::fmt;
use std::str::FromStr;

/// Rule by which a serving stack chooses the replica for a token.
///
/// Replicas are in ascending order of their slots, and `c` is their number. The rules are those of SGLang
/// 0.5.23, vLLM 0.33.0 and vllm-ascend 0.23.0 as published, and of TensorRT-LLM's source in November 2026.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StackDispatch {
    /// SGLang, `--ep-dispatch-algorithm static`, the default with an all-to-all backend.
    ///
    /// Every source rank has a table. A token goes to the replica on its own GPU if there is one. Otherwise
    /// it goes to the first replica on its own node, if the node has some of the replicas and not all.
    /// Otherwise the table has a fair choice of `random.Random(42)`, which is drawn over all layers and
    /// experts in order. Source: `srt/eplb/expert_location.py`,
    /// `compute_logical_to_rank_dispatch_physical_map`.
    SglangStatic,
    /// SGLang, `--ep-dispatch-algorithm dynamic` without an all-to-all backend, the default there: the
    /// token's row modulo `c`, the same on all ranks. Source: `srt/eplb/expert_location_dispatch.py`.
    SglangDynamic,
    /// SGLang, `dynamic` (or `fake`) with an all-to-all backend. It takes the replica on the own GPU, or the
    /// first on the own node as with `static`. Otherwise it draws uniformly for every id. Source: the same.
    SglangRandom,
    /// vLLM with EPLB: the low 32 bits of the token's row times 2654435769, modulo `c`. Every source counts
    /// its own rows. Source: `model_executor/layers/fused_moe/router/base_router.py`,
    /// `_eplb_map_and_record_i32_kernel`.
    Vllm,
    /// vllm-ascend with EPLB: the source rank modulo `c`. With tensor parallelism of `t` > 1 ranks it is the
    /// sum of the rank modulo `t`, the rank over `t` and the expert, modulo `c`. Source:
    /// `vllm_ascend/eplb/core/eplb_utils.py`, `generate_log2phy_map`.
    VllmAscend,
    /// TensorRT-LLM with attention data parallelism. A source's ids are processed in row-major order, in
    /// blocks of 1024. In block `b` of rank `r` the `j`-th id of an expert goes to replica `(b + j + r)`
    /// modulo `c`. Without attention data parallelism all ranks route the whole batch as source 0 does here.
    /// Source: `cpp/tensorrt_llm/kernels/moeLoadBalance/moeLoadBalanceKernels.cu`, `moeComputeRouteKernel`.
    Trtllm,
}

impl StackDispatch {
    /// All rules, in the order of texts.
    pub const ALL: [StackDispatch; 6] = [
        StackDispatch::SglangStatic,
        StackDispatch::SglangDynamic,
        StackDispatch::SglangRandom,
        StackDispatch::Vllm,
        StackDispatch::VllmAscend,
        StackDispatch::Trtllm,
    ];

    /// Returns the name that selects the rule.
    pub fn name(self) -> &'static str {
        match self {
            StackDispatch::SglangStatic => "sglang-static",
            StackDispatch::SglangDynamic => "sglang-dynamic",
            StackDispatch::SglangRandom => "sglang-random",
            StackDispatch::Vllm => "vllm",
            StackDispatch::VllmAscend => "vllm-ascend",
            StackDispatch::Trtllm => "trtllm",
        }
    }

    /// Returns `true` if the same ids always go to the same slots.
    pub fn is_deterministic(self) -> bool {
        self != StackDispatch::SglangRandom
    }
}

impl fmt::Display for StackDispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for StackDispatch {
    type Err = SplitError;

    fn from_str(name: &str) -> Result<Self, SplitError> {
        let mut all = StackDispatch::ALL.into_iter();
        all.find(|rule| rule.name() == name).ok_or_else(|| SplitError::UnknownDispatch(name.to_owned()))
    }
}
