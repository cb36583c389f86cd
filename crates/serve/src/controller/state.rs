//! One phase of one model: the steps so far, the current plan, and the decisions that follow from both.
//!
//! Input is a sequence of accepted steps and of requests (re-plan now, a rank is down). Output is the
//! imbalance of each step, and proposals ([`Proposal`]) that take effect when they are applied. A phase uses
//! no clock, thread or file. The same steps and requests in the same order give the same plans, whether live,
//! after a restart, or in a replay without a server.

use super::calibration::GainLedger;
use super::config::{ControllerConfig, ModelSpec, SpecError};
use super::history::DownsampledSeries;
use super::price::{CopyBudget, CopyLedger, CopyPrice};
use super::propose::{LayerEstimate, Proposal};
use super::rise_detector::RiseDetector;
use crate::Phase;
use crate::wire::decision::{Decision, DecisionOutcome, GainEstimate, HistoryPoint, Imbalances, Trigger};
use crate::wire::loads::StepLoads;
use crate::wire::status::PlanPreview;
use evenkeel::cluster::Cluster;
use evenkeel::export::MAX_PLAN_SLOTS;
use evenkeel::place::{Contiguous, PlaceError, Placement};
use evenkeel::split::{LayerSplitters, SplitError, SplitMethod};
use evenkeel::trace::TraceError;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use thiserror::Error;

/// The number of latest steps whose rank loads are kept for display.
pub(crate) const DISPLAYED_STEPS: usize = 16;

/// A posted step after its acceptance.
#[derive(Debug, Clone)]
pub struct AcceptedStep {
    /// The place of the step in the order of acceptance, from 1.
    pub accepted: u64,
    /// The step as it was posted.
    pub step: StepLoads,
}

/// The loads of one step under exact splits on the current plan.
#[derive(Debug, Clone, Default)]
pub struct StepOutcome {
    /// The peak of each layer in tokens, `[L]`.
    pub peaks: Vec<u64>,
    /// The tokens of each layer, `[L]`.
    pub totals: Vec<u64>,
    /// The tokens of each rank of each layer, `[L][R]`.
    pub rank_loads: Vec<u64>,
}

impl StepOutcome {
    /// Returns the mean imbalance of the busy layers, the imbalance of the worst layer, and the mean bound.
    /// The bound of a layer is that of whole tokens spread evenly over the ranks.
    pub fn imbalance(&self, ranks: usize) -> (f64, f64, f64) {
        let (mut sum, mut max, mut bound, mut busy) = (0.0, 0.0f64, 0.0, 0usize);
        for (&peak, &total) in self.peaks.iter().zip(&self.totals).filter(|&(_, &total)| total > 0) {
            let mean = total as f64 / ranks as f64;
            sum += peak as f64 / mean;
            max = max.max(peak as f64 / mean);
            bound += total.div_ceil(ranks as u64) as f64 / mean;
            busy += 1;
        }
        let busy = busy.max(1) as f64;
        (sum / busy, max, bound / busy)
    }
}

/// Error of an operation on a phase.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PhaseError {
    /// The shape or the options do not fit.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The policy failed.
    #[error("layer {layer}: {source}")]
    Place {
        /// The real layer id.
        layer: u32,
        /// The cause.
        source: PlaceError,
    },
    /// A batch could not be split.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The window is no valid trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A placement could not be computed.
    #[error(transparent)]
    Policy(#[from] PlaceError),
    /// The request is invalid in the current state.
    #[error("{0}")]
    Invalid(String),
}

/// One phase of one model.
#[derive(Debug)]
pub struct PhaseState {
    pub(super) shape: ModelSpec,
    pub(super) options: ControllerConfig,
    pub(super) phase: Phase,
    /// The cluster of all ranks.
    pub(super) base: Cluster,
    /// The cluster of the ranks that are up.
    pub(super) cluster: Cluster,
    /// The stored part, without the placements.
    pub(super) core: PhaseCore,
    /// The current placements, `[L]`. They are contiguous until there is a plan.
    pub(super) placements: Vec<Placement>,
    pub(super) splitters: LayerSplitters,
    /// Places, in the order of acceptance, of the steps without tokens since the state was last saved.
    pub(super) idle: Vec<u64>,
    /// The latest steps with tokens, for planning.
    pub(super) window: VecDeque<AcceptedStep>,
    /// The latest steps as the current plan serves them.
    pub(super) recent: VecDeque<StepOutcome>,
    /// The cost of transfers, and the share of the time that they may take.
    pub(super) copy_budget: CopyBudget,
    loads: Vec<u64>,
}

