//! The split as a linear programme, solved by a general engine and rounded by largest remainder.

use super::SplitError;
use super::exact::slots_of_hosts;
use super::rounding::largest_remainder;
use crate::place::Placement;
use evenkeel_solver::Problem;
use evenkeel_solver::lp::{self, LpEngine};

#[derive(Debug)]
pub(super) struct LpSplitter {
    problem: Problem,
}

impl LpSplitter {
    pub(super) fn new(placement: &Placement) -> Result<Self, SplitError> {
        Ok(Self { problem: Problem::new(placement.hosts()?) })
    }

    pub(super) fn split(
        &self,
        placement: &Placement,
        loads: &[u64],
        quotas: &mut [u64],
    ) -> Result<(), SplitError> {
        let answer = lp::solve(&self.problem, loads, LpEngine::best_available())?;
        assign_rounded(placement, &self.problem, loads, quotas, &answer.quotas);
        Ok(())
    }
}

/// Rounds fractional quotas in the solver's order and assigns them to their slots.
pub(super) fn assign_rounded(
    placement: &Placement,
    problem: &Problem,
    loads: &[u64],
    quotas: &mut [u64],
    fractions: &[f64],
) {
    let hosts = problem.hosts();
    let mut whole = vec![0; fractions.len()];
    for (expert, &load) in loads.iter().enumerate() {
        let range = hosts.offset(expert)..hosts.offset(expert) + hosts.ranks_of(expert).len();
        largest_remainder(&fractions[range.clone()], load, &mut whole[range]);
    }
    for (slot, quota) in slots_of_hosts(placement, problem).into_iter().zip(whole) {
        quotas[slot as usize] = quota;
    }
}
