//! The way from traces to a plan, for `plan new` and `plan replan`.

use super::export::unrecorded_note;
use super::fault_tolerance::evaluate_losses;
use super::link_budget::LinkUsage;
use super::render::{PlanDetails, plan_to_json, plan_to_text};
use super::speeds::SpeedFigures;
use crate::args::blend::{BlendSpec, blend_traces};
use crate::args::cluster::{ClusterSpec, check_groups};
use crate::args::model::{ModelMaybeOnGpu, ModelOnGpu};
use crate::args::planning::PlanningArgs;
use crate::args::replan::EconomicsSpec;
use crate::args::trace::{TraceArgs, busy_layer_ids};
use crate::commands::simulate::verdict::{MISSING_MODEL, TimedComparison};
use crate::output::{Output, StderrBar, command_line, is_stdout, print_json, print_text, write_file};
use crate::render::memory::RedundancyMemory;
use anyhow::{Context as _, bail};
use evenkeel::cluster::Cluster;
use evenkeel::export::{self, ExportError, RuntimeTarget};
use evenkeel::model::MoeModel;
use evenkeel::place::{self, Contiguous, Eplb, Policy, TieBreak, without_ranks};
use evenkeel::plan::{BatchProvenance, Constraints, FixedPlacement, Plan, PlanReport, PlanRequest};
use evenkeel::split::SplitMethod;
use evenkeel::trace::{LayerSet, Trace};
use evenkeel_report::SimulationPage;
use evenkeel_simulate::{SimulationConfig, SimulationResult, Verdict, simulate};
use serde_json::Value;
use std::path::PathBuf;

/// Plan to compute, from options that are valid together.
#[derive(Debug)]
pub(super) struct PlanJob {
    pub(super) trace: TraceArgs,
    pub(super) groups: usize,
    pub(super) policy: String,
    pub(super) target: Option<RuntimeTarget>,
    pub(super) blend: Vec<BlendSpec>,
    pub(super) constraints: Constraints,
    /// Economics of moves, which join the constraints once the cluster is known.
    pub(super) economics: Option<EconomicsSpec>,
    pub(super) moe_layers: Option<LayerSet>,
    pub(super) model: Option<MoeModel>,
    /// The model on a GPU, if times are to be predicted.
    pub(super) on: Option<ModelOnGpu>,
    pub(super) start: PlanStart,
    pub(super) output: Option<PathBuf>,
    pub(super) report: Option<PathBuf>,
}

/// Placement that planning starts from.
#[derive(Debug)]
pub(super) enum PlanStart {
    /// No placement.
    Empty(ClusterSpec),
    /// The placements of a plan or of a stack's file.
    Previous(PreviousPlan),
}

/// Previous plan, and the change of its cluster.
#[derive(Debug)]
pub(super) struct PreviousPlan {
    pub(super) path: PathBuf,
    /// Ranks of a stack's file.
    pub(super) from_ranks: Option<usize>,
    pub(super) change: RankChange,
}

/// Change of a cluster by options.
#[derive(Debug, Clone, Copy)]
pub(super) struct RankChange {
    /// Number of ranks that join.
    pub(super) add_ranks: usize,
    /// Slots of each rank. `None` keeps those of the previous plan.
    pub(super) slots_per_rank: Option<usize>,
}

impl RankChange {
    /// Returns the cluster that follows from `left`, the cluster of the previous plan without lost ranks.
    fn apply(self, left: &Cluster, left_ranks: usize, experts: usize) -> anyhow::Result<Cluster> {
        if self.add_ranks == 0 && self.slots_per_rank.is_none() {
            return Ok(*left);
        }
        let ranks = left_ranks.saturating_add(self.add_ranks);
        let per_node = left.ranks() / left.nodes();
        let nodes = if ranks.is_multiple_of(per_node) { ranks / per_node } else { 1 };
        let width = self.slots_per_rank.unwrap_or(left.slots_per_rank());
        let redundant = ranks.saturating_mul(width).checked_sub(experts).with_context(|| {
            format!(
                "{ranks} ranks x {width} slots cannot hold {experts} experts: expected more --slots-per-rank"
            )
        })?;
        Ok(Cluster::new(ranks, nodes, experts, redundant)?)
    }
}

impl PlanJob {
    /// Checks the options that `plan new` and `plan replan` share.
    pub(super) fn from_args(
        trace: &TraceArgs,
        groups: usize,
        planning: &PlanningArgs,
        start: PlanStart,
    ) -> anyhow::Result<Self> {
        check_groups(trace.stated.has("groups"), groups, std::slice::from_ref(&planning.policy))?;
        let args = planning.clone();
        let mut constraints = Constraints::default();
        constraints.coverage = args.survive_rank_loss.map(|target| target.0);
        constraints.speeds = args.speeds;
        Ok(Self {
            trace: trace.clone(),
            groups,
            policy: args.policy,
            target: args.target,
            blend: args.blend,
            constraints,
            economics: None,
            moe_layers: args.moe_layers,
            model: args.model.map(|on| on.model),
            on: args.model.and_then(ModelMaybeOnGpu::on_gpu),
            start,
            output: args.output,
            report: None,
        })
    }

