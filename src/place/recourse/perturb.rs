//! Scenarios from a history: recent batches, and variations of them in which experts have changed roles.
//!
//! A search that trusts its batches fits the experts that happened to be heavy, and loses when the domain
//! shifts. So part of the scenarios are *displaced*. They keep the counts of a real batch, token for token,
//! but assign them to experts in a new order. The order is that of `rho * normal score of the expert's rank
//! in the batch + sqrt(1 - rho^2) * a standard normal`. This is a Gaussian copula between the roles before
//! and after. `rho = 1` is the batch itself. `rho = 0` has the same counts on random experts, where only the
//! replica graph helps. Totals, sparseness and concentration are those of the batch at every strength.

use super::model_selection::MIN_BATCHES_TO_HOLD_OUT;
use super::overdispersion;
use super::scenarios::ScenarioSet;
use crate::rng::SeededRng;

/// Departure of part of the scenarios from the batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PerturbationPart {
    /// Percentage of the scenarios that are made this way.
    pub(crate) share: u8,
    /// Percentage of the difference of two other batches that is added to each.
    pub(crate) tilt: u8,
    /// Percentage of an expert's role that is new: 1 - rho^2.
    pub(crate) new: u8,
    /// True if the scenarios are the totals of the history instead of single batches.
    pub(crate) pooled: bool,
}

/// Departure of the scenarios from the batches, as parts that add up to 100 percent.
pub(crate) type Perturbation = Vec<PerturbationPart>;

/// Returns the spread of unchanged batches.
pub(crate) fn no_perturbation() -> Perturbation {
    vec![PerturbationPart { share: 100, tilt: 0, new: 0, pooled: false }]
}

/// Draws up to `most` scenarios of a history with these totals, `[E]`: of every part its share, from batches
/// evenly spaced in time. Unchanged batches do not occur twice. A short history, such as totals, does not
/// show the differences of batches. Its changed batches then vary with dispersion `strays`
/// ([`overdispersion`]) instead of being tilted.
pub(crate) fn draw_scenarios(
    (totals, ranks): (&[u64], usize),
    (batches, strays): (&[&[u64]], f64),
    spread: &[PerturbationPart],
    most: usize,
    dice: &mut SeededRng,
) -> ScenarioSet {
    let experts = totals.len();
    let scores = normal_scores(experts);
    let few = batches.len() < MIN_BATCHES_TO_HOLD_OUT;
    let mut all: Vec<Vec<u64>> = vec![];
    for &PerturbationPart { share, tilt, new, pooled } in spread {
        let count = (most * share as usize).div_ceil(100);
        if pooled {
            all.extend(std::iter::repeat_n(totals.to_vec(), count));
            continue;
        }
        let as_they_are = tilt == 0 && new == 0;
        let count = if as_they_are || batches.is_empty() { count.min(batches.len()) } else { count };
        for b in even_indices(batches.len(), count) {
            let batch = if few && !as_they_are {
                round_to_whole(
                    &overdispersion::draw_batch(batches[b], strays, dice),
                    batches[b].iter().sum(),
                    dice,
                )
            } else {
                tilt_batch(batches, b, f64::from(tilt) / 100.0, dice)
            };
            all.push(displace_counts(&batch, f64::from(new) / 100.0, &scores, dice));
        }
    }
    ScenarioSet::new(experts, ranks, all.iter().map(Vec::as_slice))
}

/// Returns the tokens of all batches together, `[E]`.
pub(super) fn sum_batches(experts: usize, batches: &[&[u64]]) -> Vec<u64> {
    let mut sum = vec![0u64; experts];
    for batch in batches {
        sum.iter_mut().zip(*batch).for_each(|(sum, &load)| *sum = sum.saturating_add(load));
    }
    sum
}

/// Returns `count` indices below `n`, evenly spaced, with repetitions if `n` is smaller.
pub(crate) fn even_indices(n: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |i| ((2 * i + 1) * n / (2 * count)).min(n.saturating_sub(1)))
}

