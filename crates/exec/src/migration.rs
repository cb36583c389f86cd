//! Moves while running: new placements, a few copies at a time, without stopping the forward pass.
//!
//! In: the placements that layers are to have ([`Mover::aim`]) and a budget of bytes per step. Out: layers that switch, one
//! after the other, between steps. Copies run beside the step in which they are begun and are waited for at its end, so that
//! which step a layer switches at depends on bytes alone, never on a clock: all ranks switch together. Until then the old
//! slots serve.

use super::backend::Backend;
use super::error::ExecError;
use crate::place::Placement;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A layer on its way to another placement.
#[derive(Debug)]
struct Target {
    layer: usize,
    placement: Placement,
    /// Ranks and the experts that they miss, the next last.
    missing: Vec<(usize, u32)>,
}

/// What happened between two steps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moved {
    /// Copies begun.
    pub copies: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Layers that switched.
    pub switched: Vec<usize>,
    /// How long the forward pass waited for copies of the step before.
    pub waited: Duration,
    /// How long each rank was copied to, beside the forward pass.
    pub copied: Vec<Duration>,
}

/// Brings layers to their placements.
#[derive(Debug)]
pub struct Mover {
    /// Bytes per step.
    budget: u64,
    /// Bytes that may be begun now; what a step does not use is kept for an expert larger than a step's budget.
    allowance: u64,
    targets: VecDeque<Target>,
}

impl Mover {
    /// A mover that begins copies of `budget` bytes per step over all ranks, and never less than that in the long run,
    /// however large an expert is.
    pub fn new(budget: u64) -> Self {
        Self { budget: budget.max(1), allowance: 0, targets: VecDeque::new() }
    }

    /// Whether every layer has the placement that it was to have.
    pub fn is_done(&self) -> bool {
        self.targets.is_empty()
    }

    /// Bytes per step.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Gives a layer another placement to come to; what was copied for an earlier one is used where it fits.
    pub fn aim(&mut self, backend: &dyn Backend, layer: usize, placement: Placement) {
        self.targets.retain(|target| target.layer != layer);
        let old = backend.placement(layer);
        if *old == placement {
            return;
        }
        let mut missing = Vec::new();
        for expert in 0..placement.experts() {
            for &slot in placement.copies(expert) {
                let wanted = (placement.rank_of(slot), expert as u32);
                let held = expert < old.experts()
                    && old.copies(expert).iter().any(|&slot| old.rank_of(slot) == wanted.0);
                if !held && missing.last() != Some(&wanted) {
                    missing.push(wanted);
                }
            }
        }
        missing.reverse();
        self.targets.push_back(Target { layer, placement, missing });
    }

    /// What is to be done between two steps: waits for the copies of the last one, switches the layers that have all they
    /// need, and begins further copies. Call it once before every step.
    ///
    /// # Errors
    /// When a target does not fit the backend, or whatever copies is gone.
    pub fn between_steps(&mut self, backend: &mut dyn Backend) -> Result<Moved, ExecError> {
        let begun = Instant::now();
        let mut moved = Moved { copied: backend.arrive()?, ..Moved::default() };
        moved.waited = begun.elapsed();
        // Copies are begun for one layer after the other, so the first targets are the first to be complete.
        while let Some(target) = self.targets.pop_front_if(|target| target.missing.is_empty()) {
            backend.switch(target.layer, target.placement)?;
            moved.switched.push(target.layer);
        }
        if self.targets.is_empty() {
            self.allowance = 0;
            return Ok(moved);
        }
        self.allowance = self.allowance.saturating_add(self.budget);
        for target in &mut self.targets {
            while let Some(&(rank, expert)) = target.missing.last() {
                let bytes = backend.bytes(target.layer, expert)?;
                if bytes > self.allowance {
                    return Ok(moved);
                }
                target.missing.pop();
                let bytes = backend.copy(target.layer, rank, expert)?;
                self.allowance -= bytes;
                moved.bytes += bytes;
                moved.copies += usize::from(bytes > 0);
            }
        }
        Ok(moved)
    }
}
