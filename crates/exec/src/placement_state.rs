//! The placements of all layers on the ranks of a group, and the experts staged for the next ones.
//!
//! All processes of a group have the same state, because they change it alike.

use super::backend::ExecConfig;
use super::comm::{ProcessGroup, placement_digest};
use super::error::ExecError;
use evenkeel::place::Placement;
use std::collections::BTreeSet;
use std::rc::Rc;

/// The bytes of the weights on a rank. Weights that are equal on all ranks may be stored once, and count for
/// each rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WeightBytes {
    /// Weights in use: routed and shared experts, norms, routers. Dynamic slots count, filled or not.
    pub in_use: u64,
    /// Experts in staging slots or on their way there.
    pub staged: u64,
}

/// The placements of a backend.
#[derive(Debug)]
pub struct PlacementState {
    group: Rc<ProcessGroup>,
    experts: usize,
    slots: usize,
    placements: Vec<Placement>,
    /// Layer, rank and expert of all experts in staging slots or on their way there, on any rank.
    staged: BTreeSet<(usize, usize, u32)>,
    expert_bytes: u64,
    replicated_bytes: u64,
    /// Dynamic slots of a rank in all layers together.
    dynamic_slots: u64,
}

impl PlacementState {
    /// Starts with one placement per layer. `expert_bytes` are those of any routed expert, and
    /// `replicated_bytes` those of all weights that every rank has.
    ///
    /// # Errors
    /// Fails if a placement does not fit, if it differs from that of another process, or if the group has
    /// another number of ranks.
    pub fn new(
        config: &ExecConfig,
        group: Rc<ProcessGroup>,
        placements: Vec<Placement>,
        [expert_bytes, replicated_bytes]: [u64; 2],
    ) -> Result<Self, ExecError> {
        ExecError::expect_size("ranks of the group", group.ranks(), config.cluster.ranks())?;
        let (experts, slots) = (config.model.experts, config.cluster.slots());
        config.check_dynamic()?;
        let dynamic_slots = config.dynamic_cells(placements.len()) as u64;
        let staged = BTreeSet::new();
        let state =
            Self { group, experts, slots, placements, staged, expert_bytes, replicated_bytes, dynamic_slots };
        for (layer, placement) in state.placements.iter().enumerate() {
            state.expect_fit(placement)?;
            state.group.set_context(None, Some(layer));
            state.group.assert_identical("the placement", || placement_digest(placement, &[]))?;
        }
        Ok(state)
    }

    /// Returns the ranks of this process, with their way to the others.
    pub fn group(&self) -> &Rc<ProcessGroup> {
        &self.group
    }

    /// Returns the number of experts of a layer.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Returns the bytes of a routed expert.
    pub fn expert_bytes(&self) -> u64 {
        self.expert_bytes
    }

    /// Returns the current placements, one per layer.
    pub fn placements(&self) -> &[Placement] {
        &self.placements
    }

    /// Returns an error unless a placement has the experts, slots and ranks of this group.
    fn expect_fit(&self, placement: &Placement) -> Result<(), ExecError> {
        ExecError::expect_size("experts of a placement", placement.experts(), self.experts)?;
        ExecError::expect_size("slots of a placement", placement.slots().len(), self.slots)?;
        ExecError::expect_size("ranks of a placement", placement.ranks(), self.group.ranks())
    }

    /// Returns the current placement of a layer, for a switch to `next`.
    ///
    /// # Errors
    /// Fails if there is no such layer, or if the next placement has another shape.
    pub fn expect_next(&self, layer: usize, next: &Placement) -> Result<&Placement, ExecError> {
        let current = self.expect_layer(layer)?;
        self.expect_fit(next)?;
        Ok(current)
    }

    fn expect_layer(&self, layer: usize) -> Result<&Placement, ExecError> {
        let expected = self.placements.len();
        self.placements.get(layer).ok_or(ExecError::Shape { what: "layer", given: layer, expected })
    }

    /// Returns the first rank that holds an expert.
    ///
    /// # Errors
    /// Fails if there is no such layer or expert.
    pub fn home_rank(&self, layer: usize, expert: u32) -> Result<usize, ExecError> {
        let placement = self.expect_layer(layer)?;
        let (given, expected) = (expert as usize, placement.experts());
        if given >= expected {
            return Err(ExecError::Shape { what: "expert", given, expected });
        }
        Ok(placement.rank_of(placement.replicas(given)[0]))
    }

    /// Stages an expert on a rank. Returns the rank from which it has to be copied, unless it is already
    /// there or on its way.
    ///
    /// # Errors
    /// Fails if there is no such rank, layer or expert.
    pub fn stage_expert(
        &mut self,
        layer: usize,
        rank: usize,
        expert: u32,
    ) -> Result<Option<usize>, ExecError> {
        if self.dynamic_slots > 0 {
            return Err(ExecError::Combination("dynamic slots and moves during a run"));
        }
        let (home, ranks) = (self.home_rank(layer, expert)?, self.group.ranks());
        if rank >= ranks {
            return Err(ExecError::Shape { what: "rank", given: rank, expected: ranks });
        }
        let there = experts_of_rank(&self.placements[layer], rank).contains(&Some(expert));
        Ok((!there && self.staged.insert((layer, rank, expert))).then_some(home))
    }

    /// Replaces the placement of a layer, whose staged experts are no longer needed. The layer must exist.
    pub fn replace(&mut self, layer: usize, next: Placement) {
        self.staged.retain(|&(of, ..)| of != layer);
        if let Some(placement) = self.placements.get_mut(layer) {
            *placement = next;
        }
    }

    /// Returns the bytes of weights on every rank.
    pub fn memory(&self) -> Vec<WeightBytes> {
        let of = |rank: usize| {
            let slots = self.placements.iter().flat_map(|placement| experts_of_rank(placement, rank));
            let staged = self.staged.iter().filter(|staged| staged.1 == rank).count();
            let slots = slots.flatten().count() as u64 + self.dynamic_slots;
            let used = slots * self.expert_bytes + self.replicated_bytes;
            WeightBytes { in_use: used, staged: staged as u64 * self.expert_bytes }
        };
        (0..self.group.ranks()).map(of).collect()
    }
}

/// Returns the experts in one rank's slots, `[S]`.
pub(super) fn experts_of_rank(placement: &Placement, rank: usize) -> &[Option<u32>] {
    let per_rank = placement.slots_per_rank();
    placement.slots().get(rank * per_rank..(rank + 1) * per_rank).unwrap_or_default()
}
