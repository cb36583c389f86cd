//! How long a layer takes, from who sends what to whom and what every rank serves.
//!
//! In: a [`Traffic`] and the quotas of a batch. Out: a [`LayerTime`]. Between two exchanges everybody waits for the slowest rank:
//! a layer is the sum of the counts' exchange, dispatch, the experts of the slowest rank, combine, and what does not depend on
//! the plan. Where two halves of a batch take turns, one computing while the other communicates, it is twice the longer of
//! both.

use super::traffic::{Flow, OneCopyPer, RankFlow, Traffic};
use crate::cluster::{Cluster, Link, Network};
use crate::split::Roofline;
use std::str::FromStr;

/// What the numbers of a row are sent in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// 8-bit floating point with a scale of four bytes for every 128 numbers, as DeepSeek-V3 sends it.
    Fp8,
    /// bfloat16.
    Bf16,
    /// 32-bit floating point.
    F32,
}

impl RowFormat {
    /// Bytes of a row of so many numbers.
    pub fn bytes(self, width: u64) -> u64 {
        match self {
            RowFormat::Fp8 => width + 4 * width.div_ceil(128),
            RowFormat::Bf16 => 2 * width,
            RowFormat::F32 => 4 * width,
        }
    }
}

impl FromStr for RowFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fp8" => Ok(RowFormat::Fp8),
            "bf16" => Ok(RowFormat::Bf16),
            "f32" => Ok(RowFormat::F32),
            _ => Err(format!("\"{text}\": expected fp8, bf16 or f32")),
        }
    }
}

/// Bytes of what travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowBytes {
    /// A row on its way to its experts.
    pub dispatch: u64,
    /// A result on its way back.
    pub combine: u64,
    /// What goes along with a row for every visit: slot and weight.
    pub visit: u64,
    /// A rank's count of one expert.
    pub count: u64,
}

impl RowBytes {
    /// Rows of this width, dispatched and combined in these formats; slots (8), weights (4) and counts (8) as
    /// [`exec`](crate::exec) sends them.
    pub fn of(width: u64, [dispatch, combine]: [RowFormat; 2]) -> Self {
        Self { dispatch: dispatch.bytes(width), combine: combine.bytes(width), visit: 12, count: 8 }
    }
}

/// What a layer's time is made of, beside the batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Pace {
    /// What lies between the ranks.
    pub network: Network,
    /// How often a row is sent.
    pub one_copy: OneCopyPer,
    /// What it weighs.
    pub bytes: RowBytes,
    /// What an expert takes.
    pub expert: Roofline,
    /// Routed experts of a layer, `E`.
    pub experts: usize,
    /// Of them, those that a token visits.
    pub top_k: usize,
    /// Shared experts, which every rank runs on its own tokens.
    pub shared: usize,
    /// MoE layers of the model, to which those of the trace are scaled.
    pub layers: usize,
    /// Microseconds of a layer that do not depend on the plan: attention, router, norms.
    pub other_us: f64,
    /// Whether the halves of a batch take turns.
    pub overlap: bool,
}

/// Microseconds of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LayerTime {
    /// Exchange of the counts.
    pub counts: f64,
    /// Rows to their experts.
    pub dispatch: f64,
    /// Experts of the slowest rank.
    pub experts: f64,
    /// Results back.
    pub combine: f64,
    /// Shared experts and what was given.
    pub other: f64,
    /// All of it, overlapped where that was asked for.
    pub total: f64,
    /// What of that is communication that nothing hides.
    pub exposed: f64,
    /// The total if every rank had the mean of all.
    pub balanced: f64,
}

impl LayerTime {
    /// Exchanges, hidden or not.
    pub fn communication(&self) -> f64 {
        self.counts + self.dispatch + self.combine
    }
}

