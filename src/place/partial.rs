//! Placement under construction: slots are set one by one, and experts may lack replicas for a while.

use super::{Placement, PlacementError};
use evenkeel_solver::{Hosts, SolverError};

/// Content of every slot, and hosts of each expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PartialPlacement {
    pub(super) ranks: usize,
    pub(super) per_rank: usize,
    pub(super) slots: Vec<Option<u32>>,
    /// Hosts of each expert, ascending, once per replica.
    pub(super) hosts: Vec<Vec<u32>>,
}

impl PartialPlacement {
    pub(super) fn from_placement(placement: &Placement) -> Self {
        Self::from_slots(placement.experts(), placement.ranks(), placement.slots().to_vec())
    }

    /// Creates the state from slots `[R * S]` that contain only existing experts.
    pub(super) fn from_slots(experts: usize, ranks: usize, slots: Vec<Option<u32>>) -> Self {
        let per_rank = slots.len() / ranks.max(1);
        let mut hosts = vec![vec![]; experts];
        for (slot, expert) in slots.iter().enumerate() {
            if let Some(expert) = *expert {
                hosts[expert as usize].push((slot / per_rank) as u32);
            }
        }
        Self { ranks, per_rank, slots, hosts }
    }

    pub(super) fn placement(self) -> Result<Placement, PlacementError> {
        Placement::new(self.hosts.len(), self.ranks, self.slots)
    }

    pub(super) fn rank_of(&self, slot: usize) -> u32 {
        (slot / self.per_rank) as u32
    }

    pub(super) fn set_slot(&mut self, slot: usize, expert: Option<u32>) {
        let rank = self.rank_of(slot);
        if let Some(old) = std::mem::replace(&mut self.slots[slot], expert) {
            let hosts = &mut self.hosts[old as usize];
            if let Some(at) = hosts.iter().position(|&host| host == rank) {
                hosts.remove(at);
            }
        }
        if let Some(new) = expert {
            let hosts = &mut self.hosts[new as usize];
            hosts.insert(hosts.partition_point(|&host| host < rank), rank);
        }
    }

    pub(super) fn holds(&self, rank: u32, expert: u32) -> bool {
        self.hosts[expert as usize].contains(&rank)
    }

    /// Returns true if the rank holds the expert more than once.
    pub(super) fn holds_twice(&self, rank: u32, expert: u32) -> bool {
        self.hosts[expert as usize].iter().filter(|&&host| host == rank).count() > 1
    }

    /// Returns the number of ranks that hold the expert.
    pub(super) fn host_count(&self, expert: usize) -> usize {
        let hosts = &self.hosts[expert];
        hosts.len() - hosts.windows(2).filter(|pair| pair[0] == pair[1]).count()
    }

    /// Returns true if the slot's content may go, where expert `e` has to stay on `need(e)` ranks.
    pub(super) fn is_spare(&self, slot: usize, need: impl Fn(u32) -> usize) -> bool {
        self.slots[slot].is_none_or(|expert| {
            self.holds_twice(self.rank_of(slot), expert) || self.host_count(expert as usize) > need(expert)
        })
    }

    /// Returns the number of (rank, expert) pairs that are here and not in `before`.
    pub(super) fn moves_from(&self, before: &PartialPlacement) -> usize {
        let new_on = |expert: usize| {
            let mut hosts = self.hosts[expert].clone();
            hosts.dedup();
            hosts.iter().filter(|&&rank| !before.holds(rank, expert as u32)).count()
        };
        (0..self.hosts.len()).map(new_on).sum()
    }

    /// Returns the load of each rank if every expert's tokens were split evenly over its replicas, `[R]`.
    pub(super) fn even_loads(&self, totals: &[u64]) -> Vec<u64> {
        let mut loads = vec![0u64; self.ranks];
        for (hosts, &total) in self.hosts.iter().zip(totals) {
            for &rank in hosts {
                loads[rank as usize] += total / hosts.len() as u64;
            }
        }
        loads
    }

    /// Returns the hosts for the solver. An expert without a replica counts as hosted by every rank, so that
    /// it favours none.
    pub(super) fn solver_hosts(&self) -> Result<Hosts, SolverError> {
        let everywhere: Vec<u32> = (0..self.ranks as u32).collect();
        Hosts::new(
            self.ranks,
            self.hosts.iter().map(|hosts| {
                let mut hosts = if hosts.is_empty() { everywhere.clone() } else { hosts.clone() };
                hosts.dedup();
                hosts
            }),
        )
    }
}
