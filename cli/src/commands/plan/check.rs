//! `evenkeel plan check`: is a plan file whole, and are its figures true?

use super::output::{Bar, Output, document, print};
use super::{figures, secure_args};
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel::export;
use evenkeel::place::{AfterLoss, Placement};
use evenkeel::plan::Plan;
use evenkeel::simulate::{Summary, judge_on_nodes};
use evenkeel::split::Method;
use evenkeel::trace::synth::Resampling;
use evenkeel::trace::{self, Batching, Order, ReadOptions};
use serde_json::json;
use std::path::PathBuf;

/// Check a plan file: every key, every slot, every expert; with its trace, also the imbalance that it promises, and what the
/// loss of any one rank would do.
///
/// Files that SGLang, TensorRT-LLM, vLLM, vllm-ascend or EPLB read are checked as strictly as they do; they need --ranks.
///
/// Exit code 0 means that the plan can be used as it is.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  evenkeel plan check plan.json\n  evenkeel plan check plan.json --trace loads.csv\n  \
                  evenkeel plan check init-expert-location.json --ranks 32"
)]
pub(crate) struct CheckArgs {
    /// The plan file
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
    /// Ranks that the slots of a stack's file divide over; a plan says so itself
    #[arg(long, value_name = "N", conflicts_with = "trace")]
    ranks: Option<usize>,
    /// Trace that the plan was made from: judge the plan on it again and compare (may be given several times)
    #[arg(long, value_name = "TRACE")]
    trace: Vec<PathBuf>,
    /// As given when planning, where the trace is a per-token array
    #[arg(long, value_name = "TOKENS", requires = "trace", default_value_t = 512)]
    batch_tokens: usize,
    /// As given when planning, where the trace is a per-token array
    #[arg(long, value_name = "REQUESTS", requires = "trace", conflicts_with = "batch_tokens")]
    decode_batch: Option<usize>,
    /// As given when planning, where the trace is a per-token array
    #[arg(long, value_name = "recorded|shuffled", requires = "trace", default_value = "recorded")]
    order: Order,
    /// As given when planning, for CSV and Parquet with a label column
    #[arg(long, value_name = "NAME", requires = "trace")]
    step_column: Option<String>,
}

