//! The interface of a backend, which runs one MoE layer on all ranks, and the results of a layer.

use super::comm::placement_digest;
use super::error::{ExecError, UnknownName};
use super::forward::StepRun;
use super::placement_state::{PlacementState, WeightBytes};
use super::random::RandomStream;
use super::router::{Capacity, RouteArgs, Router, Routing, SoftMixtures};
use super::step_stats::gather_step_stats;
use super::weights::{Dtype, WeightSource};
use evenkeel::cluster::Cluster;
use evenkeel::model::MoeModel;
use evenkeel::place::Placement;
use evenkeel::planner::{Planner, TokenCopies};
use evenkeel::split::{DynamicSlots, PrimaryObjective, SlotMemory, SplitMethod};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The model, group, router and split of a run, on any backend.
#[derive(Debug, Clone)]
pub struct ExecConfig {
    /// Shapes. The router takes [`MoeModel::top_k`] unless its kind fixes the number of experts per token.
    pub model: MoeModel,
    /// The ranks and nodes.
    pub cluster: Cluster,
    /// The rule that assigns experts to tokens, unless the choices are replayed.
    pub router: Router,
    /// Capacity per expert and source.
    pub capacity: Option<Capacity>,
    /// The split of batches. With `None` every expert is served by its first replica, and no counts are
    /// gathered.
    pub method: Option<SplitMethod>,
    /// The secondary objective after the lowest peak, with [`SplitMethod::Exact`]. It minimises the tokens
    /// that leave their node, then those that leave their rank, optionally after the whole load vector.
    /// `None` means no secondary objective.
    pub tie_break: Option<PrimaryObjective>,
    /// The routes of tokens to other nodes. All ranks of a CUDA backend in one process are on one node.
    pub aggregate: Aggregate,
    /// The dynamic slots of every rank, with [`SplitMethod::Exact`]. Experts are copied into them before a
    /// layer runs, after its tokens are routed. `None` means no dynamic slots.
    pub dynamic: Option<DynamicSlots>,
    /// The number type in which tokens travel. It equals that of the weights.
    pub dtype: Dtype,
    /// Seed of all random choices in routing.
    pub seed: u64,
}

impl ExecConfig {
    /// Returns the planner that splits the batches of a layer, or `None` without a split method.
    pub(super) fn create_planner(&self, placement: &Placement) -> Result<Option<Planner>, ExecError> {
        let Some(method) = self.method else { return Ok(None) };
        if let Some(slots) = self.dynamic_slots() {
            return Ok(Some(Planner::with_dynamic_slots(placement.clone(), self.cluster, slots)?));
        }
        Ok(Some(match (self.tie_break, method) {
            (Some(keep), SplitMethod::Exact) => {
                Planner::with_min_traffic(placement.clone(), self.cluster, keep)?
            }
            _ => Planner::with_method(placement.clone(), self.cluster, method)?,
        }))
    }

    /// Returns the dynamic slots, if the split uses them.
    pub(super) fn dynamic_slots(&self) -> Option<DynamicSlots> {
        self.dynamic.filter(|_| self.method == Some(SplitMethod::Exact))
    }

    /// Returns the number of static and dynamic slots of a rank.
    pub(super) fn slots_per_rank(&self) -> usize {
        self.cluster.slots_per_rank() + self.dynamic_slots().map_or(0, |slots| slots.per_rank)
    }

    /// Returns the cells that the dynamic slots of a rank take in `layers` layers.
    pub(super) fn dynamic_cells(&self, layers: usize) -> usize {
        self.dynamic_slots().map_or(0, |slots| match slots.memory {
            SlotMemory::Shared => slots.per_rank,
            SlotMemory::Kept => slots.per_rank * layers,
        })
    }

    /// Returns the ranks with their static and dynamic slots, as slots are numbered in a layer.
    pub(super) fn widened_cluster(&self) -> Result<Cluster, ExecError> {
        let (ranks, width) = (self.cluster.ranks(), self.slots_per_rank());
        Ok(Cluster::with_uneven_slots(ranks, self.cluster.nodes(), 0, ranks * width)?)
    }

