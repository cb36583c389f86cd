//! What the slow loop believes about the batches to come.
//!
//! In: a [`Trace`] and the steps that planning may look at. Out: a [`History`] of one layer, as totals (what
//! policies that plan for averages want) and as single batches.

use crate::trace::Trace;
use std::ops::Range;

/// The part of one layer's past that a placement may be planned on.
#[derive(Debug, Clone)]
pub struct History<'a> {
    trace: &'a Trace,
    layer: usize,
    steps: Range<usize>,
    totals: Vec<u64>,
}

impl<'a> History<'a> {
    /// One layer (by index) over everything that was read, also steps too many to be held.
    pub fn whole(trace: &'a Trace, layer: usize) -> Self {
        let totals = trace.totals(layer).to_vec();
        Self { trace, layer, steps: 0..trace.steps().len(), totals }
    }

    /// One layer (by index) over the given steps only.
    pub fn window(trace: &'a Trace, layer: usize, steps: Range<usize>) -> Self {
        let mut totals = vec![0u64; trace.experts()];
        for step in steps.clone() {
            for (total, load) in totals.iter_mut().zip(trace.loads(step, layer)) {
                *total = total.saturating_add(*load);
            }
        }
        Self { trace, layer, steps, totals }
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
}
