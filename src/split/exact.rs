//! Exact split with certificate: the solver's result, converted from ranks to slots.

use super::{Split, SplitError};
use crate::place::Placement;
use evenkeel_solver::{Problem, Workspace};

#[derive(Debug)]
pub(super) struct ExactSplitter {
    problem: Problem,
    workspace: Workspace,
    answer: evenkeel_solver::RankSplit,
    /// Slot of every (expert, host) pair.
    slot_of: Vec<u32>,
}

impl ExactSplitter {
    pub(super) fn new(placement: &Placement) -> Result<Self, SplitError> {
        let problem = Problem::new(placement.hosts()?);
        let workspace = Workspace::new(&problem);
        let slot_of = slots_of_hosts(placement, &problem);
        Ok(Self { problem, workspace, answer: evenkeel_solver::RankSplit::default(), slot_of })
    }

    /// Splits one batch. All quotas of `split` are zero before.
    pub(super) fn split(&mut self, loads: &[u64], split: &mut Split) -> Result<(), SplitError> {
        evenkeel_solver::solve_into(&self.problem, loads, &mut self.workspace, &mut self.answer)?;
        copy_to_slots(&self.answer, &self.slot_of, split);
        Ok(())
    }

    /// Verifies the last result, and that `split` equals it.
    pub(super) fn check(&self, loads: &[u64], split: &Split) -> Result<(), String> {
        evenkeel_solver::verify(&self.problem, loads, &self.answer).map_err(|e| e.to_string())?;
        if split.rank_loads != self.answer.rank_loads || split.certificate != self.answer.certificate {
            return Err("slots and ranks disagree".into());
        }
        Ok(())
    }
}

/// Converts a result of the solver from ranks to slots. All quotas of `split` are zero before.
pub(super) fn copy_to_slots(answer: &evenkeel_solver::RankSplit, slot_of: &[u32], split: &mut Split) {
    for (&quota, &slot) in answer.quotas.iter().zip(slot_of) {
        split.quotas[slot as usize] = quota;
    }
    split.rank_loads.clone_from(&answer.rank_loads);
    split.certificate.clone_from(&answer.certificate);
}

/// Returns the slot of every (expert, host) pair of the problem: the lowest slot of that rank that holds the
/// expert. A second replica on the same rank serves nothing.
pub(super) fn slots_of_hosts(placement: &Placement, problem: &Problem) -> Vec<u32> {
    let mut slots = Vec::with_capacity(problem.hosts().len());
    for expert in 0..placement.experts() {
        let mut last = usize::MAX;
        for &slot in placement.replicas(expert) {
            let rank = placement.rank_of(slot);
            if rank != last {
                slots.push(slot);
                last = rank;
            }
        }
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::super::{SplitMethod, Splitter};
    use super::*;

    #[test]
    fn a_second_copy_on_one_rank_serves_nothing() {
        // Expert 0 is twice on rank 0 and once on rank 1. Expert 1 is on rank 1.
        let placement = Placement::new(2, 2, vec![Some(0), Some(0), Some(1), Some(0)]).unwrap();
        let mut splitter = Splitter::new(placement, SplitMethod::Exact).unwrap();
        let mut split = Split::default();
        splitter.split(&[10, 4], &mut split).unwrap();
        splitter.check(&[10, 4], &split).unwrap();
        assert_eq!(split.quotas, [7, 0, 4, 3]);
    }
}
