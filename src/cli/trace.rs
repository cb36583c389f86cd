//! `evenkeel trace`: look at traces, convert them, make synthetic ones.
//!
//! In: the command line. Out: tables for people or one JSON document for machines.

use super::output::{Bar, Output, document, print, table};
use super::trace_args::TraceArgs;
use evenkeel::trace::{Batching, Skew, Trace, convert, synth};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Look at, convert and make routing traces
#[derive(Debug, clap::Subcommand)]
pub(crate) enum TraceCommand {
    /// Say what a trace holds: steps, layers, experts, tokens, skew
    ///
    /// Reads any format, recognised by content. Everything that was guessed, left out or unusual is
    /// listed under "notices". A trace without any tokens is reported as such and is no error.
    #[command(after_help = "Examples:\n  evenkeel trace inspect counts.csv --step-column family\n  \
        evenkeel trace inspect dumps/            # one dump per rank: summed\n  \
        evenkeel trace inspect gptoss/ --decode-batch 64 --order shuffled")]
    Inspect(InspectArgs),

    /// Rewrite traces as one long table: step,layer,expert,tokens[,source]
    ///
    /// The kind of file is told by the ending of OUT. Rows are streamed, so size does not matter;
    /// labels of steps and sources are kept. Per-token arrays are cut into batches on the way.
    #[command(
        after_help = "Examples:\n  evenkeel trace convert expert_distribution_recorder_1.pt -o trace.parquet\n  \
        evenkeel trace convert gptoss/ --batch-tokens 1024 -o prefill.csv.zst"
    )]
    Convert(ConvertArgs),

    /// Make a synthetic trace
    ///
    /// Tokens draw their experts from weights that differ for good (--skew), by kind of request
    /// (--kinds, --kinds-spread), by request (--dispersion, partly in common: --correlation,
    /// --rank) and over time (--drift). All sizes are standard deviations of logits: 0 is none, 1
    /// is a lot. The same seed gives the same trace. Steps are written as they are made.
    #[command(
        after_help = "Examples:\n  evenkeel trace synth --experts 256 --layers 58 --first-layer 3 --top-k 8 --steps 200 -o trace.parquet\n  \
        evenkeel trace synth --like gptoss20b-decode --seed 7 -o decode.csv.zst"
    )]
    Synth(Box<SynthArgs>),

    /// Post a trace to a running `evenkeel serve`, step by step
    ///
    /// Steps are numbered from 0; a replay that was cut short can be run again, what the service knows already is only
    /// acknowledged. A model that the service does not know is made, with --ranks and --redundant.
    #[cfg(feature = "serve")]
    #[command(
        after_help = "Examples:\n  evenkeel trace replay traces/sample-prefill.csv.zst --to http://127.0.0.1:8787 --speed 10\n  \
        evenkeel trace replay gptoss/ --decode-batch 64 --to http://127.0.0.1:8787 --name gpt-oss --ranks 8 --redundant 8"
    )]
    Replay(Box<super::trace_replay::ReplayArgs>),
}

/// Arguments of `trace inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    trace: TraceArgs,
    /// List every layer instead of a summary
    #[arg(long)]
    per_layer: bool,
}

/// Arguments of `trace convert`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    trace: TraceArgs,
    /// File to write: .csv, .csv.gz, .csv.zst or .parquet
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
}

