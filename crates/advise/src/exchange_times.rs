//! Times of the exchange of rows between ranks: all-to-all kernels, all tokens gathered on all ranks, or the
//! reduction of tensor parallelism.
//!
//! In: an [`ExchangeLoad`]. Out: microseconds of dispatch and combine. The fullest rank and node count.

use crate::model::ModelSpec;
use crate::parallelism::Parallelism;
use crate::step::Phase;
use crate::times::{LAUNCH_US, StepTimes, whole};
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
pub(crate) struct ExchangeLoad {
    /// Decode or prefill.
    pub(crate) phase: Phase,
    /// Tokens per rank.
    pub(crate) tokens: f64,
    /// Width of a token.
    pub(crate) hidden: u64,
    /// Experts per token.
    pub(crate) top_k: u64,
    /// Experts of the layer.
    pub(crate) experts: u64,
    /// Ranks.
    pub(crate) ranks: u64,
    /// Nodes.
    pub(crate) nodes: u64,
    /// Nodes that a token may visit, if the router limits them.
    pub(crate) node_limit: Option<u64>,
    /// Rows of the fullest rank over the mean.
    pub(crate) imbalance: f64,
    /// Rows of the fullest node over the mean.
    pub(crate) node_imbalance: f64,
}

impl ExchangeLoad {
    /// Returns the load of `tokens` tokens per rank if ranks and nodes have equal rows. `linked` GPUs share a
    /// node.
    pub(crate) fn even(
        model: &ModelSpec,
        parallel: &Parallelism,
        linked: u64,
        phase: Phase,
        tokens: f64,
    ) -> Self {
        Self {
            phase,
            tokens,
            hidden: model.moe.hidden,
            top_k: model.moe.top_k as u64,
            experts: model.moe.experts as u64,
            ranks: parallel.ranks,
            nodes: parallel.nodes(linked),
            node_limit: model.node_limit,
            imbalance: 1.0,
            node_imbalance: 1.0,
        }
    }

    /// Returns the bytes of the tokens of all ranks in bfloat16.
    pub(crate) fn all_bytes(&self) -> f64 {
        self.tokens * self.ranks as f64 * 2.0 * self.hidden as f64
    }
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

/// Measured operations of the exchange.
#[derive(Debug, Clone, Default)]
pub(crate) struct ExchangeEntries {
    /// All-to-all kernels by kind and direction.
    all_to_all: BTreeMap<(ExchangeKind, ExchangePhase), OperationEntry>,
    /// The all-gather of tokens, and the reduce-scatter of results.
    gather: [Option<OperationEntry>; 2],
    /// The all-reduce kernels of all frameworks and of NCCL.
    reductions: Vec<OperationEntry>,
}

impl ExchangeEntries {
    /// Finds the measured operations of all kinds.
    pub(crate) fn find(times: &StepTimes) -> Self {
        let collective = |kind| times.find(OperationKind::Collective(kind), &["half", "bfloat16", "float16"]);
        Self {
            all_to_all: find_all_to_all(times),
            gather: [CollectiveKind::AllGather, CollectiveKind::ReduceScatter].map(collective),
            reductions: times.find_all(OperationKind::Collective(CollectiveKind::AllReduce)),
        }
    }
}

fn find_all_to_all(times: &StepTimes) -> BTreeMap<(ExchangeKind, ExchangePhase), OperationEntry> {
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
            if times.framework == "trtllm" && !has_nodes {
                kinds.insert(0, OperationKind::NvlinkExchange(phase));
            }
            if let Some(entry) = kinds.into_iter().find_map(|kind| times.find(kind, formats)) {
                found.insert((ExchangeKind { is_low_latency, has_nodes }, phase), entry);
            }
        }
    }
    found
}

impl StepTimes {
    /// Returns the time in which all ranks learn the counts of all ranks.
    pub(crate) fn counts_us(&self, model: &ModelSpec, parallel: &Parallelism) -> f64 {
        let load = ExchangeLoad::even(model, parallel, self.linked(), Phase::Decode { context: 1 }, 0.0);
        // A flag for every expert is what a low-latency exchange without rows sends.
        self.one_way_us(&load, ExchangePhase::Dispatch)
    }

