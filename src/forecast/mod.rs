//! What the slow loop believes about the batches to come.
//!
//! In: a [`Trace`] and the steps that planning may look at. Out: a [`History`] of one layer, as totals (what
//! policies that plan for averages want) and as single batches. How much of the past is believed is a [`Window`]:
//! the last steps, all steps fading, or whichever of several lengths would have foreseen the latest steps best.

mod window;

pub use window::Window;

use crate::trace::Trace;
use std::ops::Range;

/// The part of one layer's past that a placement may be planned on.
#[derive(Debug, Clone)]
pub struct History<'a> {
    trace: &'a Trace,
    layer: usize,
    steps: Range<usize>,
    totals: Vec<u64>,
    /// The first step that may be looked at, for how batches differ.
    known_from: usize,
}

impl<'a> History<'a> {
    /// One layer (by index) over everything that was read, also steps too many to be held.
    pub fn whole(trace: &'a Trace, layer: usize) -> Self {
        let totals = trace.totals(layer).to_vec();
        Self { trace, layer, steps: 0..trace.steps().len(), totals, known_from: 0 }
    }

    /// One layer (by index) over the given steps only.
    pub fn window(trace: &'a Trace, layer: usize, steps: Range<usize>) -> Self {
        let mut totals = vec![0u64; trace.experts()];
        for step in steps.clone() {
            for (total, load) in totals.iter_mut().zip(trace.loads(step, layer)) {
                *total = total.saturating_add(*load);
            }
        }
        Self { trace, layer, known_from: steps.start, steps, totals }
    }

    /// One layer (by index) over the steps before `end`, which count half as much every `half_life` steps into the past.
    ///
    /// Totals are weighted, in 1/256 of a token; between two halvings weights fall on a straight line, so that they are
    /// whole numbers on every machine. Single batches are those of the last four half-lives, as they are.
    pub fn fading(trace: &'a Trace, layer: usize, end: usize, half_life: usize) -> Self {
        /// Weight of the latest step; a step whose weight has fallen below 1 is forgotten.
        const LATEST: u64 = 256;
        let half_life = half_life.max(1);
        let mut totals = vec![0u64; trace.experts()];
        for age in 0..end {
            let (halvings, rest) = (age / half_life, (age % half_life) as u64);
            let weight = LATEST.checked_shr(halvings as u32).unwrap_or(0) * (2 * half_life as u64 - rest)
                / (2 * half_life as u64);
            if weight == 0 {
                break;
            }
            for (total, load) in totals.iter_mut().zip(trace.loads(end - 1 - age, layer)) {
                *total = total.saturating_add(load.saturating_mul(weight));
            }
        }
        let steps = end.saturating_sub(4 * half_life)..end;
        Self { trace, layer, known_from: steps.start, steps, totals }
    }

    /// The same, of a past that began earlier: what is to come is foreseen from the window alone, how far batches differ
    /// from what is foreseen may be learned from all that is known ([`History::earlier`]).
    #[must_use]
    pub fn known_from(self, step: usize) -> Self {
        Self { known_from: step.min(self.steps.start), ..self }
    }

    /// The layer's real id.
    pub fn layer(&self) -> u32 {
        self.trace.layers()[self.layer]
    }

    /// Logical experts, `E`.
    pub fn experts(&self) -> usize {
        self.trace.experts()
    }

    /// Tokens per expert, `[E]`, over the window.
    pub fn totals(&self) -> &[u64] {
        &self.totals
    }

    /// The batches of the window in order, each `[E]` tokens per expert.
    pub fn batches(&self) -> impl ExactSizeIterator<Item = &'a [u64]> {
        let (trace, layer) = (self.trace, self.layer);
        self.steps.clone().map(move |step| trace.loads(step, layer))
    }

    /// The batches that were known before the window began, in order.
    pub fn earlier(&self) -> impl ExactSizeIterator<Item = &'a [u64]> {
        let (trace, layer) = (self.trace, self.layer);
        (self.known_from..self.steps.start).map(move |step| trace.loads(step, layer))
    }

    /// The steps of the window.
    pub fn steps(&self) -> Range<usize> {
        self.steps.clone()
    }
}
