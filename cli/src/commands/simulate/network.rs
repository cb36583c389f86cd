//! What lies between the ranks and what they run, as given on the command line; predictions as a table and a document.

use super::model_args::ModelPerhapsOnGpu;
use super::output::{Bar, table};
use anyhow::Context as _;
use clap::Args;
use evenkeel::cluster::Network;
use evenkeel::exec::calibrate;
use evenkeel::model::{Model, Precision};
use evenkeel::simulate::network::{Batches, OneCopyPer, Pace, Predicted, RowBytes, RowFormat, predict};
use evenkeel::simulate::{Config, Outcome};
use evenkeel::split::{Roofline, roofline};
use evenkeel::trace::{TokenTrace, Trace};
use serde_json::{Value, json};
use std::path::Path;
use std::str::FromStr;

/// A preset, or a file that was read.
#[derive(Debug, Clone)]
pub(crate) struct NetworkName(pub(crate) Network);

impl FromStr for NetworkName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (file, settings) = match text.split_once(',') {
            Some((file, settings)) => (file, Some(settings)),
            None => (text, None),
        };
        if !(Path::new(file).extension().is_some_and(|end| end == "json") || file.contains('/')) {
            return Ok(Self(text.parse().map_err(|error: evenkeel::cluster::BadNetwork| error.to_string())?));
        }
        let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
        let network = Network::from_json(&text).map_err(|error| format!("{file}: {error}"))?;
        let network = match settings {
            Some(settings) => network.with(settings).map_err(|error| error.to_string())?,
            None => network,
        };
        Ok(Self(network))
    }
}

/// What rows are dispatched and combined in: `fp8,bf16`, or one for both.
#[derive(Debug, Clone, Copy)]
struct Rows([RowFormat; 2]);

impl FromStr for Rows {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (dispatch, combine) = text.split_once(',').unwrap_or((text, text));
        Ok(Self([dispatch.trim().parse()?, combine.trim().parse()?]))
    }
}

/// The time of steps on a network.
#[derive(Debug, Clone, Args)]
pub(crate) struct NetworkArgs {
    /// Predict step time, tokens/s and the share of communication on this network
    ///
    /// A system (h800, h800-ll, h100, b200, mi300x, p4d, p5en, p6-b200), NODE+CROSS of nvlink3, nvlink4, nvlink4-h800,
    /// nvlink4-h800-ll, nvlink5, xgmi, ib-hdr, ib-ndr, ib-xdr, roce-400, efa-v1 to efa-v4, or a file of `evenkeel calibrate
    /// --network`. Behind it, where wanted, numbers of one's own: h800,cross.gb_s=40,cross.alpha_us=50. Rows are counted token by
    /// token where TRACE holds ids, else expected.
    #[arg(long, value_name = "NAME|FILE", requires = "model", help_heading = "Network")]
    pub(crate) network: Option<NetworkName>,
    /// With --network: what experts take, measured by `evenkeel calibrate`, instead of the GPU's data sheet
    #[arg(long, value_name = "FILE", requires = "network", help_heading = "Network")]
    expert_time: Option<std::path::PathBuf>,
    /// With --network: the share of the GPU's data sheet rates that kernels reach
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.7,
        requires = "network",
        conflicts_with = "expert_time",
        help_heading = "Network"
    )]
    efficiency: f64,
    /// With --network: another width of tokens than the model's
    #[arg(long, value_name = "H", requires = "network", value_parser = clap::value_parser!(u64).range(1..=1 << 20), help_heading = "Network")]
    hidden: Option<u64>,
    /// With --network: what rows are dispatched and combined in: fp8, bf16 or f32 each [default: fp8,bf16 for models in fp8,
    /// else bf16,bf16]
    #[arg(long, value_name = "FORMAT,FORMAT", requires = "network", help_heading = "Network")]
    rows: Option<Rows>,
    /// With --network: how often a token's row is sent: for every visit to an expert, to every rank, or once per node
    ///
    /// visit is what DeepEP's low-latency kernels do, node what its normal kernels do, rank what `evenkeel run` does.
    #[arg(
        long,
        value_name = "visit|rank|node",
        default_value_t = OneCopyPer::Rank,
        requires = "network",
        help_heading = "Network"
    )]
    one_copy_per: OneCopyPer,
    /// With --network: the halves of a batch take turns, one computing while the other communicates
    #[arg(long, requires = "network", help_heading = "Network")]
    overlap: bool,
    /// With --network: what a layer takes beside its exchanges and experts, in microseconds: attention, router, norms
    #[arg(long, value_name = "US", default_value_t = 0.0, requires = "network", help_heading = "Network")]
    other_us: f64,
    /// With --network: MoE layers of a step [default: the model's]
    #[arg(long, value_name = "N", requires = "network", value_parser = clap::value_parser!(u64).range(1..=1 << 16), help_heading = "Network")]
    num_layers: Option<u64>,
}

impl NetworkArgs {
    /// Whether the ids of single tokens are wanted: where files of this format hold them.
    pub(super) fn wants_tokens(&self, trace: &Trace) -> bool {
        self.network.is_some() && trace.format().holds_tokens() && trace.resampling().is_none()
    }

