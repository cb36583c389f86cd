//! Peak as a ratio of load to speed, compared exactly.

use std::cmp::Ordering;

/// Ratio `load / speed` of a busiest rank. Ratios are compared exactly, so 2/1 equals 4/2.
///
/// At equal speeds of 1, `load` is the highest rank load.
#[derive(Debug, Clone, Copy)]
pub struct Peak {
    /// Load of the busiest rank.
    pub load: u64,
    /// Speed of that rank, positive.
    pub speed: u32,
}

impl Peak {
    /// Returns the ratio as a floating point number, for display and statistics.
    pub fn as_f64(self) -> f64 {
        self.load as f64 / f64::from(self.speed)
    }

    /// Returns the load that a rank of this speed can carry at this peak: `⌊load · s / speed⌋`, at most
    /// `u64::MAX`.
    pub(crate) fn room(self, speed: u32) -> u64 {
        if speed == self.speed {
            return self.load;
        }
        let room = u128::from(self.load) * u128::from(speed) / u128::from(self.speed);
        u64::try_from(room).unwrap_or(u64::MAX)
    }
}

impl Default for Peak {
    /// Returns the ratio 0 / 1.
    fn default() -> Peak {
        Peak { load: 0, speed: 1 }
    }
}

impl Ord for Peak {
    fn cmp(&self, other: &Peak) -> Ordering {
        let left = u128::from(self.load) * u128::from(other.speed);
        let right = u128::from(other.load) * u128::from(self.speed);
        left.cmp(&right)
    }
}

impl PartialOrd for Peak {
    fn partial_cmp(&self, other: &Peak) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Peak {
    fn eq(&self, other: &Peak) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Peak {}
