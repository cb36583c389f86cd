//! Place and constrain: one layer of a [`PlanRequest`], from its history to a placement with its moves.
//!
//! In: the layer, its history, the cluster and a limit of moves. Out: [`PlacedLayer`]. Moves pay if the time
//! saved over the coming steps exceeds the time of the transfers. A layer whose moves do not pay makes only
//! the necessary ones.

use super::{LayerPlan, Plan, PlanRequest};
use crate::cluster::Cluster;
use crate::economics::{MoveEconomics, MoveJudge, MoveVerdict};
use crate::forecast::History;
use crate::place::{
    Constrained, ExpertMove, PlaceError, PlaceRequest, Placement, Policy, ReplannedPlacement, rank_origins,
};

/// Change of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct LayerChange {
    /// Transfers to execute, by rank.
    pub moves: Vec<ExpertMove>,
    /// Number of experts whose last replica was lost with its rank.
    pub unplaced: usize,
    /// Verdict on the moves, if they have to pay.
    pub verdict: Option<MoveVerdict>,
}

/// Placement of one layer, and its change.
#[derive(Debug, Clone)]
pub(super) struct PlacedLayer {
    pub(super) placement: Placement,
    pub(super) change: LayerChange,
}

impl From<ReplannedPlacement> for PlacedLayer {
    fn from(found: ReplannedPlacement) -> Self {
        let ReplannedPlacement { placement, moves, unplaced, .. } = found;
        Self { placement, change: LayerChange { moves, unplaced, verdict: None } }
    }
}

/// Stage that places single layers of a request.
pub(super) struct LayerStage<'a> {
    request: &'a PlanRequest<'a>,
    policy: &'a Constrained<&'a dyn Policy>,
    /// Previous rank of each rank of the cluster.
    origins: Vec<Option<usize>>,
}

impl<'a> LayerStage<'a> {
    pub(super) fn new(request: &'a PlanRequest<'a>, policy: &'a Constrained<&'a dyn Policy>) -> Self {
        let ranks = request.cluster.ranks();
        let before = request.previous.map_or(ranks, |previous| previous.cluster.ranks());
        let origins = rank_origins(before, &request.constraints.lost_ranks, ranks);
        Self { request, policy, origins }
    }

    /// Returns the name of the policy with its constraints.
    pub(super) fn name(&self) -> String {
        self.policy.name()
    }

    /// Returns the previous plan of a layer, by index into the trace.
    pub(super) fn previous_layer(&self, layer: usize) -> Option<&'a LayerPlan> {
        let id = self.request.trace.layers()[layer];
        self.request.previous?.layers.iter().find(|planned| planned.layer == id)
    }

    /// Places a layer of the trace on `cluster`, which may have other slots than that of the request.
    pub(super) fn place_layer(
        &self,
        layer: usize,
        history: &History<'_>,
        cluster: &Cluster,
        max_moves: Option<usize>,
    ) -> Result<PlacedLayer, PlaceError> {
        let request = PlaceRequest::new(history, cluster);
        let Some(before) = self.previous_layer(layer).map(|layer| &layer.placement) else {
            let placement = self.policy.place(&request)?.placement;
            return Ok(PlacedLayer { placement, change: LayerChange::default() });
        };
        let request = request.previous(before);
        match &self.request.constraints.economics {
            Some(economics) if max_moves != Some(0) => {
                self.place_if_it_pays(&request.max_moves(max_moves), economics)
            }
            _ => Ok(self.place_again(&request.max_moves(max_moves))?.into()),
        }
    }

    /// Returns the placement of a layer with the fewest moves that the constraints allow.
    pub(super) fn place_with_fewest_moves(
        &self,
        layer: usize,
        history: &History<'_>,
        cluster: &Cluster,
    ) -> Result<PlacedLayer, PlaceError> {
        match self.previous_layer(layer) {
            None => self.place_layer(layer, history, cluster, None),
            Some(before) => {
                let request = PlaceRequest::new(history, cluster).previous(&before.placement);
                Ok(self.place_with_necessary_moves(&request)?.into())
            }
        }
    }

    /// Returns the moves that lead to a placement of a layer. They are none for a new layer.
    pub(super) fn moves_to(&self, layer: usize, placement: &Placement) -> Vec<ExpertMove> {
        let before = self.previous_layer(layer);
        before.map_or_else(Vec::new, |before| placement.moves_from_origins(&before.placement, &self.origins))
    }

    /// Places a layer again from the previous placement of the request.
    fn place_again(&self, request: &PlaceRequest<'_>) -> Result<ReplannedPlacement, PlaceError> {
        match request.previous {
            Some(_) if self.has_changed(request.cluster) => {
                self.policy.place_on_changed_ranks(&self.origins, request)
            }
            Some(before) => Ok(ReplannedPlacement::from_response(before, self.policy.place(request)?)),
            None => Ok(ReplannedPlacement::without_moves(self.policy.place(request)?.placement)),
        }
    }

    /// Places a layer again, and makes only the necessary moves if the others do not pay.
    fn place_if_it_pays(
        &self,
        request: &PlaceRequest<'_>,
        economics: &MoveEconomics,
    ) -> Result<PlacedLayer, PlaceError> {
        let least = self.place_with_necessary_moves(request)?;
        let speeds = &self.request.constraints.speeds;
        let judge = MoveJudge::new(economics, request.cluster, request.history.batches(), speeds);
        let chosen = judge.choose(&least, request.max_moves, |limit, price| {
            self.place_again(&request.max_moves(limit).move_price(price))
        })?;
        let mut kept: PlacedLayer =
            if chosen.verdict.accepted { chosen.replanned.into() } else { least.into() };
        kept.change.verdict = Some(chosen.verdict);
        Ok(kept)
    }

    /// Returns the previous placement if it holds all constraints. Otherwise returns one with few moves that
    /// holds them.
    fn place_with_necessary_moves(
        &self,
        request: &PlaceRequest<'_>,
    ) -> Result<ReplannedPlacement, PlaceError> {
        let mut limit = 0;
        loop {
            let unchanged = limit == 0
                && self.request.constraints.coverage.is_none()
                && !self.has_changed(request.cluster);
            if let (true, Some(before)) = (unchanged, request.previous) {
                return Ok(ReplannedPlacement::without_moves(before.clone()));
            }
            match self.place_again(&request.max_moves(limit)) {
                Err(PlaceError::TooFewMoves { needed, .. }) if needed > limit => limit = needed,
                found => return found,
            }
        }
    }

    /// Returns true if `cluster` has other ranks or slots than the previous plan.
    fn has_changed(&self, cluster: &Cluster) -> bool {
        let Some(Plan { cluster: before, .. }) = self.request.previous else { return false };
        let same = |(rank, origin): (usize, &Option<usize>)| {
            *origin == Some(rank) && cluster.slots_of(rank) == before.slots_of(rank)
        };
        before.ranks() != cluster.ranks()
            || before.slots_per_rank() != cluster.slots_per_rank()
            || !self.origins.iter().enumerate().all(same)
    }
}
