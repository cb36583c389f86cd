//! `evenkeel simulate`: what each policy and split would have done, side by side.

use super::cluster_args::check_groups;
use super::further::Further;
use super::goal_args::GoalArgs;
use super::memory::Memory;
use super::model_args::ModelOnGpu;
use super::network_args::{NetworkArgs, OnNetwork};
use super::output::{Bar, Output, print, table, write_file};
use super::replan_args::{ReplanArgs, Replanned};
use super::shapes::ShapeArgs;
use super::sizing;
use super::trace_args::TraceArgs;
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel::export;
use evenkeel::place::{self, ForSpeeds, Policy};
use evenkeel::plan::{Given, Plan};
use evenkeel::report::Page;
use evenkeel::simulate::{Config, Outcome, Row, busy_layers, hindsight, simulate};
use evenkeel::split::Method;
use evenkeel::trace::Trace;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Compare placement policies and splits: plan on the first part of a trace, judge on the rest.
///
/// Every batch of every layer is split in whole tokens, checked, and measured by its imbalance: the busiest rank's
/// tokens over the average rank's. 1 is perfect; 1.5 means that every step waits for a rank with half as much again.
/// `bound` is ceil(tokens / ranks): no placement can have a lower peak. `excess` is how far the peak is above it, in
/// units of the average.
///
/// A trace that holds only totals, as SGLang's `stat` dumps do, has no batches to judge: they are drawn (--resample).
///
/// Lists of --ranks and --redundant give one table: what each number of redundant slots buys, and costs in memory.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  evenkeel simulate traces/sample-decode.csv.zst --ranks 8 --redundant 8\n  evenkeel \
                  simulate DUMP.pt --ranks 8,16,32 --redundant 0,32,64 --policies contiguous,eplb\n  evenkeel \
                  simulate gptoss20b-decode/ --ranks 8 --redundant 8 --decode-batch 64 --policies \
                  contiguous,eplb,lplb:ring --splits even,lp,exact --report report.html\n  evenkeel simulate \
                  deepseek-v2-lite-domains/ --ranks 8 --replan-every 4 --max-moves 1,2,4\n  evenkeel simulate TRACE \
                  --ranks 288 --nodes 36 --network h800 --model deepseek-v3,h800 --one-copy-per node"
)]
pub(crate) struct SimulateArgs {
    #[command(flatten)]
    pub(super) trace: TraceArgs,
    #[command(flatten)]
    pub(super) cluster: ShapeArgs,
    #[command(flatten)]
    pub(super) goal: GoalArgs,
    #[command(flatten)]
    replan: ReplanArgs,
    #[command(flatten)]
    network: NetworkArgs,
    /// Placement policies: contiguous, eplb, eplb:trtllm, lplb:TOPOLOGY, recourse (also recourse:cvar=0.9, recourse:worst),
    /// lp-round, milp
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_value = "contiguous,eplb,recourse")]
    pub(super) policies: Vec<String>,
    /// Also judge the placements of these files: plans, or what SGLang, TensorRT-LLM, vLLM, vllm-ascend or EPLB read
    ///
    /// Files that count MoE layers only are taken to begin at the first layer that routes tokens.
    #[arg(long, value_name = "FILE,..", value_delimiter = ',')]
    placement: Vec<PathBuf>,
    /// Add a row for `recourse` shown the judged batches beforehand: about what any placement could reach
    #[arg(long)]
    pub(super) hindsight: bool,
    /// Splits: even, affine5, lp, exact; or a stack's own rule: sglang-static, sglang-dynamic, sglang-random,
    /// vllm, vllm-ascend, trtllm
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_value = "even,exact")]
    pub(super) splits: Vec<Method>,
    /// Share of the steps to plan on; the rest is judged
    #[arg(long, value_name = "SHARE", default_value_t = 0.4)]
    pub(super) plan_on: f64,
    /// Per-token arrays: redirect every token, and say how far tokens travel, before and after traffic is made small
    ///
    /// A batch's tokens belong to the ranks in equal consecutive parts. Every source redirects its own; the slots must
    /// meet their quotas to the token. Rows with `traffic` have the same peaks and, among such splits, the fewest tokens
    /// off their node, then off their rank; `vector, traffic` also evens out the ranks below the peak first.
    #[arg(long)]
    pub(super) locality: bool,
    /// Say whether planning is worth it: the time of all batches if none, all or those that may pay are planned
    ///
    /// Times are a roofline's: an expert takes as long as its weights take to be read, or its tokens to be multiplied,
    /// whichever is more. MODEL is one of mixtral-8x7b, qwen3-30b-a3b, gpt-oss-20b, deepseek-v2-lite, deepseek-v3,
    /// kimi-k2 and others, with :fp8 or :bf16 behind it where wanted; GPU one of a100, h100, h800, h200, h20, b200, mi300x.
    #[arg(long, value_name = "MODEL,GPU")]
    pub(super) worth: Option<ModelOnGpu>,
    /// With --worth: what planning one batch of one layer costs, in microseconds, from counting to redirected tokens
    #[arg(long, value_name = "US", default_value_t = 20.0, requires = "worth")]
    pub(super) plan_us: f64,
    /// Write a picture of it here: one HTML file that needs no network
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// The placements of a plan or of a stack's file, as a policy of the file's name.
fn given(path: &Path, trace: &Trace, ranks: usize) -> anyhow::Result<Given> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("{shown}"))?;
    if Plan::claims(&text) {
        let plan = Plan::from_json(&text).with_context(|| format!("{shown}"))?;
        return Ok(Given::plan(name, &plan));
    }
    let imported = export::read(&text, ranks).with_context(|| format!("{shown}"))?;
    let idle = trace.idle_layers();
    let busy = (0..trace.layers().len()).filter(|layer| !idle.contains(layer));
    let moe_layers: Vec<u32> = busy.map(|layer| trace.layers()[layer]).collect();
    Ok(Given::imported(name, &imported, &moe_layers))
}

