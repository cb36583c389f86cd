//! Inequality of the experts of a layer.
//!
//! In: tokens per expert. Out: [`LoadSkew`], the usual measures of inequality.

/// Inequality of one load vector. All measures are zero if there are no tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct LoadSkew {
    /// Load of the busiest expert over the mean: 1 is perfectly even, `E` is one expert alone.
    pub max_over_mean: f64,
    /// Share of all tokens that the ten busiest experts receive, 0 to 1.
    pub top10_share: f64,
    /// Gini coefficient: 0 is perfectly even, and 1 is the limit for one expert alone.
    pub gini: f64,
}

impl LoadSkew {
    /// Measures tokens per expert, `[E]`.
    ///
    /// ```
    /// use evenkeel::trace::LoadSkew;
    ///
    /// assert_eq!(LoadSkew::from_loads(&[5, 5, 5, 5]).gini, 0.0);
    /// assert_eq!(LoadSkew::from_loads(&[0, 0, 0, 8]).max_over_mean, 4.0);
    /// ```
    pub fn from_loads(loads: &[u64]) -> Self {
        let total: u64 = loads.iter().sum();
        if total == 0 {
            return Self::default();
        }
        let mut sorted = loads.to_vec();
        sorted.sort_unstable_by(|a, b| b.cmp(a));
        let (count, total) = (sorted.len() as f64, total as f64);
        // The order is descending, so the ranks of the Gini formula count from the end.
        let weighted: f64 =
            sorted.iter().enumerate().map(|(at, &tokens)| (count - at as f64) * tokens as f64).sum();
        Self {
            max_over_mean: sorted[0] as f64 * count / total,
            top10_share: sorted.iter().take(10).sum::<u64>() as f64 / total,
            gini: (2.0 * weighted / total - count - 1.0) / count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LoadSkew;

    #[test]
    fn known_values() {
        let one = LoadSkew::from_loads(&[0, 0, 0, 8]);
        assert!((one.gini - 0.75).abs() < 1e-12 && (one.top10_share - 1.0).abs() < 1e-12);
        let line = LoadSkew::from_loads(&[1, 2, 3, 4]);
        assert!((line.gini - 0.25).abs() < 1e-12, "{line:?}");
        assert_eq!(LoadSkew::from_loads(&[0, 0]), LoadSkew::default());
        assert_eq!(LoadSkew::from_loads(&[]), LoadSkew::default());
    }
}
