//! A run, from options that are valid together.

use super::args::{BackendName, ChunkCount, CudaAware, FfnName, RunArgs, TransportName};
use crate::args::cluster::ClusterSpec;
use crate::args::dynamic_slots::{AimName, check_slots};
use crate::args::trace::TraceArgs;
use anyhow::{Context as _, bail};
use evenkeel::cluster::Cluster;
use evenkeel::economics::MoveEconomics;
use evenkeel::model::MoeModel;
use evenkeel::place::{self, PlaceError, PlaceRequest, PlaceResponse, Policy};
use evenkeel::plan::{FixedPlacement, Plan};
use evenkeel::split::{DynamicSlots, PrimaryObjective, SplitMethod};
use evenkeel_exec::Aggregate;
use evenkeel_exec::router::{Capacity, Router};
use evenkeel_exec::run::RunReplan;
use evenkeel_exec::weights::Dtype;
use std::path::PathBuf;

/// Policy that plans if none is stated.
const DEFAULT_POLICY: &str = "recourse:exact";

/// A run to execute.
#[derive(Debug)]
#[cfg_attr(
    not(any(feature = "mpi", feature = "cuda")),
    allow(dead_code, reason = "some are for processes alone")
)]
pub(super) struct RunRequest {
    pub(super) trace: TraceArgs,
    pub(super) cluster: ClusterSpec,
    /// Model with the stated widths and experts.
    pub(super) model: MoeModel,
    pub(super) num_layers: usize,
    pub(super) weights: Option<PathBuf>,
    pub(super) dtype: Dtype,
    pub(super) router: Router,
    pub(super) capacity: Option<Capacity>,
    pub(super) skew: f64,
    pub(super) drift: f64,
    /// Policy that plans, or re-plans.
    planner: String,
    placement: Option<PathBuf>,
    pub(super) split: SplitMethod,
    /// Objective that a split minimises after its peak.
    pub(super) tie_break: Option<PrimaryObjective>,
    pub(super) dynamic: Option<DynamicSlots>,
    pub(super) train_fraction: f64,
    pub(super) replan: Option<RunReplan>,
    pub(super) backend: BackendName,
    pub(super) ffn: FfnName,
    pub(super) gpu: usize,
    pub(super) gpus: u16,
    pub(super) transport: TransportName,
    pub(super) aggregate: Aggregate,
    pub(super) cuda_aware: Option<CudaAware>,
    pub(super) rank_timeout: u64,
    pub(super) chunks: ChunkCount,
    pub(super) verify_plans: bool,
    pub(super) steps: usize,
    pub(super) check: bool,
    pub(super) no_baseline: bool,
    pub(super) record: Option<PathBuf>,
    pub(super) report: Option<PathBuf>,
}

impl RunArgs {
    /// Checks the options against each other.
    pub(super) fn resolve(&self) -> anyhow::Result<RunRequest> {
        self.check_backend()?;
        self.check_ranges()?;
        let model = self.model_with_overrides()?;
        if self.policy.is_some() && self.placement.is_some() && self.replan_every.is_none() {
            bail!(
                "--policy {}: expected --replan-every with it, because --placement states the placements",
                self.policy.as_deref().unwrap_or_default()
            );
        }
        Ok(RunRequest {
            trace: self.trace.clone(),
            cluster: self.cluster.resolve()?,
            model,
            num_layers: self.num_layers,
            weights: self.weights.clone(),
            dtype: self.dtype,
            router: self.resolve_router(&model)?,
            capacity: self.capacity.map(|factor| Capacity { factor, overflow: self.overflow }),
            skew: self.skew,
            drift: self.drift,
            planner: self.policy.clone().unwrap_or_else(|| DEFAULT_POLICY.to_owned()),
            placement: self.placement.clone(),
            split: self.split,
            tie_break: self.resolve_tie_break()?,
            dynamic: self.resolve_dynamic_slots()?,
            train_fraction: self.train_fraction,
            replan: self.resolve_replan(&model)?,
            backend: self.backend,
            ffn: self.ffn,
            gpu: self.gpu,
            gpus: self.gpus,
            transport: self.transport,
            aggregate: self.aggregate,
            cuda_aware: self.cuda_aware,
            rank_timeout: self.rank_timeout,
            chunks: self.chunks,
            verify_plans: self.verify_plans,
            steps: self.steps,
            check: self.check,
            no_baseline: self.no_baseline,
            record: self.record.clone(),
            report: self.report.clone(),
        })
    }

    /// Returns the dynamic slots.
    fn resolve_dynamic_slots(&self) -> anyhow::Result<Option<DynamicSlots>> {
        let Some(per_rank) = self.dynamic else { return Ok(None) };
        check_slots(per_rank)?;
        if self.split != SplitMethod::Exact {
            bail!("--dynamic {per_rank}: expected --split exact, found {}", self.split);
        }
        let AimName::Fixed(aim) = self.aim else {
            bail!("--aim time: expected imbalance:LIMIT or copies:N; a run has no model of its times");
        };
        Ok(Some(DynamicSlots::new(per_rank, self.slot_memory.0).aim(aim)))
    }

