//! The slow loop: the replicas of each expert and their slots.
//!
//! In: a layer's [`PlaceRequest`]. Out: a [`Placement`]. Each algorithm is one file behind the trait
//! [`Policy`]. [`policy`] finds it by the name of the command line. A policy also plans again from the
//! current placement with few moves. [`relabel`](relabel()) renames ranks and slots. If moves are limited,
//! only the most useful ones are executed. With several nodes, `node_assignment` exchanges ranks so that more
//! tokens stay on their node.

mod assignment;
mod bound;
mod changed_ranks;
mod constrained;
mod contiguous;
mod eplb;
mod evaluate;
mod exhaustive;
mod fault_tolerance;
mod heterogeneous;
#[cfg(feature = "baselines")]
mod lp;
#[cfg(feature = "baselines")]
mod lplb;
mod node_assignment;
mod partial;
mod placement;
mod policy_spec;
mod rank_failure;
mod recourse;
mod refine;
mod relabel;
mod request;
mod shared_replicas;
#[cfg(feature = "baselines")]
mod topology;

pub use bound::{BoundProof, MeanBound, PlacementBound, placement_bound};
pub use changed_ranks::{ReplannedPlacement, rank_origins};
pub use constrained::Constrained;
pub use contiguous::Contiguous;
pub use eplb::{Eplb, TieBreak};
pub(crate) use evaluate::PeakEvaluator;
pub use exhaustive::{ProvedOptimum, find_optimum};
pub use fault_tolerance::Coverage;
#[cfg(feature = "baselines")]
pub use lp::{LpRound, Milp, MilpSolution};
#[cfg(feature = "baselines")]
pub use lplb::Lplb;
pub use placement::{ExpertMove, Placement, PlacementError};
pub use policy_spec::PolicySpec;
pub use rank_failure::{RankLossEffect, rank_loss_effects, without_ranks};
pub use recourse::{Recourse, ScenarioObjective};
pub use relabel::relabel;
pub use request::{PlaceRequest, PlaceResponse};
#[cfg(feature = "baselines")]
pub use topology::{GraphConnectivity, Topology, TopologyError};

use crate::cluster::Cluster;
use crate::split::SplitMethod;
use thiserror::Error;

/// Algorithm that places one layer's experts.
///
/// A policy is a pure function of its arguments, without clock, thread order or hidden state.
pub trait Policy: Send + Sync {
    /// Returns the name by which [`policy`] finds it.
    fn name(&self) -> String;

    /// Places the experts of one layer, from scratch or from the previous placement of the request.
    ///
    /// A policy that plans from scratch passes its placement to [`PlaceRequest::respond_with`].
    ///
    /// # Errors
    /// Fails if the policy does not support this shape. The message states the shapes that it supports.
    fn place(&self, request: &PlaceRequest<'_>) -> Result<PlaceResponse, PlaceError>;
}

impl<P: Policy + ?Sized> Policy for &P {
    fn name(&self) -> String {
        (**self).name()
    }

    fn place(&self, request: &PlaceRequest<'_>) -> Result<PlaceResponse, PlaceError> {
        (**self).place(request)
    }
}

impl<P: Policy + ?Sized> Policy for Box<P> {
    fn name(&self) -> String {
        (**self).name()
    }

    fn place(&self, request: &PlaceRequest<'_>) -> Result<PlaceResponse, PlaceError> {
        (**self).place(request)
    }
}

/// Reasons for which a policy cannot place a layer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// The name is no known policy.
    #[error(
        "unknown policy `{0}`: expected recourse, contiguous, eplb, eplb:trtllm, lplb:TOPOLOGY, lp-round or milp"
    )]
    UnknownPolicy(String),
    /// The policy does not support this shape.
    #[error("{policy}: {reason}")]
    Shape {
        /// Name of the policy.
        policy: String,
        /// Shape that the policy supports.
        reason: String,
    },
    /// The policy is a baseline, which this build lacks.
    #[error(
        "{0}: this build is without the feature `baselines`; expected recourse, contiguous, eplb or eplb:trtllm"
    )]
    NotBuilt(String),
    /// The topology of an `lplb` policy is not available.
    #[cfg(feature = "baselines")]
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The result of a policy is no placement.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Two replicas of every expert need more slots.
    #[error(
        "to survive the loss of any rank, {experts} experts need {} slots (--redundant {experts} or more), there are \
         {usable}: `--survive-rank-loss best` covers the heaviest {}", 2 * experts, usable.saturating_sub(*experts)
    )]
    Secure {
        /// Number of logical experts.
        experts: usize,
        /// Number of usable slots.
        usable: usize,
    },
    /// The limit of moves is too low.
    #[error("{cause} need {needed} moves: expected as many or more (--max-moves), not {allowed}")]
    TooFewMoves {
        /// Experts or replicas that have to move, in the plural.
        cause: String,
        /// Lowest number of moves found.
        needed: usize,
        /// Allowed number of moves.
        allowed: usize,
    },
    /// A batch could not be split.
    #[error(transparent)]
    Split(#[from] crate::split::SplitError),
    /// The solver refused the loads on which placements are compared.
    #[error(transparent)]
    Solver(#[from] evenkeel_solver::SolverError),
}

/// Returns the name of a policy that plans for this split. `recourse` without a split gets it, and all other
/// names stay as they are.
pub fn policy_name_for_split(name: &str, split: SplitMethod) -> String {
    match name.strip_prefix("recourse") {
        Some(options)
            if (options.is_empty() || options.starts_with(':'))
                && !options.split(':').any(|option| option.parse::<SplitMethod>().is_ok()) =>
        {
            format!("recourse:{split}{options}")
        }
        _ => name.to_owned(),
    }
}

/// Finds a policy by name, as [`PolicySpec`] reads it.
///
/// `groups` is the number of expert groups of the model (EPLB's `num_groups`), 1 if the router has no groups.
///
/// # Errors
/// Fails if the name, or the topology within it, is unknown or unusable.
pub fn policy(name: &str, groups: usize, cluster: &Cluster) -> Result<Box<dyn Policy>, PlaceError> {
    name.parse::<PolicySpec>()?.build(groups, cluster)
}
