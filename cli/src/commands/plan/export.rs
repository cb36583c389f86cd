//! `evenkeel plan export`: writes a plan in the format of a serving stack.

use crate::output::{Output, is_stdout, print_json, write_file};
use crate::render::split_figures::{figure_line, figures_to_json};
use anyhow::Context as _;
use clap::Args;
use evenkeel::export::{self, Dialect, RuntimeTarget};
use evenkeel::plan::Plan;
use evenkeel::trace::LayerSet;
use serde_json::json;
use std::path::PathBuf;

/// Write a plan in the format of a serving stack
///
/// Most stacks have no empty slots. The command fills empty slots with replicas, which never makes a balance
/// worse. sglang: a row per layer of the model, dense layers included, for --init-expert-location. trtllm:
/// YAML for the MoE load balancer, with real layer ids. vllm: a JSON line, layers by position. vllm-ascend:
/// its expert map; no expert may be on a rank twice. eplb: the result of DeepSeek's rebalance_experts.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Examples:\n  evenkeel plan export plan.json --to sglang -o init_expert_location.json\n  evenkeel plan \
                       export plan.json --to trtllm -o moe_load_balancer.yaml"
)]
pub(crate) struct ExportArgs {
    /// The plan file
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
    /// Format: sglang, trtllm, vllm, vllm-ascend or eplb
    #[arg(long, value_name = "FORMAT")]
    to: Dialect,
    /// Layers of the model that route tokens, as 3-60 or 1,3,5 [default: the planned layers, and those
    /// without tokens after the first planned one]
    ///
    /// Layers that the plan lacks keep their experts in order.
    #[arg(long, value_name = "IDS")]
    moe_layers: Option<LayerSet>,
    /// Write the file here; `-` is stdout
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

pub(super) fn run(args: &ExportArgs, output: Output) -> anyhow::Result<()> {
    let shown = args.plan.display().to_string();
    let mut plan = Plan::read(&args.plan).with_context(|| shown.clone())?;
    if let Some(named) = &args.moe_layers {
        plan.set_moe_layers(named).context("--moe-layers")?;
    }
    let text = export::write(&plan, args.to).with_context(|| format!("{shown}, for {}", args.to))?;
    write_file(&args.output, &text)?;
    let slots = plan.layers.iter().flat_map(|layer| layer.placement.slots());
    let empty = slots.filter(|slot| slot.is_none()).count();
    let to_file = !is_stdout(&args.output);
    let target = runtime_target(&plan, args.to);
    let split = target.map_or(plan.provenance.split.clone(), |target| target.split().to_string());
    let figures = figure_split(&plan, &split);
    if output.is_json() && to_file {
        return print_json(&json!({
            "plan": args.plan,
            "format": args.to.name(),
            "output": args.output,
            "layers": plan.moe_layers().len(),
            "unrecorded_layers": plan.unrecorded_layers,
            "filled_slots": empty,
            "split": split,
            "figures": figures_to_json(&plan.provenance),
            "launch": target.and_then(|target| target.launch_flags(&plan, &args.output.display().to_string())),
        }));
    }
    if let Some(note) = unrecorded_note(&plan) {
        output.print_note(&note);
    }
    if empty > 0 {
        output.print_note(&format!("{empty} empty slots now hold replicas"));
    }
    output.print_note(&figure_line(&plan.provenance, figures));
    if let Some(made_for) = plan.provenance.target.as_deref().filter(|_| figures != split) {
        output.print_note(&format!("the plan was made for {made_for}; {} does the {split} split", args.to));
    }
    if to_file {
        output.print_note(&format!("written to {}", args.output.display()));
        let file = args.output.display().to_string();
        if let Some(flags) = target.and_then(|target| target.launch_flags(&plan, &file)) {
            output.print_note(&format!("start it with: {flags}"));
        }
    }
    Ok(())
}

/// Returns a note on the layers that files for stacks contain although the trace has no tokens of them.
pub(super) fn unrecorded_note(plan: &Plan) -> Option<String> {
    let ids: Vec<String> = plan.unrecorded_layers.iter().map(u32::to_string).collect();
    (!ids.is_empty()).then(|| {
        format!(
            "layers {} drew no tokens and count as MoE layers that were not recorded: their experts stay in order \
             (--moe-layers names the MoE layers)",
            ids.join(", ")
        )
    })
}

/// Returns the runtime that reads the file: the plan's own target if it reads this format, otherwise the
/// format's usual one.
fn runtime_target(plan: &Plan, dialect: Dialect) -> Option<RuntimeTarget> {
    let usual = RuntimeTarget::from_dialect(dialect)?;
    let own: Option<RuntimeTarget> = plan.provenance.target.as_deref().and_then(|target| target.parse().ok());
    Some(own.filter(|own| own.runtime() == usual.runtime()).unwrap_or(usual))
}

/// Returns the split to show: that of the runtime if the plan was judged under it. Otherwise it is the even
/// split, which approximates the average of all stacks' rules.
fn figure_split<'a>(plan: &Plan, split: &'a str) -> &'a str {
    if plan.provenance.figures.iter().any(|figure| figure.split == split) { split } else { "even" }
}
