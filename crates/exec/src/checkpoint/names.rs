//! How published checkpoints name what a MoE layer has; all names begin with `model.layers.N.`.

use std::fmt;

/// A naming.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Naming {
    /// `block_sparse_moe.gate`, `block_sparse_moe.experts.E.w1` (gate), `.w3` (up), `.w2` (down).
    Mixtral,
    /// `mlp.router`, `mlp.experts.gate_up_proj`, `mlp.experts.down_proj`: all experts in one tensor, with biases.
    GptOss,
    /// `mlp.gate`, `mlp.experts.E.gate_proj`, `.up_proj`, `.down_proj`, and `mlp.shared_experts` likewise.
    Qwen,
}

impl Naming {
    /// All of them.
    pub const ALL: [Naming; 3] = [Naming::Mixtral, Naming::GptOss, Naming::Qwen];

    /// What the router is called in a layer.
    pub(super) fn router(self) -> &'static str {
        match self {
            Naming::Mixtral => "block_sparse_moe.gate",
            Naming::GptOss => "mlp.router",
            Naming::Qwen => "mlp.gate",
        }
    }

    /// Gate, up and down matrix of an expert, where each is a tensor of its own.
    pub(super) fn expert(self, expert: usize) -> Option<[String; 3]> {
        Some(match self {
            Naming::Mixtral => {
                ["w1", "w3", "w2"].map(|m| format!("block_sparse_moe.experts.{expert}.{m}.weight"))
            }
            Naming::Qwen => {
                ["gate_proj", "up_proj", "down_proj"].map(|m| format!("mlp.experts.{expert}.{m}.weight"))
            }
            Naming::GptOss => return None,
        })
    }

    /// Ids of the layers that have a router by this naming, ascending.
    pub(super) fn layers<'a>(self, names: impl Iterator<Item = &'a str>) -> Vec<usize> {
        let suffix = format!(".{}.weight", self.router());
        let id = |name: &str| name.strip_prefix("model.layers.")?.strip_suffix(&suffix)?.parse().ok();
        let mut layers: Vec<usize> = names.filter_map(id).collect();
        layers.sort_unstable();
        layers
    }
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Naming::Mixtral => "Mixtral",
            Naming::GptOss => "gpt-oss",
            Naming::Qwen => "Qwen3-MoE and DeepSeek",
        })
    }
}
