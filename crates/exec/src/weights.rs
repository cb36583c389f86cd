//! The weights of a layer: how they are kept, and random ones.
//!
//! In: a layer and an expert. Out: [`ExpertWeights`], as a pure function of both ([`WeightSource`]), so that any rank can
//! get any expert at any time without asking another. Matrices are `[out][in]`, row by row, as checkpoints have them.

use super::error::ExecError;
use super::numbers::{narrow, widen_into};
use super::random::Stream;
use crate::model::Model;
use half::bf16;
use std::fmt;
use std::str::FromStr;

/// What weights are kept in and activations travel in; arithmetic is `f32` in both cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn bytes(self) -> u64 {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }

    /// The largest error of a token (`max|y - ref| / max|ref|` over its vector) that a correct forward pass may have.
    pub fn bound(self) -> f64 {
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
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Dtype::F32),
            "bf16" => Ok(Dtype::Bf16),
            _ => Err(format!("unknown dtype `{name}`: expected f32 or bf16")),
        }
    }
}

/// Numbers as they are kept, row by row.
#[derive(Debug, Clone, PartialEq)]
pub enum Matrix {
    /// 32 bits each.
    F32(Vec<f32>),
    /// 16 bits each.
    Bf16(Vec<bf16>),
}

impl Matrix {
    /// Rounds numbers to a dtype.
    pub fn new(dtype: Dtype, numbers: Vec<f32>) -> Self {
        match dtype {
            Dtype::F32 => Matrix::F32(numbers),
            Dtype::Bf16 => Matrix::Bf16(numbers.into_iter().map(narrow).collect()),
        }
    }

    /// An empty one with room.
    pub fn with_capacity(dtype: Dtype, numbers: usize) -> Self {
        match dtype {
            Dtype::F32 => Matrix::F32(Vec::with_capacity(numbers)),
            Dtype::Bf16 => Matrix::Bf16(Vec::with_capacity(numbers)),
        }
    }

    /// How many numbers.
    pub fn len(&self) -> usize {
        match self {
            Matrix::F32(numbers) => numbers.len(),
            Matrix::Bf16(numbers) => numbers.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that they take.
    pub fn bytes(&self) -> u64 {
        match self {
            Matrix::F32(numbers) => 4 * numbers.len() as u64,
            Matrix::Bf16(numbers) => 2 * numbers.len() as u64,
        }
    }

    /// Rounds and appends.
    pub fn push(&mut self, numbers: &[f32]) {
        match self {
            Matrix::F32(kept) => kept.extend_from_slice(numbers),
            Matrix::Bf16(kept) => kept.extend(numbers.iter().map(|&x| narrow(x))),
        }
    }

    /// Appends all numbers of another, rounded where the dtypes differ.
    pub fn append(&mut self, other: &Matrix) {
        match (self, other) {
            (Matrix::F32(kept), Matrix::F32(other)) => kept.extend_from_slice(other),
            (Matrix::Bf16(kept), Matrix::Bf16(other)) => kept.extend_from_slice(other),
            (this, other) => this.push(&other.wide()),
        }
    }

    /// The numbers from `at` on as `f32`, as many as `out` has room for.
    ///
    /// # Panics
    /// When `at` is past the end.
    pub fn read(&self, at: usize, out: &mut [f32]) {
        match self {
            Matrix::F32(numbers) => out.iter_mut().zip(&numbers[at..]).for_each(|(out, &x)| *out = x),
            Matrix::Bf16(numbers) => widen_into(&numbers[at..], out),
        }
    }

    /// All numbers as `f32`.
    pub fn wide(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.len()];
        self.read(0, &mut numbers);
        numbers
    }
}

/// Biases of an expert's matrices.
#[derive(Debug, Clone, PartialEq)]
pub struct Biases {
    /// `[I]`
    pub gate: Vec<f32>,
    /// `[I]`
    pub up: Vec<f32>,
    /// `[H]`
    pub down: Vec<f32>,
}

/// One expert, of width `I` inside and `H` outside.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertWeights {
    /// `[I][H]`; `None` where the activation has no gate.
    pub gate: Option<Matrix>,
    /// `[I][H]`
    pub up: Matrix,
    /// `[H][I]`
    pub down: Matrix,
    /// Where there are any.
    pub biases: Option<Biases>,
}

