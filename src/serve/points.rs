//! The imbalance over time, bounded: the older, the coarser.

use super::record::Point;

/// Most points; when there are more, the older half is joined in pairs.
pub(super) const MOST: usize = 2048;
/// Latest points that show how a feed pauses.
const PAUSES: usize = 64;

/// The history of the imbalance in ascending order.
#[derive(Debug, Clone, Default)]
pub(super) struct Points(Vec<Point>);

impl Points {
    /// From a store.
    pub(super) fn of(points: Vec<Point>) -> Self {
        Self(points)
    }

    /// All points, oldest first.
    pub(super) fn all(&self) -> &[Point] {
        &self.0
    }

    /// Seconds of the longest pause but one between the latest points: one pause alone is no habit.
    pub(super) fn usual_pause(&self) -> u64 {
        let latest = &self.0[self.0.len().saturating_sub(PAUSES)..];
        let mut pauses: Vec<u64> =
            latest.windows(2).map(|pair| pair[1].at.saturating_sub(pair[0].at)).collect();
        pauses.sort_unstable();
        pauses.iter().rev().nth(1).copied().unwrap_or(0)
    }

    /// Milliseconds between two of the latest steps, over the latest twenty seconds; None before these have passed.
    pub(super) fn step_ms(&self) -> Option<f64> {
        let last = self.0.last()?;
        let first = self.0.iter().rev().find(|point| last.at.saturating_sub(point.at) >= 20)?;
        let steps = last.accepted.saturating_sub(first.accepted).max(1);
        Some(1e3 * (last.at - first.at) as f64 / steps as f64)
    }

    /// Adds the latest.
    pub(super) fn push(&mut self, point: Point) {
        self.0.push(point);
        if self.0.len() > MOST {
            let half = MOST / 2;
            let joined: Vec<Point> =
                self.0[..half].chunks(2).map(|p| p[1..].iter().fold(p[0], |a, &b| a.joined(b))).collect();
            self.0.splice(..half, joined);
        }
    }

    /// Forgets what is older than a time.
    pub(super) fn forget_before(&mut self, at: u64) {
        self.0.retain(|point| point.at >= at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_past_grows_coarser_and_nothing_is_lost() {
        let mut points = Points::default();
        for at in 1..=10_000u64 {
            let mean = 1.0 + (at % 10) as f64 / 10.0;
            points.push(Point { accepted: at, step: at, steps: 1, mean, max: mean, bound: 1.0, plan: 1, at });
        }
        assert!(points.all().len() <= MOST);
        assert_eq!(points.all().iter().map(|p| u64::from(p.steps)).sum::<u64>(), 10_000);
        assert!(points.all().is_sorted_by(|a, b| a.accepted < b.accepted));
        let mean: f64 = points.all().iter().map(|p| p.mean * f64::from(p.steps)).sum::<f64>() / 10_000.0;
        assert!((mean - 1.45).abs() < 1e-9, "{mean}");
        points.forget_before(9_991);
        assert_eq!(points.all().len(), 10);
    }

    #[test]
    fn dumps_pause_as_a_habit_and_an_outage_does_not() {
        let points = |times: &[u64]| {
            let mut points = Points::default();
            for (accepted, &at) in (1..).zip(times) {
                let of = Point { accepted, step: 0, steps: 1, mean: 1.0, max: 1.0, bound: 1.0, plan: 1, at };
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
