//! `evenkeel simulate network`: predicts step times on a network model.

use super::comparison::{Comparison, ComparisonSpec, StudyArgs};
use super::verdict::check_experts;
use crate::args::expert_time::{ExpertTimeSource, data_sheet_times, read_calibration};
use crate::args::model::ModelMaybeOnGpu;
use crate::args::network::NetworkSource;
use crate::output::{Output, StderrBar};
use crate::render::table::render_table;
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel::cluster::Cluster;
use evenkeel::gpu::{DATA_SHEET_SHARE, GpuSpec};
use evenkeel::model::MoeModel;
use evenkeel::split::{CostModel, Roofline};
use evenkeel::trace::{TokenTrace, Trace};
use evenkeel_exec::calibrate::RooflineFile;
use evenkeel_simulate::SimulationResult;
use evenkeel_simulate::network::{
    PredictionInput, RowAggregation, RowBytes, RowFormats, StepCostModel, StepPrediction, predict_steps,
};
use serde_json::{Value, json};
use std::sync::Arc;

/// Predict step time, tokens/s and the share of communication on a network
///
/// Rows are counted token by token where TRACE holds token ids. Otherwise traffic is estimated from counts.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel simulate network traces/sample-decode.csv.zst --ranks 8 --nodes 2 --redundant 8 \
                       --layers 0-3 --network h800 --model gpt-oss-20b,h800\n  evenkeel simulate network TRACE --ranks 288 --nodes \
                       36 --network h800 --model deepseek-v3,h800 --one-copy-per node"
)]
pub(super) struct NetworkArgs {
    #[command(flatten)]
    study: StudyArgs,
    /// Network: the name of a system, NODE+CROSS links, or a file of `evenkeel calibrate network`
    ///
    /// Systems are h800, h800-ll, h100, b200, gb200, l40s, mi300x, p4d, p5en, p6-b200. Links are nvlink3,
    /// nvlink4, nvlink4-h800, nvlink4-h800-ll, nvlink5, pcie4, xgmi, ib-hdr, ib-ndr, ib-xdr, roce-400, efa-v1
    /// to efa-v4.
    /// Numbers after a name or file replace its own: h800,cross.gb_s=40,cross.alpha_us=50.
    #[arg(long, value_name = "NAME|FILE", required = true, help_heading = "Network")]
    network: NetworkSource,
    /// Model and GPU that run, as in deepseek-v3,h800
    ///
    /// With --expert-time the GPU may be left out.
    #[arg(long, value_name = "MODEL[,GPU]", required = true, help_heading = "Network")]
    model: ModelMaybeOnGpu,
    /// Times of experts, instead of the GPU's data sheet
    ///
    /// A file of `evenkeel calibrate experts`, or measured kernels, as in h100:trtllm: a GPU of
    /// `evenkeel costs show` or a file of `evenkeel costs import`, and a framework.
    #[arg(long, value_name = "FILE|GPU:FRAMEWORK", hide_short_help = true, help_heading = "Network")]
    expert_time: Option<ExpertTimeSource>,
    /// Share of the data sheet's rates that kernels reach
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = DATA_SHEET_SHARE,
        conflicts_with = "expert_time",
        hide_short_help = true,
        help_heading = "Network"
    )]
    efficiency: f64,
    /// Width of tokens, instead of the model's
    #[arg(
        long,
        value_name = "H",
        value_parser = clap::value_parser!(u64).range(1..=1 << 20),
        hide_short_help = true,
        help_heading = "Network"
    )]
    hidden: Option<u64>,
    /// Formats of dispatched and combined rows: fp8, bf16 or f32 each [default: fp8,bf16 for models in fp8,
    /// else bf16,bf16]
    #[arg(long, value_name = "FORMAT,FORMAT", hide_short_help = true, help_heading = "Network")]
    row_format: Option<RowFormats>,
    /// Destinations of a token's row
    ///
    /// A row goes to every visit to an expert, to every rank, or to every node.
    /// visit is the rule of DeepEP's low-latency kernels, node of its normal kernels, rank of `evenkeel run`.
    #[arg(long, value_name = "visit|rank|node", default_value_t = RowAggregation::Rank, help_heading = "Network")]
    one_copy_per: RowAggregation,
    /// Overlap two halves of a batch
    ///
    /// One half computes while the other communicates.
    #[arg(long, help_heading = "Network")]
    overlap: bool,
    /// Microseconds per layer besides exchanges and experts: attention, router, norms
    #[arg(long, value_name = "US", default_value_t = 0.0, hide_short_help = true, help_heading = "Network")]
    extra_layer_us: f64,
    /// Tiles of attention whose tokens one pass of the experts joins, G
    ///
    /// Attention runs on G consecutive batches of the trace one after the other, and experts once on all of
    /// them. --extra-layer-us is the time of one tile.
    #[arg(
        long,
        value_name = "G",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=1 << 10),
        hide_short_help = true,
        help_heading = "Network"
    )]
    attention_tiles: u64,
    /// MoE layers of a step [default: the model's]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u64).range(1..=1 << 16),
        hide_short_help = true,
        help_heading = "Network"
    )]
    num_layers: Option<u64>,
}

