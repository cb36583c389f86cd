//! The way from traces to a plan, for `plan new` and `plan replan`.

use super::export::unrecorded_note;
use super::fault_tolerance::{RankLossTarget, evaluate_losses};
use super::link_budget::LinkUsage;
use super::render::{PlanDetails, plan_to_json, plan_to_text};
use super::speeds::SpeedFigures;
use crate::args::blend::{BlendSpec, blend_traces};
use crate::args::cluster::{ClusterSpec, check_groups};
use crate::args::planning::PlanningArgs;
use crate::args::trace::TraceArgs;
use crate::output::{Output, StderrBar, command_line, is_stdout, print_json, print_text, write_file};
use crate::render::memory::RedundancyMemory;
use anyhow::{Context as _, bail};
use evenkeel::cluster::Cluster;
use evenkeel::export::RuntimeTarget;
use evenkeel::model::MoeModel;
use evenkeel::place::{self, Contiguous, Eplb, FaultTolerant, Policy, SpeedAware, TieBreak, without_ranks};
use evenkeel::plan::{BatchProvenance, Horizon, LinkBudget, Plan, PlanReport, ReplanRequest};
use evenkeel::split::SplitMethod;
use evenkeel::trace::{LayerSet, Trace};
use evenkeel_report::SimulationPage;
use evenkeel_simulate::{SimulationConfig, simulate};
use std::path::PathBuf;

/// Plan to compute, from options that are valid together.
#[derive(Debug)]
pub(super) struct PlanRequest {
    pub(super) trace: TraceArgs,
    pub(super) groups: usize,
    pub(super) policy: String,
    pub(super) target: Option<RuntimeTarget>,
    pub(super) blend: Vec<BlendSpec>,
    pub(super) survive_rank_loss: Option<RankLossTarget>,
    pub(super) speeds: Vec<u32>,
    pub(super) moe_layers: Option<LayerSet>,
    pub(super) model: Option<MoeModel>,
    pub(super) start: PlanStart,
    pub(super) output: Option<PathBuf>,
    pub(super) report: Option<PathBuf>,
}

/// Placement that planning starts from.
#[derive(Debug)]
pub(super) enum PlanStart {
    /// No placement; every layer of the cluster has the same slots.
    Empty(ClusterSpec),
    /// No placement; the layers share this number of redundant slots.
    SharedSlots(ClusterSpec, usize),
    /// The placements of a plan file.
    Previous(PreviousPlan),
}

/// A previous plan, and the limits of moves from it.
#[derive(Debug)]
pub(super) struct PreviousPlan {
    pub(super) path: PathBuf,
    pub(super) lost_ranks: Vec<usize>,
    pub(super) max_moves: Option<usize>,
    pub(super) horizon: Option<Horizon>,
    pub(super) link_budget: Option<LinkBudget>,
}