/// Arguments of `trace synth`; what is not given comes from `--like` or the defaults.
#[derive(Debug, clap::Args)]
pub(crate) struct SynthArgs {
    /// Start from values modelled on a real recording: gptoss20b-decode or deepseek-v2-lite-prefill
    #[arg(long, value_name = "PRESET")]
    like: Option<String>,
    /// Experts per layer [default: 64]
    #[arg(long, value_name = "N")]
    experts: Option<usize>,
    /// Experts each token draws [default: 6]
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Number of MoE layers [default: 26]
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Id of the first MoE layer [default: 0]
    #[arg(long, value_name = "ID")]
    first_layer: Option<u32>,
    /// Batches to make [default: 200]
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Prefill batches of this many tokens, one request after the other [default: 512]
    #[arg(long, value_name = "TOKENS", conflicts_with = "decode_batch", help_heading = "Batches")]
    batch_tokens: Option<usize>,
    /// Decode batches: one token each of this many requests in flight
    #[arg(long, value_name = "REQUESTS", help_heading = "Batches")]
    decode_batch: Option<usize>,
    /// Mean tokens of a request [default: 300]
    #[arg(long, value_name = "TOKENS", help_heading = "Batches")]
    request_tokens: Option<f64>,
    /// Spread of the logarithm of request lengths [default: 0.6]
    #[arg(long, value_name = "SD", help_heading = "Batches")]
    request_spread: Option<f64>,
    /// How unequal experts are for good [default: 0.7]
    #[arg(long, value_name = "SD", help_heading = "Routing")]
    skew: Option<f64>,
    /// Shape of that: above 1 a few experts stand out more [default: 1]
    #[arg(long, value_name = "POWER", help_heading = "Routing")]
    tail: Option<f64>,
    /// Kinds of requests [default: 4]
    #[arg(long, value_name = "N", help_heading = "Routing")]
    kinds: Option<usize>,
    /// How much kinds differ [default: 0.4]
    #[arg(long, value_name = "SD", help_heading = "Routing")]
    kinds_spread: Option<f64>,
    /// Consecutive requests of one kind: 1 mixes, 0 is one long run per kind [default: 1]
    #[arg(long, value_name = "N", help_heading = "Routing")]
    kinds_run: Option<usize>,
    /// How much requests of a kind differ [default: 0.7]
    #[arg(long, value_name = "SD", help_heading = "Routing")]
    dispersion: Option<f64>,
    /// Share of that which experts have in common, 0 to 1 [default: 0.5]
    #[arg(long, value_name = "SHARE", help_heading = "Routing")]
    correlation: Option<f64>,
    /// Latent factors behind it: fewer means more experts move together [default: 8]
    #[arg(long, value_name = "N", help_heading = "Routing")]
    rank: Option<usize>,
    /// Tokens after which a request's taste moves on, 0 for never [default: 0]
    #[arg(long, value_name = "TOKENS", help_heading = "Routing")]
    topic_tokens: Option<usize>,
    /// How much of it stays then, 0 to 1 [default: 0.8]
    #[arg(long, value_name = "SHARE", help_heading = "Routing")]
    topic_persistence: Option<f64>,
    /// Size of the slow change of everything [default: 0.2]
    #[arg(long, value_name = "SD", help_heading = "Routing")]
    drift: Option<f64>,
    /// How much of it stays from step to step, 0 to 1 [default: 0.98]
    #[arg(long, value_name = "SHARE", help_heading = "Routing")]
    drift_persistence: Option<f64>,
    /// Seed of everything random [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// File to write: .csv, .csv.gz, .csv.zst or .parquet
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
}

/// Runs one of the subcommands.
pub(crate) fn run(command: TraceCommand, output: Output) -> anyhow::Result<()> {
    match command {
        TraceCommand::Inspect(args) => {
            let trace = args.trace.read_recorded()?;
            if output.json() {
                return document(&facts(&trace));
            }
            print(&summary(&trace, args.per_layer || output.verbose())?)
        }
        TraceCommand::Convert(args) => convert_to(&args, output),
        TraceCommand::Synth(args) => synthesise(&args, output),
        #[cfg(feature = "serve")]
        TraceCommand::Replay(args) => super::trace_replay::run(&args, output),
    }
}

fn convert_to(args: &ConvertArgs, output: Output) -> anyhow::Result<()> {
    for (id, option) in [("resample", "--resample"), ("top_k", "--top-k")] {
        if args.trace.explicit.has(id) {
            anyhow::bail!(
                "{option} has no effect: `trace convert` writes what is recorded and draws no batches"
            );
        }
    }
    let bar = Bar::bytes();
    let done = convert(&args.trace.traces, &args.trace.options(), &args.out, &bar)?;
    drop(bar);
    let bytes = std::fs::metadata(&args.out).map_or(0, |meta| meta.len());
    if output.json() {
        return document(&json!({
            "format": done.format.name(),
            "files": done.files.iter().map(|file| json!({"path": file.path, "sha256": file.sha256})).collect::<Vec<_>>(),
            "out": args.out,
            "rows": done.rows,
            "bytes": bytes,
            "notices": done.notices,
        }));
    }
    let mut text = format!("wrote {}: {} rows, {}\n", args.out.display(), grouped(done.rows), size(bytes));
    notices(&mut text, &done.notices)?;
    print(&text)
}

