//! Mean, percentiles and maximum of many numbers.

use serde::{Deserialize, Serialize};

/// Mean, percentiles (linear interpolation between order statistics, as NumPy's default) and maximum.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SummaryStats {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest value.
    pub max: f64,
}

impl SummaryStats {
    /// Summarises values in any order. All figures of an empty list are zero.
    pub fn from_values(mut values: Vec<f64>) -> Self {
        let Some(last) = values.len().checked_sub(1) else { return Self::default() };
        // The sum keeps the order of the input, so that every run yields the same bits.
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values.sort_by(f64::total_cmp);
        Self {
            mean,
            p50: percentile(&values, 0.50),
            p95: percentile(&values, 0.95),
            p99: percentile(&values, 0.99),
            max: values[last],
        }
    }
}

/// Returns the value below which a share `p` (0 to 1) of the ascending values lies.
pub(crate) fn percentile(ascending: &[f64], p: f64) -> f64 {
    let Some(last) = ascending.len().checked_sub(1) else { return 0.0 };
    let at = p * last as f64;
    let (low, part) = (at.floor() as usize, at.fract());
    let high = (low + 1).min(last);
    ascending[low] + (ascending[high] - ascending[low]) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate_as_numpy_does() {
        // numpy.percentile([4, 1, 3, 2], [50, 95, 99]) -> 2.5, 3.85, 3.97
        let s = SummaryStats::from_values(vec![4.0, 1.0, 3.0, 2.0]);
        assert!((s.mean - 2.5).abs() < 1e-12 && (s.p50 - 2.5).abs() < 1e-12);
        assert!((s.p95 - 3.85).abs() < 1e-12 && (s.p99 - 3.97).abs() < 1e-12);
        assert!((s.max - 4.0).abs() < 1e-12);
        assert_eq!(SummaryStats::from_values(vec![]), SummaryStats::default());
    }
}
