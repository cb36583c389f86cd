//! A whole model: its MoE layers, attention, dense layers and vocabulary.
//!
//! In: a known model, or the `config.json` of a model on Hugging Face. Out: a [`ModelSpec`], from which times
//! and memory follow. The figures of known models are those of their published configurations.

use evenkeel::model::{Activation, MoeModel, Precision};
use evenkeel_cost::Dtype;
use serde_json::Value;
use thiserror::Error;

/// Attention of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attention {
    /// Grouped-query attention. As many key-value heads as heads are multi-head attention.
    Grouped {
        /// Query heads.
        heads: u64,
        /// Key-value heads.
        kv_heads: u64,
        /// Width of a head.
        head_dim: u64,
        /// Window of the layers that attend to the latest tokens only, and the share of such layers in
        /// percent.
        window: Option<Window>,
    },
    /// Multi-head latent attention of DeepSeek-V2 and V3.
    Latent {
        /// Query heads.
        heads: u64,
        /// Rank of the query's projection; 0 projects at once.
        query_rank: u64,
        /// Width of the latent key and value, without the rotary part.
        kv_rank: u64,
        /// Width of the rotary part.
        rope: u64,
        /// Width of a head's key, without the rotary part.
        key_dim: u64,
        /// Width of a head's value.
        value_dim: u64,
    },
}

/// Sliding window of a part of the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Tokens that a layer attends to.
    pub tokens: u64,
    /// Share of the layers with the window, in percent.
    pub layer_percent: u64,
}

/// Sizes of a whole model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelSpec {
    /// Name in tables.
    pub name: String,
    /// The MoE layers.
    pub moe: MoeModel,
    /// Number format of the experts.
    pub dtype: Dtype,
    /// Layers without experts.
    pub dense_layers: u64,
    /// Width inside the feed-forward network of a dense layer.
    pub dense_intermediate: u64,
    /// Width of all shared experts of a layer together.
    pub shared_intermediate: u64,
    /// Attention of every layer.
    pub attention: Attention,
    /// Entries of the vocabulary.
    pub vocabulary: u64,
    /// Groups of experts that a token may visit, if the router limits them. A group lies on one node, so it
    /// limits the nodes too.
    pub node_limit: Option<u64>,
}

/// Error of a model that is not known well enough.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Only the MoE layers of the model are known.
    #[error("{0}: attention and dense layers are not known, expected the model's config.json (--model FILE)")]
    OnlyMoe(String),
    /// The text is not JSON.
    #[error("no config.json: {0}")]
    Json(String),
    /// A key is missing or has another value than a model can have.
    #[error("config.json: {key}: found {found}, expected {expected}")]
    Key {
        /// Name of the key.
        key: String,
        /// The value found.
        found: String,
        /// The values that are expected.
        expected: &'static str,
    },
}

const fn grouped(heads: u64, kv_heads: u64, head_dim: u64) -> Attention {
    Attention::Grouped { heads, kv_heads, head_dim, window: None }
}

const fn latent(heads: u64, query_rank: u64) -> Attention {
    Attention::Latent { heads, query_rank, kv_rank: 512, rope: 64, key_dim: 128, value_dim: 128 }
}

/// Attention, dense layers, their width, and vocabulary of the known models.
const KNOWN: [(&str, Attention, u64, u64, u64); 13] = [
    ("mixtral-8x7b", grouped(32, 8, 128), 0, 0, 32_000),
    ("mixtral-8x22b", grouped(48, 8, 128), 0, 0, 32_768),
    ("qwen3-30b-a3b", grouped(32, 4, 128), 0, 0, 151_936),
    ("qwen3-235b-a22b", grouped(64, 4, 128), 0, 0, 151_936),
    ("gpt-oss-20b", GPT_OSS, 0, 0, 201_088),
    ("gpt-oss-120b", GPT_OSS, 0, 0, 201_088),
    ("glm-4.5", grouped(96, 8, 128), 3, 12_288, 151_552),
    ("deepseek-v2-lite", latent(16, 0), 1, 10_944, 102_400),
    ("deepseek-v3", latent(128, 1_536), 3, 18_432, 129_280),
    ("deepseek-r1", latent(128, 1_536), 3, 18_432, 129_280),
    ("kimi-k2", latent(64, 1_536), 1, 18_432, 163_840),
    ("deepseek-moe-16b", grouped(16, 16, 128), 1, 10_944, 102_400),
    ("olmoe-1b-7b", grouped(16, 16, 128), 0, 0, 50_304),
];

