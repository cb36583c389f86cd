//! Batches of a search, in the layout for pricing moves.
//!
//! In: batches of one layer in whole tokens. Out: [`ScenarioSet`]. They hold the loads by scenario, for the
//! exact split, and by expert, to price a move over all scenarios at once. They also hold the lowest peak
//! that any placement could have, and the integer weight that converts a peak to an imbalance.

/// Score of one scenario with an imbalance of 1.
pub(crate) const IMBALANCE_UNIT: u64 = 1 << 20;

/// Highest number of tokens of a scenario. Larger ones are halved until they fit, so that confined loads stay
/// exact in `f32`.
const MAX_SCENARIO_TOKENS: u64 = 1 << 19;

/// Number of scenarios in a block. Scenarios are stored and priced in blocks, and the last one is filled up
/// with empty scenarios.
pub(crate) const LANES: usize = 32;

/// Batches of one layer, `B` of them, each with `E` experts.
#[derive(Debug, Clone)]
pub(crate) struct ScenarioSet {
    experts: usize,
    /// Loads, `[B][E]`.
    by_scenario: Vec<u32>,
    /// Loads, `[E + 1][padded B]`. The last row, for an empty slot, is zero.
    by_expert: Vec<f32>,
    padded: usize,
    /// Score per token of peak, `[B]`.
    weights: Vec<u64>,
    /// Weights as exact floating-point numbers, `[padded B]`.
    factors: Vec<f64>,
    /// Tokens below which a peak does not count, at least ceil(total / ranks), `[padded B]`.
    floors: Vec<f32>,
}

impl ScenarioSet {
    /// Creates scenarios from batches of `experts` loads each. Batches without a token are left out.
    pub(crate) fn new<'a>(
        experts: usize,
        ranks: usize,
        batches: impl IntoIterator<Item = &'a [u64]>,
    ) -> ScenarioSet {
        let (mut by_scenario, mut weights, mut floors) = (vec![], vec![], vec![]);
        for batch in batches {
            let (loads, _) = scale_batch(batch);
            let total: u64 = loads.iter().map(|&load| u64::from(load)).sum();
            if total == 0 {
                continue;
            }
            by_scenario.extend(loads);
            weights.push(weight_per_token(ranks, total));
            floors.push(total.div_ceil(ranks as u64) as f32);
        }
        ScenarioSet::from_rows(experts, by_scenario, weights, floors)
    }

    /// Returns the set with one more scenario. Its peak counts only as far as it is above `limit` tokens, and
    /// then `factor` times as much as the peak of another one. A batch without a token is left out.
    #[must_use]
    pub(crate) fn with_limited_batch(
        &self,
        (batch, ranks): (&[u64], usize),
        limit: u64,
        factor: u64,
    ) -> ScenarioSet {
        let (loads, shift) = scale_batch(batch);
        let total: u64 = loads.iter().map(|&load| u64::from(load)).sum();
        if total == 0 {
            return self.clone();
        }
        let (mut by_scenario, mut weights) = (self.by_scenario.clone(), self.weights.clone());
        by_scenario.extend(loads);
        weights.push(weight_per_token(ranks, total).saturating_mul(factor));
        // Rounded loads may hide a token or two of the peak.
        let hidden = if shift == 0 { 0 } else { 2 };
        let limit = (limit >> shift).saturating_sub(hidden);
        let mut floors = self.floors[..self.len()].to_vec();
        floors.push(limit.clamp(total.div_ceil(ranks as u64), total) as f32);
        ScenarioSet::from_rows(self.experts, by_scenario, weights, floors)
    }

    /// Returns the scenarios with these indices.
    pub(crate) fn select(&self, indices: impl Iterator<Item = usize>) -> ScenarioSet {
        let (mut by_scenario, mut weights, mut floors) = (vec![], vec![], vec![]);
        for scenario in indices {
            by_scenario.extend_from_slice(self.loads(scenario));
            weights.push(self.weights[scenario]);
            floors.push(self.floors[scenario]);
        }
        ScenarioSet::from_rows(self.experts, by_scenario, weights, floors)
    }

    /// Lays the loads `[B][E]` out for pricing.
    fn from_rows(
        experts: usize,
        by_scenario: Vec<u32>,
        weights: Vec<u64>,
        mut floors: Vec<f32>,
    ) -> ScenarioSet {
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
        ScenarioSet { experts, by_scenario, by_expert, padded, weights, factors, floors }
    }

    /// Returns the number of scenarios, `B`.
    pub(crate) fn len(&self) -> usize {
        self.weights.len()
    }

    /// Returns `B`, rounded up to whole blocks.
    pub(crate) fn padded_len(&self) -> usize {
        self.padded
    }

    /// Returns the tokens per expert of one scenario, `[E]`.
    pub(crate) fn loads(&self, scenario: usize) -> &[u32] {
        &self.by_scenario[scenario * self.experts..][..self.experts]
    }

    /// Returns the exact tokens of one expert per scenario, `[padded B]`. Expert `E` is the empty slot.
    pub(crate) fn expert_loads(&self, expert: usize) -> &[f32] {
        &self.by_expert[expert * self.padded..][..self.padded]
    }

    /// Returns the score per token of peak, `[B]`.
    pub(crate) fn weights(&self) -> &[u64] {
        &self.weights
    }

    /// Returns the weights as whole numbers in floating point, zero beyond `B`, `[padded B]`.
    pub(crate) fn float_weights(&self) -> &[f64] {
        &self.factors
    }

    /// Returns the tokens below which a peak does not count, `[padded B]`: ceil(total / ranks), which no
    /// placement's peak is below, or the limit of the scenario.
    pub(crate) fn peak_floors(&self) -> &[f32] {
        &self.floors
    }

    /// Returns the sum over the scenarios for each expert, where each scenario counts alike.
    pub(crate) fn expert_shares(&self) -> Vec<u64> {
        let mut sums = vec![0; self.experts];
        for (scenario, weight) in self.weights.iter().enumerate() {
            for (sum, &load) in sums.iter_mut().zip(self.loads(scenario)) {
                *sum += weight * u64::from(load);
            }
        }
        sums
    }
}

