//! `evenkeel trace inspect`: reports the content of a trace.

use crate::args::trace::TraceArgs;
use crate::output::{Output, print_json, print_text};
use crate::render::table::render_table;
use crate::render::units::{append_notices, group_digits};
use clap::Args;
use evenkeel_trace::{LoadSkew, Trace, variance_ratio};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Report the content of a trace: steps, layers, experts, tokens, skew
///
/// "variance" is the variance of the batches over that of as many independent draws from their average. 1 is
/// independent. Prefill batches are far above it, since the tokens of a request resemble each other.
///
/// The format is detected by content. "notices" lists everything that was guessed, omitted or unusual. A
/// trace without tokens is reported as such and is no error.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel trace inspect traces/sample-prefill.csv.zst\n  evenkeel trace inspect \
                             counts.csv --step-column family\n  evenkeel trace inspect dumps/            # one dump per rank: \
                             summed\n  evenkeel trace inspect gptoss/ --decode-batch 64 --order shuffled"
)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    trace: TraceArgs,
    /// List every layer instead of a summary
    #[arg(long)]
    per_layer: bool,
}

pub(super) fn run(args: &InspectArgs, output: Output) -> anyhow::Result<()> {
    let trace = args.trace.read_recorded()?;
    if output.is_json() {
        return print_json(&trace_to_json(&trace));
    }
    print_text(&trace_to_text(&trace, args.per_layer || output.is_verbose())?)
}

/// Returns the document of `inspect --json`.
fn trace_to_json(trace: &Trace) -> Value {
    let layers: Vec<Value> = (0..trace.layers().len())
        .map(|layer| {
            let skew = LoadSkew::from_loads(trace.totals(layer));
            json!({
                "layer": trace.layers()[layer],
                "tokens": trace.totals(layer).iter().sum::<u64>(),
                "max_over_mean": skew.max_over_mean,
                "top10_share": skew.top10_share,
                "gini": skew.gini,
                "variance_ratio": variance_ratio(trace, layer),
            })
        })
        .collect();
    let idle: Vec<u32> = trace.idle_layers().iter().map(|&layer| trace.layers()[layer]).collect();
    let per_step = step_token_range(trace);
    json!({
        "format": trace.format().name(),
        "files": trace.files().iter().map(|file| json!({"path": file.path, "sha256": file.sha256})).collect::<Vec<_>>(),
        "experts": trace.experts(),
        "steps": trace.steps().len(),
        "tokens": total_tokens(trace),
        "tokens_per_step": {"min": per_step.0, "p50": per_step.1, "max": per_step.2},
        "idle_layers": idle,
        "layers": layers,
        "notices": trace.notices(),
    })
}

/// Returns the text of `inspect`.
fn trace_to_text(trace: &Trace, per_layer: bool) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let idle: Vec<u32> = trace.idle_layers().iter().map(|&layer| trace.layers()[layer]).collect();
    let (low, median, high) = step_token_range(trace);
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
        writeln!(text, "file       {}  sha256 {}", file.path.display(), short_digest(&file.sha256))?;
    }
    writeln!(text, "steps      {}{names}", steps.len())?;
    writeln!(text, "layers     {} ({span}){}", layers.len(), idle_layers_text(&idle))?;
    writeln!(text, "experts    {}", trace.experts())?;
    writeln!(
        text,
        "tokens     {} routed in all (tokens x top-k x layers)",
        group_digits(total_tokens(trace))
    )?;
    writeln!(
        text,
        "per step   {} / {} / {} routed per layer (min / median / max; tokens x top-k)",
        group_digits(low),
        group_digits(median),
        group_digits(high)
    )?;
    let busy: Vec<usize> = (0..layers.len()).filter(|&layer| !idle.contains(&layers[layer])).collect();
    if !busy.is_empty() {
        writeln!(text, "\nskew of experts over the whole trace")?;
        writeln!(text, "{}", if per_layer { layer_table(trace, &busy) } else { spread_table(trace, &busy) })?;
    }
    append_notices(&mut text, trace.notices())?;
    Ok(text)
}

fn layer_table(trace: &Trace, busy: &[usize]) -> String {
    let row = |&layer: &usize| {
        let skew = LoadSkew::from_loads(trace.totals(layer));
        vec![
            trace.layers()[layer].to_string(),
            group_digits(trace.totals(layer).iter().sum()),
            format!("{:.2}", skew.max_over_mean),
            format!("{:.1} %", skew.top10_share * 100.0),
            format!("{:.3}", skew.gini),
            variance_ratio(trace, layer).map_or_else(String::new, |ratio| format!("{ratio:.2}")),
        ]
    };
    render_table(
        &["layer", "tokens", "max/mean", "top-10 share", "Gini", "variance"],
        busy.iter().map(row).collect(),
        1,
    )
}

fn spread_table(trace: &Trace, busy: &[usize]) -> String {
    let skews: Vec<LoadSkew> = busy.iter().map(|&layer| LoadSkew::from_loads(trace.totals(layer))).collect();
    let skew = |value: fn(&LoadSkew) -> f64| skews.iter().map(value).map(Some).collect();
    let ratios = busy.iter().map(|&layer| variance_ratio(trace, layer)).collect();
    let spread_row = |name: &str, values: Vec<Option<f64>>, show: &dyn Fn(f64) -> String| {
        let mut values: Vec<(f64, u32)> = values
            .into_iter()
            .zip(busy)
            .filter_map(|(value, &layer)| Some((value?, trace.layers()[layer])))
            .collect();
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (low, high) = (*values.first()?, *values.last()?);
        Some(vec![
            name.to_owned(),
            format!("{} ({})", show(low.0), low.1),
            show(values[values.len() / 2].0),
            format!("{} ({})", show(high.0), high.1),
        ])
    };
    let rows = [
        spread_row("max/mean", skew(|skew| skew.max_over_mean), &|value| format!("{value:.2}")),
        spread_row("top-10 share", skew(|skew| skew.top10_share), &|value| format!("{:.1} %", value * 100.0)),
        spread_row("Gini", skew(|skew| skew.gini), &|value| format!("{value:.3}")),
        spread_row("variance", ratios, &|value| format!("{value:.2}")),
    ];
    render_table(&["", "lowest layer", "median", "highest layer"], rows.into_iter().flatten().collect(), 1)
}

/// Returns the tokens routed in all layers, including steps that were not kept.
fn total_tokens(trace: &Trace) -> u64 {
    (0..trace.layers().len()).flat_map(|layer| trace.totals(layer)).sum()
}

/// Returns the lowest, median and highest number of tokens routed in a layer in a step. Idle layers do not
/// count.
fn step_token_range(trace: &Trace) -> (u64, u64, u64) {
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

fn idle_layers_text(idle: &[u32]) -> String {
    if idle.is_empty() {
        return String::new();
    }
    let names: Vec<String> = idle.iter().take(12).map(ToString::to_string).collect();
    let more = if idle.len() > 12 { ", ..." } else { "" };
    format!("; {} idle: {}{more}", idle.len(), names.join(", "))
}

fn short_digest(sha256: &str) -> &str {
    sha256.get(..12).unwrap_or(sha256)
}
