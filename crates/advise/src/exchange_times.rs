//! Times of the exchange of rows between ranks: all-to-all kernels, or all tokens gathered on all ranks.
//!
//! In: an [`ExchangeLoad`]. Out: microseconds of dispatch and combine. The fullest rank and node count.

use crate::parallelism::Parallelism;
use crate::step::Phase;
use crate::times::{StepTimes, whole};
use evenkeel::model::MoeModel;
use evenkeel_cost::operations::{
    CollectiveKind, CollectiveWork, ExchangePhase, ExchangeRows, ExchangeWork, Operation, OperationEntry,
    OperationKind, OperationWork,
};
use std::collections::BTreeMap;

/// Multiprocessors that DeepEP's normal kernels use.
const EXCHANGE_MULTIPROCESSORS: u64 = 20;
/// Tokens per rank above which stacks take the exchange's normal kernels instead of low-latency ones.
const LOW_LATENCY_TOKENS: f64 = 512.0;

/// Rows that the ranks exchange in one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExchangeLoad {
    /// Decode or prefill.
    pub phase: Phase,
    /// Tokens per rank.
    pub tokens: f64,
    /// Width of a token.
    pub hidden: u64,
    /// Experts per token.
    pub top_k: u64,
    /// Experts of the layer.
    pub experts: u64,
    /// Ranks.
    pub ranks: u64,
    /// Nodes.
    pub nodes: u64,
    /// Rows of the fullest rank over the mean.
    pub imbalance: f64,
    /// Rows of the fullest node over the mean.
    pub node_imbalance: f64,
}

/// Kernels that bring tokens to their experts and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExchangeMode {
    /// All-to-all kernels that send a token to the ranks of its experts, such as DeepEP's.
    AllToAll,
    /// All ranks gather all tokens, and their results are added up and scattered.
    Gather,
    /// The faster of both.
    Fastest,
}

/// Kind of an exchange's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ExchangeKind {
    /// A row per visit, for few tokens.
    is_low_latency: bool,
    /// The ranks are on several nodes.
    has_nodes: bool,
}

impl StepTimes {
    /// Returns the time in which all ranks learn the counts of all ranks.
    pub fn counts_us(&self, parallel: &Parallelism, moe: &MoeModel) -> f64 {
        let load = ExchangeLoad {
            phase: Phase::Decode { context: 1 },
            tokens: 0.0,
            hidden: moe.hidden,
            top_k: moe.top_k as u64,
            experts: moe.experts as u64,
            ranks: parallel.ranks,
            nodes: parallel.nodes(self.linked()),
            imbalance: 1.0,
            node_imbalance: 1.0,
        };
        // A flag for every expert is what a low-latency exchange without rows sends.
        self.one_way_us(&load, ExchangePhase::Dispatch)
    }

    /// Returns the time of dispatch and combine of one layer.
    pub fn exchange_us(&self, load: &ExchangeLoad) -> f64 {
        let all_to_all =
            || self.one_way_us(load, ExchangePhase::Dispatch) + self.one_way_us(load, ExchangePhase::Combine);
        match self.exchange {
            ExchangeMode::AllToAll => all_to_all(),
            ExchangeMode::Gather => self.gather_us(load),
            ExchangeMode::Fastest => all_to_all().min(self.gather_us(load)),
        }
    }

    /// Returns the time in which all ranks gather all tokens in bfloat16, and add up and scatter the results.
    fn gather_us(&self, load: &ExchangeLoad) -> f64 {
        let bytes = load.tokens * load.ranks as f64 * 2.0 * load.hidden as f64;
        let work = CollectiveWork { bytes: whole(bytes), ranks: load.ranks };
        let of = |kind| {
            let inside = self.find(OperationKind::Collective(kind), &["half", "bfloat16", "float16"]);
            let measured = self.time(inside.as_ref(), &OperationWork::Collective(work));
            measured.filter(|_| load.nodes == 1).unwrap_or_else(|| {
                // Most of the data comes from other nodes.
                let sent = bytes * (load.ranks - 1) as f64 / load.ranks as f64;
                let link = if load.nodes > 1 { &self.network.cross } else { &self.network.node };
                link.alpha_us + sent / (link.gb_s * 1e3)
            })
        };
        of(CollectiveKind::AllGather) + of(CollectiveKind::ReduceScatter)
    }

