//! Whether to plan again, and what it would gain.
//!
//! In: a [`Lane`] and why a decision is due. Out: a [`Proposal`], which says what it would change, what that would gain and
//! why it should or should not be done. The policy plans every busy layer again from what is in force, on as many of the
//! past steps as would have foreseen the latest best, with room for few moves and for many; what it proposes is compared with
//! what is in force by exact splits of the latest of those steps ([`super::tried`]); what pays is done ([`super::weigh`]).

use super::lane::{Lane, LaneError};
use super::record::{Decision, Imbalances, MoveRecord, Outcome, Trigger};
use super::tried::Tried;
use crate::cluster::Cluster;
use crate::place::{Placement, Policy, Recourse, without_ranks};
use crate::split::Method;
use crate::trace::Trace;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use utoipa::ToSchema;

/// What to expect of a layer, from the latest steps; means over its batches.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Figures {
    /// Peak over mean with what is in force.
    pub(super) before: f64,
    /// Peak over mean with what is proposed.
    pub(super) after: f64,
    /// Least possible.
    pub(super) bound: f64,
    /// Batches behind them.
    pub(super) batches: usize,
}

/// A plan that was considered, next to what is in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Next {
    /// The decision that considered it.
    pub decision: u64,
    /// What came of it.
    pub outcome: Outcome,
    /// Mean peak over mean of all layers.
    pub imbalance: Imbalances,
    /// The moves it takes.
    pub moves: Vec<MoveRecord>,
    /// Layer by layer.
    pub layers: Vec<NextLayer>,
}

/// One layer of a plan that was considered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NextLayer {
    /// Real layer id.
    pub layer: u32,
    /// Peak over mean of the latest steps with what was in force.
    pub before: f64,
    /// With what was considered.
    pub after: f64,
    /// Least possible.
    pub bound: f64,
    /// Moves in this layer.
    pub moves: usize,
    /// Load of each rank over the mean, before, mean of the latest steps, `[R]`.
    pub ranks_before: Vec<f32>,
    /// After, `[R]`.
    pub ranks_after: Vec<f32>,
}

/// What to do, ready to be applied.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// The record of it.
    pub decision: Decision,
    /// Does it change the plan?
    pub acts: bool,
    /// Was it only asked for, so that it leaves no trace?
    pub asked_only: bool,
    pub(super) cluster: Cluster,
    pub(super) down: BTreeSet<usize>,
    pub(super) placements: Vec<Placement>,
    pub(super) planned: Vec<bool>,
    pub(super) figures: Vec<Figures>,
    pub(super) expected: f64,
    pub(super) next: Option<Next>,
}

/// What is asked of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A decision is due, or somebody wants one.
    Replan {
        /// Why.
        trigger: Trigger,
        /// Only show what it would gain.
        dry_run: bool,
    },
    /// A rank is gone.
    Down(usize),
    /// A rank is back.
    Up(usize),
}

impl Lane {
    /// Works out what follows from a request, without changing anything. `None` where `abort` was raised meanwhile.
    ///
    /// # Errors
    /// When the policy fails, a rank is unknown, or too few ranks are left.
    pub fn propose(&self, ask: &Ask, abort: &AtomicBool) -> Result<Option<Proposal>, LaneError> {
        let begun = Instant::now();
        let (trigger, dry_run) = match ask {
            Ask::Replan { trigger, dry_run } => (*trigger, *dry_run || self.options.dry_run),
            Ask::Down(_) => (Trigger::RankDown, false),
            Ask::Up(_) => (Trigger::RankUp, false),
        };
        let (cluster, down) = self.target(ask)?;
        let trace = self.trace()?;
        let policy: Box<dyn Policy> = match self.options.policy(self.shape.groups, &cluster) {
            // Going on without a rank asks no policy, and must not fail for a topology that does not fit what is left.
            Err(_) if matches!(ask, Ask::Down(_)) => Box::new(Recourse::default().for_split(Method::Exact)),
            policy => policy?,
        };
        let tried: Vec<Option<Tried>> = (0..self.layers.len())
            .into_par_iter()
            .map(|layer| {
                if abort.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let failed = |source| LaneError::Place { layer: self.layers[layer], source };
                self.try_layer(ask, &trace, layer, &cluster, policy.as_ref()).map_err(failed)
            })
            .collect::<Result<_, LaneError>>()?;
        if abort.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut proposal = self.weigh(trigger, dry_run, (cluster, down), tried);
        proposal.asked_only = matches!(ask, Ask::Replan { trigger: Trigger::Asked, dry_run: true });
        proposal.decision.took_ms = begun.elapsed().as_secs_f64() * 1e3;
        Ok(Some(proposal))
    }

    /// The group that is planned for.
    fn target(&self, ask: &Ask) -> Result<(Cluster, BTreeSet<usize>), LaneError> {
        let mut down = self.down.clone();
        let (rank, known) = match ask {
            Ask::Replan { .. } => return Ok((self.cluster, down)),
            Ask::Down(rank) => (*rank, down.insert(*rank)),
            Ask::Up(rank) => (*rank, down.remove(rank)),
        };
        if rank >= self.base.ranks() {
            let last = self.base.ranks() - 1;
            return Err(LaneError::Asked(format!("rank {rank}: expected 0 to {last}")));
        }
        if !known {
            let is = if matches!(ask, Ask::Down(_)) { "down" } else { "up" };
            return Err(LaneError::Asked(format!("rank {rank} is {is} already")));
        }
        let lost: Vec<usize> = down.iter().copied().collect();
        let cluster =
            if lost.is_empty() { self.base } else { without_ranks(&self.base, self.experts, &lost)? };
        Ok((cluster, down))
    }

    /// The window as a trace.
    fn trace(&self) -> Result<Trace, LaneError> {
        let labels = self.window.iter().map(|seen| seen.id.to_string()).collect();
        let loads = self.window.iter().flat_map(|seen| seen.counts.iter().map(|&count| u64::from(count)));
        Ok(Trace::from_loads(self.experts, self.layers.clone(), labels, loads.collect())?)
    }
}