/// The stored part of a phase's state. Everything else follows from it, from the placements and from the
/// stored steps.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct PhaseCore {
    /// Real layer ids, `[L]`.
    pub(crate) layers: Vec<u32>,
    pub(crate) experts: usize,
    pub(crate) accepted: u64,
    pub(super) last_step: Option<u64>,
    /// Accepted steps with tokens. Intervals are counted in these.
    pub(super) live: u64,
    pub(super) down: BTreeSet<usize>,
    /// Flags of the layers that have been planned, `[L]`.
    pub(super) planned: Vec<bool>,
    /// The expected figures of each layer, `[L]`.
    pub(super) estimates: Vec<LayerEstimate>,
    /// The version of the current plan. Plans of a phase are numbered from 1; 0 means that there is none yet.
    pub(super) version: u64,
    /// The number of steps accepted before the current plan was decided.
    pub(super) plan_accepted: u64,
    pub(super) plan_step: Option<u64>,
    /// The value of `live` at the last decision.
    pub(super) decided: u64,
    /// The imbalance that the last decision expected.
    pub(super) expected: f64,
    /// The number of decisions so far.
    pub(super) decisions: u64,
    pub(super) points: DownsampledSeries,
    /// The plan that was last considered.
    pub(super) preview: Option<PlanPreview>,
    /// The time that transfers took, and the time that they may take now.
    pub(super) copies: CopyLedger,
    /// The expected gains of earlier decisions, and the gains that followed.
    #[serde(default)]
    pub(super) gains: GainLedger,
    /// The rises of the imbalance since the last decision.
    #[serde(default)]
    pub(super) rises: RiseDetector,
    /// The value of `live` before the last break.
    #[serde(default)]
    pub(super) broken_at: Option<u64>,
    /// The steps from the last decision to the next one, if the imbalance does not rise.
    #[serde(default)]
    pub(super) pause: u64,
    /// The most experts that a rank received in a decision soon after a break.
    #[serde(default)]
    pub(super) break_transfers: u64,
    /// The imbalance of each of the latest steps, as plans served it.
    #[serde(default)]
    pub(super) served: VecDeque<f64>,
    /// The number of breaks so far.
    #[serde(default)]
    pub(super) breaks: u64,
}

impl PhaseState {
    /// Returns a state without steps, whose placements hold the experts in order.
    ///
    /// # Errors
    /// Fails if the experts do not fit the shape, or if the policy is unknown.
    pub fn new(
        shape: ModelSpec,
        options: ControllerConfig,
        phase: Phase,
        layers: Vec<u32>,
        experts: usize,
    ) -> Result<Self, PhaseError> {
        let base = shape.cluster(experts)?;
        if layers.len() * base.slots() > MAX_PLAN_SLOTS {
            let all = layers.len() * base.slots();
            let reason =
                format!("{all} slots of {} layers together, expected at most {MAX_PLAN_SLOTS}", layers.len());
            return Err(SpecError::Value { key: "redundant", reason }.into());
        }
        let placement = Contiguous::placement(experts, &base)?;
        let placements = vec![placement; layers.len()];
        let price = CopyPrice::from_spec(&shape, layers.len(), experts)?;
        let copy_budget = CopyBudget::new(price, &options);
        let core = PhaseCore {
            planned: vec![false; layers.len()],
            estimates: vec![LayerEstimate::default(); layers.len()],
            layers,
            experts,
            ..PhaseCore::default()
        };
        Ok(Self {
            splitters: LayerSplitters::new(placements.iter().cloned(), SplitMethod::Exact)?,
            placements,
            copy_budget,
            shape,
            options,
            phase,
            base,
            cluster: base,
            core,
            idle: vec![],
            window: VecDeque::new(),
            recent: VecDeque::new(),
            loads: Vec::new(),
        })
    }

