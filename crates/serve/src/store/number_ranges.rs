//! A set of numbers as disjoint ranges, bounded in size.

use serde::{Deserialize, Serialize};

/// The most ranges. Above it, the two ranges with the smallest gap between them are merged.
const MAX_RANGES: usize = 1024;

/// Numbers as inclusive ranges in ascending order. No range is adjacent to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct NumberRanges(Vec<(u64, u64)>);

impl NumberRanges {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the highest number.
    pub(crate) fn last(&self) -> Option<u64> {
        self.0.last().map(|&(_, end)| end)
    }

    pub(crate) fn contains(&self, number: u64) -> bool {
        let at = self.0.partition_point(|&(_, end)| end < number);
        self.0.get(at).is_some_and(|&(begin, _)| begin <= number)
    }

    pub(crate) fn insert(&mut self, number: u64) {
        let at = self.0.partition_point(|&(_, end)| end < number);
        let within = self.0.get(at).is_some_and(|&(begin, _)| begin <= number);
        if within {
            return;
        }
        let joins_left = at > 0 && self.0[at - 1].1 + 1 == number;
        let joins_right = self.0.get(at).is_some_and(|&(begin, _)| number + 1 == begin);
        match (joins_left, joins_right) {
            (true, true) => {
                self.0[at - 1].1 = self.0[at].1;
                self.0.remove(at);
            }
            (true, false) => self.0[at - 1].1 = number,
            (false, true) => self.0[at].0 = number,
            (false, false) => self.0.insert(at, (number, number)),
        }
        if self.0.len() > MAX_RANGES {
            let gap = |at: &usize| self.0[at + 1].0 - self.0[*at].1;
            if let Some(at) = (0..self.0.len() - 1).min_by_key(gap) {
                self.0[at].1 = self.0[at + 1].1;
                self.0.remove(at + 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_was_inserted() {
        let mut ranges = NumberRanges::default();
        for number in [5, 3, 4, u64::MAX >> 1, 9, 7, 8, 4] {
            ranges.insert(number);
        }
        assert_eq!(ranges.0, [(3, 5), (7, 9), (u64::MAX >> 1, u64::MAX >> 1)]);
        assert!([3, 5, 7, 9].into_iter().all(|number| ranges.contains(number)));
        assert!([0, 2, 6, 10, 1 << 40].into_iter().all(|number| !ranges.contains(number)));
        assert_eq!(ranges.last(), Some(u64::MAX >> 1));
    }

    #[test]
    fn many_ranges_are_bounded_and_close_ones_join() {
        let mut ranges = NumberRanges::default();
        for number in 0..5_000u64 {
            ranges.insert(3 * number);
        }
        ranges.insert(1 << 60);
        assert!(ranges.0.len() <= MAX_RANGES);
        assert!((0..5_000u64).all(|number| ranges.contains(3 * number)));
        assert!(!ranges.contains(1 << 59), "a number far ahead does not swallow what is below it");
    }
}