    /// Returns the schedule of re-planning.
    fn resolve_replan(&self, model: &MoeModel) -> anyhow::Result<Option<RunReplan>> {
        let Some(every) = self.replan_every else { return Ok(None) };
        let economics = match (self.link_gbps, &self.expert_time) {
            (Some(gbps), Some(source)) => {
                let cluster = self.cluster.resolve()?.for_experts(model.experts)?;
                let times = source.cost_model(model, &cluster)?;
                MoveEconomics::with_expert_times(every, gbps, model, times)
            }
            _ => None,
        };
        let (budget, max_moves) = (self.move_budget.saturating_mul(1 << 20), self.max_moves);
        Ok(Some(RunReplan { every: every as usize, budget, max_moves, economics }))
    }

    /// Checks the options of backends and processes against each other.
    fn check_backend(&self) -> anyhow::Result<()> {
        let over_mpi = self.transport == TransportName::Mpi;
        let in_process = self.transport == TransportName::InProcess;
        let on_cpu = self.backend == BackendName::Cpu;
        if self.aggregate != Aggregate::None && !on_cpu {
            bail!("--aggregate {}: expected --backend cpu; GPUs cannot be gateways", self.aggregate);
        }
        if self.chunks != ChunkCount::Fixed(1) && !(over_mpi && on_cpu) {
            bail!(
                "--chunks: expected --transport mpi and --backend cpu; in one process no token travels, and GPUs send all \
                 tokens of a layer at once"
            );
        }
        if self.cuda_aware.is_some() && (on_cpu || !over_mpi) {
            bail!(
                "--cuda-aware: expected --transport mpi and --backend cuda; it applies to device memory over MPI"
            );
        }
        if in_process && self.verify_plans {
            bail!("--verify-plans: expected --transport mpi or nccl; in one process there is one plan");
        }
        if self.transport == TransportName::Nccl && on_cpu {
            bail!("--transport nccl: expected --backend cuda; ranks on the CPU need --transport mpi");
        }
        if !in_process && !on_cpu && self.gpus != 1 {
            bail!(
                "--transport {}: --gpus {}: expected 1; every process has one rank, and one GPU",
                if over_mpi { "mpi" } else { "nccl" },
                self.gpus
            );
        }
        Ok(())
    }

    /// Checks the ranges of numbers.
    fn check_ranges(&self) -> anyhow::Result<()> {
        if !(0.0..=1.0).contains(&self.skew) || !self.drift.is_finite() {
            bail!("--skew {} --drift {}: expected a part of 0 to 1, and an angle", self.skew, self.drift);
        }
        if self.capacity.is_some_and(|factor| !(0.0..=1e6).contains(&factor)) {
            bail!("--capacity: expected a factor of 0 to 1e6");
        }
        if self.steps == 0 {
            bail!("--steps 0: expected 1 or more");
        }
        if !(self.train_fraction > 0.0 && self.train_fraction < 1.0) {
            bail!("--train-fraction {}: expected more than 0 and less than 1", self.train_fraction);
        }
        Ok(())
    }

    /// Returns the model with the overrides of its options.
    fn model_with_overrides(&self) -> anyhow::Result<MoeModel> {
        const MAX_WIDTH: u64 = 1 << 20;
        let named = self.model;
        let model = MoeModel {
            hidden: self.hidden.unwrap_or(named.hidden),
            intermediate: self.intermediate.unwrap_or(named.intermediate),
            experts: self.trace.experts.unwrap_or(named.experts),
            top_k: self.experts_per_token.unwrap_or(named.top_k),
            ..named
        };
        for (name, width) in [("--hidden", model.hidden), ("--intermediate", model.intermediate)] {
            if !(1..=MAX_WIDTH).contains(&width) {
                bail!("{name} {width}: expected 1 to {MAX_WIDTH}");
            }
        }
        if !(1..=model.experts).contains(&model.top_k) {
            bail!("top-{} of {} experts: expected 1 to {}", model.top_k, model.experts, model.experts);
        }
        Ok(model)
    }

    fn resolve_router(&self, model: &MoeModel) -> anyhow::Result<Router> {
        let has_trace = !self.trace.traces.is_empty();
        match self.router.as_deref() {
            None => Ok(Router::for_model(model)),
            Some("replay") if has_trace => Ok(Router::for_model(model)),
            Some("replay") => bail!("--router replay: expected a TRACE to replay"),
            Some(name) => {
                let router: Router = name.parse().context("--router")?;
                if has_trace {
                    bail!(
                        "--router {name}: the trace determines the routing; expected no TRACE, or --router replay"
                    );
                }
                Ok(router)
            }
        }
    }