    /// Computes the plan, writes it and prints its figures.
    pub(super) fn execute(&self, output: Output) -> anyhow::Result<()> {
        let first = self.trace.read_for_model(self.model)?;
        let (trace, blend) = blend_traces(first, &self.trace, &self.blend)?;
        output.print_notices(trace.notices());
        let previous = self.read_previous(&trace)?;
        let cluster = self.cluster(previous.as_ref(), trace.experts(), output)?;
        let (policy, target) = self.policy(previous.as_ref(), &cluster)?;
        let mut constraints = self.constraints.clone();
        constraints.economics =
            self.economics.as_ref().map(|economics| economics.for_cluster(&cluster)).transpose()?;
        let split = target.map_or(SplitMethod::Even, RuntimeTarget::split);
        let batches = self.trace.describe_batches(&trace);
        let batches =
            blend.as_ref().map_or(batches.clone(), |blend| blend.describe_batches(&batches, &self.blend));
        let origin =
            BatchProvenance::default().seed(self.trace.seed).batches(batches).target(target).split(split);
        let bar = StderrBar::for_layers();
        let mut made = PlanRequest::new(&trace, cluster, policy.as_ref())
            .provenance(origin)
            .previous(previous.as_ref())
            .constraints(constraints)
            .run(&bar)?;
        drop(bar);
        if let Some(named) = &self.moe_layers {
            made.plan.set_moe_layers(named).context("--moe-layers")?;
        }
        if let Some(note) = unrecorded_note(&made.plan) {
            output.print_note(&note);
        }
        let mut memory = RedundancyMemory::for_cluster(self.model, &self.trace, &trace, &cluster);
        if let (Some(memory), Some(redundant)) = (&mut memory, &made.redundant) {
            memory.slots = redundant.iter().map(|&slots| slots as u64).sum();
        }
        let (limits, speeds) = (&self.constraints, &self.constraints.speeds);
        let details = PlanDetails {
            horizon_steps: self.economics.as_ref().map(|economics| economics.steps),
            memory,
            changes: previous.as_ref().map(|_| made.changes.clone()),
            links: made
                .links
                .clone()
                .zip(limits.link_budget)
                .map(|(used, budget)| LinkUsage { budget, used }),
            losses: limits.coverage.map(|_| evaluate_losses(&made.plan, &trace)).transpose()?,
            redundant: made.redundant.clone(),
            by_speed: (!speeds.is_empty())
                .then(|| SpeedFigures::evaluate_plan(&made.plan, &trace, speeds))
                .transpose()?,
            parts: blend.map(|blend| blend.evaluate_plan(&made.plan)).transpose()?,
        };
        if let Some(path) = &self.output {
            write_file(path, &made.plan.to_json()?)?;
        }
        let on = self.on.filter(|on| on.model.experts == trace.experts());
        if let Some(other) = self.on.filter(|_| on.is_none()) {
            let (model, experts, found) = (other.model, other.model.experts, trace.experts());
            output
                .print_note(&format!("no times: {model} has {experts} experts per layer, the trace {found}"));
        }
        let judged = match (&self.report, on) {
            (None, None) => None,
            _ => Some(JudgedPlan::new(&trace, policy.name(), &made)?),
        };
        let timed =
            |judged: &JudgedPlan, on| TimedComparison::predict(&trace, &judged.config, &judged.outcome, on);
        let timed = judged.as_ref().zip(on).map(|(judged, on)| timed(judged, on)).transpose()?.flatten();
        if let (Some(path), Some(judged)) = (&self.report, &judged) {
            let verdict = timed.as_ref().map(|timed| &timed.verdict);
            write_file(path, &judged.to_page(&trace, verdict, memory))?;
        }
        let verdict = timed.as_ref().zip(judged.as_ref());
        self.print_plan(&trace, &made, (&details, verdict), output)
    }

    fn print_plan(
        &self,
        trace: &Trace,
        made: &PlanReport,
        (details, verdict): (&PlanDetails, Option<(&TimedComparison, &JudgedPlan)>),
        output: Output,
    ) -> anyhow::Result<()> {
        if self.output.as_deref().is_some_and(is_stdout) {
            return Ok(());
        }
        if output.is_json() {
            let mut document = plan_to_json(self.output.as_deref(), trace, made, details);
            document["verdict"] =
                verdict.map_or(Value::Null, |(timed, judged)| timed.to_json(&judged.outcome));
            return print_json(&document);
        }
        match verdict {
            Some((timed, judged)) => print_text(&timed.to_text(&judged.outcome))?,
            None if self.on.is_none() => print_text(MISSING_MODEL)?,
            None => {}
        }
        print_text(&plan_to_text(made, output.is_verbose()))?;
        print_text(&details.to_text(&made.plan, output.is_verbose()))?;
        match &self.output {
            Some(path) => output.print_note(&format!("plan written to {}", path.display())),
            None => output.print_note("nothing written: -o FILE writes the plan"),
        }
        Ok(())
    }

