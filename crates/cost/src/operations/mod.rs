//! Fitted times of the other operations of a step: exchange, collectives, attention and dense layers.
//!
//! In: an [`OperationEntry`] of a [`CostDatabase`](crate::CostDatabase), and a description of the work. Out:
//! microseconds on one GPU. `docs/operation-times.md` states the formulas with their errors.
//!
//! ```
//! use evenkeel_cost::operations::{ExchangePhase, ExchangeWork};
//! use evenkeel_cost::{CacheState, CostDatabase, OperationKind, OperationWork};
//!
//! let database = CostDatabase::builtin("h100")?;
//! let work = ExchangeWork {
//!     tokens: 128,
//!     hidden: 7168,
//!     top_k: 8,
//!     experts: 256,
//!     ranks: 32,
//!     nodes: 4,
//!     node_limit: None,
//!     multiprocessors: 20,
//! };
//! let kind = OperationKind::LowLatencyNodeExchange(ExchangePhase::Dispatch);
//! let entry = database.operation(kind, "sglang", "fp8").expect("measured for H100");
//! let work = OperationWork::Exchange(work);
//! let time = entry.operation.time_us(&work, &database.hardware, CacheState::Cold);
//! assert!(time.is_some_and(|time| (130.0..160.0).contains(&time)));
//! # Ok::<(), evenkeel_cost::CostError>(())
//! ```

mod attention;
mod collective;
mod exchange;
mod gemm;
mod lookup;
mod mla;
mod mla_block;
mod node_exchange;
mod nvlink_exchange;
mod terms;

pub use attention::{AttentionWork, DecodeAttention, Grouping, PrefillAttention, PrefillRates};
pub use collective::{Collective, CollectiveKind, CollectiveLines, CollectiveWork};
pub use exchange::{
    CrossRate, ExchangePhase, ExchangeRows, ExchangeWork, LowLatencyExchange, NormalExchange, RowBytes,
};
pub use gemm::{Gemm, GemmWork};
pub use lookup::OperationKind;
pub use mla::{MlaBmm, MlaBmmWork, MlaDecode, MlaPrefill, MlaWork};
pub use mla_block::{MlaBlockDecode, MlaBlockPrefill, MlaProjections};
pub use node_exchange::NodeExchange;
pub use nvlink_exchange::{NvlinkExchange, NvlinkSides};

use crate::hardware::Hardware;
use crate::kernel_entry::ErrorQuantiles;
use crate::rank_kernel::CacheState;
use serde::{Deserialize, Serialize};
use terms::ParameterMut;

/// Fitted time of one operation: identity, parameters, and errors on rows that its fit did not use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct OperationEntry {
    /// Serving framework, or `nccl`.
    pub framework: String,
    /// Version of the framework.
    pub version: String,
    /// Name of the kernel in the table.
    pub kernel: String,
    /// Number format in the table.
    pub dtype: String,
    /// Formula and parameters.
    pub operation: Operation,
    /// Measured rows.
    pub rows: u64,
    /// Errors on the shapes that the fit did not use, percent.
    pub errors: ErrorQuantiles,
}

/// Formula of an operation with its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Operation {
    /// Exchange by low-latency kernels.
    LowLatencyExchange(LowLatencyExchange),
    /// Exchange by normal kernels inside a node.
    NormalExchange(NormalExchange),
    /// Exchange by normal kernels between nodes.
    NodeExchange(NodeExchange),
    /// Exchange by the kernels of TensorRT-LLM over NVLink.
    NvlinkExchange(NvlinkExchange),
    /// Collective operation inside a node.
    Collective(Collective),
    /// Decode attention.
    DecodeAttention(DecodeAttention),
    /// Prefill attention.
    PrefillAttention(PrefillAttention),
    /// Latent decode attention.
    MlaDecode(MlaDecode),
    /// Latent prefill attention.
    MlaPrefill(MlaPrefill),
    /// Batched multiplications of latent attention.
    MlaBmm(MlaBmm),
    /// Dense multiplication.
    Gemm(Gemm),
    /// Attention block of DeepSeek-V3 for decoding.
    MlaBlockDecode(MlaBlockDecode),
    /// Attention block of DeepSeek-V3 for prefill.
    MlaBlockPrefill(MlaBlockPrefill),
}

/// Work of any operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OperationWork {
    /// Exchange of tokens.
    Exchange(ExchangeWork),
    /// Collective operation.
    Collective(CollectiveWork),
    /// Attention with heads of keys and values.
    Attention(AttentionWork),
    /// Latent attention, or its block.
    Mla(MlaWork),
    /// Batched multiplication of latent attention.
    MlaBmm(MlaBmmWork),
    /// Dense multiplication.
    Gemm(GemmWork),
}

