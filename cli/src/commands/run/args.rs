//! The arguments of `evenkeel run`.

use crate::args::cluster::ClusterArgs;
use crate::args::dynamic_slots::{AimName, MemoryName};
use crate::args::expert_time::ExpertTimeSource;
use crate::args::trace::TraceArgs;
use clap::{Args, ValueEnum};
use evenkeel::model::MoeModel;
use evenkeel::split::SplitMethod;
use evenkeel_exec::Aggregate;
use evenkeel_exec::router::Overflow;
use evenkeel_exec::weights::Dtype;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// Run MoE layers on all ranks under a plan; measure, check and record
///
/// Every rank has its own memory and executes route, count, all-gather of counts, split, dispatch, experts,
/// combine, residual. With TRACE, the run replays its routing on steps that planning has not seen. Per-token
/// arrays are replayed token by token, counts are dealt to tokens. Without TRACE, a router chooses the
/// experts of synthetic tokens, and their routing drifts. Every step also runs without a plan and perfectly
/// balanced.
///
/// On a machine with fewer cores than ranks, each rank is timed alone. `modelled` is the time if all ranks
/// ran at once: the slowest rank between two exchanges, with free communication. `wall` is the time of all
/// ranks, one after the other.
#[derive(Debug, Args)]
#[command(
    mut_arg("traces", |arg| arg.required(false)),
    after_long_help = "Examples:\n  evenkeel run traces/sample-decode.csv.zst --model gpt-oss-20b --hidden 256 --intermediate 256 \
                       --num-layers 2 --ranks 8 --redundant 8 --check\n  evenkeel run --model qwen3-30b-a3b --num-layers 1 --hidden \
                       256 --intermediate 128 --ranks 8 --redundant 8 --batch-tokens 512 --steps 5\n  evenkeel run --model \
                       deepseek-v2-lite --hidden 128 --intermediate 64 --ranks 8 --redundant 16 --replan-every 10 --check --record \
                       loads.csv.zst\n  mpirun -n 8 evenkeel run traces/sample-decode.csv.zst --model gpt-oss-20b --ranks 8 \
                       --redundant 8 --transport mpi --check\n  torchrun --no-python --nproc-per-node 8 evenkeel run \
                       traces/sample-decode.csv.zst --model gpt-oss-20b --ranks 8 --redundant 8 --backend cuda --transport nccl \
                       --check\n  mpirun -n 8 evenkeel run --model gpt-oss-20b --ranks 8 --redundant 8 --backend cuda --transport mpi \
                       --check"
)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(super) trace: TraceArgs,
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
    /// Model, as qwen3-30b-a3b or gpt-oss-20b
    ///
    /// Others are mixtral-8x7b, deepseek-v2-lite, deepseek-v3 and kimi-k2. The error on an unknown name lists
    /// all.
    #[arg(long, value_name = "MODEL", help_heading = "Model")]
    pub(super) model: MoeModel,
    /// MoE layers to run in sequence
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Model")]
    pub(super) num_layers: usize,
    /// Width of tokens, instead of the model's, for small trials
    #[arg(long, value_name = "H", hide_short_help = true, help_heading = "Model")]
    pub(super) hidden: Option<u64>,
    /// Width inside experts, instead of the model's, for small trials
    #[arg(long, value_name = "I", hide_short_help = true, help_heading = "Model")]
    pub(super) intermediate: Option<u64>,
    /// Experts per token, instead of the model's, for small trials
    #[arg(long, value_name = "K", hide_short_help = true, help_heading = "Model")]
    pub(super) experts_per_token: Option<usize>,
    /// Folder of safetensors files with the weights of the first MoE layers [default: random weights]
    ///
    /// The files have the published form of Mixtral, Qwen3-MoE, DeepSeek-V2/V3 or gpt-oss.
    #[arg(long, value_name = "DIR", hide_short_help = true, help_heading = "Model")]
    pub(super) weights: Option<PathBuf>,
    /// Number format of weights and sent tokens: f32 or bf16; sums are f32
    #[arg(
        long,
        value_name = "DTYPE",
        default_value = "bf16",
        hide_short_help = true,
        help_heading = "Model"
    )]
    pub(super) dtype: Dtype,
    /// Router: replay, switch, gshard, noisy, softmax, softmax-renorm, topk-softmax, sigmoid or soft
    /// [default: replay with TRACE, else the model's own]
    #[arg(long, value_name = "NAME", hide_short_help = true, help_heading = "Routing")]
    pub(super) router: Option<String>,
    /// Capacity per expert and source, as a factor of an even share [default: unlimited]
    #[arg(long, value_name = "FACTOR", hide_short_help = true, help_heading = "Routing")]
    pub(super) capacity: Option<f64>,
    /// With --capacity: rule for a choice above the capacity: drop or next
    #[arg(
        long,
        value_name = "RULE",
        default_value = "drop",
        requires = "capacity",
        hide_short_help = true,
        help_heading = "Routing"
    )]
    pub(super) overflow: Overflow,
    /// Without TRACE: part that all tokens of a step share, 0 to 1; a larger part makes routing less even
    #[arg(
        long,
        value_name = "PART",
        default_value_t = 0.6,
        hide_short_help = true,
        help_heading = "Routing"
    )]
    pub(super) skew: f64,
    /// Without TRACE: rotation of the shared part per step, in radians
    #[arg(
        long,
        value_name = "RADIANS",
        default_value_t = 0.02,
        hide_short_help = true,
        help_heading = "Routing"
    )]
    pub(super) drift: f64,
    /// Placement policy, as for `evenkeel plan` [default: recourse:exact]
    ///
    /// contiguous, eplb, eplb:trtllm, lplb:TOPOLOGY, recourse (also recourse:cvar=0.9, recourse:worst),
    /// lp-round, milp.
    #[arg(long, value_name = "NAME", help_heading = "Plan")]
    pub(super) policy: Option<String>,
    /// Plan whose placements run, instead of a policy's; --ranks and --redundant are those of the plan
    ///
    /// With --replan-every, the run starts from these placements, and --policy re-plans.
    #[arg(long, value_name = "PLAN", hide_short_help = true, help_heading = "Plan")]
    pub(super) placement: Option<PathBuf>,
    /// Split: even, affine5, lp, exact, or the rule of a stack
    ///
    /// Rules of stacks are sglang-static, sglang-dynamic, sglang-random, vllm, vllm-ascend and trtllm.
    #[arg(long, value_name = "NAME", default_value = "exact", hide_short_help = true, help_heading = "Plan")]
    pub(super) split: SplitMethod,
    /// Objective after the peak, with --split exact: traffic or vector,traffic
    ///
    /// traffic minimises the tokens off their node, then off their rank. vector,traffic first evens out the
    /// whole load vector.
    #[arg(
        long,
        value_name = "OBJECTIVE",
        value_parser = ["traffic", "vector,traffic"],
        hide_short_help = true,
        help_heading = "Plan"
    )]
    pub(super) tie_break: Option<String>,
    /// Dynamic slots per rank, which receive copies of experts in every step
    ///
    /// Copies are chosen with the exact split, once a layer's tokens are routed. Weights are copied between
    /// the ranks while tokens travel and static experts run.
    #[arg(
        long,
        value_name = "N",
        conflicts_with_all = ["replan_every", "tie_break"],
        hide_short_help = true,
        help_heading = "Plan"
    )]
    pub(super) dynamic: Option<usize>,
    /// With --dynamic: lifetime of copies: shared (all layers use the same slots) or kept (a layer keeps its
    /// copies until others replace them)
    #[arg(
        long,
        value_name = "MEMORY",
        default_value = "shared",
        requires = "dynamic",
        hide_short_help = true,
        help_heading = "Plan"
    )]
    pub(super) slot_memory: MemoryName,
    /// With --dynamic: aim of the copies: imbalance:LIMIT or copies:N
    ///
    /// imbalance:0.01 makes the fewest copies with which the busiest rank is within 1 % of the mean.
    #[arg(
        long,
        value_name = "AIM",
        default_value = "imbalance:0.01",
        requires = "dynamic",
        hide_short_help = true,
        help_heading = "Plan"
    )]
    pub(super) aim: AimName,
    /// Share of the steps to plan on; the others may run
    #[arg(long, value_name = "SHARE", default_value_t = 0.4, hide_short_help = true, help_heading = "Plan")]
    pub(super) train_fraction: f64,
    /// Re-plan every STEPS steps from the last STEPS steps, keeping most experts in place
    ///
    /// Experts move while the run continues. A re-planning is skipped while earlier moves are still being
    /// copied.
    #[arg(
        long,
        value_name = "STEPS",
        value_parser = clap::value_parser!(u64).range(1..),
        hide_short_help = true,
        help_heading = "Plan"
    )]
    pub(super) replan_every: Option<u64>,
    /// With --replan-every: MiB of weights to copy per step, over all ranks
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 64,
        requires = "replan_every",
        hide_short_help = true,
        help_heading = "Plan"
    )]
    pub(super) move_budget: u64,
    /// With --replan-every: maximum of moves per layer and re-planning
    #[arg(long, value_name = "N", requires = "replan_every", hide_short_help = true, help_heading = "Plan")]
    pub(super) max_moves: Option<usize>,
    /// With --replan-every: move only if that pays until the next plan, over a link of GBPS into each rank
    #[arg(
        long,
        value_name = "GBPS",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000),
        requires_all = ["replan_every", "expert_time"],
        hide_short_help = true,
        help_heading = "Plan"
    )]
    pub(super) link_gbps: Option<u64>,
    /// With --link-gbps: times of experts
    ///
    /// A file of `evenkeel calibrate experts`, or measured kernels, as in h100:trtllm: a GPU of
    /// `evenkeel costs show` or a file of `evenkeel costs import`, and a framework.
    #[arg(
        long,
        value_name = "FILE|GPU:FRAMEWORK",
        requires = "link_gbps",
        hide_short_help = true,
        help_heading = "Plan"
    )]
    pub(super) expert_time: Option<ExpertTimeSource>,
    /// Hardware that runs the layers: cpu or cuda
    #[arg(
        long,
        value_name = "NAME",
        default_value = "cpu",
        hide = cfg!(not(feature = "cuda")),
        hide_short_help = true,
        help_heading = "Distributed"
    )]
    pub(super) backend: BackendName,
    /// With --backend cuda: matrix multiplication of experts: own or cublas
    ///
    /// own is a grouped kernel that reads its sizes on the device. cublas takes its sizes from the host.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "own",
        hide = cfg!(not(feature = "cuda")),
        hide_short_help = true,
        help_heading = "Distributed"
    )]
    pub(super) ffn: FfnName,
    /// With --backend cuda: index of the GPU, or of the first of several
    ///
    /// With --transport nccl or mpi, the index counts the ranks of this host.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide = cfg!(not(feature = "cuda")),
        hide_short_help = true,
        help_heading = "Distributed"
    )]
    pub(super) gpu: usize,
    /// With --backend cuda: GPUs to distribute the ranks to; ranks of one GPU run one after the other
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..),
        hide = cfg!(not(feature = "cuda")),
        hide_short_help = true,
        help_heading = "Distributed"
    )]
    pub(super) gpus: u16,
    /// Processes of the ranks: in-process, mpi or nccl
    ///
    /// in-process runs all ranks in this process, one after the other. mpi runs one process each, started by
    /// mpirun or srun; with --backend cuda several ranks may share a GPU. nccl runs one process and GPU each,
    /// started by torchrun, srun or mpirun. See docs/distributed.md and docs/nccl.md.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "in-process",
        hide = cfg!(not(any(feature = "mpi", feature = "cuda"))),
        hide_short_help = true,
        help_heading = "Distributed"
    )]
    pub(super) transport: TransportName,
    /// Path of tokens to other nodes: none (one copy per rank) or node (one copy per node)
    ///
    /// With none, a token goes to every rank that has one of its experts. With node, one rank of the other
    /// node, the gateway, forwards it there and returns one summed row; sums are rounded once more.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "none",
        hide_short_help = true,
        help_heading = "Distributed"
    )]
    pub(super) aggregate: Aggregate,
    /// With --transport mpi and --backend cuda: handover of device memory to the MPI library: yes, no or auto
    /// [default: auto]
    ///
    /// yes hands over device memory. no copies it through host memory. auto asks the library.
    #[arg(
        long,
        value_name = "MODE",
        hide = cfg!(not(all(feature = "mpi", feature = "cuda"))),
        hide_short_help = true,
        help_heading = "Distributed"
    )]
    pub(super) cuda_aware: Option<CudaAware>,
    /// With --transport mpi or nccl: seconds of silence after which a rank counts as lost and the job ends
    ///
    /// The time has to be longer than a rank computes between two exchanges.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=86_400),
        hide = cfg!(not(any(feature = "mpi", feature = "cuda"))),
        hide_short_help = true,
        help_heading = "Distributed"
    )]
    pub(super) rank_timeout: u64,
    /// With --transport mpi and --backend cpu: chunks of slots in which tokens travel, or auto
    ///
    /// Experts of one chunk work while the next one travels. auto chooses by measured costs of experts and
    /// exchanges. Results do not depend on it.
    #[arg(
        long,
        value_name = "N|auto",
        default_value = "1",
        hide = cfg!(not(feature = "mpi")),
        hide_short_help = true,
        help_heading = "Distributed"
    )]
    pub(super) chunks: ChunkCount,
    /// With --transport mpi or nccl: compare digests of every rank's split of every batch, and fail if they
    /// differ
    #[arg(
        long,
        hide = cfg!(not(any(feature = "mpi", feature = "cuda"))),
        hide_short_help = true,
        help_heading = "Distributed"
    )]
    pub(super) verify_plans: bool,
    /// Steps to run
    #[arg(long, value_name = "S", default_value_t = 20)]
    pub(super) steps: usize,
    /// Compare every step with a dense f64 reference
    ///
    /// The error of a token may be 1e-5 for f32 and 2e-2 for bf16.
    #[arg(long)]
    pub(super) check: bool,
    /// Run the plan alone, without the two baselines
    #[arg(long, hide_short_help = true)]
    pub(super) no_baseline: bool,
    /// Write the loads of the run to this trace file
    ///
    /// Its suffix is .csv, .csv.gz, .csv.zst or .parquet.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(super) record: Option<PathBuf>,
    /// Write a report to this file: one HTML page that needs no network
    #[arg(long, value_name = "FILE")]
    pub(super) report: Option<PathBuf>,
}