    fn read_previous(&self, trace: &Trace) -> anyhow::Result<Option<Plan>> {
        let PlanStart::Previous(PreviousPlan { path, from_ranks, .. }) = &self.start else { return Ok(None) };
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("{shown}"))?;
        let parsed = || Plan::from_json(&text).map(Some).with_context(|| format!("{shown}"));
        let ranks = match *from_ranks {
            _ if Plan::is_plan_document(&text) => return parsed(),
            Some(ranks) => ranks,
            None if matches!(export::read(&text, 1), Err(ExportError::Unrecognised(_))) => return parsed(),
            None => bail!(
                "{shown} is a file of a serving stack: expected --from-ranks, the number of ranks that share its slots"
            ),
        };
        let imported = export::read(&text, ranks).with_context(|| format!("{shown}"))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let plan = Plan::from_imported(name, &imported, &busy_layer_ids(trace));
        Ok(Some(plan.with_context(|| format!("{shown}"))?))
    }

    /// Returns the cluster to plan for. After a previous plan it is that plan's, without the lost ranks, and
    /// with the changes of the options.
    fn cluster(&self, previous: Option<&Plan>, experts: usize, output: Output) -> anyhow::Result<Cluster> {
        let (start, previous) = match (&self.start, previous) {
            (PlanStart::Empty(cluster), _) => return cluster.for_experts(experts),
            (PlanStart::Previous(start), Some(previous)) => (start, previous),
            (PlanStart::Previous(start), None) => bail!("{}: not read", start.path.display()),
        };
        if previous.experts != experts {
            bail!("the previous plan has {} experts, the trace {experts}", previous.experts);
        }
        let (lost, before) = (&self.constraints.lost_ranks, &previous.cluster);
        if lost.is_empty() {
            return start.change.apply(before, before.ranks(), experts);
        }
        let left = match without_ranks(before, experts, lost) {
            Ok(left) => left,
            // Ranks that join can hold what those that are left cannot.
            Err(_) if start.change.add_ranks > 0 && lost.iter().all(|&rank| rank < before.ranks()) => {
                let left = (0..before.ranks()).filter(|rank| !lost.contains(rank)).count();
                return start.change.apply(before, left, experts);
            }
            Err(error) => return Err(error.into()),
        };
        if left.nodes() == 1 && before.nodes() > 1 {
            output.print_note(
                "the remaining ranks are planned as one node, because the nodes no longer have equal ranks",
            );
        }
        start.change.apply(&left, left.ranks(), experts)
    }

    /// Returns the policy, and the runtime that it plans for.
    fn policy(
        &self,
        previous: Option<&Plan>,
        cluster: &Cluster,
    ) -> anyhow::Result<(Box<dyn Policy>, Option<RuntimeTarget>)> {
        // A re-planned model keeps the runtime of its previous plan.
        let kept = previous.and_then(|previous| previous.provenance.target.as_deref()?.parse().ok());
        let target = self.target.or(kept);
        let name = match target {
            Some(target) => place::policy_name_for_split(&self.policy, target.split()),
            None => self.policy.clone(),
        };
        Ok((place::policy(&name, self.groups, cluster)?, target))
    }
}

/// A plan with the contiguous placement and EPLB's, judged on the batches of the whole trace.
struct JudgedPlan {
    cluster: Cluster,
    config: SimulationConfig,
    outcome: SimulationResult,
    title: String,
}

impl JudgedPlan {
    /// Judges three placements under the split of the plan and the two usual ones.
    fn new(trace: &Trace, name: String, made: &PlanReport) -> anyhow::Result<Self> {
        let all = 0..trace.steps().len();
        let cluster = made.plan.cluster;
        let methods = made.plan.provenance.figures.iter().map(|figure| figure.split.parse());
        let methods = methods.collect::<Result<_, _>>()?;
        let config = SimulationConfig::new(cluster, methods, all.clone(), all);
        let title = format!("Plan by {name}");
        let mut policies: Vec<Box<dyn Policy>> = vec![Box::new(Contiguous)];
        if cluster.is_even() && name != "eplb" {
            policies.push(Box::new(Eplb::new(1, TieBreak::LowestExpert)));
        }
        policies.push(Box::new(FixedPlacement::from_plan(name, &made.plan)));
        let outcome = simulate(trace, &config, &policies, &()).context("while judging the plan")?;
        Ok(Self { cluster, config, outcome, title })
    }

    /// Returns the report.
    fn to_page(&self, trace: &Trace, verdict: Option<&Verdict>, memory: Option<RedundancyMemory>) -> String {
        let page = SimulationPage::new(trace, &self.cluster, &self.outcome)
            .title(self.title.clone())
            .command(command_line())
            .verdict(verdict);
        memory.map_or_else(|| page.to_html(), |memory| page.to_html_for(&memory.model))
    }
}
