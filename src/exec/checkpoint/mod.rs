//! Weights from a published checkpoint: the experts, routers and norms of its first MoE layers.
//!
//! In: a folder of safetensors files, named as Mixtral, Qwen3-MoE, DeepSeek-V2/V3 (and who follows them: Kimi K2, GLM, OLMoE) or
//! gpt-oss name theirs. Out: a [`WeightSource`]. Files are mapped into memory and only the tensors asked for are touched. Which
//! naming it is, is found by looking; every tensor must have the shape that the model says. `names` has the names, `decode`
//! the number formats: 32 and 16 bits, DeepSeek's FP8 with a scale per 128 x 128 block, gpt-oss' MXFP4.

mod decode;
mod files;
mod names;

pub use names::Naming;

use super::error::ExecError;
use super::weights::{Biases, Dtype, ExpertWeights, GateWeights, Matrix, WeightSource};
use crate::model::Model;
use files::{Files, Tensor};
use std::path::Path;

/// A checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    files: Files,
    naming: Naming,
    /// Ids of its MoE layers, ascending.
    layers: Vec<usize>,
    model: Model,
    dtype: Dtype,
}

impl Checkpoint {
    /// Opens a folder; `dtype` is what weights are kept in once they are read. Layers are counted among those with experts:
    /// layer 0 is the first of them.
    ///
    /// # Errors
    /// [`ExecError::Weights`] when the folder holds no safetensors file, one of them is broken, or none has a layer with a
    /// router by any name known.
    pub fn open(folder: &Path, model: Model, dtype: Dtype) -> Result<Self, ExecError> {
        let files = Files::open(folder)?;
        let found = Naming::ALL.into_iter().map(|naming| (naming, naming.layers(files.names())));
        let Some((naming, layers)) = found.into_iter().find(|(_, layers)| !layers.is_empty()) else {
            let reason = "no layer with a router: expected model.layers.N.block_sparse_moe.gate.weight (Mixtral), \
                          .mlp.router.weight (gpt-oss) or .mlp.gate.weight (Qwen3-MoE, DeepSeek)";
            return Err(files.wrong(reason.into()));
        };
        Ok(Self { files, naming, layers, model, dtype })
    }

    /// How its tensors are named.
    pub fn naming(&self) -> Naming {
        self.naming
    }

    /// Ids of its layers with experts, ascending.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// The name of a tensor of a layer.
    fn name(&self, layer: usize, rest: &str) -> Result<String, ExecError> {
        let id = self.layers.get(layer).ok_or_else(|| {
            self.files
                .wrong(format!("layer {layer} asked for, but there are {} with experts", self.layers.len()))
        })?;
        Ok(format!("model.layers.{id}.{rest}"))
    }