impl OperationEntry {
    /// Creates an entry without rows and errors, such as for parameters from other measurements.
    pub fn new(
        framework: impl Into<String>,
        version: impl Into<String>,
        kernel: impl Into<String>,
        dtype: impl Into<String>,
        operation: Operation,
    ) -> Self {
        Self {
            framework: framework.into(),
            version: version.into(),
            kernel: kernel.into(),
            dtype: dtype.into(),
            operation,
            rows: 0,
            errors: ErrorQuantiles { median: 0.0, p90: 0.0 },
        }
    }

    pub(crate) fn describe(&self) -> String {
        let Self { framework, version, kernel, dtype, .. } = self;
        format!("{} {framework} {version} {kernel} {dtype}", self.operation.kind())
    }
}

impl Operation {
    /// Returns the time of a piece of work, microseconds. `None` if the operation does no work of this kind.
    pub fn time_us(&self, work: &OperationWork, hardware: &Hardware, cache: CacheState) -> Option<f64> {
        let time = match (self, work) {
            (Self::LowLatencyExchange(kernel), OperationWork::Exchange(work)) => {
                kernel.time_us(work, hardware)
            }
            (Self::NormalExchange(kernel), OperationWork::Exchange(work)) => kernel.time_us(work),
            (Self::NodeExchange(kernel), OperationWork::Exchange(work)) => kernel.time_us(work),
            (Self::NvlinkExchange(kernel), OperationWork::Exchange(work)) => kernel.time_us(work),
            (Self::Collective(kernel), OperationWork::Collective(work)) => return kernel.time_us(work),
            (Self::DecodeAttention(kernel), OperationWork::Attention(work)) => {
                kernel.time_us(work, hardware, cache)
            }
            (Self::PrefillAttention(kernel), OperationWork::Attention(work)) => {
                kernel.time_us(work, hardware)
            }
            (Self::MlaDecode(kernel), OperationWork::Mla(work)) => kernel.time_us(work, hardware, cache),
            (Self::MlaPrefill(kernel), OperationWork::Mla(work)) => kernel.time_us(work, hardware),
            (Self::MlaBmm(kernel), OperationWork::MlaBmm(work)) => kernel.time_us(work, hardware),
            (Self::Gemm(kernel), OperationWork::Gemm(work)) => kernel.time_us(work, hardware, cache),
            (Self::MlaBlockDecode(kernel), OperationWork::Mla(work)) => kernel.time_us(work, hardware, cache),
            (Self::MlaBlockPrefill(kernel), OperationWork::Mla(work)) => kernel.time_us(work, hardware),
            _ => return None,
        };
        Some(time)
    }

    /// Returns the fitted parameters with their names.
    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        match self {
            Self::LowLatencyExchange(kernel) => kernel.parameters_mut(),
            Self::NormalExchange(kernel) => kernel.parameters_mut(),
            Self::NodeExchange(kernel) => kernel.parameters_mut(),
            Self::NvlinkExchange(kernel) => kernel.parameters_mut(),
            Self::Collective(kernel) => kernel.parameters_mut(),
            Self::DecodeAttention(kernel) => kernel.parameters_mut(),
            Self::PrefillAttention(kernel) => kernel.parameters_mut(),
            Self::MlaDecode(kernel) => kernel.parameters_mut(),
            Self::MlaPrefill(kernel) => kernel.parameters_mut(),
            Self::MlaBmm(kernel) => kernel.parameters_mut(),
            Self::Gemm(kernel) => kernel.parameters_mut(),
            Self::MlaBlockDecode(kernel) => kernel.parameters_mut(),
            Self::MlaBlockPrefill(kernel) => kernel.parameters_mut(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns the figures of an H100.
    pub(crate) fn hardware() -> Hardware {
        Hardware {
            bandwidth: 3_350_000_000_000,
            flops_16bit: 989_000_000_000_000,
            flops_8bit: 1_979_000_000_000_000,
            flops_4bit: 1_979_000_000_000_000,
            multiprocessors: 132,
            l2_bytes: 50_000_000,
        }
    }

    /// Returns 128 tokens per rank of DeepSeek-V3.
    pub(crate) fn work_of_deepseek(ranks: u64, nodes: u64) -> ExchangeWork {
        ExchangeWork {
            tokens: 128,
            hidden: 7168,
            top_k: 8,
            experts: 256,
            ranks,
            nodes,
            node_limit: None,
            multiprocessors: 20,
        }
    }
}
