//! Sequential sweeps cut into waves.
//!
//! In: operations in their order, each with the ranks it touches. Out: for each the wave it belongs to, one more than
//! that of the last earlier operation that shares a rank with it. Operations of one wave touch disjoint ranks, so they
//! commute; the waves in turn give what the sequence gives. (A list schedule of the dependency graph: every operation
//! as early as it can be.)

/// How many waves each sweep of a program has: between two waves stands a barrier, so this is what latency is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Waves {
    /// One pass over the two-hosted items.
    pub fill: usize,
    /// The pass over the items with three hosts or more.
    pub pour: usize,
    /// Per spanning forest: up and down.
    pub forests: Vec<[usize; 2]>,
    /// Levelling passes at most.
    pub passes: usize,
}

impl Waves {
    /// Waves until everything is placed: what every batch takes.
    pub fn least(&self) -> usize {
        self.fill + self.pour
    }

    /// Waves with all levelling passes and all spanning forests: what a batch takes that then needs no search.
    pub fn all_sweeps(&self) -> usize {
        self.least() + self.passes * self.fill + self.forests.iter().flatten().sum::<usize>()
    }
}

/// The wave of every operation.
pub(super) fn waves<'a>(ranks: usize, operations: impl Iterator<Item = &'a [u32]>) -> Vec<u32> {
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

/// The bounds of the waves, and the operations' numbers wave by wave, in their order within each.
pub(super) fn in_waves(waves: &[u32]) -> (Vec<u32>, Vec<usize>) {
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
        let waves = waves(6, operations.into_iter());
        assert_eq!(waves, [0, 0, 1, 1, 0]);
        assert_eq!(in_waves(&waves), (vec![0, 3, 5], vec![0, 1, 4, 2, 3]));
        assert_eq!(in_waves(&[]), (vec![0], vec![]));
    }
}
