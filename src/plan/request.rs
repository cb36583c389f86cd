//! Request for a plan: the trace, the cluster, the policy, the previous plan and the constraints.
//!
//! In: what to plan for. Out: a [`PlanReport`]. [`PlanRequest::run`] passes the request to the stages: place
//! and constrain ([`layer_stage`](super::layer_stage)), select among the layers' candidates
//! ([`link_budget`](super::link_budget), [`slot_budget`](super::slot_budget)), evaluate
//! ([`build`](super::build)).

use super::layer_stage::{LayerStage, PlacedLayer};
use super::{BatchProvenance, LayerChange, LinkBudget, Plan, PlanReport};
use crate::cluster::Cluster;
use crate::economics::MoveEconomics;
use crate::evaluate::{EvaluateError, Progress};
use crate::forecast::History;
use crate::place::{Constrained, Coverage, PlaceError, Policy};
use crate::trace::Trace;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use thiserror::Error;

/// Constraints of a plan. The default has none.
///
/// Slots, nodes and unequal numbers of slots belong to the [`Cluster`], and groups of experts to the policy.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Constraints {
    /// Speed of each rank, `[R]`, at least 1 each. Empty means equal ranks.
    pub speeds: Vec<u32>,
    /// Experts that have to survive the loss of any one rank.
    pub coverage: Option<Coverage>,
    /// Redundant slots of all layers together. A layer gets them where they lower its peaks most, and ranks
    /// have the slots of the layer with the most.
    pub memory_budget: Option<usize>,
    /// Ranks of the previous plan that are lost.
    pub lost_ranks: Vec<usize>,
    /// Highest number of moves per layer.
    pub max_moves: Option<usize>,
    /// Economics by which moves have to pay. `None` accepts all moves.
    pub economics: Option<MoveEconomics>,
    /// Limit on the bytes that a rank receives.
    pub link_budget: Option<LinkBudget>,
}

/// Reasons for which constraints contradict each other, or the previous plan.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// A limit of moves has no plan to start from.
    #[error("{0}: expected a previous plan, from which moves are counted")]
    NeedsPrevious(&'static str),
    /// Two budgets are shared by all layers.
    #[error(
        "a memory budget and a link budget: expected one of them, because slots and moves of all layers would have to \
         be chosen together"
    )]
    TwoBudgets,
    /// A memory budget chooses the slots itself.
    #[error("a memory budget on ranks of {0} and more slots: expected the same number of slots on each rank")]
    UnevenMemory(usize),
    /// The previous plan is of another model.
    #[error("the previous plan has {previous} experts, the trace {trace}")]
    Experts {
        /// Experts of the previous plan.
        previous: usize,
        /// Experts of the trace.
        trace: usize,
    },
    /// A lost rank is not in the previous plan.
    #[error("lost rank {rank}: the previous plan has ranks 0 to {last}")]
    UnknownRank {
        /// Rank in question.
        rank: usize,
        /// Last rank of the previous plan.
        last: usize,
    },
    /// The cluster has fewer ranks than the previous plan keeps.
    #[error(
        "{ranks} ranks, but {kept} of the previous plan are left: expected the ranks that leave as lost ranks (--lost-ranks)"
    )]
    TooFewRanks {
        /// Ranks of the cluster.
        ranks: usize,
        /// Ranks of the previous plan that are not lost.
        kept: usize,
    },
    /// The link budget does not suffice for the necessary moves.
    #[error(
        "rank {rank} has to receive {needed} bytes: expected a link budget of as many or more, not {budget}"
    )]
    LinkBudget {
        /// Rank that receives most.
        rank: usize,
        /// Bytes that it has to receive.
        needed: u64,
        /// Bytes of the budget.
        budget: u64,
    },
    /// The memory budget does not suffice for the least slots of the layers.
    #[error("--memory-budget {budget}: the layers together need at least {least} redundant slots")]
    MemoryBudget {
        /// Redundant slots of the budget.
        budget: usize,
        /// Lowest sum over the layers.
        least: usize,
    },
    /// A new layer cannot be counted as moves.
    #[error("layer {0}: the previous plan lacks this layer: a link budget covers moves, not new layers")]
    NewLayer(u32),
}

