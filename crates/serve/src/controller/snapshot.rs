//! The conversion of a phase's state to its stored form and back.
//!
//! The stored form excludes the window. Steps are stored when they are accepted, and the latest of them are
//! read back.

use super::config::{ControllerConfig, ModelSpec};
use super::state::{AcceptedStep, PhaseCore, PhaseError, PhaseState};
use crate::Phase;
use evenkeel::place::{PlaceError, Placement, without_ranks};
use evenkeel::split::{LayerSplitters, SplitMethod};
use serde::{Deserialize, Serialize};

/// The state of a phase without its options and its window.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PhaseSnapshot {
    #[serde(flatten)]
    pub(crate) core: PhaseCore,
    /// Expert ids by slot, -1 for an empty slot, `[L][R * S]`.
    placements: Vec<Vec<i64>>,
}

impl PhaseState {
    /// Returns the stored form.
    pub(crate) fn to_snapshot(&self) -> PhaseSnapshot {
        let placements = self.placements.iter().map(|placement| placement.slot_ids().collect()).collect();
        PhaseSnapshot { core: self.core.clone(), placements }
    }

    /// Returns a state from its stored form and the stored steps up to it, in order.
    ///
    /// # Errors
    /// Fails if the stored form is inconsistent.
    pub(crate) fn from_snapshot(
        shape: ModelSpec,
        options: ControllerConfig,
        phase: Phase,
        PhaseSnapshot { core, placements }: PhaseSnapshot,
        window: impl Iterator<Item = AcceptedStep>,
    ) -> Result<Self, PhaseError> {
        let mut state = PhaseState::new(shape, options, phase, core.layers.clone(), core.experts)?;
        let lost: Vec<usize> = core.down.iter().copied().collect();
        if !lost.is_empty() {
            state.cluster = without_ranks(&state.base, core.experts, &lost)?;
        }
        let layers = core.layers.len();
        if [placements.len(), core.planned.len(), core.estimates.len()] != [layers; 3] {
            return Err(PhaseError::Invalid(format!("{} placements of {layers} layers", placements.len())));
        }
        let ranks = state.cluster.ranks();
        let placement = |ids: &Vec<i64>| Placement::from_ids(core.experts, ranks, ids);
        let placements: Result<Vec<_>, _> = placements.iter().map(placement).collect();
        state.placements = placements.map_err(PlaceError::from)?;
        state.splitters = LayerSplitters::new(state.placements.iter().cloned(), SplitMethod::Exact)?;
        let width = layers * core.experts;
        let is_processed =
            |seen: &AcceptedStep| seen.accepted <= core.accepted && seen.step.counts.len() == width;
        for seen in window.filter(|seen| is_processed(seen) && !seen.step.is_idle()) {
            state.window.push_back(seen);
            if state.window.len() > state.options.retained_steps() {
                state.window.pop_front();
            }
        }
        state.core = core;
        state.evaluate_recent()?;
        Ok(state)
    }
}
