//! One layer, one placement, one split method: every batch split, checked and measured.

use super::SimulateError;
use crate::place::Placement;
use crate::split::{Method, Split, Splitter};
use crate::trace::Trace;
use std::ops::Range;
use std::time::Instant;

/// The judged batches of one layer; batches without a token are left out and counted.
#[derive(Debug, Clone, Default)]
pub struct Judged {
    /// Ranks, `R`.
    pub ranks: usize,
    /// Busiest rank's tokens, per batch.
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

impl Judged {
    /// Least peak that any placement could have in batch `b`: ceil(total / ranks).
    pub fn bound(&self, b: usize) -> u64 {
        self.totals[b].div_ceil(self.ranks as u64)
    }

    /// Peak over mean of batch `b`.
    pub fn imbalance(&self, b: usize) -> f64 {
        self.peaks[b] as f64 / self.mean(b)
    }

    /// (Peak - bound) over mean of batch `b`.
    pub fn excess(&self, b: usize) -> f64 {
        (self.peaks[b] - self.bound(b)) as f64 / self.mean(b)
    }

    /// Bound over mean of batch `b`.
    pub fn lower_bound(&self, b: usize) -> f64 {
        self.bound(b) as f64 / self.mean(b)
    }

    /// Adds later batches on the same ranks.
    pub(super) fn append(&mut self, later: Judged) {
        self.peaks.extend(later.peaks);
        self.totals.extend(later.totals);
        self.split_ns.extend(later.split_ns);
        for (sum, tokens) in self.rank_tokens.iter_mut().zip(later.rank_tokens) {
            *sum = sum.saturating_add(tokens);
        }
        self.empty_batches += later.empty_batches;
    }

    fn mean(&self, b: usize) -> f64 {
        self.totals[b] as f64 / self.ranks as f64
    }
}

/// Splits and measures the given steps of one layer (by index), the ranks being on one node.
///
/// # Errors
/// [`SimulateError::Split`] names the layer and step that failed.
pub fn judge(
    trace: &Trace,
    layer: usize,
    steps: Range<usize>,
    placement: &Placement,
    method: Method,
) -> Result<Judged, SimulateError> {
    judge_on_nodes(trace, layer, steps, placement, method, 1)
}

/// Splits and measures as [`judge`], with the ranks on `nodes` nodes: to SGLang's rules that matters.
///
/// # Errors
/// As [`judge`], and when the ranks do not divide over the nodes.
pub fn judge_on_nodes(
    trace: &Trace,
    layer: usize,
    steps: Range<usize>,
    placement: &Placement,
    method: Method,
    nodes: usize,
) -> Result<Judged, SimulateError> {
    let failed = |step: usize| {
        move |source| SimulateError::Split {
            layer: trace.layers()[layer],
            step: trace.steps().get(step).cloned().unwrap_or_default(),
            source,
        }
    };
    let mut splitter = Splitter::on_nodes(placement.clone(), method, nodes).map_err(failed(steps.start))?;
    let mut split = Split::default();
    let mut judged =
        Judged { ranks: placement.ranks(), rank_tokens: vec![0; placement.ranks()], ..Judged::default() };
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
        judged.peaks.push(split.peak());
        judged.totals.push(split.rank_loads.iter().sum());
        judged.split_ns.push(u32::try_from(taken.as_nanos()).unwrap_or(u32::MAX));
        for (sum, load) in judged.rank_tokens.iter_mut().zip(&split.rank_loads) {
            *sum = sum.saturating_add(*load);
        }
    }
    Ok(judged)
}
