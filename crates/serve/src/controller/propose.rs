//! The decision whether to re-plan, and the gain that it expects.
//!
//! Input is a [`PhaseState`] and the trigger of the decision. Output is a [`Proposal`] with the changes,
//! their gain, and the reason for or against them.
//!
//! The policy re-plans every busy layer from the current placement. It uses the window length that best
//! predicted the latest steps. [`super::candidate`] compares the result with the current placement by exact
//! splits of the latest steps. [`super::select`] selects the moves that pay for themselves.

use super::calibration::GainLedger;
use super::candidate::{LayerCandidate, LayerPlanner};
use super::state::{PhaseError, PhaseState};
use crate::wire::decision::{Decision, GainEstimate, Trigger};
use crate::wire::status::PlanPreview;
use evenkeel::cluster::Cluster;
use evenkeel::place::{Placement, Policy, Recourse, without_ranks};
use evenkeel::split::SplitMethod;
use evenkeel::trace::Trace;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// The expected figures of a layer: means over its latest batches.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct LayerEstimate {
    /// The imbalance on the current placement.
    pub(super) before: f64,
    /// The imbalance on the proposed placement.
    pub(super) after: f64,
    /// The bound.
    pub(super) bound: f64,
    /// The number of batches behind these means.
    pub(super) batches: usize,
}

/// The computed result of a request, ready to be applied.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// The record of the decision.
    pub decision: Decision,
    /// Flag that is set if the proposal changes the plan.
    pub changes_plan: bool,
    /// Flag that is set if a client asked for a dry run, which is not recorded.
    pub preview: bool,
    pub(super) cluster: Cluster,
    pub(super) down: BTreeSet<usize>,
    pub(crate) placements: Vec<Placement>,
    pub(super) planned: Vec<bool>,
    pub(super) estimates: Vec<LayerEstimate>,
    pub(super) expected: f64,
    /// The number of experts that the busiest receiver gets.
    pub(super) busiest_transfers: u64,
    pub(super) plan_preview: Option<PlanPreview>,
    /// The expected gains of earlier decisions, of this one, and the gains that followed.
    pub(super) gains: GainLedger,
}

impl Proposal {
    /// Returns the decision and the plan that was considered.
    pub(crate) fn into_preview(self) -> (Decision, Option<PlanPreview>) {
        (self.decision, self.plan_preview)
    }
}

/// A request to a phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PhaseCommand {
    /// A re-planning, because a decision is due or a client asked for one.
    Replan {
        /// The trigger.
        trigger: Trigger,
        /// Flag that is set if the gain is only to be shown.
        dry_run: bool,
    },
    /// A rank is down.
    Down(usize),
    /// A rank is up again.
    Up(usize),
}

/// The request of a decision, and the basis on which its candidates are selected.
#[derive(Debug)]
pub(super) struct SelectionBasis {
    pub(super) trigger: Trigger,
    pub(super) dry_run: bool,
    pub(super) cluster: Cluster,
    pub(super) down: BTreeSet<usize>,
    pub(super) gains: GainLedger,
    pub(super) calibration: GainEstimate,
    /// The number of steps of uncalibrated gains that are worth as much as the horizon.
    pub(super) horizon: u64,
    /// The number of steps since a break that has just been noticed.
    pub(super) since_break: Option<u64>,
}

/// Returns the number of steps whose uncalibrated gains are worth as much as the calibrated gains of the
/// horizon.
fn calibrated_horizon(horizon: u64, calibration: &GainEstimate) -> u64 {
    ((horizon as f64 * calibration.ratio) as u64).max(1)
}

impl PhaseCommand {
    /// Returns whether a rank goes down or comes up.
    pub(super) fn is_rank_change(&self) -> bool {
        !matches!(self, PhaseCommand::Replan { .. })
    }
}

