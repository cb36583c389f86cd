//! One phase of one model: the steps so far, the current plan, and the decisions that follow from both.
//!
//! Input is a sequence of accepted steps and of requests (re-plan now, a rank is down). Output is the
//! imbalance of each step, and proposals ([`Proposal`]) that take effect when they are applied. A phase uses
//! no clock, thread or file. The same steps and requests in the same order give the same plans, whether live,
//! after a restart, or in a replay without a server.

use super::config::{ControllerConfig, ModelSpec, SpecError};
use super::history::DownsampledSeries;
use super::price::{CopyBudget, CopyPrice};
use super::propose::{LayerEstimate, Proposal};
use crate::wire::decision::{CopyStatus, Decision, HistoryPoint, Trigger};
use crate::{Phase, PlanPreview};
use evenkeel::cluster::Cluster;
use evenkeel::evaluate::SummaryStats;
use evenkeel::export::MAX_PLAN_SLOTS;
use evenkeel::place::{Contiguous, PlaceError, Placement};
use evenkeel::plan::{LayerPlan, Plan, PlanProvenance};
use evenkeel::split::{LayerSplitters, SplitError, SplitMethod};
use evenkeel::trace::TraceError;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use thiserror::Error;

/// The number of latest steps whose rank loads are kept for display.
pub(crate) const DISPLAYED_STEPS: usize = 16;

/// An accepted step.
#[derive(Debug, Clone)]
pub struct AcceptedStep {
    /// The place of the step in the order of acceptance, from 1.
    pub accepted: u64,
    /// The poster's number of the step.
    pub id: u64,
    /// The token counts, `[L][E]`.
    pub counts: Arc<[u32]>,
}

