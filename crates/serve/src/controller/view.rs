//! Read access to the state of a phase: its figures, its current plan, and the loads of the latest steps.
//!
//! Input is a [`PhaseState`]. Output is what the documents of [`crate::wire`] show. The fields of the state
//! are private to the controller, so that only steps and proposals change them.

use super::state::{DISPLAYED_STEPS, PhaseState, StepOutcome};
use crate::Phase;
use crate::wire::decision::{CopyStatus, GainStatus, HistoryPoint};
use crate::wire::status::{HeatLayer, HotExpert, PlanPreview};
use crate::{ControllerConfig, ModelSpec};
use evenkeel::evaluate::SummaryStats;
use evenkeel::place::Placement;
use evenkeel::plan::{LayerPlan, Plan, PlanProvenance};
use evenkeel::split::SplitMethod;
use std::collections::BTreeSet;

/// The number of hottest experts that are listed.
const MAX_HOTTEST: usize = 24;

impl PhaseState {
    /// Returns the shape of the model's expert-parallel group.
    pub(crate) fn shape(&self) -> &ModelSpec {
        &self.shape
    }

    /// Returns the options of decisions.
    pub(crate) fn options(&self) -> &ControllerConfig {
        &self.options
    }

    /// Returns the phase.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Returns the real layer ids, `[L]`.
    pub(crate) fn layers(&self) -> &[u32] {
        &self.core.layers
    }

    /// Returns the number of logical experts per layer.
    pub(crate) fn experts(&self) -> usize {
        self.core.experts
    }

    /// Returns the poster's number of the last processed step.
    pub(crate) fn last_step(&self) -> Option<u64> {
        self.core.last_step
    }

    /// Returns the step after which the current plan was decided.
    pub(crate) fn plan_step(&self) -> Option<u64> {
        self.core.plan_step
    }

    /// Returns the number of steps that were accepted before the current plan was decided.
    pub(crate) fn plan_accepted(&self) -> u64 {
        self.core.plan_accepted
    }

    /// Returns the number of decisions so far.
    pub(crate) fn decision_count(&self) -> u64 {
        self.core.decisions
    }

    /// Returns the plan that was last considered.
    pub(crate) fn preview(&self) -> Option<&PlanPreview> {
        self.core.preview.as_ref()
    }

    /// Returns the history of the imbalance, oldest first.
    pub(crate) fn points(&self) -> &[HistoryPoint] {
        self.core.points.as_slice()
    }

    /// Returns the second longest pause between the latest points, in seconds.
    pub(crate) fn usual_pause(&self) -> u64 {
        self.core.points.usual_pause()
    }

    /// Returns the milliseconds between two of the latest steps, by the service's clock.
    pub(crate) fn observed_step_ms(&self) -> Option<f64> {
        self.core.points.step_ms()
    }

    /// Returns the place, in the order of acceptance, of the oldest step that is kept for planning.
    pub(crate) fn oldest_step(&self) -> Option<u64> {
        self.window.front().map(|seen| seen.accepted)
    }

    /// Returns the loads of the latest step under the current plan.
    pub(crate) fn latest_outcome(&self) -> Option<&StepOutcome> {
        self.recent.back()
    }

    /// Returns the number of latest steps that [`PhaseState::heatmap_layers`] covers.
    pub(crate) fn displayed_steps(&self) -> usize {
        self.recent.len().min(DISPLAYED_STEPS)
    }

    /// Returns the real ranks, indexed by their numbers in the plan.
    pub fn active_ranks(&self) -> Vec<u32> {
        (0..self.base.ranks()).filter(|rank| !self.core.down.contains(rank)).map(|rank| rank as u32).collect()
    }

    /// Returns the ranks that are down.
    pub fn down_ranks(&self) -> BTreeSet<usize> {
        self.core.down.clone()
    }

