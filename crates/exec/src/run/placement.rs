//! Placements for a run: of what was recorded, or of a few steps that are run for it.

use super::{Batch, Progress, Run, Variant};
use crate::exec::backend::{Backend, ExecConfig};
use crate::exec::cpu::Cpu;
use crate::exec::error::ExecError;
use crate::forecast::History;
use crate::place::Placement;
use crate::trace::Trace;
use std::ops::Range;

impl Run<'_> {
    /// Places layers (by index into `trace`) on what a window of its steps shows.
    ///
    /// # Errors
    /// When the policy cannot serve the shape.
    pub fn place(
        &self,
        trace: &Trace,
        layers: &[usize],
        window: Range<usize>,
    ) -> Result<Vec<Placement>, ExecError> {
        let of = |&layer: &usize| {
            Ok(self.policy.place(&History::window(trace, layer, window.clone()), &self.exec.cluster)?)
        };
        layers.iter().map(of).collect()
    }

    /// Places a layer (by index into `trace`) again on what a window of its steps shows, coming from `previous`.
    ///
    /// # Errors
    /// When the policy cannot serve the shape.
    pub(super) fn replan(
        &self,
        trace: &Trace,
        layer: usize,
        window: Range<usize>,
        previous: &Placement,
        max_moves: Option<usize>,
    ) -> Result<Placement, ExecError> {
        let history = History::window(trace, layer, window);
        Ok(self.policy.replan(&history, &self.exec.cluster, previous, max_moves)?)
    }

    /// Runs steps on the contiguous placement, on the CPU, and returns their loads, layers numbered from 0: something to plan on
    /// where nothing was recorded.
    ///
    /// # Errors
    /// As [`Run::run`].
    pub fn profile(&self, steps: Range<usize>, progress: &dyn Progress) -> Result<Trace, ExecError> {
        let contiguous = self.contiguous()?;
        let exec = ExecConfig { method: None, ..self.exec.clone() };
        let mut plain = Cpu::new(exec, self.weights.as_ref(), vec![contiguous; self.layers.len()])?;
        self.profile_on(&mut plain, steps, progress)
    }

    /// As [`Run::profile`], on a backend that has the contiguous placement and plans nothing.
    ///
    /// # Errors
    /// As [`Run::run`].
    pub fn profile_on(
        &self,
        plain: &mut dyn Backend,
        steps: Range<usize>,
        progress: &dyn Progress,
    ) -> Result<Trace, ExecError> {
        let contiguous = self.contiguous()?;
        let mut loads = Vec::new();
        for (at, of_feed) in steps.clone().enumerate() {
            let batch = Batch::new(self, of_feed, &contiguous, plain);
            let run = batch.step(self, of_feed, Variant::None, plain, None)?;
            loads.extend(run.layers.iter().flat_map(|layer| layer.counts.iter().copied()));
            progress.steps(at + 1, steps.len());
        }
        let ids = (0..self.layers.len() as u32).collect();
        let labels = steps.map(|step| step.to_string()).collect();
        Ok(Trace::from_loads(self.exec.model.experts, ids, labels, loads)?)
    }
}
