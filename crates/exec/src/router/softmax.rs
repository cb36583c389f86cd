//! Softmax: over all experts, over the chosen ones, and renormalised.

use super::choose::Chosen;

/// Selects by logits (in the order of their probabilities) and gates by the softmax over all experts.
pub(super) fn all(row: &[f32], chosen: &mut Chosen) {
    let mut gates: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
    softmax(&mut gates);
    chosen.push(row.iter().map(|&x| f64::from(x)).zip(gates));
}

/// Selects and gates by the logits: the softmax follows over the chosen.
pub(super) fn logits(row: &[f32], chosen: &mut Chosen) {
    chosen.push(row.iter().map(|&x| (f64::from(x), f64::from(x))));
}

/// Numbers to probabilities, in place.
pub(super) fn softmax(numbers: &mut [f64]) {
    let highest = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for x in numbers.iter_mut() {
        *x = (*x - highest).exp();
        sum += *x;
    }
    numbers.iter_mut().for_each(|x| *x /= sum);
}

/// Scales positive numbers to a sum; all zero stays all zero.
pub(super) fn scale_to(numbers: &mut [f64], total: f64) {
    let sum: f64 = numbers.iter().sum();
    if sum > 0.0 {
        numbers.iter_mut().for_each(|x| *x *= total / sum);
    }
}