/// Reasons for which [`PlanRequest::run`] fails.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanRequestError {
    /// The constraints contradict each other, or the previous plan.
    #[error(transparent)]
    Constraints(#[from] ConstraintError),
    /// A layer cannot be placed or judged.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
}

/// Request for a plan of all layers that routed tokens.
///
/// ```
/// use evenkeel::cluster::Cluster;
/// use evenkeel::place;
/// use evenkeel::plan::PlanRequest;
/// use evenkeel::trace::Trace;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let trace = Trace::from_loads(4, vec![0], vec!["0".into()], vec![30, 10, 10, 10])?;
/// let cluster = Cluster::new(2, 1, 4, 2)?;
/// let policy = place::policy("eplb", 1, &cluster)?;
/// let first = PlanRequest::new(&trace, cluster, policy.as_ref()).run(&())?;
/// let next = PlanRequest::new(&trace, cluster, policy.as_ref())
///     .previous(&first.plan)
///     .max_moves(1)
///     .run(&())?;
/// assert!(next.changes.iter().all(|layer| layer.moves.is_empty()));
/// # Ok(())
/// # }
/// ```
pub struct PlanRequest<'a> {
    pub(super) trace: &'a Trace,
    pub(super) cluster: Cluster,
    pub(super) policy: &'a dyn Policy,
    pub(super) origin: BatchProvenance,
    pub(super) previous: Option<&'a Plan>,
    pub(super) constraints: Constraints,
}

impl std::fmt::Debug for PlanRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlanRequest")
            .field("cluster", &self.cluster)
            .field("policy", &self.policy.name())
            .field("constraints", &self.constraints)
            .finish_non_exhaustive()
    }
}

impl<'a> PlanRequest<'a> {
    /// Creates a request to plan from scratch, with the whole trace as history.
    pub fn new(trace: &'a Trace, cluster: Cluster, policy: &'a dyn Policy) -> Self {
        let origin = BatchProvenance::default();
        Self { trace, cluster, policy, origin, previous: None, constraints: Constraints::default() }
    }

    /// Sets the part of the plan's provenance that neither the trace nor the policy determines.
    #[must_use]
    pub fn provenance(self, origin: BatchProvenance) -> Self {
        Self { origin, ..self }
    }

    /// Sets the plan that runs now. Its layers stay where they are good enough.
    ///
    /// Its cluster may differ. The ranks that are not lost keep their order and come first, and further ranks
    /// of the cluster join without experts. Slots may be added or removed. A layer that the plan lacks is
    /// placed from scratch, and lists no moves.
    #[must_use]
    pub fn previous(self, previous: impl Into<Option<&'a Plan>>) -> Self {
        Self { previous: previous.into(), ..self }
    }

    /// Sets all constraints.
    #[must_use]
    pub fn constraints(self, constraints: Constraints) -> Self {
        Self { constraints, ..self }
    }

    /// Sets [`Constraints::max_moves`].
    #[must_use]
    pub fn max_moves(mut self, moves: impl Into<Option<usize>>) -> Self {
        self.constraints.max_moves = moves.into();
        self
    }

    /// Sets [`Constraints::lost_ranks`].
    #[must_use]
    pub fn lost_ranks(mut self, ranks: &[usize]) -> Self {
        self.constraints.lost_ranks = ranks.to_vec();
        self
    }

    /// Sets [`Constraints::economics`].
    #[must_use]
    pub fn economics(mut self, economics: impl Into<Option<MoveEconomics>>) -> Self {
        self.constraints.economics = economics.into();
        self
    }

    /// Sets [`Constraints::link_budget`].
    #[must_use]
    pub fn link_budget(mut self, budget: impl Into<Option<LinkBudget>>) -> Self {
        self.constraints.link_budget = budget.into();
        self
    }

    /// Sets [`Constraints::memory_budget`].
    #[must_use]
    pub fn memory_budget(mut self, slots: impl Into<Option<usize>>) -> Self {
        self.constraints.memory_budget = slots.into();
        self
    }