/// Options whose studies look at one cluster.
const OF_ONE_CLUSTER: [&str; 12] = [
    "cost",
    "then",
    "speeds",
    "base",
    "shared_expert",
    "min_piece",
    "replan_every",
    "network",
    "worth",
    "locality",
    "report",
    "placement",
];

/// Refuses what cannot be answered, before anything is read.
fn check(args: &SimulateArgs) -> anyhow::Result<()> {
    let stated = |id: &&str| args.trace.explicit.has(id);
    if args.cluster.several()
        && let Some(option) = OF_ONE_CLUSTER.iter().find(|id| stated(id))
    {
        bail!(
            "--{} looks at one cluster: expected a single number each for --ranks and --redundant",
            option.replace('_', "-")
        );
    }
    check_groups(stated(&"groups"), args.cluster.groups, &args.policies)
}

/// Refuses traces that cannot be parted into steps to plan on and steps to judge.
fn check_steps(args: &SimulateArgs, trace: &Trace) -> anyhow::Result<()> {
    busy_layers(trace)?;
    if trace.steps().len() < 2 && trace.format().holds_tokens() {
        bail!(
            "{} gives fewer than 2 batches, and 2 are needed to plan on one part and judge on the rest; expected smaller \
             batches (--batch-tokens, --decode-batch)",
            args.trace.name()
        );
    }
    if trace.holds_totals() && args.trace.resample == Some(0) {
        bail!(
            "--resample 0: {} has a single step, and at least 2 are needed to plan on one part and judge on the rest; \
             without --resample, batches are drawn",
            args.trace.name()
        );
    }
    Ok(())
}

pub(crate) fn run(args: &SimulateArgs, output: Output) -> anyhow::Result<()> {
    check(args)?;
    let model = args.replan.model.map(|on| on.model);
    let mut tokens = if args.locality { Some(args.trace.read_tokens()?) } else { None };
    let read = if tokens.is_some() { None } else { Some(args.trace.read_for(model)?) };
    if read.as_ref().is_some_and(|trace| args.network.wants_tokens(trace)) {
        match args.trace.read_tokens() {
            Ok(read) => tokens = Some(read),
            Err(error) => output.note(&format!("rows are expected, not counted: {error:#}")),
        }
    }
    let trace = match (&tokens, &read) {
        (Some(tokens), _) => tokens.trace(),
        (None, Some(read)) => read,
        (None, None) => bail!("nothing was read"),
    };
    output.notices(trace.notices());
    check_steps(args, trace)?;
    let shapes = args.cluster.shapes(trace.experts())?;
    if args.cluster.several() {
        return sizing::run(args, trace, &shapes, model, output);
    }
    let Some(&cluster) = shapes.clusters.first() else { bail!("no cluster") };
    let memory = Memory::of(model, &args.trace, trace, &cluster);
    let mut policies: Vec<Box<dyn Policy>> = Vec::new();
    for name in &args.policies {
        let find = || place::policy(name.trim(), args.cluster.groups, &cluster);
        policies.push(find()?);
        if args.goal.place_for_speeds {
            policies.push(Box::new(ForSpeeds::new(find()?, args.goal.speeds.clone())));
        }
    }
    for path in &args.placement {
        policies.push(Box::new(given(path, trace, cluster.ranks())?));
    }
    let config = Config::first_part(trace, cluster, args.splits.clone(), args.plan_on)?;
    let bar = Bar::layers();
    let mut outcome = simulate(trace, &config, &policies, &bar)?;
    if args.hindsight {
        outcome.append(hindsight(trace, &config, &bar)?);
    }
    drop(bar);
    let located = tokens.as_ref().filter(|_| args.locality);
    let further = Further::ask(args, trace, located, &config, &outcome)?;
    let on_network = args.network.ask(args.replan.model, trace, tokens.as_ref(), (&config, &outcome))?;
    let replanned = args.replan.ask(trace, &config, &policies)?;
    if let Some(path) = &args.report {
        let page = Page {
            title: "Simulation".into(),
            command: super::command_line(),
            trace,
            cluster: &cluster,
            outcome: &outcome,
            replayed: replanned.as_ref().map_or(&[], Replanned::rows),
        };
        let html = memory.as_ref().map_or_else(|| page.html(), |memory| page.html_for(&memory.model));
        write_file(path, &html)?;
    }
    let batches = args.trace.batches(trace);
    if output.json() {
        return super::output::document(&document(
            trace,
            &config,
            &outcome,
            &batches,
            (&further, on_network.as_ref(), replanned.as_ref(), memory.as_ref()),
        ));
    }
    let on = format!("{} ranks x {} slots", cluster.ranks(), cluster.slots_per_rank());
    print(&heading(trace, &config, &outcome, &batches, &on))?;
    print(&results(&outcome))?;
    if let Some(memory) = &memory {
        print(&format!("\n{}", memory.words()))?;
    }
    print(&further.tables(&outcome, &config))?;
    if let Some(on_network) = &on_network {
        print(&on_network.text(&outcome))?;
    }
    if let Some(replanned) = &replanned {
        print(&format!("\n{}", replanned.table()))?;
    }
    if let Some(path) = &args.report {
        output.note(&format!("report written to {}", path.display()));
    }
    Ok(())
}

