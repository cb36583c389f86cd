//! Source of the times of experts: measurements of this machine, or measured kernels of a serving framework.

use anyhow::{Context as _, bail};
use evenkeel::cluster::Cluster;
use evenkeel::gpu::GpuSpec;
use evenkeel::model::{MoeModel, Precision};
use evenkeel::split::{CostModel, Roofline, expert_roofline};
use evenkeel_cost::{
    CacheState, CostDatabase, Dtype, FORMAT, KernelEntry, KernelTable, MeasuredExperts, MoeShape, Provenance,
    RankKernel, builtin_gpus,
};
use evenkeel_exec::calibrate::RooflineFile;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Argument of `--expert-time`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExpertTimeSource {
    /// A file of `evenkeel calibrate experts`.
    Calibrated(PathBuf),
    /// A framework's kernels, in a database that is part of the program or in a file.
    Kernels(KernelSource),
}

/// Kernels of a serving framework: `DATABASE:FRAMEWORK[:DTYPE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelSource {
    database: String,
    framework: String,
    /// The number format; `None` follows the model's precision.
    dtype: Option<String>,
}

impl FromStr for ExpertTimeSource {
    type Err = Infallible;

    /// Takes the name of an existing file as it is, also with colons in it.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let parts: Vec<&str> = text.split(':').collect();
        let kernels = |database: &str, framework: &str, dtype: Option<&str>| {
            ExpertTimeSource::Kernels(KernelSource {
                database: database.to_owned(),
                framework: framework.to_owned(),
                dtype: dtype.map(str::to_owned),
            })
        };
        Ok(match parts[..] {
            _ if Path::new(text).exists() => ExpertTimeSource::Calibrated(text.into()),
            [database, framework] => kernels(database, framework, None),
            [database, framework, dtype] => kernels(database, framework, Some(dtype)),
            _ => ExpertTimeSource::Calibrated(text.into()),
        })
    }
}

/// Returns the times of experts at a share of the data sheet's rates.
pub(crate) fn data_sheet_times(model: &MoeModel, gpu: &GpuSpec, share: f64) -> Roofline {
    let peak = expert_roofline(model, gpu);
    let at_share = |ps: u64| (ps as f64 / share).round() as u64;
    Roofline { read: at_share(peak.read), token: at_share(peak.token), ..peak }
}

/// Reads a cost database: one that is part of the program, or a file. A file with the name of a GPU is read
/// as `./NAME`.
pub(crate) fn read_database(name: &str) -> anyhow::Result<CostDatabase> {
    if builtin_gpus().contains(&name) || !Path::new(name).exists() {
        return Ok(CostDatabase::builtin(name)?);
    }
    let text = std::fs::read_to_string(name).with_context(|| name.to_owned())?;
    CostDatabase::from_json(&text).with_context(|| name.to_owned())
}

impl KernelSource {
    /// Creates a source whose number format follows the model.
    pub(crate) fn new(database: &str, framework: &str) -> Self {
        Self { database: database.to_owned(), framework: framework.to_owned(), dtype: None }
    }

    /// Returns the kernel for a model on the ranks of a cluster.
    pub(crate) fn kernel_on(&self, model: &MoeModel, cluster: &Cluster) -> anyhow::Result<FrameworkKernel> {
        let database = read_database(&self.database)?;
        let formats: Vec<Dtype> = match (&self.dtype, model.precision) {
            (Some(name), _) => vec![name.parse()?],
            (None, Precision::Fp8) => vec![Dtype::Fp8Block, Dtype::Fp8],
            (None, _) => vec![Dtype::Bfloat16],
        };
        let of_format =
            |dtype| database.kernel_of_model(KernelTable::Moe, &self.framework, dtype, model.into());
        let found = formats.iter().find_map(|&dtype| of_format(dtype).ok());
        let entry = found.map_or_else(|| of_format(formats[0]), Ok)?.clone();
        let shape = MoeShape::of_model(model, cluster.slots() as u64, cluster.ranks() as u64);
        let times = RankKernel::new(&entry, &database.hardware, shape, CacheState::Cold);
        Ok(FrameworkKernel { times, entry, gpu: database.gpu, provenance: database.provenance })
    }
}

/// A framework's kernel on the ranks of a cluster, with its origin.
#[derive(Debug)]
pub(crate) struct FrameworkKernel {
    pub(crate) times: RankKernel,
    entry: KernelEntry,
    gpu: String,
    provenance: Provenance,
}

impl FrameworkKernel {
    /// Returns the built-in kernel that stands for a model on a GPU, if one is measured.
    pub(crate) fn measured(gpu: &str, model: &MoeModel, cluster: &Cluster) -> Option<Self> {
        let database = CostDatabase::builtin(gpu).ok()?;
        let found = database.measured_experts(model, cluster.slots() as u64, cluster.ranks() as u64)?;
        let MeasuredExperts { times, entry, .. } = found;
        Some(Self { times, entry, gpu: database.gpu, provenance: database.provenance })
    }

    /// Returns the median relative error on rows that the fit did not use.
    pub(crate) fn median_error(&self) -> Option<f64> {
        self.entry.median_error()
    }

    /// Returns framework, version and number format.
    pub(crate) fn describe(&self) -> String {
        format!("{} {} in {}", self.entry.framework, self.entry.version, self.entry.dtype)
    }

    pub(crate) fn to_json(&self) -> Value {
        let Self { entry, provenance, .. } = self;
        json!({
            "gpu": self.gpu, "framework": entry.framework, "version": entry.version, "kernel": entry.kernel,
            "dtype": entry.dtype, "errors": entry.errors, "package": provenance.package,
            "package_version": provenance.version,
        })
    }
}

impl ExpertTimeSource {
    /// Returns the times of the experts of a rank of a cluster.
    pub(crate) fn cost_model(
        &self,
        model: &MoeModel,
        cluster: &Cluster,
    ) -> anyhow::Result<Arc<dyn CostModel>> {
        match self {
            ExpertTimeSource::Calibrated(path) => {
                let text = read_calibration(path)?;
                let times = RooflineFile::parse_measured(&text);
                Ok(Arc::new(times.map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?))
            }
            ExpertTimeSource::Kernels(source) => Ok(Arc::new(source.kernel_on(model, cluster)?.times)),
        }
    }
}

/// Reads a file of `evenkeel calibrate experts`. A cost database in its place is an error that says how to
/// name one.
pub(crate) fn read_calibration(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let format = serde_json::from_str::<Value>(&text)
        .ok()
        .and_then(|value| value["format"].as_str().map(str::to_owned));
    if format.as_deref() == Some(FORMAT) {
        bail!(
            "{path}: found a cost database, expected a framework too, as in {path}:sglang",
            path = path.display()
        );
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colons_separate_the_database_from_framework_and_dtype() {
        let source = |text: &str| text.parse::<ExpertTimeSource>().unwrap();
        let kernels = |dtype: Option<&str>| {
            ExpertTimeSource::Kernels(KernelSource {
                database: "h100".into(),
                framework: "sglang".into(),
                dtype: dtype.map(str::to_owned),
            })
        };
        assert_eq!(source("h100:sglang"), kernels(None));
        assert_eq!(source("h100:sglang:fp8_block"), kernels(Some("fp8_block")));
        assert_eq!(source("times.json"), ExpertTimeSource::Calibrated("times.json".into()));
    }
}