/// Halves a batch until its tokens fit. Returns the loads and the number of halvings.
fn scale_batch(batch: &[u64]) -> (Vec<u32>, u32) {
    let total: u128 = batch.iter().map(|&load| u128::from(load)).sum();
    let mut shift = 0;
    while total >> shift > u128::from(MAX_SCENARIO_TOKENS) {
        shift += 1;
    }
    let half = if shift == 0 { 0 } else { 1u128 << (shift - 1) };
    (batch.iter().map(|&load| ((u128::from(load) + half) >> shift) as u32).collect(), shift)
}

/// Returns the score of a token of a scenario's peak.
fn weight_per_token(ranks: usize, total: u64) -> u64 {
    (IMBALANCE_UNIT * ranks as u64 / total).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_stand_both_ways_and_empty_batches_are_left_out() {
        let batches: [&[u64]; 3] = [&[3, 1, 0], &[0, 0, 0], &[1 << 40, 1 << 41, 5]];
        let scenarios = ScenarioSet::new(3, 2, batches);
        assert_eq!((scenarios.len(), scenarios.padded_len()), (2, LANES));
        assert_eq!(scenarios.loads(0), [3, 1, 0]);
        assert_eq!(
            (scenarios.expert_loads(0)[0], scenarios.expert_loads(1)[0], scenarios.expert_loads(3)[0]),
            (3.0, 1.0, 0.0)
        );
        assert!(scenarios.peak_floors()[0] > 1.5 && scenarios.peak_floors()[0] < 2.5);
        assert_eq!(scenarios.weights()[0], IMBALANCE_UNIT * 2 / 4);
        // Loads are scaled down in proportion.
        let large = scenarios.loads(1);
        assert!(large[1] == 2 * large[0] && u64::from(large[1]) < MAX_SCENARIO_TOKENS && large[2] == 0);
    }

    #[test]
    fn a_limited_batch_counts_above_its_limit() {
        let scenarios = ScenarioSet::new(2, 2, [&[3u64, 1][..]]);
        let limited = scenarios.with_limited_batch((&[10, 2], 2), 8, 5);
        assert_eq!((limited.len(), limited.loads(1), limited.peak_floors()[1]), (2, &[10, 2][..], 8.0));
        assert_eq!(limited.weights(), [scenarios.weights()[0], 5 * (IMBALANCE_UNIT * 2 / 12)]);
        // No limit is below the mean, and a batch without a token is left out.
        let floor = scenarios.with_limited_batch((&[10, 2], 2), 1, 5).peak_floors()[1];
        assert!((f64::from(floor) - 6.0).abs() < 1e-6, "{floor}");
        assert_eq!(scenarios.with_limited_batch((&[0, 0], 2), 1, 5).len(), 1);
    }
}
