//! What stays the same from batch to batch: hosts, speeds and base loads.

use crate::{Count, Error, Hosts};

/// The fixed part of a split: who may serve what, how fast each rank is, and what it carries anyway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    hosts: Hosts,
    speeds: Vec<u32>,
    base: Vec<u64>,
    /// The speed of every rank, where all are equal.
    common_speed: Option<u32>,
    /// The sum of all base loads, unless it exceeds 64 bits.
    base_sum: Option<u64>,
}

impl Problem {
    /// All speeds 1, no base load.
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

    /// Sets the speed of every rank: a rank of speed 2 does twice the work in the same time.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one speed per rank; [`Error::ZeroSpeed`] if one is zero.
    pub fn with_speeds(self, speeds: Vec<u32>) -> Result<Problem, Error> {
        check_length("speeds", self.hosts.ranks(), speeds.len())?;
        if let Some(rank) = speeds.iter().position(|&speed| speed == 0) {
            return Err(Error::ZeroSpeed { rank });
        }
        let common_speed = speeds.first().copied().filter(|first| speeds.iter().all(|s| s == first));
        Ok(Problem { speeds, common_speed, ..self })
    }

    /// Sets the load that every rank carries before any item is served.
    ///
    /// # Errors
    /// [`Error::Length`] unless there is one base load per rank.
    pub fn with_base(self, base: Vec<u64>) -> Result<Problem, Error> {
        check_length("base loads", self.hosts.ranks(), base.len())?;
        let base_sum = base.iter().try_fold(0u64, |sum, &load| sum.checked_add(load));
        Ok(Problem { base, base_sum, ..self })
    }

    /// Which ranks may serve which item.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// The speed of every rank.
    pub fn speeds(&self) -> &[u32] {
        &self.speeds
    }

    /// The base load of every rank.
    pub fn base(&self) -> &[u64] {
        &self.base
    }

    /// The speed of every rank, where all are equal.
    pub(crate) fn common_speed(&self) -> Option<u32> {
        self.common_speed
    }

    /// The sum of all base loads, unless it exceeds 64 bits.
    pub(crate) fn base_sum(&self) -> Option<u64> {
        self.base_sum
    }

    /// Checks the loads and adds them all up, base loads included.
    pub(crate) fn total<C: Count>(&self, loads: &[C]) -> Result<u64, Error> {
        check_length("loads", self.hosts.items(), loads.len())?;
        self.base_sum.and_then(|base| C::sum(loads, base)).ok_or(Error::Overflow)
    }
}

fn check_length(what: &'static str, expected: usize, got: usize) -> Result<(), Error> {
    if expected == got { Ok(()) } else { Err(Error::Length { what, expected, got }) }
}
