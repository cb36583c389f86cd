//! The model, GPU and link that determine the price of a move, from the command line.

use crate::args::model::{ModelMaybeOnGpu, ModelOnGpuError};
use clap::Args;
use evenkeel_serve::ModelSpec;
use serde_json::{Value, json};
use std::str::FromStr;

#[derive(Debug, Clone, Args)]
pub(crate) struct MovePriceArgs {
    /// Model and GPU that price a move, as in deepseek-v3,h100
    ///
    /// A precision follows the model, as in deepseek-v3:bf16. The default is the model with the experts and
    /// layers of the trace, else deepseek-v3, on h100.
    #[arg(long, value_name = "MODEL[,GPU]", help_heading = "Price of moves")]
    model: Option<ModelNames>,
    /// Gigabits per second that a rank receives, for the price of moves [default: by the GPU]
    #[arg(
        long,
        value_name = "GBPS",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000),
        hide_short_help = true,
        help_heading = "Price of moves"
    )]
    link_gbps: Option<u64>,
}

/// Names of a model and a GPU, as written by the user.
#[derive(Debug, Clone)]
struct ModelNames {
    model: String,
    gpu: Option<String>,
}

impl FromStr for ModelNames {
    type Err = ModelOnGpuError;

    fn from_str(text: &str) -> Result<Self, ModelOnGpuError> {
        ModelMaybeOnGpu::from_str(text)?;
        let (model, gpu) = text.split_once(',').map_or((text, None), |(model, gpu)| (model, Some(gpu)));
        Ok(Self { model: model.trim().into(), gpu: gpu.map(|gpu| gpu.trim().into()) })
    }
}

impl MovePriceArgs {
    /// Copies the stated options into a shape.
    pub(crate) fn fill_shape(&self, shape: &mut ModelSpec) {
        shape.model = self.model.as_ref().map(|names| names.model.clone());
        shape.gpu = self.model.as_ref().and_then(|names| names.gpu.clone());
        shape.link_gbps = self.link_gbps;
    }

    /// Returns the stated options as keys of a shape with their values.
    pub(crate) fn shape_fields(&self) -> Vec<(&'static str, Value)> {
        let names = self.model.as_ref();
        let fields = [
            ("model", names.map(|names| json!(names.model))),
            ("gpu", names.and_then(|names| names.gpu.as_ref()).map(|gpu| json!(gpu))),
            ("link_gbps", self.link_gbps.map(|gbps| json!(gbps))),
        ];
        fields.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}