impl PlanRequest {
    /// Checks the options that `plan new` and `plan replan` share.
    pub(super) fn from_args(
        trace: &TraceArgs,
        groups: usize,
        planning: &PlanningArgs,
        start: PlanStart,
    ) -> anyhow::Result<Self> {
        check_groups(trace.stated.has("groups"), groups, std::slice::from_ref(&planning.policy))?;
        let args = planning.clone();
        Ok(Self {
            trace: trace.clone(),
            groups,
            policy: args.policy,
            target: args.target,
            blend: args.blend,
            survive_rank_loss: args.survive_rank_loss,
            speeds: args.speeds,
            moe_layers: args.moe_layers,
            model: args.model.map(|on| on.model),
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
        let previous = self.read_previous()?;
        let cluster = self.cluster(previous.as_ref(), trace.experts(), output)?;
        let (policy, target) = self.policy(previous.as_ref(), &cluster)?;
        let split = target.map_or(SplitMethod::Even, RuntimeTarget::split);
        let batches = self.trace.describe_batches(&trace);
        let batches =
            blend.as_ref().map_or(batches.clone(), |blend| blend.describe_batches(&batches, &self.blend));
        let origin = BatchProvenance { seed: self.trace.seed, batches, target, split };
        let memory = RedundancyMemory::for_cluster(self.model, &self.trace, &trace, &cluster);
        let mut details = PlanDetails { memory, ..PlanDetails::default() };
        let bar = StderrBar::for_layers();
        let mut made = match (&self.start, &previous) {
            (PlanStart::Previous(start), Some(previous)) => {
                details.horizon = start.horizon;
                let past = ReplanRequest {
                    previous,
                    lost: &start.lost_ranks,
                    max_moves: start.max_moves,
                    horizon: start.horizon,
                };
                if let Some(budget) = start.link_budget {
                    let how = (&past, budget);
                    let linked =
                        Plan::replan_within_links(&trace, &cluster, policy.as_ref(), how, origin, &bar)?;
                    details.links = Some(LinkUsage::from_plan(&linked, budget));
                    details.changes = Some(linked.changes);
                    linked.report
                } else {
                    let (made, changes) =
                        Plan::replan(&trace, &cluster, policy.as_ref(), &past, origin, &bar)?;
                    details.changes = Some(changes);
                    made
                }
            }
            (PlanStart::SharedSlots(_, budget), _) => {
                let shape = (cluster.ranks(), cluster.nodes());
                let (made, redundant) =
                    Plan::build_within_slots(&trace, shape, policy.as_ref(), *budget, origin, &bar)?;
                if let Some(memory) = &mut details.memory {
                    memory.slots = redundant.iter().map(|&slots| slots as u64).sum();
                }
                details.redundant = Some(redundant);
                made
            }
            _ => Plan::build(&trace, &cluster, policy.as_ref(), origin, &bar)?,
        };
        drop(bar);
        if let Some(named) = &self.moe_layers {
            made.plan.set_moe_layers(named).context("--moe-layers")?;
        }
        if let Some(note) = unrecorded_note(&made.plan) {
            output.print_note(&note);
        }
        if self.survive_rank_loss.is_some() {
            details.losses = Some(evaluate_losses(&made.plan, &trace)?);
        }
        details.parts = blend.map(|blend| blend.evaluate_plan(&made.plan)).transpose()?;
        if !self.speeds.is_empty() {
            details.by_speed = Some(SpeedFigures::evaluate_plan(&made.plan, &trace, &self.speeds)?);
        }
        if let Some(path) = &self.output {
            write_file(path, &made.plan.to_json()?)?;
        }
        if let Some(path) = &self.report {
            write_file(path, &report_page(&trace, policy, &made, memory)?)?;
        }
        self.print_plan(&trace, &made, &details, output)
    }

    fn print_plan(
        &self,
        trace: &Trace,
        made: &PlanReport,
        details: &PlanDetails,
        output: Output,
    ) -> anyhow::Result<()> {
        if self.output.as_deref().is_some_and(is_stdout) {
            return Ok(());
        }
        if output.is_json() {
            return print_json(&plan_to_json(self.output.as_deref(), trace, made, details));
        }
        print_text(&plan_to_text(made, output.is_verbose()))?;
        print_text(&details.to_text(&made.plan, output.is_verbose()))?;
        match &self.output {
            Some(path) => output.print_note(&format!("plan written to {}", path.display())),
            None => output.print_note("nothing written: -o FILE writes the plan"),
        }
        Ok(())
    }

    fn read_previous(&self) -> anyhow::Result<Option<Plan>> {
        let PlanStart::Previous(PreviousPlan { path, .. }) = &self.start else { return Ok(None) };
        Plan::read(path).map(Some).with_context(|| path.display().to_string())
    }

    /// Returns the cluster to plan for. After a previous plan it is that plan's, without the lost ranks.
    fn cluster(&self, previous: Option<&Plan>, experts: usize, output: Output) -> anyhow::Result<Cluster> {
        let (start, previous) = match (&self.start, previous) {
            (PlanStart::Empty(cluster) | PlanStart::SharedSlots(cluster, _), _) => {
                return cluster.for_experts(experts);
            }
            (PlanStart::Previous(start), Some(previous)) => (start, previous),
            (PlanStart::Previous(start), None) => bail!("{}: not read", start.path.display()),
        };
        if previous.experts != experts {
            bail!("the previous plan has {} experts, the trace {experts}", previous.experts);
        }
        if start.lost_ranks.is_empty() {
            return Ok(previous.cluster);
        }
        let left = without_ranks(&previous.cluster, experts, &start.lost_ranks)?;
        if left.nodes() == 1 && previous.cluster.nodes() > 1 {
            output.print_note(
                "the remaining ranks are planned as one node, because the nodes no longer have equal ranks",
            );
        }
        Ok(left)
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
        let mut policy = place::policy(&name, self.groups, cluster)?;
        if let Some(RankLossTarget(cover)) = self.survive_rank_loss {
            policy = Box::new(FaultTolerant::new(policy, cover));
        }
        if !self.speeds.is_empty() {
            policy = Box::new(SpeedAware::new(policy, self.speeds.clone()));
        }
        Ok((policy, target))
    }
}

/// Returns the report of three placements: contiguous with the even split, EPLB, and the plan. All are judged
/// on the batches of the whole trace, under the split of the plan and the two usual ones.
fn report_page(
    trace: &Trace,
    policy: Box<dyn Policy>,
    made: &PlanReport,
    memory: Option<RedundancyMemory>,
) -> anyhow::Result<String> {
    let all = 0..trace.steps().len();
    let methods = made.plan.provenance.figures.iter().map(|figure| figure.split.parse());
    let config = SimulationConfig {
        cluster: made.plan.cluster,
        methods: methods.collect::<Result<_, _>>()?,
        plan_on: all.clone(),
        judge_on: all,
    };
    let title = format!("Plan by {}", policy.name());
    let mut policies: Vec<Box<dyn Policy>> = vec![Box::new(Contiguous)];
    if made.plan.cluster.is_even() && policy.name() != "eplb" {
        policies.push(Box::new(Eplb::new(1, TieBreak::LowestExpert)));
    }
    policies.push(policy);
    let outcome = simulate(trace, &config, &policies, &()).context("while making the report")?;
    let command = command_line();
    let page = SimulationPage {
        title,
        command,
        trace,
        cluster: &made.plan.cluster,
        outcome: &outcome,
        replayed: &[],
    };
    Ok(memory.map_or_else(|| page.to_html(), |memory| page.to_html_for(&memory.model)))
}
