//! Tables of exchanges and collectives.
//!
//! - `wideep_deepep_ll`, `wideep_deepep_normal`: tokens per rank, microseconds, 8 ranks per node, or 4 on
//!   GB200 and GB300. Tables with several nodes are a family of their own. A normal kernel first notifies the
//!   other ranks, which is a part of its time.
//! - `moe_a2a`: tokens per rank, microseconds.
//! - `trtllm_alltoall`: tokens per rank, milliseconds.
//! - `nccl`, `custom_allreduce`: the size counts elements, milliseconds.

use super::rows::{RowCollector, RowKernel};
use crate::import::parquet_columns::{ContentError, ParquetTable};
use crate::operations::{
    Collective, CollectiveKind, CollectiveWork, CrossRate, ExchangePhase, ExchangeWork, LowLatencyExchange,
    NodeExchange, NormalExchange, NvlinkExchange, NvlinkSides, Operation, OperationWork, RowBytes,
};

/// Nodes that a token of DeepSeek-V3 may visit.
const NODE_LIMIT: u64 = 4;
/// Bytes of a token's experts and weights, which go with its row over NVLink.
const ID_BYTES: f64 = 64.0;

const FP8_SCALED: f64 = 1.0 + 1.0 / 32.0;

/// Returns the bytes of a row in a number format of the tables.
fn row_bytes(phase: ExchangePhase, dtype: &str) -> RowBytes {
    let per_hidden = match (phase, dtype) {
        (ExchangePhase::Dispatch, "fp8") => 1.0,
        (ExchangePhase::Prepare, _) => 0.0,
        (_, "fp4") | (ExchangePhase::Dispatch | ExchangePhase::CombineLowPrecision, "nvfp4") => 0.5625,
        _ => 2.0,
    };
    RowBytes { per_hidden, header: 0.0 }
}

fn low_latency(phase: ExchangePhase, row: RowBytes, nodes: bool) -> Operation {
    let cross = nodes.then_some(CrossRate { alpha_us: 1.0, gb_s: 1.0 });
    Operation::LowLatencyExchange(LowLatencyExchange {
        phase,
        row,
        alpha_us: 1.0,
        message_us: 1.0,
        node_gb_s: 1.0,
        token_us: 1.0,
        cross,
    })
}

fn normal(phase: ExchangePhase, row: RowBytes, counts_multiprocessors: bool) -> Operation {
    Operation::NormalExchange(NormalExchange {
        phase,
        row,
        alpha_us: 1.0,
        node_gb_s: 1.0,
        node_gb_s_per_sm: counts_multiprocessors.then_some(1.0),
        row_bytes: 1.0,
        token_bytes: 1.0,
    })
}

fn between_nodes(phase: ExchangePhase, row: RowBytes) -> Operation {
    Operation::NodeExchange(NodeExchange {
        phase,
        row,
        cross_alpha_us: 1.0,
        cross_alpha_per_node: 1.0,
        cross_gb_s: 1.0,
        forward_gb_s: 1.0,
        gb_s_per_sm: 1.0,
        wide: CrossRate { alpha_us: 1.0, gb_s: 1.0 },
    })
}

/// Sizes of the rows in a table of DeepEP.
struct DeepEpColumns {
    nodes: Vec<u64>,
    hidden: Vec<u64>,
    tokens: Vec<u64>,
    top_k: Vec<u64>,
    experts: Vec<u64>,
    ranks_per_node: u64,
}

impl DeepEpColumns {
    fn read(file: &ParquetTable) -> Result<Self, ContentError> {
        let device = file.labels("device")?;
        let has_trays = device.labels.iter().any(|name| name.contains("GB"));
        Ok(Self {
            nodes: file.integers("node_num")?,
            hidden: file.integers("hidden_size")?,
            tokens: file.integers("num_token")?,
            top_k: file.integers("num_topk")?,
            experts: file.integers("num_experts")?,
            ranks_per_node: if has_trays { 4 } else { 8 },
        })
    }

