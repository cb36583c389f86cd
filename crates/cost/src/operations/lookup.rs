//! Choice of a fitted operation in a database, and checks of its parameters.

use super::attention::Grouping;
use super::collective::CollectiveKind;
use super::exchange::ExchangePhase;
use super::{Operation, OperationEntry};
use crate::database::CostDatabase;
use crate::kernel_entry::version_key;
use std::fmt;

/// Kind of operation, as far as kernels of a framework differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum OperationKind {
    /// Exchange by low-latency kernels inside a node.
    LowLatencyExchange(ExchangePhase),
    /// Exchange by low-latency kernels between nodes.
    LowLatencyNodeExchange(ExchangePhase),
    /// Exchange by normal kernels inside a node.
    NormalExchange(ExchangePhase),
    /// Exchange by normal kernels between nodes.
    NodeExchange(ExchangePhase),
    /// Exchange by the kernels of TensorRT-LLM over NVLink.
    NvlinkExchange(ExchangePhase),
    /// Collective operation inside a node.
    Collective(CollectiveKind),
    /// Decode attention for a kind of heads.
    DecodeAttention(Grouping),
    /// Prefill attention.
    PrefillAttention,
    /// Latent decode attention.
    MlaDecode,
    /// Latent prefill attention.
    MlaPrefill,
    /// Batched multiplications of latent attention.
    MlaBmm,
    /// Dense multiplication.
    Gemm,
    /// Attention block of DeepSeek-V3 for decoding.
    MlaBlockDecode,
    /// Attention block of DeepSeek-V3 for prefill.
    MlaBlockPrefill,
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = |phase: ExchangePhase| match phase {
            ExchangePhase::Prepare => "prepare",
            ExchangePhase::Dispatch => "dispatch",
            ExchangePhase::Combine => "combine",
            ExchangePhase::CombineLowPrecision => "combine_low_precision",
        };
        let text = match *self {
            Self::LowLatencyExchange(of) => format!("low_latency_exchange {}", phase(of)),
            Self::LowLatencyNodeExchange(of) => format!("low_latency_node_exchange {}", phase(of)),
            Self::NormalExchange(of) => format!("normal_exchange {}", phase(of)),
            Self::NodeExchange(of) => format!("node_exchange {}", phase(of)),
            Self::NvlinkExchange(of) => format!("nvlink_exchange {}", phase(of)),
            Self::Collective(CollectiveKind::AllReduce) => "all_reduce".to_owned(),
            Self::Collective(CollectiveKind::AllGather) => "all_gather".to_owned(),
            Self::Collective(CollectiveKind::ReduceScatter) => "reduce_scatter".to_owned(),
            Self::Collective(CollectiveKind::AllToAll) => "all_to_all".to_owned(),
            Self::DecodeAttention(Grouping::Any) => "decode_attention".to_owned(),
            Self::DecodeAttention(Grouping::Grouped) => "decode_attention grouped".to_owned(),
            Self::DecodeAttention(Grouping::MultiHead) => "decode_attention multi_head".to_owned(),
            Self::PrefillAttention => "prefill_attention".to_owned(),
            Self::MlaDecode => "mla_decode".to_owned(),
            Self::MlaPrefill => "mla_prefill".to_owned(),
            Self::MlaBmm => "mla_bmm".to_owned(),
            Self::Gemm => "gemm".to_owned(),
            Self::MlaBlockDecode => "mla_block_decode".to_owned(),
            Self::MlaBlockPrefill => "mla_block_prefill".to_owned(),
        };
        f.pad(&text)
    }
}

