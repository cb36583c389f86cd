//! Shapes of MoE models: the sizes of experts and the number of experts per token.
//!
//! In: a name, followed by a precision if it differs from the published one (`deepseek-v3`,
//! `deepseek-v3:bf16`). Out: a [`MoeModel`]. The figures are those of the models' published configurations.
//! gpt-oss, published in four bits, counts as bfloat16.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use thiserror::Error;

/// Number format in which weights are stored and multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Precision {
    /// 8-bit floating point, 1 byte.
    Fp8,
    /// bfloat16, 2 bytes.
    Bf16,
}

impl Precision {
    /// Returns the bytes of one weight.
    pub fn bytes_per_weight(self) -> u64 {
        match self {
            Precision::Fp8 => 1,
            Precision::Bf16 => 2,
        }
    }

    /// Returns the suffix that names the precision behind a model's name.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Fp8 => "fp8",
            Precision::Bf16 => "bf16",
        }
    }
}

/// Function that an expert computes for a token `x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `down (silu(gate x) * round_up x)`, three matrices.
    SwiGlu,
    /// gpt-oss: `down ((clamp(round_up x) + 1) * g * sigmoid(1.702 g))` with `g = min(gate x, 7)`. `up x` is
    /// clamped to -7 to 7. Each of the three matrices has a bias.
    ClampedSwiGlu,
    /// `down relu(round_up x)`, two matrices.
    Relu,
    /// `down gelu(round_up x)`, two matrices; the tanh form of GELU.
    Gelu,
}

impl Activation {
    /// Returns the number of matrices of an expert.
    pub fn matrix_count(self) -> u64 {
        if self.has_gate() { 3 } else { 2 }
    }

    /// Returns true if a gate multiplies the input of the last matrix.
    pub fn has_gate(self) -> bool {
        matches!(self, Activation::SwiGlu | Activation::ClampedSwiGlu)
    }

    /// Returns true if the matrices have biases.
    pub fn has_biases(self) -> bool {
        self == Activation::ClampedSwiGlu
    }
}

/// The MoE layers of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoeModel {
    /// The name that selects it.
    pub name: &'static str,
    /// Width of a token's activation.
    pub hidden: u64,
    /// Width inside one routed expert.
    pub intermediate: u64,
    /// Routed experts per layer, `E`.
    pub experts: usize,
    /// Routed experts per token.
    pub top_k: usize,
    /// MoE layers. Dense layers are not counted.
    pub layers: usize,
    /// Shared experts, which serve every token.
    pub shared: usize,
    /// Number format of the weights.
    pub precision: Precision,
    /// Function that an expert computes.
    pub activation: Activation,
}

/// Models known by name.
pub const MODELS: [MoeModel; 15] = [
    swiglu_model("mixtral-8x7b", [4096, 14336], 8, 2, 32, 0, Precision::Bf16),
    swiglu_model("mixtral-8x22b", [6144, 16384], 8, 2, 56, 0, Precision::Bf16),
    swiglu_model("qwen3-30b-a3b", [2048, 768], 128, 8, 48, 0, Precision::Bf16),
    swiglu_model("qwen3-235b-a22b", [4096, 1536], 128, 8, 94, 0, Precision::Bf16),
    gpt_oss(swiglu_model("gpt-oss-20b", [2880, 2880], 32, 4, 24, 0, Precision::Bf16)),
    gpt_oss(swiglu_model("gpt-oss-120b", [2880, 2880], 128, 4, 36, 0, Precision::Bf16)),
    swiglu_model("glm-4.5", [5120, 1536], 160, 8, 89, 1, Precision::Bf16),
    swiglu_model("deepseek-v2-lite", [2048, 1408], 64, 6, 26, 2, Precision::Bf16),
    swiglu_model("deepseek-v3", [7168, 2048], 256, 8, 58, 1, Precision::Fp8),
    swiglu_model("deepseek-r1", [7168, 2048], 256, 8, 58, 1, Precision::Fp8),
    swiglu_model("kimi-k2", [7168, 2048], 384, 8, 60, 1, Precision::Fp8),
    swiglu_model("deepseek-moe-16b", [2048, 1408], 64, 6, 27, 2, Precision::Bf16),
    swiglu_model("olmoe-1b-7b", [2048, 1024], 64, 8, 16, 0, Precision::Bf16),
    // Sources: arXiv:2101.03961, table 9 (15 layers each in encoder and decoder); arXiv:2112.06905, table 4
    // (every other layer).
    MoeModel {
        activation: Activation::Relu,
        ..swiglu_model("switch-c", [2080, 6144], 2048, 1, 30, 0, Precision::Bf16)
    },
    MoeModel {
        activation: Activation::Gelu,
        ..swiglu_model("glam-64b", [8192, 32768], 64, 2, 32, 0, Precision::Bf16)
    },
];

const fn swiglu_model(
    name: &'static str,
    [hidden, intermediate]: [u64; 2],
    experts: usize,
    top_k: usize,
    layers: usize,
    shared: usize,
    precision: Precision,
) -> MoeModel {
    let activation = Activation::SwiGlu;
    MoeModel { name, hidden, intermediate, experts, top_k, layers, shared, precision, activation }
}

