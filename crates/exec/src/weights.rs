//! The weights of a layer: their storage, and random weights.
//!
//! Input: a layer and an expert. Output: [`ExpertWeights`], as a pure function of both ([`WeightSource`]). So
//! any rank can get any expert at any time without asking another rank. Matrices are `[out][in]`, row by row,
//! as in checkpoints.

use super::error::{ExecError, UnknownName};
use super::random::RandomStream;
use super::simd::{round_to_bf16, widen_into};
use evenkeel::model::MoeModel;
use half::bf16;
use std::fmt;
use std::str::FromStr;

/// The number type of stored weights and travelling activations. Arithmetic is `f32` in both cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// 32-bit floating point.
    F32,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Returns the bytes of one number.
    pub fn bytes(self) -> u64 {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }

    /// Returns the largest error of a token (`max|y - ref| / max|ref|` over its vector) that a correct
    /// forward pass may have.
    pub fn error_bound(self) -> f64 {
        match self {
            Dtype::F32 => 1e-5,
            Dtype::Bf16 => 2e-2,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
        })
    }
}

impl FromStr for Dtype {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "f32" => Ok(Dtype::F32),
            "bf16" => Ok(Dtype::Bf16),
            _ => Err(UnknownName::new("dtype", name, "f32 or bf16")),
        }
    }
}

/// A matrix in its stored number type, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix(pub(crate) Numbers);

/// The numbers of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Numbers {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Matrix {
    /// Rounds numbers to a dtype.
    pub fn new(dtype: Dtype, numbers: Vec<f32>) -> Self {
        Self(match dtype {
            Dtype::F32 => Numbers::F32(numbers),
            Dtype::Bf16 => Numbers::Bf16(numbers.into_iter().map(round_to_bf16).collect()),
        })
    }

    /// Creates an empty matrix with room for `numbers` numbers.
    pub fn with_capacity(dtype: Dtype, numbers: usize) -> Self {
        Self(match dtype {
            Dtype::F32 => Numbers::F32(Vec::with_capacity(numbers)),
            Dtype::Bf16 => Numbers::Bf16(Vec::with_capacity(numbers)),
        })
    }

    /// Returns the stored number type.
    pub fn dtype(&self) -> Dtype {
        match &self.0 {
            Numbers::F32(_) => Dtype::F32,
            Numbers::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        match &self.0 {
            Numbers::F32(numbers) => numbers.len(),
            Numbers::Bf16(numbers) => numbers.len(),
        }
    }

    /// Returns whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the size in bytes.
    pub fn bytes(&self) -> u64 {
        match &self.0 {
            Numbers::F32(numbers) => 4 * numbers.len() as u64,
            Numbers::Bf16(numbers) => 2 * numbers.len() as u64,
        }
    }

    /// Rounds and appends numbers.
    pub fn push(&mut self, numbers: &[f32]) {
        match &mut self.0 {
            Numbers::F32(kept) => kept.extend_from_slice(numbers),
            Numbers::Bf16(kept) => kept.extend(numbers.iter().map(|&x| round_to_bf16(x))),
        }
    }

    /// Appends all numbers of another matrix, rounded if the dtypes differ.
    pub fn append(&mut self, other: &Matrix) {
        match (&mut self.0, &other.0) {
            (Numbers::F32(kept), Numbers::F32(other)) => kept.extend_from_slice(other),
            (Numbers::Bf16(kept), Numbers::Bf16(other)) => kept.extend_from_slice(other),
            _ => self.push(&other.to_f32()),
        }
    }

    /// Reads the numbers from `at` on as `f32`, until `out` is full.
    ///
    /// # Panics
    /// Panics if `at` is past the end.
    pub fn read(&self, at: usize, out: &mut [f32]) {
        match &self.0 {
            Numbers::F32(numbers) => out.iter_mut().zip(&numbers[at..]).for_each(|(out, &x)| *out = x),
            Numbers::Bf16(numbers) => widen_into(&numbers[at..], out),
        }
    }

    /// Returns all numbers as `f32`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.len()];
        self.read(0, &mut numbers);
        numbers
    }
}

/// The biases of an expert's matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct Biases {
    /// `[I]`
    pub gate: Vec<f32>,
    /// `[I]`
    pub up: Vec<f32>,
    /// `[H]`
    pub down: Vec<f32>,
}

/// One expert, with inner width `I` and outer width `H`.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertWeights {
    /// `[I][H]`; `None` if the activation has no gate.
    pub gate: Option<Matrix>,
    /// `[I][H]`
    pub up: Matrix,
    /// `[H][I]`
    pub down: Matrix,
    /// Biases, if any.
    pub biases: Option<Biases>,
}