const GPT_OSS: Attention = Attention::Grouped {
    heads: 64,
    kv_heads: 8,
    head_dim: 64,
    window: Some(Window { tokens: 128, layer_percent: 50 }),
};

impl ModelSpec {
    /// Returns the sizes of a known model.
    ///
    /// # Errors
    /// Fails if only the MoE layers of the model are known.
    pub fn of_known(moe: MoeModel) -> Result<Self, ModelError> {
        let known = KNOWN.iter().find(|(name, ..)| *name == moe.name);
        let Some(&(_, attention, dense_layers, dense_intermediate, vocabulary)) = known else {
            return Err(ModelError::OnlyMoe(moe.name.to_owned()));
        };
        let dtype = match moe.precision {
            _ if moe.name.starts_with("gpt-oss") => Dtype::W4a16Mxfp4,
            Precision::Fp8 => Dtype::Fp8Block,
            _ => Dtype::Bfloat16,
        };
        Ok(Self {
            name: moe.name.to_owned(),
            moe,
            dtype,
            dense_layers,
            dense_intermediate,
            shared_intermediate: moe.shared as u64 * moe.intermediate,
            attention,
            vocabulary,
            node_limit: matches!(moe.name, "deepseek-v3" | "deepseek-r1").then_some(4),
        })
    }

    /// Reads the `config.json` of a model.
    ///
    /// # Errors
    /// Fails if a key is missing or has an impossible value.
    pub fn from_config_json(name: &str, text: &str) -> Result<Self, ModelError> {
        let whole: Value = serde_json::from_str(text).map_err(|error| ModelError::Json(error.to_string()))?;
        let config = Config { whole: &whole, text: whole.get("text_config").unwrap_or(&whole) };
        let hidden = config.number(&["hidden_size"])?;
        let layers = config.number(&["num_hidden_layers"])?;
        let experts = config.number(&["n_routed_experts", "num_experts", "num_local_experts"])?;
        let top_k = config.number(&["num_experts_per_tok", "experts_per_token", "top_k_experts"])?;
        let dense_intermediate = config.number_or(&["intermediate_size"], 0)?;
        let intermediate = config.number_or(&["moe_intermediate_size"], dense_intermediate)?;
        let dense_layers = config.dense_layers(layers)?;
        let shared = config.number_or(&["n_shared_experts"], 0)?;
        let shared_intermediate =
            config.number_or(&["shared_expert_intermediate_size"], shared * intermediate)?;
        let (dtype, precision) = config.dtype()?;
        let is_gpt_oss = config.text_value("model_type").is_some_and(|kind| kind == "gpt_oss");
        let activation = if is_gpt_oss { Activation::ClampedSwiGlu } else { Activation::SwiGlu };
        if top_k > experts {
            return Err(wrong("num_experts_per_tok", &Value::from(top_k), "at most the number of experts"));
        }
        let moe = MoeModel {
            name: "config.json",
            hidden,
            intermediate,
            experts: experts as usize,
            top_k: top_k as usize,
            layers: (layers - dense_layers) as usize,
            shared: shared as usize,
            precision,
            activation,
        };
        Ok(Self {
            name: name.to_owned(),
            moe,
            dtype,
            dense_layers,
            dense_intermediate,
            shared_intermediate,
            attention: config.attention(hidden)?,
            vocabulary: config.number(&["vocab_size"])?,
            node_limit: config.node_limit()?,
        })
    }

