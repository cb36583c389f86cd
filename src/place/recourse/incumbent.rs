//! Placement under change: usable slots, their experts, and the steps between placements.
//!
//! In: the usable slots by rank, and an expert (or none) for each. Out: [`SearchPlacement`], which takes
//! [`SlotChange`]s as steps. A seating without two replicas of an expert on one rank never gets any by an
//! allowed step.

use super::scenarios::ScenarioSet;
use crate::place::{PlaceError, Placement};
use evenkeel_solver::{Hosts, IncrementalSplits, SlotChange, SolverError};

/// Index of a rank. 16 bits suffice for every rank and keep lists of hosts small.
pub(crate) type RankIndex = u16;

/// Expert of every usable slot. Expert `E` stands for an empty slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SearchPlacement {
    experts: usize,
    /// Rank of every usable slot. Slots of a rank are consecutive, and ranks ascend.
    rank_of: Vec<RankIndex>,
    /// First usable slot of every rank, `[R + 1]`.
    starts: Vec<usize>,
    /// Expert in every usable slot, `E` if it is empty.
    slot_experts: Vec<u32>,
    /// Hosts of each expert in no particular order, `[E]`. The row of expert `E` stays empty.
    hosts: Vec<Vec<RankIndex>>,
}

/// Change of one expert's hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostChange {
    /// Expert that changes. `E` for an empty slot, which changes nothing.
    pub(crate) expert: u32,
    /// Rank that the expert leaves.
    pub(crate) from: Option<RankIndex>,
    /// Rank that receives the expert.
    pub(crate) to: Option<RankIndex>,
}

impl SearchPlacement {
    /// Creates empty slots, `slots[r]` usable ones on rank `r`.
    pub(crate) fn with_empty_slots(experts: usize, slots: &[usize]) -> SearchPlacement {
        let mut starts = vec![0];
        let mut rank_of = vec![];
        for (rank, &count) in slots.iter().enumerate() {
            rank_of.extend(std::iter::repeat_n(rank as RankIndex, count));
            starts.push(rank_of.len());
        }
        let slot_experts = vec![experts as u32; rank_of.len()];
        SearchPlacement { experts, rank_of, starts, slot_experts, hosts: vec![vec![]; experts + 1] }
    }

    /// Creates a seating from the part of a placement that fits `slots[r]` usable slots on rank `r`. The
    /// second replica of an expert on a rank is left out.
    pub(crate) fn from_placement(placement: &Placement, slots: &[usize]) -> SearchPlacement {
        let mut seating = SearchPlacement::with_empty_slots(placement.experts(), slots);
        for (rank, held) in placement.slots().chunks(placement.slots_per_rank().max(1)).enumerate() {
            for (slot, &expert) in seating.slots_of(rank as RankIndex).zip(held) {
                if let Some(expert) = expert
                    && !seating.holds(rank as RankIndex, expert)
                {
                    seating.apply(SlotChange::Replace(slot, expert));
                }
            }
        }
        seating
    }

    /// Becomes equal to a placement of the same slots, in the memory that it has.
    pub(crate) fn copy_from(&mut self, other: &SearchPlacement) {
        self.slot_experts.copy_from_slice(&other.slot_experts);
        self.hosts.clone_from_slice(&other.hosts);
    }

    /// Returns the placement. Every rank is filled up with empty slots to the same number.
    ///
    /// # Errors
    /// Returns [`PlaceError`] if an expert has no replica.
    pub(crate) fn placement(&self) -> Result<Placement, PlaceError> {
        let per_rank = self.starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let mut slots = vec![];
        for pair in self.starts.windows(2) {
            let filled = self.slot_experts[pair[0]..pair[1]].iter();
            slots.extend(filled.map(|&expert| (expert as usize != self.experts).then_some(expert)));
            slots.resize(slots.len() + per_rank - (pair[1] - pair[0]), None);
        }
        Ok(Placement::new(self.experts, self.ranks(), slots)?)
    }

    /// Returns the placement in which an expert that stays on a rank keeps its slot of `before`.
    ///
    /// # Errors
    /// Returns [`PlaceError`] if an expert has no replica.
    pub(crate) fn placement_keeping_slots(&self, before: &Placement) -> Result<Placement, PlaceError> {
        let per_rank = before.slots_per_rank();
        let mut slots = vec![None; before.slots().len()];
        for rank in 0..self.ranks() {
            let own = rank * per_rank..(rank + 1) * per_rank;
            let mut here: Vec<u32> =
                self.slots_of(rank as RankIndex).map(|slot| self.slot_experts[slot]).collect();
            here.retain(|&expert| expert as usize != self.experts);
            for slot in own.clone() {
                if let Some(at) = here.iter().position(|&expert| before.slots()[slot] == Some(expert)) {
                    slots[slot] = Some(here.swap_remove(at));
                }
            }
            here.sort_unstable();
            for (slot, expert) in own.filter(|&slot| slots[slot].is_none()).zip(here).collect::<Vec<_>>() {
                slots[slot] = Some(expert);
            }
        }
        Ok(Placement::new(self.experts, self.ranks(), slots)?)
    }