    /// Returns the current plan, or `None` before the first one.
    pub fn current_plan(&self) -> Option<Plan> {
        if self.core.version == 0 {
            return None;
        }
        let planned = |planned: bool| {
            (0..self.core.layers.len()).filter(move |&layer| self.core.planned[layer] == planned)
        };
        let layers: Vec<LayerPlan> = planned(true)
            .map(|layer| {
                let figures = &self.core.estimates[layer];
                LayerPlan::new(self.core.layers[layer], self.placements[layer].clone())
                    .imbalance(figures.after.max(figures.bound))
                    .bound(figures.bound)
            })
            .collect();
        let mut provenance = PlanProvenance::new(&self.options.policy, SplitMethod::Exact);
        provenance.batches = format!(
            "live steps ({}), decided after step {}, the {}th accepted",
            self.phase,
            self.core.plan_step.map_or("none".into(), |step| step.to_string()),
            self.core.plan_accepted
        );
        provenance.judged = self.core.estimates.iter().map(|figures| figures.batches).sum();
        provenance.imbalance =
            SummaryStats::from_values(layers.iter().map(|layer| layer.imbalance).collect());
        let mut plan = Plan::new(self.cluster, self.core.experts, layers, provenance);
        plan.idle_layers = planned(false).map(|layer| self.core.layers[layer]).collect();
        plan.guess_moe_layers();
        // Posters leave dense layers out, so the missing layers are dense.
        let posted = |id: &u32| self.core.layers.binary_search(id).is_ok();
        let last = self.core.layers.last().copied().unwrap_or(0);
        plan.idle_layers.extend((0..last).filter(|id| !posted(id)));
        plan.idle_layers.sort_unstable();
        Some(plan)
    }

    /// Returns the number of accepted steps.
    pub fn accepted_steps(&self) -> u64 {
        self.core.accepted
    }

    /// Returns the version of the current plan, or 0 before the first one.
    pub fn plan_version(&self) -> u64 {
        self.core.version
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
        self.copy_budget.status(&self.core.copies)
    }

    /// Returns the corrections of expected gains by the gains of earlier decisions.
    pub fn gain_status(&self) -> GainStatus {
        self.core.gains.status()
    }

    /// Returns the latest point of the history.
    pub fn latest_point(&self) -> Option<&HistoryPoint> {
        self.core.points.as_slice().last()
    }

    /// Returns the rank loads of each layer over the latest steps.
    pub(crate) fn heatmap_layers(&self) -> Vec<HeatLayer> {
        let ranks = self.cluster.ranks();
        let of = |at: usize| {
            let (mut loads, mut imbalance, mut busy) = (vec![0.0f64; ranks], 0.0, 0usize);
            for served in
                self.recent.iter().rev().take(DISPLAYED_STEPS).filter(|served| served.totals[at] > 0)
            {
                let mean = served.totals[at] as f64 / ranks as f64;
                imbalance += served.peaks[at] as f64 / mean;
                let row = &served.rank_loads[at * ranks..(at + 1) * ranks];
                loads.iter_mut().zip(row).for_each(|(sum, &load)| *sum += load as f64 / mean);
                busy += 1;
            }
            let steps = busy.max(1) as f64;
            HeatLayer {
                layer: self.core.layers[at],
                imbalance: imbalance / steps,
                ranks: loads.into_iter().map(|load| (load / steps) as f32).collect(),
            }
        };
        (0..self.core.layers.len()).map(of).collect()
    }

    /// Returns the experts with the highest loads over the latest steps, hottest first.
    pub(crate) fn hottest_experts(&self) -> Vec<HotExpert> {
        let mut tokens = vec![0u64; self.core.layers.len() * self.core.experts];
        for seen in self.window.iter().rev().take(DISPLAYED_STEPS) {
            tokens.iter_mut().zip(seen.step.counts.iter()).for_each(|(sum, &count)| *sum += u64::from(count));
        }
        let mut all: Vec<(f64, usize, usize)> = Vec::new();
        for (layer, row) in tokens.chunks(self.core.experts).enumerate() {
            let mean = row.iter().sum::<u64>() as f64 / self.core.experts as f64;
            if mean > 0.0 {
                all.extend(
                    row.iter().enumerate().map(|(expert, &tokens)| (tokens as f64 / mean, layer, expert)),
                );
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let ranks = self.active_ranks();
        let of = |&(over_mean, layer, expert): &(f64, usize, usize)| {
            let placement = &self.placements[layer];
            HotExpert {
                layer: self.core.layers[layer],
                expert: expert as u32,
                tokens: tokens[layer * self.core.experts + expert],
                over_mean,
                replicas: placement.replicas(expert).len(),
                ranks: placement
                    .ranks_of(expert)
                    .iter()
                    .filter_map(|&r| ranks.get(r as usize).copied())
                    .collect(),
            }
        };
        all.iter().take(MAX_HOTTEST).map(of).collect()
    }
}