fn synthesise(args: &SynthArgs, output: Output) -> anyhow::Result<()> {
    let spec = spec(args)?;
    let bar = Bar::steps();
    let rows = synth::write(&spec, &args.out, &bar)?;
    drop(bar);
    let bytes = std::fs::metadata(&args.out).map_or(0, |meta| meta.len());
    if output.json() {
        return document(&json!({
            "out": args.out, "rows": rows, "bytes": bytes, "steps": spec.steps, "layers": spec.layers,
            "experts": spec.experts, "top_k": spec.top_k, "seed": spec.seed,
        }));
    }
    print(&format!(
        "wrote {}: {} steps x {} layers x {} experts, {} rows, {}\n",
        args.out.display(),
        spec.steps,
        spec.layers,
        spec.experts,
        grouped(rows),
        size(bytes)
    ))
}

fn spec(args: &SynthArgs) -> anyhow::Result<synth::SynthSpec> {
    let base =
        args.like.as_deref().map_or_else(|| Ok(synth::SynthSpec::default()), synth::SynthSpec::like)?;
    let batching = match (args.batch_tokens, args.decode_batch) {
        (Some(tokens), _) => Batching::Prefill { tokens },
        (None, Some(in_flight)) => Batching::Decode { in_flight },
        (None, None) => base.batching,
    };
    Ok(synth::SynthSpec {
        experts: args.experts.unwrap_or(base.experts),
        top_k: args.top_k.unwrap_or(base.top_k),
        layers: args.layers.unwrap_or(base.layers),
        first_layer: args.first_layer.unwrap_or(base.first_layer),
        steps: args.steps.unwrap_or(base.steps),
        batching,
        skew: args.skew.unwrap_or(base.skew),
        tail: args.tail.unwrap_or(base.tail),
        kinds: args.kinds.unwrap_or(base.kinds),
        kinds_spread: args.kinds_spread.unwrap_or(base.kinds_spread),
        kinds_run: args.kinds_run.unwrap_or(base.kinds_run),
        dispersion: args.dispersion.unwrap_or(base.dispersion),
        correlation: args.correlation.unwrap_or(base.correlation),
        rank: args.rank.unwrap_or(base.rank),
        request_tokens: args.request_tokens.unwrap_or(base.request_tokens),
        request_spread: args.request_spread.unwrap_or(base.request_spread),
        topic_tokens: args.topic_tokens.unwrap_or(base.topic_tokens),
        topic_persistence: args.topic_persistence.unwrap_or(base.topic_persistence),
        drift: args.drift.unwrap_or(base.drift),
        drift_persistence: args.drift_persistence.unwrap_or(base.drift_persistence),
        seed: args.seed.unwrap_or(base.seed),
    })
}

/// What `inspect --json` prints.
fn facts(trace: &Trace) -> Value {
    let layers: Vec<Value> = (0..trace.layers().len())
        .map(|layer| {
            let skew = Skew::of(trace.totals(layer));
            json!({
                "layer": trace.layers()[layer],
                "tokens": trace.totals(layer).iter().sum::<u64>(),
                "max_over_mean": skew.max_over_mean,
                "top10_share": skew.top10_share,
                "gini": skew.gini,
            })
        })
        .collect();
    let idle: Vec<u32> = trace.idle_layers().iter().map(|&layer| trace.layers()[layer]).collect();
    let per_step = per_step(trace);
    json!({
        "format": trace.format().name(),
        "files": trace.files().iter().map(|file| json!({"path": file.path, "sha256": file.sha256})).collect::<Vec<_>>(),
        "experts": trace.experts(),
        "steps": trace.steps().len(),
        "tokens": tokens(trace),
        "tokens_per_step": {"min": per_step.0, "p50": per_step.1, "max": per_step.2},
        "idle_layers": idle,
        "layers": layers,
        "notices": trace.notices(),
    })
}

