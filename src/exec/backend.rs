//! What runs one MoE layer on all ranks, and what it tells.

use super::error::ExecError;
use super::forward::StepRun;
use super::random::Stream;
use super::router::{Capacity, RouteArgs, Router, Routing, Soft};
use super::weights::Dtype;
use crate::cluster::Cluster;
use crate::model::Model;
use crate::place::Placement;
use crate::planner::{Copies, Planner};
use crate::split::{Keep, Method};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What runs, on whatever backend.
#[derive(Debug, Clone)]
pub struct ExecConfig {
    /// Shapes; [`Model::top_k`] is what the router takes, where the router leaves it open.
    pub model: Model,
    /// The group.
    pub cluster: Cluster,
    /// How tokens get their experts, where they are not replayed.
    pub router: Router,
    /// Room per expert and source.
    pub capacity: Option<Capacity>,
    /// How batches are split; `None` to plan nothing: every expert is served by its first copy, and no counts are gathered.
    pub method: Option<Method>,
    /// What a batch's split looks to after its least peak, with [`Method::Exact`]: the fewest tokens off their node, then off their
    /// rank, perhaps after the whole load vector. Nothing, where `None`.
    pub then: Option<Keep>,
    /// How tokens cross to other nodes; the ranks of a CUDA backend are all in one.
    pub aggregate: Aggregate,
    /// What tokens travel in; that of the weights.
    pub dtype: Dtype,
    /// Seed of whatever is random in routing.
    pub seed: u64,
}

impl ExecConfig {
    /// Is a placement one of this model's experts on slots of this group?
    pub(super) fn expect_fit(&self, placement: &Placement) -> Result<(), ExecError> {
        ExecError::expect("experts of a placement", placement.experts(), self.model.experts)?;
        ExecError::expect("slots of a placement", placement.slots().len(), self.cluster.slots())
    }

    /// What splits the batches of a layer, if anything does.
    pub(super) fn planner(&self, placement: &Placement) -> Result<Option<Planner>, ExecError> {
        let Some(method) = self.method else { return Ok(None) };
        Ok(Some(match (self.then, method) {
            (Some(keep), Method::Exact) => Planner::local(placement.clone(), self.cluster, keep)?,
            _ => Planner::by(placement.clone(), self.cluster, method)?,
        }))
    }

    /// What a source routes its tokens with.
    pub(super) fn route_args(&self, step: u64, layer: usize, source: usize) -> RouteArgs {
        RouteArgs {
            experts: self.model.experts,
            top_k: self.model.top_k,
            capacity: self.capacity,
            random: Stream::new(self.seed, &[step, layer as u64, source as u64]),
        }
    }
}

/// How tokens cross to other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Aggregate {
    /// To every rank that has one of their experts, by themselves; every such rank answers.
    #[default]
    None,
    /// Once per node, to the rank there that has the source's place in its own node; it hands them on inside the node, and one row
    /// comes back: the sum of the node's answers in the order of ranks, rounded as it travels.
    Node,
}

impl Aggregate {
    /// All of them.
    pub const ALL: [Aggregate; 2] = [Aggregate::None, Aggregate::Node];
}

impl fmt::Display for Aggregate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Aggregate::None => "none",
            Aggregate::Node => "node",
        })
    }
}

impl FromStr for Aggregate {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Aggregate::ALL.into_iter().find(|way| way.to_string() == name);
        found.ok_or_else(|| format!("unknown aggregation `{name}`: expected none or node"))
    }
}

/// The parts of a layer, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// RMSNorm, logits, choices.
    Route,
    /// Tokens per expert on this source.
    Count,
    /// Everybody's counts to quotas to slots.
    Split,
    /// Tokens into send buffers, and out of the received ones into rows per slot.
    Dispatch,
    /// The experts, routed and shared.
    Ffn,
    /// Results back, weighted and summed.
    Combine,
}

impl Phase {
    /// All phases.
    pub const ALL: [Phase; 6] =
        [Phase::Route, Phase::Count, Phase::Split, Phase::Dispatch, Phase::Ffn, Phase::Combine];

    /// As tables and documents call it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Route => "route",
            Phase::Count => "count",
            Phase::Split => "split",
            Phase::Dispatch => "dispatch",
            Phase::Ffn => "ffn",
            Phase::Combine => "combine",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How long one rank took for each phase, alone: on the CPU, processor time of its thread.
pub type Times = [Duration; Phase::ALL.len()];

/// How tokens get their experts.
#[derive(Debug, Clone, Copy)]
pub enum Routed<'a> {
    /// By the layer's router.
    Router,
    /// As recorded.
    Replay {
        /// Per source `[token][k]`, -1 for none.
        ids: &'a [Vec<i32>],
        /// Experts per token.
        top_k: usize,
        /// Per source `[token][k]`, where known; equal otherwise.
        weights: Option<&'a [Vec<f32>]>,
        /// The slot that serves each choice, per source `[token][k]`, where no planner shall decide.
        slots: Option<&'a [Vec<i64>]>,
        /// Whether the layer's router runs all the same and is not listened to, where a comparison is to pay for routing.
        and_route: bool,
    },
}

/// What goes into one layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerInput<'a> {
    /// Layer index.
    pub layer: usize,
    /// Step, for whatever is random in it.
    pub step: u64,
    /// The tokens of every rank, `[token][H]`, before the norm. Ranks may hold different numbers of them, or none.
    pub tokens: &'a [Vec<f32>],
    /// How they get their experts.
    pub routed: Routed<'a>,
}