const fn gpt_oss(model: MoeModel) -> MoeModel {
    MoeModel { activation: Activation::ClampedSwiGlu, ..model }
}

/// Error of an unknown model name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("unknown model \"{0}\": expected one of {names}, optionally followed by :fp8 or :bf16", names = model_names())]
pub struct UnknownModel(String);

fn model_names() -> String {
    MODELS.map(|model| model.name).join(", ")
}

impl MoeModel {
    /// Returns the parameters of one expert's matrices. Biases, a thousandth of them, do not count.
    pub fn expert_parameters(&self) -> u64 {
        self.activation.matrix_count() * self.hidden * self.intermediate
    }

    /// Returns the bytes of one expert's weights.
    pub fn expert_bytes(&self) -> u64 {
        self.expert_parameters() * self.precision.bytes_per_weight()
    }

    /// Returns the bytes of one slot in every MoE layer. One redundant slot per rank costs each rank this
    /// much.
    pub fn slot_bytes(&self) -> u64 {
        self.expert_bytes() * self.layers as u64
    }

    /// Returns the average bytes of `slots` slots, each of one layer, on each of `ranks` ranks, rounded up.
    pub fn bytes_per_rank(&self, slots: u64, ranks: usize) -> u64 {
        let bytes = u128::from(self.expert_bytes()) * u128::from(slots);
        u64::try_from(bytes.div_ceil(ranks.max(1) as u128)).unwrap_or(u64::MAX)
    }

    /// Returns the numbers of experts and MoE layers as text.
    pub fn shape_text(&self) -> String {
        format!("{} experts x {} MoE layers", self.experts, self.layers)
    }

    /// Returns the first known model with `experts` experts per layer and a number of MoE layers in `layers`.
    /// Returns `None` if such models differ in `figure`.
    ///
    /// ```
    /// use evenkeel::model::MoeModel;
    ///
    /// // deepseek-v3 and deepseek-r1 share their shape.
    /// assert_eq!(MoeModel::find_by_shape(256, 58..=58, |model| model.top_k).unwrap().name, "deepseek-v3");
    /// assert!(MoeModel::find_by_shape(256, 57..=57, |model| model.top_k).is_none());
    /// // Of 128 experts there are models of top-4 and of top-8.
    /// assert!(MoeModel::find_by_shape(128, 0..=usize::MAX, |model| model.top_k).is_none());
    /// ```
    pub fn find_by_shape<T: PartialEq>(
        experts: usize,
        layers: RangeInclusive<usize>,
        figure: impl Fn(&MoeModel) -> T,
    ) -> Option<MoeModel> {
        let mut found =
            MODELS.into_iter().filter(|model| model.experts == experts && layers.contains(&model.layers));
        let first = found.next()?;
        found.all(|other| figure(&other) == figure(&first)).then_some(first)
    }

    /// Returns the floating-point operations of one token in one expert: a multiplication and an addition per
    /// parameter.
    pub fn token_operations(&self) -> u64 {
        2 * self.expert_parameters()
    }
}

impl fmt::Display for MoeModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.precision.name())
    }
}

impl FromStr for MoeModel {
    type Err = UnknownModel;

    fn from_str(text: &str) -> Result<Self, UnknownModel> {
        let unknown = || UnknownModel(text.to_owned());
        let (name, precision) = match text.split_once(':') {
            None => (text, None),
            Some((name, "fp8")) => (name, Some(Precision::Fp8)),
            Some((name, "bf16")) => (name, Some(Precision::Bf16)),
            Some(_) => return Err(unknown()),
        };
        let found = MODELS.into_iter().find(|model| model.name == name).ok_or_else(unknown)?;
        Ok(MoeModel { precision: precision.unwrap_or(found.precision), ..found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_add_up_to_the_published_sizes() {
        for (name, billions) in
            [("switch-c", 1_570), ("glam-64b", 1_100), ("olmoe-1b-7b", 6), ("gpt-oss-120b", 115)]
        {
            let model: MoeModel = name.parse().unwrap();
            let all = model.expert_parameters() * (model.experts * model.layers) as u64 / 1_000_000_000;
            assert!(all.abs_diff(billions) * 100 <= billions, "{name}: {all}");
        }
    }

    #[test]
    fn an_expert_of_deepseek_v3_has_44_mb() {
        let model: MoeModel = "deepseek-v3".parse().unwrap();
        assert_eq!(
            (model.expert_bytes(), model.experts, model.to_string().as_str()),
            (44_040_192, 256, "deepseek-v3:fp8")
        );
        assert_eq!("deepseek-v3:bf16".parse::<MoeModel>().unwrap().expert_bytes(), 88_080_384);
        // 2.55 GB per rank and redundant slot.
        assert_eq!(model.slot_bytes(), 2_554_331_136);
        assert_eq!(model.bytes_per_rank(32 * 58, 32), model.slot_bytes());
        assert_eq!(model.bytes_per_rank(32 * 58, 288), 283_814_571);
        let message = "deepseek-v3:int4".parse::<MoeModel>().unwrap_err().to_string();
        assert!(message.contains("int4") && message.contains("kimi-k2"), "{message}");
    }
}
