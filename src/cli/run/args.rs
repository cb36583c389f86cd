//! The arguments of `evenkeel run`.

use crate::cli::cluster_args::ClusterArgs;
use crate::cli::trace_args::TraceArgs;
use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use evenkeel::cluster::Cluster;
use evenkeel::exec::Aggregate;
use evenkeel::exec::router::{Capacity, Overflow};
use evenkeel::exec::run::Replan;
use evenkeel::exec::weights::Dtype;
use evenkeel::forecast::History;
use evenkeel::model::Model;
use evenkeel::place::{self, PlaceError, Placement, Policy};
use evenkeel::plan::{Given, Plan};
use evenkeel::split::{Keep, Method};
use std::path::PathBuf;
use std::str::FromStr;

/// Run MoE layers on all ranks as planned, and measure, check and record what happens.
///
/// Every rank is a memory of its own: route, count, gather all counts, split, dispatch, experts, combine, residual. With TRACE
/// its routing is replayed on steps that planning has not seen; per-token arrays token by token, counts alone dealt out to
/// tokens. Without TRACE tokens are made up, a router chooses, and their routing drifts. Every step also runs without a plan
/// and perfectly balanced. On a machine with fewer cores than ranks each rank is timed alone: `modelled` is the time if all ran
/// at once (the slowest rank between two exchanges, wires free), `wall` that of all one after the other.
#[derive(Debug, Args)]
#[command(
    mut_arg("traces", |arg| arg.required(false)),
    after_help = "Examples:\n  evenkeel run traces/sample-decode.csv.zst --model gpt-oss-20b --hidden 256 --intermediate 256 \
                  --num-layers 2 --ranks 8 --redundant 8 --check\n  evenkeel run --model qwen3-30b-a3b --num-layers 1 \
                  --ranks 8 --redundant 8 --batch-tokens 512 --steps 5\n  evenkeel run --model deepseek-v2-lite --hidden 128 \
                  --intermediate 64 --ranks 8 --redundant 16 --replan-every 10 --check --record loads.csv.zst\n  mpirun -n 8 \
                  evenkeel run traces/sample-decode.csv.zst --model gpt-oss-20b --ranks 8 --redundant 8 --transport mpi --check\n  torchrun \
                  --no-python --nproc-per-node 8 evenkeel run traces/sample-decode.csv.zst --model gpt-oss-20b --ranks 8 --redundant 8 \
                  --backend cuda --transport nccl --check\n  mpirun -n 8 evenkeel run --model gpt-oss-20b --ranks 8 --redundant 8 --backend \
                  cuda --transport mpi --check"
)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(super) trace: TraceArgs,
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
    /// Shapes: mixtral-8x7b, qwen3-30b-a3b, gpt-oss-20b, deepseek-v2-lite, deepseek-v3, kimi-k2 and others
    #[arg(long, value_name = "MODEL", help_heading = "Model")]
    model: Model,
    /// MoE layers to chain
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Model")]
    pub(super) num_layers: usize,
    /// Another width of tokens, for small trials
    #[arg(long, value_name = "H", help_heading = "Model")]
    hidden: Option<u64>,
    /// Another width inside experts, for small trials
    #[arg(long, value_name = "I", help_heading = "Model")]
    intermediate: Option<u64>,
    /// Another number of experts per token, for small trials
    #[arg(long, value_name = "K", help_heading = "Model")]
    experts_per_token: Option<usize>,
    /// A folder of safetensors files with the weights of its first MoE layers, as Mixtral, Qwen3-MoE, DeepSeek-V2/V3 or gpt-oss
    /// are published [default: random weights]
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub(super) weights: Option<PathBuf>,
    /// What weights are kept in and tokens travel in: f32 or bf16; sums are f32
    #[arg(long, value_name = "DTYPE", default_value = "bf16", help_heading = "Model")]
    pub(super) dtype: Dtype,
    /// replay, switch, gshard, noisy, softmax, softmax-renorm, topk-softmax, sigmoid or soft [default: replay with TRACE, else
    /// the model's own]
    #[arg(long, value_name = "NAME", help_heading = "Routing")]
    pub(super) router: Option<String>,
    /// Room per expert and source, over an even share; none where not given
    #[arg(long, value_name = "FACTOR", help_heading = "Routing")]
    capacity: Option<f64>,
    /// With --capacity: what becomes of a choice without room: drop or next
    #[arg(
        long,
        value_name = "RULE",
        default_value = "drop",
        requires = "capacity",
        help_heading = "Routing"
    )]
    overflow: Overflow,
    /// Without TRACE: what all tokens of a step share, 0 to 1; more makes routing less even
    #[arg(long, value_name = "PART", default_value_t = 0.6, help_heading = "Routing")]
    pub(super) skew: f64,
    /// Without TRACE: how far what they share turns per step, in radians
    #[arg(long, value_name = "RADIANS", default_value_t = 0.02, help_heading = "Routing")]
    pub(super) drift: f64,
    /// Placement policy: contiguous, eplb, eplb:trtllm, lplb:TOPOLOGY, recourse (also recourse:cvar=0.9, recourse:worst),
    /// lp-round, milp [default: recourse:exact]
    #[arg(long, value_name = "NAME", help_heading = "Plan")]
    policy: Option<String>,
    /// The placements of this plan instead of a policy's: after `plan --without-rank`, say; --ranks and --redundant are the plan's.
    /// With --replan-every the run begins with them, and --policy plans again
    #[arg(long, value_name = "PLAN", help_heading = "Plan")]
    pub(super) placement: Option<PathBuf>,
    /// Split: even, affine5, lp, exact; or the quotas of a stack's own rule: sglang-static, sglang-dynamic,
    /// sglang-random, vllm, vllm-ascend, trtllm
    #[arg(long, value_name = "NAME", default_value = "exact", help_heading = "Plan")]
    pub(super) split: Method,
    /// After the peak of every batch, with --split exact: traffic (the fewest tokens off their node, then off their rank) or
    /// vector,traffic (the whole load vector first)
    #[arg(long, value_name = "GOAL", value_parser = ["traffic", "vector,traffic"], help_heading = "Plan")]
    then: Option<String>,
    /// How tokens cross to other nodes of --nodes: none (a copy to every rank that has one of their experts) or node (one copy
    /// per node, handed on inside it, and one summed row back). Sums are rounded once more on the way with node
    #[arg(long, value_name = "WAY", default_value = "none", help_heading = "Processes")]
    pub(super) aggregate: Aggregate,
    /// Share of the steps to plan on; the rest may run
    #[arg(long, value_name = "SHARE", default_value_t = 0.4, help_heading = "Plan")]
    pub(super) plan_on: f64,
    /// Plan again after so many steps, on these, from what is in force with few moves, and move experts while running; later
    /// where moves are still under way
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Plan")]
    pub(super) replan_every: Option<u64>,
    /// With --replan-every: weights to copy per step over all ranks, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64, requires = "replan_every", help_heading = "Plan")]
    pub(super) move_budget: u64,
    /// With --replan-every: at most so many moves per layer and re-planning
    #[arg(long, value_name = "N", requires = "replan_every", help_heading = "Plan")]
    pub(super) max_moves: Option<usize>,
    /// cpu or cuda
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    pub(super) backend: BackendName,
    /// With --backend cuda: what multiplies the experts' matrices: own (grouped products that read their sizes on the device) or
    /// cublas (which takes them from the host)
    #[arg(long, value_name = "NAME", default_value = "own")]
    pub(super) ffn: FfnName,
    /// With --backend cuda: which GPU, or the first of several (--transport nccl or mpi: of this host's ranks)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) gpu: usize,
    /// With --backend cuda: how many GPUs the ranks are dealt to; those of one GPU run one after the other
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) gpus: u16,
    /// Where ranks are: in-process (all in this process, one after the other), mpi (one process each, started by mpirun or srun; with
    /// --backend cuda on GPUs, which several ranks may share) or nccl (one process and GPU each, started by torchrun, srun or mpirun);
    /// see docs/distributed.md and docs/nccl.md
    #[arg(long, value_name = "NAME", default_value = "in-process", help_heading = "Processes")]
    pub(super) transport: TransportName,
    /// With --transport mpi and --backend cuda: whether the MPI library is handed device memory as it lies (yes), or what is in it goes
    /// through memory of the host (no); auto asks the library [default: auto]
    #[arg(long, value_name = "WHETHER", help_heading = "Processes")]
    pub(super) cuda_aware: Option<CudaAware>,
    /// With --transport mpi or nccl: a rank that is silent for so long is taken for lost, and ends the job; more than the longest a rank
    /// computes without a word
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=86_400),
        help_heading = "Processes"
    )]
    #[cfg_attr(not(any(feature = "mpi", feature = "cuda")), allow(dead_code, reason = "of processes alone"))]
    pub(super) rank_timeout: u64,
    /// With --transport mpi and --backend cpu: in how many chunks of slots tokens travel, so that experts of one chunk work while the
    /// next one is on its way, or auto (by measured costs of experts and of the wire); results are the same
    #[arg(long, value_name = "N|auto", default_value = "1", help_heading = "Processes")]
    pub(super) chunks: ChunkCount,
    /// With --transport mpi or nccl: compare digests of every rank's split of every batch, and fail where they differ
    #[arg(long, help_heading = "Processes")]
    pub(super) prove_plans: bool,
    /// Steps to run
    #[arg(long, value_name = "S", default_value_t = 20)]
    pub(super) steps: usize,
    /// Compare every step with one dense memory in f64; bounds on a token's error are 1e-5 for f32 and 2e-2 for bf16
    #[arg(long)]
    pub(super) check: bool,
    /// Run the plan alone, without the two runs it is compared with
    #[arg(long)]
    pub(super) alone: bool,
    /// Write the loads of what ran here, as a trace: .csv, .csv.gz, .csv.zst or .parquet
    #[arg(long, value_name = "FILE")]
    pub(super) record: Option<PathBuf>,
    /// Write a picture of it here: one HTML file that needs no network
    #[arg(long, value_name = "FILE")]
    pub(super) report: Option<PathBuf>,
}

