//! LPLB's own solver, restated with a correct step length, for comparison of quality.

use super::SplitError;
use super::lp::spread;
use crate::place::Placement;
use evenkeel_solver::Problem;
use evenkeel_solver::affine::{self, Workspace};

#[derive(Debug)]
pub(super) struct Affine5 {
    problem: Problem,
    workspace: Workspace,
    fractions: Vec<f64>,
}

impl Affine5 {
    pub(super) fn new(placement: &Placement) -> Result<Self, SplitError> {
        let problem = Problem::new(placement.hosts()?);
        let workspace = Workspace::new(&problem);
        Ok(Self { problem, workspace, fractions: Vec::new() })
    }

    pub(super) fn split(
        &mut self,
        placement: &Placement,
        loads: &[u64],
        quotas: &mut [u64],
    ) -> Result<(), SplitError> {
        let answer = affine::solve(&self.problem, loads, &mut self.workspace)
            .map_err(|e| SplitError::Affine(e.to_string()))?;
        let hosts = self.problem.hosts();
        self.fractions.clear();
        for (expert, &load) in loads.iter().enumerate() {
            let range = hosts.offset(expert)..hosts.offset(expert) + hosts.of(expert).len();
            // In f32 the shares of an expert add up to 1 only roughly.
            let sum: f64 = answer.shares[range.clone()].iter().map(|&s| f64::from(s)).sum();
            self.fractions.extend(answer.shares[range].iter().map(|&s| f64::from(s) / sum * load as f64));
        }
        spread(placement, &self.problem, loads, quotas, &self.fractions);
        Ok(())
    }
}