    /// Sets [`Constraints::coverage`].
    #[must_use]
    pub fn coverage(mut self, coverage: impl Into<Option<Coverage>>) -> Self {
        self.constraints.coverage = coverage.into();
        self
    }

    /// Sets [`Constraints::speeds`].
    #[must_use]
    pub fn speeds(mut self, speeds: Vec<u32>) -> Self {
        self.constraints.speeds = speeds;
        self
    }

    /// Places every layer that routed tokens, and judges each placement on all held steps: with the split of
    /// the provenance, the even and the exact split, and EPLB's placement in the same way.
    ///
    /// The ranks that stay keep their experts if ranks are lost or join
    /// ([`Constrained::place_on_changed_ranks`]). Otherwise the policy places again.
    ///
    /// # Errors
    /// Returns [`PlanRequestError::Constraints`] if constraints contradict each other. Fails if no layer
    /// holds a token, if the policy does not support the shape, or if a split fails.
    pub fn run(&self, progress: &dyn Progress) -> Result<PlanReport, PlanRequestError> {
        self.check()?;
        let constrained = Constrained::new(self.policy)
            .speeds(self.constraints.speeds.clone())
            .coverage(self.constraints.coverage);
        let stage = LayerStage::new(self, &constrained);
        let limits = &self.constraints;
        match (limits.memory_budget, limits.link_budget) {
            (Some(slots), _) => self.run_within_slots(&stage, slots, progress),
            (None, Some(budget)) => self.run_within_links(&stage, budget, progress),
            (None, None) => self.run_layers(&stage, progress),
        }
    }

    /// Plans every layer by itself.
    fn run_layers(
        &self,
        stage: &LayerStage<'_>,
        progress: &dyn Progress,
    ) -> Result<PlanReport, PlanRequestError> {
        let changes: Mutex<BTreeMap<usize, LayerChange>> = Mutex::new(BTreeMap::new());
        let place = |layer: usize, history: &History<'_>| -> Result<_, PlaceError> {
            let PlacedLayer { placement, change } =
                stage.place_layer(layer, history, &self.cluster, self.constraints.max_moves)?;
            // No thread can panic while it holds the lock.
            changes.lock().unwrap_or_else(PoisonError::into_inner).insert(layer, change);
            Ok(placement)
        };
        let mut report =
            Plan::evaluate_layers(self.trace, &self.cluster, &stage.name(), &self.origin, progress, place)?;
        if self.previous.is_some() {
            report.changes =
                changes.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect();
        }
        Ok(report)
    }

    /// Checks the constraints against each other and against the previous plan.
    fn check(&self) -> Result<(), ConstraintError> {
        let limits = &self.constraints;
        if limits.memory_budget.is_some() {
            if limits.link_budget.is_some() {
                return Err(ConstraintError::TwoBudgets);
            }
            if !self.cluster.is_even() {
                let least = (0..self.cluster.ranks()).map(|rank| self.cluster.slots_of(rank)).min();
                return Err(ConstraintError::UnevenMemory(least.unwrap_or(0)));
            }
        }
        let Some(previous) = self.previous else {
            let moves = [
                ("a limit of moves", limits.max_moves.is_some()),
                ("lost ranks", !limits.lost_ranks.is_empty()),
                ("a horizon of moves", limits.economics.is_some()),
                ("a link budget", limits.link_budget.is_some()),
            ];
            return match moves.into_iter().find(|(_, is_set)| *is_set) {
                Some((name, _)) => Err(ConstraintError::NeedsPrevious(name)),
                None => Ok(()),
            };
        };
        if previous.experts != self.trace.experts() {
            let (previous, trace) = (previous.experts, self.trace.experts());
            return Err(ConstraintError::Experts { previous, trace });
        }
        let (ranks, before) = (self.cluster.ranks(), previous.cluster.ranks());
        if let Some(&rank) = limits.lost_ranks.iter().find(|&&rank| rank >= before) {
            return Err(ConstraintError::UnknownRank { rank, last: before - 1 });
        }
        let kept = (0..before).filter(|rank| !limits.lost_ranks.contains(rank)).count();
        if ranks < kept {
            return Err(ConstraintError::TooFewRanks { ranks, kept });
        }
        Ok(())
    }
}
