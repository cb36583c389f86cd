//! Where the copies of one layer's experts live.

use evenkeel_solver::Hosts;
use thiserror::Error;

/// The physical-to-logical map of one layer: which expert each slot holds, if any.
///
/// Every logical expert has at least one copy. Two copies of an expert on one rank are possible (foreign
/// placements have them) and useless: see [`Placement::doubled`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    ranks: usize,
    slots: Vec<Option<u32>>,
    /// Copies of expert `e` are `copies[starts[e]..starts[e + 1]]`, ascending slots.
    starts: Vec<usize>,
    copies: Vec<u32>,
}

/// One expert's weights, copied to a rank that did not hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// The expert.
    pub expert: u32,
    /// The rank that receives it.
    pub to: u32,
    /// The slot that it goes to, numbered over all ranks.
    pub slot: u32,
    /// The lowest rank that held it before; `None` where none did.
    pub from: Option<u32>,
}

/// A slot map that is no placement.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// Slots do not divide over the ranks, or there are none of either.
    #[error("{slots} slots do not divide over {ranks} ranks")]
    Shape {
        /// Slots given.
        slots: usize,
        /// Ranks given.
        ranks: usize,
    },
    /// A map of numbers holds one that is neither an expert nor -1.
    #[error("slot {slot}: expert {id}: expected -1 (empty) to {}", experts.saturating_sub(1))]
    Id {
        /// The slot.
        slot: usize,
        /// What stands there.
        id: i64,
        /// Logical experts of the model.
        experts: usize,
    },
    /// A slot names an expert that the model does not have.
    #[error("slot {slot} holds expert {expert}, but there are only {experts} experts (0 to {})", experts - 1)]
    UnknownExpert {
        /// The slot.
        slot: usize,
        /// What it names.
        expert: u32,
        /// Logical experts of the model.
        experts: usize,
    },
    /// An expert lives nowhere.
    #[error("expert {0} has no copy in any slot")]
    Homeless(usize),
    /// No experts, or more ranks than the solver takes.
    #[error("{experts} experts on {ranks} ranks cannot be placed")]
    Size {
        /// Logical experts.
        experts: usize,
        /// Ranks given.
        ranks: usize,
    },
}

impl Placement {
    /// Checks a slot map, `[R * S]`, of `experts` logical experts on `ranks` ranks.
    ///
    /// # Errors
    /// When a slot names an unknown expert, an expert has no copy, or the slots do not divide over the ranks.
    pub fn new(experts: usize, ranks: usize, slots: Vec<Option<u32>>) -> Result<Self, PlacementError> {
        if experts == 0 || ranks > crate::cluster::MAX_RANKS {
            return Err(PlacementError::Size { experts, ranks });
        }
        if ranks == 0 || slots.is_empty() || !slots.len().is_multiple_of(ranks) {
            return Err(PlacementError::Shape { slots: slots.len(), ranks });
        }
        let mut starts = vec![0usize; experts + 1];
        for (slot, expert) in slots.iter().enumerate() {
            let Some(expert) = *expert else { continue };
            let Some(count) = starts.get_mut(expert as usize + 1) else {
                return Err(PlacementError::UnknownExpert { slot, expert, experts });
            };
            *count += 1;
        }
        if let Some(expert) = starts[1..].iter().position(|&count| count == 0) {
            return Err(PlacementError::Homeless(expert));
        }
        for e in 0..experts {
            starts[e + 1] += starts[e];
        }
        let mut next = starts.clone();
        let mut copies = vec![0u32; starts[experts]];
        for (slot, expert) in slots.iter().enumerate() {
            if let Some(expert) = *expert {
                copies[next[expert as usize]] = slot as u32;
                next[expert as usize] += 1;
            }
        }
        Ok(Self { ranks, slots, starts, copies })
    }

    /// As [`Placement::new`], of a map as other languages write it: -1 is an empty slot.
    ///
    /// # Errors
    /// As [`Placement::new`]; [`PlacementError::Id`] for a number that can be no expert.
    pub fn of_ids(experts: usize, ranks: usize, ids: &[i64]) -> Result<Self, PlacementError> {
        let held = |(slot, &id): (usize, &i64)| match id {
            -1 => Ok(None),
            _ => u32::try_from(id).map(Some).map_err(|_| PlacementError::Id { slot, id, experts }),
        };
        Self::new(experts, ranks, ids.iter().enumerate().map(held).collect::<Result<_, _>>()?)
    }

