//! Placement of one layer's experts in slots.

use crate::cluster::{MAX_EXPERTS, MAX_RANKS, MAX_SLOTS};
use evenkeel_solver::Hosts;
use thiserror::Error;

/// Map from slots to logical experts of one layer. Slots may be empty.
///
/// Every logical expert has at least one replica. Foreign placements may have two replicas of an expert on
/// one rank, which is useless: see [`Placement::same_rank_duplicates`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    ranks: usize,
    slots: Vec<Option<u32>>,
    /// Replicas of expert `e` are `replicas[starts[e]..starts[e + 1]]`, ascending slots.
    starts: Vec<usize>,
    replicas: Vec<u32>,
}

/// Weights of one expert that go to a rank that did not hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExpertMove {
    /// Expert that moves.
    pub expert: u32,
    /// Rank that receives the expert.
    pub to: u32,
    /// Slot that receives the expert, numbered over all ranks.
    pub slot: u32,
    /// Lowest rank that held the expert before. `None` if no rank did.
    pub from: Option<u32>,
}

/// Reasons for which a map of slots is no placement.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// Slots do not divide over the ranks, or there are no slots or ranks.
    #[error("{slots} slots do not divide over {ranks} ranks")]
    Shape {
        /// Number of slots found.
        slots: usize,
        /// Number of ranks found.
        ranks: usize,
    },
    /// A map of numbers contains one that is neither an expert nor -1.
    #[error("slot {slot}: expert {id}: expected -1 (empty) to {}", experts.saturating_sub(1))]
    Id {
        /// Slot in question.
        slot: usize,
        /// Number found.
        id: i64,
        /// Logical experts of the model.
        experts: usize,
    },
    /// A slot contains an expert that the model does not have.
    #[error("slot {slot} holds expert {expert}, but there are only {experts} experts (0 to {})", experts - 1)]
    UnknownExpert {
        /// Slot in question.
        slot: usize,
        /// Expert found.
        expert: u32,
        /// Logical experts of the model.
        experts: usize,
    },
    /// An expert has no replica.
    #[error("expert {0} has no replica in any slot")]
    Unplaced(usize),
    /// There are no experts, or more experts, ranks or slots than allowed.
    #[error(
        "{experts} experts in {slots} slots on {ranks} ranks: expected 1 to {MAX_EXPERTS} experts, {} slots and \
         {MAX_RANKS} ranks at most", MAX_SLOTS + MAX_RANKS
    )]
    Size {
        /// Number of logical experts.
        experts: usize,
        /// Number of ranks found.
        ranks: usize,
        /// Number of slots found.
        slots: usize,
    },
}

impl Placement {
    /// Checks a map of slots, `[R * S]`, of `experts` logical experts on `ranks` ranks.
    ///
    /// # Errors
    /// Fails if a slot contains an unknown expert, if an expert has no replica, or if the slots do not divide
    /// over the ranks.
    pub fn new(experts: usize, ranks: usize, slots: Vec<Option<u32>>) -> Result<Self, PlacementError> {
        // Slots that do not divide over the ranks are rounded up, so that the limit is higher.
        let most = MAX_SLOTS + MAX_RANKS;
        if !(1..=MAX_EXPERTS).contains(&experts) || ranks > MAX_RANKS || slots.len() > most {
            return Err(PlacementError::Size { experts, ranks, slots: slots.len() });
        }
        if ranks == 0 || slots.is_empty() || !slots.len().is_multiple_of(ranks) {
            return Err(PlacementError::Shape { slots: slots.len(), ranks });
        }
        let mut is_placed = vec![false; experts];
        for (slot, expert) in slots.iter().enumerate() {
            let Some(expert) = *expert else { continue };
            match is_placed.get_mut(expert as usize) {
                Some(is_placed) => *is_placed = true,
                None => return Err(PlacementError::UnknownExpert { slot, expert, experts }),
            }
        }
        if let Some(expert) = is_placed.iter().position(|&is_placed| !is_placed) {
            return Err(PlacementError::Unplaced(expert));
        }
        let mut placement = Self { ranks, slots, starts: vec![0; experts + 1], replicas: vec![] };
        placement.list_replicas();
        Ok(placement)
    }