/// Number of chunks in which tokens travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkCount {
    /// A fixed number.
    Fixed(usize),
    /// The number that the cost model predicts to be fastest.
    Auto,
}

/// Error of text that is no [`ChunkCount`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected auto or a number from 1")]
pub(crate) struct ChunkCountError;

impl FromStr for ChunkCount {
    type Err = ChunkCountError;

    fn from_str(text: &str) -> Result<Self, ChunkCountError> {
        match text.parse() {
            _ if text == "auto" => Ok(ChunkCount::Auto),
            Ok(count) if count > 0 => Ok(ChunkCount::Fixed(count)),
            _ => Err(ChunkCountError),
        }
    }
}

/// Hardware that runs the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendName {
    /// Any machine.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// Placement of ranks in processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TransportName {
    /// All in this process, one after the other.
    InProcess,
    /// One process each, of an MPI job.
    Mpi,
    /// One process and GPU each.
    Nccl,
}

/// Handover of device memory to the MPI library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CudaAware {
    /// As the library reports.
    Auto,
    /// The library takes device memory.
    Yes,
    /// Device memory goes through host memory.
    No,
}

/// Matrix multiplication on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FfnName {
    /// Grouped kernel that reads its sizes on the device.
    Own,
    /// cuBLAS, which takes its sizes from the host.
    Cublas,
}

impl BackendName {
    /// Returns the name that selects the backend.
    pub(crate) fn name(self) -> &'static str {
        match self {
            BackendName::Cpu => "cpu",
            BackendName::Cuda => "cuda",
        }
    }
}