/// What `inspect` prints.
fn summary(trace: &Trace, per_layer: bool) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let idle: Vec<u32> = trace.idle_layers().iter().map(|&layer| trace.layers()[layer]).collect();
    let (low, median, high) = per_step(trace);
    let layers = trace.layers();
    let span = match layers {
        [] => String::new(),
        [only] => format!("id {only}"),
        [first, .., last] => format!("ids {first} to {last}"),
    };
    let steps = trace.steps();
    let names = match steps {
        [] => String::new(),
        [only] => format!(" ({only})"),
        [first, .., last] => format!(" ({first} .. {last})"),
    };
    writeln!(text, "format     {}", trace.format())?;
    for file in trace.files() {
        writeln!(text, "file       {}  sha256 {}", file.path.display(), short(&file.sha256))?;
    }
    writeln!(text, "steps      {}{names}", steps.len())?;
    writeln!(text, "layers     {} ({span}){}", layers.len(), idle_text(&idle))?;
    writeln!(text, "experts    {}", trace.experts())?;
    writeln!(text, "tokens     {} routed in all (tokens x top-k x layers)", grouped(tokens(trace)))?;
    writeln!(
        text,
        "per step   {} / {} / {} routed per layer (min / median / max; tokens x top-k)",
        grouped(low),
        grouped(median),
        grouped(high)
    )?;
    let busy: Vec<usize> = (0..layers.len()).filter(|&layer| !idle.contains(&layers[layer])).collect();
    if !busy.is_empty() {
        writeln!(text, "\nskew of experts over the whole trace")?;
        writeln!(text, "{}", if per_layer { layer_table(trace, &busy) } else { spread_table(trace, &busy) })?;
    }
    notices(&mut text, trace.notices())?;
    Ok(text)
}

fn notices(text: &mut String, notices: &[String]) -> std::fmt::Result {
    if !notices.is_empty() {
        writeln!(text, "\nnotices")?;
        for notice in notices {
            writeln!(text, "  - {notice}")?;
        }
    }
    Ok(())
}

fn layer_table(trace: &Trace, busy: &[usize]) -> String {
    let row = |&layer: &usize| {
        let skew = Skew::of(trace.totals(layer));
        vec![
            trace.layers()[layer].to_string(),
            grouped(trace.totals(layer).iter().sum()),
            format!("{:.2}", skew.max_over_mean),
            format!("{:.1} %", skew.top10_share * 100.0),
            format!("{:.3}", skew.gini),
        ]
    };
    table(&["layer", "tokens", "max/mean", "top-10 share", "Gini"], busy.iter().map(row).collect(), 1)
}

fn spread_table(trace: &Trace, busy: &[usize]) -> String {
    let skews: Vec<Skew> = busy.iter().map(|&layer| Skew::of(trace.totals(layer))).collect();
    let row = |name: &str, value: &dyn Fn(&Skew) -> f64, show: &dyn Fn(f64) -> String| {
        let mut values: Vec<(f64, u32)> =
            skews.iter().zip(busy).map(|(skew, &layer)| (value(skew), trace.layers()[layer])).collect();
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (low, high) = (values[0], values[values.len() - 1]);
        vec![
            name.to_owned(),
            format!("{} ({})", show(low.0), low.1),
            show(values[values.len() / 2].0),
            format!("{} ({})", show(high.0), high.1),
        ]
    };
    let rows = vec![
        row("max/mean", &|skew| skew.max_over_mean, &|value| format!("{value:.2}")),
        row("top-10 share", &|skew| skew.top10_share, &|value| format!("{:.1} %", value * 100.0)),
        row("Gini", &|skew| skew.gini, &|value| format!("{value:.3}")),
    ];
    table(&["", "lowest layer", "median", "highest layer"], rows, 1)
}

/// Tokens routed in all layers, kept steps or not.
fn tokens(trace: &Trace) -> u64 {
    (0..trace.layers().len()).flat_map(|layer| trace.totals(layer)).sum()
}

/// Least, median and most tokens routed in a layer in a step; idle layers do not count.
fn per_step(trace: &Trace) -> (u64, u64, u64) {
    let idle = trace.idle_layers();
    let mut sums: Vec<u64> = (0..trace.steps().len())
        .flat_map(|step| (0..trace.layers().len()).map(move |layer| (step, layer)))
        .filter(|(_, layer)| idle.binary_search(layer).is_err())
        .map(|(step, layer)| trace.loads(step, layer).iter().sum())
        .collect();
    sums.sort_unstable();
    match sums.as_slice() {
        [] => (0, 0, 0),
        [low, ..] => (*low, sums[sums.len() / 2], sums[sums.len() - 1]),
    }
}

fn idle_text(idle: &[u32]) -> String {
    if idle.is_empty() {
        return String::new();
    }
    let names: Vec<String> = idle.iter().take(12).map(ToString::to_string).collect();
    let more = if idle.len() > 12 { ", ..." } else { "" };
    format!("; {} idle: {}{more}", idle.len(), names.join(", "))
}

fn short(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}

/// 1234567 as 1 234 567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
