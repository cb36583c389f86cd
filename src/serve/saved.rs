//! A lane as the store keeps it, and back.
//!
//! The window is not part of it: steps are stored as they are accepted, and the latest of them are read back.

use super::Phase;
use super::decide::{Figures, Next};
use super::lane::{Lane, LaneError, Seen};
use super::options::{DecideOptions, Shape};
use super::points::Points;
use super::price::CopyLedger;
use super::record::Point;
use crate::place::{Placement, without_ranks};
use crate::split::{Layers, Method};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Everything of a lane but its options and its window.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SavedLane {
    pub(crate) layers: Vec<u32>,
    pub(crate) experts: usize,
    pub(crate) accepted: u64,
    last_step: Option<u64>,
    down: BTreeSet<usize>,
    /// Expert ids by slot, -1 empty, `[L][R * S]`.
    placements: Vec<Vec<i64>>,
    planned: Vec<bool>,
    figures: Vec<Figures>,
    version: u64,
    plan_accepted: u64,
    plan_step: Option<u64>,
    decided: u64,
    expected: f64,
    decisions: u64,
    points: Vec<Point>,
    next: Option<Next>,
    /// Absent in stores of earlier versions.
    #[serde(default)]
    copies: CopyLedger,
}

impl Lane {
    /// What the store keeps.
    pub(crate) fn saved(&self) -> SavedLane {
        SavedLane {
            layers: self.layers.clone(),
            experts: self.experts,
            accepted: self.accepted,
            last_step: self.last_step,
            down: self.down.clone(),
            placements: self.placements.iter().map(|placement| placement.ids().collect()).collect(),
            planned: self.planned.clone(),
            figures: self.figures.clone(),
            version: self.version,
            plan_accepted: self.plan_accepted,
            plan_step: self.plan_step,
            decided: self.decided,
            expected: self.expected,
            decisions: self.decisions,
            points: self.points.all().to_vec(),
            next: self.next.clone(),
            copies: self.copies.ledger,
        }
    }

    /// A lane as it was, with the steps up to then that are still known, in order.
    ///
    /// # Errors
    /// When what was saved does not hold together.
    pub(crate) fn restored(
        shape: Shape,
        options: DecideOptions,
        phase: Phase,
        saved: SavedLane,
        window: impl Iterator<Item = Seen>,
    ) -> Result<Self, LaneError> {
        let mut lane = Lane::new(shape, options, phase, saved.layers, saved.experts)?;
        let lost: Vec<usize> = saved.down.iter().copied().collect();
        if !lost.is_empty() {
            lane.cluster = without_ranks(&lane.base, lane.experts, &lost)?;
        }
        let layers = lane.layers.len();
        if [saved.placements.len(), saved.planned.len(), saved.figures.len()] != [layers; 3] {
            return Err(LaneError::Asked(format!(
                "{} placements of {layers} layers",
                saved.placements.len()
            )));
        }
        let ranks = lane.cluster.ranks();
        let placement = |ids: &Vec<i64>| Placement::of_ids(lane.experts, ranks, ids);
        let placements: Result<Vec<_>, _> = saved.placements.iter().map(placement).collect();
        lane.placements = placements.map_err(crate::place::PlaceError::from)?;
        lane.splitters = Layers::new(lane.placements.iter().cloned(), Method::Exact)?;
        lane.down = saved.down;
        lane.planned = saved.planned;
        lane.figures = saved.figures;
        lane.accepted = saved.accepted;
        lane.last_step = saved.last_step;
        lane.version = saved.version;
        lane.plan_accepted = saved.plan_accepted;
        lane.plan_step = saved.plan_step;
        lane.decided = saved.decided;
        lane.expected = saved.expected;
        lane.decisions = saved.decisions;
        lane.points = Points::of(saved.points);
        lane.next = saved.next;
        lane.copies.ledger = saved.copies;
        let width = layers * lane.experts;
        for seen in window.filter(|seen| seen.accepted <= saved.accepted && seen.counts.len() == width) {
            lane.window.push_back(seen);
            if lane.window.len() > lane.options.kept() {
                lane.window.pop_front();
            }
        }
        lane.serve_recent_again()?;
        Ok(lane)
    }
}
