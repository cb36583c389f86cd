//! How tokens choose their experts, as far as counts tell.
//!
//! In: the loads of a batch and how many experts a token visits. Out: a [`Choice`], from which follows how likely a token visits any of
//! some copies. Tokens visit `k` different experts with the batch's own frequencies and otherwise independently of each other:
//! conditional Bernoulli sampling, whose weights `w` follow from the frequencies by the iteration of Chen, Dempster and Liu
//! (*Biometrika* 81, 1994). A token stays away from a set of copies with probability
//! `[z^k] prod (1 + w_e (1 - s_e) z) / [z^k] prod (1 + w_e z)`, `s_e` the share of expert `e`'s tokens that the set serves.

/// Rounds of the iteration for the weights; frequencies are met to a few per mille.
const ROUNDS: usize = 8;

/// Frequencies are kept this far from 1, where weights are infinite.
const CERTAIN: f64 = 1e-6;

/// How the tokens of one batch choose their experts.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Tokens, `T`.
    tokens: f64,
    /// Experts per token; none where tokens do not all visit as many.
    top_k: Option<usize>,
    /// Share of the tokens that visit each expert, `[E]`.
    frequency: Vec<f64>,
    /// `[E]`
    weight: Vec<f64>,
}

impl Choice {
    /// Of tokens that visit `top_k` experts each: as many as the loads need.
    pub fn of(loads: &[u64], top_k: usize) -> Self {
        let total: u64 = loads.iter().sum();
        let tokens = total.div_ceil(top_k.max(1) as u64).max(loads.iter().copied().max().unwrap_or(0));
        let all_alike = tokens * top_k as u64 == total && total > 0;
        let tokens = tokens as f64;
        let share = |load: &u64| if tokens > 0.0 { (*load as f64 / tokens).min(1.0 - CERTAIN) } else { 0.0 };
        let frequency: Vec<f64> = loads.iter().map(share).collect();
        let weight = frequency.iter().map(|p| p / (1.0 - p)).collect();
        let mut choice = Self { tokens, top_k: all_alike.then_some(top_k), frequency, weight };
        if let Some(top_k) = choice.top_k {
            choice.fit(top_k);
        }
        choice
    }

    /// Tokens that there are.
    pub fn tokens(&self) -> f64 {
        self.tokens
    }

    /// Share of the tokens that visit an expert.
    pub(super) fn frequency(&self, expert: usize) -> f64 {
        self.frequency[expert]
    }

    /// Weights whose expert is visited as often as it was.
    fn fit(&mut self, top_k: usize) {
        let experts = self.weight.len();
        let mut left = vec![vec![0.0; top_k + 1]; experts + 1];
        for _ in 0..ROUNDS {
            // Products of the first experts; those of the last are made on the way back.
            left[0][0] = 1.0;
            for e in 0..experts {
                let (before, after) = left.split_at_mut(e + 1);
                after[0].copy_from_slice(&before[e]);
                times(&mut after[0], self.weight[e]);
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
                times(&mut right, weight);
                let visited = weight * others / whole;
                if visited > 0.0 {
                    self.weight[e] = weight * self.frequency[e] / visited;
                }
            }
            // All weights times a constant are the same choice; the mean is kept where sums stay in range.
            let mean = self.weight.iter().sum::<f64>() / (top_k as f64);
            self.weight.iter_mut().for_each(|weight| *weight /= mean.max(f64::MIN_POSITIVE));
        }
    }

    /// The probability that a token visits any of these copies, for three kinds of sources at once: `on` names different experts
    /// and the share of their tokens that is served here.
    pub(super) fn visits(&self, on: &[(usize, [f64; 3])]) -> [f64; 3] {
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
                times(&mut others, weight);
            }
        }
        let with = |shares: fn(&[f64; 3], usize) -> f64, class: usize| {
            let mut all = others.clone();
            on.iter().for_each(|(e, s)| times(&mut all, self.weight[*e] * (1.0 - shares(s, class))));
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

/// A polynomial times `1 + w z`, cut off at its degree.
fn times(polynomial: &mut [f64], weight: f64) {
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
        let choice = Choice::of(&[30; 8], 3);
        let visited = choice.visits(&[(1, [1.0; 3]), (5, [1.0, 0.5, 0.0])]);
        assert!((visited[0] - 36.0 / 56.0).abs() < 1e-9);
        // Of expert 5's tokens half: those with 1, and half of those with 5 and not 1 (15 of 56).
        assert!((visited[1] - (21.0 + 7.5) / 56.0).abs() < 1e-9);
        assert!((visited[2] - 3.0 / 8.0).abs() < 1e-9);
    }

    #[test]
    fn tokens_that_visit_different_numbers_are_taken_one_by_one() {
        let choice = Choice::of(&[5, 0, 1, 0], 2);
        assert_eq!((choice.tokens(), choice.top_k), (5.0, None));
        let visited = choice.visits(&[(2, [1.0; 3])]);
        assert!((visited[0] - 0.2).abs() < 1e-9);
        assert_eq!(Choice::of(&[0, 0], 2).tokens(), 0.0);
    }

    proptest! {
        /// Every expert is visited as often as it was counted.
        #[test]
        fn frequencies_are_met(parts in prop::collection::vec(1u64..40, 6..20), top_k in 1usize..5) {
            // As many tokens as make the sum divide, and none that an expert gets twice.
            let sum: u64 = parts.iter().sum();
            let most = *parts.iter().max().unwrap();
            prop_assume!(sum.is_multiple_of(top_k as u64) && sum / top_k as u64 > most);
            let choice = Choice::of(&parts, top_k);
            prop_assert!(choice.top_k.is_some());
            for e in 0..parts.len() {
                let visited = choice.visits(&[(e, [1.0; 3])])[0];
                prop_assert!((visited - choice.frequency[e]).abs() < 0.02, "{visited} {}", choice.frequency[e]);
            }
        }
    }
}
