//! Time of one step: a decode step of all requests, or a prefill pass over prompts.
//!
//! In: a model, its division among GPUs, the tokens of a GPU, and the balance of the experts. Out: a
//! [`StepTime`] with its parts. A layer is attention, exchange, experts, exchange; with overlap, one half of
//! the batch computes while the other half communicates, and a part of the shorter one is hidden.

use crate::balance::BalanceFigures;
use crate::exchange_times::ExchangeLoad;
use crate::model::{Attention, ModelSpec};
use crate::parallelism::Parallelism;
use crate::times::{GemmShape, StepTimes};
use evenkeel::split::PLANNING_US;
use serde::Serialize;

/// Work of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// One token of every request (or a few drafts), with this mean context.
    Decode {
        /// Tokens of context per request.
        context: u64,
    },
    /// Prompts of this length.
    Prefill {
        /// Tokens of a prompt.
        prompt: u64,
    },
}

impl Phase {
    pub(crate) fn is_prefill(self) -> bool {
        matches!(self, Self::Prefill { .. })
    }
}

/// Work of one GPU in a pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepWork {
    /// Decode or prefill.
    pub(crate) phase: Phase,
    /// Tokens per GPU. An attention group of `t` GPUs works on `t` times as many.
    pub(crate) tokens: f64,
    /// Tokens per request and step: 1, or more with speculative drafts.
    pub(crate) tokens_per_request: f64,
    /// Tiles on which attention runs one after the other, `G`.
    pub(crate) attention_tiles: u64,
    /// Load of the fullest attention group over the mean.
    pub(crate) attention_imbalance: f64,
    /// Flag that is set if two halves of the batch overlap.
    pub(crate) overlap: bool,
    /// Flag that is set if every batch is split by its counts.
    pub(crate) planned: bool,
    /// Bytes of a number in the key-value cache.
    pub(crate) kv_bytes: f64,
}

/// Parts of a step's time, in milliseconds. The parts add up to the step.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct StepTime {
    /// Attention with its projections.
    pub attention_ms: f64,
    /// Dense layers, shared experts, router, norms, embedding, head, and reductions of tensor parallelism.
    pub dense_ms: f64,
    /// Experts at the mean load.
    pub experts_ms: f64,
    /// Exchange of rows at the mean load, as far as it is not hidden.
    pub exchange_ms: f64,
    /// Wait for the ranks with more than the mean load, in experts and exchange.
    pub imbalance_ms: f64,
    /// Counts and splits of batches.
    pub planning_ms: f64,
    /// Wait for weights that are read from the host, as far as nothing hides it.
    pub streaming_ms: f64,
}

impl StepTime {
    /// Adds the time to read `bytes` at `gb_s`, as far as it exceeds the step.
    #[must_use]
    pub fn with_streamed(self, bytes: f64, gb_s: f64) -> Self {
        Self { streaming_ms: (bytes / (gb_s * 1e6) - self.total_ms()).max(0.0), ..self }
    }

    /// Returns the time of the step, in milliseconds.
    pub fn total_ms(&self) -> f64 {
        self.parts().iter().map(|(_, ms)| ms).sum()
    }

