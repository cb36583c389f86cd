//! Planning with a past: what is in force stays where that is good enough.
//!
//! In: a trace, a policy, the previous plan, ranks that were lost, limits. Out: the plan and, layer by layer, its moves and
//! why they are made. Moving pays where the time saved over the steps to come exceeds the time that the copies take; a
//! layer where it does not keeps its placement.

use super::{Made, Origin, Plan};
use crate::cluster::Cluster;
use crate::forecast::History;
use crate::place::{Move, PlaceError, Placement, Policy, recover};
use crate::simulate::{Progress, SimulateError};
use crate::split::{Horizon, Verdict};
use crate::trace::Trace;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// Where planning comes from.
#[derive(Debug, Clone, Copy)]
pub struct Past<'a> {
    /// The plan in force.
    pub previous: &'a Plan,
    /// Ranks of it that are gone.
    pub lost: &'a [usize],
    /// Most moves per layer.
    pub max_moves: Option<usize>,
    /// Where moves have to pay.
    pub horizon: Option<Horizon>,
}

/// What changes in one layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changed {
    /// The copies to make, by rank.
    pub moves: Vec<Move>,
    /// Experts whose last copy was lost with its rank.
    pub homeless: usize,
    /// Whether moving pays, where that was asked.
    pub verdict: Option<Verdict>,
}

impl Plan {
    /// Places every layer that routed tokens, coming from a previous plan, as [`Plan::make`] does without one. `cluster` is
    /// the previous plan's, or what the loss left of it ([`crate::place::without_ranks`]).
    ///
    /// After a loss the ranks that are left keep what they have ([`recover`]); otherwise the policy plans again
    /// ([`Policy::replan`]), and where a horizon is given a layer moves only if that pays. A layer that the previous plan
    /// does not have is placed from scratch, and all its copies are moves. Returns one entry per planned layer.
    ///
    /// # Errors
    /// As [`Plan::make`], and as [`recover`].
    pub fn make_after(
        trace: &Trace,
        cluster: &Cluster,
        policy: &dyn Policy,
        past: &Past<'_>,
        origin: Origin,
        progress: &dyn Progress,
    ) -> Result<(Made, Vec<Changed>), SimulateError> {
        let changes: Mutex<BTreeMap<usize, Changed>> = Mutex::new(BTreeMap::new());
        let made = Self::make_by(trace, cluster, &policy.name(), origin, progress, |layer, history| {
            let id = trace.layers()[layer];
            let before = past.previous.layers.iter().find(|planned| planned.layer == id);
            let (placement, changed) = match before {
                None => (policy.place(history, cluster)?, Changed::default()),
                Some(before) => one_layer(&before.placement, cluster, policy, past, history)?,
            };
            // The lock is never held by a thread that can panic.
            changes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(layer, changed);
            Ok(placement)
        })?;
        let changes = changes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok((made, changes.into_values().collect()))
    }
}

fn one_layer(
    before: &Placement,
    cluster: &Cluster,
    policy: &dyn Policy,
    past: &Past<'_>,
    history: &History<'_>,
) -> Result<(Placement, Changed), PlaceError> {
    if !past.lost.is_empty() {
        let found = recover(before, past.lost, history, cluster, past.max_moves)?;
        let changed = Changed { moves: found.moves, homeless: found.homeless, verdict: None };
        return Ok((found.placement, changed));
    }
    let after = policy.replan(history, cluster, before, past.max_moves)?;
    let moves = after.moves(before);
    let Some(horizon) = past.horizon else {
        return Ok((after, Changed { moves, ..Changed::default() }));
    };
    let verdict = horizon.judge(before, &after, history)?;
    let (placement, moves) = if verdict.made { (after, moves) } else { (before.clone(), vec![]) };
    Ok((placement, Changed { moves, homeless: 0, verdict: Some(verdict) }))
}
