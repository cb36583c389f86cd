//! The slow loop: the replicas of each expert and their slots.
//!
//! In: a layer's [`History`] and a [`Cluster`]. Out: a [`Placement`]. Each algorithm is one file behind the
//! trait [`Policy`]. [`policy`] finds it by the name of the command line. A policy also plans again from the
//! current placement with few moves. [`relabel`](relabel()) renames ranks and slots. If moves are limited,
//! only the most useful ones are executed.

mod assignment;
mod bound;
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
mod partial;
mod placement;
mod rank_failure;
mod recourse;
mod refine;
mod relabel;
#[cfg(feature = "baselines")]
mod topology;

pub use bound::{BoundProof, PlacementBound, placement_bound};
pub use contiguous::Contiguous;
pub use eplb::{Eplb, TieBreak};
pub(crate) use evaluate::PeakEvaluator;
pub use exhaustive::{ProvedOptimum, find_optimum};
pub use fault_tolerance::{Coverage, FaultTolerant, ensure_coverage};
pub use heterogeneous::SpeedAware;
#[cfg(feature = "baselines")]
pub use lp::{LpRound, Milp};
#[cfg(feature = "baselines")]
pub use lplb::Lplb;
pub use placement::{ExpertMove, Placement, PlacementError};
pub use rank_failure::{
    RankLossEffect, RecoveredPlacement, rank_loss_effects, recover_placement, without_ranks,
};
pub use recourse::{Recourse, ScenarioObjective};
pub use relabel::relabel;
#[cfg(feature = "baselines")]
pub use topology::{GraphConnectivity, Topology, TopologyError};

use crate::cluster::Cluster;
use crate::forecast::History;
use crate::split::SplitMethod;
use refine::{RefineLimits, refine_placement};
use thiserror::Error;

/// Algorithm that places one layer's experts.
///
/// A policy is a pure function of its arguments, without clock, thread order or hidden state.
pub trait Policy: Send + Sync {
    /// Returns the name by which [`policy`] finds it.
    fn name(&self) -> String;

    /// Places the experts of one layer.
    ///
    /// # Errors
    /// Fails if the policy does not support this shape. The message states the shapes that it supports.
    fn place(&self, history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError>;

    /// Places the experts of one layer again, starting from `previous`, with at most `max_moves` moves
    /// ([`Placement::moves_from`]).
    ///
    /// The default plans from scratch and renames ranks and slots so that most experts stay in place. If that
    /// exceeds the allowed moves, it makes only single changes towards the new placement. Each change is the
    /// one that lowers the exact mean peak of the latest batches most. It stops when none does.
    ///
    /// # Errors
    /// Fails as [`Policy::place`] does.
    fn replan(
        &self,
        history: &History<'_>,
        cluster: &Cluster,
        previous: &Placement,
        max_moves: Option<usize>,
    ) -> Result<Placement, PlaceError> {
        let new = relabel(previous, &self.place(history, cluster)?, cluster)?;
        match max_moves {
            Some(max_moves) if new.moves_from(previous) > max_moves => {
                let how = RefineLimits { towards: Some(&new), max_moves, least_gain: 0, needs: &[] };
                refine_placement(previous, history, cluster, &how)
            }
            _ => Ok(new),
        }
    }

    /// Places again as [`Policy::replan`] does, where every move has to lower the mean imbalance of the
    /// coming batches by `price`. The price is the cost of a transfer over the batches that the plan will
    /// serve, in perfectly balanced batches. Returns `None` if the policy does not support prices.
    ///
    /// # Errors
    /// Fails as [`Policy::place`] does.
    fn replan_priced(
        &self,
        history: &History<'_>,
        cluster: &Cluster,
        previous: &Placement,
        max_moves: Option<usize>,
        price: f64,
    ) -> Result<Option<PricedPlacement>, PlaceError> {
        let _ = (history, cluster, previous, max_moves, price);
        Ok(None)
    }
}

/// Placement whose moves pay.
#[derive(Debug, Clone, PartialEq)]
pub struct PricedPlacement {
    /// Placement found.
    pub placement: Placement,
    /// Expected reduction of the mean imbalance of the coming batches.
    pub gain: f64,
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

/// Finds a policy by name.
///
/// `groups` is the number of expert groups of the model (EPLB's `num_groups`), 1 if the router has no groups.
///
/// # Errors
/// Fails if the name, or the topology within it, is unknown or unusable.
#[cfg_attr(
    not(feature = "baselines"),
    expect(unused_variables, reason = "topologies are of a number of ranks")
)]
pub fn policy(name: &str, groups: usize, cluster: &Cluster) -> Result<Box<dyn Policy>, PlaceError> {
    Ok(match name {
        "contiguous" => Box::new(Contiguous),
        "eplb" => Box::new(Eplb::new(groups, TieBreak::LowestExpert)),
        "eplb:trtllm" => Box::new(Eplb::new(groups, TieBreak::FewestReplicas)),
        #[cfg(feature = "baselines")]
        "lp-round" => Box::new(LpRound),
        #[cfg(feature = "baselines")]
        "milp" => Box::new(Milp),
        #[cfg(not(feature = "baselines"))]
        "lp-round" | "milp" => return Err(PlaceError::NotBuilt(name.to_owned())),
        "recourse" => Box::new(Recourse::default()),
        _ if name.starts_with("recourse:") => match Recourse::from_options(&name["recourse:".len()..]) {
            Some(policy) => Box::new(policy),
            None => return Err(PlaceError::UnknownPolicy(name.to_owned())),
        },
        _ => match name.strip_prefix("lplb:") {
            #[cfg(feature = "baselines")]
            Some(topology) => Box::new(Lplb::new(Topology::from_name(topology, cluster.ranks())?, groups)),
            #[cfg(not(feature = "baselines"))]
            Some(_) => return Err(PlaceError::NotBuilt(name.to_owned())),
            None => return Err(PlaceError::UnknownPolicy(name.to_owned())),
        },
    })
}
