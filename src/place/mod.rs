//! The slow loop: which experts get copies, and where all copies live.
//!
//! In: a layer's [`History`] and a [`Cluster`]. Out: a [`Placement`]. Each way of placing is one file behind the
//! trait [`Policy`]; [`policy`] finds it by the name used on the command line. A policy also plans again from what is in
//! force, with few moves: [`relabel`](relabel()) renames ranks and slots, and where moves are limited only the most useful
//! ones are made.

mod assignment;
mod bound;
mod contiguous;
mod designed;
mod eplb;
mod loss;
mod lplb;
mod optimum;
mod placement;
mod programme;
mod recourse;
mod refine;
mod relabel;
mod score;
mod secure;
mod speeds;
mod state;
mod topology;

pub use bound::{Bound, Proof, placement_bound};
pub use contiguous::Contiguous;
pub use eplb::{Eplb, Ties};
pub use loss::{AfterLoss, Recovered, after_loss, recover, without_ranks};
pub use lplb::Lplb;
pub use optimum::{Optimum, optimum};
pub use placement::{Move, Placement, PlacementError};
pub use programme::{LpRound, Milp};
pub use recourse::{Objective, Recourse};
pub use relabel::relabel;
pub(crate) use score::Scenarios;
pub use secure::{Cover, Secured, secure};
pub use speeds::ForSpeeds;
pub use topology::{Connectivity, Topology, TopologyError};

use crate::cluster::Cluster;
use crate::forecast::History;
use crate::split::Method;
use refine::{Refine, refine};
use thiserror::Error;

/// A way of placing one layer's experts.
///
/// A policy is a pure function of what it is given: no clock, no thread order, no hidden state.
pub trait Policy: Send + Sync {
    /// The name that [`policy`] finds it by.
    fn name(&self) -> String;

    /// Places the experts of one layer.
    ///
    /// # Errors
    /// When the policy cannot serve this shape; the message says which shape it needs.
    fn place(&self, history: &History<'_>, cluster: &Cluster) -> Result<Placement, PlaceError>;

    /// Places the experts of one layer again, coming from `previous` with at most `max_moves` moves
    /// ([`Placement::moves_from`]).
    ///
    /// Unless a policy knows better, it plans from scratch, and the result takes the names of ranks and slots under which
    /// most experts stay where they are. Where that is more moves than allowed, only single changes towards it are made:
    /// the ones that lower the exact mean peak of the latest batches most, as long as one does.
    ///
    /// # Errors
    /// As [`Policy::place`].
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
                let how = Refine { towards: Some(&new), max_moves, least_gain: 0, needs: &[] };
                refine(previous, history, cluster, &how)
            }
            _ => Ok(new),
        }
    }

    /// As [`Policy::replan`], where every move has to lower the mean imbalance of the batches to come by `price`: what a copy
    /// costs over the batches that its plan will serve, in perfectly balanced batches. `None` where the policy knows no prices.
    ///
    /// # Errors
    /// As [`Policy::place`].
    fn replan_priced(
        &self,
        history: &History<'_>,
        cluster: &Cluster,
        previous: &Placement,
        max_moves: Option<usize>,
        price: f64,
    ) -> Result<Option<Priced>, PlaceError> {
        let _ = (history, cluster, previous, max_moves, price);
        Ok(None)
    }
}

/// A placement whose moves pay.
#[derive(Debug, Clone, PartialEq)]
pub struct Priced {
    /// The placement.
    pub placement: Placement,
    /// By how much it is expected to lower the mean imbalance of the batches to come.
    pub gain: f64,
}

/// Why a policy could not place a layer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// No policy has this name.
    #[error(
        "unknown policy `{0}`: expected recourse, contiguous, eplb, eplb:trtllm, lplb:TOPOLOGY, lp-round or milp"
    )]
    UnknownPolicy(String),
    /// The policy does not work for this shape.
    #[error("{policy}: {reason}")]
    Shape {
        /// The policy's name.
        policy: String,
        /// What it needs.
        reason: String,
    },
    /// The topology of an `lplb` policy could not be had.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// What a policy returned is no placement.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Two copies of every expert need more slots.
    #[error(
        "to survive the loss of any rank, {experts} experts need {} slots (--redundant {experts} or more), there are \
         {usable}: `--secure best` covers the heaviest {}", 2 * experts, usable.saturating_sub(*experts)
    )]
    Secure {
        /// Logical experts.
        experts: usize,
        /// Usable slots.
        usable: usize,
    },
    /// A batch could not be split.
    #[error(transparent)]
    Split(#[from] crate::split::SplitError),
    /// The solver refused the loads that placements were compared on.
    #[error(transparent)]
    Solver(#[from] evenkeel_solver::Error),
}

/// The name of a policy, planning for this split: `recourse` without a split takes it, all others are as they are.
pub fn for_split(name: &str, split: Method) -> String {
    match name.strip_prefix("recourse") {
        Some(options)
            if (options.is_empty() || options.starts_with(':'))
                && !options.split(':').any(|option| option.parse::<Method>().is_ok()) =>
        {
            format!("recourse:{split}{options}")
        }
        _ => name.to_owned(),
    }
}

/// Finds a policy by name.
///
/// `groups` is the number of expert groups of the model (EPLB's `num_groups`; 1 where routing knows no groups).
///
/// # Errors
/// When the name, or the topology named within it, is unknown or unusable.
pub fn policy(name: &str, groups: usize, cluster: &Cluster) -> Result<Box<dyn Policy>, PlaceError> {
    Ok(match name {
        "contiguous" => Box::new(Contiguous),
        "eplb" => Box::new(Eplb::new(groups, Ties::LowestExpert)),
        "eplb:trtllm" => Box::new(Eplb::new(groups, Ties::FewestCopies)),
        "lp-round" => Box::new(LpRound),
        "milp" => Box::new(Milp),
        "recourse" => Box::new(Recourse::default()),
        _ if name.starts_with("recourse:") => match Recourse::named(&name["recourse:".len()..]) {
            Some(policy) => Box::new(policy),
            None => return Err(PlaceError::UnknownPolicy(name.to_owned())),
        },
        _ => match name.strip_prefix("lplb:") {
            Some(topology) => Box::new(Lplb::new(Topology::named(topology, cluster.ranks())?, groups)),
            None => return Err(PlaceError::UnknownPolicy(name.to_owned())),
        },
    })
}