    /// Returns the parts in milliseconds, with their names.
    pub fn parts(&self) -> [(&'static str, f64); 7] {
        [
            ("attention", self.attention_ms),
            ("dense", self.dense_ms),
            ("experts", self.experts_ms),
            ("exchange", self.exchange_ms),
            ("imbalance", self.imbalance_ms),
            ("planning", self.planning_ms),
            ("streaming", self.streaming_ms),
        ]
    }
}

/// Share of the shorter one of computation and exchange that two overlapping half batches hide. Both share
/// multiprocessors and memory, so that it is not all. It is fitted to the gains of two-batch overlap that
/// LMSYS published on 5 May 2025: 27 to 35 % in prefill, and 25.5 % in decode with 256 requests per GPU.
const HIDDEN_SHARE: f64 = 0.5;

/// Times of the parts of one layer for a part of a batch, in microseconds.
#[derive(Debug, Clone, Copy)]
struct LayerParts {
    attention: f64,
    dense: f64,
    experts: f64,
    exchange: f64,
}

/// Returns the time of a pass. `figures` are those of the batch of all ranks, or of half of it with overlap.
pub(crate) fn step_time(
    model: &ModelSpec,
    parallel: &Parallelism,
    times: &StepTimes,
    work: &StepWork,
    figures: &BalanceFigures,
) -> StepTime {
    let halves = if work.overlap { 2.0 } else { 1.0 };
    let part = StepWork { tokens: work.tokens / halves, ..*work };
    let attention = attention_us(model, parallel, times, &part);
    let dense = dense_part_us(model, parallel, times, part.tokens);
    let moe_layers = model.moe.layers as f64;
    let of = |experts: f64, imbalance: f64, node_imbalance: f64| LayerParts {
        attention,
        dense,
        experts,
        exchange: exchange_us(model, parallel, times, &part, [imbalance, node_imbalance]),
    };
    let real = of(figures.experts_us, figures.imbalance, figures.node_imbalance);
    let even = of(figures.even_us, 1.0, 1.0);
    let layer_us = |parts: &LayerParts| {
        let compute = parts.attention + parts.dense + parts.experts;
        let hidden = if work.overlap { HIDDEN_SHARE * compute.min(parts.exchange) } else { 0.0 };
        halves * (compute + parts.exchange - hidden)
    };
    let compute = halves * (even.attention + even.dense + even.experts);
    let whole = StepWork { overlap: false, ..*work };
    let dense_layers = model.dense_layers as f64;
    let dense_attention = attention_us(model, parallel, times, &whole);
    let dense_layer = dense_layer_us(model, parallel, times, work.tokens);
    let planning = if work.planned { PLANNING_US + times.counts_us(model, parallel) } else { 0.0 };
    let ms = |us: f64| us / 1e3;
    StepTime {
        attention_ms: ms(moe_layers * halves * even.attention + dense_layers * dense_attention),
        dense_ms: ms(moe_layers * halves * even.dense
            + dense_layers * dense_layer
            + ends_us(model, parallel, times, work)),
        experts_ms: ms(moe_layers * halves * even.experts),
        exchange_ms: ms(moe_layers * (layer_us(&even) - compute).max(0.0)),
        imbalance_ms: ms(moe_layers * (layer_us(&real) - layer_us(&even)).max(0.0)),
        planning_ms: ms(moe_layers * planning),
        streaming_ms: 0.0,
    }
}

/// Returns the time of one layer's attention with its projections, reduction included.
fn attention_us(model: &ModelSpec, parallel: &Parallelism, times: &StepTimes, work: &StepWork) -> f64 {
    let tp = parallel.attention_tp;
    let tiles = work.attention_tiles.max(1) as f64;
    // The tokens of an attention group, in one tile.
    let tokens = work.tokens * tp as f64 / tiles;
    let hidden = model.moe.hidden;
    let bytes = model.dense_weight_bytes();
    let kernel = times.attention_us(&model.attention, tp, work, tokens) * work.attention_imbalance;
    let gemm = |n: u64, k: u64| times.gemm_us(GemmShape { m: tokens, n, k }, bytes);
    let projections = match model.attention {
        _ if times.has_attention_block(work) => 0.0,
        Attention::Grouped { heads, kv_heads, head_dim, .. } => {
            let of_gpu = heads.div_ceil(tp) + 2 * kv_heads.div_ceil(tp);
            gemm(of_gpu * head_dim, hidden) + gemm(hidden, heads.div_ceil(tp) * head_dim)
        }
        Attention::Latent { heads, query_rank, kv_rank, rope, key_dim, value_dim } => {
            let own = heads.div_ceil(tp);
            let query = own * (key_dim + rope);
            let down = match query_rank {
                0 => gemm(query + kv_rank + rope, hidden),
                rank => gemm(rank + kv_rank + rope, hidden) + gemm(query, rank),
            };
            let up = match work.phase {
                // Decode multiplies the query and the result by the two halves of the up-projection.
                Phase::Decode { .. } => times.latent_products_us(own, tokens),
                Phase::Prefill { .. } => gemm(own * (key_dim + value_dim), kv_rank),
            };
            down + up + gemm(hidden, own * value_dim)
        }
    };
    let reduction = times.all_reduce_us(tp, tokens * 2.0 * hidden as f64);
    tiles * (kernel + projections + reduction)
}

/// Returns the time of the parts of an MoE layer that run on a GPU's own tokens: norms, router, shared
/// experts.
fn dense_part_us(model: &ModelSpec, parallel: &Parallelism, times: &StepTimes, tokens: f64) -> f64 {
    let moe = &model.moe;
    let group = tokens * parallel.attention_tp as f64;
    let norms = times.norms_us(moe.hidden, group);
    let router = times.gemm_us(GemmShape { m: group, n: moe.experts as u64, k: moe.hidden }, 2.0);
    let shared = match model.shared_intermediate {
        0 => 0.0,
        width => {
            // GPUs that have all tokens share the work; others run the whole network on their own tokens.
            let divided = if parallel.has_all_tokens() { parallel.ranks } else { 1 };
            feed_forward_us(model, times, tokens * divided as f64, width.div_ceil(divided))
        }
    };
    norms + router + shared
}

fn feed_forward_us(model: &ModelSpec, times: &StepTimes, tokens: f64, width: u64) -> f64 {
    let hidden = model.moe.hidden;
    let bytes = model.dense_weight_bytes();
    times.gemm_us(GemmShape { m: tokens, n: 2 * width, k: hidden }, bytes)
        + times.elementwise_us(2.0 * 3.0 * width as f64 * tokens)
        + times.gemm_us(GemmShape { m: tokens, n: hidden, k: width }, bytes)
}

/// Returns the time of the feed-forward part of a dense layer. Tensor parallelism divides it like attention.
fn dense_layer_us(model: &ModelSpec, parallel: &Parallelism, times: &StepTimes, tokens: f64) -> f64 {
    if model.dense_layers == 0 {
        return 0.0;
    }
    let tp = parallel.attention_tp;
    let group = tokens * tp as f64;
    times.norms_us(model.moe.hidden, group)
        + feed_forward_us(model, times, group, model.dense_intermediate.div_ceil(tp))
        + times.all_reduce_us(tp, group * 2.0 * model.moe.hidden as f64)
}

/// Returns the time of embedding, head and the transfers between pipeline stages.
fn ends_us(model: &ModelSpec, parallel: &Parallelism, times: &StepTimes, work: &StepWork) -> f64 {
    let (tp, hidden) = (parallel.attention_tp, model.moe.hidden);
    let group = work.tokens * tp as f64;
    // Prefill computes the logits of the last token of a prompt alone.
    let logits = match work.phase {
        Phase::Decode { .. } => group,
        Phase::Prefill { prompt } => (group / prompt.max(1) as f64).max(1.0),
    };
    let head = GemmShape { m: logits, n: model.vocabulary.div_ceil(tp), k: hidden };
    let states = 2.0 * hidden as f64 * group;
    times.elementwise_us(2.0 * states)
        + times.gemm_us(head, 2.0)
        + (parallel.pp - 1) as f64 * times.point_to_point_us(2.0 * hidden as f64 * work.tokens)
}

/// Returns the time of dispatch and combine of one layer, or of the reduction of tensor parallelism.
fn exchange_us(
    model: &ModelSpec,
    parallel: &Parallelism,
    times: &StepTimes,
    work: &StepWork,
    [imbalance, node_imbalance]: [f64; 2],
) -> f64 {
    let even = ExchangeLoad::even(model, parallel, times.linked(), work.phase, work.tokens);
    if parallel.has_all_tokens() {
        return times.all_reduce_us(parallel.ranks, even.all_bytes());
    }
    times.exchange_us(&ExchangeLoad { imbalance, node_imbalance, ..even })
}
