//! Options of every command that plans placements: `plan new` and `plan replan`.

use crate::args::blend::BlendSpec;
use crate::args::model::ModelMaybeOnGpu;
use crate::commands::plan::fault_tolerance::RankLossTarget;
use clap::Args;
use evenkeel::export::RuntimeTarget;
use evenkeel::trace::LayerSet;
use std::path::PathBuf;

#[derive(Debug, Clone, Args)]
pub(crate) struct PlanningArgs {
    /// Placement policy, as eplb or lplb:ring
    ///
    /// Names are recourse, contiguous, eplb, eplb:trtllm, lplb:TOPOLOGY, lp-round and milp.
    /// recourse searches for the placement whose batches split best, under the split of --for. Options follow
    /// its name, each after a colon. A split replaces that of --for (exact, even, vllm, ..). cvar=0.9
    /// minimises the worst tenth of the batches, worst the worst batch, instead of the mean. dynamic=N
    /// minimises the copies into N dynamic slots per rank. seed=N and iterations=N control the search.
    /// `evenkeel plan topology --help` lists the topologies of lplb.
    /// lp-round rounds a linear programme. milp proves the best placement for up to 16 batches of up to 8
    /// experts; it needs the feature `highs`.
    #[arg(long, value_name = "NAME", default_value = "recourse")]
    pub(crate) policy: String,
    /// Runtime of the plan: evenkeel, sglang, vllm, vllm-ascend or trtllm
    ///
    /// The runtime decides which split is planned for. sglang:exact and vllm:exact run with
    /// EVENKEEL_SPLIT=exact and without CUDA graphs. SGLang's rule depends on its flags: state them after the
    /// name, as in sglang:moe-a2a-backend=deepep,ep-dispatch-algorithm=dynamic, or state the rule, as in
    /// sglang:static. Without flags, --moe-a2a-backend is none. evenkeel stands for `evenkeel run` and the
    /// library's planner. A re-planned model keeps the runtime of its plan by default.
    #[arg(long = "for", value_name = "RUNTIME")]
    pub(crate) target: Option<RuntimeTarget>,
    /// Plan for another trace at the same time, for example decode with prefill
    ///
    /// WEIGHT 1 gives it as many batches as TRACE has. The option may be repeated. All traces need the same
    /// experts and layers. Batch options are those of TRACE, unless :decode=REQUESTS or :prefill=TOKENS
    /// follows. The command also reports the imbalance on each trace separately. For separate plans, run the
    /// command once per trace.
    #[arg(long, value_name = "TRACE:WEIGHT", hide_short_help = true)]
    pub(crate) blend: Vec<BlendSpec>,
    /// Make every expert (1), or as many as the slots allow, heaviest first (best), survive the loss of any
    /// one rank
    ///
    /// The command computes the imbalance after each possible loss exactly, and reports the worst.
    #[arg(long, value_name = "1|best", hide_short_help = true)]
    pub(crate) survive_rank_loss: Option<RankLossTarget>,
    /// Speed of each rank, one whole number per rank: faster ranks serve more
    ///
    /// The policy plans as for equal ranks. Exact splits at these speeds then refine its placement, or a
    /// placement that is distributed by speed.
    #[arg(long, value_name = "N,..", value_delimiter = ',', hide_short_help = true)]
    pub(crate) speeds: Vec<u32>,
    /// Layers of the model that route tokens, as 3-60 or 1,3,5 [default: those with tokens, and those without
    /// tokens after the first of these]
    ///
    /// Files for serving stacks contain all of them.
    #[arg(long, value_name = "IDS", hide_short_help = true)]
    pub(crate) moe_layers: Option<LayerSet>,
    /// Model that runs, as in deepseek-v3 or deepseek-v3,h100: states the memory of redundant slots
    ///
    /// Its top-k also applies where batches are drawn.
    #[arg(long, value_name = "MODEL[,GPU]", hide_short_help = true, help_heading = "Cluster")]
    pub(crate) model: Option<ModelMaybeOnGpu>,
    /// Write the plan to this file; `-` is stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}
