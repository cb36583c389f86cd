//! `evenkeel export`: a plan as a serving stack reads it.

use super::figures;
use super::output::{Output, write_file};
use anyhow::Context as _;
use clap::Args;
use evenkeel::export::{self, Dialect, Target};
use evenkeel::plan::Plan;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write a plan as a serving stack reads it.
///
/// Most stacks know no empty slot: those get further copies, which change nothing for the worse. sglang: a row per layer
/// of the model, dense ones included, for --init-expert-location. trtllm: YAML for the MoE load balancer, real layer ids.
/// vllm: a JSON line, layers by position. vllm-ascend: its expert map; no expert may be on a rank twice. eplb: what
/// DeepSeek's rebalance_experts returns.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  evenkeel export plan.json --to sglang -o init_expert_location.json\n  evenkeel \
                        export plan.json --to trtllm -o moe_load_balancer.yaml"
)]
pub(crate) struct ExportArgs {
    /// The plan file
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
    /// sglang, trtllm, vllm, vllm-ascend or eplb
    #[arg(long, value_name = "FORMAT")]
    to: Dialect,
    /// Write it here; `-` is stdout
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

pub(crate) fn run(args: &ExportArgs, output: Output) -> anyhow::Result<()> {
    let shown = args.plan.display().to_string();
    let plan = Plan::read(&args.plan).with_context(|| shown.clone())?;
    let text = export::write(&plan, args.to).with_context(|| format!("{shown}, for {}", args.to))?;
    write_file(&args.output, &text)?;
    let slots = plan.layers.iter().flat_map(|layer| layer.placement.slots());
    let empty = slots.filter(|slot| slot.is_none()).count();
    let to_file = args.output != Path::new("-");
    let target = target_of(&plan, args.to);
    let split = target.map_or(plan.provenance.split.clone(), |target| target.split().to_string());
    let figures = figures_under(&plan, &split);
    if output.json() && to_file {
        return super::output::document(&json!({
            "plan": args.plan,
            "format": args.to.name(),
            "output": args.output,
            "layers": plan.layers.len(),
            "filled_slots": empty,
            "split": split,
            "figures": figures::document(&plan.provenance),
            "launch": target.and_then(|target| target.launch_flags(&plan, &args.output.display().to_string())),
        }));
    }
    if empty > 0 {
        output.note(&format!("{empty} empty slots hold further copies"));
    }
    output.note(&figures::line(&plan.provenance, figures));
    if let Some(made_for) = plan.provenance.target.as_deref().filter(|_| figures != split) {
        output.note(&format!("the plan was made for {made_for}; {} does the {split} split", args.to));
    }
    if to_file {
        output.note(&format!("written to {}", args.output.display()));
        let file = args.output.display().to_string();
        if let Some(flags) = target.and_then(|target| target.launch_flags(&plan, &file)) {
            output.note(&format!("start it with: {flags}"));
        }
    }
    Ok(())
}

/// The runtime that reads the file: the plan's own target where it reads this format, else the format's usual one.
fn target_of(plan: &Plan, dialect: Dialect) -> Option<Target> {
    let usual = Target::of_dialect(dialect)?;
    let own: Option<Target> = plan.provenance.target.as_deref().and_then(|target| target.parse().ok());
    Some(own.filter(|own| own.runtime() == usual.runtime()).unwrap_or(usual))
}

/// The split to show: that of the runtime where the plan was judged by it, else the even one, which all stacks' rules are on
/// average.
fn figures_under<'a>(plan: &Plan, split: &'a str) -> &'a str {
    if plan.provenance.figures.iter().any(|figure| figure.split == split) { split } else { "even" }
}
