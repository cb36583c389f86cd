//! The comparison of policies and splits that every study starts from.
//!
//! In: a trace, a cluster and names of policies. Out: [`Comparison`], its table, and the common part of all
//! documents.

use super::policy_selection::{UnfitPolicy, select_policies};
use crate::args::cluster::{ClusterArgs, ClusterSpec, check_groups};
use crate::args::trace::{TraceArgs, busy_layer_ids};
use crate::output::{Output, StderrBar, print_json, print_text};
use crate::render::cluster::cluster_to_json;
use crate::render::memory::RedundancyMemory;
use crate::render::table::render_table;
use anyhow::{Context as _, bail};
use clap::Args;
use evenkeel::cluster::Cluster;
use evenkeel::evaluate::busy_layers;
use evenkeel::export;
use evenkeel::model::MoeModel;
use evenkeel::place::Policy;
use evenkeel::plan::{FixedPlacement, Plan};
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;
use evenkeel_simulate::{SimulationConfig, SimulationResult, SimulationRow, hindsight, simulate};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Policies and splits to compare, and the steps to plan on.
#[derive(Debug, Clone, Args)]
pub(super) struct ComparisonArgs {
    /// Placement policies
    ///
    /// Names are contiguous, eplb, eplb:trtllm, lplb:TOPOLOGY, recourse, lp-round and milp.
    /// recourse:cvar=0.9 and recourse:worst minimise the worst batches. `evenkeel plan new --help` explains
    /// the names.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_value = "contiguous,eplb,recourse")]
    pub(super) policies: Vec<String>,
    /// Splits: even, affine5, lp, exact or a stack's rule
    ///
    /// Rules of stacks are sglang-static, sglang-dynamic, sglang-random, vllm, vllm-ascend and trtllm.
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', default_value = "even,exact")]
    pub(super) splits: Vec<SplitMethod>,
    /// Also judge the placements of these files: plans, or files for SGLang, TensorRT-LLM, vLLM, vllm-ascend
    /// or EPLB
    ///
    /// Files without layer ids begin at the first layer that routes tokens.
    #[arg(long, value_name = "FILE,..", value_delimiter = ',', hide_short_help = true)]
    pub(super) placement: Vec<PathBuf>,
    /// Add a row for `recourse` planned on the judged batches: about the best that any placement can reach
    #[arg(long, hide_short_help = true)]
    pub(super) hindsight: bool,
    /// Share of the steps to plan on; the others are judged
    #[arg(long, value_name = "SHARE", default_value_t = 0.4, hide_short_help = true)]
    pub(super) train_fraction: f64,
}

/// Arguments of every study of one cluster.
#[derive(Debug, Clone, Args)]
pub(super) struct StudyArgs {
    #[command(flatten)]
    pub(super) trace: TraceArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    comparison: ComparisonArgs,
}

/// A comparison on one cluster, from options that are valid together.
#[derive(Debug, Clone)]
pub(super) struct ComparisonSpec {
    pub(super) trace: TraceArgs,
    pub(super) cluster: ClusterSpec,
    pub(super) comparison: ComparisonArgs,
    /// Model that states memory and top-k.
    pub(super) model: Option<MoeModel>,
    /// Number of steps to plan on, if it is not a share of all.
    pub(super) planned_steps: Option<usize>,
    /// Speeds of the ranks, if every policy is also to place for them.
    pub(super) placed_speeds: Option<Vec<u32>>,
}

impl StudyArgs {
    /// Checks the options against each other.
    pub(super) fn resolve(&self, model: Option<MoeModel>) -> anyhow::Result<ComparisonSpec> {
        let cluster = self.cluster.resolve()?;
        check_groups(self.trace.stated.has("groups"), cluster.groups, &self.comparison.policies)?;
        Ok(ComparisonSpec {
            trace: self.trace.clone(),
            cluster,
            comparison: self.comparison.clone(),
            model,
            planned_steps: None,
            placed_speeds: None,
        })
    }
}

/// Results of a comparison on one cluster.
pub(super) struct Comparison<'a> {
    pub(super) trace: &'a Trace,
    pub(super) policies: Vec<Box<dyn Policy>>,
    pub(super) config: SimulationConfig,
    pub(super) outcome: SimulationResult,
    pub(super) memory: Option<RedundancyMemory>,
    unfit: Vec<UnfitPolicy>,
    batches: String,
}

impl<'a> Comparison<'a> {
    /// Plans on the first part of a trace and judges on the rest.
    pub(super) fn run(spec: &ComparisonSpec, trace: &'a Trace, output: Output) -> anyhow::Result<Self> {
        check_steps(&spec.trace, trace)?;
        let (args, cluster) = (&spec.comparison, spec.cluster.for_experts(trace.experts())?);
        let memory = RedundancyMemory::for_cluster(spec.model, &spec.trace, trace, &cluster);
        let speeds = spec.placed_speeds.as_deref();
        let (mut policies, unfit) =
            select_policies(&args.policies, spec.cluster.groups, trace, &cluster, speeds)?;
        unfit.iter().for_each(|one| output.print_note(&one.to_sentence()));
        for path in &args.placement {
            policies.push(Box::new(read_placement(path, trace, cluster.ranks())?));
        }
        if let (true, false, Some(first)) = (policies.is_empty(), args.hindsight, unfit.first()) {
            bail!("{}; no policy is left to simulate", first.to_sentence());
        }
        let (config, outcome) = run_simulation(args, trace, spec.planned_steps, cluster, &policies)?;
        let batches = spec.trace.describe_batches(trace);
        Ok(Self { trace, policies, config, outcome, memory, unfit, batches })
    }