    /// Returns the time of dispatch and combine of one layer.
    pub(crate) fn exchange_us(&self, load: &ExchangeLoad) -> f64 {
        match self.exchange {
            ExchangeMode::AllToAll => self.all_to_all_us(load),
            ExchangeMode::Gather => self.gather_us(load),
            ExchangeMode::Fastest => self.all_to_all_us(load).min(self.gather_us(load)),
        }
    }

    fn is_gathered(&self, load: &ExchangeLoad) -> bool {
        match self.exchange {
            ExchangeMode::AllToAll => false,
            ExchangeMode::Gather => true,
            ExchangeMode::Fastest => self.gather_us(load) < self.all_to_all_us(load),
        }
    }

    /// Returns the measured operation that begins an exchange. `None` if the network's rates give its time.
    pub(crate) fn exchange_source(
        &self,
        load: &ExchangeLoad,
        parallel: &Parallelism,
    ) -> Option<&OperationEntry> {
        if parallel.has_all_tokens() {
            return self.fastest_reduction(load.ranks, load.all_bytes()).map(|(_, entry)| entry);
        }
        if self.is_gathered(load) {
            return self.exchanges.gather[0].as_ref().filter(|_| load.nodes == 1);
        }
        self.all_to_all_entry(load, ExchangePhase::Dispatch)
    }

    /// Returns the time to add up `bytes` of every one of `gpus` GPUs on all of them.
    pub(crate) fn all_reduce_us(&self, gpus: u64, bytes: f64) -> f64 {
        if gpus <= 1 {
            return 0.0;
        }
        self.fastest_reduction(gpus, bytes).map_or_else(
            || {
                let share = 2.0 * (gpus - 1) as f64 / gpus as f64;
                let link = &self.network.node;
                2.0 * LAUNCH_US + share * bytes / (link.gb_s * 1e3)
            },
            |(us, _)| us,
        )
    }

    /// Returns the measured reduction that takes least time, with its time. Frameworks take their own kernel
    /// for small sizes and NCCL for large ones.
    fn fastest_reduction(&self, gpus: u64, bytes: f64) -> Option<(f64, &OperationEntry)> {
        let work = OperationWork::Collective(CollectiveWork { bytes: whole(bytes), ranks: gpus });
        let all = self.exchanges.reductions.iter();
        all.filter_map(|entry| self.time(Some(entry), &work).map(|us| (us, entry)))
            .min_by(|(first, _), (second, _)| first.total_cmp(second))
    }

    /// Returns the time in which all ranks gather all tokens in bfloat16, and add up and scatter the results.
    fn gather_us(&self, load: &ExchangeLoad) -> f64 {
        let bytes = load.all_bytes();
        let work = OperationWork::Collective(CollectiveWork { bytes: whole(bytes), ranks: load.ranks });
        let of = |entry: &Option<OperationEntry>| {
            let inside = entry.as_ref().filter(|_| load.nodes == 1);
            self.time(inside, &work).unwrap_or_else(|| {
                // Most of the data comes from other nodes.
                let sent = bytes * (load.ranks - 1) as f64 / load.ranks as f64;
                let link = if load.nodes > 1 { &self.network.cross } else { &self.network.node };
                link.alpha_us + sent / (link.gb_s * 1e3)
            })
        };
        self.exchanges.gather.iter().map(of).sum()
    }

    fn all_to_all_us(&self, load: &ExchangeLoad) -> f64 {
        self.one_way_us(load, ExchangePhase::Dispatch) + self.one_way_us(load, ExchangePhase::Combine)
    }

    /// Returns the measured all-to-all kernel for a load, if there is one.
    fn all_to_all_entry(&self, load: &ExchangeLoad, phase: ExchangePhase) -> Option<&OperationEntry> {
        let is_low_latency = !load.phase.is_prefill() && load.tokens <= LOW_LATENCY_TOKENS;
        let kind = ExchangeKind { is_low_latency, has_nodes: load.nodes > 1 };
        self.exchanges.all_to_all.get(&(kind, phase))
    }