    fn pace(
        &self,
        network: &Network,
        on: ModelPerhapsOnGpu,
        trace: &Trace,
        tokens: Option<&TokenTrace>,
    ) -> anyhow::Result<Pace> {
        let model = Model { hidden: self.hidden.unwrap_or(on.model.hidden), ..on.model };
        if model.experts != trace.experts() {
            let (name, experts, given) = (model.name, model.experts, trace.experts());
            anyhow::bail!("--model {name} has {experts} experts per layer, the trace {given}");
        }
        if let Some(tokens) = tokens.filter(|tokens| tokens.top_k() != model.top_k) {
            let (name, top_k, given) = (model.name, model.top_k, tokens.top_k());
            anyhow::bail!("tokens of --model {name} visit {top_k} experts, those of the trace {given}");
        }
        if !(self.efficiency > 0.0 && self.efficiency <= 1.0) {
            anyhow::bail!("--efficiency {}: expected more than 0 and at most 1", self.efficiency);
        }
        if !(0.0..=1e9).contains(&self.other_us) {
            anyhow::bail!("--other-us {}: expected 0 to 1e9 microseconds", self.other_us);
        }
        let expert = if let Some(path) = &self.expert_time {
            let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
            let read = calibrate::File::roofline(&text);
            read.map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?
        } else {
            let gpu = on.with_gpu("--network without --expert-time")?.gpu;
            let peak = roofline(&model, &gpu);
            let reached = |ps: u64| (ps as f64 / self.efficiency).round() as u64;
            Roofline { read: reached(peak.read), token: reached(peak.token), ..peak }
        };
        let usual = match model.precision {
            Precision::Fp8 => Rows([RowFormat::Fp8, RowFormat::Bf16]),
            _ => Rows([RowFormat::Bf16; 2]),
        };
        let bytes = RowBytes::of(model.hidden, self.rows.unwrap_or(usual).0);
        Ok(Pace {
            network: network.clone(),
            one_copy: self.one_copy_per,
            bytes,
            expert,
            experts: model.experts,
            top_k: model.top_k,
            shared: model.shared,
            layers: self.num_layers.map_or(model.layers, |n| n as usize),
            other_us: self.other_us,
            overlap: self.overlap,
        })
    }

    /// The prediction, where it was asked for.
    pub(super) fn ask(
        &self,
        model: Option<ModelPerhapsOnGpu>,
        trace: &Trace,
        tokens: Option<&TokenTrace>,
        (config, outcome): (&Config, &Outcome),
    ) -> anyhow::Result<Option<OnNetwork>> {
        let (Some(NetworkName(network)), Some(on)) = (&self.network, model) else { return Ok(None) };
        let pace = self.pace(network, on, trace, tokens)?;
        let batches = tokens.map_or(Batches::Counts(trace), Batches::Tokens);
        let bar = Bar::layers();
        let rows = predict(batches, config, outcome, &pace, &bar)?;
        Ok(Some(OnNetwork {
            pace,
            model: on.model.to_string(),
            counted: tokens.is_some(),
            ranks: config.cluster.ranks(),
            rows,
        }))
    }
}

/// What was predicted.
#[derive(Debug)]
pub(super) struct OnNetwork {
    pace: Pace,
    model: String,
    /// Whether rows were counted token by token.
    counted: bool,
    ranks: usize,
    rows: Vec<Predicted>,
}

impl OnNetwork {
    pub(super) fn text(&self, outcome: &Outcome) -> String {
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
            cells.extend([share(row.communication()), share(row.lost())]);
            cells.extend([layer.counts, layer.dispatch, layer.experts, layer.combine, layer.other].map(us));
            cells.extend(row.rows.map(us));
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
        format!("\n{title}\n{}", table(&header, rows.collect(), 2))
    }

    pub(super) fn document(&self, outcome: &Outcome) -> Value {
        let pace = &self.pace;
        let row = |row: &Predicted| {
            let layer = &row.layer;
            json!({
                "policy": outcome.planned[row.planned].policy,
                "split": row.method.to_string(),
                "steps": row.steps,
                "step_us": row.step_us,
                "tokens_per_step": row.tokens,
                "tokens_per_s": row.tokens_per_s,
                "tokens_per_s_per_rank": row.tokens_per_s / self.ranks as f64,
                "communication_share": row.communication(),
                "imbalance_share": row.lost(),
                "layer_us": {
                    "counts": layer.counts, "dispatch": layer.dispatch, "experts": layer.experts,
                    "combine": layer.combine, "other": layer.other, "total": layer.total,
                    "exposed_communication": layer.exposed, "if_balanced": layer.balanced,
                },
                "rows_per_rank": { "in_node": row.rows[0], "to_other_nodes": row.rows[1] },
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
            "expert": { "read_ps": pace.expert.read, "token_ps": pace.expert.token, "tile": pace.expert.tile },
            "other_us": pace.other_us,
            "overlap": pace.overlap,
            "results": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}
