//! Divides sequential sweeps into waves.
//!
//! Input: operations in their order, each with the ranks it touches. Output: the wave of each operation, one
//! after that of the last earlier operation that shares a rank with it. Operations of one wave touch disjoint
//! ranks, so they commute. So executing the waves in turn has the same result as the sequence. This is a list
//! schedule of the dependency graph: every operation runs as early as possible.

/// The number of waves of each sweep of a program. A barrier separates two waves, so this number determines
/// the latency.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WaveCounts {
    /// One pass over the two-hosted items.
    pub fill: usize,
    /// The pass over the items with three hosts or more.
    pub pour: usize,
    /// The two passes of each spanning forest.
    pub forests: Vec<ForestWaves>,
    /// Largest number of levelling passes.
    pub passes: usize,
}

/// The number of waves of the two passes over a spanning forest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForestWaves {
    /// The pass from the leaves to the roots.
    pub up: usize,
    /// The pass from the roots to the leaves.
    pub down: usize,
}

impl WaveCounts {
    /// Returns the waves until all items are placed, which every batch needs.
    pub fn placement_waves(&self) -> usize {
        self.fill + self.pour
    }

    /// Returns the waves with all levelling passes and all spanning forests, which a batch needs if it then
    /// needs no search.
    pub fn all_sweeps(&self) -> usize {
        let forests: usize = self.forests.iter().map(|forest| forest.up + forest.down).sum();
        self.placement_waves() + self.passes * self.fill + forests
    }
}

/// Returns the wave of every operation.
pub(super) fn assign_waves<'a>(ranks: usize, operations: impl Iterator<Item = &'a [u32]>) -> Vec<u32> {
    let mut next = vec![0u32; ranks];
    operations
        .map(|touched| {
            let wave = touched.iter().map(|&rank| next[rank as usize]).max().unwrap_or(0);
            for &rank in touched {
                next[rank as usize] = wave + 1;
            }
            wave
        })
        .collect()
}

/// Returns the bounds of the waves, and the indices of the operations wave by wave, in their order within
/// each.
pub(super) fn group_by_wave(waves: &[u32]) -> (Vec<u32>, Vec<usize>) {
    let count = waves.iter().max().map_or(0, |&last| last as usize + 1);
    let mut bounds = vec![0u32; count + 1];
    for &wave in waves {
        bounds[wave as usize + 1] += 1;
    }
    for wave in 0..count {
        bounds[wave + 1] += bounds[wave];
    }
    let mut order: Vec<usize> = (0..waves.len()).collect();
    order.sort_by_key(|&operation| waves[operation]);
    (bounds, order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_keep_the_order_of_what_shares_a_rank() {
        let operations: [&[u32]; 5] = [&[0, 1], &[2, 3], &[1, 2], &[0, 3], &[4, 5]];
        let waves = assign_waves(6, operations.into_iter());
        assert_eq!(waves, [0, 0, 1, 1, 0]);
        assert_eq!(group_by_wave(&waves), (vec![0, 3, 5], vec![0, 1, 4, 2, 3]));
        assert_eq!(group_by_wave(&[]), (vec![0], vec![]));
    }
}
