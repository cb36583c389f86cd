//! `evenkeel plan check`: checks that a plan file is valid and that its figures are correct.

use super::fault_tolerance::{LayerLosses, evaluate_losses, losses_to_json, losses_to_text};
use crate::output::{Output, StderrBar, print_json, print_text};
use crate::render::cluster::cluster_to_json;
use crate::render::split_figures::{figures_to_json, figures_to_text};
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel::evaluate::{SummaryStats, evaluate_on_nodes};
use evenkeel::export;
use evenkeel::place::Placement;
use evenkeel::plan::Plan;
use evenkeel::split::SplitMethod;
use evenkeel_trace::synth::Resampling;
use evenkeel_trace::{self as trace, Batching, ReadOptions, RequestOrder};
use serde_json::json;
use std::path::PathBuf;

/// Check that a plan file is valid, and its figures on a trace
///
/// The command checks every key, slot and expert. With --trace, it also checks the promised imbalance and
/// reports the consequences of the loss of any one rank. Files of SGLang, TensorRT-LLM, vLLM, vllm-ascend or
/// EPLB are checked as strictly as their readers do; they need --ranks. Exit code 0 means that the plan is
/// usable.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel plan check plan.json\n  evenkeel plan check plan.json --trace loads.csv\n  \
                  evenkeel plan check init-expert-location.json --ranks 32"
)]
pub(crate) struct CheckArgs {
    /// Plan file, or a file of a serving stack
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
    /// Ranks that share the slots of a serving stack's file; a plan states its own
    #[arg(long, value_name = "N", conflicts_with = "trace")]
    ranks: Option<usize>,
    /// Trace of the plan: evaluate the plan on it and compare; the option may be repeated
    #[arg(long, value_name = "TRACE")]
    trace: Vec<PathBuf>,
    /// Prefill batch size that the plan was computed with, for a per-token array
    #[arg(long, value_name = "TOKENS", requires = "trace", default_value_t = 512)]
    batch_tokens: usize,
    /// Decode batch size that the plan was computed with, for a per-token array
    #[arg(long, value_name = "REQUESTS", requires = "trace", conflicts_with = "batch_tokens")]
    decode_batch: Option<usize>,
    /// Order of requests that the plan was computed with, for a per-token array
    #[arg(long, value_name = "recorded|shuffled", requires = "trace", default_value = "recorded")]
    order: RequestOrder,
    /// Step column that the plan was computed with, for CSV and Parquet
    #[arg(long, value_name = "NAME", requires = "trace")]
    step_column: Option<String>,
}

pub(super) fn run(args: &CheckArgs, output: Output) -> anyhow::Result<()> {
    let shown = args.plan.display();
    let text = std::fs::read_to_string(&args.plan).with_context(|| format!("{shown}"))?;
    if !Plan::is_plan_document(&text) {
        if let Some(ranks) = args.ranks {
            return check_stack_file(args, &text, ranks, output);
        }
        if export::read(&text, 1).is_ok() {
            bail!(
                "{shown} is a file of a serving stack: expected --ranks, the number of ranks that share its slots"
            );
        }
    }
    let plan = Plan::from_json(&text).with_context(|| format!("{shown}"))?;
    let (judged, losses) = if args.trace.is_empty() {
        (None, None)
    } else {
        let (judged, losses) = evaluate_again(args, &plan, output)?;
        (Some(judged), losses)
    };
    let doubled: usize = plan.layers.iter().map(|l| l.placement.same_rank_duplicates()).sum();
    let empty: usize =
        plan.layers.iter().map(|l| l.placement.slots().iter().filter(|slot| slot.is_none()).count()).sum();
    let unreplicated: Vec<(u32, usize)> = plan
        .layers
        .iter()
        .map(|l| (l.layer, (0..plan.experts).filter(|&e| l.placement.ranks_of(e).len() < 2).count()))
        .filter(|&(_, alone)| alone > 0)
        .collect();
    if output.is_json() {
        return print_json(&json!({
            "plan": args.plan,
            "valid": true,
            "cluster": cluster_to_json(&plan.cluster, plan.experts),
            "layers": plan.layers.len(),
            "idle_layers": plan.idle_layers,
            "unrecorded_layers": plan.unrecorded_layers,
            "empty_slots": empty,
            "survives_any_loss": unreplicated.is_empty(),
            "experts_on_one_rank": unreplicated.iter().map(|(_, alone)| alone).sum::<usize>(),
            "doubled": doubled,
            "provenance": plan.provenance,
            "figures": figures_to_json(&plan.provenance),
            "judged_again": judged.map(|(again, _)| again),
            "after_loss": losses.as_deref().map(losses_to_json),
        }));
    }
    let p = &plan.provenance;
    let mut text = format!(
        "{shown}: valid. {} experts x {} layers on {} ranks x {} slots in {} node(s), by {} (evenkeel {})\n",
        plan.experts,
        plan.layers.len(),
        plan.cluster.ranks(),
        plan.cluster.slots_per_rank(),
        plan.cluster.nodes(),
        p.policy,
        p.version,
    );
    text += &format!("{empty} empty slots\n");
    text += &match unreplicated.iter().max_by_key(|&&(layer, alone)| (alone, std::cmp::Reverse(layer))) {
        None => "every expert survives the loss of any one rank\n".to_owned(),
        Some((layer, most)) => format!(
            "experts on one rank alone, gone if it is lost: in {} of {} layers, {most} in layer {layer}\n",
            unreplicated.len(),
            plan.layers.len()
        ),
    };
    if doubled > 0 {
        output.print_note(&format!(
            "{doubled} replicas share a rank with another replica of their expert and serve nothing: the rank's quota goes \
             to the lowest such slot"
        ));
    }
    text += &figures_to_text(p);
    if let Some((again, same)) = judged {
        text += &format!(
            "judged again with the {} split on {}: mean {:.3}, p95 {:.3}{}\n",
            p.split,
            if same { "its trace" } else { "this trace, which it was not made from" },
            again.mean,
            again.p95,
            if same { ": as promised" } else { "" }
        );
    }
    if let Some(losses) = losses {
        text += &losses_to_text(&losses);
    }
    print_text(&text)
}

