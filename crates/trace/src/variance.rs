//! Variation of batches, compared with independent draws.
//!
//! Input is the batches of one layer. Output is a ratio of variances (Fano factor). Batches of requests vary
//! more than independent tokens do, because the tokens of a request resemble each other.

use crate::Trace;

/// Number of batches below which no ratio is stated.
const MIN_BATCHES: usize = 3;

/// Returns the variance of a batch's counts over that of as many independent draws from the average, for one
/// layer by index: 1 is independent.
///
/// Decode batches can be slightly below 1, because a token visits distinct experts. Batches with less than
/// nine tenths of the tokens of the largest one are left out. Returns `None` if fewer than three remain.
pub fn variance_ratio(trace: &Trace, layer: usize) -> Option<f64> {
    let tokens = |batch: &&[u64]| batch.iter().map(|&load| load as f64).sum::<f64>();
    let all: Vec<&[u64]> = (0..trace.steps().len()).map(|step| trace.loads(step, layer)).collect();
    let largest = all.iter().map(tokens).fold(0.0, f64::max);
    let batches: Vec<&[u64]> =
        all.into_iter().filter(|batch| largest > 0.0 && tokens(batch) >= 0.9 * largest).collect();
    if batches.len() < MIN_BATCHES {
        return None;
    }
    let total: f64 = batches.iter().map(tokens).sum();
    let share = |expert: usize| batches.iter().map(|batch| batch[expert] as f64).sum::<f64>() / total;
    let shares: Vec<f64> = (0..trace.experts()).map(share).collect();
    let distance = |batch: &&[u64]| {
        let n = tokens(batch);
        let square = |(&load, share): (&u64, &f64)| (load as f64 - n * share).powi(2);
        batch.iter().zip(&shares).map(square).sum::<f64>() / n
    };
    // The average comes from the same batches, which costs one degree of freedom.
    let variance = batches.iter().map(distance).sum::<f64>() / (batches.len() - 1) as f64;
    let independent = 1.0 - shares.iter().map(|share| share * share).sum::<f64>();
    (independent > 0.0).then(|| variance / independent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(loads: Vec<u64>) -> Trace {
        let steps = (0..loads.len() / 2).map(|step| step.to_string()).collect();
        Trace::from_loads(2, vec![0], steps, loads).unwrap()
    }

    #[test]
    fn equal_batches_have_no_variance_and_opposite_ones_that_of_whole_batches() {
        assert_eq!(variance_ratio(&trace(vec![6, 4, 6, 4, 6, 4]), 0), Some(0.0));
        // Every token of a batch of 10 goes the same way: 10 times the variance, and 4/3 for four batches.
        let ratio = variance_ratio(&trace(vec![10, 0, 0, 10, 10, 0, 0, 10]), 0).unwrap();
        assert!((ratio - 40.0 / 3.0).abs() < 1e-9, "{ratio}");
    }

    #[test]
    fn too_few_full_batches_and_single_experts_have_no_ratio() {
        assert_eq!(variance_ratio(&trace(vec![6, 4, 6, 4, 1, 0]), 0), None);
        assert_eq!(variance_ratio(&trace(vec![0, 0, 0, 0, 0, 0]), 0), None);
        assert_eq!(variance_ratio(&trace(vec![5, 0, 5, 0, 5, 0]), 0), None);
    }
}