    /// Numbers of a tensor of a layer, of just this shape, where it is there.
    fn try_numbers(&self, layer: usize, rest: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, ExecError> {
        let name = self.name(layer, rest)?;
        let Some(tensor) = self.files.get(&name) else { return Ok(None) };
        tensor.has_shape(shape)?;
        let scales = match self.files.get(&format!("{name}_scale_inv")) {
            Some(scales) if shape.len() == 2 => {
                scales.has_shape(&[shape[0].div_ceil(decode::BLOCK), shape[1].div_ceil(decode::BLOCK)])?;
                Some(scales.numbers()?)
            }
            _ => None,
        };
        let mut numbers = tensor.numbers()?;
        if let (Some(scales), &[_, columns]) = (scales, shape) {
            decode::scale_blocks(&mut numbers, columns, &scales);
        }
        Ok(Some(tensor.finite(numbers)?))
    }

    fn numbers(&self, layer: usize, rest: &str, shape: &[usize]) -> Result<Vec<f32>, ExecError> {
        self.try_numbers(layer, rest, shape)?.ok_or_else(|| match self.name(layer, rest) {
            Ok(name) => self.files.wrong(format!("no tensor {name}")),
            Err(error) => error,
        })
    }

    fn matrix(&self, layer: usize, rest: &str, shape: [usize; 2]) -> Result<Matrix, ExecError> {
        let name = self.name(layer, rest)?;
        // As it is stored, where it is stored so.
        if let (Some(tensor), Dtype::Bf16) = (self.files.get(&name), self.dtype)
            && let Some(numbers) = tensor.bf16()
        {
            tensor.has_shape(&shape)?;
            return Ok(Matrix::Bf16(numbers));
        }
        Ok(Matrix::new(self.dtype, self.numbers(layer, rest, &shape)?))
    }

    /// An expert of three matrices of their own.
    fn three(&self, layer: usize, names: [String; 3], inner: usize) -> Result<ExpertWeights, ExecError> {
        let hidden = self.model.hidden as usize;
        let [gate, up, down] = names;
        Ok(ExpertWeights {
            gate: Some(self.matrix(layer, &gate, [inner, hidden])?),
            up: self.matrix(layer, &up, [inner, hidden])?,
            down: self.matrix(layer, &down, [hidden, inner])?,
            biases: None,
        })
    }

    /// One expert of tensors that hold all of a layer's (gpt-oss): gate and up rows take turns.
    fn fused(&self, layer: usize, expert: usize) -> Result<ExpertWeights, ExecError> {
        let (hidden, inner) = (self.model.hidden as usize, self.model.intermediate as usize);
        let both = self.part(layer, "gate_up_proj", expert, [2 * inner, hidden])?;
        let (mut gate, mut up) = (Vec::with_capacity(inner * hidden), Vec::with_capacity(inner * hidden));
        for pair in both.chunks_exact(2 * hidden) {
            gate.extend_from_slice(&pair[..hidden]);
            up.extend_from_slice(&pair[hidden..]);
        }
        let down = self.part(layer, "down_proj", expert, [hidden, inner])?;
        let biases = self.bias(layer, "gate_up_proj_bias", expert, 2 * inner)?;
        let biases = Biases {
            gate: biases.iter().copied().step_by(2).collect(),
            up: biases.iter().copied().skip(1).step_by(2).collect(),
            down: self.bias(layer, "down_proj_bias", expert, hidden)?,
        };
        Ok(ExpertWeights {
            gate: Some(Matrix::new(self.dtype, gate)),
            up: Matrix::new(self.dtype, up),
            down: Matrix::new(self.dtype, down),
            biases: Some(biases),
        })
    }

    /// One expert's `[rows][columns]` of a tensor of all, in blocks of four bits or, transposed, in plain numbers.
    fn part(
        &self,
        layer: usize,
        rest: &str,
        expert: usize,
        [rows, columns]: [usize; 2],
    ) -> Result<Vec<f32>, ExecError> {
        let (experts, name) = (self.model.experts, self.name(layer, &format!("mlp.experts.{rest}"))?);
        if let Some(plain) = self.files.get(&name) {
            plain.has_shape(&[experts, columns, rows])?;
            let turned = plain.part(expert, experts)?.numbers()?;
            return Ok((0..rows * columns).map(|at| turned[at % columns * rows + at / columns]).collect());
        }
        let wanted = |rest: &str| -> Result<Tensor<'_>, ExecError> {
            let name = format!("{name}_{rest}");
            self.files.get(&name).ok_or_else(|| self.files.wrong(format!("no tensor {name}")))
        };
        let (blocks, scales) = (wanted("blocks")?, wanted("scales")?);
        blocks.has_shape(&[experts, rows, columns / 32, 16])?;
        scales.has_shape(&[experts, rows, columns / 32])?;
        if !columns.is_multiple_of(32) {
            return Err(self.files.wrong(format!("{name}: rows of {columns} numbers are no blocks of 32")));
        }
        let (blocks, scales) = (blocks.part(expert, experts)?, scales.part(expert, experts)?);
        // A scale of all ones stands for no number.
        scales.finite(decode::mxfp4(blocks.bytes()?, scales.bytes()?))
    }

    fn bias(&self, layer: usize, rest: &str, expert: usize, width: usize) -> Result<Vec<f32>, ExecError> {
        let all = self.numbers(layer, &format!("mlp.experts.{rest}"), &[self.model.experts, width])?;
        Ok(all[expert * width..][..width].to_vec())
    }
}

impl WeightSource for Checkpoint {
    fn expert(&self, layer: usize, expert: usize) -> Result<ExpertWeights, ExecError> {
        ExecError::expect("an expert past the last", expert / self.model.experts.max(1), 0)?;
        match self.naming.expert(expert) {
            Some(names) => self.three(layer, names, self.model.intermediate as usize),
            None => self.fused(layer, expert),
        }
    }

    fn shared(&self, layer: usize) -> Result<Option<ExpertWeights>, ExecError> {
        if self.model.shared == 0 {
            return Ok(None);
        }
        let names = ["gate_proj", "up_proj", "down_proj"].map(|m| format!("mlp.shared_experts.{m}.weight"));
        Ok(Some(self.three(layer, names, self.model.shared * self.model.intermediate as usize)?))
    }

    fn gate(&self, layer: usize) -> Result<GateWeights, ExecError> {
        let (experts, name) = (self.model.experts, self.naming.router());
        let weight = self.matrix(layer, &format!("{name}.weight"), [experts, self.model.hidden as usize])?;
        let bias = self.try_numbers(layer, &format!("{name}.bias"), &[experts])?;
        let selection = self.try_numbers(layer, &format!("{name}.e_score_correction_bias"), &[experts])?;
        Ok(GateWeights {
            weight,
            bias: bias.unwrap_or_default(),
            selection: selection.unwrap_or_default().into_iter().map(f64::from).collect(),
        })
    }

    fn norm(&self, layer: usize) -> Result<Vec<f32>, ExecError> {
        self.numbers(layer, "post_attention_layernorm.weight", &[self.model.hidden as usize])
    }
}
