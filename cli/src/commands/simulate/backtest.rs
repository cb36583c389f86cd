//! `evenkeel bench online`: what the decisions of `evenkeel serve` come to on a trace.

use super::cluster_args::ClusterArgs;
use super::output::{Output, document, print, table};
use super::price_args::PriceArgs;
use super::trace_args::TraceArgs;
use clap::Args;
use evenkeel::serve::{Config, Decision, Online, Shape, every_batch, online};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Replay a trace through the decisions of `evenkeel serve`, next to planning again before every batch
///
/// The same code decides as in the service, step after step, without a server; docs/serve.md explains the keys. Moves are those
/// after the first plan. Planning before every batch takes long: --skip-every-batch leaves it out.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  evenkeel bench online traces/sample-prefill.csv.zst --ranks 16 --redundant 16 --layers 1,7 \\\n      \
    --decide 'first_after = 8, every = 8, max_moves = 2'"
)]
pub(crate) struct OnlineArgs {
    #[command(flatten)]
    trace: TraceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    price: PriceArgs,
    /// Keys of [decide], as `KEY = VALUE, ..`
    #[arg(long, value_name = "KEYS", default_value = "")]
    decide: String,
    /// Do not plan before every batch
    #[arg(long)]
    skip_every_batch: bool,
}

pub(crate) fn run(args: &OnlineArgs, output: Output) -> anyhow::Result<()> {
    let trace = args.trace.read()?;
    output.notices(trace.notices());
    let cluster = args.cluster.cluster(trace.experts())?;
    let mut shape = Shape {
        ranks: cluster.ranks(),
        redundant: cluster.usable_slots() - trace.experts(),
        nodes: cluster.nodes(),
        groups: args.cluster.groups,
        model: None,
        gpu: None,
        link_gbps: None,
    };
    args.price.fill(&mut shape);
    let text = format!("decide = {{ {} }}", args.decide);
    let options = Config::from_toml(&text, Path::new("--decide"))?.options(None)?;
    let begun = Instant::now();
    let service = online(&trace, &shape, &options)?;
    let service_time = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let every = if args.skip_every_batch { None } else { Some(every_batch(&trace, &shape, &options)?) };
    let every_time = begun.elapsed().as_secs_f64();
    if output.json() {
        return document(&json!({
            "trace": args.trace.traces, "batches": args.trace.batches(&trace), "layers": trace.layers().len(),
            "decide": options, "online": row(&service, service_time),
            "every_batch": every.as_ref().map(|every| row(every, every_time)), "decisions": service.decisions,
            "foreseen": service.foreseen, "gained": service.gained, "copies": service.copies,
        }));
    }
    let cells = |name: &str, online: &Online, time: f64| {
        vec![
            name.to_owned(),
            format!("{:.4}", online.imbalance),
            format!("{:.4}", online.excess()),
            online.moves.to_string(),
            online.plans.to_string(),
            format!("{time:.1} s"),
        ]
    };
    let mut rows = vec![cells("online", &service, service_time)];
    rows.extend(every.as_ref().map(|every| cells("every batch", every, every_time)));
    let mut text = table(&["", "imbalance", "excess", "moves", "plans", "time"], rows, 1);
    if let Some(every) = &every {
        let (excess, moves) =
            (service.excess() / every.excess(), service.moves as f64 / every.moves.max(1) as f64);
        text += &format!(
            "online has {excess:.3} of the excess, with {moves:.3} of the moves, on {} steps\n",
            every.steps
        );
    }
    if service.moves > 0 {
        text += &format!(
            "moves were to gain {:.1} perfectly balanced batches of a layer within {} steps, and gained {:.1}\n",
            service.foreseen, options.horizon, service.gained
        );
    }
    text += &format!(
        "copies took {:.0} ms, {:.2} % of {} ms a step; {}\n",
        service.copies.spent_ms,
        100.0 * service.copies.spent_share,
        service.copies.step_ms,
        service.copies
    );
    if output.verbose() {
        let reason = |d: &Decision| {
            format!("{} after step {}: {:?}: {}\n", d.number, d.step.unwrap_or(0), d.outcome, d.reason)
        };
        text.extend(service.decisions.iter().map(reason));
    }
    print(&text)
}

fn row(online: &Online, seconds: f64) -> Value {
    json!({
        "imbalance": online.imbalance, "bound": online.bound, "excess": online.excess(), "steps": online.steps,
        "moves": online.moves, "plans": online.plans, "seconds": seconds, "series": online.series,
    })
}