    fn work(&self, at: usize, multiprocessors: u64) -> ExchangeWork {
        ExchangeWork {
            tokens: self.tokens[at],
            hidden: self.hidden[at],
            top_k: self.top_k[at],
            experts: self.experts[at],
            ranks: self.nodes[at] * self.ranks_per_node,
            nodes: self.nodes[at],
            node_limit: Some(NODE_LIMIT),
            multiprocessors,
        }
    }

    fn has_nodes(&self) -> bool {
        self.nodes.iter().any(|&nodes| nodes > 1)
    }
}

pub(super) fn read_low_latency(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    let columns = DeepEpColumns::read(file)?;
    let name = file.labels("kernel_source")?;
    let nodes = columns.has_nodes();
    for (phase, column, dtype, row) in [
        (
            ExchangePhase::Dispatch,
            "dispatch_avg_t_us",
            "fp8",
            RowBytes { per_hidden: FP8_SCALED, header: 16.0 },
        ),
        (
            ExchangePhase::Combine,
            "combine_avg_t_us",
            "bfloat16",
            row_bytes(ExchangePhase::Combine, "bfloat16"),
        ),
    ] {
        let template = low_latency(phase, row, nodes);
        for (at, time) in file.numbers(column)?.into_iter().enumerate() {
            let kernel = RowKernel { kernel: name.label(at), dtype, template: template.clone() };
            rows.add(&kernel, OperationWork::Exchange(columns.work(at, 0)), time);
        }
    }
    Ok(())
}

pub(super) fn read_normal(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    let columns = DeepEpColumns::read(file)?;
    let name = file.labels("kernel_source")?;
    let nodes = columns.has_nodes();
    for (phase, prefix, dtype, row) in [
        (ExchangePhase::Dispatch, "dispatch", "fp8", RowBytes { per_hidden: FP8_SCALED, header: 0.0 }),
        (ExchangePhase::Combine, "combine", "bfloat16", row_bytes(ExchangePhase::Combine, "bfloat16")),
    ] {
        let multiprocessors = file.integers(&format!("{prefix}_sms"))?;
        let template = if nodes { between_nodes(phase, row) } else { normal(phase, row, true) };
        let notify = file.numbers(&format!("{prefix}_notify_us"))?;
        for (at, transmit) in file.numbers(&format!("{prefix}_transmit_us"))?.into_iter().enumerate() {
            // Tables with several nodes have few rows of one node, all with 20 multiprocessors.
            if nodes && columns.nodes[at] == 1 {
                continue;
            }
            let kernel = RowKernel { kernel: name.label(at), dtype, template: template.clone() };
            let work = columns.work(at, multiprocessors[at]);
            rows.add(&kernel, OperationWork::Exchange(work), transmit + notify[at]);
        }
    }
    Ok(())
}

pub(super) fn read_moe_a2a(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    let [backend, phases, dtypes] = ["comm_backend", "phase", "comm_dtype"].map(|name| file.labels(name));
    let (backend, phases, dtypes) = (backend?, phases?, dtypes?);
    let names = ["ep_size", "node_num", "hidden_size", "topk", "num_experts", "num_tokens", "sms"];
    let [ranks, nodes, hidden, top_k, experts, tokens, multiprocessors] =
        names.map(|name| file.integers(name));
    let (ranks, nodes, hidden, top_k) = (ranks?, nodes?, hidden?, top_k?);
    let (experts, tokens, multiprocessors) = (experts?, tokens?, multiprocessors?);
    for (at, time) in file.numbers("latency")?.into_iter().enumerate() {
        let phase = match phases.label(at) {
            "dispatch" => ExchangePhase::Dispatch,
            "combine" => ExchangePhase::Combine,
            _ => continue,
        };
        if nodes[at] != 1 {
            continue;
        }
        let (kernel, dtype) = (backend.label(at), dtypes.label(at));
        let template = if kernel.ends_with("_ll") || kernel.ends_with("_generation") {
            low_latency(phase, row_bytes(phase, dtype), false)
        } else if kernel.ends_with("_ht") || kernel.ends_with("_context") {
            // All rows of such a kernel have the same number of multiprocessors, so its effect is unknown.
            normal(phase, row_bytes(phase, dtype), false)
        } else {
            continue;
        };
        let work = ExchangeWork {
            tokens: tokens[at],
            hidden: hidden[at],
            top_k: top_k[at],
            experts: experts[at],
            ranks: ranks[at],
            nodes: 1,
            node_limit: None,
            multiprocessors: multiprocessors[at],
        };
        rows.add(&RowKernel { kernel, dtype, template }, OperationWork::Exchange(work), time);
    }
    Ok(())
}