    /// Returns a state from which a proposal can be computed, without splitters and history.
    ///
    /// # Errors
    /// An empty set of splitters cannot fail, so no error occurs in practice.
    pub(crate) fn clone_for_planning(&self) -> Result<Self, PhaseError> {
        Ok(Self {
            splitters: LayerSplitters::new([], SplitMethod::Exact)?,
            shape: self.shape.clone(),
            options: self.options.clone(),
            core: PhaseCore { points: DownsampledSeries::default(), preview: None, ..self.core.clone() },
            idle: vec![],
            window: self.window.clone(),
            placements: self.placements.clone(),
            copy_budget: self.copy_budget.clone(),
            recent: self.recent.clone(),
            loads: vec![],
            ..*self
        })
    }

    /// Processes the next step. Returns the trigger if a decision is due now.
    ///
    /// A step without tokens counts as accepted, and its time passes. It has no imbalance, so it enters
    /// neither the history nor the window, and intervals do not count it.
    ///
    /// # Errors
    /// Fails if the batch cannot be split: its counts do not fit, or their sum overflows.
    pub fn apply_step(&mut self, seen: AcceptedStep, at: u64) -> Result<Option<Trigger>, PhaseError> {
        if seen.step.is_idle() {
            self.core.accepted = seen.accepted;
            self.core.last_step = Some(seen.step.id);
            self.copy_budget.accrue_step(&mut self.core.copies);
            self.idle.push(seen.accepted);
            return Ok(self.pending_trigger());
        }
        let served = self.evaluate(&seen.step.counts)?;
        let (mean, max, bound) = served.imbalance(self.cluster.ranks());
        self.core.accepted = seen.accepted;
        self.core.last_step = Some(seen.step.id);
        self.core.live += 1;
        if self.core.version > 0 {
            self.observe_imbalance(mean);
        }
        self.copy_budget.accrue_step(&mut self.core.copies);
        self.core.points.push(HistoryPoint {
            accepted: seen.accepted,
            step: seen.step.id,
            steps: 1,
            mean,
            max,
            bound,
            plan: self.core.version,
            timestamp_unix_s: at,
        });
        self.recent.push_back(served);
        while self.recent.len() > self.recent_capacity() {
            self.recent.pop_front();
        }
        self.window.push_back(seen);
        while self.window.len() > self.options.retained_steps() {
            self.window.pop_front();
        }
        Ok(self.pending_trigger())
    }

    /// Returns the number of latest steps whose loads under the current plan are kept.
    fn recent_capacity(&self) -> usize {
        DISPLAYED_STEPS.max(self.options.drift_steps())
    }

    fn evaluate(&mut self, counts: &[u32]) -> Result<StepOutcome, PhaseError> {
        self.loads.clear();
        self.loads.extend(counts.iter().map(|&count| u64::from(count)));
        let splits = self.splitters.split(&self.loads)?;
        let mut served = StepOutcome::default();
        for split in splits {
            served.peaks.push(split.peak());
            served.totals.push(split.rank_loads.iter().sum());
            served.rank_loads.extend_from_slice(&split.rank_loads);
        }
        Ok(served)
    }