impl ExpertWeights {
    /// Bytes of its matrices.
    pub fn bytes(&self) -> u64 {
        self.gate.as_ref().map_or(0, Matrix::bytes) + self.up.bytes() + self.down.bytes()
    }
}

/// What turns a token into logits.
#[derive(Debug, Clone, PartialEq)]
pub struct GateWeights {
    /// `[width][H]`, `f32` or bf16 as it was published.
    pub weight: Matrix,
    /// Added to the logits, `[width]`; empty for none.
    pub bias: Vec<f32>,
    /// Added to the scores for selection only (DeepSeek-V3), `[E]`; empty for none.
    pub selection: Vec<f64>,
}

/// Where weights come from. The same question has the same answer, always and on every rank.
pub trait WeightSource: fmt::Debug + Send + Sync {
    /// One routed expert.
    ///
    /// # Errors
    /// When it cannot be read.
    fn expert(&self, layer: usize, expert: usize) -> Result<ExpertWeights, ExecError>;

    /// The shared experts as one of their widths together, where there are any.
    ///
    /// # Errors
    /// When they cannot be read.
    fn shared(&self, layer: usize) -> Result<Option<ExpertWeights>, ExecError>;

    /// What routes.
    ///
    /// # Errors
    /// When it cannot be read.
    fn gate(&self, layer: usize) -> Result<GateWeights, ExecError>;

    /// The weight of the RMSNorm before the layer, `[H]`.
    ///
    /// # Errors
    /// When it cannot be read.
    fn norm(&self, layer: usize) -> Result<Vec<f32>, ExecError>;
}

/// Weights drawn by a seed.
#[derive(Debug, Clone)]
pub struct RandomWeights {
    /// Shapes.
    pub model: Model,
    /// Logits per token of the router.
    pub width: usize,
    /// What they are kept in.
    pub dtype: Dtype,
    /// The seed.
    pub seed: u64,
}

impl RandomWeights {
    fn stream(&self, kind: u64, layer: usize, expert: usize) -> Stream {
        Stream::new(self.seed, &[kind, layer as u64, expert as u64])
    }

    /// An expert whose inner width is `inner`, of variance about 1 for inputs of variance 1.
    fn make(&self, mut stream: Stream, inner: usize) -> ExpertWeights {
        let (hidden, activation) = (self.model.hidden as usize, self.model.activation);
        let (to, back) = (1.0 / (hidden as f32).sqrt(), 1.0 / (inner as f32).sqrt());
        let mut matrix = |deviation| Matrix::new(self.dtype, stream.weights(hidden * inner, deviation));
        let gate = activation.gated().then(|| matrix(to));
        let (up, down) = (matrix(to), matrix(back));
        let biases = activation.biased().then(|| Biases {
            gate: stream.weights(inner, 0.1),
            up: stream.weights(inner, 0.1),
            down: stream.weights(hidden, 0.1),
        });
        ExpertWeights { gate, up, down, biases }
    }
}

impl WeightSource for RandomWeights {
    fn expert(&self, layer: usize, expert: usize) -> Result<ExpertWeights, ExecError> {
        Ok(self.make(self.stream(0, layer, expert), self.model.intermediate as usize))
    }

    fn shared(&self, layer: usize) -> Result<Option<ExpertWeights>, ExecError> {
        let inner = self.model.intermediate as usize * self.model.shared;
        Ok((inner > 0).then(|| self.make(self.stream(1, layer, 0), inner)))
    }

    fn gate(&self, layer: usize) -> Result<GateWeights, ExecError> {
        let hidden = self.model.hidden as usize;
        let mut stream = self.stream(2, layer, 0);
        let weight = Matrix::F32(stream.weights(self.width * hidden, 1.0 / (hidden as f32).sqrt()));
        let bias = if self.model.activation.biased() { stream.weights(self.width, 0.1) } else { vec![] };
        Ok(GateWeights { weight, bias, selection: vec![] })
    }

    fn norm(&self, layer: usize) -> Result<Vec<f32>, ExecError> {
        let noise = self.stream(3, layer, 0).weights(self.model.hidden as usize, 0.05);
        Ok(noise.into_iter().map(|x| 1.0 + x).collect())
    }
}
