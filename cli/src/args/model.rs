//! A model, and a model on a GPU, from the command line.

use anyhow::Context as _;
use clap::Args;
use evenkeel::gpu::{GpuSpec, UnknownGpu};
use evenkeel::model::{MoeModel, UnknownModel};
use std::str::FromStr;
use thiserror::Error;

/// Argument of the form `MODEL,GPU`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelOnGpu {
    pub(crate) model: MoeModel,
    pub(crate) gpu: GpuSpec,
}

/// Error of text that names no model, or no model on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum ModelOnGpuError {
    #[error("expected MODEL,GPU, as in deepseek-v3,h100")]
    MissingGpu,
    #[error(transparent)]
    Model(#[from] UnknownModel),
    #[error(transparent)]
    Gpu(#[from] UnknownGpu),
}

impl FromStr for ModelOnGpu {
    type Err = ModelOnGpuError;

    fn from_str(text: &str) -> Result<Self, ModelOnGpuError> {
        let (model, gpu) = text.split_once(',').ok_or(ModelOnGpuError::MissingGpu)?;
        Ok(Self { model: model.trim().parse()?, gpu: gpu.trim().parse()? })
    }
}

/// Argument of the form `MODEL` or `MODEL,GPU`, for options that may only need the size of an expert.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelMaybeOnGpu {
    pub(crate) model: MoeModel,
    gpu: Option<GpuSpec>,
}

impl ModelMaybeOnGpu {
    /// Returns both if the GPU is stated.
    pub(crate) fn on_gpu(self) -> Option<ModelOnGpu> {
        Some(ModelOnGpu { model: self.model, gpu: self.gpu? })
    }

    /// Returns both, or an error if the GPU is missing. `option` names the option that needs the GPU.
    pub(crate) fn with_gpu(self, option: &str) -> anyhow::Result<ModelOnGpu> {
        let model = self.model;
        let missing = || format!("--model {model}: {option} needs the GPU too, as in {model},h100");
        Ok(ModelOnGpu { model, gpu: self.gpu.with_context(missing)? })
    }
}

impl FromStr for ModelMaybeOnGpu {
    type Err = ModelOnGpuError;

    fn from_str(text: &str) -> Result<Self, ModelOnGpuError> {
        if text.contains(',') {
            let ModelOnGpu { model, gpu } = text.parse()?;
            return Ok(Self { model, gpu: Some(gpu) });
        }
        Ok(Self { model: text.trim().parse()?, gpu: None })
    }
}

/// The model that runs, for the size of its experts.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// Model that runs, as in deepseek-v3 or deepseek-v3,h100: states the memory of redundant slots
    ///
    /// Its top-k also applies where batches are drawn. Without this option, the memory is that of the known
    /// models that have the experts and layers of the trace, where they agree. Options that need times need
    /// the GPU too.
    #[arg(long, value_name = "MODEL[,GPU]", hide_short_help = true, help_heading = "Cluster")]
    pub(crate) model: Option<ModelMaybeOnGpu>,
}