impl Operation {
    /// Returns the kind of operation.
    pub fn kind(&self) -> OperationKind {
        match self {
            Self::LowLatencyExchange(kernel) if kernel.cross.is_some() => {
                OperationKind::LowLatencyNodeExchange(kernel.phase)
            }
            Self::LowLatencyExchange(kernel) => OperationKind::LowLatencyExchange(kernel.phase),
            Self::NormalExchange(kernel) => OperationKind::NormalExchange(kernel.phase),
            Self::NodeExchange(kernel) => OperationKind::NodeExchange(kernel.phase),
            Self::NvlinkExchange(kernel) => OperationKind::NvlinkExchange(kernel.phase),
            Self::Collective(kernel) => OperationKind::Collective(kernel.collective),
            Self::DecodeAttention(kernel) => OperationKind::DecodeAttention(kernel.grouping),
            Self::PrefillAttention(_) => OperationKind::PrefillAttention,
            Self::MlaDecode(_) => OperationKind::MlaDecode,
            Self::MlaPrefill(_) => OperationKind::MlaPrefill,
            Self::MlaBmm(_) => OperationKind::MlaBmm,
            Self::Gemm(_) => OperationKind::Gemm,
            Self::MlaBlockDecode(_) => OperationKind::MlaBlockDecode,
            Self::MlaBlockPrefill(_) => OperationKind::MlaBlockPrefill,
        }
    }

    /// Returns true if the operation answers questions of a kind. Kernels between nodes also work inside
    /// one, and some attention kernels serve all heads.
    pub fn covers(&self, kind: OperationKind) -> bool {
        match (self.kind(), kind) {
            (OperationKind::LowLatencyNodeExchange(own), OperationKind::LowLatencyExchange(asked)) => {
                own == asked
            }
            (OperationKind::DecodeAttention(Grouping::Any), OperationKind::DecodeAttention(_)) => true,
            (own, asked) => own == asked,
        }
    }

    /// Returns the first parameter with a value that the formula does not allow.
    pub(crate) fn find_wrong_parameter(&self) -> Option<WrongParameter> {
        let mut copy = self.clone();
        let fixed = self.fixed_values().into_iter();
        let fitted = copy.parameters_mut().into_iter().map(|(name, value)| (name, *value));
        fixed.chain(fitted).find_map(|(name, value)| {
            let divides = name.ends_with("b_s") || name.ends_with("flop_s") || name.ends_with("_per_sm");
            let positive = divides || matches!(name, "p" | "q" | "gemm_p" | "l2_ratio");
            let allowed = value.is_finite() && value >= 0.0 && (value > 0.0 || !positive);
            let expected = if positive { "a number above 0" } else { "a number from 0" };
            (!allowed).then_some(WrongParameter { name, value, expected })
        })
    }

    /// Returns the numbers that no fit changes, with their names.
    fn fixed_values(&self) -> Vec<(&'static str, f64)> {
        let row =
            |row: &super::RowBytes| vec![("row.per_hidden", row.per_hidden), ("row.header", row.header)];
        match self {
            Self::LowLatencyExchange(kernel) => row(&kernel.row),
            Self::NormalExchange(kernel) => row(&kernel.row),
            Self::NodeExchange(kernel) => row(&kernel.row),
            Self::NvlinkExchange(kernel) => row(&kernel.row),
            Self::Collective(_) => Vec::new(),
            Self::DecodeAttention(kernel) => vec![("kv_bytes", kernel.kv_bytes)],
            Self::PrefillAttention(kernel) => vec![("kv_bytes", kernel.kv_bytes)],
            Self::MlaDecode(kernel) => vec![("kv_bytes", kernel.kv_bytes)],
            Self::MlaPrefill(kernel) => vec![("half_head_dim", kernel.rates.half_head_dim)],
            Self::MlaBmm(kernel) => vec![("weight_bytes", kernel.weight_bytes)],
            Self::Gemm(kernel) => {
                vec![("weight_bytes", kernel.weight_bytes), ("activation_bytes", kernel.activation_bytes)]
            }
            Self::MlaBlockDecode(kernel) => vec![
                ("weight_bytes", kernel.projections.weight_bytes),
                ("kv_bytes", kernel.attention.kv_bytes),
            ],
            Self::MlaBlockPrefill(kernel) => vec![
                ("weight_bytes", kernel.projections.weight_bytes),
                ("half_head_dim", kernel.attention.rates.half_head_dim),
            ],
        }
    }
}

/// Parameter outside its range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct WrongParameter {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) expected: &'static str,
}

