//! Memory of one GPU: weights, replicas, key-value cache, activations and buffers.
//!
//! In: a model, a deployment and its load. Out: a [`MemoryUse`] in bytes. Buffers of the exchange and of the
//! framework are constants; docs/advise.md states their sources.

use crate::model::{Attention, ModelSpec};
use crate::parallelism::Parallelism;

/// Bytes that the framework, its graphs and collective libraries take on every GPU: 3.5 GiB, the reserve of
/// NVIDIA's AIConfigurator, and its 392 MiB of NCCL.
const FRAMEWORK_BYTES: f64 = (3_584.0 + 392.0) * 1_048_576.0;

/// Share of a GPU's memory that a framework may use.
pub(crate) const USABLE_SHARE: f64 = 0.95;

/// Memory of one GPU, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MemoryUse {
    /// Weights outside of routed experts.
    pub weights: f64,
    /// One instance of every expert.
    pub experts: f64,
    /// Weights in redundant slots.
    pub redundant: f64,
    /// Key-value cache of all requests at their mean context.
    pub kv_cache: f64,
    /// Activations of the largest pass.
    pub activations: f64,
    /// The framework, its graphs and its communication.
    pub framework: f64,
}

impl MemoryUse {
    /// Returns the bytes of experts that exceed a limit and are read from the host in every pass: none if all
    /// fits. Returns `None` if the rest alone exceeds the limit.
    pub fn streamed(&self, limit: f64) -> Option<f64> {
        let excess = (self.total() - limit).max(0.0);
        // Two buffers of a layer's experts stay, a small part of all.
        (excess <= 0.95 * (self.experts + self.redundant)).then_some(excess)
    }

    /// Returns the sum.
    pub fn total(&self) -> f64 {
        self.weights + self.experts + self.redundant + self.kv_cache + self.activations + self.framework
    }
}

/// Load of one GPU for its memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MemoryLoad {
    /// Requests whose cache the GPU holds. Tensor parallelism divides the cache of a request.
    pub(crate) requests: f64,
    /// Mean tokens of context per request.
    pub(crate) context: f64,
    /// Tokens of the largest pass per GPU.
    pub(crate) pass_tokens: f64,
    /// Rows of the fullest rank over the mean.
    pub(crate) imbalance: f64,
    /// Tiles on which attention runs one after the other, `G`.
    pub(crate) attention_tiles: u64,
    /// Bytes of a number in the key-value cache.
    pub(crate) kv_bytes: f64,
}

/// Returns the memory of one GPU. `slots` is the number of slots of all ranks: experts and redundant ones.
pub(crate) fn memory_use(
    model: &ModelSpec,
    parallel: &Parallelism,
    slots: u64,
    load: &MemoryLoad,
) -> MemoryUse {
    let (tp, pp, ranks) = (parallel.attention_tp as f64, parallel.pp as f64, parallel.ranks as f64);
    let moe = &model.moe;
    let expert = model.expert_bytes() * moe.layers as f64 / pp;
    let experts = moe.experts as f64 * expert / ranks;
    let redundant = slots.saturating_sub(moe.experts as u64) as f64 * expert / ranks;
    let vocabulary = 2.0 * (2 * moe.hidden * model.vocabulary) as f64 / tp / pp;
    let weights = model.dense_parameters() as f64 * model.dense_weight_bytes() / tp / pp + vocabulary;
    // Latent caches are not divided by tensor parallelism: every GPU holds the whole latent vector.
    let divided = match model.attention {
        Attention::Grouped { kv_heads, .. } => tp.min(kv_heads as f64),
        Attention::Latent { .. } => 1.0,
    };
    let kv = model.kv_bytes_per_token(load.kv_bytes, load.context as u64) / pp / divided;
    MemoryUse {
        weights,
        experts,
        redundant,
        kv_cache: kv * load.requests * load.context,
        activations: activation_bytes(model, parallel, load),
        framework: FRAMEWORK_BYTES,
    }
}

/// Returns the bytes of the activations of a pass: hidden states, the tile of attention, and the rows of the
/// fullest rank's experts. Attention and experts do not run at the same time, so the larger one counts.
pub(crate) fn activation_bytes(model: &ModelSpec, parallel: &Parallelism, load: &MemoryLoad) -> f64 {
    let moe = &model.moe;
    let states = 2.0 * 3.0 * moe.hidden as f64 * load.pass_tokens;
    let attention = attention_bytes_per_token(model) / parallel.attention_tp as f64 * load.pass_tokens
        / load.attention_tiles.max(1) as f64;
    let row = 2.0 * (2 * moe.hidden + 3 * moe.intermediate) as f64;
    let experts = row * moe.top_k as f64 * load.pass_tokens * load.imbalance.max(1.0);
    states + attention.max(experts)
}

/// Returns the bytes that attention holds per token of a tile: queries, keys, values and outputs in bfloat16.
pub(crate) fn attention_bytes_per_token(model: &ModelSpec) -> f64 {
    let numbers = match model.attention {
        Attention::Grouped { heads, kv_heads, head_dim, .. } => 2 * head_dim * (heads + kv_heads),
        Attention::Latent { heads, key_dim, rope, value_dim, .. } => {
            heads * (2 * (key_dim + rope) + 2 * value_dim)
        }
    };
    2.0 * numbers as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deepseek() -> ModelSpec {
        ModelSpec::of_known("deepseek-v3".parse().unwrap()).unwrap()
    }

    const LOAD: MemoryLoad = MemoryLoad {
        requests: 64.0,
        context: 4_096.0,
        pass_tokens: 64.0,
        imbalance: 1.0,
        attention_tiles: 1,
        kv_bytes: 2.0,
    };

    #[test]
    fn deepseek_on_32_ranks_adds_up_by_hand() {
        let parallel = Parallelism { ranks: 32, attention_tp: 1, pp: 1, expert_tp: 1 };
        let used = memory_use(&deepseek(), &parallel, 288, &LOAD);
        // 58 layers x 8 experts of 44 MB, and 17 GB of all else in 8 bits and 3.7 GB of vocabulary.
        assert!(
            ((used.weights + used.experts) / 1e9 - (58.0 * 8.0 * 0.04405 + 17.0)).abs() < 3.0,
            "{used:?}"
        );
        assert!((used.redundant / 1e9 - 58.0 * 0.04405).abs() < 0.01, "{used:?}");
        assert!((used.kv_cache / 1e9 - 64.0 * 4_096.0 * 70_272.0 / 1e9).abs() < 0.01, "{used:?}");
    }

    #[test]
    fn tiles_divide_the_memory_of_attention() {
        let parallel = Parallelism { ranks: 8, attention_tp: 1, pp: 1, expert_tp: 1 };
        let model = ModelSpec::of_known("mixtral-8x7b".parse().unwrap()).unwrap();
        let bytes = |attention_tiles| {
            activation_bytes(&model, &parallel, &MemoryLoad { attention_tiles, pass_tokens: 8_192.0, ..LOAD })
        };
        assert!(bytes(8) <= bytes(1));
        assert!((attention_bytes_per_token(&model) - 2.0 * 2.0 * 128.0 * 40.0).abs() < 1e-9);
    }
}
