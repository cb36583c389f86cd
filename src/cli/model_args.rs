//! A model on a GPU, as given on the command line.

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