    /// Applies a proposal. A proposal that does not act is only recorded.
    ///
    /// # Errors
    /// Fails if its placements cannot be split on. The state is then unchanged.
    pub fn apply_proposal(&mut self, proposal: &Proposal) -> Result<(), PhaseError> {
        // The latest steps are split on the new plan below, so the rise is read first.
        let broken_at = self.detect_break(proposal.decision.trigger);
        if proposal.changes_plan {
            let splitters = LayerSplitters::new(proposal.placements.iter().cloned(), SplitMethod::Exact)?;
            self.splitters = splitters;
            self.cluster = proposal.cluster;
            self.core.down.clone_from(&proposal.down);
            self.placements.clone_from(&proposal.placements);
            self.core.planned.clone_from(&proposal.planned);
            self.core.estimates.clone_from(&proposal.estimates);
            if proposal.decision.plan > self.core.version {
                self.core.version = proposal.decision.plan;
                self.core.plan_accepted = self.core.accepted;
                self.core.plan_step = self.core.last_step;
            }
            self.evaluate_recent()?;
        }
        if !proposal.preview {
            if proposal.changes_plan {
                self.copy_budget.charge_transfers(&mut self.core.copies, proposal.busiest_transfers);
            }
            self.core.breaks += u64::from(broken_at != self.core.broken_at);
            self.core.broken_at = broken_at;
            if self.steps_since_break(proposal.decision.trigger).is_some() {
                self.core.break_transfers = self.core.break_transfers.max(proposal.busiest_transfers);
            }
            self.core.pause = self.next_pause(&proposal.decision);
            self.core.gains.clone_from(&proposal.gains);
            self.core.expected = proposal.expected;
            self.record_noop(&proposal.decision);
        }
        self.core.preview.clone_from(&proposal.plan_preview);
        Ok(())
    }

    /// Records a decision that was due and not made. `at` is the clock, for display.
    pub(crate) fn skip_decision(
        &mut self,
        trigger: Trigger,
        outcome: DecisionOutcome,
        reason: String,
        at: u64,
    ) -> Decision {
        let decision = Decision { timestamp_unix_s: at, ..self.next_decision(trigger, outcome, reason) };
        self.core.expected = self.recent_imbalance();
        self.record_noop(&decision);
        decision
    }

    /// Returns the next decision, which changes nothing.
    pub(super) fn next_decision(
        &self,
        trigger: Trigger,
        outcome: DecisionOutcome,
        reason: String,
    ) -> Decision {
        Decision {
            number: self.core.decisions + 1,
            phase: self.phase,
            step: self.core.last_step,
            accepted: self.core.accepted,
            trigger,
            outcome,
            reason,
            plan: self.core.version,
            judged_steps: 0,
            imbalance: Imbalances::default(),
            moves: 0,
            layers: 0,
            rejected_moves: 0,
            bytes: None,
            busiest_bytes: None,
            gain_ms: 0.0,
            calibration: GainEstimate::default(),
            cost_ms: 0.0,
            copy_ms: 0.0,
            duration_ms: 0.0,
            timestamp_unix_s: 0,
        }
    }

    /// Shows a plan that a dry run considered, unless a decision was made meanwhile.
    pub(crate) fn show_preview(&mut self, preview: PlanPreview) {
        if preview.decision == self.core.decisions + 1 {
            self.core.preview = Some(preview);
        }
    }

    /// Removes all points of the history before a time.
    pub(crate) fn forget_points_before(&mut self, at: u64) {
        self.core.points.forget_before(at);
    }

    /// Returns and forgets the places of the steps without tokens since the last call.
    pub(crate) fn take_idle_steps(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.idle)
    }

    /// Returns steps of [`PhaseState::take_idle_steps`] that could not be stored.
    pub(crate) fn return_idle_steps(&mut self, steps: Vec<u64>) {
        self.idle.extend(steps);
    }

    /// Counts a decision that changes nothing.
    pub fn record_noop(&mut self, decision: &Decision) {
        self.core.decisions = decision.number;
        self.core.decided = self.core.live;
        self.core.rises = RiseDetector::from_steps(self.core.served.make_contiguous());
    }

    /// Recomputes the loads of the latest steps under the current plan.
    pub(super) fn evaluate_recent(&mut self) -> Result<(), PhaseError> {
        let skip = self.window.len().saturating_sub(self.recent_capacity());
        let steps: Vec<Arc<[u32]>> =
            self.window.iter().skip(skip).map(|seen| seen.step.counts.clone()).collect();
        self.recent.clear();
        for counts in steps {
            let served = self.evaluate(&counts)?;
            self.recent.push_back(served);
        }
        Ok(())
    }

    /// Replaces the options from the next step on.
    pub fn set_options(&mut self, options: ControllerConfig) {
        self.copy_budget = CopyBudget::new(self.copy_budget.price.clone(), &options);
        self.options = options;
    }
}
