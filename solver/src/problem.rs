//! Constant part of all batches: hosts, speeds and base loads.

use crate::{Count, Hosts, SolverError};

/// Fixed part of a split: the hosts of each item, and the speed and base load of each rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    hosts: Hosts,
    speeds: Vec<u32>,
    base: Vec<u64>,
    /// Speed of every rank, if all are equal.
    common_speed: Option<u32>,
    /// Sum of all base loads, unless it exceeds 64 bits.
    base_sum: Option<u64>,
}

impl Problem {
    /// Creates a problem with all speeds 1 and no base load.
    pub fn new(hosts: Hosts) -> Problem {
        let ranks = hosts.ranks();
        Problem {
            hosts,
            speeds: vec![1; ranks],
            base: vec![0; ranks],
            common_speed: Some(1),
            base_sum: Some(0),
        }
    }

    /// Sets the speed of every rank. A rank of speed 2 does twice the work in the same time.
    ///
    /// # Errors
    /// Returns [`SolverError::Length`] unless there is one speed per rank, and [`SolverError::ZeroSpeed`] if
    /// one is zero.
    pub fn with_speeds(self, speeds: Vec<u32>) -> Result<Problem, SolverError> {
        check_length("speeds", self.hosts.ranks(), speeds.len())?;
        if let Some(rank) = speeds.iter().position(|&speed| speed == 0) {
            return Err(SolverError::ZeroSpeed { rank });
        }
        let common_speed = speeds.first().copied().filter(|first| speeds.iter().all(|s| s == first));
        Ok(Problem { speeds, common_speed, ..self })
    }

    /// Sets the load that every rank carries before any item is served.
    ///
    /// # Errors
    /// Returns [`SolverError::Length`] unless there is one base load per rank.
    pub fn with_base_loads(self, base: Vec<u64>) -> Result<Problem, SolverError> {
        check_length("base loads", self.hosts.ranks(), base.len())?;
        let base_sum = base.iter().try_fold(0u64, |sum, &load| sum.checked_add(load));
        Ok(Problem { base, base_sum, ..self })
    }

    /// Returns the hosts of every item.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// Returns the speed of every rank.
    pub fn speeds(&self) -> &[u32] {
        &self.speeds
    }

    /// Returns the base load of every rank.
    pub fn base_loads(&self) -> &[u64] {
        &self.base
    }

    /// Returns the speed of every rank, if all are equal.
    pub(crate) fn common_speed(&self) -> Option<u32> {
        self.common_speed
    }

    /// Returns the sum of all base loads, unless it exceeds 64 bits.
    pub(crate) fn base_sum(&self) -> Option<u64> {
        self.base_sum
    }

    /// Checks the loads and returns their sum, base loads included.
    pub(crate) fn checked_total<C: Count>(&self, loads: &[C]) -> Result<u64, SolverError> {
        check_length("loads", self.hosts.items(), loads.len())?;
        self.base_sum.and_then(|base| C::checked_sum(loads, base)).ok_or(SolverError::Overflow)
    }
}

fn check_length(what: &'static str, expected: usize, got: usize) -> Result<(), SolverError> {
    if expected == got { Ok(()) } else { Err(SolverError::Length { what, expected, got }) }
}