/// Source of the times of experts.
#[derive(Debug, Clone)]
enum ExpertTime {
    /// Measurements.
    Measured(ExpertTimeSource),
    /// The data sheet of a GPU.
    DataSheet(GpuSpec),
}

/// Prediction to compute, from options that are valid together.
#[derive(Debug)]
pub(super) struct NetworkRequest {
    comparison: ComparisonSpec,
    expert_time: ExpertTime,
}

impl NetworkArgs {
    /// Checks the options against each other.
    pub(super) fn resolve(&self) -> anyhow::Result<NetworkRequest> {
        if !(self.efficiency > 0.0 && self.efficiency <= 1.0) {
            bail!("--efficiency {}: expected more than 0 and at most 1", self.efficiency);
        }
        if !(0.0..=1e9).contains(&self.extra_layer_us) {
            bail!("--extra-layer-us {}: expected 0 to 1e9 microseconds", self.extra_layer_us);
        }
        let expert_time = match &self.expert_time {
            Some(source) => ExpertTime::Measured(source.clone()),
            None => ExpertTime::DataSheet(self.model.with_gpu("--network without --expert-time")?.gpu),
        };
        Ok(NetworkRequest { comparison: self.study.resolve(Some(self.model.model))?, expert_time })
    }

    /// Returns the parameters of the prediction for a trace, and the source of the times of experts.
    fn prediction_parameters(
        &self,
        expert_time: &ExpertTime,
        (trace, cluster): (&Trace, &Cluster),
        tokens: Option<&TokenTrace>,
    ) -> anyhow::Result<(StepCostModel, TimesSource)> {
        let on = self.model.model;
        let model = MoeModel { hidden: self.hidden.unwrap_or(on.hidden), ..on };
        check_experts(&model, trace)?;
        if let Some(tokens) = tokens.filter(|tokens| tokens.top_k() != model.top_k) {
            let (name, top_k, found) = (model.name, model.top_k, tokens.top_k());
            bail!("tokens of --model {name} visit {top_k} experts, those of the trace {found}");
        }
        let (expert, source) = expert_time.cost_model(&model, cluster, self.efficiency)?;
        let mut pace = StepCostModel::for_model(self.network.0.clone(), &model, expert)
            .one_copy(self.one_copy_per)
            .layers(self.num_layers.map_or(model.layers, |n| n as usize))
            .other_us(self.extra_layer_us * self.attention_tiles as f64)
            .overlap(self.overlap);
        if let Some(formats) = self.row_format {
            pace.bytes = RowBytes::for_width(model.hidden, formats);
        }
        Ok((pace, source))
    }
}

