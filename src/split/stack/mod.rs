//! How serving stacks share an expert's tokens between its replicas when nothing plans the batch.
//!
//! A [`StackDispatch`] names the rule. [`StackRouter`] applies it to top-k ids, token by token, as the stack
//! does. As [`Method::Stack`](super::Method::Stack) it splits a batch of which only the counts per expert are
//! known:
//!
//! - **Rules of the source rank** (`sglang-static`, `vllm-ascend`, `trtllm`): every source is taken to have
//!   an equal share of every expert's tokens. Shares are apportioned by largest remainder, the lowest slot
//!   first on ties. Real sources differ, so the split is what the rule does on average.
//! - **Rules of the row, and of chance** (`sglang-dynamic`, `vllm`, `sglang-random`): counts do not say which
//!   row a token is in. Its replica is an independent uniform draw. The batch's counts seed the generator,
//!   and the expert is its stream: the split is a pure function of placement and counts. Rows of a batch are
//!   distinct, so an expert that most rows visit is shared a little more evenly than by such draws.

mod counts;
mod nearest;
mod router;
mod twister;

pub(super) use counts::StackQuotas;
pub(crate) use counts::{ReplicaShares, batch_seed};
pub use router::{RouterError, RouterOptions, StackRouter};

use super::SplitError;
use std::fmt;
use std::str::FromStr;

/// A serving stack's own rule for which replica of an expert serves a token.
///
/// Replicas are in ascending order of their slots, `c` is their number. Rules are those of SGLang 0.5.23,
/// vLLM 0.33.0 and vllm-ascend 0.23.0 as published, and of TensorRT-LLM's source in November 2026.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StackDispatch {
    /// SGLang, `--ep-dispatch-algorithm static`: its choice where there is an all-to-all backend.
    ///
    /// Every source rank has a table. A token goes to the replica on its own GPU; else to the first one on
    /// its own node, if the node has some of the replicas and not all. Else the table has a fair choice of
    /// `random.Random(42)`, which is drawn from over all layers and experts in order. Source:
    /// `srt/eplb/expert_location.py`, `compute_logical_to_rank_dispatch_physical_map`.
    SglangStatic,
    /// SGLang, `--ep-dispatch-algorithm dynamic` without an all-to-all backend, its choice there: the token's
    /// row modulo `c`, the same on all ranks. Source: `srt/eplb/expert_location_dispatch.py`.
    SglangDynamic,
    /// SGLang, `dynamic` (or `fake`) with an all-to-all backend: the replica on the own GPU, or the first on
    /// the own node as with `static`; else uniformly random for every id. Source: the same.
    SglangRandom,
    /// vLLM with EPLB: the low 32 bits of the token's row times 2654435769, modulo `c`; rows are counted on
    /// every source by itself. Source: `model_executor/layers/fused_moe/router/base_router.py`,
    /// `_eplb_map_and_record_i32_kernel`.
    Vllm,
    /// vllm-ascend with EPLB: the source rank modulo `c`. With tensor parallelism of `t` > 1 ranks: the sum
    /// of the rank modulo `t`, the rank over `t` and the expert, modulo `c`. Source:
    /// `vllm_ascend/eplb/core/eplb_utils.py`, `generate_log2phy_map`.
    VllmAscend,
    /// TensorRT-LLM with attention data parallelism. A source's ids are taken in row-major order, in blocks
    /// of 1024: in block `b` of rank `r` the `j`-th id of an expert goes to replica `(b + j + r)` modulo `c`.
    /// Without attention data parallelism all ranks route the whole batch as source 0 does here. Source:
    /// `cpp/tensorrt_llm/kernels/moeLoadBalance/moeLoadBalanceKernels.cu`, `moeComputeRouteKernel`.
    Trtllm,
}

impl StackDispatch {
    /// All rules, in the order in which texts list them.
    pub const ALL: [StackDispatch; 6] = [
        StackDispatch::SglangStatic,
        StackDispatch::SglangDynamic,
        StackDispatch::SglangRandom,
        StackDispatch::Vllm,
        StackDispatch::VllmAscend,
        StackDispatch::Trtllm,
    ];

    /// Returns the name that selects it.
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
