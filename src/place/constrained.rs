//! Placement under the constraints of one layer: unequal ranks, and the loss of any one rank.
//!
//! In: a policy, the speed of each rank, and the experts that have to survive a loss. Out: the policy whose
//! placements hold these constraints, also within a limit of moves. The stages follow each other: the policy
//! places for equal ranks, [`heterogeneous`](super::heterogeneous) refines for their speeds, and
//! [`fault_tolerance`](super::fault_tolerance) adds missing second replicas.

use super::evaluate::PeakEvaluator;
use super::fault_tolerance::{Coverage, Covering};
use super::heterogeneous::place_for_speeds;
use super::refine::{MAX_JUDGED_BATCHES, RefineLimits, refine_on_batches};
use super::relabel::relabel_equals;
use super::{PlaceError, PlaceRequest, PlaceResponse, Placement, Policy};
use crate::forecast::History;

/// Policy whose placements hold constraints.
#[derive(Debug)]
pub struct Constrained<P> {
    policy: P,
    pub(super) speeds: Vec<u32>,
    pub(super) coverage: Option<Coverage>,
}

impl<P: Policy> Constrained<P> {
    /// Wraps a policy without a constraint.
    pub fn new(policy: P) -> Self {
        Self { policy, speeds: vec![], coverage: None }
    }

    /// Sets the speed of each rank, `[R]`, at least 1 each. A rank of speed 2 serves twice the tokens of a
    /// rank of speed 1. No speeds mean equal ranks.
    #[must_use]
    pub fn speeds(self, speeds: Vec<u32>) -> Self {
        Self { speeds, ..self }
    }

    /// Sets the experts that have to survive the loss of any one rank.
    #[must_use]
    pub fn coverage(self, coverage: impl Into<Option<Coverage>>) -> Self {
        Self { coverage: coverage.into(), ..self }
    }

    /// Checks the constraints against the cluster of the request.
    pub(super) fn check_request(&self, request: &PlaceRequest<'_>) -> Result<(), PlaceError> {
        if let Some(coverage) = self.coverage {
            coverage.check_room(request.history.experts(), request.cluster)?;
        }
        let ranks = request.cluster.ranks();
        let fits = self.speeds.is_empty() || self.speeds.len() == ranks && !self.speeds.contains(&0);
        if fits {
            return Ok(());
        }
        let given = self.speeds.len();
        let reason =
            format!("{given} speeds for {ranks} ranks: expected one whole number from 1 for each rank");
        Err(PlaceError::Shape { policy: self.name(), reason })
    }

    /// Returns the latest batches, judged at the speeds.
    pub(super) fn peak_evaluator<'a>(&self, history: &History<'a>) -> PeakEvaluator<'a> {
        PeakEvaluator::from_history(history, MAX_JUDGED_BATCHES).with_speeds(&self.speeds)
    }

    /// Places from scratch under the constraints.
    fn place_from_scratch(
        &self,
        request: &PlaceRequest<'_>,
        scenarios: &mut PeakEvaluator<'_>,
    ) -> Result<Placement, PlaceError> {
        let fresh = PlaceRequest::new(request.history, request.cluster);
        let mut placement = self.policy.place(&fresh)?.placement;
        if !self.speeds.is_empty() {
            placement = place_for_speeds(&placement, &fresh, &self.speeds, scenarios)?;
        }
        match self.coverage {
            None => Ok(placement),
            Some(_) => Ok(Covering::of_request(&fresh).cover(&placement, scenarios)?),
        }
    }
}

impl<P: Policy> Policy for Constrained<P> {
    fn name(&self) -> String {
        let speeds = if self.speeds.is_empty() { "" } else { ", for speeds" };
        let coverage = match self.coverage {
            None => "",
            Some(Coverage::All) => ", secure 1",
            Some(Coverage::Heaviest) => ", secure best",
        };
        format!("{}{speeds}{coverage}", self.policy.name())
    }

    fn place(&self, request: &PlaceRequest<'_>) -> Result<PlaceResponse, PlaceError> {
        self.check_request(request)?;
        if self.speeds.is_empty() && self.coverage.is_none() {
            return self.policy.place(request);
        }
        let mut scenarios = self.peak_evaluator(request.history);
        let fresh = self.place_from_scratch(request, &mut scenarios)?;
        let Some(previous) = request.previous else { return Ok(PlaceResponse::new(fresh)) };
        let equal = |old: usize, new: usize| self.speeds.is_empty() || self.speeds[old] == self.speeds[new];
        let new = relabel_equals(previous, &fresh, request.cluster, equal)?;
        let max_moves = match request.max_moves {
            Some(max_moves) if new.moves_from(previous) > max_moves => max_moves,
            _ => return Ok(PlaceResponse::new(new)),
        };
        // Missing second replicas come first. The other moves lead towards the new placement.
        let mut covering = Covering::of_request(request);
        let start = match self.coverage {
            None => previous.clone(),
            Some(coverage) => covering.cover_within_moves(previous, coverage, max_moves)?,
        };
        let how = RefineLimits {
            towards: Some(&new),
            needs: covering.needs(),
            counted_from: Some(previous),
            ..RefineLimits::of_moves(max_moves)
        };
        let refined = refine_on_batches(&start, &mut scenarios, request.cluster, &how)?;
        Ok(PlaceResponse::new(refined))
    }
}
