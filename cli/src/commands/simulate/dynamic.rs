//! `evenkeel simulate dynamic`: copies experts into dynamic slots before every batch.

use super::comparison::{Comparison, ComparisonSpec, StudyArgs};
use super::dynamic_table::{DynamicResults, StudyRow};
use super::policies::{ReportParts, write_report};
use super::verdict::check_experts;
use crate::args::dynamic_slots::{AimName, MemoryName, check_slots};
use crate::args::expert_time::{ExpertTimeSource, FrameworkKernel, data_sheet_times};
use crate::args::model::{ModelArgs, ModelOnGpu};
use crate::args::network::NetworkSource;
use crate::args::stated::StatedOptions;
use crate::args::trace::TraceArgs;
use crate::output::{Output, StderrBar};
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel::cluster::Network;
use evenkeel::gpu::DATA_SHEET_SHARE;
use evenkeel::split::{CopyAim, CostModel, DynamicSlots};
use evenkeel_simulate::{DynamicOptions, DynamicTimes, Foresight, simulate_batch_sizes, simulate_dynamic};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use thiserror::Error;

/// Copy experts into dynamic slots before every batch, and count the copies
///
/// Every rank has dynamic slots behind its static ones. Before each batch, copies are chosen together with
/// the exact split. The table compares every policy's placement without and with them. `copies` counts the
/// transfers of weights before a batch of a layer, and `bound` is a proved lower bound for the same peaks.
/// `sent` counts the copies of the busiest sender. `us` is the median time of choosing copies and splitting.
///
/// `--slot-memory shared` is one set of slots for all layers, which every layer finds empty. `kept` has slots
/// of its own in every layer, and copies stay until others replace them.
#[derive(Debug, Args)]
#[command(
    mut_arg("splits", |arg| arg.hide_short_help(true)),
    after_long_help = "Examples:\n  evenkeel simulate dynamic traces/sample-decode.csv.zst --ranks 8 --layers 0-3 --dynamic \
                       1,2\n  evenkeel simulate dynamic gptoss20b-decode/ --ranks 16 --redundant 16 --decode-batch 64 --slot-memory \
                       kept --foresee mean:4\n  evenkeel simulate dynamic DUMP.pt --ranks 32 --model deepseek-v3,h100 --aim \
                       time --hidden-us 200"
)]
pub(super) struct DynamicArgs {
    #[command(flatten)]
    study: StudyArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Dynamic slots per rank; a list gives a row each
    #[arg(
        long,
        value_name = "N,..",
        value_delimiter = ',',
        default_value = "1",
        help_heading = "Dynamic slots"
    )]
    dynamic: Vec<usize>,
    /// Lifetime of copies: shared, kept
    ///
    /// shared: all layers use the same slots, and every layer fills them again. kept: every layer has slots
    /// of its own, and copies stay until others replace them.
    #[arg(
        long,
        value_name = "MEMORY,..",
        value_delimiter = ',',
        default_value = "shared,kept",
        help_heading = "Dynamic slots"
    )]
    slot_memory: Vec<MemoryName>,
    /// Aim of the copies: imbalance:LIMIT, copies:N or time
    ///
    /// imbalance:0.01 makes the fewest copies with which the busiest rank is within 1 % of the mean.
    /// copies:4 takes the lowest peak of at most 4 copies. time takes the least time of experts and exposed
    /// copies. It needs --model MODEL,GPU.
    #[arg(long, value_name = "AIM", default_value = "imbalance:0.01", help_heading = "Dynamic slots")]
    aim: AimName,
    /// Loads that choose the copies: routed, previous, mean:N, perfect or a FILE
    ///
    /// routed: the batch itself, once it is routed. Its copies delay the experts. The others are known before
    /// routing: the batch before, the mean of N batches before, a trace file with predicted loads of every
    /// step, and the batch itself as the limit of every prediction. The split follows the true loads in every
    /// case.
    #[arg(long, value_name = "LOADS", default_value = "routed", help_heading = "Dynamic slots")]
    foresee: ForesightName,
    /// Microseconds of other work that hide copies [default: 0 after routing, unlimited before]
    #[arg(long, value_name = "US", hide_short_help = true, help_heading = "Times")]
    hidden_us: Option<f64>,
    /// Network that carries copies: a system, NODE+CROSS links, or a file of `evenkeel calibrate network`
    /// [default: that of the GPU]
    #[arg(long, value_name = "NAME|FILE", hide_short_help = true, help_heading = "Times")]
    network: Option<NetworkSource>,
    /// Times of experts, instead of measured kernels of the GPU or its data sheet
    ///
    /// A file of `evenkeel calibrate experts`, or measured kernels, as in h100:trtllm.
    #[arg(long, value_name = "FILE|GPU:FRAMEWORK", hide_short_help = true, help_heading = "Times")]
    expert_time: Option<ExpertTimeSource>,
    /// Write a report to this file: one HTML page that needs no network
    ///
    /// With times, a chart shows the fastest of no plan, static plan and copies for growing batches, which
    /// are sums of consecutive recorded ones. It has the first of --slot-memory and --dynamic.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    report: Option<PathBuf>,
    /// Charge every copy also for the reduction of its gradient, in bfloat16
    #[arg(long, hide_short_help = true, help_heading = "Times")]
    training: bool,
}