impl ExpertWeights {
    /// Returns the bytes of its matrices.
    pub fn bytes(&self) -> u64 {
        self.gate.as_ref().map_or(0, Matrix::bytes) + self.up.bytes() + self.down.bytes()
    }
}

/// The weights that turn a token into logits.
#[derive(Debug, Clone, PartialEq)]
pub struct GateWeights {
    /// `[width][H]`, in `f32` or bf16 as it was published.
    pub weight: Matrix,
    /// Bias of the logits, `[width]`; empty for none.
    pub bias: Vec<f32>,
    /// Bias of the scores, for selection only (DeepSeek-V3), `[E]`; empty for none.
    pub selection: Vec<f64>,
}

/// A source of weights. The same arguments have the same result, always and on every rank.
pub trait WeightSource: fmt::Debug + Send + Sync {
    /// Returns one routed expert.
    ///
    /// # Errors
    /// Fails if it cannot be read.
    fn expert_weights(&self, layer: usize, expert: usize) -> Result<ExpertWeights, ExecError>;

    /// Returns the shared experts, merged into one expert of their total width, if the layer has any.
    ///
    /// # Errors
    /// Fails if they cannot be read.
    fn shared_weights(&self, layer: usize) -> Result<Option<ExpertWeights>, ExecError>;

    /// Returns the weights of the router.
    ///
    /// # Errors
    /// Fails if they cannot be read.
    fn router_weights(&self, layer: usize) -> Result<GateWeights, ExecError>;

    /// Returns the weight of the RMSNorm before the layer, `[H]`.
    ///
    /// # Errors
    /// Fails if it cannot be read.
    fn norm_weights(&self, layer: usize) -> Result<Vec<f32>, ExecError>;
}

/// Random weights, determined by a seed.
#[derive(Debug, Clone)]
pub struct RandomWeights {
    /// Shapes.
    pub model: MoeModel,
    /// Logits per token of the router.
    pub width: usize,
    /// The number type of the weights.
    pub dtype: Dtype,
    /// The seed.
    pub seed: u64,
}

impl RandomWeights {
    fn random_stream(&self, kind: u64, layer: usize, expert: usize) -> RandomStream {
        RandomStream::new(self.seed, &[kind, layer as u64, expert as u64])
    }

    /// Creates an expert of inner width `inner`, whose outputs have a variance of about 1 for inputs of
    /// variance 1.
    fn random_expert(&self, mut stream: RandomStream, inner: usize) -> ExpertWeights {
        let (hidden, activation) = (self.model.hidden as usize, self.model.activation);
        let (to, back) = (1.0 / (hidden as f32).sqrt(), 1.0 / (inner as f32).sqrt());
        let mut matrix =
            |deviation| Matrix::new(self.dtype, stream.uniform_weights(hidden * inner, deviation));
        let gate = activation.has_gate().then(|| matrix(to));
        let (up, down) = (matrix(to), matrix(back));
        let biases = activation.has_biases().then(|| Biases {
            gate: stream.uniform_weights(inner, 0.1),
            up: stream.uniform_weights(inner, 0.1),
            down: stream.uniform_weights(hidden, 0.1),
        });
        ExpertWeights { gate, up, down, biases }
    }
}

impl WeightSource for RandomWeights {
    fn expert_weights(&self, layer: usize, expert: usize) -> Result<ExpertWeights, ExecError> {
        Ok(self.random_expert(self.random_stream(0, layer, expert), self.model.intermediate as usize))
    }

    fn shared_weights(&self, layer: usize) -> Result<Option<ExpertWeights>, ExecError> {
        let inner = self.model.intermediate as usize * self.model.shared;
        Ok((inner > 0).then(|| self.random_expert(self.random_stream(1, layer, 0), inner)))
    }

    fn router_weights(&self, layer: usize) -> Result<GateWeights, ExecError> {
        let hidden = self.model.hidden as usize;
        let mut stream = self.random_stream(2, layer, 0);
        let weight = stream.uniform_weights(self.width * hidden, 1.0 / (hidden as f32).sqrt());
        let weight = Matrix::new(Dtype::F32, weight);
        let bias =
            if self.model.activation.has_biases() { stream.uniform_weights(self.width, 0.1) } else { vec![] };
        Ok(GateWeights { weight, bias, selection: vec![] })
    }

    fn norm_weights(&self, layer: usize) -> Result<Vec<f32>, ExecError> {
        let noise = self.random_stream(3, layer, 0).uniform_weights(self.model.hidden as usize, 0.05);
        Ok(noise.into_iter().map(|x| 1.0 + x).collect())
    }
}
