//! Synthetic tokens whose routing drifts.
//!
//! Input: a seed and the similarity of the tokens. Output: activations, as a pure function of step and token.
//! A token is
//!
//! ```text
//! skew * direction[step] + topic * topics[token's] + the rest * noise
//! ```
//!
//! of mean square 1. The part that all tokens of a step share makes some experts popular with all of them.
//! Its direction turns a little every step, and the popular experts change with it.

use super::random::RandomStream;

/// Number of topics; every token belongs to one.
const TOPIC_COUNT: u64 = 8;

/// The parameters of synthetic tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActivationGenerator {
    /// Numbers per token.
    pub hidden: usize,
    /// Seed of all random numbers.
    pub seed: u64,
    /// The part that all tokens of a step share, 0 to 1, as a fraction of their length.
    pub skew: f64,
    /// The part that tokens of one topic share, 0 to 1; at most the rest that `skew` leaves.
    pub topic: f64,
    /// Rotation of the common direction per step, in radians.
    pub drift: f64,
}

impl ActivationGenerator {
    /// Returns typical parameters: some experts are popular, and after a hundred steps others are.
    pub fn new(hidden: usize, seed: u64) -> Self {
        Self { hidden, seed, skew: 0.6, topic: 0.4, drift: 0.02 }
    }

    /// Returns the tokens of one rank in one step, `[token][H]`.
    pub fn token_vectors(&self, step: u64, rank: usize, tokens: usize) -> Vec<f32> {
        let numbers = |path: &[u64]| RandomStream::new(self.seed, path).uniform_weights(self.hidden, 1.0);
        let turned = self.drift * step as f64;
        let (from, to) = (numbers(&[0]), numbers(&[1]));
        let (cos, sin) = (turned.cos() as f32, turned.sin() as f32);
        let common: Vec<f32> = from.iter().zip(to).map(|(a, b)| cos * a + sin * b).collect();
        let (skew, topic) = (self.skew.clamp(0.0, 1.0), self.topic.clamp(0.0, 1.0));
        let topic = topic.min((1.0 - skew * skew).sqrt());
        let noise = (1.0 - skew * skew - topic * topic).max(0.0).sqrt() as f32;
        let topics: Vec<Vec<f32>> = (0..TOPIC_COUNT).map(|topic| numbers(&[2, topic])).collect();
        let mut all = Vec::with_capacity(tokens * self.hidden);
        for token in 0..tokens as u64 {
            let mut own = RandomStream::new(self.seed, &[3, step, rank as u64, token]);
            let of_topic = &topics[(own.next_bits() % TOPIC_COUNT) as usize];
            let rest = own.uniform_weights(self.hidden, 1.0);
            let numbers = common.iter().zip(of_topic).zip(rest);
            all.extend(numbers.map(|((c, t), r)| skew as f32 * c + topic as f32 * t + noise * r));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_their_size_and_turn() {
        let recipe = ActivationGenerator { drift: 0.5, ..ActivationGenerator::new(256, 3) };
        let mean = |step| {
            let tokens = recipe.token_vectors(step, 0, 200);
            let square = tokens.iter().map(|x| x * x).sum::<f32>() / tokens.len() as f32;
            assert!((square - 1.0).abs() < 0.2, "{square}");
            (0..256).map(|h| tokens.iter().skip(h).step_by(256).sum::<f32>() / 200.0).collect::<Vec<_>>()
        };
        let cosine = |a: &[f32], b: &[f32]| {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let (first, second, third) = (mean(0), mean(1), mean(3));
        assert!(cosine(&first, &second) > cosine(&first, &third) + 0.1);
        assert_eq!(recipe.token_vectors(4, 1, 3), recipe.token_vectors(4, 1, 3));
        assert_ne!(recipe.token_vectors(4, 1, 1), recipe.token_vectors(4, 0, 1));
    }
}