    /// Returns the hosts of all experts in the form of the solver.
    ///
    /// # Errors
    /// Fails if an expert has no host.
    pub(crate) fn solver_hosts(&self) -> Result<Hosts, SolverError> {
        let hosts = self.hosts[..self.experts].iter().map(|hosts| {
            let hosts = hosts.iter().map(|&rank| u32::from(rank));
            hosts.collect::<Vec<u32>>()
        });
        Hosts::new(self.ranks(), hosts)
    }

    /// Returns the splits of these scenarios, which take the same steps.
    ///
    /// # Errors
    /// Fails if an expert has no replica.
    pub(crate) fn incremental_splits(
        &self,
        scenarios: &ScenarioSet,
    ) -> Result<IncrementalSplits, SolverError> {
        let slots: Vec<usize> = self.starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let batches = (0..scenarios.len()).map(|scenario| scenarios.loads(scenario));
        IncrementalSplits::new(&slots, self.experts, &self.slot_experts, batches)
    }

    /// Returns the number of logical experts, `E`.
    pub(crate) fn experts(&self) -> usize {
        self.experts
    }

    /// Returns the number of ranks, `R`.
    pub(crate) fn ranks(&self) -> usize {
        self.starts.len() - 1
    }

    /// Returns the number of usable slots of all ranks.
    pub(crate) fn slots(&self) -> usize {
        self.slot_experts.len()
    }

    /// Returns the usable slots of one rank.
    pub(crate) fn slots_of(&self, rank: RankIndex) -> std::ops::Range<usize> {
        self.starts[rank as usize]..self.starts[rank as usize + 1]
    }

    /// Returns the rank of a usable slot.
    pub(crate) fn rank_of(&self, slot: usize) -> RankIndex {
        self.rank_of[slot]
    }

    /// Returns the expert in a usable slot, `E` if it is empty.
    pub(crate) fn expert_in_slot(&self, slot: usize) -> u32 {
        self.slot_experts[slot]
    }

    /// Returns the hosts of an expert in no particular order, none for expert `E`.
    pub(crate) fn hosts(&self, expert: u32) -> &[RankIndex] {
        &self.hosts[expert as usize]
    }

    /// Returns true if a rank holds an expert.
    pub(crate) fn holds(&self, rank: RankIndex, expert: u32) -> bool {
        self.hosts[expert as usize].contains(&rank)
    }

    /// Returns true if a slot is empty or holds one of several replicas.
    pub(crate) fn is_redundant(&self, slot: usize) -> bool {
        let expert = self.slot_experts[slot];
        expert as usize == self.experts || self.hosts[expert as usize].len() > 1
    }

    /// Returns true if a step leads to a placement, with no expert homeless and none twice on a rank.
    pub(crate) fn allows_step(&self, step: SlotChange) -> bool {
        match step {
            SlotChange::Swap(a, b) => {
                let (e, f) = (self.slot_experts[a], self.slot_experts[b]);
                let (from, to) = (self.rank_of[a], self.rank_of[b]);
                e != f && from != to && !self.holds(to, e) && !self.holds(from, f)
            }
            SlotChange::Replace(slot, expert) => {
                self.is_redundant(slot)
                    && (expert as usize) < self.experts
                    && !self.holds(self.rank_of[slot], expert)
            }
        }
    }

    /// Returns the changes of a step.
    pub(crate) fn step_changes(&self, step: SlotChange) -> [HostChange; 2] {
        match step {
            SlotChange::Swap(a, b) => {
                let (from, to) = (Some(self.rank_of[a]), Some(self.rank_of[b]));
                [
                    HostChange { expert: self.slot_experts[a], from, to },
                    HostChange { expert: self.slot_experts[b], from: to, to: from },
                ]
            }
            SlotChange::Replace(slot, expert) => {
                let rank = Some(self.rank_of[slot]);
                [
                    HostChange { expert: self.slot_experts[slot], from: rank, to: None },
                    HostChange { expert, from: None, to: rank },
                ]
            }
        }
    }

    /// Takes a step and returns the one that undoes it.
    pub(crate) fn apply(&mut self, step: SlotChange) -> SlotChange {
        for HostChange { expert, from, to } in self.step_changes(step) {
            if expert as usize == self.experts {
                continue;
            }
            let hosts = &mut self.hosts[expert as usize];
            if let Some(at) = from.and_then(|from| hosts.iter().position(|&host| host == from)) {
                hosts.swap_remove(at);
            }
            hosts.extend(to);
        }
        match step {
            SlotChange::Swap(a, b) => {
                self.slot_experts.swap(a, b);
                step
            }
            SlotChange::Replace(slot, expert) => {
                SlotChange::Replace(slot, std::mem::replace(&mut self.slot_experts[slot], expert))
            }
        }
    }
}
