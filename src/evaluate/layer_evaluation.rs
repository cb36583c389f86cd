//! Judges one placement of one layer with one split method. Every batch is split, checked and measured.

use super::EvaluateError;
use crate::place::Placement;
use crate::split::{Split, SplitMethod, Splitter};
use crate::trace::Trace;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Measurements of the batches of one layer. Batches without a token are only counted.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct LayerEvaluation {
    /// Ranks, `R`.
    pub ranks: usize,
    /// Tokens of the busiest rank, per batch.
    pub peaks: Vec<u64>,
    /// Tokens of all ranks, per batch.
    pub totals: Vec<u64>,
    /// Nanoseconds that the split took, per batch.
    pub split_ns: Vec<u32>,
    /// Tokens that each rank served over all batches, `[R]`.
    pub rank_tokens: Vec<u64>,
    /// Batches without a token.
    pub empty_batches: usize,
}

impl LayerEvaluation {
    /// Returns the lowest peak that any placement could have in batch `b`: ceil(total / ranks).
    pub fn peak_bound(&self, b: usize) -> u64 {
        self.totals[b].div_ceil(self.ranks as u64)
    }

    /// Returns peak / mean of batch `b`.
    pub fn imbalance(&self, b: usize) -> f64 {
        self.peaks[b] as f64 / self.mean_load(b)
    }

    /// Returns (peak - bound) / mean of batch `b`.
    pub fn excess(&self, b: usize) -> f64 {
        (self.peaks[b] - self.peak_bound(b)) as f64 / self.mean_load(b)
    }

    /// Returns bound / mean of batch `b`.
    pub fn lower_bound(&self, b: usize) -> f64 {
        self.peak_bound(b) as f64 / self.mean_load(b)
    }

    /// Adds one batch with tokens, whose split took this long.
    pub fn record(&mut self, split: &Split, taken: Duration) {
        self.ranks = split.rank_loads.len();
        self.rank_tokens.resize(self.ranks, 0);
        self.peaks.push(split.peak());
        self.totals.push(split.rank_loads.iter().sum());
        self.split_ns.push(u32::try_from(taken.as_nanos()).unwrap_or(u32::MAX));
        for (sum, load) in self.rank_tokens.iter_mut().zip(&split.rank_loads) {
            *sum = sum.saturating_add(*load);
        }
    }

    /// Adds later batches on the same ranks.
    pub fn append(&mut self, later: LayerEvaluation) {
        self.peaks.extend(later.peaks);
        self.totals.extend(later.totals);
        self.split_ns.extend(later.split_ns);
        for (sum, tokens) in self.rank_tokens.iter_mut().zip(later.rank_tokens) {
            *sum = sum.saturating_add(tokens);
        }
        self.empty_batches += later.empty_batches;
    }

    fn mean_load(&self, b: usize) -> f64 {
        self.totals[b] as f64 / self.ranks as f64
    }
}

/// Splits and measures the given steps of one layer (by index), with all ranks on one node.
///
/// # Errors
/// [`EvaluateError::Split`] names the layer and step that failed.
pub fn evaluate_layer(
    trace: &Trace,
    layer: usize,
    steps: Range<usize>,
    placement: &Placement,
    method: SplitMethod,
) -> Result<LayerEvaluation, EvaluateError> {
    evaluate_on_nodes(trace, layer, steps, placement, method, 1)
}

/// Splits and measures as [`evaluate_layer`], with the ranks on `nodes` nodes. SGLang's split rules depend on
/// the nodes.
///
/// # Errors
/// Fails as [`evaluate_layer`] does, and if the ranks do not divide over the nodes.
pub fn evaluate_on_nodes(
    trace: &Trace,
    layer: usize,
    steps: Range<usize>,
    placement: &Placement,
    method: SplitMethod,
    nodes: usize,
) -> Result<LayerEvaluation, EvaluateError> {
    let failed = |step: usize| {
        move |source| EvaluateError::Split {
            layer: trace.layers()[layer],
            step: trace.steps().get(step).cloned().unwrap_or_default(),
            source,
        }
    };
    let mut splitter = Splitter::builder(placement.clone())
        .method(method)
        .nodes(nodes)
        .build()
        .map_err(failed(steps.start))?;
    let mut split = Split::default();
    let mut judged = LayerEvaluation {
        ranks: placement.ranks(),
        rank_tokens: vec![0; placement.ranks()],
        ..LayerEvaluation::default()
    };
    for step in steps {
        let loads = trace.loads(step, layer);
        if loads.iter().all(|&load| load == 0) {
            judged.empty_batches += 1;
            continue;
        }
        let begun = Instant::now();
        splitter.split(loads, &mut split).map_err(failed(step))?;
        let taken = begun.elapsed();
        splitter.check(loads, &split).map_err(failed(step))?;
        judged.record(&split, taken);
    }
    Ok(judged)
}