    /// Returns the measured exchange for a load, if there is one.
    pub(crate) fn exchange_entry(
        &self,
        load: &ExchangeLoad,
        phase: ExchangePhase,
    ) -> Option<&OperationEntry> {
        let is_low_latency = matches!(load.phase, Phase::Decode { .. }) && load.tokens <= LOW_LATENCY_TOKENS;
        self.exchanges.get(&(ExchangeKind { is_low_latency, has_nodes: load.nodes > 1 }, phase))
    }

    /// Finds the measured exchanges of all kinds.
    pub(crate) fn find_exchanges(&self) -> BTreeMap<(ExchangeKind, ExchangePhase), OperationEntry> {
        let mut found = BTreeMap::new();
        for phase in [ExchangePhase::Dispatch, ExchangePhase::Combine] {
            let formats: &[&str] = match phase {
                ExchangePhase::Dispatch => &["fp8", "fp8_block", "nvfp4", "bf16", "bfloat16"],
                _ => &["bf16", "bfloat16", "fp8"],
            };
            for (is_low_latency, has_nodes) in [(true, true), (true, false), (false, true), (false, false)] {
                let mut kinds = match (is_low_latency, has_nodes) {
                    (true, true) => {
                        vec![OperationKind::LowLatencyNodeExchange(phase), OperationKind::NodeExchange(phase)]
                    }
                    (true, false) => {
                        vec![OperationKind::LowLatencyExchange(phase), OperationKind::NormalExchange(phase)]
                    }
                    (false, true) => vec![OperationKind::NodeExchange(phase)],
                    (false, false) => vec![OperationKind::NormalExchange(phase)],
                };
                if self.framework == "trtllm" && !has_nodes {
                    kinds.insert(0, OperationKind::NvlinkExchange(phase));
                }
                if let Some(entry) = kinds.into_iter().find_map(|kind| self.find(kind, formats)) {
                    found.insert((ExchangeKind { is_low_latency, has_nodes }, phase), entry);
                }
            }
        }
        found
    }

    fn one_way_us(&self, load: &ExchangeLoad, phase: ExchangePhase) -> f64 {
        let node_limit = (self.is_deepseek && load.nodes > 4).then_some(4);
        let work = ExchangeWork {
            tokens: whole(load.tokens),
            hidden: load.hidden,
            top_k: load.top_k,
            experts: load.experts,
            ranks: load.ranks,
            nodes: load.nodes,
            node_limit,
            multiprocessors: EXCHANGE_MULTIPROCESSORS,
        };
        let skew = |rows: ExchangeRows| ExchangeRows {
            node: rows.node * load.imbalance,
            cross: rows.cross * load.node_imbalance,
        };
        match self.exchange_entry(load, phase).map(|entry| &entry.operation) {
            Some(Operation::LowLatencyExchange(kernel)) => {
                // A row per visit goes to a rank, so the fullest rank counts between nodes too.
                let rows = kernel.even_rows(&work);
                let rows =
                    ExchangeRows { node: rows.node * load.imbalance, cross: rows.cross * load.imbalance };
                kernel.time_of_rows_us(&work, rows, &self.hardware)
            }
            Some(Operation::NormalExchange(kernel)) => {
                kernel.time_of_rows_us(&work, skew(kernel.even_rows(&work)))
            }
            Some(Operation::NodeExchange(kernel)) => {
                kernel.time_of_rows_us(&work, skew(kernel.even_rows(&work)))
            }
            Some(Operation::NvlinkExchange(kernel)) => {
                kernel.time_of_rows_us(&work, skew(kernel.even_rows(&work)))
            }
            _ => self.exchange_by_network_us(load, phase),
        }
    }

    /// Returns the time of one way by the network's rates, if no exchange is measured: a row per visit.
    fn exchange_by_network_us(&self, load: &ExchangeLoad, phase: ExchangePhase) -> f64 {
        let bytes = match phase {
            ExchangePhase::Dispatch => load.hidden as f64 * (1.0 + 4.0 / 128.0),
            _ => 2.0 * load.hidden as f64,
        };
        let visits = load.tokens * load.top_k as f64;
        let per_node = load.ranks as f64 / load.nodes as f64;
        let inside = visits * (per_node - 1.0) / load.ranks as f64 * load.imbalance;
        let outside = visits * (1.0 - 1.0 / load.nodes as f64) * load.imbalance;
        let network = &self.network;
        let outside_us = if load.nodes > 1 { network.cross.exchange_us(1.0, outside * bytes) } else { 0.0 };
        network.node.exchange_us(1.0, inside * bytes).max(outside_us)
    }
}
