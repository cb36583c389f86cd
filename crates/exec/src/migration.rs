//! Migration at run time: moves layers to new placements, a few transfers at a time, without stopping the
//! forward pass.
//!
//! Input: the target placements of layers ([`ExpertMigrator::set_target`]) and a budget of bytes per step.
//! Output: layers that switch, one after the other, between steps. Transfers run in the background of the
//! step in which they begin, and are waited for at its end. So the step at which a layer switches depends on
//! bytes alone, never on a clock: all ranks switch together. Until then the old slots serve.

use super::backend::Backend;
use super::error::ExecError;
use evenkeel::place::Placement;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A layer with its target placement.
#[derive(Debug)]
struct MigrationTarget {
    layer: usize,
    placement: Placement,
    /// Ranks with an expert that they lack, in reverse order of transfer.
    missing: Vec<(usize, u32)>,
}

/// The moves between two steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrationStats {
    /// Transfers begun.
    pub copies: usize,
    /// Bytes of these transfers.
    pub bytes: u64,
    /// Layers that switched.
    pub switched: Vec<usize>,
    /// Time for which the forward pass waited for the transfers of the previous step.
    pub waited: Duration,
    /// Copying time to each rank, in the background of the forward pass.
    pub copied: Vec<Duration>,
}

/// Moves layers to their target placements.
#[derive(Debug)]
pub struct ExpertMigrator {
    /// Bytes per step.
    budget: u64,
    /// Bytes that may begin now. A step's unused bytes are kept for an expert larger than the budget of one
    /// step.
    allowance: u64,
    targets: VecDeque<MigrationTarget>,
}

impl ExpertMigrator {
    /// Creates a mover that begins transfers of `budget` bytes per step over all ranks. On average it reaches
    /// that budget for experts of any size.
    pub fn new(budget: u64) -> Self {
        Self { budget: budget.max(1), allowance: 0, targets: VecDeque::new() }
    }

    /// Returns whether every layer has its target placement.
    pub fn is_done(&self) -> bool {
        self.targets.is_empty()
    }

    /// Returns the bytes per step.
    pub fn bytes_per_step(&self) -> u64 {
        self.budget
    }

    /// Sets the target placement of a layer. Experts that were copied for an earlier target are reused if
    /// they fit.
    pub fn set_target(&mut self, backend: &dyn Backend, layer: usize, placement: Placement) {
        self.targets.retain(|target| target.layer != layer);
        let old = backend.placement(layer);
        if *old == placement {
            return;
        }
        let mut missing = Vec::new();
        for expert in 0..placement.experts() {
            for &slot in placement.replicas(expert) {
                let wanted = (placement.rank_of(slot), expert as u32);
                let held = expert < old.experts()
                    && old.replicas(expert).iter().any(|&slot| old.rank_of(slot) == wanted.0);
                if !held && missing.last() != Some(&wanted) {
                    missing.push(wanted);
                }
            }
        }
        missing.reverse();
        self.targets.push_back(MigrationTarget { layer, placement, missing });
    }

    /// Advances the migration between two steps: waits for the transfers of the last step, switches the
    /// complete layers, and begins further transfers. Call it once before every step.
    ///
    /// # Errors
    /// Fails if a target does not fit the backend, or if the thread or rank that copies is lost.
    pub fn between_steps(&mut self, backend: &mut dyn Backend) -> Result<MigrationStats, ExecError> {
        let begun = Instant::now();
        let mut moved = MigrationStats { copied: backend.wait_for_copies()?, ..MigrationStats::default() };
        moved.waited = begun.elapsed();
        // Transfers begin for one layer after the other, so the first targets are the first to be complete.
        while let Some(target) = self.targets.pop_front_if(|target| target.missing.is_empty()) {
            backend.activate_placement(target.layer, target.placement)?;
            moved.switched.push(target.layer);
        }
        if self.targets.is_empty() {
            self.allowance = 0;
            return Ok(moved);
        }
        self.allowance = self.allowance.saturating_add(self.budget);
        for target in &mut self.targets {
            while let Some(&(rank, expert)) = target.missing.last() {
                let bytes = backend.expert_bytes(target.layer, expert)?;
                if bytes > self.allowance {
                    return Ok(moved);
                }
                target.missing.pop();
                let bytes = backend.start_copy(target.layer, rank, expert)?;
                self.allowance -= bytes;
                moved.bytes += bytes;
                moved.copies += usize::from(bytes > 0);
            }
        }
        Ok(moved)
    }
}