/// In how many chunks tokens travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkCount {
    /// So many.
    Fixed(usize),
    /// As many as a model of costs takes for best.
    Auto,
}

impl FromStr for ChunkCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "auto" => Ok(ChunkCount::Auto),
            Ok(count) if count > 0 => Ok(ChunkCount::Fixed(count)),
            _ => Err("expected auto or a number from 1".into()),
        }
    }
}

/// What runs the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendName {
    /// Any machine.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// Where ranks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportName {
    /// Here, one after the other.
    InProcess,
    /// In processes of an MPI job.
    Mpi,
    /// In processes with a GPU each.
    Nccl,
}

/// Whether an MPI library takes device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CudaAware {
    /// It is asked.
    Auto,
    /// It does.
    Yes,
    /// It does not, or is not to.
    No,
}

/// What multiplies on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FfnName {
    /// Our own kernel.
    Own,
    /// cuBLAS.
    Cublas,
}

impl RunArgs {
    /// When to plan again, and how much may move.
    pub(super) fn replan(&self) -> Option<Replan> {
        let budget = self.move_budget.saturating_mul(1 << 20);
        self.replan_every.map(|every| Replan { every: every as usize, budget, max_moves: self.max_moves })
    }

    /// The model with what was given beside its name.
    pub(super) fn model(&self) -> anyhow::Result<Model> {
        const MOST: u64 = 1 << 20;
        let named = self.model;
        let model = Model {
            hidden: self.hidden.unwrap_or(named.hidden),
            intermediate: self.intermediate.unwrap_or(named.intermediate),
            experts: self.trace.experts.unwrap_or(named.experts),
            top_k: self.experts_per_token.unwrap_or(named.top_k),
            ..named
        };
        for (name, width) in [("--hidden", model.hidden), ("--intermediate", model.intermediate)] {
            if !(1..=MOST).contains(&width) {
                bail!("{name} {width}: expected 1 to {MOST}");
            }
        }
        if !(1..=model.experts).contains(&model.top_k) {
            bail!("top-{} of {} experts: expected 1 to {}", model.top_k, model.experts, model.experts);
        }
        if !(0.0..=1.0).contains(&self.skew) || !self.drift.is_finite() {
            bail!("--skew {} --drift {}: expected a part of 0 to 1, and an angle", self.skew, self.drift);
        }
        if self.capacity.is_some_and(|factor| !(0.0..=1e6).contains(&factor)) {
            bail!("--capacity: expected a factor of 0 to 1e6");
        }
        Ok(model)
    }

