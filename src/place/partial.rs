//! A placement in the making: slots are set one by one, and experts may be without a copy meanwhile.

use super::{Placement, PlacementError};
use evenkeel_solver::{Error, Hosts};

/// What every slot holds and which ranks hold each expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) ranks: usize,
    pub(super) per_rank: usize,
    pub(super) slots: Vec<Option<u32>>,
    /// Ascending ranks of each expert, once per copy.
    pub(super) hosts: Vec<Vec<u32>>,
}

impl State {
    pub(super) fn of(placement: &Placement) -> Self {
        Self::of_slots(placement.experts(), placement.ranks(), placement.slots().to_vec())
    }

    /// Slots `[R * S]` that name existing experts only.
    pub(super) fn of_slots(experts: usize, ranks: usize, slots: Vec<Option<u32>>) -> Self {
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

    pub(super) fn put(&mut self, slot: usize, expert: Option<u32>) {
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

    /// Does the rank hold the expert more than once?
    pub(super) fn doubled(&self, rank: u32, expert: u32) -> bool {
        self.hosts[expert as usize].iter().filter(|&&host| host == rank).count() > 1
    }

    /// Ranks that hold the expert.
    pub(super) fn distinct(&self, expert: usize) -> usize {
        let hosts = &self.hosts[expert];
        hosts.len() - hosts.windows(2).filter(|pair| pair[0] == pair[1]).count()
    }

    /// May the slot's content go, when expert `e` has to stay on `need(e)` ranks?
    pub(super) fn spare(&self, slot: usize, need: impl Fn(u32) -> usize) -> bool {
        self.slots[slot].is_none_or(|expert| {
            self.doubled(self.rank_of(slot), expert) || self.distinct(expert as usize) > need(expert)
        })
    }

    /// (Rank, expert) pairs that this holds and `before` did not.
    pub(super) fn moves_from(&self, before: &State) -> usize {
        let new_on = |expert: usize| {
            let mut hosts = self.hosts[expert].clone();
            hosts.dedup();
            hosts.iter().filter(|&&rank| !before.holds(rank, expert as u32)).count()
        };
        (0..self.hosts.len()).map(new_on).sum()
    }

    /// What each rank would serve if every expert's tokens went evenly to its copies, `[R]`.
    pub(super) fn even_loads(&self, totals: &[u64]) -> Vec<u64> {
        let mut loads = vec![0u64; self.ranks];
        for (hosts, &total) in self.hosts.iter().zip(totals) {
            for &rank in hosts {
                loads[rank as usize] += total / hosts.len() as u64;
            }
        }
        loads
    }

    /// For the solver. An expert without a copy counts as one that every rank holds: it favours nobody.
    pub(super) fn compiled(&self) -> Result<Hosts, Error> {
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
