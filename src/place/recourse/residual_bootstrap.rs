//! Scenarios of the batches to come: a forecast plus the residuals of earlier batches.
//!
//! A short window estimates the current mean but not the variance around it. A long window estimates the
//! variance, but around an outdated mean. Each scenario combines both: the mean of the window, plus the
//! residual of a batch of the whole known past. A residual is the batch's difference from the mean of a
//! window of the same length around it. It is taken for each expert, in standard deviations of a count
//! (Pearson's residual). The method is a bootstrap of residuals (Efron and Tibshirani, An Introduction to the
//! Bootstrap, 1993, chapter 9). Experts that vary together do so in the scenario. An event in one batch of
//! twenty is in one scenario of twenty, even if the window is short.

use super::overdispersion::mean_shares;
use super::perturb::{even_indices, round_to_whole};
use super::scenarios::ScenarioSet;
use crate::rng::SeededRng;

/// Tokens added to a mean before its standard deviation is taken, because a count varies even if its forecast
/// is almost zero.
const MEAN_OFFSET_TOKENS: f64 = 0.25;

/// Draws `count` scenarios around the forecast of the last `window` of the `known` batches, which all hold a
/// token.
pub(super) fn draw_scenarios(
    (experts, ranks): (usize, usize),
    known: &[&[u64]],
    window: usize,
    count: usize,
    dice: &mut SeededRng,
) -> ScenarioSet {
    let latest = &known[known.len() - window.clamp(1, known.len())..];
    let foreseen = mean_shares(latest, experts);
    // A batch alone is its own mean, so at least two are averaged.
    let around = window.clamp(2, known.len().max(2));
    // The factor corrects two biases: the window's mean is only an estimate, and a batch is part of the mean
    // around it.
    let wider = ((1.0 + 1.0 / latest.len() as f64) / (1.0 - 1.0 / around as f64)).sqrt();
    let means: Vec<(usize, Vec<f64>)> = even_indices(known.len(), count.min(known.len()))
        .map(|at| {
            let from = at.saturating_sub(around / 2).min(known.len().saturating_sub(around));
            (at, mean_shares(&known[from..(from + around).min(known.len())], experts))
        })
        .collect();
    let mut all: Vec<Vec<u64>> = Vec::with_capacity(count);
    for number in 0..count {
        let drawn = if count <= known.len() { number } else { dice.draw_below(means.len() as u64) as usize };
        let (at, around) = &means[drawn];
        let (batch, like) = (known[*at], latest[dice.draw_below(latest.len() as u64) as usize]);
        let (tokens, total): (u64, u64) = (batch.iter().sum(), like.iter().sum());
        let loads = batch.iter().zip(around).zip(&foreseen).map(|((&load, around), foreseen)| {
            let (around, foreseen) = (around * tokens as f64, foreseen * total as f64);
            let residual = (load as f64 - around) / (around + MEAN_OFFSET_TOKENS).sqrt();
            (foreseen + wider * residual * (foreseen + MEAN_OFFSET_TOKENS).sqrt()).max(0.0)
        });
        let wanted: Vec<f64> = loads.collect();
        // Nothing is left if all loads fell below zero.
        all.push(if wanted.iter().any(|&load| load > 0.0) {
            round_to_whole(&wanted, total, dice)
        } else {
            like.to_vec()
        });
    }
    ScenarioSet::new(experts, ranks, all.iter().map(Vec::as_slice))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns batches of four experts. The first two share `of` tokens of 1000. In every tenth batch the
    /// last has 200 more, taken from the third.
    fn batches(count: usize, of: impl Fn(usize) -> u64) -> Vec<Vec<u64>> {
        let batch = |at: usize| {
            let (first, burst) = (of(at), if at % 10 == 3 { 200 } else { 0 });
            vec![
                first / 2 + (at as u64 * 7) % 20,
                first / 2 - (at as u64 * 7) % 20,
                800 - first - burst,
                200 + burst,
            ]
        };
        (0..count).map(batch).collect()
    }

    fn drawn(batches: &[Vec<u64>], window: usize, count: usize) -> Vec<Vec<u32>> {
        let known: Vec<&[u64]> = batches.iter().map(Vec::as_slice).collect();
        let scenarios = draw_scenarios((4, 2), &known, window, count, &mut SeededRng::new(1, 0));
        (0..scenarios.len()).map(|at| scenarios.loads(at).to_vec()).collect()
    }

    #[test]
    fn means_are_the_windows_and_bursts_those_of_the_whole_past() {
        // The mean changed ten batches ago, and only one burst has followed since.
        let all = batches(200, |at| if at < 190 { 200 } else { 500 });
        let draws = drawn(&all, 10, 400);
        let mean = |e: usize| draws.iter().map(|d| f64::from(d[e])).sum::<f64>() / draws.len() as f64;
        assert!((mean(0) - 250.0).abs() < 15.0 && (mean(3) - 220.0).abs() < 15.0, "{} {}", mean(0), mean(3));
        let bursts = draws.iter().filter(|draw| draw[3] > 320).count();
        assert!((20..70).contains(&bursts), "{bursts} of 400");
        assert!(draws.iter().all(|draw| draw.iter().sum::<u32>() == 1000));
    }

    #[test]
    fn one_batch_and_experts_without_tokens_do() {
        let one = drawn(&batches(1, |_| 300), 1, 5);
        assert_eq!(one.len(), 5);
        let silent: Vec<Vec<u64>> = (0..9).map(|at| vec![0, at, 0, 1]).collect();
        assert!(drawn(&silent, 3, 20).iter().all(|draw| draw[0] == 0 && draw[2] == 0));
        assert_eq!(drawn(&silent, 3, 20), drawn(&silent, 3, 20));
    }
}
