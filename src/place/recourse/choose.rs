//! How far to trust the history: chosen on batches held back.
//!
//! In: the batches of a window. Out: [`Trust`]: the spread to draw scenarios by, or a replica graph where even the widest
//! search would not have held. Every spread is searched on one half of the window and judged on the other, both ways round,
//! in blocks of time: if domains change within the window, the other half shows it. Fixed replica graphs, which need nothing
//! from the batches but the order of the experts, are judged beside them. Of the spreads that are as good as the best within a
//! standard error, the widest is taken: where batches cannot tell, caution.

use super::aim::Aim;
use super::dispersion;
use super::score::each;
use super::spread::{self, Part, Spread};
use super::{Dice, Exact, Layer, Recourse, Scenarios, against_eplb, starts};
use crate::split::Method;
use evenkeel_solver::Error;

pub(super) const fn part(share: u8, tilt: u8, new: u8) -> Part {
    Part { share, tilt, new, pooled: false }
}

/// Spreads to choose from, narrowest first.
pub(super) const LADDER: [&[Part]; 3] = [
    &[part(50, 0, 0), part(50, 100, 0)],
    &[part(25, 0, 0), part(50, 100, 0), part(25, 0, 15)],
    &[part(75, 100, 0), part(25, 0, 100)],
];

/// The spread where nothing can be held back.
const UNKNOWN: usize = LADDER.len() - 1;

/// The spread where what came before a change shows how far batches stray.
const BROKEN: usize = 1;

/// With fewer batches, nothing can be held back.
pub(super) const FEWEST: usize = 8;

/// Most batches of a half that are judged on.
pub(super) const HELD: usize = 128;

/// Scenarios of a search to choose by.
pub(super) const SCENARIOS: usize = 64;

/// What to plan by.
pub(super) enum Trust {
    /// Search on scenarios drawn by this spread, for this aim.
    Search(Spread, Aim),
    /// Take the start of this number, a replica graph.
    Graph(usize),
    /// Take EPLB's placement.
    Eplb,
}

/// The widest spread.
pub(super) fn strongest() -> Spread {
    LADDER[LADDER.len() - 1].to_vec()
}

/// The narrowest spread.
pub(super) fn narrowest() -> Spread {
    LADDER[0].to_vec()
}

/// What the random graphs are drawn from: the same ones for every window.
pub(super) fn graph_dice(policy: &Recourse) -> Dice {
    Dice::new(policy.seed, u64::MAX)
}

/// Iterations of one search to choose by.
pub(super) fn iterations(layer: &Layer<'_>) -> u64 {
    layer.policy.iterations(&layer.slots) / (2 * LADDER.len() as u64)
}

/// What to plan by, for the batches of a layer and the split that will run.
///
/// # Errors
/// Where an expert has no rank; the caller has checked that all fit.
pub(super) fn trust(layer: &Layer<'_>, dice: &mut Dice) -> Result<Trust, Error> {
    match layer.policy.split {
        None => against_eplb::for_any(layer, dice),
        Some(Method::Exact | Method::Lp | Method::Affine5) => for_exact(layer, dice),
        Some(rule) => against_eplb::for_rule(layer, rule, dice),
    }
}

fn for_exact(layer: &Layer<'_>, dice: &mut Dice) -> Result<Trust, Error> {
    if layer.batches.len() < FEWEST {
        // How far batches stray is known from before: they are few because what came before is out of date.
        let known = if layer.broken { BROKEN } else { UNKNOWN };
        return Ok(Trust::Search(LADDER[known].to_vec(), Aim::Exact));
    }
    let (first, second) = layer.batches.split_at(layer.batches.len() / 2);
    let (experts, ranks) = (layer.experts, layer.slots.len());
    let iterations = iterations(layer);
    let mut exact = Exact::default();
    let mut rows: Vec<Vec<u64>> = vec![];
    for (seen, unseen) in [(first, second), (second, first)] {
        let judged = spread::evenly(unseen.len(), unseen.len().min(HELD)).map(|b| unseen[b]);
        let held = Scenarios::new(experts, ranks, judged);
        let mut seatings = vec![];
        let strays = if seen.len() < FEWEST { dispersion::fitted(seen) } else { 0.0 };
        for spread in LADDER {
            let count = layer.policy.scenarios.min(SCENARIOS);
            let scenarios = spread::scenarios(experts, ranks, (seen, strays), spread, count, dice);
            seatings.push(layer.found(&scenarios, Aim::Exact, iterations, dice.clone())?.seating);
        }
        let shares = Scenarios::new(experts, ranks, seen.iter().copied()).shares();
        seatings.extend(starts::starts(&shares, &layer.slots, &mut graph_dice(layer.policy)));
        rows.resize(seatings.len(), vec![]);
        for (row, seating) in rows.iter_mut().zip(&seatings) {
            row.extend(each(&held, &exact.peaks(seating, &held)?));
        }
    }
    let good = layer.policy.objective.as_good(&rows);
    // A graph wins only where no spread is as good.
    let widest = good.iter().take(LADDER.len()).rposition(|&good| good);
    let graph = good.iter().position(|&good| good).map(|at| at - LADDER.len().min(at));
    Ok(match (widest, graph) {
        (Some(at), _) => Trust::Search(LADDER[at].to_vec(), Aim::Exact),
        (None, Some(at)) => Trust::Graph(at),
        (None, None) => Trust::Search(LADDER[UNKNOWN].to_vec(), Aim::Exact),
    })
}
