//! Request to a placement policy, and its response.

use super::refine::{RefineLimits, refine_placement};
use super::{PlaceError, Placement, relabel};
use crate::cluster::Cluster;
use crate::forecast::History;

/// Layer to place: its loads, its cluster, and the placement from which the policy starts.
///
/// ```
/// use evenkeel::cluster::Cluster;
/// use evenkeel::forecast::History;
/// use evenkeel::place::{self, PlaceRequest};
/// use evenkeel::trace::Trace;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let trace = Trace::from_loads(4, vec![0], vec!["0".into()], vec![30, 10, 10, 10])?;
/// let cluster = Cluster::new(2, 1, 4, 2)?;
/// let history = History::from_trace(&trace, 0);
/// let policy = place::policy("eplb", 1, &cluster)?;
/// let first = policy.place(&PlaceRequest::new(&history, &cluster))?.placement;
/// let next = policy.place(&PlaceRequest::new(&history, &cluster).previous(&first).max_moves(1))?;
/// assert_eq!(next.placement.moves_from(&first), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PlaceRequest<'a> {
    /// Loads of the layer.
    pub history: &'a History<'a>,
    /// Cluster that holds the replicas.
    pub cluster: &'a Cluster,
    /// Placement that runs now, on the ranks and slots of the cluster. `None` places from scratch.
    pub previous: Option<&'a Placement>,
    /// Highest number of moves from `previous` ([`Placement::moves_from`]).
    pub max_moves: Option<usize>,
    /// Price of a move from `previous`: the fall of the mean imbalance of the coming batches that a move has
    /// to reach. It is the cost of a transfer over the batches that the plan will serve, in perfectly
    /// balanced batches. A policy may ignore it.
    pub move_price: Option<f64>,
}

impl<'a> PlaceRequest<'a> {
    /// Creates a request to place from scratch.
    pub fn new(history: &'a History<'a>, cluster: &'a Cluster) -> Self {
        Self { history, cluster, previous: None, max_moves: None, move_price: None }
    }

    /// Sets the placement that runs now.
    #[must_use]
    pub fn previous(self, previous: impl Into<Option<&'a Placement>>) -> Self {
        Self { previous: previous.into(), ..self }
    }

    /// Sets the highest number of moves.
    #[must_use]
    pub fn max_moves(self, max_moves: impl Into<Option<usize>>) -> Self {
        Self { max_moves: max_moves.into(), ..self }
    }

    /// Sets the price of a move.
    #[must_use]
    pub fn move_price(self, price: f64) -> Self {
        Self { move_price: Some(price), ..self }
    }

    /// Returns the response of a policy that plans from scratch.
    ///
    /// Ranks and slots of `fresh` are renamed so that most experts stay in place. If it exceeds the limit of
    /// moves, single changes of the previous placement lead towards it. Each change is the one that lowers
    /// the exact mean peak of the latest batches most. The changes stop when none does.
    ///
    /// # Errors
    /// Fails if the solver refuses the loads.
    pub fn respond_with(&self, fresh: Placement) -> Result<PlaceResponse, PlaceError> {
        let Some(previous) = self.previous else { return Ok(PlaceResponse::new(fresh)) };
        let new = relabel(previous, &fresh, self.cluster)?;
        let placement = match self.max_moves {
            Some(max_moves) if new.moves_from(previous) > max_moves => {
                let how = RefineLimits { towards: Some(&new), ..RefineLimits::of_moves(max_moves) };
                refine_placement(previous, self.history, self.cluster, &how)?
            }
            _ => new,
        };
        Ok(PlaceResponse::new(placement))
    }
}

/// Placement of a layer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PlaceResponse {
    /// Placement found.
    pub placement: Placement,
    /// Expected fall of the mean imbalance of the coming batches. `None` if the policy does not support
    /// prices, or if the request has none.
    pub expected_gain: Option<f64>,
}

impl PlaceResponse {
    /// Creates a response without an expected gain.
    pub fn new(placement: Placement) -> Self {
        Self { placement, expected_gain: None }
    }
}
