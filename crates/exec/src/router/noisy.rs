//! Noisy top-k: normal noise whose size is learned per expert.

use super::top_k::ExpertScores;
use crate::random::RandomStream;

/// Adds a token from `row`, `[2 E]`: clean logits, then those whose `softplus` is the size of the noise.
/// Gates are the noisy logits; the softmax follows over the chosen ones.
pub(super) fn push_noisy(row: &[f32], random: &mut RandomStream, chosen: &mut ExpertScores) {
    let (clean, raw) = row.split_at(row.len() / 2);
    chosen.push(clean.iter().zip(raw).map(|(&clean, &raw)| {
        let score = f64::from(clean) + random.normal() * softplus(f64::from(raw));
        (score, score)
    }));
}

/// Computes `ln(1 + exp(x))` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