    fn resolve_tie_break(&self) -> anyhow::Result<Option<PrimaryObjective>> {
        let keep = match self.tie_break.as_deref() {
            None => return Ok(None),
            Some("traffic") => PrimaryObjective::Peak,
            Some(_) => PrimaryObjective::Vector,
        };
        if self.split != SplitMethod::Exact {
            bail!("--tie-break with --split {}: expected --split exact", self.split);
        }
        Ok(Some(keep))
    }
}

impl RunRequest {
    /// Returns the policy that computes placements.
    pub(super) fn policy(&self, cluster: &Cluster) -> anyhow::Result<Box<dyn Policy>> {
        let planner = || place::policy(&self.planner, self.cluster.groups, cluster);
        let Some(path) = &self.placement else {
            return Ok(planner()?);
        };
        let plan = Plan::read(path).with_context(|| format!("--placement {}", path.display()))?;
        let initial = FixedPlacement::from_plan(self.policy_name(), &plan);
        if self.replan.is_some() {
            return Ok(Box::new(InitialPlacements { initial, planner: planner()? }));
        }
        Ok(Box::new(initial))
    }

    /// Returns the name of the policy, for tables and documents.
    pub(super) fn policy_name(&self) -> String {
        match &self.placement {
            None => self.planner.clone(),
            Some(path) if self.replan.is_none() => path.display().to_string(),
            Some(path) => format!("{}, then {}", path.display(), self.planner),
        }
    }
}

/// Policy that starts with the placements of a file, and re-plans by another policy.
struct InitialPlacements {
    initial: FixedPlacement,
    planner: Box<dyn Policy>,
}

impl Policy for InitialPlacements {
    fn name(&self) -> String {
        self.initial.name()
    }

    fn place(&self, request: &PlaceRequest<'_>) -> Result<PlaceResponse, PlaceError> {
        match request.previous {
            None => self.initial.place(request),
            Some(_) => self.planner.place(request),
        }
    }
}

#[cfg(test)]
mod tests {
    fn refusal(options: &str) -> String {
        let command = crate::parse_line(&format!("run --model qwen3-30b-a3b --ranks 8 {options}"));
        let crate::Command::Run(args) = command else { panic!("{options}") };
        args.resolve().unwrap_err().to_string()
    }

    #[test]
    fn options_of_backends_and_processes_that_exclude_each_other_are_refused() {
        for (options, expected) in [
            ("--aggregate node --backend cuda", "--aggregate node: expected --backend cpu"),
            ("--chunks 4", "--chunks: expected --transport mpi"),
            ("--chunks 4 --transport mpi --backend cuda", "--chunks: expected --transport mpi"),
            ("--cuda-aware yes", "--cuda-aware: expected --transport mpi"),
            ("--verify-plans", "--verify-plans: expected --transport mpi or nccl"),
            ("--transport nccl", "--transport nccl: expected --backend cuda"),
            ("--transport nccl --backend cuda --gpus 2", "--transport nccl: --gpus 2: expected 1"),
            ("--transport mpi --backend cuda --gpus 2", "--transport mpi: --gpus 2: expected 1"),
        ] {
            assert!(refusal(options).starts_with(expected), "{options}: {}", refusal(options));
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for (options, expected) in [
            ("--hidden 0", "--hidden 0: expected 1 to 1048576"),
            ("--intermediate 2000000", "--intermediate 2000000: expected 1 to 1048576"),
            ("--experts-per-token 129", "top-129 of 128 experts"),
            ("--skew 1.5", "--skew 1.5"),
            ("--drift inf", "--skew 0.6 --drift inf"),
            ("--capacity=-1", "--capacity: expected a factor"),
            ("--steps 0", "--steps 0: expected 1 or more"),
            ("--train-fraction 1", "--train-fraction 1: expected more than 0"),
        ] {
            assert!(refusal(options).starts_with(expected), "{options}: {}", refusal(options));
        }
    }

    #[test]
    fn routers_policies_and_splits_that_exclude_each_other_are_refused() {
        for (options, expected) in [
            ("--router replay", "--router replay: expected a TRACE"),
            ("t.csv --router sigmoid", "--router sigmoid: the trace determines the routing"),
            ("--router nonsense", "--router"),
            ("--placement p.json --policy eplb", "--policy eplb: expected --replan-every"),
            ("--split even --tie-break traffic", "--tie-break with --split even"),
        ] {
            assert!(refusal(options).starts_with(expected), "{options}: {}", refusal(options));
        }
        let command = crate::parse_line("run --model qwen3-30b-a3b");
        let crate::Command::Run(args) = command else { panic!("run") };
        assert!(args.resolve().unwrap_err().to_string().starts_with("--ranks is missing"));
    }
}
