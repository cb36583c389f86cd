//! Batches token by token, with the expert ids behind the counts of a trace.

use super::Trace;
use super::build::NO_EXPERT;

/// [`Trace`] with the expert ids behind its counts.
#[derive(Debug, Clone)]
pub struct TokenTrace {
    trace: Trace,
    top_k: usize,
    /// Number of layers in the arrays of `batches`.
    width: usize,
    /// Index in the arrays of each layer of the trace.
    places: Vec<usize>,
    /// Expert ids per step, `[token][array layer][top_k]`.
    batches: Vec<Vec<u16>>,
}

impl TokenTrace {
    /// Creates a trace from the ids of all batches, per step `[token][array layer][top_k]`. `places` holds
    /// the index in the arrays of each layer of the trace. `width` is the number of layers in the arrays.
    pub fn from_batches(
        trace: Trace,
        top_k: usize,
        width: usize,
        places: Vec<usize>,
        batches: Vec<Vec<u16>>,
    ) -> Self {
        Self { trace, top_k, width, places, batches }
    }

    /// Returns the counts.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Returns the number of experts per token in each layer.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Returns the experts of every token of one batch of one layer (both by index), `[token][top_k]`, with
    /// -1 for none.
    pub fn expert_ids(&self, step: usize, layer: usize) -> Vec<i32> {
        let place = self.places[layer] * self.top_k;
        let token = self.width * self.top_k;
        self.batches[step]
            .chunks_exact(token.max(1))
            .flat_map(|ids| &ids[place..place + self.top_k])
            .map(|&id| if id == NO_EXPERT { -1 } else { i32::from(id) })
            .collect()
    }
}
