//! The time of a layer, from its traffic and the loads of its ranks.
//!
//! Input is a [`RowTraffic`] and the quotas of a batch. Output is a [`LayerTime`]. Between two exchanges all
//! ranks wait for the slowest one. A layer is therefore a sum: exchange of counts, dispatch, experts of the
//! slowest rank, combine, and time independent of the plan. With overlap, one half of a batch computes while
//! the other half communicates, and the layer takes twice the longer of both.

use super::traffic::{DuplexFlow, RankFlow, RowAggregation, RowTraffic, TrafficFlow};
use evenkeel::cluster::{Cluster, LinkParameters, Network};
use evenkeel::model::{MoeModel, Precision};
use evenkeel::split::CostModel;
use std::str::FromStr;
use std::sync::Arc;
use thiserror::Error;

/// The number format of a row.
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
    /// Returns the bytes of a row of `width` numbers.
    pub fn row_bytes(self, width: u64) -> u64 {
        match self {
            RowFormat::Fp8 => width + 4 * width.div_ceil(128),
            RowFormat::Bf16 => 2 * width,
            RowFormat::F32 => 4 * width,
        }
    }
}

/// Error of an unknown name of a [`RowFormat`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("\"{0}\": expected fp8, bf16 or f32")]
pub struct UnknownRowFormat(String);

impl FromStr for RowFormat {
    type Err = UnknownRowFormat;

    fn from_str(text: &str) -> Result<Self, UnknownRowFormat> {
        match text {
            "fp8" => Ok(RowFormat::Fp8),
            "bf16" => Ok(RowFormat::Bf16),
            "f32" => Ok(RowFormat::F32),
            _ => Err(UnknownRowFormat(text.to_owned())),
        }
    }
}

/// The number formats of the rows of a layer. The text form is `fp8,bf16`, or one name for both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowFormats {
    /// The format of rows on their way to their experts.
    pub dispatch: RowFormat,
    /// The format of results on their way back.
    pub combine: RowFormat,
}

impl RowFormats {
    /// Returns the usual formats for weights of a precision: fp8 and bf16, or bf16 both ways.
    pub fn for_precision(precision: Precision) -> Self {
        let dispatch = match precision {
            Precision::Fp8 => RowFormat::Fp8,
            _ => RowFormat::Bf16,
        };
        Self { dispatch, combine: RowFormat::Bf16 }
    }
}

impl FromStr for RowFormats {
    type Err = UnknownRowFormat;

    fn from_str(text: &str) -> Result<Self, UnknownRowFormat> {
        let (dispatch, combine) = text.split_once(',').unwrap_or((text, text));
        Ok(Self { dispatch: dispatch.trim().parse()?, combine: combine.trim().parse()? })
    }
}

/// The bytes of each message part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowBytes {
    /// A row on its way to its experts.
    pub dispatch: u64,
    /// A result on its way back.
    pub combine: u64,
    /// The data that accompanies a row for every visit: slot and weight.
    pub visit: u64,
    /// A rank's count of one expert.
    pub count: u64,
}

impl RowBytes {
    /// Returns the bytes for rows of this width. Slots and weights (8 + 4 bytes) and counts (8 bytes) have
    /// the sizes that the executor sends.
    pub fn for_width(width: u64, formats: RowFormats) -> Self {
        let RowFormats { dispatch, combine } = formats;
        Self { dispatch: dispatch.row_bytes(width), combine: combine.row_bytes(width), visit: 12, count: 8 }
    }
}

/// The parameters of a layer's time, apart from the batch.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StepCostModel {
    /// The network between the ranks.
    pub network: Network,
    /// The number of times that a row is sent.
    pub one_copy: RowAggregation,
    /// The bytes of each message part.
    pub bytes: RowBytes,
    /// The time of a rank's experts.
    pub expert: Arc<dyn CostModel>,
    /// The number of routed experts of a layer, `E`.
    pub experts: usize,
    /// The number of routed experts that a token visits.
    pub top_k: usize,
    /// The number of shared experts, which every rank runs on its own tokens.
    pub shared: usize,
    /// The number of MoE layers of the model, to which those of the trace are scaled.
    pub layers: usize,
    /// Microseconds of a layer that do not depend on the plan: attention, router, norms.
    pub other_us: f64,
    /// Flag that is set if the halves of a batch overlap.
    pub overlap: bool,
}

/// The times of one layer, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct LayerTime {
    /// The exchange of the counts.
    pub counts: f64,
    /// The rows on their way to their experts.
    pub dispatch: f64,
    /// The experts of the slowest rank.
    pub experts: f64,
    /// The results on their way back.
    pub combine: f64,
    /// The shared experts, and `other_us`.
    pub other: f64,
    /// The total, with overlap if requested.
    pub total: f64,
    /// The exposed communication in the total.
    pub exposed: f64,
    /// The total if every rank had the mean load.
    pub balanced: f64,
}

impl LayerTime {
    /// Returns the time of all exchanges, hidden or not.
    pub fn communication_us(&self) -> f64 {
        self.counts + self.dispatch + self.combine
    }
}

impl StepCostModel {
    /// Returns the parameters for a model on a network, where `expert` is the time of its experts. Rows have
    /// the formats of [`RowFormats::for_precision`], and one row goes to every rank that serves a token.
    pub fn for_model(network: Network, model: &MoeModel, expert: Arc<dyn CostModel>) -> Self {
        Self {
            network,
            one_copy: RowAggregation::Rank,
            bytes: RowBytes::for_width(model.hidden, RowFormats::for_precision(model.precision)),
            expert,
            experts: model.experts,
            top_k: model.top_k,
            shared: model.shared,
            layers: model.layers,
            other_us: 0.0,
            overlap: false,
        }
    }