impl Pace {
    /// The time of a batch: its traffic, tokens per slot `[R * S]`, tokens of all ranks; `planned` says whether ranks have to tell
    /// each other their counts.
    pub fn layer(
        &self,
        cluster: &Cluster,
        traffic: &Traffic,
        quotas: &[u64],
        tokens: f64,
        planned: bool,
    ) -> LayerTime {
        let parts = if self.overlap { 2.0 } else { 1.0 };
        let each = tokens / cluster.ranks() as f64;
        let shared = self.shared as f64 * self.expert_us((each / parts).ceil() as u64);
        let other = self.other_us / parts + shared;
        let counts = if planned { self.counts_us(cluster, traffic.per_node()) } else { 0.0 };
        let slots = cluster.slots_per_rank().max(1);
        let of_rank = |quotas: &[u64]| -> f64 {
            quotas.iter().map(|&quota| self.expert_us((quota as f64 / parts).ceil() as u64)).sum()
        };
        let experts: Vec<f64> = quotas.chunks(slots).map(of_rank).collect();
        let mean_experts = experts.iter().sum::<f64>() / experts.len().max(1) as f64;
        let experts = experts.into_iter().fold(0.0, f64::max);
        let exchange = |bytes: u64, visit: u64| {
            let us = |ranks: &[RankFlow]| self.exchange_us(cluster, traffic, ranks, [bytes, visit], parts);
            (us(&traffic.ranks), us(&vec![traffic.mean(); traffic.ranks.len()]))
        };
        let (dispatch, mean_dispatch) = exchange(self.bytes.dispatch, self.bytes.visit);
        let (combine, mean_combine) = exchange(self.bytes.combine, 0);
        let total = |communication: f64, computation: f64| {
            if self.overlap { 2.0 * communication.max(computation) } else { communication + computation }
        };
        let all = total(counts + dispatch + combine, experts + other);
        LayerTime {
            counts: counts * parts,
            dispatch: dispatch * parts,
            experts: experts * parts,
            combine: combine * parts,
            other: other * parts,
            total: all,
            exposed: all - (experts + other) * parts,
            balanced: total(counts + mean_dispatch + mean_combine, mean_experts + other),
        }
    }

    fn expert_us(&self, tokens: u64) -> f64 {
        self.expert.cost(tokens).unwrap_or(u64::MAX) as f64 / 1e6
    }

    /// One part of a batch: rows and what goes along with each of their visits.
    fn exchange_us(
        &self,
        cluster: &Cluster,
        traffic: &Traffic,
        ranks: &[RankFlow],
        [row, visit]: [u64; 2],
        parts: f64,
    ) -> f64 {
        let per_node = traffic.per_node();
        let bytes = |flow: [Flow; 2]| {
            let of = |flow: Flow| (flow.rows * row as f64 + flow.visits * visit as f64) / parts;
            of(flow[0]).max(of(flow[1]))
        };
        let inside = per_node - 1;
        let outside = match traffic.one_copy() {
            OneCopyPer::Node => cluster.nodes() - 1,
            _ => cluster.ranks() - per_node,
        };
        let link = |link: &Link, messages: usize, flow: [Flow; 2]| link.us(messages as f64, bytes(flow));
        let mut slowest: f64 = 0.0;
        for node in ranks.chunks(per_node) {
            for rank in node {
                let us = link(&self.network.node, inside, rank.node);
                slowest = slowest.max(us).max(link(&self.network.cross, outside, rank.cross));
            }
            let together = |flows: fn(&RankFlow) -> [Flow; 2]| {
                let mut sum = [Flow::default(); 2];
                for rank in node {
                    sum.iter_mut().zip(flows(rank)).for_each(|(sum, flow)| *sum += flow);
                }
                bytes(sum)
            };
            let inside = self.network.node.node_us(together(|rank| rank.node));
            slowest = slowest.max(inside).max(self.network.cross.node_us(together(|rank| rank.cross)));
        }
        slowest
    }

    /// Everybody's counts to everybody; with one copy per node first between the ranks of the same place, then inside nodes.
    fn counts_us(&self, cluster: &Cluster, per_node: usize) -> f64 {
        let (ranks, nodes) = (cluster.ranks(), cluster.nodes());
        let own = (self.bytes.count * self.experts as u64) as f64;
        let us = |link: &Link, peers: usize, each: f64, sharing: usize| {
            let bytes = peers as f64 * each;
            link.us(peers as f64, bytes).max(link.node_us(bytes * sharing as f64))
        };
        let (node, cross) = (&self.network.node, &self.network.cross);
        match self.one_copy {
            OneCopyPer::Node => {
                us(cross, nodes - 1, own, per_node) + us(node, per_node - 1, own * nodes as f64, per_node)
            }
            _ => us(cross, ranks - per_node, own, per_node).max(us(node, per_node - 1, own, per_node)),
        }
    }
}
