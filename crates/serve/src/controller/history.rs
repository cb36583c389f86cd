//! The history of the imbalance in bounded memory: older points cover more steps.

use crate::wire::decision::HistoryPoint;
use serde::{Deserialize, Serialize};

/// The most points. Above it, the older half is merged in pairs.
pub(super) const MAX_POINTS: usize = 2048;
/// The number of latest points from which the usual pause between loads is estimated.
const RECENT_PAUSES: usize = 64;

/// The history of the imbalance in ascending order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct DownsampledSeries(Vec<HistoryPoint>);

impl DownsampledSeries {
    /// Returns all points, oldest first.
    pub(crate) fn as_slice(&self) -> &[HistoryPoint] {
        &self.0
    }

    /// Returns the second longest pause between the latest points, in seconds. The longest one may be an
    /// exception.
    pub(crate) fn usual_pause(&self) -> u64 {
        let latest = &self.0[self.0.len().saturating_sub(RECENT_PAUSES)..];
        let mut pauses: Vec<u64> = latest
            .windows(2)
            .map(|pair| pair[1].timestamp_unix_s.saturating_sub(pair[0].timestamp_unix_s))
            .collect();
        pauses.sort_unstable();
        pauses.iter().rev().nth(1).copied().unwrap_or(0)
    }

    /// Returns the milliseconds between two of the latest steps, averaged over at least the latest twenty
    /// seconds. Returns `None` before these have passed.
    pub(crate) fn step_ms(&self) -> Option<f64> {
        let last = self.0.last()?;
        let first = self
            .0
            .iter()
            .rev()
            .find(|point| last.timestamp_unix_s.saturating_sub(point.timestamp_unix_s) >= 20)?;
        let steps = last.accepted.saturating_sub(first.accepted).max(1);
        Some(1e3 * (last.timestamp_unix_s - first.timestamp_unix_s) as f64 / steps as f64)
    }

    /// Adds the latest point.
    pub(super) fn push(&mut self, point: HistoryPoint) {
        self.0.push(point);
        if self.0.len() > MAX_POINTS {
            let half = MAX_POINTS / 2;
            let joined: Vec<HistoryPoint> =
                self.0[..half].chunks(2).map(|p| p[1..].iter().fold(p[0], |a, &b| a.merge_with(b))).collect();
            self.0.splice(..half, joined);
        }
    }

    /// Removes all points before a time.
    pub(crate) fn forget_before(&mut self, at: u64) {
        self.0.retain(|point| point.timestamp_unix_s >= at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_grows_coarser_and_nothing_is_lost() {
        let mut points = DownsampledSeries::default();
        for at in 1..=10_000u64 {
            let mean = 1.0 + (at % 10) as f64 / 10.0;
            points.push(HistoryPoint {
                accepted: at,
                step: at,
                steps: 1,
                mean,
                max: mean,
                bound: 1.0,
                plan: 1,
                timestamp_unix_s: at,
            });
        }
        assert!(points.as_slice().len() <= MAX_POINTS);
        assert_eq!(points.as_slice().iter().map(|p| u64::from(p.steps)).sum::<u64>(), 10_000);
        assert!(points.as_slice().is_sorted_by(|a, b| a.accepted < b.accepted));
        let mean: f64 = points.as_slice().iter().map(|p| p.mean * f64::from(p.steps)).sum::<f64>() / 10_000.0;
        assert!((mean - 1.45).abs() < 1e-9, "{mean}");
        points.forget_before(9_991);
        assert_eq!(points.as_slice().len(), 10);
    }

    #[test]
    fn dumps_pause_as_a_habit_and_an_outage_does_not() {
        let points = |times: &[u64]| {
            let mut points = DownsampledSeries::default();
            for (accepted, &at) in (1..).zip(times) {
                let of = HistoryPoint {
                    accepted,
                    step: 0,
                    steps: 1,
                    mean: 1.0,
                    max: 1.0,
                    bound: 1.0,
                    plan: 1,
                    timestamp_unix_s: at,
                };
                points.push(of);
            }
            points
        };
        let pause = |times: &[u64]| points(times).usual_pause();
        assert_eq!(pause(&[5]), 0);
        assert_eq!(pause(&[0, 0, 60, 60, 60, 120, 120, 181]), 60);
        assert_eq!(pause(&[0, 1, 2, 9_000, 9_001, 9_002]), 1);
        assert_eq!(points(&[0, 5, 10, 15]).step_ms(), None);
        let hundred = points(&(0..3_000).map(|step| step / 100).collect::<Vec<u64>>()).step_ms();
        assert!(hundred.is_some_and(|ms| (9.0..11.0).contains(&ms)), "{hundred:?}");
    }
}