/// Checks a file of a serving stack and prints its content.
fn check_stack_file(args: &CheckArgs, text: &str, ranks: usize, output: Output) -> anyhow::Result<()> {
    let shown = args.plan.display();
    let imported = export::read(text, ranks).with_context(|| format!("{shown}"))?;
    let placements = || imported.layers.iter().map(|layer| &layer.placement);
    let doubled: usize = placements().map(Placement::same_rank_duplicates).sum();
    let per_rank = placements().next().map_or(0, Placement::slots_per_rank);
    if output.is_json() {
        return print_json(&json!({
            "plan": args.plan,
            "valid": true,
            "dialect": imported.dialect.name(),
            "experts": imported.experts,
            "ranks": ranks,
            "slots_per_rank": per_rank,
            "layers": imported.layers.iter().map(|layer| layer.layer).collect::<Vec<_>>(),
            "doubled": doubled,
        }));
    }
    if doubled > 0 {
        output.print_note(&format!(
            "{doubled} replicas share a rank with another replica of their expert and serve nothing"
        ));
    }
    print_text(&format!(
        "{shown}: valid for {}. {} experts x {} layers on {ranks} ranks x {per_rank} slots\n`evenkeel simulate TRACE \
         --placement {shown}` judges it\n",
        imported.dialect,
        imported.experts,
        imported.layers.len(),
    ))
}

/// Returns the plan's imbalance on a trace, and whether the plan was computed from that trace. If it was, and
/// the figures differ from the plan's, the result is an error. With several ranks, every possible loss of one
/// is evaluated as well.
fn evaluate_again(
    args: &CheckArgs,
    plan: &Plan,
    output: Output,
) -> anyhow::Result<((SummaryStats, bool), Option<LayerLosses>)> {
    // Drawn batches depend on the totals, on the layers drawn together, and on the plan's record of them.
    let drawn: Option<Resampling> = plan.provenance.batches.parse().ok();
    let ids: Vec<String> = plan.layers.iter().map(|layer| layer.layer.to_string()).collect();
    let options = ReadOptions::default()
        .experts(Some(plan.experts))
        .layers(if drawn.is_some() { Some(ids.join(",").parse()?) } else { None })
        .batching(match args.decode_batch {
            Some(in_flight) => Batching::Decode { in_flight },
            None => Batching::Prefill { tokens: args.batch_tokens },
        })
        .order(args.order)
        .step_column(args.step_column.clone())
        .seed(plan.provenance.seed);
    let bar = StderrBar::for_reading();
    let trace = trace::read(&args.trace, &options, &bar)?;
    drop(bar);
    let trace = match drawn {
        Some(drawn) => evenkeel_trace::synth::draw_batches(&drawn, &trace)?,
        None => trace,
    };
    let recorded = || options.describe_batches(trace.format());
    let words = trace.resampling().map_or_else(recorded, ToString::to_string);
    if words != plan.provenance.batches {
        bail!(
            "the plan was judged on {}, these are {words}: expected the same batch options",
            plan.provenance.batches
        );
    }
    let digests = |files: Vec<&String>| files.into_iter().cloned().collect::<Vec<_>>();
    let now = digests(trace.files().iter().map(|f| &f.sha256).collect());
    let then = digests(plan.provenance.trace.iter().map(|f| &f.sha256).collect());
    let same_trace = now == then;
    if !same_trace {
        output.print_note("the plan was computed from other files (SHA-256 differs)");
    }
    let split: SplitMethod = plan.provenance.split.parse().context("\"provenance.split\"")?;
    let mut imbalances = Vec::new();
    for layer in &plan.layers {
        let Ok(index) = trace.layers().binary_search(&layer.layer) else {
            bail!("layer {} of the plan is not in the trace", layer.layer);
        };
        let all = 0..trace.steps().len();
        let judged = evaluate_on_nodes(&trace, index, all, &layer.placement, split, plan.cluster.nodes())?;
        imbalances.extend((0..judged.peaks.len()).map(|b| judged.imbalance(b)));
    }
    if imbalances.is_empty() {
        bail!("the trace holds no token in the layers of the plan: nothing can be judged");
    }
    let again = SummaryStats::from_values(imbalances);
    let promised = plan.provenance.imbalance;
    if same_trace && (again.mean - promised.mean).abs() > 1e-9 {
        bail!(
            "the plan promises a mean imbalance of {:.6}, its trace gives {:.6}",
            promised.mean,
            again.mean
        );
    }
    let losses = (plan.cluster.ranks() > 1).then(|| evaluate_losses(plan, &trace)).transpose()?;
    Ok(((again, same_trace), losses))
}
