//! `evenkeel simulate backtest`: results of the decisions of `evenkeel serve` on a trace.

use crate::args::cluster::{ClusterArgs, ClusterSpec};
use crate::args::move_price::MovePriceArgs;
use crate::args::trace::TraceArgs;
use crate::output::{Output, print_json, print_text};
use crate::render::table::render_table;
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel::trace::Trace;
use evenkeel_serve::{
    Backtest, ControllerConfig, Decision, ModelSpec, ServiceConfig, backtest, replan_every_batch,
};
use evenkeel_simulate::{OfflineOptimum, offline_optimum};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Replay a trace through the decisions of `evenkeel serve`
///
/// The code of the service decides step after step, without a server. The table compares it with planning
/// before every batch. Moves are those after the first plan. docs/serve.md explains the keys of --decide.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel simulate backtest traces/sample-prefill.csv.zst --ranks 16 --redundant 16 --layers \
                       1,7 \\\n      --decide 'first_after = 8, every = 8, max_moves = 2'"
)]
pub(super) struct BacktestArgs {
    #[command(flatten)]
    trace: TraceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    price: MovePriceArgs,
    /// Keys of [decide] in the configuration of the service, as `KEY = VALUE, ..`
    #[arg(long, value_name = "KEYS", default_value = "")]
    decide: String,
    /// Omit the comparison with planning before every batch, which takes long
    #[arg(long)]
    skip_every_batch: bool,
    /// Also show the offline optimum, at these prices of a move in balanced batches
    ///
    /// It knows all batches, and is the cheapest sequence of placements: imbalances plus prices. Small layers
    /// only, such as 6 experts on 3 ranks with 3 slots each.
    #[arg(long, value_name = "PRICE,..", value_delimiter = ',', hide_short_help = true)]
    offline_optimum: Vec<f64>,
}

/// Backtest to run, from options that are valid together.
#[derive(Debug)]
pub(super) struct BacktestRequest {
    cluster: ClusterSpec,
    options: ControllerConfig,
}

impl BacktestArgs {
    /// Checks the options.
    pub(super) fn resolve(&self) -> anyhow::Result<BacktestRequest> {
        let text = format!("decide = {{ {} }}", self.decide);
        let options = ServiceConfig::from_toml(&text, Path::new("--decide"))?.controller_config(None)?;
        if let Some(price) = self.offline_optimum.iter().find(|price| !(0.0..=1e6).contains(*price)) {
            bail!("--offline-optimum {price}: expected 0 to 1000000 balanced batches");
        }
        Ok(BacktestRequest { cluster: self.cluster.resolve()?, options })
    }
}

pub(super) fn run(args: &BacktestArgs, output: Output) -> anyhow::Result<()> {
    let BacktestRequest { cluster, options } = args.resolve()?;
    let trace = args.trace.read()?;
    output.print_notices(trace.notices());
    let cluster = cluster.for_experts(trace.experts())?;
    let mut shape = ModelSpec {
        ranks: cluster.ranks(),
        redundant: cluster.usable_slots() - trace.experts(),
        nodes: cluster.nodes(),
        groups: args.cluster.groups,
        model: None,
        gpu: None,
        link_gbps: None,
    };
    args.price.fill_shape(&mut shape);
    let begun = Instant::now();
    let service = backtest(&trace, &shape, &options)?;
    let service_time = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let every =
        if args.skip_every_batch { None } else { Some(replan_every_batch(&trace, &shape, &options)?) };
    let every_time = begun.elapsed().as_secs_f64();
    let optima = args
        .offline_optimum
        .iter()
        .map(|&price| Ok((price, sum_optima(&trace, &shape, &options, price)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if output.is_json() {
        return print_json(&json!({
            "trace": args.trace.traces, "batches": args.trace.describe_batches(&trace), "layers": trace.layers().len(),
            "decide": options, "online": result_to_json(&service, service_time),
            "every_batch": every.as_ref().map(|every| result_to_json(every, every_time)), "decisions": service.decisions,
            "offline": optima.iter().map(|(price, optimum)| optimum_to_json(*price, optimum)).collect::<Vec<_>>(),
            "gains": service.gains,
            "foreseen_ms": service.foreseen_ms, "gained_ms": service.gained_ms, "copies": service.copies,
        }));
    }
    let cells = |name: &str, online: &Backtest, time: f64| {
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
    rows.extend(optima.iter().map(|(price, optimum)| {
        vec![
            format!("offline optimum at {price}"),
            format!("{:.4}", optimum.imbalance),
            format!("{:.4}", optimum.imbalance - optimum.bound),
            optimum.moves.to_string(),
            String::new(),
            String::new(),
        ]
    }));
    let mut text = render_table(&["", "imbalance", "excess", "moves", "plans", "time"], rows, 1);
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
            "the moves were expected to save {:.1} ms within {} steps; measured: {:.1} ms\n",
            service.foreseen_ms, options.horizon, service.gained_ms
        );
    }
    text += &format!(
        "copies took {:.0} ms, {:.2} % of {} ms a step; {}\n",
        service.copies.spent_ms,
        100.0 * service.copies.spent_share,
        service.copies.step_ms,
        service.copies
    );
    if output.is_verbose() {
        let reason = |d: &Decision| {
            format!("{} after step {}: {:?}: {}\n", d.number, d.step.unwrap_or(0), d.outcome, d.reason)
        };
        text.extend(service.decisions.iter().map(reason));
    }
    print_text(&text)
}

/// Returns the offline optimum of all layers together, on the steps that the backtest judges.
fn sum_optima(
    trace: &Trace,
    shape: &ModelSpec,
    options: &ControllerConfig,
    price: f64,
) -> anyhow::Result<OfflineOptimum> {
    let cluster = shape.cluster(trace.experts())?;
    let first = usize::try_from(options.first_after).unwrap_or(usize::MAX).min(trace.steps().len());
    let mut sum: Option<OfflineOptimum> = None;
    for layer in 0..trace.layers().len() {
        let found = offline_optimum(trace, (layer, first..trace.steps().len()), &cluster, price);
        let found = found.with_context(|| {
            format!(
                "--offline-optimum: layer {} has no tokens after step {first}, or too many placements: expected layers \
                 such as 6 experts on 3 ranks with 3 slots each",
                trace.layers()[layer]
            )
        })?;
        sum = Some(sum.map_or(found, |sum| sum.merge_with(&found)));
    }
    sum.context("--offline-optimum: the trace has no layers")
}

fn optimum_to_json(price: f64, optimum: &OfflineOptimum) -> Value {
    json!({
        "price": price, "imbalance": optimum.imbalance, "bound": optimum.bound,
        "excess": optimum.imbalance - optimum.bound, "moves": optimum.moves, "batches": optimum.batches,
    })
}

fn result_to_json(online: &Backtest, seconds: f64) -> Value {
    json!({
        "imbalance": online.imbalance, "bound": online.bound, "excess": online.excess(), "steps": online.steps,
        "moves": online.moves, "plans": online.plans, "seconds": seconds, "series": online.series,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::refusal;

    #[test]
    fn missing_ranks_and_unknown_keys_are_refused() {
        assert!(refusal("backtest t.csv").starts_with("--ranks is missing"));
        assert!(refusal("backtest t.csv --ranks 8 --decide nonsense=1").contains("nonsense"));
    }
}