/// What is judged on what, in one line.
pub(super) fn heading(trace: &Trace, config: &Config, outcome: &Outcome, batches: &str, on: &str) -> String {
    format!(
        "{} experts x {} layers, {batches}; {on}; planned on {} steps, judged on {} ({} batches{})\n\n",
        trace.experts(),
        outcome.layers.len(),
        config.plan_on.len(),
        config.judge_on.len(),
        outcome.batches,
        if outcome.empty_batches > 0 {
            format!(", {} empty ones left out", outcome.empty_batches)
        } else {
            String::new()
        },
    )
}

fn results(outcome: &Outcome) -> String {
    let rows = outcome.rows.iter().map(|row| {
        let planned = &outcome.planned[row.planned];
        let i = row.imbalance;
        let mut cells = vec![planned.policy.clone(), row.method.to_string()];
        cells.extend([i.mean, i.p50, i.p95, i.p99, i.max, row.lower_bound.mean].map(|x| format!("{x:.3}")));
        cells.extend([
            format!("{:.4}", row.excess.mean),
            format!("{:.1}%", row.at_bound * 100.0),
            planned.moves.to_string(),
            format!("{:.2}", planned.plan_time.as_secs_f64() * 1e3),
            format!("{:.1}", row.split_us.p50),
            format!("{:.1}", row.split_us.p99),
        ]);
        cells
    });
    let header = [
        "policy", "split", "mean", "p50", "p95", "p99", "max", "bound", "excess", "at bound", "moves",
        "plan ms", "split us", "p99 us",
    ];
    table(&header, rows.collect(), 2)
}

/// One row as a document.
pub(super) fn result(outcome: &Outcome, row: &Row) -> Value {
    let planned = &outcome.planned[row.planned];
    json!({
        "policy": planned.policy,
        "split": row.method.to_string(),
        "imbalance": row.imbalance,
        "excess": row.excess,
        "lower_bound": row.lower_bound,
        "at_bound": row.at_bound,
        "moves": planned.moves,
        "plan_ms": planned.plan_time.as_secs_f64() * 1e3,
        "split_us": { "p50": row.split_us.p50, "p99": row.split_us.p99 },
    })
}

/// The trace and what of it is planned and judged on.
pub(super) fn trace_document(trace: &Trace, config: &Config, outcome: &Outcome, batches: &str) -> Value {
    json!({
        "files": trace.files().iter().map(|f| json!({ "path": f.path, "sha256": f.sha256 })).collect::<Vec<_>>(),
        "format": trace.format().to_string(),
        "experts": trace.experts(),
        "layers": outcome.layers.iter().map(|&l| trace.layers()[l]).collect::<Vec<_>>(),
        "steps": trace.steps().len(),
        "batching": batches,
        "planned_steps": config.plan_on.len(),
        "judged_steps": config.judge_on.len(),
        "batches": outcome.batches,
        "empty_batches": outcome.empty_batches,
        "notices": trace.notices(),
    })
}

/// The studies that follow the main table.
type Studies<'a> = (&'a Further, Option<&'a OnNetwork>, Option<&'a Replanned>, Option<&'a Memory>);

fn document(
    trace: &Trace,
    config: &Config,
    outcome: &Outcome,
    batches: &str,
    (further, on_network, replanned, memory): Studies<'_>,
) -> Value {
    let results: Vec<Value> = outcome.rows.iter().map(|row| result(outcome, row)).collect();
    let mut document = json!({
        "trace": trace_document(trace, config, outcome, batches),
        "cluster": super::cluster_args::document(&config.cluster, trace.experts()),
        "lp_engine": evenkeel_solver::lp::Engine::best().name(),
        "results": results,
        "memory": memory.map(Memory::document),
        "goal": further.goal(outcome),
        "worth": further.worth(outcome),
        "locality": further.locality(outcome),
        "replan": replanned.map(Replanned::document),
    });
    // Not there where nobody asked: the document stays as it was.
    if let (Some(on_network), Some(fields)) = (on_network, document.as_object_mut()) {
        fields.insert("network".into(), on_network.document(outcome));
    }
    document
}
