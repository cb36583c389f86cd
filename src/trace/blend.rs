//! Weighted blends of several traces, such as prefill and decode, or several services.
//!
//! In: a trace, and others of the same layers and experts, each with a weight. Out: one trace with all steps
//! of the first. Each other trace contributes `weight` times as many steps. They are drawn evenly from it,
//! repeatedly if it has too few. Steps are interleaved, so that every stretch of the result holds the same
//! blend. Planning on batches weighs every step alike. Totals count tokens, so that large batches weigh more
//! there.

use super::{Trace, TraceError};

/// A trace to be blended in, with its weight.
#[derive(Debug, Clone)]
pub struct WeightedTrace {
    /// The trace.
    pub trace: Trace,
    /// Weight of its steps, above 0 and at most 1e6. A weight of 1 draws as many steps as the first trace
    /// has.
    pub weight: f64,
}

impl Trace {
    /// Returns a blend of this trace and others by weight.
    ///
    /// # Errors
    /// Fails if experts or layers differ, if a weight is not positive, or if a trace to be blended in has no
    /// steps.
    pub fn blend_with(&self, others: &[WeightedTrace]) -> Result<Trace, TraceError> {
        let wrong = |what: String| Err(TraceError::Options(what));
        // Tuples (position in 0..1, index of the trace, step), ordered by position and then by index.
        let place = |count: usize, at: usize| (at as f64 + 0.5) / count as f64;
        let count = self.steps().len();
        let mut order: Vec<(f64, usize, usize)> =
            (0..count).map(|step| (place(count, step), 0, step)).collect();
        let mut notices = self.notices().to_vec();
        for (at, WeightedTrace { trace: other, weight }) in others.iter().enumerate() {
            self.check_same_shape(other)?;
            if !(*weight > 0.0 && *weight <= 1e6) || other.steps().is_empty() || count == 0 {
                return wrong(format!(
                    "weight {weight}: expected more than 0 and at most 1e6, and traces with steps"
                ));
            }
            let drawn = ((count as f64 * weight).round() as usize).max(1);
            let own = other.steps().len();
            order.extend(
                (0..drawn).map(|i| (place(drawn, i), at + 1, ((2 * i + 1) * own / (2 * drawn)).min(own - 1))),
            );
            notices.extend(other.notices().iter().cloned());
            notices.push(format!("{drawn} steps drawn from the {own} of trace {}: weight {weight}", at + 2));
        }
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let of = |which: usize| if which == 0 { self } else { &others[which - 1].trace };
        let mut loads = Vec::with_capacity(order.len() * self.layers().len() * self.experts());
        for &(_, which, step) in &order {
            loads.extend_from_slice(&of(which).loads[step]);
        }
        let steps =
            order.iter().map(|&(_, which, step)| format!("{}.{}", which + 1, of(which).steps()[step]));
        let mut blend = Trace::from_loads(self.experts(), self.layers().to_vec(), steps.collect(), loads)?;
        blend.notices = notices;
        blend.formats.clone_from(&self.formats);
        blend.resampling = self.resampling;
        blend.files.clone_from(&self.files);
        blend.files.extend(others.iter().flat_map(|other| other.trace.files.iter().cloned()));
        Ok(blend)
    }

    /// Returns a trace with all steps of this one, and then all steps of another.
    ///
    /// # Errors
    /// Fails if experts or layers differ.
    pub fn followed_by(&self, later: &Trace) -> Result<Trace, TraceError> {
        self.check_same_shape(later)?;
        let named = |which: usize, trace: &Trace| {
            trace.steps().iter().map(|step| format!("{which}.{step}")).collect::<Vec<_>>()
        };
        let steps = [named(1, self), named(2, later)].concat();
        let loads = self.loads.iter().chain(&later.loads).flatten().copied().collect();
        let mut joined = Trace::from_loads(self.experts(), self.layers().to_vec(), steps, loads)?;
        joined.notices = [&self.notices[..], &later.notices].concat();
        joined.formats.clone_from(&self.formats);
        joined.resampling = self.resampling;
        joined.files = [&self.files[..], &later.files].concat();
        Ok(joined)
    }

    fn check_same_shape(&self, other: &Trace) -> Result<(), TraceError> {
        if other.experts() == self.experts() && other.layers() == self.layers() {
            return Ok(());
        }
        Err(TraceError::Options(format!(
            "traces differ: {} experts in layers {:?}, and {} in {:?}",
            self.experts(),
            self.layers(),
            other.experts(),
            other.layers()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(steps: usize, tokens: u64) -> Trace {
        let loads = (0..steps as u64).flat_map(|step| [tokens, step]).collect();
        Trace::from_loads(2, vec![3], (0..steps).map(|s| s.to_string()).collect(), loads).unwrap()
    }

    #[test]
    fn every_stretch_holds_the_same_blend() {
        let (prefill, decode) = (trace(20, 1000), trace(5, 10));
        let blend = prefill.blend_with(&[WeightedTrace { trace: decode, weight: 0.5 }]).unwrap();
        assert_eq!(blend.steps().len(), 30);
        for stretch in 0..5 {
            let second = (6 * stretch..6 * stretch + 6).filter(|&step| blend.loads(step, 0)[0] == 10).count();
            assert_eq!(second, 2, "{:?}", blend.steps());
        }
        // Each of the five steps was drawn twice, each of the twenty once.
        assert_eq!(blend.totals(0), [20_000 + 100, (0..20).sum::<u64>() + 2 * (1 + 2 + 3 + 4)]);
        assert!(blend.notices()[0].contains("10 steps drawn from the 5 of trace 2"));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let first = trace(4, 1);
        let other = Trace::from_loads(3, vec![3], vec!["0".into()], vec![1, 2, 3]).unwrap();
        let blend = |trace, weight| first.blend_with(&[WeightedTrace { trace, weight }]);
        assert!(blend(other, 1.0).unwrap_err().to_string().contains("3 in [3]"));
        for weight in [0.0, -1.0, f64::NAN, 1e9] {
            assert!(blend(trace(2, 1), weight).is_err());
        }
        let empty = Trace::from_loads(2, vec![3], vec![], vec![]).unwrap();
        assert!(blend(empty, 1.0).is_err());
    }
}
