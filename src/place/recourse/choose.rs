//! How far to trust the history: chosen on batches held back.
//!
//! In: the batches of a window. Out: the [`Spread`] whose placement, searched on the first part of the window, does best on
//! the rest. Blocked in time: if domains change within the window, the rest shows it.

use super::{Dice, Exact, Layer, Scenarios, search::Found, spread};
use crate::place::recourse::spread::Spread;
use evenkeel_solver::Error;

/// Strengths to choose from, weakest first: ties go to the weaker.
const LADDER: [Spread; 5] = [
    Spread::NONE,
    Spread { share: 75, tilt: 30, new: 0 },
    Spread { share: 90, tilt: 100, new: 0 },
    Spread { share: 75, tilt: 0, new: 15 },
    Spread { share: 75, tilt: 0, new: 50 },
];

/// With fewer batches, nothing can be held back.
const FEWEST: usize = 8;

/// Most batches that are held back to choose by.
const HELD: usize = 64;

/// The strength that does best on the last two fifths of the window when searched on the first three; the middle one where
/// there is nothing to hold back.
///
/// # Errors
/// Where an expert has no rank; the caller has checked that all fit.
pub(super) fn spread(layer: &Layer<'_>, batches: &[&[u64]], dice: &mut Dice) -> Result<Spread, Error> {
    if batches.len() < FEWEST {
        return Ok(LADDER[3]);
    }
    let (first, rest) = batches.split_at(batches.len() * 3 / 5);
    let (experts, ranks) = (layer.experts, layer.slots.len());
    let judged = spread::evenly(rest.len(), rest.len().min(HELD)).map(|b| rest[b]);
    let held = Scenarios::new(experts, ranks, judged);
    let objective = layer.policy.objective;
    let iterations = layer.policy.iterations(&layer.slots) / LADDER.len() as u64;
    let mut best = (u64::MAX, LADDER[0]);
    let mut exact = Exact::default();
    for strength in LADDER {
        let seen = spread::scenarios(experts, ranks, first, strength, layer.policy.scenarios, dice);
        let Found { seating, .. } = layer.found(&seen, None, iterations, dice.clone())?;
        let score = exact.score(&seating, &held, objective)?;
        if score < best.0 {
            best = (score, strength);
        }
    }
    Ok(best.1)
}
