//! `evenkeel plan`: a trace in, a placement out.

use super::cluster_args::ClusterArgs;
use super::output::{Bar, Output, print, table, write_file};
use super::plan_check::{self, CheckArgs};
use super::trace_args::TraceArgs;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use evenkeel::place::{self, Contiguous, Policy};
use evenkeel::plan::{Made, Origin, Plan};
use evenkeel::report::Page;
use evenkeel::simulate::{Config, simulate};
use evenkeel::split::Method;
use evenkeel::trace::Trace;
use serde_json::json;
use std::path::PathBuf;

/// Plan where the copies of every layer's experts live, and write the plan.
///
/// The policy looks at the whole trace. The imbalance to expect is what the exact split makes of the same batches
/// on that placement; `simulate` judges on batches that planning has not seen.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  evenkeel plan loads.csv --ranks 32 --nodes 4 --redundant 32 -o plan.json --report \
                  report.html\n  evenkeel plan dumps/ --ranks 16 --policy lplb:hypercube --redundant 32 -o plan.json\n  \
                  evenkeel plan check plan.json"
)]
pub(crate) struct PlanCommand {
    #[command(subcommand)]
    sub: Option<PlanSub>,
    #[command(flatten)]
    args: PlanArgs,
}

#[derive(Debug, Subcommand)]
enum PlanSub {
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct PlanArgs {
    #[command(flatten)]
    trace: TraceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// recourse, contiguous, eplb, eplb:trtllm, or lplb:TOPOLOGY (see `evenkeel topology --help`)
    ///
    /// recourse searches for the placement whose batches split best. Options follow it, each behind a colon: cvar=0.9 (the
    /// worst tenth of the batches counts) or worst instead of the mean; seed=N; iterations=N.
    #[arg(long, value_name = "NAME", default_value = "recourse")]
    policy: String,
    /// Write the plan here; `-` is stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a picture of it here: one HTML file that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(crate) fn run(command: PlanCommand, output: Output) -> anyhow::Result<()> {
    match command.sub {
        Some(PlanSub::Check(args)) => plan_check::run(&args, output),
        None => make(&command.args, output),
    }
}

fn make(args: &PlanArgs, output: Output) -> anyhow::Result<()> {
    let trace = args.trace.read()?;
    output.notices(trace.notices());
    let cluster = args.cluster.cluster(trace.experts())?;
    let policy = place::policy(&args.policy, args.cluster.groups, &cluster)?;
    let origin = Origin { seed: args.trace.seed, batches: args.trace.batches(&trace) };
    let bar = Bar::layers();
    let made = Plan::make(&trace, &cluster, policy.as_ref(), origin, &bar)?;
    drop(bar);
    if let Some(path) = &args.output {
        write_file(path, &made.plan.to_json()?)?;
    }
    if let Some(path) = &args.report {
        write_file(path, &report(&trace, policy, &made)?)?;
    }
    if args.output.as_deref() == Some(std::path::Path::new("-")) {
        return Ok(());
    }
    if output.json() {
        return super::output::document(&document(args, &trace, &made));
    }
    print(&summary(&trace, &made, output.verbose()))?;
    match &args.output {
        Some(path) => output.note(&format!("plan written to {}", path.display())),
        None => output.note("nothing written: -o FILE writes the plan"),
    }
    Ok(())
}

/// Before (contiguous, even) and after, on the batches of the whole trace.
fn report(trace: &Trace, policy: Box<dyn Policy>, made: &Made) -> anyhow::Result<String> {
    let all = 0..trace.steps().len();
    let config = Config {
        cluster: made.plan.cluster,
        methods: vec![Method::Even, Method::Exact],
        plan_on: all.clone(),
        judge_on: all,
    };
    let title = format!("Plan by {}", policy.name());
    let outcome =
        simulate(trace, &config, &[Box::new(Contiguous), policy], &()).context("while making the report")?;
    let command = super::command_line();
    Ok(Page { title, command, trace, cluster: &made.plan.cluster, outcome: &outcome }.html())
}

fn document(args: &PlanArgs, trace: &Trace, made: &Made) -> serde_json::Value {
    let plan = &made.plan;
    json!({
        "plan": args.output,
        "policy": plan.provenance.policy,
        "cluster": super::cluster_args::document(&plan.cluster, plan.experts),
        "layers": plan.layers.iter().map(|l| json!({
            "layer": l.layer,
            "imbalance": l.imbalance,
            "bound": l.bound,
            "doubled": l.placement.doubled(),
        })).collect::<Vec<_>>(),
        "idle_layers": plan.idle_layers,
        "expected": { "split": plan.provenance.split, "imbalance": plan.provenance.imbalance,
                      "batches": plan.provenance.judged },
        "plan_ms": made.plan_time.as_secs_f64() * 1e3,
        "notices": trace.notices(),
    })
}

fn summary(trace: &Trace, made: &Made, verbose: bool) -> String {
    let plan = &made.plan;
    let doubled: usize = plan.layers.iter().map(|l| l.placement.doubled()).sum();
    let mut text = format!(
        "{} experts x {} layers on {} ranks x {} slots, by {}\n",
        plan.experts,
        plan.layers.len(),
        plan.cluster.ranks(),
        plan.cluster.slots_per_rank(),
        plan.provenance.policy,
    );
    if !plan.idle_layers.is_empty() {
        text += &format!("{} idle layers left out: {:?}\n", plan.idle_layers.len(), plan.idle_layers);
    }
    let i = plan.provenance.imbalance;
    text += &format!(
        "expected imbalance with the exact split: mean {:.3}, p95 {:.3}, max {:.3} ({} batches of {} steps, {})\n",
        i.mean,
        i.p95,
        i.max,
        plan.provenance.judged,
        trace.steps().len(),
        plan.provenance.batches,
    );
    if doubled > 0 {
        text +=
            &format!("{doubled} copies share a rank with another copy of their expert: memory without use\n");
    }
    text += &format!("planned in {:.2} ms\n", made.plan_time.as_secs_f64() * 1e3);
    if verbose {
        let rows = plan.layers.iter().map(|l| {
            vec![
                l.layer.to_string(),
                format!("{:.3}", l.imbalance),
                format!("{:.3}", l.bound),
                l.placement.doubled().to_string(),
            ]
        });
        text += &table(&["layer", "imbalance", "bound", "doubled"], rows.collect(), 0);
    }
    text
}
