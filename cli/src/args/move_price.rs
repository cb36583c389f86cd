//! The model, GPU and link that a move is priced by, as given on the command line.

use super::model_args::ModelPerhapsOnGpu;
use clap::Args;
use evenkeel::serve::Shape;
use serde_json::{Value, json};
use std::str::FromStr;

#[derive(Debug, Clone, Args)]
pub(super) struct PriceArgs {
    /// Model, and GPU, that a move is priced by, as in deepseek-v3,h100 or deepseek-v3:bf16 [default: the model by its experts and
    /// layers, else deepseek-v3; h100]
    #[arg(long, value_name = "MODEL[,GPU]", help_heading = "Price of moves")]
    model: Option<ModelNames>,
    /// Gigabits per second that a rank receives, for the price of moves [default: 100]
    #[arg(
        long,
        value_name = "GBPS",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000),
        help_heading = "Price of moves"
    )]
    link_gbps: Option<u64>,
}

/// The names of a model and a GPU, as written.
#[derive(Debug, Clone)]
struct ModelNames {
    model: String,
    gpu: Option<String>,
}

impl FromStr for ModelNames {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        ModelPerhapsOnGpu::from_str(text)?;
        let (model, gpu) = text.split_once(',').map_or((text, None), |(model, gpu)| (model, Some(gpu)));
        Ok(Self { model: model.trim().into(), gpu: gpu.map(|gpu| gpu.trim().into()) })
    }
}

impl PriceArgs {
    /// Puts what is given into a shape.
    pub(super) fn fill(&self, shape: &mut Shape) {
        shape.model = self.model.as_ref().map(|names| names.model.clone());
        shape.gpu = self.model.as_ref().and_then(|names| names.gpu.clone());
        shape.link_gbps = self.link_gbps;
    }

    /// Keys of a shape with their values, of what is given.
    pub(super) fn keys(&self) -> Vec<(&'static str, Value)> {
        let names = self.model.as_ref();
        let keys = [
            ("model", names.map(|names| json!(names.model))),
            ("gpu", names.and_then(|names| names.gpu.as_ref()).map(|gpu| json!(gpu))),
            ("link_gbps", self.link_gbps.map(|gbps| json!(gbps))),
        ];
        keys.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}