    /// Prints the common table and the table of a study, or the document with the study under its key.
    pub(super) fn print_study(
        &self,
        key: &str,
        study: (String, Value),
        output: Output,
    ) -> anyhow::Result<()> {
        let (text, document) = study;
        if output.is_json() {
            return print_json(&self.to_json(Some((key, document))));
        }
        self.print_table()?;
        print_text(&format!("\n{text}"))
    }

    /// Prints the heading, the table of the comparison, and the memory of redundancy.
    pub(super) fn print_table(&self) -> anyhow::Result<()> {
        let cluster = &self.config.cluster;
        let shape = format!("{} ranks x {} slots", cluster.ranks(), cluster.slots_per_rank());
        print_text(&heading(self.trace, &self.config, &self.outcome, &self.batches, &shape))?;
        print_text(&results_to_text(&self.outcome, &self.unfit))?;
        match &self.memory {
            Some(memory) => print_text(&format!("\n{}", memory.render_text())),
            None => Ok(()),
        }
    }

    /// Returns the common document, with the document of a study under its key.
    pub(super) fn to_json(&self, study: Option<(&str, Value)>) -> Value {
        let results: Vec<Value> = self
            .outcome
            .rows
            .iter()
            .map(|row| row_to_json(&self.outcome, row))
            .chain(self.unfit.iter().map(UnfitPolicy::to_json))
            .collect();
        let mut document = json!({
            "trace": trace_to_json(self.trace, &self.config, &self.outcome, &self.batches),
            "cluster": cluster_to_json(&self.config.cluster, self.trace.experts()),
            "lp_engine": evenkeel_solver::lp::LpEngine::best_available().name(),
            "results": results,
            "memory": self.memory.as_ref().map(RedundancyMemory::render_json),
            "goal": null,
            "worth": null,
            "locality": null,
            "replan": null,
        });
        if let Some((key, study)) = study {
            document[key] = study;
        }
        document
    }
}

/// Simulates the policies on one cluster. They plan on the first `planned_steps`, or else on a share of the
/// steps.
pub(super) fn run_simulation(
    args: &ComparisonArgs,
    trace: &Trace,
    planned_steps: Option<usize>,
    cluster: Cluster,
    policies: &[Box<dyn Policy>],
) -> anyhow::Result<(SimulationConfig, SimulationResult)> {
    let splits = args.splits.clone();
    let config = match planned_steps {
        Some(planned) => SimulationConfig::new(cluster, splits, 0..planned, planned..trace.steps().len()),
        None => SimulationConfig::first_part(trace, cluster, splits, args.train_fraction)?,
    };
    let bar = StderrBar::for_layers();
    let mut outcome = simulate(trace, &config, policies, &bar)?;
    if args.hindsight {
        outcome.append(hindsight(trace, &config, &bar)?);
    }
    Ok((config, outcome))
}

/// Refuses traces that cannot be divided into steps to plan on and steps to judge.
pub(super) fn check_steps(args: &TraceArgs, trace: &Trace) -> anyhow::Result<()> {
    busy_layers(trace)?;
    if trace.steps().len() < 2 && trace.format().holds_tokens() {
        bail!(
            "{} gives fewer than 2 batches, and 2 are needed to plan on one part and judge on the rest; expected smaller \
             batches (--batch-tokens, --decode-batch)",
            args.display_name()
        );
    }
    if trace.holds_totals() && args.resample == Some(0) {
        bail!(
            "--resample 0: {} has a single step, and at least 2 are needed to plan on one part and judge on the rest; \
             without --resample, batches are drawn",
            args.display_name()
        );
    }
    Ok(())
}

/// Returns the placements of a plan or of a stack's file, as a policy of the file's name.
fn read_placement(path: &Path, trace: &Trace, ranks: usize) -> anyhow::Result<FixedPlacement> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("{shown}"))?;
    if Plan::is_plan_document(&text) {
        let plan = Plan::from_json(&text).with_context(|| format!("{shown}"))?;
        return Ok(FixedPlacement::from_plan(name, &plan));
    }
    let imported = export::read(&text, ranks).with_context(|| format!("{shown}"))?;
    Ok(FixedPlacement::from_imported(name, &imported, &busy_layer_ids(trace)))
}

/// Returns the heading: the trace, the cluster, the steps planned on and the steps judged.
pub(super) fn heading(
    trace: &Trace,
    config: &SimulationConfig,
    outcome: &SimulationResult,
    batches: &str,
    shape: &str,
) -> String {
    format!(
        "{} experts x {} layers, {batches}; {shape}; planned on {} steps, judged on {} ({} batches{})\n\n",
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

fn results_to_text(outcome: &SimulationResult, unfit: &[UnfitPolicy]) -> String {
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
    render_table(&header, rows.chain(unfit.iter().map(|one| one.table_row(header.len()))).collect(), 2)
}

/// Returns one row as a document.
pub(super) fn row_to_json(outcome: &SimulationResult, row: &SimulationRow) -> Value {
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

/// Returns a document of the trace with its steps for planning and for judging.
pub(super) fn trace_to_json(
    trace: &Trace,
    config: &SimulationConfig,
    outcome: &SimulationResult,
    batches: &str,
) -> Value {
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
