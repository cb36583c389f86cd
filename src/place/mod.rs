//! The slow loop: which experts get copies, and where all copies live.
//!
//! In: a layer's [`History`] and a [`Cluster`]. Out: a [`Placement`]. Each way of placing is one file behind the
//! trait [`Policy`]; [`policy`] finds it by the name used on the command line.

mod contiguous;
mod eplb;
mod lplb;
mod placement;
mod recourse;
mod topology;

pub use contiguous::Contiguous;
pub use eplb::{Eplb, Ties};
pub use lplb::Lplb;
pub use placement::{Placement, PlacementError};
pub use recourse::{Objective, Recourse};
pub use topology::{Connectivity, Topology, TopologyError};

use crate::cluster::Cluster;
use crate::forecast::History;
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
}

/// Why a policy could not place a layer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// No policy has this name.
    #[error("unknown policy `{0}`: expected recourse, contiguous, eplb, eplb:trtllm or lplb:TOPOLOGY")]
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
