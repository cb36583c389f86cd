//! `evenkeel trace synth`: writes a synthetic trace.

use crate::output::{Output, StderrBar, print_json, print_text};
use crate::render::units::{format_decimal_bytes, group_digits};
use clap::Args;
use evenkeel_trace::Batching;
use evenkeel_trace::synth::{SynthSpec, write};
use serde_json::json;
use std::path::PathBuf;

/// Write a synthetic trace
///
/// Tokens draw their experts from weights. Weights differ permanently (--skew), by kind of request (--kinds,
/// --kinds-spread), by request (--dispersion, partly in common: --correlation, --rank) and over time
/// (--drift). All sizes are standard deviations of logits: 0 is none, 1 is large. The same seed gives the
/// same trace. Steps are streamed to the file.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel trace synth --experts 256 --layers 58 --first-layer 3 --top-k 8 --steps 200 \
                             -o trace.parquet\n  evenkeel trace synth --like gptoss20b-decode --seed 7 -o decode.csv.zst"
)]
pub(crate) struct SynthArgs {
    /// Preset with the values of a real recording: gptoss20b-decode or deepseek-v2-lite-prefill
    #[arg(long, value_name = "PRESET")]
    like: Option<String>,
    /// Experts per layer [default: 64]
    #[arg(long, value_name = "N")]
    experts: Option<usize>,
    /// Experts per token [default: 6]
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Number of MoE layers [default: 26]
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Id of the first MoE layer [default: 0]
    #[arg(long, value_name = "ID", hide_short_help = true)]
    first_layer: Option<u32>,
    /// Batches to write [default: 200]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Tokens of a prefill batch, one request after the other [default: 512]
    #[arg(long, value_name = "TOKENS", conflicts_with = "decode_batch", help_heading = "Batches")]
    batch_tokens: Option<usize>,
    /// Requests of a decode batch, one token each
    #[arg(long, value_name = "REQUESTS", help_heading = "Batches")]
    decode_batch: Option<usize>,
    /// Mean tokens of a request [default: 300]
    #[arg(long, value_name = "TOKENS", help_heading = "Batches", hide_short_help = true)]
    request_tokens: Option<f64>,
    /// Standard deviation of the logarithm of request lengths [default: 0.6]
    #[arg(long, value_name = "SD", help_heading = "Batches", hide_short_help = true)]
    request_spread: Option<f64>,
    /// Permanent inequality of experts [default: 0.7]
    #[arg(long, value_name = "SD", help_heading = "Routing")]
    skew: Option<f64>,
    /// Shape of the inequality: above 1 a few experts stand out more [default: 1]
    #[arg(long, value_name = "POWER", help_heading = "Routing", hide_short_help = true)]
    tail: Option<f64>,
    /// Kinds of requests [default: 4]
    #[arg(long, value_name = "N", help_heading = "Routing", hide_short_help = true)]
    kinds: Option<usize>,
    /// Difference between kinds [default: 0.4]
    #[arg(long, value_name = "SD", help_heading = "Routing", hide_short_help = true)]
    kinds_spread: Option<f64>,
    /// Consecutive requests of one kind: 1 mixes kinds, 0 is one long run per kind [default: 1]
    #[arg(long, value_name = "N", help_heading = "Routing", hide_short_help = true)]
    kinds_run: Option<usize>,
    /// Difference between requests of a kind [default: 0.7]
    #[arg(long, value_name = "SD", help_heading = "Routing", hide_short_help = true)]
    dispersion: Option<f64>,
    /// Share of the dispersion that experts have in common, 0 to 1 [default: 0.5]
    #[arg(long, value_name = "SHARE", help_heading = "Routing", hide_short_help = true)]
    correlation: Option<f64>,
    /// Latent factors of the common part: with fewer factors, more experts move together [default: 8]
    #[arg(long, value_name = "N", help_heading = "Routing", hide_short_help = true)]
    rank: Option<usize>,
    /// Tokens between two changes of a request's topic, 0 for no change [default: 0]
    #[arg(long, value_name = "TOKENS", help_heading = "Routing", hide_short_help = true)]
    topic_tokens: Option<usize>,
    /// Share of the topic that a change keeps, 0 to 1 [default: 0.8]
    #[arg(long, value_name = "SHARE", help_heading = "Routing", hide_short_help = true)]
    topic_persistence: Option<f64>,
    /// Size of the slow drift of all experts [default: 0.2]
    #[arg(long, value_name = "SD", help_heading = "Routing", hide_short_help = true)]
    drift: Option<f64>,
    /// Share of the drift that a step keeps, 0 to 1 [default: 0.98]
    #[arg(long, value_name = "SHARE", help_heading = "Routing", hide_short_help = true)]
    drift_persistence: Option<f64>,
    /// Seed of all random choices [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// File to write: .csv, .csv.gz, .csv.zst or .parquet
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

impl SynthArgs {
    /// Returns the specification: the preset or the defaults, with the stated options.
    fn resolve(&self) -> anyhow::Result<SynthSpec> {
        let mut spec =
            self.like.as_deref().map_or_else(|| Ok(SynthSpec::default()), SynthSpec::from_preset)?;
        match (self.batch_tokens, self.decode_batch) {
            (Some(tokens), _) => spec.batching = Batching::Prefill { tokens },
            (None, Some(in_flight)) => spec.batching = Batching::Decode { in_flight },
            (None, None) => {}
        }
        spec.experts = self.experts.unwrap_or(spec.experts);
        spec.top_k = self.top_k.unwrap_or(spec.top_k);
        spec.layers = self.layers.unwrap_or(spec.layers);
        spec.first_layer = self.first_layer.unwrap_or(spec.first_layer);
        spec.steps = self.steps.unwrap_or(spec.steps);
        spec.skew = self.skew.unwrap_or(spec.skew);
        spec.tail = self.tail.unwrap_or(spec.tail);
        spec.kinds = self.kinds.unwrap_or(spec.kinds);
        spec.kinds_spread = self.kinds_spread.unwrap_or(spec.kinds_spread);
        spec.kinds_run = self.kinds_run.unwrap_or(spec.kinds_run);
        spec.dispersion = self.dispersion.unwrap_or(spec.dispersion);
        spec.correlation = self.correlation.unwrap_or(spec.correlation);
        spec.rank = self.rank.unwrap_or(spec.rank);
        spec.request_tokens = self.request_tokens.unwrap_or(spec.request_tokens);
        spec.request_spread = self.request_spread.unwrap_or(spec.request_spread);
        spec.topic_tokens = self.topic_tokens.unwrap_or(spec.topic_tokens);
        spec.topic_persistence = self.topic_persistence.unwrap_or(spec.topic_persistence);
        spec.drift = self.drift.unwrap_or(spec.drift);
        spec.drift_persistence = self.drift_persistence.unwrap_or(spec.drift_persistence);
        spec.seed = self.seed.unwrap_or(spec.seed);
        Ok(spec)
    }
}

pub(super) fn run(args: &SynthArgs, output: Output) -> anyhow::Result<()> {
    let spec = args.resolve()?;
    let bar = StderrBar::for_synthesis();
    let rows = write(&spec, &args.output, &bar)?;
    drop(bar);
    let bytes = std::fs::metadata(&args.output).map_or(0, |meta| meta.len());
    if output.is_json() {
        return print_json(&json!({
            "out": args.output, "rows": rows, "bytes": bytes, "steps": spec.steps, "layers": spec.layers,
            "experts": spec.experts, "top_k": spec.top_k, "seed": spec.seed,
        }));
    }
    print_text(&format!(
        "wrote {}: {} steps x {} layers x {} experts, {} rows, {}\n",
        args.output.display(),
        spec.steps,
        spec.layers,
        spec.experts,
        group_digits(rows),
        format_decimal_bytes(bytes)
    ))
}