/// Returns a batch plus part of the difference of two others, in the same number of whole tokens.
fn tilt_batch(batches: &[&[u64]], base: usize, part: f64, dice: &mut SeededRng) -> Vec<u64> {
    let batch = batches[base];
    if part == 0.0 {
        return batch.to_vec();
    }
    let n = batches.len() as u64;
    let (plus, minus) = (batches[dice.draw_below(n) as usize], batches[dice.draw_below(n) as usize]);
    let total: u64 = batch.iter().sum();
    let of = |batch: &[u64]| batch.iter().sum::<u64>().max(1) as f64;
    let (p, m) = (part * total as f64 / of(plus), part * total as f64 / of(minus));
    let wanted: Vec<f64> = (0..batch.len())
        .map(|e| (batch[e] as f64 + p * plus[e] as f64 - m * minus[e] as f64).max(0.0))
        .collect();
    if wanted.iter().sum::<f64>() <= 0.0 { batch.to_vec() } else { round_to_whole(&wanted, total, dice) }
}

/// Distributes `total` whole tokens in these proportions by systematic rounding. Every partial sum is within
/// a token of its target.
pub(super) fn round_to_whole(wanted: &[f64], total: u64, dice: &mut SeededRng) -> Vec<u64> {
    let sum: f64 = wanted.iter().sum();
    let offset = dice.draw_uniform();
    let (mut so_far, mut given) = (0.0, 0);
    let mut tokens: Vec<u64> = Vec::with_capacity(wanted.len());
    for want in wanted {
        so_far += want;
        let upto = ((so_far / sum * total as f64 + offset) as u64).min(total);
        tokens.push(upto - given);
        given = upto;
    }
    tokens
}

/// Hands the counts of a batch to other experts. `scores` are the normal scores of as many ranks.
fn displace_counts(batch: &[u64], new: f64, scores: &[f64], dice: &mut SeededRng) -> Vec<u64> {
    if new == 0.0 {
        return batch.to_vec();
    }
    let n = batch.len();
    let mut noise = vec![0.0; 2 * n];
    dice.fill_normal(&mut noise);
    let (noise, ties) = noise.split_at(n);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_unstable_by(|&a, &b| batch[a].cmp(&batch[b]).then(ties[a].total_cmp(&ties[b])));
    let mut key = vec![0.0; n];
    for (&expert, score) in order.iter().zip(scores) {
        key[expert] = (1.0 - new).sqrt() * score + new.sqrt() * noise[expert];
    }
    let mut after: Vec<usize> = (0..n).collect();
    after.sort_unstable_by(|&a, &b| key[a].total_cmp(&key[b]).then(a.cmp(&b)));
    let mut displaced = vec![0; n];
    for (&from, &to) in order.iter().zip(&after) {
        displaced[to] = batch[from];
    }
    displaced
}

/// Returns the quantiles of the standard normal in the middles of `n` equal parts, to a few thousandths, by
/// Tukey's lambda.
fn normal_scores(n: usize) -> Vec<f64> {
    let score = |p: f64| (p.powf(0.1349) - (1.0 - p).powf(0.1349)) / 0.1975;
    (0..n).map(|at| score((at as f64 + 0.5) / n as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displaced_batches_keep_their_counts() {
        let batch: Vec<u64> = (0..40).map(|e| e * e % 97).collect();
        let mut dice = SeededRng::new(1, 0);
        let sorted = |batch: &[u64]| {
            let mut sorted = batch.to_vec();
            sorted.sort_unstable();
            sorted
        };
        let mut apart = vec![];
        for new in [0.0, 0.1, 0.5, 1.0] {
            let other = displace_counts(&batch, new, &normal_scores(batch.len()), &mut dice);
            assert_eq!(sorted(&other), sorted(&batch));
            apart.push(batch.iter().zip(&other).map(|(a, b)| a.abs_diff(*b)).sum::<u64>());
        }
        assert_eq!(apart[0], 0);
        assert!(apart.is_sorted(), "{apart:?}");
    }

    #[test]
    fn indices_are_spread_over_all() {
        assert_eq!(even_indices(10, 5).collect::<Vec<_>>(), [1, 3, 5, 7, 9]);
        assert_eq!(even_indices(2, 4).collect::<Vec<_>>(), [0, 0, 1, 1]);
    }
}
