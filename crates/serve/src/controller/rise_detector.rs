//! Detection of a rise of the imbalance above its expected value.
//!
//! Input is the imbalance of one step after the other. Output is an alarm. The method is Page's cumulative
//! sum (Biometrika 41, 1954): rises above the expected value add up, in standard deviations, less an
//! allowance. The standard deviation comes from the differences of successive steps, so a shift of the mean
//! before the decision does not widen it.

use serde::{Deserialize, Serialize};

/// The allowance of each step, in standard deviations. Half of the smallest rise to detect is the usual
/// choice, and rises of one standard deviation are worth a decision.
const ALLOWANCE: f64 = 0.5;

/// The sum that raises the alarm, in standard deviations. With the allowance of 0.5, independent normal steps
/// without a rise alarm once in 930 steps, and a rise of one standard deviation is noticed in 10.
const ALARM: f64 = 5.0;

/// The most standard deviations of one step that count. A single step raises the alarm from 5.5 on.
const MAX_RISE: f64 = 8.0;

/// The place, from the largest, of the difference of two steps that counts as usual. A break may be among the
/// latest steps. It makes the two largest differences, when the imbalance rises and when it falls.
const USUAL_DIFFERENCE: usize = 3;

/// The factor by which a break exceeds the usual differences. Imbalances of small batches have long tails.
const BREAK_FACTOR: f64 = 3.0;

/// The rise of the imbalance that a break exceeds. Smaller ones are a drift, which one step cannot show.
const MIN_BREAK_RISE: f64 = 0.05;

/// The ratio of a normal distribution's standard deviation to the median of the absolute difference of two
/// draws: 1 / (0.6745 * sqrt(2)).
const DEVIATION_OF_MEDIAN: f64 = 1.048_4;

/// The rises since the last decision.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct RiseDetector {
    /// The standard deviation of the imbalance of a step. 0 if it is not known.
    deviation: f64,
    /// A large difference of two successive steps without a break.
    #[serde(default)]
    difference: f64,
    /// The cumulative sum, in standard deviations.
    sum: f64,
}

impl RiseDetector {
    /// Returns a detector whose standard deviation is that of these steps, in order.
    pub(super) fn from_steps(imbalances: &[f64]) -> Self {
        let mut differences: Vec<f64> = imbalances.windows(2).map(|pair| (pair[1] - pair[0]).abs()).collect();
        differences.sort_by(f64::total_cmp);
        let median = differences.get(differences.len() / 2).copied().unwrap_or(0.0);
        let usual = differences.len().checked_sub(USUAL_DIFFERENCE).map_or(0.0, |at| differences[at]);
        Self { deviation: DEVIATION_OF_MEDIAN * median, difference: usual, sum: 0.0 }
    }

    /// Adds the rise of a step above the expected imbalance.
    pub(super) fn observe(&mut self, rise: f64) {
        let rise = if self.deviation > 0.0 {
            (rise / self.deviation).min(MAX_RISE)
        } else if rise > 0.0 {
            // Steps that did not differ at all have risen.
            MAX_RISE
        } else {
            0.0
        };
        self.sum = (self.sum + rise - ALLOWANCE).max(0.0);
    }

    /// Returns the standard deviation of the imbalance of a step. 0 if it is not known.
    pub(super) fn deviation(&self) -> f64 {
        self.deviation
    }

    /// Returns whether a rise of the mean over the latest steps is a break.
    pub(super) fn is_break(&self, rise: f64) -> bool {
        rise > (BREAK_FACTOR * self.difference).max(MIN_BREAK_RISE)
    }

    /// Returns whether the imbalance has risen.
    pub(super) fn is_alarmed(&self) -> bool {
        self.sum > ALARM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns imbalances that alternate around a mean with a standard deviation of about 0.01.
    fn steps(mean: f64, count: usize) -> Vec<f64> {
        (0..count).map(|at| mean + 0.01 * [0.6, -1.1, 0.2, 1.0, -0.9, 0.3][at % 6]).collect()
    }

    #[test]
    fn one_step_reveals_a_break_and_a_smaller_rise_takes_two() {
        let mut detector = RiseDetector::from_steps(&steps(1.1, 32));
        assert!(detector.is_break(0.5) && !detector.is_break(0.045));
        let mut break_detector = detector;
        break_detector.observe(0.5);
        assert!(break_detector.is_alarmed(), "{break_detector:?}");
        detector.observe(0.045);
        assert!(!detector.is_alarmed(), "{detector:?}");
        let alone = RiseDetector { ..detector };
        detector.observe(0.045);
        assert!(detector.is_alarmed(), "{detector:?}");
        let after = steps(0.0, 30).into_iter().fold(alone, |mut detector, rise| {
            detector.observe(rise);
            detector
        });
        assert!(!after.is_alarmed() && after.sum < alone.sum, "{after:?}");
    }

    #[test]
    fn a_small_rise_takes_longer() {
        let mut detector = RiseDetector::from_steps(&steps(1.1, 32));
        let noticed = steps(0.015, 100).iter().position(|&rise| {
            detector.observe(rise);
            detector.is_alarmed()
        });
        assert!(noticed.is_some_and(|at| (4..30).contains(&at)), "{noticed:?}");
    }

    #[test]
    fn a_shift_before_the_decision_does_not_widen_the_deviation() {
        let shifted: Vec<f64> = steps(1.1, 16).into_iter().chain(steps(1.6, 16)).collect();
        let (plain, shifted) =
            (RiseDetector::from_steps(&steps(1.1, 32)), RiseDetector::from_steps(&shifted));
        assert!((plain.deviation - shifted.deviation).abs() < 0.5 * plain.deviation);
        assert!(RiseDetector::from_steps(&[1.0]).deviation <= 0.0);
    }
}