impl ExpertTime {
    /// Returns the times of experts on a cluster, and their source.
    fn cost_model(
        &self,
        model: &MoeModel,
        cluster: &Cluster,
        efficiency: f64,
    ) -> anyhow::Result<(Arc<dyn CostModel>, TimesSource)> {
        let (roofline, words) = match self {
            ExpertTime::Measured(ExpertTimeSource::Kernels(source)) => {
                let kernel = source.kernel_on(model, cluster)?;
                let error = kernel.median_error().map_or_else(
                    || "an unknown error".to_owned(),
                    |error| format!("a median error of {:.1} %", 100.0 * error),
                );
                let words = format!("{}, with {error} on shapes that the fit did not use", kernel.describe());
                return Ok((
                    Arc::new(kernel.times.clone()),
                    TimesSource { words, document: kernel.to_json() },
                ));
            }
            ExpertTime::Measured(ExpertTimeSource::Calibrated(path)) => {
                let read = RooflineFile::parse_roofline(&read_calibration(path)?);
                let read = read.map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
                (read, format!("the roofline of {}", path.display()))
            }
            ExpertTime::DataSheet(gpu) => {
                let share = 100.0 * efficiency;
                (data_sheet_times(model, gpu, efficiency), format!("{share:.0} % of the data sheet's rates"))
            }
        };
        let Roofline { read, token, tile } = roofline;
        let document = json!({ "read_ps": read, "token_ps": token, "tile": tile });
        Ok((Arc::new(roofline), TimesSource { words, document }))
    }
}

/// Source of the times of experts, in words and for documents.
#[derive(Debug)]
struct TimesSource {
    words: String,
    document: Value,
}

pub(super) fn run(args: &NetworkArgs, output: Output) -> anyhow::Result<()> {
    let NetworkRequest { comparison: spec, expert_time } = args.resolve()?;
    let read = spec.trace.read_for_model(spec.model)?;
    let tiles = args.attention_tiles as usize;
    let read = if tiles > 1 { read.join_steps(tiles).context("--attention-tiles")? } else { read };
    // Joined batches are counted, since their tokens belong to several steps of the trace.
    let tokens = if tiles > 1 { None } else { read_token_ids(&spec, &read, output) };
    let trace = tokens.as_ref().map_or(&read, TokenTrace::trace);
    output.print_notices(trace.notices());
    let cluster = spec.cluster.for_experts(trace.experts())?;
    let (pace, expert) = args.prediction_parameters(&expert_time, (trace, &cluster), tokens.as_ref())?;
    let comparison = Comparison::run(&spec, trace, output)?;
    let Comparison { config, outcome, .. } = &comparison;
    let batches = tokens.as_ref().map_or(PredictionInput::Counts(trace), PredictionInput::Tokens);
    let bar = StderrBar::for_layers();
    let rows = predict_steps(batches, config, outcome, &pace, &bar)?;
    drop(bar);
    let prediction = NetworkPrediction {
        pace,
        expert,
        model: args.model.model.to_string(),
        counted: tokens.is_some(),
        ranks: config.cluster.ranks(),
        rows,
    };
    let study = (prediction.to_text(outcome), prediction.to_json(outcome));
    comparison.print_study("network", study, output)
}

/// Returns the ids of single tokens, if files of this format hold them and they can be read.
fn read_token_ids(spec: &ComparisonSpec, trace: &Trace, output: Output) -> Option<TokenTrace> {
    if !trace.format().holds_tokens() || trace.resampling().is_some() {
        return None;
    }
    match spec.trace.read_tokens() {
        Ok(tokens) => Some(tokens),
        Err(error) => {
            output.print_note(&format!("traffic is estimated from counts: {error:#}"));
            None
        }
    }
}

/// A prediction of the step times on a network.
#[derive(Debug)]
struct NetworkPrediction {
    pace: StepCostModel,
    expert: TimesSource,
    model: String,
    /// True if rows were counted token by token.
    counted: bool,
    ranks: usize,
    rows: Vec<StepPrediction>,
}

