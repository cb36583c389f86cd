//! Sizes of an MoE layer: of a whole model, and of one rank.

use evenkeel::model::MoeModel;
use serde::{Deserialize, Serialize};

/// Sizes of a model's layer. In JSON it is the list of the four numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "[u64; 4]", into = "[u64; 4]")]
pub struct ModelShape {
    /// Width of a token's activation.
    pub hidden: u64,
    /// Width inside one expert.
    pub intermediate: u64,
    /// Experts per token.
    pub top_k: u64,
    /// Experts of the layer.
    pub experts: u64,
}

impl From<[u64; 4]> for ModelShape {
    fn from([hidden, intermediate, top_k, experts]: [u64; 4]) -> Self {
        Self { hidden, intermediate, top_k, experts }
    }
}

impl From<ModelShape> for [u64; 4] {
    fn from(shape: ModelShape) -> Self {
        [shape.hidden, shape.intermediate, shape.top_k, shape.experts]
    }
}

impl From<&MoeModel> for ModelShape {
    fn from(model: &MoeModel) -> Self {
        let (top_k, experts) = (model.top_k as u64, model.experts as u64);
        Self { hidden: model.hidden, intermediate: model.intermediate, top_k, experts }
    }
}

/// Sizes of an MoE layer on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MoeShape {
    /// Width of a token's activation.
    pub hidden: u64,
    /// Width inside one expert on this rank: under tensor parallelism, the rank's share.
    pub intermediate: u64,
    /// Experts per token.
    pub top_k: u64,
    /// Experts of the layer. With replicas, the slots of all ranks.
    pub experts: u64,
    /// Experts, or slots, of this rank.
    pub slots: u64,
    /// Matrices of an expert: 3 with a gate, else 2.
    pub matrices: u64,
}

impl MoeShape {
    /// Returns the shape of a model's layer on ranks with the same number of slots, without tensor
    /// parallelism. `slots` is the number of slots of all ranks: the experts and their replicas.
    pub fn of_model(model: &MoeModel, slots: u64, ranks: u64) -> Self {
        Self {
            hidden: model.hidden,
            intermediate: model.intermediate,
            top_k: model.top_k as u64,
            experts: slots,
            slots: slots / ranks.max(1),
            matrices: model.activation.matrix_count(),
        }
    }
}