impl OperationEntry {
    /// Returns the key by which a database orders operations.
    pub(crate) fn key(&self) -> (OperationKind, &str, &str, &str, &str) {
        (self.operation.kind(), &self.framework, &self.dtype, &self.version, &self.kernel)
    }
}

impl CostDatabase {
    /// Returns the operation of a kind, framework and number format with the most measured rows. Among
    /// equals it is that of the newest version. Collectives of NCCL have the framework `nccl`.
    pub fn operation(&self, kind: OperationKind, framework: &str, dtype: &str) -> Option<&OperationEntry> {
        self.operations_of(kind)
            .filter(|entry| entry.framework == framework && entry.dtype == dtype)
            .max_by_key(|entry| (entry.rows, version_key(&entry.version)))
    }

    /// Returns all operations that answer questions of a kind.
    pub fn operations_of(&self, kind: OperationKind) -> impl Iterator<Item = &OperationEntry> {
        self.operations.iter().filter(move |entry| entry.operation.covers(kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::tests::hardware;
    use crate::operations::{Gemm, LowLatencyExchange, RowBytes};
    use crate::{CostError, Provenance};

    fn low_latency(gb_s: f64) -> Operation {
        Operation::LowLatencyExchange(LowLatencyExchange {
            phase: ExchangePhase::Dispatch,
            row: RowBytes { per_hidden: 1.0, header: 16.0 },
            alpha_us: 9.0,
            message_us: 0.0,
            node_gb_s: gb_s,
            token_us: 0.0,
            cross: None,
        })
    }

    fn database(operations: Vec<OperationEntry>) -> CostDatabase {
        let provenance = Provenance::new("own measurements", "1", "none");
        CostDatabase::new("h100", hardware(), provenance, Vec::new()).with_operations(operations)
    }

    fn entry(version: &str, rows: u64, operation: Operation) -> OperationEntry {
        OperationEntry { rows, ..OperationEntry::new("sglang", version, "deepep", "fp8", operation) }
    }

    #[test]
    fn the_entry_with_most_rows_is_found() {
        let entries = [("0.5.6", 80), ("0.5.9", 90), ("0.5.10", 90), ("0.5.12", 10)];
        let database = database(
            entries.into_iter().map(|(version, rows)| entry(version, rows, low_latency(200.0))).collect(),
        );
        let kind = OperationKind::LowLatencyExchange(ExchangePhase::Dispatch);
        assert_eq!(database.operation(kind, "sglang", "fp8").unwrap().version, "0.5.10");
        assert!(database.operation(kind, "trtllm", "fp8").is_none());
        let other = OperationKind::LowLatencyNodeExchange(ExchangePhase::Dispatch);
        assert!(database.operation(other, "sglang", "fp8").is_none());
        assert_eq!(database.operations_of(kind).count(), 4);
        // A line of the document per entry.
        let text = database.to_json().unwrap();
        assert_eq!(text.lines().filter(|line| line.contains("low_latency_exchange")).count(), 4);
        assert_eq!(CostDatabase::from_json(&text).unwrap(), database);
    }

    #[test]
    fn wrong_parameters_are_refused() {
        for (operation, key) in [
            (low_latency(0.0), "operations[0].node_gb_s"),
            (low_latency(-1.0), "operations[0].node_gb_s"),
            (low_latency(f64::INFINITY), "operations[0].node_gb_s"),
        ] {
            let error = database(vec![entry("1", 1, operation)]).to_json().unwrap_err();
            assert!(matches!(&error, CostError::Value { key: found, .. } if found == key), "{error}");
        }
        let twice = vec![entry("1", 1, low_latency(1.0)), entry("1", 2, low_latency(2.0))];
        assert!(database(twice).to_json().unwrap_err().to_string().contains("each operation once"));
        let gemm = r#"{"gemm":{"weight_bytes":2}}"#;
        assert!(serde_json::from_str::<Operation>(gemm).is_err());
        let unknown = serde_json::to_string(&low_latency(1.0)).unwrap().replace("alpha_us", "alpha_ms");
        assert!(serde_json::from_str::<Operation>(&unknown).unwrap_err().to_string().contains("alpha_ms"));
        assert!(serde_json::from_str::<Gemm>("{}").is_err());
    }
}