/// Argument `routed`, `previous`, `mean:N`, `perfect` or a file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ForesightName {
    Routed,
    Past(usize),
    Perfect,
    File(PathBuf),
}

/// Error of text that is no [`ForesightName`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
enum ForesightError {
    #[error("expected mean:N with a number of batches from 1")]
    Batches,
    #[error("expected routed, previous, mean:N, perfect, or a file; there is no file of this name")]
    NoFile,
}

impl FromStr for ForesightName {
    type Err = ForesightError;

    fn from_str(text: &str) -> Result<Self, ForesightError> {
        if let Some(batches) = text.strip_prefix("mean:") {
            return match batches.parse() {
                Ok(batches) if batches > 0 => Ok(ForesightName::Past(batches)),
                _ => Err(ForesightError::Batches),
            };
        }
        match text {
            "routed" => Ok(ForesightName::Routed),
            "previous" => Ok(ForesightName::Past(1)),
            "perfect" => Ok(ForesightName::Perfect),
            file if Path::new(file).exists() => Ok(ForesightName::File(file.into())),
            _ => Err(ForesightError::NoFile),
        }
    }
}

/// Study to run, from options that are valid together.
#[derive(Debug)]
pub(super) struct DynamicRequest {
    comparison: ComparisonSpec,
    /// Model and GPU that give the times, if both are stated.
    on: Option<ModelOnGpu>,
    network: Option<Network>,
    hidden_ps: u64,
}

impl DynamicArgs {
    /// Checks the options against each other.
    pub(super) fn resolve(&self) -> anyhow::Result<DynamicRequest> {
        self.dynamic.iter().try_for_each(|&slots| check_slots(slots))?;
        let timed = [
            ("--aim time", self.aim == AimName::Time),
            ("--hidden-us", self.hidden_us.is_some()),
            ("--network", self.network.is_some()),
            ("--expert-time", self.expert_time.is_some()),
            ("--training", self.training),
        ];
        let on = match (self.model.model, timed.iter().find(|(_, stated)| *stated)) {
            (Some(model), Some((option, _))) => Some(model.with_gpu(option)?),
            (Some(model), None) => model.on_gpu(),
            (None, Some((option, _))) => bail!("{option} needs times: expected --model MODEL,GPU"),
            (None, None) => None,
        };
        let hidden_ps = match (self.hidden_us, &self.foresee) {
            (Some(us), _) if !(0.0..1e9).contains(&us) => {
                bail!("--hidden-us {us}: expected 0 to 1e9 microseconds")
            }
            (Some(us), _) => (us * 1e6).round() as u64,
            (None, ForesightName::Routed) => 0,
            (None, _) => u64::MAX,
        };
        let network =
            match (&self.network, on) {
                (Some(source), _) => Some(source.0.clone()),
                (None, Some(on)) => Some(Network::of_gpu(on.gpu.name).with_context(|| {
                    format!("no network is known for {}: expected --network NAME", on.gpu)
                })?),
                (None, None) => None,
            };
        let comparison = self.study.resolve(self.model.model.map(|on| on.model))?;
        Ok(DynamicRequest { comparison, on, network, hidden_ps })
    }

    fn foresight(&self, request: &DynamicRequest) -> anyhow::Result<Foresight> {
        Ok(match &self.foresee {
            ForesightName::Routed => Foresight::Routed,
            ForesightName::Past(batches) => Foresight::Past(*batches),
            ForesightName::Perfect => Foresight::Perfect,
            ForesightName::File(path) => {
                let predicted = TraceArgs {
                    traces: vec![path.clone()],
                    stated: StatedOptions::default(),
                    format: None,
                    resample: Some(0),
                    ..request.comparison.trace.clone()
                };
                Foresight::Predicted(Arc::new(predicted.read_for_model(None).context("--foresee")?))
            }
        })
    }

