//! Softmax over all experts or over the chosen ones, and renormalisation.

use super::top_k::ExpertScores;

/// Selects by logits (in the order of their probabilities). Gates are the softmax over all experts.
pub(super) fn push_softmax(row: &[f32], chosen: &mut ExpertScores) {
    let mut gates: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
    softmax(&mut gates);
    chosen.push(row.iter().map(|&x| f64::from(x)).zip(gates));
}

/// Selects by the logits, which are also the gates. The softmax follows over the chosen ones.
pub(super) fn push_logits(row: &[f32], chosen: &mut ExpertScores) {
    chosen.push(row.iter().map(|&x| (f64::from(x), f64::from(x))));
}

/// Turns numbers into probabilities, in place.
pub(super) fn softmax(numbers: &mut [f64]) {
    let highest = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for x in numbers.iter_mut() {
        *x = (*x - highest).exp();
        sum += *x;
    }
    numbers.iter_mut().for_each(|x| *x /= sum);
}

/// Scales positive numbers to a sum. If all are zero they stay zero.
pub(super) fn scale_to(numbers: &mut [f64], total: f64) {
    let sum: f64 = numbers.iter().sum();
    if sum > 0.0 {
        numbers.iter_mut().for_each(|x| *x *= total / sum);
    }
}
