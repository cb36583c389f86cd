//! Noisy top-k: normal noise whose size is learned per expert.

use super::choose::Chosen;
use crate::exec::random::Stream;

/// `row` is `[2 E]`: clean logits, then those that size the noise by `softplus`. Gates are the noisy logits: the softmax
/// follows over the chosen.
pub(super) fn noisy(row: &[f32], random: &mut Stream, chosen: &mut Chosen) {
    let (clean, raw) = row.split_at(row.len() / 2);
    chosen.push(clean.iter().zip(raw).map(|(&clean, &raw)| {
        let score = f64::from(clean) + random.normal() * softplus(f64::from(raw));
        (score, score)
    }));
}

/// `ln(1 + exp(x))` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
