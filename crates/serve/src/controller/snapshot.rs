//! The conversion of a phase's state to its stored form and back.
//!
//! The stored form excludes the window. Steps are stored when they are accepted, and the latest of them are
//! read back.

use super::config::{ControllerConfig, ModelSpec};
use super::history::DownsampledSeries;
use super::price::CopyLedger;
use super::propose::{LayerEstimate, PlanPreview};
use super::state::{AcceptedStep, PhaseError, PhaseState};
use crate::Phase;
use crate::wire::decision::HistoryPoint;
use evenkeel::place::{Placement, without_ranks};
use evenkeel::split::{LayerSplitters, SplitMethod};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The state of a phase without its options and its window.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PhaseSnapshot {
    pub(crate) layers: Vec<u32>,
    pub(crate) experts: usize,
    pub(crate) accepted: u64,
    last_step: Option<u64>,
    live: u64,
    down: BTreeSet<usize>,
    /// Expert ids by slot, -1 for an empty slot, `[L][R * S]`.
    placements: Vec<Vec<i64>>,
    planned: Vec<bool>,
    estimates: Vec<LayerEstimate>,
    version: u64,
    plan_accepted: u64,
    plan_step: Option<u64>,
    decided: u64,
    expected: f64,
    decisions: u64,
    points: Vec<HistoryPoint>,
    preview: Option<PlanPreview>,
    copies: CopyLedger,
}

impl PhaseState {
    /// Returns the stored form.
    pub(crate) fn to_snapshot(&self) -> PhaseSnapshot {
        PhaseSnapshot {
            layers: self.layers.clone(),
            experts: self.experts,
            accepted: self.accepted,
            last_step: self.last_step,
            live: self.live,
            down: self.down.clone(),
            placements: self.placements.iter().map(|placement| placement.slot_ids().collect()).collect(),
            planned: self.planned.clone(),
            estimates: self.estimates.clone(),
            version: self.version,
            plan_accepted: self.plan_accepted,
            plan_step: self.plan_step,
            decided: self.decided,
            expected: self.expected,
            decisions: self.decisions,
            points: self.points.as_slice().to_vec(),
            preview: self.preview.clone(),
            copies: self.copies.ledger,
        }
    }

    /// Returns a state from its stored form and the stored steps up to it, in order.
    ///
    /// # Errors
    /// Fails if the stored form is inconsistent.
    pub(crate) fn from_snapshot(
        shape: ModelSpec,
        options: ControllerConfig,
        phase: Phase,
        saved: PhaseSnapshot,
        window: impl Iterator<Item = AcceptedStep>,
    ) -> Result<Self, PhaseError> {
        let mut state = PhaseState::new(shape, options, phase, saved.layers, saved.experts)?;
        let lost: Vec<usize> = saved.down.iter().copied().collect();
        if !lost.is_empty() {
            state.cluster = without_ranks(&state.base, state.experts, &lost)?;
        }
        let layers = state.layers.len();
        if [saved.placements.len(), saved.planned.len(), saved.estimates.len()] != [layers; 3] {
            return Err(PhaseError::Invalid(format!(
                "{} placements of {layers} layers",
                saved.placements.len()
            )));
        }
        let ranks = state.cluster.ranks();
        let placement = |ids: &Vec<i64>| Placement::from_ids(state.experts, ranks, ids);
        let placements: Result<Vec<_>, _> = saved.placements.iter().map(placement).collect();
        state.placements = placements.map_err(evenkeel::place::PlaceError::from)?;
        state.splitters = LayerSplitters::new(state.placements.iter().cloned(), SplitMethod::Exact)?;
        state.down = saved.down;
        state.planned = saved.planned;
        state.estimates = saved.estimates;
        state.accepted = saved.accepted;
        state.live = saved.live;
        state.last_step = saved.last_step;
        state.version = saved.version;
        state.plan_accepted = saved.plan_accepted;
        state.plan_step = saved.plan_step;
        state.decided = saved.decided;
        state.expected = saved.expected;
        state.decisions = saved.decisions;
        state.points = DownsampledSeries::from_points(saved.points);
        state.preview = saved.preview;
        state.copies.ledger = saved.copies;
        let width = layers * state.experts;
        let is_processed =
            |seen: &AcceptedStep| seen.accepted <= saved.accepted && seen.counts.len() == width;
        for seen in window.filter(|seen| is_processed(seen) && !seen.is_idle()) {
            state.window.push_back(seen);
            if state.window.len() > state.options.retained_steps() {
                state.window.pop_front();
            }
        }
        state.evaluate_recent()?;
        Ok(state)
    }
}
