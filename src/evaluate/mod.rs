//! Judgement of placements: every batch of a layer is split, checked and measured.
//!
//! In: a trace, a placement, a split method. Out: [`LayerEvaluation`] with the peaks of all batches, and
//! [`SummaryStats`] of many figures. Planning, simulation and the service share this module.

mod error;
mod layer_evaluation;
mod summary;

pub use error::EvaluateError;
pub use layer_evaluation::{LayerEvaluation, evaluate_layer, evaluate_on_nodes};
pub use summary::SummaryStats;

use crate::trace::Trace;
use std::ops::Range;

/// Receiver of progress after each layer, for a display.
pub trait Progress: Sync {
    /// Reports that `done` of `total` layers are finished.
    fn report_layers(&self, done: usize, total: usize);
}

impl Progress for () {
    fn report_layers(&self, _: usize, _: usize) {}
}

/// Returns the indices of the layers that routed tokens.
///
/// # Errors
/// Returns [`EvaluateError::Empty`] if no layer did.
pub fn busy_layers(trace: &Trace) -> Result<Vec<usize>, EvaluateError> {
    let busy: Vec<usize> =
        (0..trace.layers().len()).filter(|&layer| trace.totals(layer).iter().any(|&load| load > 0)).collect();
    if busy.is_empty() {
        return Err(EvaluateError::Empty { steps: trace.steps().len(), layers: trace.layers().len() });
    }
    Ok(busy)
}

/// Checks that at least one of the given steps routes tokens. A step without tokens has no imbalance.
///
/// # Errors
/// Returns [`EvaluateError::Idle`] with the range of steps if none does.
pub fn require_tokens(
    trace: &Trace,
    layers: &[usize],
    steps: &Range<usize>,
    purpose: &'static str,
) -> Result<(), EvaluateError> {
    let busy =
        |step: usize| layers.iter().any(|&layer| trace.loads(step, layer).iter().any(|&load| load > 0));
    if steps.clone().any(busy) {
        return Ok(());
    }
    let label = |step: usize| trace.steps().get(step).cloned().unwrap_or_default();
    Err(EvaluateError::Idle {
        purpose,
        steps: steps.len(),
        first: label(steps.start),
        last: label(steps.end.saturating_sub(1)),
    })
}
