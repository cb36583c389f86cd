//! Weights of a published checkpoint: the experts, routers and norms of its first MoE layers.
//!
//! Input: a folder of safetensors files with the tensor names of Mixtral, Qwen3-MoE, DeepSeek-V2/V3 (also
//! used by Kimi K2, GLM and OLMoE) or gpt-oss. Output: a [`WeightSource`]. Files are mapped into memory, and
//! only requested tensors are touched. The naming is detected from the tensors. Every tensor must have the
//! shape that the model declares. `names` contains the names, `decode` the number formats: 32 and 16 bits,
//! DeepSeek's FP8 with a scale per 128 x 128 block, gpt-oss' MXFP4.

mod decode;
mod files;
mod names;

pub use names::TensorNaming;

use super::error::ExecError;
use super::weights::{Biases, Dtype, ExpertWeights, GateWeights, Matrix, Numbers, WeightSource};
use evenkeel::model::MoeModel;
use files::{CheckpointFiles, StoredTensor};
use std::path::Path;

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    files: CheckpointFiles,
    naming: TensorNaming,
    /// Ids of its MoE layers, ascending.
    layers: Vec<usize>,
    model: MoeModel,
    dtype: Dtype,
}

impl Checkpoint {
    /// Opens a folder. `dtype` is the number type of the weights after reading. Layers are counted among
    /// those with experts: layer 0 is the first of them.
    ///
    /// # Errors
    /// Returns [`ExecError::Weights`] if the folder holds no safetensors file, or a broken one. The same
    /// holds if no layer has a router with a known name.
    pub fn open(folder: &Path, model: MoeModel, dtype: Dtype) -> Result<Self, ExecError> {
        let files = CheckpointFiles::open(folder)?;
        let found =
            TensorNaming::ALL.into_iter().map(|naming| (naming, naming.find_layers(files.tensor_names())));
        let Some((naming, layers)) = found.into_iter().find(|(_, layers)| !layers.is_empty()) else {
            let reason = "no layer with a router: expected model.layers.N.block_sparse_moe.gate.weight (Mixtral), \
                          .mlp.router.weight (gpt-oss) or .mlp.gate.weight (Qwen3-MoE, DeepSeek)";
            return Err(files.folder_error(reason.into()));
        };
        Ok(Self { files, naming, layers, model, dtype })
    }

    /// Returns the naming of its tensors.
    pub fn naming(&self) -> TensorNaming {
        self.naming
    }

    /// Returns the ids of its layers with experts, ascending.
    pub fn layer_ids(&self) -> &[usize] {
        &self.layers
    }

    /// Returns the name of a tensor of a layer.
    fn tensor_name(&self, layer: usize, rest: &str) -> Result<String, ExecError> {
        let id = self.layers.get(layer).ok_or_else(|| {
            self.files.folder_error(format!(
                "no layer {layer}: the checkpoint has {} layers with experts",
                self.layers.len()
            ))
        })?;
        Ok(format!("model.layers.{id}.{rest}"))
    }

    /// Returns the numbers of a tensor of a layer, which must have exactly this shape. Returns `None` if the
    /// tensor is missing.
    fn try_read_tensor(
        &self,
        layer: usize,
        rest: &str,
        shape: &[usize],
    ) -> Result<Option<Vec<f32>>, ExecError> {
        let name = self.tensor_name(layer, rest)?;
        let Some(tensor) = self.files.get(&name) else { return Ok(None) };
        tensor.check_shape(shape)?;
        let scales = match self.files.get(&format!("{name}_scale_inv")) {
            Some(scales) if shape.len() == 2 => {
                scales.check_shape(&[
                    shape[0].div_ceil(decode::SCALE_BLOCK),
                    shape[1].div_ceil(decode::SCALE_BLOCK),
                ])?;
                Some(scales.to_f32()?)
            }
            _ => None,
        };
        let mut numbers = tensor.to_f32()?;
        if let (Some(scales), &[_, columns]) = (scales, shape) {
            decode::scale_blocks(&mut numbers, columns, &scales);
        }
        Ok(Some(tensor.check_finite(numbers)?))
    }

    fn read_tensor(&self, layer: usize, rest: &str, shape: &[usize]) -> Result<Vec<f32>, ExecError> {
        self.try_read_tensor(layer, rest, shape)?.ok_or_else(|| match self.tensor_name(layer, rest) {
            Ok(name) => self.files.folder_error(format!("no tensor {name}")),
            Err(error) => error,
        })
    }

    fn read_matrix(&self, layer: usize, rest: &str, shape: [usize; 2]) -> Result<Matrix, ExecError> {
        let name = self.tensor_name(layer, rest)?;
        // Weights that are stored in bf16 are used unchanged.
        if let (Some(tensor), Dtype::Bf16) = (self.files.get(&name), self.dtype)
            && let Some(numbers) = tensor.finite_bf16()
        {
            tensor.check_shape(&shape)?;
            return Ok(Matrix(Numbers::Bf16(numbers)));
        }
        Ok(Matrix::new(self.dtype, self.read_tensor(layer, rest, &shape)?))
    }

    /// Reads an expert whose three matrices are separate tensors.
    fn read_separate_expert(
        &self,
        layer: usize,
        names: [String; 3],
        inner: usize,
    ) -> Result<ExpertWeights, ExecError> {
        let hidden = self.model.hidden as usize;
        let [gate, up, down] = names;
        Ok(ExpertWeights {
            gate: Some(self.read_matrix(layer, &gate, [inner, hidden])?),
            up: self.read_matrix(layer, &up, [inner, hidden])?,
            down: self.read_matrix(layer, &down, [hidden, inner])?,
            biases: None,
        })
    }

