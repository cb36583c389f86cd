//! The tensor names of MoE layers in published checkpoints. All names begin with `model.layers.N.`.

use std::fmt;

/// A naming scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorNaming {
    /// `block_sparse_moe.gate`, `block_sparse_moe.experts.E.w1` (gate), `.w3` (up), `.w2` (down).
    Mixtral,
    /// `mlp.router`, `mlp.experts.gate_up_proj`, `mlp.experts.down_proj`: all experts in one tensor, with
    /// biases.
    GptOss,
    /// `mlp.gate`, `mlp.experts.E.gate_proj`, `.up_proj`, `.down_proj`, and the same under
    /// `mlp.shared_experts`.
    Qwen,
}

impl TensorNaming {
    /// All naming schemes.
    pub const ALL: [TensorNaming; 3] = [TensorNaming::Mixtral, TensorNaming::GptOss, TensorNaming::Qwen];

    /// Returns the name of the router in a layer.
    pub(super) fn router_name(self) -> &'static str {
        match self {
            TensorNaming::Mixtral => "block_sparse_moe.gate",
            TensorNaming::GptOss => "mlp.router",
            TensorNaming::Qwen => "mlp.gate",
        }
    }

    /// Returns the names of gate, up and down matrix of an expert, if each is a separate tensor.
    pub(super) fn expert_names(self, expert: usize) -> Option<[String; 3]> {
        Some(match self {
            TensorNaming::Mixtral => {
                ["w1", "w3", "w2"].map(|m| format!("block_sparse_moe.experts.{expert}.{m}.weight"))
            }
            TensorNaming::Qwen => {
                ["gate_proj", "up_proj", "down_proj"].map(|m| format!("mlp.experts.{expert}.{m}.weight"))
            }
            TensorNaming::GptOss => return None,
        })
    }

    /// Returns the ids of the layers that have a router with this naming, ascending.
    pub(super) fn find_layers<'a>(self, names: impl Iterator<Item = &'a str>) -> Vec<usize> {
        let suffix = format!(".{}.weight", self.router_name());
        let id = |name: &str| name.strip_prefix("model.layers.")?.strip_suffix(&suffix)?.parse().ok();
        let mut layers: Vec<usize> = names.filter_map(id).collect();
        layers.sort_unstable();
        layers
    }
}

impl fmt::Display for TensorNaming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TensorNaming::Mixtral => "Mixtral",
            TensorNaming::GptOss => "gpt-oss",
            TensorNaming::Qwen => "Qwen3-MoE and DeepSeek",
        })
    }
}