impl AcceptedStep {
    /// Returns whether no expert of any layer drew a token.
    pub fn is_idle(&self) -> bool {
        self.counts.iter().all(|&count| count == 0)
    }
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
    pub(crate) shape: ModelSpec,
    pub(crate) options: ControllerConfig,
    pub(crate) phase: Phase,
    /// Real layer ids, `[L]`.
    pub(crate) layers: Vec<u32>,
    pub(crate) experts: usize,
    /// The cluster of all ranks.
    pub(super) base: Cluster,
    /// The cluster of the ranks that are up.
    pub(crate) cluster: Cluster,
    pub(super) down: BTreeSet<usize>,
    pub(crate) accepted: u64,
    pub(crate) last_step: Option<u64>,
    /// Accepted steps with tokens. Intervals are counted in these.
    pub(super) live: u64,
    /// Places, in the order of acceptance, of the steps without tokens since the state was last saved.
    pub(crate) idle: Vec<u64>,
    /// The latest steps with tokens, for planning.
    pub(crate) window: VecDeque<AcceptedStep>,
    /// The current placements, `[L]`. They are contiguous until there is a plan.
    pub(crate) placements: Vec<Placement>,
    /// Flags of the layers that have been planned, `[L]`.
    pub(super) planned: Vec<bool>,
    /// The expected figures of each layer, `[L]`.
    pub(super) estimates: Vec<LayerEstimate>,
    pub(super) splitters: LayerSplitters,
    /// The version of the current plan. Plans of a phase are numbered from 1; 0 means that there is none yet.
    pub(crate) version: u64,
    /// The number of steps accepted before the current plan was decided.
    pub(crate) plan_accepted: u64,
    pub(crate) plan_step: Option<u64>,
    /// The value of `live` at the last decision.
    pub(super) decided: u64,
    /// The imbalance that the last decision expected.
    pub(crate) expected: f64,
    /// The number of decisions so far.
    pub(crate) decisions: u64,
    pub(crate) points: DownsampledSeries,
    /// The cost of transfers, and the time that they may take.
    pub(super) copies: CopyBudget,
    /// The latest steps as the current plan serves them.
    pub(crate) recent: VecDeque<StepOutcome>,
    /// The plan that was last considered.
    pub(crate) preview: Option<PlanPreview>,
    loads: Vec<u64>,
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
        Ok(Self {
            splitters: LayerSplitters::new(placements.iter().cloned(), SplitMethod::Exact)?,
            planned: vec![false; layers.len()],
            estimates: vec![LayerEstimate::default(); layers.len()],
            placements,
            copies: CopyBudget::new(price, &options),
            shape,
            options,
            phase,
            layers,
            experts,
            base,
            cluster: base,
            down: BTreeSet::new(),
            accepted: 0,
            last_step: None,
            live: 0,
            idle: vec![],
            window: VecDeque::new(),
            version: 0,
            plan_accepted: 0,
            plan_step: None,
            decided: 0,
            expected: 0.0,
            decisions: 0,
            points: DownsampledSeries::default(),
            recent: VecDeque::new(),
            preview: None,
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
            layers: self.layers.clone(),
            down: self.down.clone(),
            idle: vec![],
            window: self.window.clone(),
            placements: self.placements.clone(),
            planned: self.planned.clone(),
            estimates: self.estimates.clone(),
            points: DownsampledSeries::default(),
            copies: self.copies.clone(),
            recent: self.recent.clone(),
            preview: None,
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
        if seen.is_idle() {
            self.accepted = seen.accepted;
            self.last_step = Some(seen.id);
            self.copies.accrue_step();
            self.idle.push(seen.accepted);
            return Ok(self.pending_trigger());
        }
        let served = self.evaluate(&seen.counts)?;
        let (mean, max, bound) = served.imbalance(self.cluster.ranks());
        self.accepted = seen.accepted;
        self.last_step = Some(seen.id);
        self.live += 1;
        self.copies.accrue_step();
        self.points.push(HistoryPoint {
            accepted: seen.accepted,
            step: seen.id,
            steps: 1,
            mean,
            max,
            bound,
            plan: self.version,
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

    /// Returns the number of steps with tokens since the last decision.
    pub(crate) fn steps_since_decision(&self) -> u64 {
        self.live.saturating_sub(self.decided)
    }

    /// Returns the trigger of a decision if one is due.
    pub(crate) fn pending_trigger(&self) -> Option<Trigger> {
        let since = self.steps_since_decision();
        if self.version == 0 {
            return (since >= self.options.first_after).then_some(Trigger::First);
        }
        if since >= self.options.every {
            return Some(Trigger::Interval);
        }
        let drifts = self.options.drift > 0.0 && since >= self.options.min_every;
        (drifts && self.recent_imbalance() > self.expected + self.options.drift).then_some(Trigger::Drift)
    }

    /// Returns the mean imbalance of the last `min_every` steps.
    pub(crate) fn recent_imbalance(&self) -> f64 {
        let steps = usize::try_from(self.options.min_every).unwrap_or(1).clamp(1, self.recent.len().max(1));
        let ranks = self.cluster.ranks();
        let sum: f64 = self.recent.iter().rev().take(steps).map(|served| served.imbalance(ranks).0).sum();
        sum / steps as f64
    }

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
        if proposal.changes_plan {
            let splitters = LayerSplitters::new(proposal.placements.iter().cloned(), SplitMethod::Exact)?;
            self.splitters = splitters;
            self.cluster = proposal.cluster;
            self.down.clone_from(&proposal.down);
            self.placements.clone_from(&proposal.placements);
            self.planned.clone_from(&proposal.planned);
            self.estimates.clone_from(&proposal.estimates);
            if proposal.decision.plan > self.version {
                self.version = proposal.decision.plan;
                self.plan_accepted = self.accepted;
                self.plan_step = self.last_step;
            }
            self.evaluate_recent()?;
        }
        if !proposal.preview {
            if proposal.changes_plan {
                self.copies.charge_transfers(proposal.busiest_transfers);
            }
            self.record_noop(&proposal.decision);
            self.expected = proposal.expected;
        }
        self.preview.clone_from(&proposal.plan_preview);
        Ok(())
    }

    /// Counts a decision that changes nothing.
    pub fn record_noop(&mut self, decision: &Decision) {
        self.decisions = decision.number;
        self.decided = self.live;
    }

    /// Recomputes the loads of the latest steps under the current plan.
    pub(super) fn evaluate_recent(&mut self) -> Result<(), PhaseError> {
        let skip = self.window.len().saturating_sub(self.recent_capacity());
        let steps: Vec<Arc<[u32]>> = self.window.iter().skip(skip).map(|seen| seen.counts.clone()).collect();
        self.recent.clear();
        for counts in steps {
            let served = self.evaluate(&counts)?;
            self.recent.push_back(served);
        }
        Ok(())
    }

    /// Returns the real ranks, indexed by their numbers in the plan.
    pub fn active_ranks(&self) -> Vec<u32> {
        (0..self.base.ranks()).filter(|rank| !self.down.contains(rank)).map(|rank| rank as u32).collect()
    }

    /// Returns the ranks that are down.
    pub fn down_ranks(&self) -> BTreeSet<usize> {
        self.down.clone()
    }

    /// Returns the current plan, or `None` before the first one.
    pub fn current_plan(&self) -> Option<Plan> {
        if self.version == 0 {
            return None;
        }
        let planned =
            |planned: bool| (0..self.layers.len()).filter(move |&layer| self.planned[layer] == planned);
        let layers: Vec<LayerPlan> = planned(true)
            .map(|layer| LayerPlan {
                layer: self.layers[layer],
                placement: self.placements[layer].clone(),
                imbalance: self.estimates[layer].after.max(self.estimates[layer].bound),
                bound: self.estimates[layer].bound,
            })
            .collect();
        let mut plan = Plan {
            cluster: self.cluster,
            experts: self.experts,
            idle_layers: planned(false).map(|layer| self.layers[layer]).collect(),
            unrecorded_layers: vec![],
            provenance: PlanProvenance {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                policy: self.options.policy.clone(),
                target: None,
                split: SplitMethod::Exact.to_string(),
                seed: 0,
                batches: format!(
                    "live steps ({}), decided after step {}, the {}th accepted",
                    self.phase,
                    self.plan_step.map_or("none".into(), |step| step.to_string()),
                    self.plan_accepted
                ),
                judged: self.estimates.iter().map(|figures| figures.batches).sum(),
                imbalance: SummaryStats::from_values(layers.iter().map(|layer| layer.imbalance).collect()),
                figures: vec![],
                trace: vec![],
            },
            layers,
        };
        plan.guess_moe_layers();
        // Posters leave dense layers out, so the missing layers are dense.
        let posted = |id: &u32| self.layers.binary_search(id).is_ok();
        let last = self.layers.last().copied().unwrap_or(0);
        plan.idle_layers.extend((0..last).filter(|id| !posted(id)));
        plan.idle_layers.sort_unstable();
        Some(plan)
    }

    /// Returns the number of accepted steps.
    pub fn accepted_steps(&self) -> u64 {
        self.accepted
    }

    /// Returns the version of the current plan, or 0 before the first one.
    pub fn plan_version(&self) -> u64 {
        self.version
    }

    /// Returns the current placements, `[L]`.
    pub fn placements(&self) -> &[Placement] {
        &self.placements
    }

    /// Returns the imbalance of the latest step: the mean over layers, the worst layer, and the bound.
    pub fn last_imbalance(&self) -> Option<(f64, f64, f64)> {
        self.recent.back().map(|served| served.imbalance(self.cluster.ranks()))
    }

    /// Returns the cost of transfers, the time that they may take, and the time that they took so far.
    pub fn copy_status(&self) -> CopyStatus {
        self.copies.status()
    }

    /// Returns the latest point of the history.
    pub fn latest_point(&self) -> Option<&HistoryPoint> {
        self.points.as_slice().last()
    }

    /// Replaces the options from the next step on.
    pub fn set_options(&mut self, options: ControllerConfig) {
        self.copies = CopyBudget::new(self.copies.price.clone(), &options).with_ledger(self.copies.ledger);
        self.options = options;
    }
}