    /// Lists the slots of every expert's replicas, for slots that are valid.
    fn list_replicas(&mut self) {
        let held = self.slots.iter().flatten().count();
        self.starts.fill(0);
        self.replicas.clear();
        self.replicas.resize(held, 0);
        // Slots are counted one entry further than their expert. Filling advances each entry to its end.
        for &expert in self.slots.iter().flatten() {
            if let Some(count) = self.starts.get_mut(expert as usize + 2) {
                *count += 1;
            }
        }
        for e in 1..self.starts.len() {
            self.starts[e] += self.starts[e - 1];
        }
        for (slot, expert) in self.slots.iter().enumerate() {
            if let Some(expert) = *expert {
                let next = &mut self.starts[expert as usize + 1];
                self.replicas[*next] = slot as u32;
                *next += 1;
            }
        }
    }

    /// Replaces the contents of some slots, by experts of the model. Every expert keeps a replica in another
    /// slot. Returns false if nothing changes.
    pub(crate) fn replace(&mut self, contents: impl Iterator<Item = (u32, Option<u32>)>) -> bool {
        let mut changed = false;
        for (slot, expert) in contents {
            changed |= self.slots[slot as usize] != expert;
            self.slots[slot as usize] = expert;
        }
        if changed {
            self.list_replicas();
        }
        changed
    }

    /// Checks a map as [`Placement::new`] does, in the form of other languages, where -1 is an empty slot.
    ///
    /// # Errors
    /// Fails as [`Placement::new`] does. Returns [`PlacementError::Id`] for a number that cannot be an
    /// expert.
    pub fn from_ids(experts: usize, ranks: usize, ids: &[i64]) -> Result<Self, PlacementError> {
        if ids.len() > MAX_SLOTS + MAX_RANKS {
            return Err(PlacementError::Size { experts, ranks, slots: ids.len() });
        }
        let held = |(slot, &id): (usize, &i64)| match id {
            -1 => Ok(None),
            _ => u32::try_from(id).map(Some).map_err(|_| PlacementError::Id { slot, id, experts }),
        };
        Self::new(experts, ranks, ids.iter().enumerate().map(held).collect::<Result<_, _>>()?)
    }