    /// Which expert each slot holds, `[R * S]`; -1 is an empty slot.
    pub fn ids(&self) -> impl Iterator<Item = i64> + '_ {
        self.slots.iter().map(|slot| slot.map_or(-1, i64::from))
    }

    /// Logical experts, `E`.
    pub fn experts(&self) -> usize {
        self.starts.len() - 1
    }

    /// Ranks, `R`.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Slots on each rank, `S`.
    pub fn slots_per_rank(&self) -> usize {
        self.slots.len() / self.ranks
    }

    /// Which expert each slot holds, `[R * S]`; `None` is an empty slot.
    pub fn slots(&self) -> &[Option<u32>] {
        &self.slots
    }

    /// The rank that owns a slot.
    pub fn rank_of(&self, slot: u32) -> usize {
        slot as usize / self.slots_per_rank()
    }

    /// The slots that hold copies of an expert, ascending; never empty.
    pub fn copies(&self, expert: usize) -> &[u32] {
        &self.copies[self.starts[expert]..self.starts[expert + 1]]
    }

    /// The ranks that hold each expert, for the solver; the second copy of an expert on one rank adds nothing.
    ///
    /// # Errors
    /// None for a placement that [`Placement::new`] has checked; the solver checks again.
    pub fn hosts(&self) -> Result<Hosts, evenkeel_solver::Error> {
        Hosts::new(self.ranks, (0..self.experts()).map(|e| self.ranks_of(e)))
    }

    /// The ranks that hold an expert, ascending, each once.
    pub fn ranks_of(&self, expert: usize) -> Vec<u32> {
        let mut ranks: Vec<u32> = self.copies(expert).iter().map(|&s| self.rank_of(s) as u32).collect();
        ranks.dedup();
        ranks
    }

    /// Copies that share their rank with a lower slot's copy of the same expert: memory spent for nothing.
    pub fn doubled(&self) -> usize {
        self.copies.len() - (0..self.experts()).map(|e| self.ranks_of(e).len()).sum::<usize>()
    }

    /// Experts that a rank holds here and did not hold in `old`, summed over the ranks: the weights that have to
    /// be copied from another rank to get from there to here. Changes of order within a rank cost nothing.
    pub fn moves_from(&self, old: &Placement) -> usize {
        self.moves(old).len()
    }

    /// The moves that [`Placement::moves_from`] counts, by rank, then expert. Where `old` holds the expert, any of its
    /// copies can be read; the lowest is named.
    pub fn moves(&self, old: &Placement) -> Vec<Move> {
        let mut moves = Vec::new();
        for expert in 0..self.experts() {
            let before = if expert < old.experts() { old.ranks_of(expert) } else { vec![] };
            let mut last = None;
            for &slot in self.copies(expert) {
                let to = self.rank_of(slot) as u32;
                if last != Some(to) && !before.contains(&to) {
                    moves.push(Move { expert: expert as u32, to, slot, from: before.first().copied() });
                }
                last = Some(to);
            }
        }
        moves.sort_by_key(|m| (m.to, m.expert));
        moves
    }

    /// The same with `width` slots on each rank, the further ones empty; `None` if there are more already.
    pub fn widened(&self, width: usize) -> Option<Placement> {
        let more = width.checked_sub(self.slots_per_rank())?;
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
        assert_eq!(a.copies(0), [0, 5]);
        assert_eq!(a.hosts().unwrap().of(0), [0, 1]);
        let b = placement(2, &[1, 0, 2, 2, 3, 2]).unwrap();
        assert_eq!(b.doubled(), 1);
        assert_eq!(b.moves_from(&a), 1, "expert 2 comes to rank 0; the order within rank 0 is free");
        assert_eq!(a.moves_from(&b), 1, "expert 0 comes to rank 1");
    }

    #[test]
    fn what_is_no_placement_is_refused() {
        assert_eq!(
            Placement::new(2, 1, vec![Some(0), Some(2)]),
            Err(PlacementError::UnknownExpert { slot: 1, expert: 2, experts: 2 })
        );
        assert_eq!(Placement::new(2, 1, vec![Some(0), None]), Err(PlacementError::Homeless(1)));
        assert_eq!(placement(2, &[0, 1, 2]), Err(PlacementError::Shape { slots: 3, ranks: 2 }));
        assert!(Placement::new(0, 1, vec![]).is_err());
        assert!(Placement::new(1, 0, vec![Some(0)]).is_err());
    }
}