impl NetworkPrediction {
    fn to_text(&self, outcome: &SimulationResult) -> String {
        let pace = &self.pace;
        let title = format!(
            "Predicted on {}: {} layers of {}, a row per {} ({}), {:.0} tokens per step{}",
            pace.network,
            pace.layers,
            self.model,
            pace.one_copy,
            if self.counted { "counted" } else { "expected" },
            self.rows.first().map_or(0.0, |row| row.tokens),
            if pace.overlap { ", halves of a batch taking turns" } else { "" },
        );
        let rows = self.rows.iter().map(|row| {
            let us = |us: f64| format!("{us:.1}");
            let share = |share: f64| format!("{:.1}%", 100.0 * share);
            let layer = &row.layer;
            let mut cells = vec![outcome.planned[row.planned].policy.clone(), row.method.to_string()];
            cells.extend([row.step_us.mean, row.step_us.p95].map(|us| format!("{:.3}", us / 1e3)));
            cells.push(format!("{:.0}", row.tokens_per_s));
            cells.push(format!("{:.0}", row.tokens_per_s / self.ranks as f64));
            cells.extend([share(row.communication_share()), share(row.imbalance_share())]);
            cells.extend([layer.counts, layer.dispatch, layer.experts, layer.combine, layer.other].map(us));
            cells.extend([row.rows.in_node, row.rows.cross].map(us));
            cells
        });
        let header = [
            "policy",
            "split",
            "step ms",
            "p95",
            "tokens/s",
            "per rank",
            "comm.",
            "imbalance",
            "counts us",
            "dispatch",
            "experts",
            "combine",
            "other",
            "rows in node",
            "to others",
        ];
        let experts = &self.expert.words;
        format!("{title}\nTimes of experts: {experts}\n{}", render_table(&header, rows.collect(), 2))
    }

    fn to_json(&self, outcome: &SimulationResult) -> Value {
        let pace = &self.pace;
        let row = |row: &StepPrediction| {
            let layer = &row.layer;
            json!({
                "policy": outcome.planned[row.planned].policy,
                "split": row.method.to_string(),
                "steps": row.steps,
                "step_us": row.step_us,
                "tokens_per_step": row.tokens,
                "tokens_per_s": row.tokens_per_s,
                "tokens_per_s_per_rank": row.tokens_per_s / self.ranks as f64,
                "communication_share": row.communication_share(),
                "imbalance_share": row.imbalance_share(),
                "layer_us": {
                    "counts": layer.counts, "dispatch": layer.dispatch, "experts": layer.experts,
                    "combine": layer.combine, "other": layer.other, "total": layer.total,
                    "exposed_communication": layer.exposed, "if_balanced": layer.balanced,
                },
                "rows_per_rank": { "in_node": row.rows.in_node, "to_other_nodes": row.rows.cross },
            })
        };
        json!({
            "network": pace.network,
            "model": self.model,
            "layers": pace.layers,
            "one_copy_per": pace.one_copy.to_string(),
            "rows": if self.counted { "counted" } else { "expected" },
            "bytes": {
                "dispatch": pace.bytes.dispatch, "combine": pace.bytes.combine, "visit": pace.bytes.visit,
                "count": pace.bytes.count,
            },
            "expert": self.expert.document,
            "other_us": pace.other_us,
            "overlap": pace.overlap,
            "results": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::refusal;

    fn network_refusal(options: &str) -> String {
        refusal(&format!("network t.csv --ranks 8 --network h800 {options}"))
    }

    #[test]
    fn an_efficiency_out_of_range_is_refused() {
        let message = network_refusal("--model gpt-oss-20b,h800 --efficiency 2");
        assert!(message.starts_with("--efficiency 2"), "{message}");
    }

    #[test]
    fn a_layer_time_out_of_range_is_refused() {
        let message = network_refusal("--model gpt-oss-20b,h800 --extra-layer-us 2e9");
        assert!(message.starts_with("--extra-layer-us 2000000000"), "{message}");
    }

    #[test]
    fn a_model_without_a_gpu_or_measured_times_is_refused() {
        assert!(network_refusal("--model gpt-oss-20b").contains("needs the GPU too"));
    }
}
