//! Forecast of the batches to come, as a choice of past steps.
//!
//! In: a [`Trace`] and the steps that planning may read. Out: a [`History`] of one layer. It offers totals,
//! for policies that plan on averages, and single batches. A [`HistoryWindow`] selects the past steps: the
//! last ones, all with fading weights, or the length that best predicts the latest steps.

mod window;

pub use window::HistoryWindow;

use crate::trace::Trace;
use std::ops::Range;

/// Part of one layer's past on which a placement may be planned.
#[derive(Debug, Clone)]
pub struct History<'a> {
    trace: &'a Trace,
    layer: usize,
    steps: Range<usize>,
    totals: Vec<u64>,
    /// First step that may be read to estimate how batches differ.
    known_from: usize,
}

impl<'a> History<'a> {
    /// Creates the history of one layer (by index) over everything that was read, including steps that are no
    /// longer held.
    pub fn from_trace(trace: &'a Trace, layer: usize) -> Self {
        let totals = trace.totals(layer).to_vec();
        Self { trace, layer, steps: 0..trace.steps().len(), totals, known_from: 0 }
    }

    /// Creates the history of one layer (by index) over the given steps only.
    pub fn from_steps(trace: &'a Trace, layer: usize, steps: Range<usize>) -> Self {
        let mut totals = vec![0u64; trace.experts()];
        for step in steps.clone() {
            for (total, load) in totals.iter_mut().zip(trace.loads(step, layer)) {
                *total = total.saturating_add(*load);
            }
        }
        Self { trace, layer, known_from: steps.start, steps, totals }
    }

    /// Creates the history of one layer (by index) over the steps before `end`, with weights that halve every
    /// `half_life` steps into the past.
    ///
    /// Totals are weighted, in 1/256 of a token. Between two halvings the weights decrease linearly, so that
    /// they are whole numbers on every machine. Single batches are those of the last four half-lives, without
    /// weights.
    pub fn with_half_life(trace: &'a Trace, layer: usize, end: usize, half_life: usize) -> Self {
        /// Weight of the latest step. A step whose weight has fallen below 1 is forgotten.
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

    /// Extends the known past to begin at `step`. The forecast of the mean still reads the window alone. The
    /// spread around the mean may be estimated from the whole known past ([`History::earlier_batches`]).
    #[must_use]
    pub fn with_past_since(self, step: usize) -> Self {
        Self { known_from: step.min(self.steps.start), ..self }
    }

    /// Returns the layer's real id.
    pub fn layer(&self) -> u32 {
        self.trace.layers()[self.layer]
    }

    /// Returns the number of logical experts, `E`.
    pub fn experts(&self) -> usize {
        self.trace.experts()
    }

    /// Returns the tokens per expert over the window, `[E]`.
    pub fn totals(&self) -> &[u64] {
        &self.totals
    }

    /// Returns the batches of the window in order, each with `[E]` tokens per expert.
    pub fn batches(&self) -> impl ExactSizeIterator<Item = &'a [u64]> {
        let (trace, layer) = (self.trace, self.layer);
        self.steps.clone().map(move |step| trace.loads(step, layer))
    }

    /// Returns the known batches before the window, in order.
    pub fn earlier_batches(&self) -> impl ExactSizeIterator<Item = &'a [u64]> {
        let (trace, layer) = (self.trace, self.layer);
        (self.known_from..self.steps.start).map(move |step| trace.loads(step, layer))
    }

    /// Returns true if the batches were drawn from totals and not recorded.
    pub fn are_batches_drawn(&self) -> bool {
        self.trace.resampling().is_some()
    }

    /// Returns true if only totals over unrecorded batches were recorded, whether batches were drawn from
    /// them or not.
    pub(crate) fn holds_totals(&self) -> bool {
        self.are_batches_drawn() || self.trace.holds_totals()
    }

    /// Returns the steps of the window.
    pub fn steps(&self) -> Range<usize> {
        self.steps.clone()
    }
}