    /// Returns the expert of each slot, `[R * S]`, with -1 for an empty slot.
    pub fn slot_ids(&self) -> impl Iterator<Item = i64> + '_ {
        self.slots.iter().map(|slot| slot.map_or(-1, i64::from))
    }

    /// Returns the number of logical experts, `E`.
    pub fn experts(&self) -> usize {
        self.starts.len() - 1
    }

    /// Returns the number of ranks, `R`.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Returns the number of slots on each rank, `S`.
    pub fn slots_per_rank(&self) -> usize {
        self.slots.len() / self.ranks
    }

    /// Returns the expert of each slot, `[R * S]`, with `None` for an empty slot.
    pub fn slots(&self) -> &[Option<u32>] {
        &self.slots
    }

    /// Returns the rank that owns a slot.
    pub fn rank_of(&self, slot: u32) -> usize {
        slot as usize / self.slots_per_rank()
    }

    /// Returns the slots of an expert's replicas, ascending and never empty.
    pub fn replicas(&self, expert: usize) -> &[u32] {
        &self.replicas[self.starts[expert]..self.starts[expert + 1]]
    }

    /// Returns the hosts of each expert for the solver. The second replica of an expert on one rank adds
    /// nothing.
    ///
    /// # Errors
    /// Succeeds for every placement that [`Placement::new`] has checked, but the solver checks again.
    pub fn hosts(&self) -> Result<Hosts, evenkeel_solver::SolverError> {
        Hosts::new(self.ranks, (0..self.experts()).map(|e| self.ranks_of(e)))
    }

    /// Returns the hosts of an expert, ascending, each once.
    pub fn ranks_of(&self, expert: usize) -> Vec<u32> {
        let mut ranks: Vec<u32> = self.replicas(expert).iter().map(|&s| self.rank_of(s) as u32).collect();
        ranks.dedup();
        ranks
    }

    /// Returns the number of replicas on a rank where a lower slot holds the same expert. They waste memory.
    pub fn same_rank_duplicates(&self) -> usize {
        self.replicas.len() - (0..self.experts()).map(|e| self.ranks_of(e).len()).sum::<usize>()
    }

    /// Returns the number of experts that a rank holds here and did not hold in `old`, summed over the ranks.
    /// Their weights have to be transferred from another rank. Changes of order within a rank cost nothing.
    pub fn moves_from(&self, old: &Placement) -> usize {
        self.moves(old).len()
    }

    /// Returns the moves that [`Placement::moves_from`] counts, by rank, then expert. Any replica in `old`
    /// can be the source of a transfer. The move names the lowest.
    pub fn moves(&self, old: &Placement) -> Vec<ExpertMove> {
        let origins: Vec<Option<usize>> =
            (0..self.ranks).map(|rank| (rank < old.ranks).then_some(rank)).collect();
        self.moves_from_origins(old, &origins)
    }

    /// Returns the moves as [`Placement::moves`] does, on changed ranks: `origins` holds the rank of `old` of
    /// each rank here, `None` for a rank that joins. All numbers of ranks are those of this placement.
    /// [`ExpertMove::from`] is `None` if no rank that stays has held the expert.
    pub fn moves_from_origins(&self, old: &Placement, origins: &[Option<usize>]) -> Vec<ExpertMove> {
        let mut moves = Vec::new();
        for expert in 0..self.experts() {
            let held = if expert < old.experts() { old.ranks_of(expert) } else { vec![] };
            let holds = |origin: &Option<usize>| origin.is_some_and(|was| held.contains(&(was as u32)));
            let before: Vec<u32> =
                (0u32..).zip(origins).filter(|(_, origin)| holds(origin)).map(|(rank, _)| rank).collect();
            let mut last = None;
            for &slot in self.replicas(expert) {
                let to = self.rank_of(slot) as u32;
                if last != Some(to) && !before.contains(&to) {
                    moves.push(ExpertMove { expert: expert as u32, to, slot, from: before.first().copied() });
                }
                last = Some(to);
            }
        }
        moves.sort_by_key(|m| (m.to, m.expert));
        moves
    }

    /// Returns the placement with `width` slots on each rank, the added ones empty. Returns `None` if ranks
    /// have more slots already, or if the slots are too many.
    pub fn with_slots_per_rank(&self, width: usize) -> Option<Placement> {
        let more = width.checked_sub(self.slots_per_rank())?;
        width.checked_mul(self.ranks).filter(|&slots| slots <= MAX_SLOTS + MAX_RANKS)?;
        let ranks = self.slots.chunks(self.slots_per_rank());
        let slots = ranks.flat_map(|rank| rank.iter().copied().chain(std::iter::repeat_n(None, more)));
        Placement::new(self.experts(), self.ranks, slots.collect()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(ranks: usize, slots: &[i64]) -> Result<Placement, PlacementError> {
        let experts = slots.iter().max().map_or(0, |&m| m + 1) as usize;
        Placement::new(experts, ranks, slots.iter().map(|&s| u32::try_from(s).ok()).collect())
    }

    #[test]
    fn copies_hosts_and_moves() {
        let a = placement(2, &[0, 1, -1, 2, 3, 0]).unwrap();
        assert_eq!(a.replicas(0), [0, 5]);
        assert_eq!(a.hosts().unwrap().ranks_of(0), [0, 1]);
        let b = placement(2, &[1, 0, 2, 2, 3, 2]).unwrap();
        assert_eq!(b.same_rank_duplicates(), 1);
        assert_eq!(b.moves_from(&a), 1, "expert 2 comes to rank 0; the order within rank 0 is free");
        assert_eq!(a.moves_from(&b), 1, "expert 0 comes to rank 1");
    }

    #[test]
    fn what_is_no_placement_is_refused() {
        assert_eq!(
            Placement::new(2, 1, vec![Some(0), Some(2)]),
            Err(PlacementError::UnknownExpert { slot: 1, expert: 2, experts: 2 })
        );
        assert_eq!(Placement::new(2, 1, vec![Some(0), None]), Err(PlacementError::Unplaced(1)));
        assert_eq!(placement(2, &[0, 1, 2]), Err(PlacementError::Shape { slots: 3, ranks: 2 }));
        assert!(Placement::new(0, 1, vec![]).is_err());
        assert!(Placement::new(1, 0, vec![Some(0)]).is_err());
    }
}