    /// What a split looks to after its peak.
    pub(super) fn then(&self) -> anyhow::Result<Option<Keep>> {
        let keep = match self.then.as_deref() {
            None => return Ok(None),
            Some("traffic") => Keep::Peak,
            Some(_) => Keep::Vector,
        };
        if self.split != Method::Exact {
            bail!("--then with --split {}: expected --split exact", self.split);
        }
        Ok(Some(keep))
    }

    /// What places.
    pub(super) fn policy(&self, cluster: &Cluster) -> anyhow::Result<Box<dyn Policy>> {
        let policy = || place::policy(self.planner(), self.cluster.groups, cluster);
        let Some(path) = &self.placement else {
            return Ok(policy()?);
        };
        let plan = Plan::read(path).with_context(|| format!("--placement {}", path.display()))?;
        let given = Given::plan(self.policy_name(), &plan);
        if self.replan_every.is_some() {
            return Ok(Box::new(FirstGiven { given, then: policy()? }));
        }
        if let Some(policy) = &self.policy {
            bail!(
                "--policy {policy}: expected --replan-every with it, as --placement says where experts are"
            );
        }
        Ok(Box::new(given))
    }

    fn planner(&self) -> &str {
        self.policy.as_deref().unwrap_or("recourse:exact")
    }

    /// Its name, for tables and documents.
    pub(super) fn policy_name(&self) -> String {
        match &self.placement {
            None => self.planner().to_owned(),
            Some(path) if self.replan_every.is_none() => path.display().to_string(),
            Some(path) => format!("{}, then {}", path.display(), self.planner()),
        }
    }

    /// Room per expert, where it is limited.
    pub(super) fn capacity(&self) -> Option<Capacity> {
        self.capacity.map(|factor| Capacity { factor, overflow: self.overflow })
    }
}

/// Placements from a file to begin with, and a policy that plans again.
struct FirstGiven {
    given: Given,
    then: Box<dyn Policy>,
}

impl Policy for FirstGiven {
    fn name(&self) -> String {
        self.given.name()
    }

    fn place(&self, history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError> {
        self.given.place(history, cluster)
    }

    fn replan(
        &self,
        history: &History<'_>,
        cluster: &Cluster,
        previous: &Placement,
        max_moves: Option<usize>,
    ) -> Result<Placement, PlaceError> {
        self.then.replan(history, cluster, previous, max_moves)
    }
}

impl BackendName {
    /// The name that selects it.
    pub(in crate::cli) fn name(self) -> &'static str {
        match self {
            BackendName::Cpu => "cpu",
            BackendName::Cuda => "cuda",
        }
    }
}