    /// Returns an error if parts of the configuration exclude each other.
    pub(super) fn check_dynamic(&self) -> Result<(), ExecError> {
        match self.dynamic_slots() {
            Some(_) if self.tie_break.is_some() => {
                Err(ExecError::Combination("dynamic slots with an objective after the peak"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the arguments with which a source routes its tokens.
    pub(super) fn route_args(&self, step: u64, layer: usize, source: usize) -> RouteArgs {
        RouteArgs {
            experts: self.model.experts,
            top_k: self.model.top_k,
            capacity: self.capacity,
            random: RandomStream::new(self.seed, &[step, layer as u64, source as u64]),
        }
    }
}

/// The routes of tokens to other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Aggregate {
    /// A token travels separately to every rank that has one of its experts, and every such rank answers.
    #[default]
    None,
    /// A token travels once per node, to its gateway: the rank there with the same position in its node as
    /// the source. The gateway forwards it within the node. One row comes back: the sum of the node's answers
    /// in the order of ranks, rounded to the type in which tokens travel.
    Node,
}

impl Aggregate {
    /// All variants.
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
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let found = Aggregate::ALL.into_iter().find(|way| way.to_string() == name);
        found.ok_or_else(|| UnknownName::new("aggregation", name, "none or node"))
    }
}

/// The phases of a layer, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerStage {
    /// RMSNorm, logits and choices.
    Route,
    /// The count of tokens per expert on this source.
    Count,
    /// The way from the counts of all sources to quotas and slots.
    Split,
    /// Copying experts into dynamic slots.
    Copy,
    /// Copying tokens into send buffers, and from the received ones into rows per slot.
    Dispatch,
    /// The routed and shared experts.
    Ffn,
    /// The return of the results, with their weighted sum.
    Combine,
}

impl LayerStage {
    /// All phases.
    pub const ALL: [LayerStage; 7] = [
        LayerStage::Route,
        LayerStage::Count,
        LayerStage::Split,
        LayerStage::Copy,
        LayerStage::Dispatch,
        LayerStage::Ffn,
        LayerStage::Combine,
    ];

    /// Returns the name in tables and documents.
    pub fn name(self) -> &'static str {
        match self {
            LayerStage::Route => "route",
            LayerStage::Count => "count",
            LayerStage::Split => "split",
            LayerStage::Copy => "copy",
            LayerStage::Dispatch => "dispatch",
            LayerStage::Ffn => "ffn",
            LayerStage::Combine => "combine",
        }
    }
}

impl fmt::Display for LayerStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The time of one rank in each phase, measured for this rank alone. On the CPU it is the processor time of
/// its thread.
pub type StageTimes = [Duration; LayerStage::ALL.len()];

/// The source of the experts of each token.
#[derive(Debug, Clone, Copy)]
pub enum RoutingSource<'a> {
    /// The layer's router chooses.
    Router,
    /// The choices are replayed from a recording.
    Replay {
        /// Expert ids per source `[token][k]`; -1 marks no choice.
        ids: &'a [Vec<i32>],
        /// Experts per token.
        top_k: usize,
        /// Weights per source `[token][k]`. `None` means equal weights.
        weights: Option<&'a [Vec<f32>]>,
        /// The slot that serves each choice, per source `[token][k]`. `None` leaves the slots to the planner.
        slots: Option<&'a [Vec<i64>]>,
        /// Runs the router and discards its result, so that the baseline pays the same routing cost.
        also_run_router: bool,
    },
}

/// The input of one layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerInput<'a> {
    /// Layer index.
    pub layer: usize,
    /// Step number, which seeds the random choices of the layer.
    pub step: u64,
    /// The tokens of every rank, `[token][H]`, before the norm. Ranks may hold different numbers of tokens,
    /// or none.
    pub tokens: &'a [Vec<f32>],
    /// The source of their experts.
    pub routed: RoutingSource<'a>,
}