    /// Sets [`Self::one_copy`](#structfield.one_copy).
    #[must_use]
    pub fn one_copy(mut self, one_copy: RowAggregation) -> Self {
        self.one_copy = one_copy;
        self
    }

    /// Sets [`Self::bytes`](#structfield.bytes).
    #[must_use]
    pub fn bytes(mut self, bytes: RowBytes) -> Self {
        self.bytes = bytes;
        self
    }

    /// Sets [`Self::experts`](#structfield.experts).
    #[must_use]
    pub fn experts(mut self, experts: usize) -> Self {
        self.experts = experts;
        self
    }

    /// Sets [`Self::top_k`](#structfield.top_k).
    #[must_use]
    pub fn top_k(mut self, top_k: usize) -> Self {
        self.top_k = top_k;
        self
    }

    /// Sets [`Self::shared`](#structfield.shared).
    #[must_use]
    pub fn shared(mut self, shared: usize) -> Self {
        self.shared = shared;
        self
    }

    /// Sets [`Self::layers`](#structfield.layers).
    #[must_use]
    pub fn layers(mut self, layers: usize) -> Self {
        self.layers = layers;
        self
    }

    /// Sets [`Self::other_us`](#structfield.other_us).
    #[must_use]
    pub fn other_us(mut self, other_us: f64) -> Self {
        self.other_us = other_us;
        self
    }

    /// Sets [`Self::overlap`](#structfield.overlap).
    #[must_use]
    pub fn overlap(mut self, overlap: bool) -> Self {
        self.overlap = overlap;
        self
    }

    /// Returns the time of a batch from its traffic, the tokens per slot `[R * S]`, and the tokens of all
    /// ranks. `planned` states whether ranks exchange their counts.
    pub fn layer_time(
        &self,
        cluster: &Cluster,
        traffic: &RowTraffic,
        quotas: &[u64],
        tokens: f64,
        planned: bool,
    ) -> LayerTime {
        let parts = if self.overlap { 2.0 } else { 1.0 };
        let each = tokens / cluster.ranks() as f64;
        let shared = self.shared as f64 * self.expert_us((each / parts).ceil() as u64);
        let other = self.other_us / parts + shared;
        let counts = if planned { self.counts_us(cluster, traffic.ranks_per_node()) } else { 0.0 };
        let slots = cluster.slots_per_rank().max(1);
        let of_rank = |quotas: &[u64]| -> f64 {
            let quotas: Vec<u64> = quotas.iter().map(|&quota| (quota as f64 / parts).ceil() as u64).collect();
            self.expert.rank_ps(&quotas, 1) as f64 / 1e6
        };
        let experts: Vec<f64> = quotas.chunks(slots).map(of_rank).collect();
        let mean_experts = experts.iter().sum::<f64>() / experts.len().max(1) as f64;
        let experts = experts.into_iter().fold(0.0, f64::max);
        let exchange = |bytes: u64, visit: u64| {
            let us = |ranks: &[RankFlow]| self.exchange_us(cluster, traffic, ranks, [bytes, visit], parts);
            (us(&traffic.ranks), us(&vec![traffic.mean_flow(); traffic.ranks.len()]))
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
        self.expert.expert_ps(tokens) as f64 / 1e6
    }

    /// Returns the time to exchange one part of a batch: the rows, and the data of each of their visits.
    fn exchange_us(
        &self,
        cluster: &Cluster,
        traffic: &RowTraffic,
        ranks: &[RankFlow],
        [row, visit]: [u64; 2],
        parts: f64,
    ) -> f64 {
        let per_node = traffic.ranks_per_node();
        let bytes = |flow: DuplexFlow| {
            let of = |flow: TrafficFlow| (flow.rows * row as f64 + flow.visits * visit as f64) / parts;
            of(flow.sent).max(of(flow.received))
        };
        let inside = per_node - 1;
        let outside = match traffic.one_copy() {
            RowAggregation::Node => cluster.nodes() - 1,
            _ => cluster.ranks() - per_node,
        };
        let link = |link: &LinkParameters, messages: usize, flow: DuplexFlow| {
            link.exchange_us(messages as f64, bytes(flow))
        };
        let mut slowest: f64 = 0.0;
        for node in ranks.chunks(per_node) {
            for rank in node {
                let us = link(&self.network.node, inside, rank.node);
                slowest = slowest.max(us).max(link(&self.network.cross, outside, rank.cross));
            }
            let together = |flow_of: fn(&RankFlow) -> DuplexFlow| {
                let mut sum = DuplexFlow::default();
                node.iter().for_each(|rank| sum += flow_of(rank));
                bytes(sum)
            };
            let inside = self.network.node.node_us(together(|rank| rank.node));
            slowest = slowest.max(inside).max(self.network.cross.node_us(together(|rank| rank.cross)));
        }
        slowest
    }

    /// Returns the time of the all-gather of counts. With one copy per node, ranks at the same position of
    /// their nodes exchange first, then the ranks inside each node.
    fn counts_us(&self, cluster: &Cluster, per_node: usize) -> f64 {
        let (ranks, nodes) = (cluster.ranks(), cluster.nodes());
        let own = (self.bytes.count * self.experts as u64) as f64;
        let us = |link: &LinkParameters, peers: usize, each: f64, sharing: usize| {
            let bytes = peers as f64 * each;
            link.exchange_us(peers as f64, bytes).max(link.node_us(bytes * sharing as f64))
        };
        let (node, cross) = (&self.network.node, &self.network.cross);
        match self.one_copy {
            RowAggregation::Node => {
                us(cross, nodes - 1, own, per_node) + us(node, per_node - 1, own * nodes as f64, per_node)
            }
            _ => us(cross, ranks - per_node, own, per_node).max(us(node, per_node - 1, own, per_node)),
        }
    }
}