impl LayerInput<'_> {
    /// Whether it fits a backend with so many layers and ranks, and tokens of so many numbers.
    pub(super) fn check(&self, layers: usize, ranks: usize, hidden: usize) -> Result<(), ExecError> {
        if self.layer >= layers {
            return Err(ExecError::Shape { what: "layer", given: self.layer, expected: layers });
        }
        ExecError::expect("sources", self.tokens.len(), ranks)?;
        for tokens in self.tokens {
            ExecError::expect("numbers past the last whole token", tokens.len() % hidden, 0)?;
        }
        if let Routed::Replay { ids, weights, slots, .. } = self.routed {
            ExecError::expect("sources of ids", ids.len(), ranks)?;
            ExecError::expect("sources of weights", weights.map_or(ranks, <[_]>::len), ranks)?;
            ExecError::expect("sources of slots", slots.map_or(ranks, <[_]>::len), ranks)?;
        }
        Ok(())
    }
}

/// Where one source's tokens went.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SourceRouting {
    /// Logits that its router decided on, `[token][width]`; none where it did not.
    pub logits: Vec<f32>,
    /// Experts and weights of its tokens, or of its mixtures.
    pub routing: Routing,
    /// The mixtures, for a soft router.
    pub soft: Option<Soft>,
    /// Whether its tokens are in another process, where a router chose; then only what it dropped and its losses are here.
    pub elsewhere: bool,
}

/// What came out of one layer.
#[derive(Debug, Clone, Default)]
pub struct LayerRun {
    /// What the layer adds to every rank's tokens, `[token][H]`, before the residual.
    pub outputs: Vec<Vec<f32>>,
    /// Where they went, per source.
    pub routed: Vec<SourceRouting>,
    /// Tokens per expert, `[E]`, over all sources.
    pub counts: Vec<u64>,
    /// Tokens per source and expert, `[R][E]`, where sources are in other processes and have told; else they are in `routed`.
    pub by_source: Vec<u64>,
    /// Rows that each rank's routed experts really worked on.
    pub rank_loads: Vec<u64>,
    /// Per rank and phase.
    pub times: Vec<Times>,
    /// What really travelled.
    pub copies: Copies,
    /// From the first rank's first phase to the last one's last, where a clock around the call would also see tokens come to
    /// a device and go.
    pub wall: Option<Duration>,
}

impl LayerRun {
    /// Tokens per source and expert, `[R][E]`.
    pub fn sources(&self) -> Vec<u64> {
        if !self.by_source.is_empty() {
            return self.by_source.clone();
        }
        let experts = self.counts.len();
        let mut counts = vec![0; self.routed.len() * experts];
        for (counts, routed) in counts.chunks_exact_mut(experts.max(1)).zip(&self.routed) {
            let chosen = routed.routing.ids.iter().filter_map(|&id| usize::try_from(id).ok());
            chosen.for_each(|expert| counts[expert] += 1);
        }
        counts
    }

    /// The time of this layer if all ranks ran at once: between two exchanges everybody waits for the slowest rank.
    /// Exchanges are after counting (the counts), in the dispatch, and in the combine; wires are taken to cost nothing.
    pub fn modelled(&self) -> Duration {
        const STAGES: [&[Phase]; 4] = [
            &[Phase::Route, Phase::Count],
            &[Phase::Split, Phase::Dispatch],
            &[Phase::Ffn],
            &[Phase::Combine],
        ];
        let of = |times: &Times, stage: &[Phase]| stage.iter().map(|&p| times[p as usize]).sum::<Duration>();
        STAGES.iter().map(|stage| self.times.iter().map(|t| of(t, stage)).max().unwrap_or_default()).sum()
    }
}

/// Runs layers on the ranks of one group.
pub trait Backend {
    /// The name that selects it.
    fn name(&self) -> &'static str;

    /// Runs one layer. Where ranks are in other processes, what they alone know comes with [`Backend::complete`].
    ///
    /// # Errors
    /// When shapes do not fit, or tokens cannot be routed or split.
    fn layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError>;

    /// Whether a rank's tokens are in this process; those of others are left empty.
    fn holds(&self, _rank: usize) -> bool {
        true
    }

    /// Adds what the ranks in other processes did in a step, so that all of them know the same.
    ///
    /// # Errors
    /// When one of them is gone.
    fn complete(&mut self, _run: &mut StepRun) -> Result<(), ExecError> {
        Ok(())
    }

    /// Makes sure that all processes are about to bring a layer to the same placement.
    ///
    /// # Errors
    /// When they are not, or one of them is gone.
    fn agree(&mut self, _layer: usize, _placement: &Placement) -> Result<(), ExecError> {
        Ok(())
    }

    /// Where the experts of a layer are now.
    fn placement(&self, layer: usize) -> &Placement;

    /// Bytes of a routed expert.
    ///
    /// # Errors
    /// When there is no such layer or expert.
    fn bytes(&self, layer: usize, expert: u32) -> Result<u64, ExecError>;

    /// Begins to copy an expert from a rank that holds it into a staging slot of another, beside the forward pass. Nothing
    /// is begun where it is there or on its way already. Returns the bytes to copy.
    ///
    /// # Errors
    /// When there is no such rank, layer or expert.
    fn copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError>;

    /// Waits until all copies begun have arrived; how long each rank was copied to.
    ///
    /// # Errors
    /// When whatever copies is gone.
    fn arrive(&mut self) -> Result<Vec<Duration>, ExecError>;

    /// Switches a layer to another placement, between two steps; every rank uses what it holds or has been copied there, and
    /// lets go of the rest. Nothing changes where an error is returned.
    ///
    /// # Errors
    /// When a rank misses an expert, or the placement has another shape.
    fn switch(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError>;

    /// Bytes of weights in use (routed and shared experts, norms, routers), and of experts in staging slots or on their way there,
    /// per rank. What all ranks have alike may be held once, and counts for each.
    fn memory(&self) -> Vec<[u64; 2]>;
}
