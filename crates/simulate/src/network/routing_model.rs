//! A model of the experts that each token chooses, derived from counts alone.
//!
//! Input is the loads of a batch and the number of experts that a token visits. Output is a [`RoutingModel`],
//! which gives the probability that a token visits any of some replicas. Tokens visit `k` different experts
//! with the batch's own frequencies, and are otherwise independent of each other. This is conditional
//! Bernoulli sampling. Its weights `w` follow from the frequencies by the iteration of Chen, Dempster and Liu
//! (*Biometrika* 81, 1994). The probability that a token visits none of the replicas is `[z^k] prod (1 + w_e
//! (1 - s_e) z) / [z^k] prod (1 + w_e z)`. In it, `s_e` is the share of expert `e`'s tokens that the replicas
//! serve.

/// The rounds of the iteration for the weights. Frequencies are then met to a few per mille.
const FIT_ROUNDS: usize = 8;

/// The least distance of frequencies from 1, at which weights are infinite.
const CERTAINTY_MARGIN: f64 = 1e-6;

/// The choice of experts by the tokens of one batch.
#[derive(Debug, Clone)]
pub struct RoutingModel {
    /// The number of tokens, `T`.
    tokens: f64,
    /// The experts per token, or `None` if tokens visit different numbers of experts.
    top_k: Option<usize>,
    /// The share of the tokens that visit each expert, `[E]`.
    frequency: Vec<f64>,
    /// The weights, `[E]`.
    weight: Vec<f64>,
}

impl RoutingModel {
    /// Returns the choice of tokens that visit `top_k` experts each. The loads determine the number of
    /// tokens.
    pub fn from_loads(loads: &[u64], top_k: usize) -> Self {
        let total: u64 = loads.iter().sum();
        let tokens = total.div_ceil(top_k.max(1) as u64).max(loads.iter().copied().max().unwrap_or(0));
        let all_alike = tokens * top_k as u64 == total && total > 0;
        let tokens = tokens as f64;
        let share =
            |load: &u64| if tokens > 0.0 { (*load as f64 / tokens).min(1.0 - CERTAINTY_MARGIN) } else { 0.0 };
        let frequency: Vec<f64> = loads.iter().map(share).collect();
        let weight = frequency.iter().map(|p| p / (1.0 - p)).collect();
        let mut choice = Self { tokens, top_k: all_alike.then_some(top_k), frequency, weight };
        if let Some(top_k) = choice.top_k {
            choice.fit_weights(top_k);
        }
        choice
    }

    /// Returns the number of tokens.
    pub fn token_count(&self) -> f64 {
        self.tokens
    }

    /// Returns the share of the tokens that visit an expert.
    pub(super) fn expert_frequency(&self, expert: usize) -> f64 {
        self.frequency[expert]
    }

    /// Fits the weights, so that every expert is visited with its frequency.
    fn fit_weights(&mut self, top_k: usize) {
        let experts = self.weight.len();
        let mut left = vec![vec![0.0; top_k + 1]; experts + 1];
        for _ in 0..FIT_ROUNDS {
            // Compute the products of the first experts here. Those of the last experts follow on the way
            // back.
            left[0][0] = 1.0;
            for e in 0..experts {
                let (before, after) = left.split_at_mut(e + 1);
                after[0].copy_from_slice(&before[e]);
                multiply_linear(&mut after[0], self.weight[e]);
            }
            let whole = left[experts][top_k];
            if !(whole > 0.0 && whole.is_finite()) {
                self.top_k = None;
                return;
            }
            let mut right = vec![0.0; top_k + 1];
            right[0] = 1.0;
            for e in (0..experts).rev() {
                let weight = self.weight[e];
                let others: f64 = (0..top_k).map(|i| left[e][i] * right[top_k - 1 - i]).sum();
                multiply_linear(&mut right, weight);
                let visited = weight * others / whole;
                if visited > 0.0 {
                    self.weight[e] = weight * self.frequency[e] / visited;
                }
            }
            // A constant factor of all weights does not change the choice. Normalise the mean to keep the
            // sums in range.
            let mean = self.weight.iter().sum::<f64>() / (top_k as f64);
            self.weight.iter_mut().for_each(|weight| *weight /= mean.max(f64::MIN_POSITIVE));
        }
    }