    /// Returns the times of experts and copies, and their sources.
    fn times(
        &self,
        request: &DynamicRequest,
        comparison: &Comparison<'_>,
    ) -> anyhow::Result<Option<TimesWithSource>> {
        let (Some(on), Some(network)) = (request.on, &request.network) else { return Ok(None) };
        check_experts(&on.model, comparison.trace)?;
        let cluster = &comparison.config.cluster;
        let measured = FrameworkKernel::measured(on.gpu.name, &on.model, cluster);
        let (experts, source): (Arc<dyn CostModel>, String) = match (&self.expert_time, measured) {
            (Some(times), _) => (times.cost_model(&on.model, cluster)?, "--expert-time".into()),
            (None, Some(kernel)) => (Arc::new(kernel.times.clone()), kernel.describe()),
            (None, None) => (
                Arc::new(data_sheet_times(&on.model, &on.gpu, DATA_SHEET_SHARE)),
                format!("{:.0} % of the data sheet's rates", 100.0 * DATA_SHEET_SHARE),
            ),
        };
        // Copies are chosen without regard to nodes, so the slower link counts.
        let link = if cluster.nodes() > 1 { &network.cross } else { &network.node };
        let gradient = if self.training { 2 * on.model.expert_parameters() } else { 0 };
        let bytes = on.model.expert_bytes() + gradient;
        let start_us = link.exchange_us(1.0, 0.0);
        let to_ps = |us: f64| (us * 1e6).round() as u64;
        let times = DynamicTimes {
            experts,
            start_ps: to_ps(start_us),
            copy_ps: to_ps(link.exchange_us(1.0, bytes as f64) - start_us),
            hidden_ps: request.hidden_ps,
        };
        Ok(Some(TimesWithSource { times, on, source, network: network.to_string(), bytes }))
    }
}

/// Times with their sources.
pub(super) struct TimesWithSource {
    pub(super) times: DynamicTimes,
    pub(super) on: ModelOnGpu,
    pub(super) source: String,
    pub(super) network: String,
    /// Bytes that one copy moves.
    pub(super) bytes: u64,
}

pub(super) fn run(args: &DynamicArgs, output: Output) -> anyhow::Result<()> {
    let request = args.resolve()?;
    let spec = &request.comparison;
    let trace = spec.trace.read_for_model(spec.model)?;
    output.print_notices(trace.notices());
    let comparison = Comparison::run(spec, &trace, output)?;
    let times = args.times(&request, &comparison)?;
    let foresight = args.foresight(&request)?;
    let (tokens, cluster) = (mean_batch_tokens(&comparison), &comparison.config.cluster);
    let linear = times.as_ref().map(|timed| timed.times.copy_times(tokens, cluster));
    let (mut rows, mut batch_sizes) = (vec![], vec![]);
    for &memory in &args.slot_memory {
        for &per_rank in &args.dynamic {
            let aim = match (args.aim, linear) {
                (AimName::Fixed(aim), _) => aim,
                (AimName::Time, Some(linear)) => CopyAim::Time(linear),
                (AimName::Time, None) => bail!("--aim time needs times: expected --model MODEL,GPU"),
            };
            let options = DynamicOptions {
                slots: DynamicSlots::new(per_rank, memory.0).aim(aim),
                foresight: foresight.clone(),
                times: times.as_ref().map(|timed| timed.times.clone()),
            };
            let Comparison { config, outcome, .. } = &comparison;
            let found = simulate_dynamic(&trace, config, outcome, &options, &StderrBar::for_layers())?;
            // Predictions are for recorded batches alone.
            let grows = times.is_some() && !matches!(options.foresight, Foresight::Predicted(_));
            if args.report.is_some() && grows && rows.is_empty() {
                let bar = StderrBar::for_layers();
                batch_sizes = simulate_batch_sizes(&trace, config, outcome, &options, &bar)?;
            }
            rows.extend(found.into_iter().map(|row| StudyRow { per_rank, memory, row }));
        }
    }
    if let Some(path) = &args.report {
        let parts = ReportParts { batch_sizes: &batch_sizes, ..ReportParts::default() };
        write_report(path, &comparison, &parts)?;
        output.print_note(&format!("report written to {}", path.display()));
    }
    let model = times.as_ref().map(|timed| timed.on.model);
    let model = model.or_else(|| comparison.memory.as_ref().map(|memory| memory.model));
    let break_even = linear.map(|times| times.receive.div_ceil(times.token));
    let foresight = foresight.to_string();
    let results = DynamicResults { rows, times, model, foresight, aim: args.aim, break_even };
    comparison.print_study("dynamic", (results.to_text(&comparison), results.to_json(&comparison)), output)
}

/// Returns the mean tokens of all experts in a judged batch of a layer.
fn mean_batch_tokens(comparison: &Comparison<'_>) -> u64 {
    let Some(row) = comparison.outcome.rows.first() else { return 0 };
    let tokens: u64 = row.layers.iter().flat_map(|layer| &layer.totals).sum();
    tokens / (comparison.outcome.batches as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::tests::refusal;

    #[test]
    fn options_that_do_not_fit_are_refused() {
        let message = refusal("dynamic t.csv --ranks 8 --dynamic 0");
        assert!(message.starts_with("--dynamic 0"), "{message}");
        let message = refusal("dynamic t.csv --ranks 8 --aim time");
        assert!(message.starts_with("--aim time needs times"), "{message}");
        let message = refusal("dynamic t.csv --ranks 8 --training --model deepseek-v3");
        assert!(message.contains("--training needs the GPU too"), "{message}");
        let message = refusal("dynamic t.csv --ranks 8 --model deepseek-v3,h100 --hidden-us=-1");
        assert!(message.starts_with("--hidden-us"), "{message}");
    }
}