impl LayerInput<'_> {
    /// Returns an error unless the input fits a backend with `layers` layers and `ranks` ranks, and tokens of
    /// `hidden` numbers.
    pub(super) fn check_shapes(&self, layers: usize, ranks: usize, hidden: usize) -> Result<(), ExecError> {
        if self.layer >= layers {
            return Err(ExecError::Shape { what: "layer", given: self.layer, expected: layers });
        }
        ExecError::expect_size("sources", self.tokens.len(), ranks)?;
        for tokens in self.tokens {
            ExecError::expect_size("numbers past the last whole token", tokens.len() % hidden, 0)?;
        }
        if let RoutingSource::Replay { ids, weights, slots, .. } = self.routed {
            ExecError::expect_size("sources of ids", ids.len(), ranks)?;
            ExecError::expect_size("sources of weights", weights.map_or(ranks, <[_]>::len), ranks)?;
            ExecError::expect_size("sources of slots", slots.map_or(ranks, <[_]>::len), ranks)?;
        }
        Ok(())
    }
}

/// The routing of one source's tokens.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct SourceRouting {
    /// Logits on which its router decided, `[token][width]`. Empty if it did not run.
    pub logits: Vec<f32>,
    /// Experts and weights of its tokens or of its mixtures.
    pub routing: Routing,
    /// The mixtures, for a soft router.
    pub soft: Option<SoftMixtures>,
    /// True if a router chose and its tokens are in another process. Only the number of dropped choices and
    /// the losses are known here then.
    pub is_remote: bool,
}

/// The results of one layer.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LayerRun {
    /// The values that the layer adds to every rank's tokens, `[token][H]`, before the residual.
    pub outputs: Vec<Vec<f32>>,
    /// The routing, per source.
    pub routed: Vec<SourceRouting>,
    /// Tokens per expert, `[E]`, over all sources.
    pub counts: Vec<u64>,
    /// Tokens per source and expert, `[R][E]`, if the sources are in other processes and have reported them.
    /// Otherwise `routed` contains them.
    pub counts_by_source: Vec<u64>,
    /// Rows that each rank's routed experts processed.
    pub rank_loads: Vec<u64>,
    /// Times per rank and phase.
    pub times: Vec<StageTimes>,
    /// The token rows that travelled.
    pub copies: TokenCopies,
    /// Experts that were copied into dynamic slots, over all ranks.
    pub expert_copies: u64,
    /// The time for which each rank waited for copies, `[R]`. Empty without dynamic slots.
    pub copy_waits: Vec<Duration>,
    /// The time from the first rank's first phase to the last rank's last phase. A clock around the call
    /// would include copying tokens to a device and back.
    pub wall: Option<Duration>,
}

impl LayerRun {
    /// Returns the tokens per source and expert, `[R][E]`.
    pub fn source_counts(&self) -> Vec<u64> {
        if !self.counts_by_source.is_empty() {
            return self.counts_by_source.clone();
        }
        let experts = self.counts.len();
        let mut counts = vec![0; self.routed.len() * experts];
        for (counts, routed) in counts.chunks_exact_mut(experts.max(1)).zip(&self.routed) {
            let chosen = routed.routing.ids.iter().filter_map(|&id| usize::try_from(id).ok());
            chosen.for_each(|expert| counts[expert] += 1);
        }
        counts
    }

    /// Returns the time of this layer if all ranks ran at once: between two exchanges every rank waits for
    /// the slowest one. The exchanges follow counting (the counts) and belong to dispatch and combine. Links
    /// are assumed to cost nothing.
    pub fn modelled_time(&self) -> Duration {
        const STAGES: [&[LayerStage]; 4] = [
            &[LayerStage::Route, LayerStage::Count],
            &[LayerStage::Split, LayerStage::Copy, LayerStage::Dispatch],
            &[LayerStage::Ffn],
            &[LayerStage::Combine],
        ];
        let of = |times: &StageTimes, stage: &[LayerStage]| {
            stage.iter().map(|&p| times[p as usize]).sum::<Duration>()
        };
        STAGES.iter().map(|stage| self.times.iter().map(|t| of(t, stage)).max().unwrap_or_default()).sum()
    }
}