    /// Reads one expert from tensors that hold all experts of a layer (gpt-oss). Rows of gate and up
    /// alternate.
    fn read_fused_expert(&self, layer: usize, expert: usize) -> Result<ExpertWeights, ExecError> {
        let (hidden, inner) = (self.model.hidden as usize, self.model.intermediate as usize);
        let both = self.read_fused_matrix(layer, "gate_up_proj", expert, [2 * inner, hidden])?;
        let (mut gate, mut up) = (Vec::with_capacity(inner * hidden), Vec::with_capacity(inner * hidden));
        for pair in both.chunks_exact(2 * hidden) {
            gate.extend_from_slice(&pair[..hidden]);
            up.extend_from_slice(&pair[hidden..]);
        }
        let down = self.read_fused_matrix(layer, "down_proj", expert, [hidden, inner])?;
        let biases = self.read_fused_bias(layer, "gate_up_proj_bias", expert, 2 * inner)?;
        let biases = Biases {
            gate: biases.iter().copied().step_by(2).collect(),
            up: biases.iter().copied().skip(1).step_by(2).collect(),
            down: self.read_fused_bias(layer, "down_proj_bias", expert, hidden)?,
        };
        Ok(ExpertWeights {
            gate: Some(Matrix::new(self.dtype, gate)),
            up: Matrix::new(self.dtype, up),
            down: Matrix::new(self.dtype, down),
            biases: Some(biases),
        })
    }

    /// Reads one expert's `[rows][columns]` from a tensor of all experts, either in blocks of 4-bit numbers
    /// or as plain transposed numbers.
    fn read_fused_matrix(
        &self,
        layer: usize,
        rest: &str,
        expert: usize,
        [rows, columns]: [usize; 2],
    ) -> Result<Vec<f32>, ExecError> {
        let (experts, name) = (self.model.experts, self.tensor_name(layer, &format!("mlp.experts.{rest}"))?);
        if let Some(plain) = self.files.get(&name) {
            plain.check_shape(&[experts, columns, rows])?;
            let turned = plain.slice_part(expert, experts)?.to_f32()?;
            return Ok((0..rows * columns).map(|at| turned[at % columns * rows + at / columns]).collect());
        }
        let wanted = |rest: &str| -> Result<StoredTensor<'_>, ExecError> {
            let name = format!("{name}_{rest}");
            self.files.get(&name).ok_or_else(|| self.files.folder_error(format!("no tensor {name}")))
        };
        let (blocks, scales) = (wanted("blocks")?, wanted("scales")?);
        blocks.check_shape(&[experts, rows, columns / 32, 16])?;
        scales.check_shape(&[experts, rows, columns / 32])?;
        if !columns.is_multiple_of(32) {
            return Err(self
                .files
                .folder_error(format!("{name}: rows of {columns} numbers, expected a multiple of 32")));
        }
        let (blocks, scales) = (blocks.slice_part(expert, experts)?, scales.slice_part(expert, experts)?);
        // A scale of all ones stands for NaN.
        scales.check_finite(decode::decode_mxfp4(blocks.u8_bytes()?, scales.u8_bytes()?))
    }

    fn read_fused_bias(
        &self,
        layer: usize,
        rest: &str,
        expert: usize,
        width: usize,
    ) -> Result<Vec<f32>, ExecError> {
        let all = self.read_tensor(layer, &format!("mlp.experts.{rest}"), &[self.model.experts, width])?;
        Ok(all[expert * width..][..width].to_vec())
    }
}

impl WeightSource for Checkpoint {
    fn expert_weights(&self, layer: usize, expert: usize) -> Result<ExpertWeights, ExecError> {
        ExecError::expect_size("an expert past the last", expert / self.model.experts.max(1), 0)?;
        match self.naming.expert_names(expert) {
            Some(names) => self.read_separate_expert(layer, names, self.model.intermediate as usize),
            None => self.read_fused_expert(layer, expert),
        }
    }

    fn shared_weights(&self, layer: usize) -> Result<Option<ExpertWeights>, ExecError> {
        if self.model.shared == 0 {
            return Ok(None);
        }
        let names = ["gate_proj", "up_proj", "down_proj"].map(|m| format!("mlp.shared_experts.{m}.weight"));
        Ok(Some(self.read_separate_expert(
            layer,
            names,
            self.model.shared * self.model.intermediate as usize,
        )?))
    }

    fn router_weights(&self, layer: usize) -> Result<GateWeights, ExecError> {
        let (experts, name) = (self.model.experts, self.naming.router_name());
        let weight =
            self.read_matrix(layer, &format!("{name}.weight"), [experts, self.model.hidden as usize])?;
        let bias = self.try_read_tensor(layer, &format!("{name}.bias"), &[experts])?;
        let selection =
            self.try_read_tensor(layer, &format!("{name}.e_score_correction_bias"), &[experts])?;
        Ok(GateWeights {
            weight,
            bias: bias.unwrap_or_default(),
            selection: selection.unwrap_or_default().into_iter().map(f64::from).collect(),
        })
    }

    fn norm_weights(&self, layer: usize) -> Result<Vec<f32>, ExecError> {
        self.read_tensor(layer, "post_attention_layernorm.weight", &[self.model.hidden as usize])
    }
}
