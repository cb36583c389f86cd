//! `evenkeel plan`: a trace in, a placement out.

use super::cluster_args::ClusterArgs;
use super::output::{Bar, Output, print, table, write_file};
use super::past_args::{self, PastArgs};
use super::plan_check::{self, CheckArgs};
use super::secure_args::{self, Secure};
use super::trace_args::TraceArgs;
use anyhow::Context as _;
use clap::{Args, Subcommand};
use evenkeel::place::{self, AfterLoss, Contiguous, Policy, Secured};
use evenkeel::plan::{Changed, Horizon, Made, Origin, Past, Plan};
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
                  evenkeel plan loads.csv --previous plan.json --max-moves 2 -o next.json\n  evenkeel plan \
                  loads.csv --previous plan.json --without-rank 7 -o next.json\n  evenkeel plan loads.csv --ranks 8 \
                  --redundant 64 --secure 1 -o plan.json\n  evenkeel plan check plan.json"
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
    #[command(flatten)]
    past: PastArgs,
    /// Every expert survives the loss of any one rank (1), or as many as the slots allow, heaviest first (best)
    ///
    /// What each possible loss does to the imbalance is computed exactly, and the worst is told.
    #[arg(long, value_name = "1|best", conflicts_with_all = ["max_moves", "without_rank"])]
    secure: Option<Secure>,
    /// Redundant slots of all layers together: layers get them where they lower peaks most, the others stay empty
    #[arg(long, value_name = "SLOTS", conflicts_with_all = ["previous", "redundant", "uneven"])]
    memory_budget: Option<usize>,
    /// Write the plan here; `-` is stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a picture of it here: one HTML file that needs no network; of plans made from scratch only
    #[arg(long, value_name = "FILE", conflicts_with_all = ["previous", "memory_budget"])]
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
    let previous = args.past.read()?;
    let cluster = match &previous {
        Some(previous) => args.past.cluster(previous, &args.cluster, trace.experts(), output)?,
        None => args.cluster.cluster(trace.experts())?,
    };
    let mut policy = place::policy(&args.policy, args.cluster.groups, &cluster)?;
    if let Some(Secure(cover)) = args.secure {
        policy = Box::new(Secured::new(policy, cover));
    }
    let origin = Origin { seed: args.trace.seed, batches: args.trace.batches(&trace) };
    let mut more = Further { horizon: args.past.horizon()?, ..Further::default() };
    let bar = Bar::layers();
    let made = if let Some(previous) = &previous {
        let past = Past {
            previous,
            lost: &args.past.without_rank,
            max_moves: args.past.max_moves,
            horizon: more.horizon,
        };
        let (made, changes) = Plan::make_after(&trace, &cluster, policy.as_ref(), &past, origin, &bar)?;
        more.changes = Some(changes);
        made
    } else if let Some(budget) = args.memory_budget {
        let shape = (cluster.ranks(), cluster.nodes());
        let (made, redundant) = Plan::make_within(&trace, shape, policy.as_ref(), budget, origin, &bar)?;
        more.redundant = Some(redundant);
        made
    } else {
        Plan::make(&trace, &cluster, policy.as_ref(), origin, &bar)?
    };
    drop(bar);
    if args.secure.is_some() {
        more.losses = Some(secure_args::losses(&made.plan, &trace)?);
    }
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
        return super::output::document(&document(args, &trace, &made, &more));
    }
    print(&summary(&trace, &made, output.verbose()))?;
    print(&more.words(&made.plan, output.verbose()))?;
    match &args.output {
        Some(path) => output.note(&format!("plan written to {}", path.display())),
        None => output.note("nothing written: -o FILE writes the plan"),
    }
    Ok(())
}

/// What a plan is told about beyond its imbalance.
#[derive(Debug, Default)]
struct Further {
    horizon: Option<Horizon>,
    changes: Option<Vec<Changed>>,
    losses: Option<Vec<(u32, Vec<AfterLoss>)>>,
    /// Redundant slots of each layer, under a budget for all.
    redundant: Option<Vec<usize>>,
}

impl Further {
    fn words(&self, plan: &Plan, verbose: bool) -> String {
        let mut text = String::new();
        if let Some(redundant) = &self.redundant {
            let used: usize = redundant.iter().sum();
            text += &format!("{used} redundant slots in all layers\n");
            if verbose {
                let rows = plan.layers.iter().zip(redundant);
                let rows = rows.map(|(layer, slots)| vec![layer.layer.to_string(), slots.to_string()]);
                text += &table(&["layer", "redundant slots"], rows.collect(), 0);
            }
        }
        if let Some(changes) = &self.changes {
            text += &past_args::words(plan, changes, self.horizon.as_ref(), verbose);
        }
        if let Some(losses) = &self.losses {
            text += &secure_args::words(losses);
        }
        text
    }
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

fn document(args: &PlanArgs, trace: &Trace, made: &Made, more: &Further) -> serde_json::Value {
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
        "moves": more.changes.as_ref().map(|changes| past_args::document(plan, changes)),
        "after_loss": more.losses.as_ref().map(|losses| secure_args::document(losses)),
        "redundant_by_layer": more.redundant,
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
