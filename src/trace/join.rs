//! Joined batches: the experts of several batches at once.
//!
//! In: a trace and a number of steps. Out: a trace whose steps are sums over as many consecutive steps. With
//! batch tiling on attention, attention runs on one batch after the other and experts once on all of them
//! (Soboleva et al., *Batch Tiling on Attention*, SC Workshops 2025).

use super::{Trace, TraceError};

impl Trace {
    /// Returns a trace of joined steps: `count` consecutive steps each. Fewer steps at the end are left out.
    ///
    /// ```
    /// use evenkeel::trace::Trace;
    ///
    /// let steps = (0..5).map(|step| step.to_string()).collect();
    /// let trace = Trace::from_loads(2, vec![0], steps, vec![1, 0, 2, 0, 3, 1, 4, 1, 9, 9])?;
    /// let joined = trace.join_steps(2)?;
    /// assert_eq!((joined.loads(0, 0), joined.loads(1, 0)), (&[3, 0][..], &[7, 2][..]));
    /// # Ok::<(), evenkeel::trace::TraceError>(())
    /// ```
    ///
    /// # Errors
    /// Fails if `count` is 0 or more than the steps.
    pub fn join_steps(&self, count: usize) -> Result<Trace, TraceError> {
        let steps = self.steps().len();
        if count == 0 || count > steps {
            return Err(TraceError::Options(format!("{count} steps to join, expected 1 to {steps}")));
        }
        let (layers, experts) = (self.layers().len(), self.experts());
        let mut labels = Vec::new();
        let mut loads = Vec::new();
        for first in (0..=steps - count).step_by(count) {
            labels.push(self.steps()[first].clone());
            for layer in 0..layers {
                let mut sum = vec![0u64; experts];
                for step in first..first + count {
                    for (sum, &tokens) in sum.iter_mut().zip(self.loads(step, layer)) {
                        *sum = sum.saturating_add(tokens);
                    }
                }
                loads.extend(sum);
            }
        }
        Ok(Trace::from_loads(experts, self.layers().to_vec(), labels, loads)?.with_origin_of(self))
    }
}
