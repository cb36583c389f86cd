//! Peaks by set and number of ranks, for all batches.

/// Highest number of entries of a table.
const MAX_ENTRIES: usize = 1 << 22;
/// Number of batches that are processed together, for vector instructions.
const LANES: usize = 8;

/// Values of `ceil(load(X) / n)` for every batch.
pub(super) struct PeakTable {
    /// `[X][n][padded batches]`. The entry is a large number for n = 0 if the set has load.
    peaks: Vec<u32>,
    /// Weight of a token, `[padded batches]`.
    weights: Vec<u64>,
    padded: usize,
    ranks: usize,
}

impl PeakTable {
    /// Creates the table. Returns `None` if it would be too large.
    pub(super) fn new(
        (batches, weights): (&[&[u64]], &[u64]),
        order: &[usize],
        ranks: usize,
    ) -> Option<PeakTable> {
        let (sets, padded) = (1usize << order.len(), batches.len().next_multiple_of(LANES));
        let entries = sets.checked_mul(ranks + 1)?.checked_mul(padded)?;
        let largest = batches.iter().map(|batch| batch.iter().map(|&l| u128::from(l)).sum::<u128>()).max();
        let heaviest = u128::from(weights.iter().copied().max().unwrap_or(0)) * padded as u128;
        if entries > MAX_ENTRIES
            || largest.unwrap_or(0) > u128::from(u32::MAX / 2)
            || heaviest * u128::from(u32::MAX) > u128::from(u64::MAX)
        {
            return None;
        }
        let mut weights = weights.to_vec();
        weights.resize(padded, 0);
        let mut peaks = vec![0; entries];
        for set in 0..sets {
            for (b, batch) in batches.iter().enumerate() {
                let inside = (0..order.len()).filter(|bit| set >> bit & 1 == 1);
                let load: u64 = inside.map(|bit| batch[order[bit]]).sum();
                for n in 0..=ranks {
                    let peak =
                        if n == 0 { load.min(1) * u64::from(u32::MAX / 2) } else { load.div_ceil(n as u64) };
                    peaks[(set * (ranks + 1) + n) * padded + b] = peak as u32;
                }
            }
        }
        Some(PeakTable { peaks, weights, padded, ranks })
    }

    /// Returns the weighted sum over the batches of the largest entry, where set `X` can reach `n(X)` ranks.
    /// It may stop early with a lower sum, once that sum is at least `enough`.
    pub(super) fn sum_bound(&self, sets: usize, n: impl Fn(usize) -> usize, enough: u64) -> u64 {
        let mut sum = 0;
        for from in (0..self.padded).step_by(LANES) {
            let mut most = [0u32; LANES];
            for set in 0..sets {
                let at = (set * (self.ranks + 1) + n(set).min(self.ranks)) * self.padded + from;
                for (most, &peak) in most.iter_mut().zip(&self.peaks[at..at + LANES]) {
                    *most = (*most).max(peak);
                }
            }
            sum += most
                .iter()
                .zip(&self.weights[from..])
                .map(|(&peak, weight)| u64::from(peak) * weight)
                .sum::<u64>();
            if sum >= enough {
                break;
            }
        }
        sum
    }
}