    fn one_way_us(&self, load: &ExchangeLoad, phase: ExchangePhase) -> f64 {
        let work = ExchangeWork {
            tokens: whole(load.tokens),
            hidden: load.hidden,
            top_k: load.top_k,
            experts: load.experts,
            ranks: load.ranks,
            nodes: load.nodes,
            node_limit: load.node_limit,
            multiprocessors: EXCHANGE_MULTIPROCESSORS,
        };
        let skew = |rows: ExchangeRows| ExchangeRows {
            node: rows.node * load.imbalance,
            cross: rows.cross * load.node_imbalance,
        };
        match self.all_to_all_entry(load, phase).map(|entry| &entry.operation) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel::cluster::Network;
    use evenkeel_cost::CostDatabase;

    fn times(model: &ModelSpec, framework: &str) -> StepTimes {
        let database = CostDatabase::builtin("h100").unwrap();
        let network = Network::of_gpu("h100").unwrap();
        StepTimes::new(model, "h100".parse().unwrap(), network, Some(database), framework, 2.0)
    }

    fn known(name: &str) -> ModelSpec {
        ModelSpec::of_known(name.parse().unwrap()).unwrap()
    }

    #[test]
    fn the_source_is_the_exchange_that_runs() {
        let model = known("qwen3-235b-a22b");
        let fastest = times(&model, "vllm");
        let phase = Phase::Decode { context: 1_000 };
        let mut gathered = 0;
        for tokens in [1.0, 16.0, 256.0, 4_096.0] {
            for ranks in [4, 8, 32] {
                let parallel = Parallelism { ranks, attention_tp: 1, pp: 1, expert_tp: 1 };
                let load = ExchangeLoad::even(&model, &parallel, 8, phase, tokens);
                let [all_to_all, gather] = [ExchangeMode::AllToAll, ExchangeMode::Gather].map(|mode| {
                    let times = fastest.clone().with_exchange(mode);
                    (times.exchange_us(&load), times.exchange_source(&load, &parallel).cloned())
                });
                let (us, source) = if gather.0 < all_to_all.0 { gather } else { all_to_all };
                gathered += usize::from(source.as_ref().is_some_and(|entry| entry.framework == "nccl"));
                assert!((fastest.exchange_us(&load) - us).abs() < 1e-9);
                assert_eq!(fastest.exchange_source(&load, &parallel), source.as_ref(), "{load:?}");
            }
        }
        assert!((1..12).contains(&gathered), "{gathered}");
    }

    #[test]
    fn a_reduction_has_a_source_and_an_error() {
        let model = known("qwen3-235b-a22b");
        let parallel = Parallelism { ranks: 8, attention_tp: 8, pp: 1, expert_tp: 8 };
        let times = times(&model, "sglang");
        let load = ExchangeLoad::even(&model, &parallel, 8, Phase::Decode { context: 1_000 }, 8.0);
        let sources = times.sources(&model, &load, &parallel);
        let exchange = sources.iter().find(|source| source.part == "exchange").unwrap();
        assert!(exchange.median_error > 0.0 && exchange.median_error < 0.5, "{exchange:?}");
        // A single GPU exchanges nothing.
        let alone = Parallelism { ranks: 1, attention_tp: 1, expert_tp: 1, ..parallel };
        let load = ExchangeLoad::even(&model, &alone, 8, Phase::Decode { context: 1_000 }, 8.0);
        assert!(times.sources(&model, &load, &alone).iter().all(|source| source.part != "exchange"));
    }

    #[test]
    fn limited_groups_shorten_the_exchange_between_nodes() {
        assert_eq!(known("kimi-k2").node_limit, None);
        let deepseek = known("deepseek-v3");
        let times = times(&deepseek, "sglang");
        let parallel = Parallelism { ranks: 64, attention_tp: 1, pp: 1, expert_tp: 1 };
        let load = ExchangeLoad::even(&deepseek, &parallel, 8, Phase::Prefill { prompt: 4_096 }, 4_096.0);
        let free = ExchangeLoad { node_limit: None, ..load };
        assert!(times.exchange_us(&load) < 0.9 * times.exchange_us(&free));
    }
}
