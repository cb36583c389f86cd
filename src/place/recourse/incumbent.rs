//! A placement that is being changed: usable slots, who sits where, and the moves between placements.
//!
//! In: an explicit list of usable slots by rank, and an expert (or none) for each. Out: [`Seating`], which never holds two
//! copies of an expert on one rank once it has none, and [`Step`]s that keep it so.

use crate::place::{PlaceError, Placement};

/// The longest list of hosts worth keeping inline is short; ranks fit 16 bits.
pub(crate) type Rank = u16;

/// Who sits in which usable slot. Expert `E` stands for nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seating {
    experts: usize,
    /// The rank of every usable slot; slots of a rank are consecutive, ranks ascending.
    rank_of: Vec<Rank>,
    /// First usable slot of every rank, `[R + 1]`.
    starts: Vec<usize>,
    /// The expert in every usable slot; `E` where it is empty.
    held: Vec<u32>,
    /// The ranks that hold each expert, in no order, `[E]`; the row of expert `E` stays empty.
    hosts: Vec<Vec<Rank>>,
}

/// One expert's change of hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    /// The expert; `E` where an empty slot changes, which changes nothing.
    pub(crate) expert: u32,
    /// The rank that it leaves.
    pub(crate) from: Option<Rank>,
    /// The rank that it comes to.
    pub(crate) to: Option<Rank>,
}

/// A step from one placement to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The experts of two slots change places.
    Swap(usize, usize),
    /// A slot is given to another expert.
    Retarget(usize, u32),
}

impl Seating {
    /// Empty slots: `slots[r]` usable ones on rank `r`.
    pub(crate) fn empty(experts: usize, slots: &[usize]) -> Seating {
        let mut starts = vec![0];
        let mut rank_of = vec![];
        for (rank, &count) in slots.iter().enumerate() {
            rank_of.extend(std::iter::repeat_n(rank as Rank, count));
            starts.push(rank_of.len());
        }
        let held = vec![experts as u32; rank_of.len()];
        Seating { experts, rank_of, starts, held, hosts: vec![vec![]; experts + 1] }
    }

    /// Takes over a placement, as far as `slots[r]` usable ones on rank `r` hold it; the second copy of an expert on a rank
    /// is left out.
    pub(crate) fn of(placement: &Placement, slots: &[usize]) -> Seating {
        let mut seating = Seating::empty(placement.experts(), slots);
        for (rank, held) in placement.slots().chunks(placement.slots_per_rank().max(1)).enumerate() {
            for (slot, &expert) in seating.slots_of(rank as Rank).zip(held) {
                if let Some(expert) = expert
                    && !seating.holds(rank as Rank, expert)
                {
                    seating.apply(Step::Retarget(slot, expert));
                }
            }
        }
        seating
    }

    /// The placement, every rank's usable slots filled up with empty ones to the same number.
    ///
    /// # Errors
    /// [`PlaceError`] where an expert has no copy.
    pub(crate) fn placement(&self) -> Result<Placement, PlaceError> {
        let per_rank = self.starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        let mut slots = vec![];
        for pair in self.starts.windows(2) {
            let filled = self.held[pair[0]..pair[1]].iter();
            slots.extend(filled.map(|&expert| (expert as usize != self.experts).then_some(expert)));
            slots.resize(slots.len() + per_rank - (pair[1] - pair[0]), None);
        }
        Ok(Placement::new(self.experts, self.ranks(), slots)?)
    }

    /// The placement, in which every expert that a rank of `before` held, and still holds, keeps its slot.
    ///
    /// # Errors
    /// [`PlaceError`] where an expert has no copy.
    pub(crate) fn kept_in(&self, before: &Placement) -> Result<Placement, PlaceError> {
        let per_rank = before.slots_per_rank();
        let mut slots = vec![None; before.slots().len()];
        for rank in 0..self.ranks() {
            let own = rank * per_rank..(rank + 1) * per_rank;
            let mut here: Vec<u32> = self.slots_of(rank as Rank).map(|slot| self.held[slot]).collect();
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

    /// Logical experts, `E`.
    pub(crate) fn experts(&self) -> usize {
        self.experts
    }

    /// Ranks, `R`.
    pub(crate) fn ranks(&self) -> usize {
        self.starts.len() - 1
    }

    /// Usable slots of all ranks.
    pub(crate) fn slots(&self) -> usize {
        self.held.len()
    }

    /// Usable slots of one rank.
    pub(crate) fn slots_of(&self, rank: Rank) -> std::ops::Range<usize> {
        self.starts[rank as usize]..self.starts[rank as usize + 1]
    }

    /// The rank of a usable slot.
    pub(crate) fn rank(&self, slot: usize) -> Rank {
        self.rank_of[slot]
    }

    /// The expert in a usable slot; `E` where it is empty.
    pub(crate) fn held(&self, slot: usize) -> u32 {
        self.held[slot]
    }

    /// The ranks that hold an expert, in no order; none for expert `E`.
    pub(crate) fn hosts(&self, expert: u32) -> &[Rank] {
        &self.hosts[expert as usize]
    }

    /// Whether a rank holds an expert.
    pub(crate) fn holds(&self, rank: Rank, expert: u32) -> bool {
        self.hosts[expert as usize].contains(&rank)
    }

    /// Whether a slot is empty or holds one of several copies.
    pub(crate) fn redundant(&self, slot: usize) -> bool {
        let expert = self.held[slot];
        expert as usize == self.experts || self.hosts[expert as usize].len() > 1
    }

    /// Whether a step leads to a placement: no expert homeless, none twice on a rank.
    pub(crate) fn allows(&self, step: Step) -> bool {
        match step {
            Step::Swap(a, b) => {
                let (e, f) = (self.held[a], self.held[b]);
                let (from, to) = (self.rank_of[a], self.rank_of[b]);
                e != f && from != to && !self.holds(to, e) && !self.holds(from, f)
            }
            Step::Retarget(slot, expert) => {
                self.redundant(slot)
                    && (expert as usize) < self.experts
                    && !self.holds(self.rank_of[slot], expert)
            }
        }
    }

    /// What a step changes.
    pub(crate) fn changes(&self, step: Step) -> [Change; 2] {
        match step {
            Step::Swap(a, b) => {
                let (from, to) = (Some(self.rank_of[a]), Some(self.rank_of[b]));
                [
                    Change { expert: self.held[a], from, to },
                    Change { expert: self.held[b], from: to, to: from },
                ]
            }
            Step::Retarget(slot, expert) => {
                let rank = Some(self.rank_of[slot]);
                [
                    Change { expert: self.held[slot], from: rank, to: None },
                    Change { expert, from: None, to: rank },
                ]
            }
        }
    }

    /// Takes a step and returns the one that undoes it.
    pub(crate) fn apply(&mut self, step: Step) -> Step {
        for Change { expert, from, to } in self.changes(step) {
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
            Step::Swap(a, b) => {
                self.held.swap(a, b);
                step
            }
            Step::Retarget(slot, expert) => {
                Step::Retarget(slot, std::mem::replace(&mut self.held[slot], expert))
            }
        }
    }
}
