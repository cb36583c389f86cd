//! Re-planning from a previous plan, which stays where it is good enough.
//!
//! In: a trace, a policy, the previous plan, lost ranks, limits. Out: the plan and, for each layer, its moves
//! with their verdict. Moves pay if the time saved over the coming steps exceeds the time of the transfers. A
//! layer whose moves do not pay keeps its placement.

use super::{BatchProvenance, Plan, PlanReport};
use crate::cluster::Cluster;
use crate::evaluate::{EvaluateError, Progress};
use crate::forecast::History;
use crate::place::{ExpertMove, PlaceError, Placement, Policy, recover_placement};
use crate::split::{Horizon, MoveVerdict};
use crate::trace::Trace;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Start of a re-planning, and its limits.
#[derive(Debug, Clone, Copy)]
pub struct ReplanRequest<'a> {
    /// Current plan.
    pub previous: &'a Plan,
    /// Lost ranks of the current plan.
    pub lost: &'a [usize],
    /// Highest number of moves per layer.
    pub max_moves: Option<usize>,
    /// Horizon over which moves have to pay. `None` accepts all moves.
    pub horizon: Option<Horizon>,
}

/// Change of one layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayerChange {
    /// Transfers to execute, by rank.
    pub moves: Vec<ExpertMove>,
    /// Number of experts whose last replica was lost with its rank.
    pub unplaced: usize,
    /// Verdict on the moves, if a horizon was set.
    pub verdict: Option<MoveVerdict>,
}

impl Plan {
    /// Places every layer that routed tokens, starting from a previous plan. `cluster` is that of the
    /// previous plan, or its rest after a loss ([`crate::place::without_ranks`]). [`Plan::build`] plans
    /// without a previous plan.
    ///
    /// After a loss the remaining ranks keep their experts ([`recover_placement`]). Otherwise the policy
    /// plans again ([`Policy::replan`]). With a horizon, a layer moves only if that pays. A layer that the
    /// previous plan lacks is placed from scratch, and lists no moves. Returns one entry per planned layer.
    ///
    /// # Errors
    /// Fails as [`Plan::build`] and [`recover_placement`] do.
    pub fn replan(
        trace: &Trace,
        cluster: &Cluster,
        policy: &dyn Policy,
        past: &ReplanRequest<'_>,
        origin: BatchProvenance,
        progress: &dyn Progress,
    ) -> Result<(PlanReport, Vec<LayerChange>), EvaluateError> {
        let changes: Mutex<BTreeMap<usize, LayerChange>> = Mutex::new(BTreeMap::new());
        let made = Self::build_with(trace, cluster, &policy.name(), origin, progress, |layer, history| {
            let id = trace.layers()[layer];
            let before = past.previous.layers.iter().find(|planned| planned.layer == id);
            let (placement, changed) = match before {
                None => (policy.place(history, cluster)?, LayerChange::default()),
                Some(before) => replan_layer(&before.placement, cluster, policy, past, history)?,
            };
            // No thread can panic while it holds the lock.
            changes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(layer, changed);
            Ok(placement)
        })?;
        let changes = changes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok((made, changes.into_values().collect()))
    }
}

fn replan_layer(
    before: &Placement,
    cluster: &Cluster,
    policy: &dyn Policy,
    past: &ReplanRequest<'_>,
    history: &History<'_>,
) -> Result<(Placement, LayerChange), PlaceError> {
    if !past.lost.is_empty() {
        let found = recover_placement(before, past.lost, history, cluster, past.max_moves)?;
        let changed = LayerChange { moves: found.moves, unplaced: found.unplaced, verdict: None };
        return Ok((found.placement, changed));
    }
    let after = policy.replan(history, cluster, before, past.max_moves)?;
    let moves = after.moves(before);
    let Some(horizon) = past.horizon else {
        return Ok((after, LayerChange { moves, ..LayerChange::default() }));
    };
    let verdict = horizon.judge_moves(before, &after, history)?;
    let (placement, moves) = if verdict.accepted { (after, moves) } else { (before.clone(), vec![]) };
    Ok((placement, LayerChange { moves, unplaced: 0, verdict: Some(verdict) }))
}