    /// Returns the number of layers.
    pub fn layers(&self) -> u64 {
        self.dense_layers + self.moe.layers as u64
    }

    /// Returns the bytes of a weight outside of experts: one for models in 8 bits, else two.
    pub fn dense_weight_bytes(&self) -> f64 {
        if self.moe.precision == Precision::Fp8 { 1.0 } else { 2.0 }
    }

    /// Returns the bytes of one expert's weights.
    pub fn expert_bytes(&self) -> f64 {
        self.moe.expert_parameters() as f64 * self.dtype.bytes_per_weight()
    }

    /// Returns the parameters of the attention of one layer.
    pub fn attention_parameters(&self) -> u64 {
        let hidden = self.moe.hidden;
        match self.attention {
            Attention::Grouped { heads, kv_heads, head_dim, .. } => {
                hidden * head_dim * (2 * heads + 2 * kv_heads)
            }
            Attention::Latent { heads, query_rank, kv_rank, rope, key_dim, value_dim } => {
                let query = match query_rank {
                    0 => hidden * heads * (key_dim + rope),
                    rank => rank * (hidden + heads * (key_dim + rope)),
                };
                query
                    + hidden * (kv_rank + rope)
                    + kv_rank * heads * (key_dim + value_dim)
                    + heads * value_dim * hidden
            }
        }
    }

    /// Returns the parameters of all layers outside of routed experts, without embedding and head.
    pub fn dense_parameters(&self) -> u64 {
        let moe = &self.moe;
        let router = moe.hidden * moe.experts as u64;
        let shared = 3 * moe.hidden * self.shared_intermediate;
        self.layers() * self.attention_parameters()
            + moe.layers as u64 * (router + shared)
            + self.dense_layers * 3 * moe.hidden * self.dense_intermediate
    }

    /// Returns the bytes of the key-value cache per token of context, in all layers, at `bytes` per number.
    /// Layers with a sliding window count up to `context` tokens of it.
    pub fn kv_bytes_per_token(&self, bytes: f64, context: u64) -> f64 {
        let layers = self.layers() as f64;
        match self.attention {
            Attention::Grouped { kv_heads, head_dim, window, .. } => {
                let kept = window.map_or(1.0, |window| {
                    let share = window.layer_percent as f64 / 100.0;
                    1.0 - share + share * (window.tokens as f64 / context.max(1) as f64).min(1.0)
                });
                layers * kept * (2 * kv_heads * head_dim) as f64 * bytes
            }
            Attention::Latent { kv_rank, rope, .. } => layers * (kv_rank + rope) as f64 * bytes,
        }
    }

    /// Returns the query heads.
    pub fn heads(&self) -> u64 {
        match self.attention {
            Attention::Grouped { heads, .. } | Attention::Latent { heads, .. } => heads,
        }
    }
}

/// The document, and the part of it that describes the language model.
struct Config<'a> {
    whole: &'a Value,
    text: &'a Value,
}

fn wrong(key: &str, found: &Value, expected: &'static str) -> ModelError {
    ModelError::Key { key: key.to_owned(), found: found.to_string(), expected }
}

/// Largest number that a size may have.
const MAX_SIZE: u64 = 1 << 24;