pub(crate) fn run(args: &CheckArgs, output: Output) -> anyhow::Result<()> {
    let shown = args.plan.display();
    let text = std::fs::read_to_string(&args.plan).with_context(|| format!("{shown}"))?;
    if !Plan::claims(&text) {
        if let Some(ranks) = args.ranks {
            return check_foreign(args, &text, ranks, output);
        }
        if export::read(&text, 1).is_ok() {
            bail!("{shown}: a serving stack's file: --ranks says over how many ranks its slots divide");
        }
    }
    let plan = Plan::from_json(&text).with_context(|| format!("{shown}"))?;
    let (judged, losses) = if args.trace.is_empty() {
        (None, None)
    } else {
        let (judged, losses) = judge_again(args, &plan, output)?;
        (Some(judged), losses)
    };
    let doubled: usize = plan.layers.iter().map(|l| l.placement.doubled()).sum();
    let empty: usize =
        plan.layers.iter().map(|l| l.placement.slots().iter().filter(|slot| slot.is_none()).count()).sum();
    let alone: Vec<(u32, usize)> = plan
        .layers
        .iter()
        .map(|l| (l.layer, (0..plan.experts).filter(|&e| l.placement.ranks_of(e).len() < 2).count()))
        .filter(|&(_, alone)| alone > 0)
        .collect();
    if output.json() {
        return document(&json!({
            "plan": args.plan,
            "valid": true,
            "cluster": super::cluster_args::document(&plan.cluster, plan.experts),
            "layers": plan.layers.len(),
            "idle_layers": plan.idle_layers,
            "empty_slots": empty,
            "survives_any_loss": alone.is_empty(),
            "experts_on_one_rank": alone.iter().map(|(_, alone)| alone).sum::<usize>(),
            "doubled": doubled,
            "provenance": plan.provenance,
            "figures": figures::document(&plan.provenance),
            "judged_again": judged.map(|(again, _)| again),
            "after_loss": losses.as_deref().map(secure_args::document),
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
    text += &match alone.iter().max_by_key(|&&(layer, alone)| (alone, std::cmp::Reverse(layer))) {
        None => "every expert survives the loss of any one rank\n".to_owned(),
        Some((layer, most)) => format!(
            "experts on one rank alone, gone if it is lost: in {} of {} layers, {most} in layer {layer}\n",
            alone.len(),
            plan.layers.len()
        ),
    };
    if doubled > 0 {
        output.note(&format!(
            "{doubled} copies share a rank with another copy of their expert and will serve nothing: the rank's quota \
             goes to the lowest such slot"
        ));
    }
    text += &figures::words(p);
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
        text += &secure_args::words(&losses);
    }
    print(&text)
}

/// A file of a serving stack: whole or not, and what it holds.
fn check_foreign(args: &CheckArgs, text: &str, ranks: usize, output: Output) -> anyhow::Result<()> {
    let shown = args.plan.display();
    let imported = export::read(text, ranks).with_context(|| format!("{shown}"))?;
    let placements = || imported.layers.iter().map(|(_, placement)| placement);
    let doubled: usize = placements().map(Placement::doubled).sum();
    let per_rank = placements().next().map_or(0, Placement::slots_per_rank);
    if output.json() {
        return document(&json!({
            "plan": args.plan,
            "valid": true,
            "dialect": imported.dialect.name(),
            "experts": imported.experts,
            "ranks": ranks,
            "slots_per_rank": per_rank,
            "layers": imported.layers.iter().map(|(layer, _)| layer).collect::<Vec<_>>(),
            "doubled": doubled,
        }));
    }
    if doubled > 0 {
        output.note(&format!(
            "{doubled} copies share a rank with another copy of their expert and serve nothing more"
        ));
    }
    print(&format!(
        "{shown}: valid for {}. {} experts x {} layers on {ranks} ranks x {per_rank} slots\n`evenkeel simulate TRACE \
         --placement {shown}` judges it\n",
        imported.dialect,
        imported.experts,
        imported.layers.len(),
    ))
}

/// What the loss of each rank would do, layer by layer.
type Losses = Vec<(u32, Vec<AfterLoss>)>;

/// The plan's imbalance on a trace, and whether that is its own; an error where it is not what the plan says then. Beside it, where there are
/// several ranks, every possible loss of one.
fn judge_again(
    args: &CheckArgs,
    plan: &Plan,
    output: Output,
) -> anyhow::Result<((Summary, bool), Option<Losses>)> {
    // Drawn batches are a function of the totals, of the layers drawn together, and of what the plan says of them.
    let drawn: Option<Resampling> = plan.provenance.batches.parse().ok();
    let ids: Vec<String> = plan.layers.iter().map(|layer| layer.layer.to_string()).collect();
    let options = ReadOptions {
        experts: Some(plan.experts),
        layers: if drawn.is_some() { Some(ids.join(",").parse()?) } else { None },
        batching: match args.decode_batch {
            Some(in_flight) => Batching::Decode { in_flight },
            None => Batching::Prefill { tokens: args.batch_tokens },
        },
        order: args.order,
        step_column: args.step_column.clone(),
        seed: plan.provenance.seed,
        ..ReadOptions::default()
    };
    let bar = Bar::bytes();
    let trace = trace::read(&args.trace, &options, &bar)?;
    drop(bar);
    let trace = match drawn {
        Some(drawn) => drawn.draw(&trace)?,
        None => trace,
    };
    let recorded = || options.batches_in_words(trace.format());
    let words = trace.resampling().map_or_else(recorded, ToString::to_string);
    if words != plan.provenance.batches {
        bail!(
            "the plan was judged on {}, these are {words}: give the same batch options",
            plan.provenance.batches
        );
    }
    let digests = |files: Vec<&String>| files.into_iter().cloned().collect::<Vec<_>>();
    let now = digests(trace.files().iter().map(|f| &f.sha256).collect());
    let then = digests(plan.provenance.trace.iter().map(|f| &f.sha256).collect());
    let same_trace = now == then;
    if !same_trace {
        output.note("these are not the files that the plan was made from (SHA-256 differs)");
    }
    let split: Method = plan.provenance.split.parse().context("\"provenance.split\"")?;
    let mut imbalances = Vec::new();
    for layer in &plan.layers {
        let Ok(index) = trace.layers().binary_search(&layer.layer) else {
            bail!("layer {} of the plan is not in the trace", layer.layer);
        };
        let all = 0..trace.steps().len();
        let judged = judge_on_nodes(&trace, index, all, &layer.placement, split, plan.cluster.nodes())?;
        imbalances.extend((0..judged.peaks.len()).map(|b| judged.imbalance(b)));
    }
    let again = Summary::of(imbalances);
    let promised = plan.provenance.imbalance;
    if same_trace && (again.mean - promised.mean).abs() > 1e-9 {
        bail!(
            "the plan promises a mean imbalance of {:.6}, its trace gives {:.6}",
            promised.mean,
            again.mean
        );
    }
    let losses = (plan.cluster.ranks() > 1).then(|| secure_args::losses(plan, &trace)).transpose()?;
    Ok(((again, same_trace), losses))
}
