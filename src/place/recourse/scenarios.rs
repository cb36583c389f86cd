//! The batches that a placement is searched on, laid out for pricing moves.
//!
//! In: batches of one layer in whole tokens. Out: [`Scenarios`]: the same loads by scenario (for the exact split) and by
//! expert (for pricing a move over all scenarios at once), the least peak that any placement could have, and the integer
//! weight that turns a peak into an imbalance.

/// One scenario's mean imbalance of 1 in units of a score.
pub(crate) const UNIT: u64 = 1 << 20;

/// Scenarios with more tokens are halved until they have no more: confined loads then stay exact in `f32`.
const MOST_TOKENS: u64 = 1 << 19;

/// Scenarios are priced, and so stored, in blocks of this many, the last filled up with empty ones.
pub(crate) const LANES: usize = 32;

/// Batches of one layer, `B` of them, of `E` experts.
#[derive(Debug, Clone)]
pub(crate) struct Scenarios {
    experts: usize,
    /// `[B][E]`
    by_scenario: Vec<u32>,
    /// `[E + 1][padded B]`; the last row, of an empty slot, is zero.
    by_expert: Vec<f32>,
    padded: usize,
    /// Score per token of peak, `[B]`.
    weights: Vec<u64>,
    /// The same, exact, `[padded B]`.
    factors: Vec<f64>,
    /// ceil(total / ranks), `[padded B]`.
    floors: Vec<f32>,
}

impl Scenarios {
    /// Takes batches of `experts` loads each; those without a token are left out.
    pub(crate) fn new<'a>(
        experts: usize,
        ranks: usize,
        batches: impl IntoIterator<Item = &'a [u64]>,
    ) -> Scenarios {
        let (mut by_scenario, mut weights, mut floors) = (vec![], vec![], vec![]);
        for batch in batches {
            let total: u128 = batch.iter().map(|&load| u128::from(load)).sum();
            let mut shift = 0;
            while total >> shift > u128::from(MOST_TOKENS) {
                shift += 1;
            }
            let half = if shift == 0 { 0 } else { 1u128 << (shift - 1) };
            let scaled = batch.iter().map(|&load| ((u128::from(load) + half) >> shift) as u32);
            by_scenario.extend(scaled);
            let total: u64 = by_scenario[by_scenario.len() - experts..].iter().map(|&l| u64::from(l)).sum();
            if total == 0 {
                by_scenario.truncate(by_scenario.len() - experts);
                continue;
            }
            weights.push((UNIT * ranks as u64 / total).max(1));
            floors.push(total.div_ceil(ranks as u64) as f32);
        }
        let padded = weights.len().next_multiple_of(LANES);
        floors.resize(padded, 0.0);
        let mut factors: Vec<f64> = weights.iter().map(|&weight: &u64| weight as f64).collect();
        factors.resize(padded, 0.0);
        let mut by_expert = vec![0.0; (experts + 1) * padded];
        for (scenario, loads) in by_scenario.chunks(experts.max(1)).enumerate() {
            for (expert, &load) in loads.iter().enumerate() {
                by_expert[expert * padded + scenario] = load as f32;
            }
        }
        Scenarios { experts, by_scenario, by_expert, padded, weights, factors, floors }
    }

    /// Scenarios, `B`.
    pub(crate) fn len(&self) -> usize {
        self.weights.len()
    }

    /// `B`, rounded up to whole vectors.
    pub(crate) fn padded(&self) -> usize {
        self.padded
    }

    /// Tokens per expert of one scenario, `[E]`.
    pub(crate) fn loads(&self, scenario: usize) -> &[u32] {
        &self.by_scenario[scenario * self.experts..][..self.experts]
    }

    /// Tokens of one expert per scenario, `[padded B]`, exact; expert `E` is the empty slot.
    pub(crate) fn row(&self, expert: usize) -> &[f32] {
        &self.by_expert[expert * self.padded..][..self.padded]
    }

    /// Score per token of peak, `[B]`.
    pub(crate) fn weights(&self) -> &[u64] {
        &self.weights
    }

    /// The weights as whole numbers in floating point, zero beyond `B`, `[padded B]`.
    pub(crate) fn factors(&self) -> &[f64] {
        &self.factors
    }

    /// ceil(total / ranks), `[padded B]`: no placement has a lower peak.
    pub(crate) fn floors(&self) -> &[f32] {
        &self.floors
    }

    /// Sum over the scenarios, per expert, each scenario counting alike.
    pub(crate) fn shares(&self) -> Vec<u64> {
        let mut sums = vec![0; self.experts];
        for (scenario, weight) in self.weights.iter().enumerate() {
            for (sum, &load) in sums.iter_mut().zip(self.loads(scenario)) {
                *sum += weight * u64::from(load);
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_stand_both_ways_and_empty_batches_are_left_out() {
        let batches: [&[u64]; 3] = [&[3, 1, 0], &[0, 0, 0], &[1 << 40, 1 << 41, 5]];
        let scenarios = Scenarios::new(3, 2, batches);
        assert_eq!((scenarios.len(), scenarios.padded()), (2, LANES));
        assert_eq!(scenarios.loads(0), [3, 1, 0]);
        assert_eq!((scenarios.row(0)[0], scenarios.row(1)[0], scenarios.row(3)[0]), (3.0, 1.0, 0.0));
        assert!(scenarios.floors()[0] > 1.5 && scenarios.floors()[0] < 2.5);
        assert_eq!(scenarios.weights()[0], UNIT * 2 / 4);
        // Scaled down in proportion.
        let large = scenarios.loads(1);
        assert!(large[1] == 2 * large[0] && u64::from(large[1]) < MOST_TOKENS && large[2] == 0);
    }
}
