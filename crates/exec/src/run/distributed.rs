//! Runs whose ranks are separate processes: every rank executes the run for itself, and all get the same
//! outcome.

use super::{ExecRun, RunReport, StepProgress};
use crate::backend::{Backend, ExecConfig};
use crate::cpu::{Cpu, CpuOptions};
#[cfg(feature = "cuda")]
use crate::cuda::{Cuda, CudaOptions};
use crate::error::ExecError;
#[cfg(feature = "cuda")]
use crate::transport::DeviceTransport;
use crate::transport::ProcessGroup;
use evenkeel::place::Placement;
use std::rc::Rc;

impl ExecRun<'_> {
    /// Runs all steps as one rank of a group. Every rank calls it with the same run and its own end of the
    /// wire, and gets the same outcome. `place` computes the placements on each rank independently. It may
    /// profile on the backend without a plan.
    ///
    /// # Errors
    /// Fails as [`ExecRun::run`], [`Cpu::join`] and `place` do, and if another rank is lost or has another
    /// plan.
    pub fn on_communicator<E: From<ExecError>>(
        &self,
        wire: &Rc<ProcessGroup>,
        options: CpuOptions,
        place: impl FnOnce(&mut dyn Backend) -> Result<Vec<Placement>, E>,
        progress: &dyn StepProgress,
    ) -> Result<RunReport, E> {
        let (weights, exec) = (self.weights.as_ref(), ExecConfig { method: None, ..self.exec.clone() });
        let contiguous = vec![self.contiguous_placement()?; self.layers.len()];
        let mut plain = Cpu::join(exec, weights, contiguous, Rc::clone(wire), options)?;
        let placements = place(&mut plain)?;
        let planned = plain.with_placements(weights, placements, self.exec.method)?;
        Ok(self.run_with_baseline(planned, plain, progress)?)
    }

    /// Runs as [`ExecRun::on_communicator`] does, with one GPU per rank. `wire` and `gpus` must belong to the
    /// same group.
    ///
    /// # Errors
    /// Fails as [`ExecRun::on_communicator`] and [`Cuda::join`] do.
    #[cfg(feature = "cuda")]
    pub fn on_gpus<E: From<ExecError>>(
        &self,
        (wire, gpus): (&Rc<ProcessGroup>, &Rc<dyn DeviceTransport>),
        options: CudaOptions,
        prove: bool,
        place: impl FnOnce(&mut dyn Backend) -> Result<Vec<Placement>, E>,
        progress: &dyn StepProgress,
    ) -> Result<RunReport, E> {
        let (weights, exec) = (self.weights.as_ref(), ExecConfig { method: None, ..self.exec.clone() });
        let contiguous = vec![self.contiguous_placement()?; self.layers.len()];
        let group = (Rc::clone(wire), Rc::clone(gpus));
        let mut plain = Cuda::join(exec, options, weights, contiguous, group, prove)?;
        let placements = place(&mut plain)?;
        let planned = plain.with_placements(weights, placements, self.exec.method)?;
        Ok(self.run_with_baseline(planned, plain, progress)?)
    }
}