    /// Returns the probability that a token visits any of these replicas, for three kinds of sources at once.
    /// `on` lists different experts with the share of their tokens that is served here.
    pub(super) fn visit_probabilities(&self, on: &[(usize, [f64; 3])]) -> [f64; 3] {
        let Some(top_k) = self.top_k else {
            let mut none = [1.0; 3];
            for &(e, shares) in on {
                none.iter_mut()
                    .zip(shares)
                    .for_each(|(none, share)| *none *= 1.0 - self.frequency[e] * share);
            }
            return none.map(|none| 1.0 - none);
        };
        let mut others = vec![0.0; top_k + 1];
        others[0] = 1.0;
        let mut here = on.iter().map(|&(e, _)| e).collect::<Vec<_>>();
        here.sort_unstable();
        for (e, &weight) in self.weight.iter().enumerate() {
            if weight > 0.0 && here.binary_search(&e).is_err() {
                multiply_linear(&mut others, weight);
            }
        }
        let with = |shares: fn(&[f64; 3], usize) -> f64, class: usize| {
            let mut all = others.clone();
            on.iter()
                .for_each(|(e, s)| multiply_linear(&mut all, self.weight[*e] * (1.0 - shares(s, class))));
            all[top_k]
        };
        let whole = with(|_, _| 0.0, 0);
        let mut visited = [0.0; 3];
        for (class, visited) in visited.iter_mut().enumerate() {
            *visited =
                if whole > 0.0 { (1.0 - with(|s, c| s[c], class) / whole).clamp(0.0, 1.0) } else { 0.0 };
        }
        visited
    }
}

/// Multiplies a polynomial by `1 + w z`, truncated at its degree.
fn multiply_linear(polynomial: &mut [f64], weight: f64) {
    for degree in (1..polynomial.len()).rev() {
        polynomial[degree] += weight * polynomial[degree - 1];
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "exact numbers")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_experts_are_drawn_without_replacement() {
        // 8 experts, 3 per token: C(6, 3) / C(8, 3) = 20 / 56 of the tokens miss both of two experts.
        let choice = RoutingModel::from_loads(&[30; 8], 3);
        let visited = choice.visit_probabilities(&[(1, [1.0; 3]), (5, [1.0, 0.5, 0.0])]);
        assert!((visited[0] - 36.0 / 56.0).abs() < 1e-9);
        // Of expert 5's tokens half: those that visit 1, and half of those that visit 5 and not 1 (15 of 56).
        assert!((visited[1] - (21.0 + 7.5) / 56.0).abs() < 1e-9);
        assert!((visited[2] - 3.0 / 8.0).abs() < 1e-9);
    }

    #[test]
    fn tokens_that_visit_different_numbers_are_taken_one_by_one() {
        let choice = RoutingModel::from_loads(&[5, 0, 1, 0], 2);
        assert_eq!((choice.token_count(), choice.top_k), (5.0, None));
        let visited = choice.visit_probabilities(&[(2, [1.0; 3])]);
        assert!((visited[0] - 0.2).abs() < 1e-9);
        assert_eq!(RoutingModel::from_loads(&[0, 0], 2).token_count(), 0.0);
    }

    proptest! {
        /// Checks that every expert is visited with its counted frequency.
        #[test]
        fn frequencies_are_met(parts in prop::collection::vec(1u64..40, 6..20), top_k in 1usize..5) {
            // The sum must be divisible by top-k, and no expert may draw a token twice.
            let sum: u64 = parts.iter().sum();
            let most = *parts.iter().max().unwrap();
            prop_assume!(sum.is_multiple_of(top_k as u64) && sum / top_k as u64 > most);
            let choice = RoutingModel::from_loads(&parts, top_k);
            prop_assert!(choice.top_k.is_some());
            for e in 0..parts.len() {
                let visited = choice.visit_probabilities(&[(e, [1.0; 3])])[0];
                prop_assert!((visited - choice.frequency[e]).abs() < 0.02, "{visited} {}", choice.frequency[e]);
            }
        }
    }
}
