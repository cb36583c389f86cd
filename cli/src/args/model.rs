//! A model on a GPU, as given on the command line.

use anyhow::Context as _;
use evenkeel::gpu::Gpu;
use evenkeel::model::Model;
use std::str::FromStr;

/// `MODEL,GPU`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelOnGpu {
    pub(crate) model: Model,
    pub(crate) gpu: Gpu,
}

impl FromStr for ModelOnGpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (model, gpu) = text.split_once(',').ok_or("expected MODEL,GPU, as in deepseek-v3,h100")?;
        Ok(Self {
            model: model.trim().parse().map_err(|e: evenkeel::model::UnknownModel| e.to_string())?,
            gpu: gpu.trim().parse().map_err(|e: evenkeel::gpu::UnknownGpu| e.to_string())?,
        })
    }
}

/// `MODEL` or `MODEL,GPU`, where what an expert weighs may be enough.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelPerhapsOnGpu {
    pub(crate) model: Model,
    gpu: Option<Gpu>,
}

impl ModelPerhapsOnGpu {
    /// The same where `option` needs to know the GPU.
    pub(crate) fn with_gpu(self, option: &str) -> anyhow::Result<ModelOnGpu> {
        let model = self.model;
        let missing = || format!("--model {model}: {option} needs the GPU too, as in {model},h100");
        Ok(ModelOnGpu { model, gpu: self.gpu.with_context(missing)? })
    }
}

impl FromStr for ModelPerhapsOnGpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(',') {
            let ModelOnGpu { model, gpu } = text.parse()?;
            return Ok(Self { model, gpu: Some(gpu) });
        }
        let model = text.trim().parse().map_err(|e: evenkeel::model::UnknownModel| e.to_string())?;
        Ok(Self { model, gpu: None })
    }
}