pub(super) fn read_nvlink(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    let [names, phases, dtypes, distributions] =
        ["kernel_source", "op_name", "moe_dtype", "distribution"].map(|name| file.labels(name));
    let (names, phases, dtypes, distributions) = (names?, phases?, dtypes?, distributions?);
    let columns = ["moe_ep_size", "hidden_size", "topk", "num_experts", "num_tokens"];
    let [ranks, hidden, top_k, experts, tokens] = columns.map(|name| file.integers(name));
    let (ranks, hidden, top_k, experts, tokens) = (ranks?, hidden?, top_k?, experts?, tokens?);
    for (at, milliseconds) in file.numbers("latency")?.into_iter().enumerate() {
        let phase = match phases.label(at) {
            "alltoall_prepare" => ExchangePhase::Prepare,
            "alltoall_dispatch" => ExchangePhase::Dispatch,
            "alltoall_combine" => ExchangePhase::Combine,
            "alltoall_combine_low_precision" => ExchangePhase::CombineLowPrecision,
            _ => continue,
        };
        if distributions.label(at) != "balanced" {
            continue;
        }
        let (kernel, dtype) = (names.label(at), dtypes.label(at));
        let sides = if kernel.ends_with("OneSided") { NvlinkSides::One } else { NvlinkSides::Two };
        let mut row = row_bytes(phase, dtype);
        if matches!(phase, ExchangePhase::Prepare | ExchangePhase::Dispatch) {
            row.header = ID_BYTES;
        }
        let template = Operation::NvlinkExchange(NvlinkExchange {
            phase,
            sides,
            row,
            alpha_us: 1.0,
            message_us: 1.0,
            trays_us: 1.0,
            gb_s: 1.0,
            token_ns: 1.0,
        });
        let work = ExchangeWork {
            tokens: tokens[at],
            hidden: hidden[at],
            top_k: top_k[at],
            experts: experts[at],
            ranks: ranks[at],
            nodes: 1,
            node_limit: None,
            multiprocessors: 0,
        };
        rows.add(&RowKernel { kernel, dtype, template }, OperationWork::Exchange(work), milliseconds * 1e3);
    }
    Ok(())
}

pub(super) fn read_nccl(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    read_collective(file, "nccl_dtype", rows)
}

pub(super) fn read_all_reduce(file: &ParquetTable, rows: &mut RowCollector) -> Result<(), ContentError> {
    read_collective(file, "allreduce_dtype", rows)
}

fn read_collective(file: &ParquetTable, dtype: &str, rows: &mut RowCollector) -> Result<(), ContentError> {
    let (names, dtypes, operations) =
        (file.labels("kernel_source")?, file.labels(dtype)?, file.labels("op_name")?);
    let (ranks, elements) = (file.integers("num_gpus")?, file.integers("message_size")?);
    for (at, milliseconds) in file.numbers("latency")?.into_iter().enumerate() {
        let collective = match operations.label(at) {
            "all_reduce" => CollectiveKind::AllReduce,
            "all_gather" => CollectiveKind::AllGather,
            "reduce_scatter" => CollectiveKind::ReduceScatter,
            "alltoall" => CollectiveKind::AllToAll,
            _ => continue,
        };
        let dtype = dtypes.label(at);
        let width = if matches!(dtype, "int8" | "fp8") { 1 } else { 2 };
        // The fit adds lines for the numbers of ranks that it finds.
        let template = Operation::Collective(Collective { collective, sizes: Vec::new() });
        let work = CollectiveWork { bytes: elements[at] * width, ranks: ranks[at] };
        let kernel = RowKernel { kernel: names.label(at), dtype, template };
        rows.add(&kernel, OperationWork::Collective(work), milliseconds * 1e3);
    }
    Ok(())
}
