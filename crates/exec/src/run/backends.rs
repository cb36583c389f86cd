//! Runs on a backend: on all ranks in this process, or on one rank among processes. Every process executes
//! the run for itself, and all get the same report.

use super::{ExecRun, RunReport, StepProgress};
use crate::backend::{Backend, ExecConfig};
use crate::comm::ProcessGroup;
use crate::cpu::{Cpu, CpuOptions};
#[cfg(feature = "cuda")]
use crate::cuda::{Cuda, CudaOptions};
use crate::error::ExecError;
use crate::job::agree_on_result;
use evenkeel::place::Placement;
use std::ops::Range;
use std::rc::Rc;

impl ExecRun<'_> {
    /// Runs all steps on the CPU, planned on the steps `plan_on`, as the ranks of this process. All processes
    /// of the group call it with the same run.
    ///
    /// # Errors
    /// Fails as [`ExecRun::run`] and [`Cpu::join`] do, and if a layer cannot be placed.
    pub fn run_on_cpu(
        &self,
        group: &Rc<ProcessGroup>,
        options: CpuOptions,
        plan_on: Range<usize>,
        progress: &dyn StepProgress,
    ) -> Result<RunReport, ExecError> {
        let weights = self.weights.as_ref();
        self.run_planned(Some(group), (plan_on, progress), |exec, placements| {
            Cpu::join(exec, weights, placements, Rc::clone(group), options)
        })
    }

    /// Runs all steps on GPUs with all ranks in this process, planned on the steps `plan_on`.
    ///
    /// # Errors
    /// Fails as [`ExecRun::run`] and [`Cuda::new`] do, and if a layer cannot be placed.
    #[cfg(feature = "cuda")]
    pub fn run_on_cuda(
        &self,
        options: CudaOptions,
        plan_on: Range<usize>,
        progress: &dyn StepProgress,
    ) -> Result<RunReport, ExecError> {
        let weights = self.weights.as_ref();
        self.run_planned(None, (plan_on, progress), |exec, placements| {
            Cuda::new(exec, options, weights, placements)
        })
    }

    /// Runs as [`ExecRun::run_on_cuda`] does, as one rank among processes with a GPU each. `options` must
    /// name the GPU that the communicator assigned.
    ///
    /// # Errors
    /// Fails as [`ExecRun::run`] and [`Cuda::join`] do, and if a layer cannot be placed.
    #[cfg(feature = "cuda")]
    pub fn run_on_devices(
        &self,
        group: &Rc<ProcessGroup>,
        options: CudaOptions,
        verify_splits: bool,
        plan_on: Range<usize>,
        progress: &dyn StepProgress,
    ) -> Result<RunReport, ExecError> {
        let weights = self.weights.as_ref();
        self.run_planned(Some(group), (plan_on, progress), |exec, placements| {
            Cuda::join(exec, options, weights, placements, Rc::clone(group), verify_splits)
        })
    }

    /// Plans and runs all steps on the backends that `build` builds. The processes of `group` agree on the
    /// placements.
    fn run_planned<B: Backend>(
        &self,
        group: Option<&Rc<ProcessGroup>>,
        (plan_on, progress): (Range<usize>, &dyn StepProgress),
        build: impl Fn(ExecConfig, Vec<Placement>) -> Result<B, ExecError>,
    ) -> Result<RunReport, ExecError> {
        let agree = |placements| match group {
            Some(group) => agree_on_result(group, placements),
            None => placements,
        };
        if let (Some(trace), false) = (self.feed.trace(), self.compare) {
            // Nothing runs without the plan, so it needs no memory.
            let placements = agree(self.place_layers(trace, &self.layers, plan_on))?;
            return self.run(&mut build(self.exec.clone(), placements)?, None, progress);
        }
        let contiguous = vec![self.contiguous_placement()?; self.layers.len()];
        let mut plain = build(ExecConfig { method: None, ..self.exec.clone() }, contiguous)?;
        let placements = agree(self.first_placements(&mut plain, plan_on, progress))?;
        if !self.compare && group.is_some_and(|group| group.is_complete()) {
            // The host has one memory for all ranks. It need not hold the experts of both.
            drop(plain);
            return self.run(&mut build(self.exec.clone(), placements)?, None, progress);
        }
        let mut planned = plain.with_placements(self.weights.as_ref(), placements, self.exec.method)?;
        // Without a comparison its memory is freed before the run.
        let mut plain = self.compare.then_some(plain);
        self.run(&mut planned, plain.as_mut().map(|plain| plain as &mut dyn Backend), progress)
    }
}