impl PhaseState {
    /// Computes the result of a request without changing the state. Returns `None` if `abort` was set
    /// meanwhile.
    ///
    /// # Errors
    /// Fails if the policy fails, if the rank is unknown, or if too few ranks are left.
    pub fn propose(
        &self,
        command: &PhaseCommand,
        abort: &AtomicBool,
    ) -> Result<Option<Proposal>, PhaseError> {
        let begun = Instant::now();
        let (trigger, dry_run) = match command {
            PhaseCommand::Replan { trigger, dry_run } => (*trigger, *dry_run || self.options.dry_run),
            PhaseCommand::Down(_) => (Trigger::RankDown, false),
            PhaseCommand::Up(_) => (Trigger::RankUp, false),
        };
        let (cluster, down) = self.target_cluster(command)?;
        let trace = self.window_trace()?;
        let policy: Box<dyn Policy> = match self.options.build_policy(self.shape.groups, &cluster) {
            // The loss of a rank needs no policy. It must not fail because a topology does not fit the
            // remaining ranks.
            Err(_) if matches!(command, PhaseCommand::Down(_)) => {
                Box::new(Recourse::default().for_split(SplitMethod::Exact))
            }
            policy => policy?,
        };
        // The loss of a rank does not wait for a measurement.
        let (gains, calibration) = if command.is_rank_change() {
            (self.core.gains.clone(), GainEstimate::default())
        } else {
            self.calibrate_gains(trigger == Trigger::Drift)?
        };
        let planner = LayerPlanner {
            command,
            trace: &trace,
            cluster: &cluster,
            policy: policy.as_ref(),
            horizon: calibrated_horizon(self.expected_horizon(), &calibration),
            since_break: self.steps_since_break(trigger),
        };
        let candidates: Vec<Option<LayerCandidate>> = (0..self.core.layers.len())
            .into_par_iter()
            .map(|layer| {
                if abort.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                let failed = |source| PhaseError::Place { layer: self.core.layers[layer], source };
                self.plan_layer(&planner, layer).map_err(failed)
            })
            .collect::<Result<_, PhaseError>>()?;
        if abort.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let LayerPlanner { horizon, since_break, .. } = planner;
        let basis =
            SelectionBasis { trigger, dry_run, cluster, down, gains, calibration, horizon, since_break };
        let mut proposal = self.select_moves(basis, candidates);
        proposal.preview =
            matches!(command, PhaseCommand::Replan { trigger: Trigger::Manual, dry_run: true });
        proposal.decision.duration_ms = begun.elapsed().as_secs_f64() * 1e3;
        Ok(Some(proposal))
    }

    /// Returns the cluster after the request, and the ranks that are down in it.
    fn target_cluster(&self, command: &PhaseCommand) -> Result<(Cluster, BTreeSet<usize>), PhaseError> {
        let mut down = self.core.down.clone();
        let (rank, known) = match command {
            PhaseCommand::Replan { .. } => return Ok((self.cluster, down)),
            PhaseCommand::Down(rank) => (*rank, down.insert(*rank)),
            PhaseCommand::Up(rank) => (*rank, down.remove(rank)),
        };
        if rank >= self.base.ranks() {
            let last = self.base.ranks() - 1;
            return Err(PhaseError::Invalid(format!("rank {rank}: expected 0 to {last}")));
        }
        if !known {
            let is = if matches!(command, PhaseCommand::Down(_)) { "down" } else { "up" };
            return Err(PhaseError::Invalid(format!("rank {rank} is already {is}")));
        }
        let lost: Vec<usize> = down.iter().copied().collect();
        let cluster =
            if lost.is_empty() { self.base } else { without_ranks(&self.base, self.core.experts, &lost)? };
        Ok((cluster, down))
    }

    /// Returns the window as a trace.
    fn window_trace(&self) -> Result<Trace, PhaseError> {
        let labels = self.window.iter().map(|seen| seen.step.id.to_string()).collect();
        let loads =
            self.window.iter().flat_map(|seen| seen.step.counts.iter().map(|&count| u64::from(count)));
        Ok(Trace::from_loads(self.core.experts, self.core.layers.clone(), labels, loads.collect())?)
    }
}
