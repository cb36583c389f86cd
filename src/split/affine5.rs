//! LPLB's own solver with a corrected step length, for comparison of quality.

use super::SplitError;
use super::lp::assign_rounded;
use crate::place::Placement;
use evenkeel_solver::Problem;
use evenkeel_solver::affine_scaling::{self, AffineWorkspace};

#[derive(Debug)]
pub(super) struct Affine5Splitter {
    problem: Problem,
    workspace: AffineWorkspace,
    fractions: Vec<f64>,
}

impl Affine5Splitter {
    pub(super) fn new(placement: &Placement) -> Result<Self, SplitError> {
        let problem = Problem::new(placement.hosts()?);
        let workspace = AffineWorkspace::new(&problem);
        Ok(Self { problem, workspace, fractions: Vec::new() })
    }

    pub(super) fn split(
        &mut self,
        placement: &Placement,
        loads: &[u64],
        quotas: &mut [u64],
    ) -> Result<(), SplitError> {
        let answer = affine_scaling::solve(&self.problem, loads, &mut self.workspace)
            .map_err(|e| SplitError::Affine(e.to_string()))?;
        let hosts = self.problem.hosts();
        self.fractions.clear();
        for (expert, &load) in loads.iter().enumerate() {
            let range = hosts.offset(expert)..hosts.offset(expert) + hosts.ranks_of(expert).len();
            // In f32 the shares of an expert add up to 1 only approximately.
            let sum: f64 = answer.shares[range.clone()].iter().map(|&s| f64::from(s)).sum();
            self.fractions.extend(answer.shares[range].iter().map(|&s| f64::from(s) / sum * load as f64));
        }
        assign_rounded(placement, &self.problem, loads, quotas, &self.fractions);
        Ok(())
    }
}
