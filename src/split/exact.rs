//! The integer optimum, certified: the solver's answer carried from ranks to slots.

use super::{Split, SplitError};
use crate::place::Placement;
use evenkeel_solver::{Problem, Workspace};

#[derive(Debug)]
pub(super) struct Exact {
    problem: Problem,
    workspace: Workspace,
    answer: evenkeel_solver::Split,
}

impl Exact {
    pub(super) fn new(placement: &Placement) -> Result<Self, SplitError> {
        let problem = Problem::new(placement.hosts()?);
        let workspace = Workspace::new(&problem);
        Ok(Self { problem, workspace, answer: evenkeel_solver::Split::default() })
    }

    pub(super) fn split(
        &mut self,
        placement: &Placement,
        loads: &[u64],
        split: &mut Split,
    ) -> Result<(), SplitError> {
        evenkeel_solver::solve_into(&self.problem, loads, &mut self.workspace, &mut self.answer)?;
        for_each_host(placement, &self.problem, |slot, at| split.quotas[slot] = self.answer.quotas[at]);
        split.certificate.extend_from_slice(&self.answer.certificate);
        Ok(())
    }

    /// Verifies the last answer, and that `split` is that answer.
    pub(super) fn check(&self, loads: &[u64], split: &Split) -> Result<(), String> {
        evenkeel_solver::verify(&self.problem, loads, &self.answer).map_err(|e| e.to_string())?;
        if split.rank_loads != self.answer.rank_loads || split.certificate != self.answer.certificate {
            return Err("slots and ranks disagree".into());
        }
        Ok(())
    }
}

/// Calls `each(slot, index into the solver's quotas)` for every rank that hosts an expert, with the lowest slot of
/// that rank that holds it: a second copy on the same rank serves nothing.
pub(super) fn for_each_host(placement: &Placement, problem: &Problem, mut each: impl FnMut(usize, usize)) {
    for expert in 0..placement.experts() {
        let mut at = problem.hosts().offset(expert);
        let mut last = usize::MAX;
        for &slot in placement.copies(expert) {
            let rank = placement.rank_of(slot);
            if rank != last {
                each(slot as usize, at);
                at += 1;
                last = rank;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Method, Splitter};
    use super::*;

    #[test]
    fn a_second_copy_on_one_rank_serves_nothing() {
        // Expert 0 twice on rank 0, once on rank 1; expert 1 on rank 1.
        let placement = Placement::new(2, 2, vec![Some(0), Some(0), Some(1), Some(0)]).unwrap();
        let mut splitter = Splitter::new(placement, Method::Exact).unwrap();
        let mut split = Split::default();
        splitter.split(&[10, 4], &mut split).unwrap();
        splitter.check(&[10, 4], &split).unwrap();
        assert_eq!(split.quotas, [7, 0, 4, 3]);
    }
}