impl Config<'_> {
    /// Returns the first of the keys that is present and not null.
    fn value(&self, keys: &[&str]) -> Option<(String, &Value)> {
        let of = |key: &&str| self.text.get(*key).filter(|value| !value.is_null());
        keys.iter().find_map(|key| of(key).map(|value| ((*key).to_owned(), value)))
    }

    fn text_value(&self, key: &str) -> Option<&str> {
        self.text.get(key).and_then(Value::as_str)
    }

    fn number(&self, keys: &[&str]) -> Result<u64, ModelError> {
        match self.optional(keys)? {
            Some(number) if number > 0 => Ok(number),
            _ => Err(ModelError::Key {
                key: keys.join(" or "),
                found: "nothing".into(),
                expected: "a number from 1",
            }),
        }
    }

    fn number_or(&self, keys: &[&str], default: u64) -> Result<u64, ModelError> {
        Ok(self.optional(keys)?.unwrap_or(default))
    }

    fn optional(&self, keys: &[&str]) -> Result<Option<u64>, ModelError> {
        let Some((key, value)) = self.value(keys) else { return Ok(None) };
        let number = value.as_u64().filter(|&number| number <= MAX_SIZE);
        number.map(Some).ok_or_else(|| wrong(&key, value, "a whole number up to 16777216"))
    }

    /// Returns the layers without experts.
    fn dense_layers(&self, layers: u64) -> Result<u64, ModelError> {
        let first = self.number_or(&["first_k_dense_replace"], 0)?;
        let listed = self.text.get("mlp_only_layers").and_then(Value::as_array).map_or(0, Vec::len) as u64;
        let every = self.number_or(&["decoder_sparse_step", "moe_layer_freq"], 1)?.max(1);
        let sparse = layers.saturating_sub(first.max(listed)) / every;
        if sparse == 0 {
            return Err(wrong(
                "first_k_dense_replace",
                &Value::from(first),
                "fewer layers than the model has",
            ));
        }
        Ok(layers - sparse)
    }

    /// Returns the groups of experts that a token may visit. `None` if it may visit all.
    fn node_limit(&self) -> Result<Option<u64>, ModelError> {
        let groups = self.number_or(&["n_group"], 1)?;
        Ok(self.optional(&["topk_group"])?.filter(|limit| (1..groups).contains(limit)))
    }

    fn dtype(&self) -> Result<(Dtype, Precision), ModelError> {
        let of = |config: &Value| config.get("quantization_config").cloned();
        let Some(quantization) = of(self.text).or_else(|| of(self.whole)) else {
            return Ok((Dtype::Bfloat16, Precision::Bf16));
        };
        let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or_default();
        let algorithm = quantization.get("quant_algo").and_then(Value::as_str).unwrap_or_default();
        Ok(match (method, algorithm) {
            ("fp8", _) if quantization.get("weight_block_size").is_some_and(|size| !size.is_null()) => {
                (Dtype::Fp8Block, Precision::Fp8)
            }
            ("fp8", _) | (_, "FP8") => (Dtype::Fp8, Precision::Fp8),
            ("mxfp4", _) => (Dtype::W4a16Mxfp4, Precision::Bf16),
            (_, "NVFP4") => (Dtype::Nvfp4, Precision::Bf16),
            ("compressed-tensors" | "awq" | "gptq", _) => (Dtype::Int4Wo, Precision::Bf16),
            _ => {
                return Err(ModelError::Key {
                    key: "quantization_config.quant_method".into(),
                    found: format!("\"{method}\""),
                    expected: "fp8, mxfp4, modelopt with FP8 or NVFP4, compressed-tensors, awq or gptq",
                });
            }
        })
    }

    fn attention(&self, hidden: u64) -> Result<Attention, ModelError> {
        let heads = self.number(&["num_attention_heads"])?;
        if self.value(&["kv_lora_rank"]).is_some() {
            return Ok(Attention::Latent {
                heads,
                query_rank: self.number_or(&["q_lora_rank"], 0)?,
                kv_rank: self.number(&["kv_lora_rank"])?,
                rope: self.number_or(&["qk_rope_head_dim"], 64)?,
                key_dim: self.number_or(&["qk_nope_head_dim"], 128)?,
                value_dim: self.number_or(&["v_head_dim"], 128)?,
            });
        }
        let window = self.optional(&["sliding_window"])?;
        let kinds = self.text.get("layer_types").and_then(Value::as_array);
        let percent = kinds.map_or(0, |kinds| {
            let sliding = kinds.iter().filter(|kind| kind.as_str() == Some("sliding_attention")).count();
            100 * sliding as u64 / (kinds.len() as u64).max(1)
        });
        Ok(Attention::Grouped {
            heads,
            kv_heads: self.number_or(&["num_key_value_heads"], heads)?,
            head_dim: self.number_or(&["head_dim"], hidden / heads)?,
            window: window
                .filter(|_| percent > 0)
                .map(|tokens| Window { tokens: tokens.max(1), layer_percent: percent }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evenkeel::model::MODELS;

    fn known(name: &str) -> ModelSpec {
        ModelSpec::of_known(name.parse().unwrap()).unwrap()
    }

    #[test]
    fn parameters_add_up_to_the_published_sizes() {
        for (name, billions) in [
            ("mixtral-8x7b", 46.7),
            ("qwen3-30b-a3b", 30.5),
            ("qwen3-235b-a22b", 235.0),
            ("gpt-oss-20b", 20.9),
            ("gpt-oss-120b", 116.8),
            ("glm-4.5", 353.0),
            ("deepseek-v2-lite", 15.7),
            ("deepseek-v3", 671.0),
            ("kimi-k2", 1026.0),
        ] {
            let model = known(name);
            let experts = model.moe.expert_parameters() * (model.moe.experts * model.moe.layers) as u64;
            let all = experts + model.dense_parameters() + 2 * model.moe.hidden * model.vocabulary;
            let found = all as f64 / 1e9;
            assert!((found / billions - 1.0).abs() < 0.03, "{name}: {found}");
        }
    }

    #[test]
    fn a_model_without_attention_is_refused() {
        let unknown = MODELS.into_iter().filter(|model| ModelSpec::of_known(*model).is_err());
        assert_eq!(unknown.map(|model| model.name).collect::<Vec<_>>(), ["switch-c", "glam-64b"]);
    }

    #[test]
    fn the_cache_of_deepseek_has_70_kb_per_token() {
        assert!((known("deepseek-v3").kv_bytes_per_token(2.0, 4096) - 70_272.0).abs() < 1.0);
        // Half of the layers keep 128 tokens only.
        let windowed = known("gpt-oss-20b").kv_bytes_per_token(2.0, 4096);
        assert!((windowed - 24.0 * 2048.0 * (0.5 + 0.5 / 32.0)).abs() < 1.0, "{windowed}");
    }

    #[test]
    fn configurations_are_read_or_refused() {
        let text = r#"{"hidden_size":7168,"num_hidden_layers":61,"first_k_dense_replace":3,"moe_layer_freq":1,
            "n_routed_experts":256,"n_group":8,"topk_group":4,"num_experts_per_tok":8,"n_shared_experts":1,"moe_intermediate_size":2048,
            "intermediate_size":18432,"num_attention_heads":128,"num_key_value_heads":128,"q_lora_rank":1536,
            "kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"v_head_dim":128,"vocab_size":129280,
            "quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}}"#;
        let read = ModelSpec::from_config_json("mine", text).unwrap();
        let known = known("deepseek-v3");
        let renamed =
            ModelSpec { name: "mine".into(), moe: MoeModel { name: "config.json", ..known.moe }, ..known };
        assert_eq!(read, renamed);
        // One group of experts is no limit, as in Kimi-K2.
        let free =
            ModelSpec::from_config_json("mine", &text.replace("\"n_group\":8", "\"n_group\":1")).unwrap();
        assert_eq!((read.node_limit, free.node_limit), (Some(4), None));
        let error = |text: &str| ModelSpec::from_config_json("mine", text).unwrap_err().to_string();
        assert!(error("[").starts_with("no config.json"));
        assert!(error("{}").contains("hidden_size: found nothing"));
        assert!(
            error(&text.replace("\"vocab_size\":129280", "\"vocab_size\":-1"))
                .contains("vocab_size: found -1")
        );
        assert!(error(&text.replace("\"fp8\"", "\"gguf\"")).contains("found \"gguf\""));
        assert!(error(&text.replace("replace\":3", "replace\":61")).contains("first_k_dense_replace"));
        assert!(error(&text.replace("per_tok\":8", "per_tok\":800")).contains("num_experts_per_tok"));
    }
}