/// A backend that runs layers on the ranks of this process: all ranks of a group, or one. The other ranks are
/// in other processes, which make the same calls.
pub trait Backend {
    /// Returns the name that selects the backend.
    fn name(&self) -> &'static str;

    /// Builds a backend for the same model and group with other placements and another split. A rank shares
    /// the experts that it already holds in this backend.
    ///
    /// # Errors
    /// Fails if weights cannot be read, if memory is short, or if a placement does not fit.
    fn with_placements(
        &self,
        source: &dyn WeightSource,
        placements: Vec<Placement>,
        method: Option<SplitMethod>,
    ) -> Result<Self, ExecError>
    where
        Self: Sized;

    /// Returns the current placements, and the ranks of this process.
    fn state(&self) -> &PlacementState;

    /// Runs one layer. If ranks are in other processes, [`Backend::gather_step_stats`] fetches the results
    /// that only they have.
    ///
    /// # Errors
    /// Fails if shapes do not fit, or if tokens cannot be routed or split.
    fn run_layer(&mut self, input: &LayerInput<'_>) -> Result<LayerRun, ExecError>;

    /// Begins to copy an expert from a rank that holds it into a staging slot of another, in the background
    /// of the forward pass. Does nothing if the expert is already there or on its way. Returns the bytes to
    /// copy.
    ///
    /// # Errors
    /// Fails if there is no such rank, layer or expert.
    fn start_copy(&mut self, layer: usize, rank: usize, expert: u32) -> Result<u64, ExecError>;

    /// Waits until all copies have arrived. Returns the copying time to each rank, where it is known.
    ///
    /// # Errors
    /// Fails if the thread or rank that copies is lost.
    fn wait_for_copies(&mut self) -> Result<Vec<Duration>, ExecError>;

    /// Switches a layer to another placement, between two steps. Every rank uses the experts that it holds or
    /// has received, and frees the others. After an error nothing has changed.
    ///
    /// # Errors
    /// Fails if a rank lacks an expert, or if the placement has another shape.
    fn activate_placement(&mut self, layer: usize, placement: Placement) -> Result<(), ExecError>;

    /// Returns whether a rank's tokens are in this process. The tokens of other ranks stay empty.
    fn is_local(&self, rank: usize) -> bool {
        self.state().group().is_local(rank)
    }

    /// Adds the results of the ranks in other processes to a step, so that all processes have the same
    /// results.
    ///
    /// # Errors
    /// Fails if a rank is lost.
    fn gather_step_stats(&self, run: &mut StepRun) -> Result<(), ExecError> {
        gather_step_stats(self.state().group(), self.state().experts(), run)
    }

    /// Checks that all processes are about to move a layer to the same placement.
    ///
    /// # Errors
    /// Fails if their placements differ, or if a rank is lost.
    fn check_next_placement(&self, layer: usize, next: &Placement) -> Result<(), ExecError> {
        let group = self.state().group();
        group.set_context(None, Some(layer));
        Ok(group.assert_identical("the next placement", || placement_digest(next, &[]))?)
    }

    /// Returns the current placement of a layer.
    fn placement(&self, layer: usize) -> &Placement {
        &self.state().placements()[layer]
    }

    /// Returns the bytes of a routed expert.
    ///
    /// # Errors
    /// Fails if there is no such layer or expert.
    fn expert_bytes(&self, layer: usize, expert: u32) -> Result<u64, ExecError> {
        self.state().home_rank(layer, expert).map(|_| self.state().expert_bytes())
    }

    /// Returns the bytes of weights on every rank.
    fn memory(&self) -> Vec<WeightBytes> {
        self.state().memory()
    }
}
