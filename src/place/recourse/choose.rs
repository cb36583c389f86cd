//! How far to trust the history: chosen on batches held back.
//!
//! In: the batches of a window. Out: the [`Spread`] to draw scenarios by. Every strength is searched on the first part of the
//! window and judged on the rest, in blocks of time: if domains change within the window, the rest shows it. Of the
//! strengths that are within a standard error of the best, the strongest is taken: with few batches, caution.

use super::spread::{self, Part, Spread};
use super::{Dice, Exact, Layer, Scenarios};
use evenkeel_solver::Error;

const fn part(share: u8, tilt: u8, new: u8) -> Part {
    Part { share, tilt, new }
}

/// Strengths to choose from, weakest first.
const LADDER: [&[Part]; 4] = [
    &[part(50, 0, 0), part(25, 30, 0), part(25, 0, 15)],
    &[part(25, 0, 0), part(25, 100, 0), part(50, 0, 15)],
    &[part(25, 100, 0), part(25, 0, 15), part(50, 0, 50)],
    &[part(100, 0, 50)],
];

/// The strength where nothing can be held back.
const UNKNOWN: usize = 2;

/// With fewer batches, nothing can be held back.
const FEWEST: usize = 8;

/// Most batches that are held back to choose by.
const HELD: usize = 64;

/// The strength for these batches.
///
/// # Errors
/// Where an expert has no rank; the caller has checked that all fit.
pub(super) fn spread(layer: &Layer<'_>, batches: &[&[u64]], dice: &mut Dice) -> Result<Spread, Error> {
    if batches.len() < FEWEST {
        return Ok(LADDER[UNKNOWN].to_vec());
    }
    let (first, rest) = batches.split_at(batches.len() * 3 / 5);
    let (experts, ranks) = (layer.experts, layer.slots.len());
    let judged = spread::evenly(rest.len(), rest.len().min(HELD)).map(|b| rest[b]);
    let held = Scenarios::new(experts, ranks, judged);
    let iterations = layer.policy.iterations(&layer.slots) / LADDER.len() as u64;
    let mut exact = Exact::default();
    let mut scores: Vec<Vec<f64>> = vec![];
    for strength in LADDER {
        let seen = spread::scenarios(experts, ranks, first, strength, layer.policy.scenarios, dice);
        let found = layer.found(&seen, None, iterations, dice.clone())?;
        let peaks = exact.peaks(&found.seating, &held)?;
        scores.push(peaks.iter().zip(held.factors()).map(|(&peak, factor)| f64::from(peak) * factor).collect());
    }
    Ok(LADDER[strongest_of_the_best(&scores)].to_vec())
}

/// The last of the rows whose mean is within one standard error, of the differences, of the least mean.
fn strongest_of_the_best(scores: &[Vec<f64>]) -> usize {
    let sum = |row: &[f64]| row.iter().sum::<f64>();
    let least = scores.iter().min_by(|a, b| sum(a).total_cmp(&sum(b)));
    let Some(least) = least else { return UNKNOWN };
    let near = |row: &Vec<f64>| {
        let apart: Vec<f64> = row.iter().zip(least).map(|(a, b)| a - b).collect();
        let n = apart.len().max(2) as f64;
        let mean = sum(&apart) / n;
        let variance = apart.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>() / (n - 1.0);
        mean <= (variance / n).sqrt()
    };
    scores.iter().rposition(near).unwrap_or(UNKNOWN)
}
