//! Computes placements for a run from a recorded trace, or from a few profiling steps.

use super::{ExecRun, RunReplan, RunVariant, StepBatch, StepProgress};
use crate::backend::Backend;
use crate::error::ExecError;
use evenkeel::economics::MoveJudge;
use evenkeel::forecast::History;
use evenkeel::place::{PlaceRequest, Placement};
use evenkeel::trace::Trace;
use std::ops::Range;

impl ExecRun<'_> {
    /// Places layers (by index into `trace`) from a window of its steps.
    ///
    /// # Errors
    /// Fails if the policy does not support the shape.
    pub fn place_layers(
        &self,
        trace: &Trace,
        layers: &[usize],
        window: Range<usize>,
    ) -> Result<Vec<Placement>, ExecError> {
        let of = |&layer: &usize| {
            let history = History::from_steps(trace, layer, window.clone());
            Ok(self.policy.place(&PlaceRequest::new(&history, &self.exec.cluster))?.placement)
        };
        layers.iter().map(of).collect()
    }

    /// Re-plans a layer (by index into `trace`) from a window of its steps, starting from `previous`, which
    /// stays if moves do not pay.
    ///
    /// # Errors
    /// Fails if the policy does not support the shape.
    pub(super) fn replan_layer(
        &self,
        trace: &Trace,
        layer: usize,
        window: Range<usize>,
        previous: &Placement,
        replan: &RunReplan,
    ) -> Result<Placement, ExecError> {
        let (history, cluster) = (History::from_steps(trace, layer, window), &self.exec.cluster);
        let request = PlaceRequest::new(&history, cluster).previous(previous).max_moves(replan.max_moves);
        match &replan.economics {
            Some(economics) => {
                let judge = MoveJudge::new(economics, cluster, history.batches(), &[]);
                Ok(judge.replan(self.policy, &request, previous)?.accepted_or(previous))
            }
            None => Ok(self.policy.place(&request)?.placement),
        }
    }

    /// Returns the placements of the first step. They are planned on the steps `plan_on` of the trace, or on
    /// steps that run on `plain` for this purpose.
    pub(super) fn first_placements(
        &self,
        plain: &mut dyn Backend,
        plan_on: Range<usize>,
        progress: &dyn StepProgress,
    ) -> Result<Vec<Placement>, ExecError> {
        if let Some(trace) = self.feed.trace() {
            return self.place_layers(trace, &self.layers, plan_on);
        }
        let (layers, window): (Vec<usize>, _) = ((0..self.layers.len()).collect(), 0..plan_on.len());
        self.place_layers(&self.profile_loads(plain, plan_on, progress)?, &layers, window)
    }

    /// Runs steps on a backend with the contiguous placement and without a split. Returns their loads, with
    /// layers numbered from 0, for planning without a recorded trace.
    fn profile_loads(
        &self,
        plain: &mut dyn Backend,
        steps: Range<usize>,
        progress: &dyn StepProgress,
    ) -> Result<Trace, ExecError> {
        let contiguous = self.contiguous_placement()?;
        let mut loads = Vec::new();
        for (at, of_feed) in steps.clone().enumerate() {
            let batch = StepBatch::new(self, of_feed, &contiguous, plain);
            let run = batch.run_variant(self, of_feed, RunVariant::None, plain, None)?;
            loads.extend(run.layers.iter().flat_map(|layer| layer.counts.iter().copied()));
            progress.report_steps(at + 1, steps.len());
        }
        let ids = (0..self.layers.len() as u32).collect();
        let labels = steps.map(|step| step.to_string()).collect();
        Ok(Trace::from_loads(self.exec.model.experts, ids, labels, loads)?)
    }
}
