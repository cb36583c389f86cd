//! How much of the past to plan on.
//!
//! In: a trace, a layer, the step that comes next. Out: the [`History`] to plan on. [`Window::Auto`] asks the past itself:
//! of several lengths it takes the one whose shares of the experts would have been nearest to those of the latest stretches
//! of steps, each seen from the step before it; where no length foresaw the very latest stretch, that one alone. Short windows
//! follow a drift, long ones average the noise out; which is right differs from layer to layer and from day to day.

use super::History;
use crate::trace::Trace;
use std::fmt;

/// Which past steps a placement is planned on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Window {
    /// All of them, alike.
    All,
    /// The last so many.
    Last(usize),
    /// All, counting half as much every so many steps into the past ([`History::fading`]).
    HalfLife(usize),
    /// The last so many, a number chosen by layer: of one, two, four, .. times so many steps, and all.
    Auto {
        /// Steps of a stretch: how far ahead a forecast is used, as a rule the steps between two plans.
        ahead: usize,
    },
}

/// Stretches of the latest past that forecasts are compared on.
const STRETCHES: usize = 4;
/// A longer window is taken if it would have missed by at most so many hundredths more than the best: what was foreseen is the
/// mean, and the spread around it, which placements are searched on too, is known the better the more steps are seen.
const SLACK: u64 = 15;

/// A break is a tenth of all tokens at least that went to other experts than foreseen.
const BREAK: u64 = (1 << 20) / 5;

impl Window {
    /// What is to be planned on before step `end`, for one layer (by index).
    pub fn history<'a>(&self, trace: &'a Trace, layer: usize, end: usize) -> History<'a> {
        let last = |steps: usize| History::window(trace, layer, end.saturating_sub(steps.max(1))..end);
        match *self {
            Window::All => last(end),
            Window::Last(steps) => last(steps),
            Window::HalfLife(steps) => History::fading(trace, layer, end, steps),
            Window::Auto { ahead } => last(best_length(trace, layer, end, ahead.max(1))).known_from(0),
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Window::All => f.write_str("all steps before"),
            Window::Last(steps) => write!(f, "the last {steps} steps"),
            Window::HalfLife(steps) => write!(f, "all steps before, with a half-life of {steps}"),
            Window::Auto { .. } => {
                f.write_str("as many of the last steps as would have foreseen the latest best")
            }
        }
    }
}

/// The longest length that would have foreseen the last stretches about as well as the best.
fn best_length(trace: &Trace, layer: usize, end: usize, ahead: usize) -> usize {
    let mut lengths: Vec<usize> = std::iter::successors(Some(ahead), |&length| length.checked_mul(2))
        .take_while(|&l| l < end)
        .collect();
    lengths.push(end.max(1));
    let stretches: Vec<usize> = (1..=STRETCHES)
        .map_while(|stretch| end.checked_sub(stretch * ahead).filter(|&from| from > 0))
        .collect();
    let after: Vec<Vec<u64>> =
        stretches.iter().map(|&from| shares(&History::window(trace, layer, from..from + ahead))).collect();
    let miss = |length: usize| -> Vec<u64> {
        let missed = |(&from, after): (&usize, &Vec<u64>)| {
            let before = shares(&History::window(trace, layer, from.saturating_sub(length)..from));
            before.iter().zip(after).map(|(b, a)| b.abs_diff(*a)).sum::<u64>()
        };
        stretches.iter().zip(&after).map(missed).collect()
    };
    let misses: Vec<Vec<u64>> = lengths.iter().map(|&length| miss(length)).collect();
    let least: Vec<u64> =
        (0..stretches.len()).map(|at| misses.iter().map(|miss| miss[at]).min().unwrap_or(0)).collect();
    if broke(&least) {
        return ahead;
    }
    let missed: Vec<(usize, u64)> =
        lengths.into_iter().zip(misses.iter().map(|miss| miss.iter().sum())).collect();
    let least = missed.iter().map(|&(_, miss)| miss).min().unwrap_or(0);
    let near = |&&(_, miss): &&(usize, u64)| miss <= least + least / 100 * SLACK;
    missed.iter().rev().find(near).map_or(end.max(1), |&(length, _)| length)
}

/// Whether the latest stretch is like nothing that came before it: even the best forecast missed it by more than twice as much
/// as those before it, in the middle of them. `least` is what the best missed, latest first.
fn broke(least: &[u64]) -> bool {
    let [latest, before @ ..] = least else { return false };
    let mut before = before.to_vec();
    before.sort_unstable();
    let usual = before.get(before.len() / 2).copied().unwrap_or(u64::MAX);
    *latest > usual.saturating_mul(2).max(BREAK)
}

/// Each expert's part of the tokens, in units of 2⁻²⁰; zero where there are none.
fn shares(history: &History<'_>) -> Vec<u64> {
    let total: u128 = history.totals().iter().map(|&tokens| u128::from(tokens)).sum();
    history.totals().iter().map(|&tokens| ((u128::from(tokens) << 20) / total.max(1)) as u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two experts; expert 1 draws `of(step)` of 100 tokens.
    fn trace(steps: usize, of: impl Fn(usize) -> u64) -> Trace {
        let loads = (0..steps).flat_map(|step| [100 - of(step), of(step)]).collect();
        Trace::from_loads(2, vec![0], (0..steps).map(|s| s.to_string()).collect(), loads).unwrap()
    }

    #[test]
    fn a_half_life_halves() {
        let trace = trace(21, |step| 10 * u64::from(step == 0) + 30 * u64::from(step == 20));
        let faded = History::fading(&trace, 0, 21, 5);
        // Step 20 counts 256, step 0 is four half-lives old: 16.
        assert_eq!(faded.totals()[1], 30 * 256 + 10 * 16);
        assert_eq!(faded.steps(), 1..21);
        assert_eq!(History::fading(&trace, 0, 1, 1000).totals(), [90 * 256, 10 * 256]);
        assert_eq!(Window::HalfLife(5).history(&trace, 0, 21).totals(), faded.totals());
    }

    #[test]
    fn a_step_is_followed_and_noise_is_averaged() {
        let auto = Window::Auto { ahead: 5 };
        let jump = trace(60, |step| if step < 40 { 10 } else { 90 });
        // The window that sees only what came after the jump foresaw the last stretches best.
        assert_eq!(auto.history(&jump, 0, 60).steps(), 55..60);
        // So it does when one stretch has come after the jump; what came before it is known still.
        assert_eq!(auto.history(&jump, 0, 45).steps(), 40..45);
        assert_eq!(auto.history(&jump, 0, 45).earlier().len(), 40);
        assert_eq!(Window::Last(5).history(&jump, 0, 45).earlier().len(), 0);
        let noise = trace(60, |step| 30 + (step * step * 7919 % 41) as u64);
        assert!(auto.history(&noise, 0, 60).steps().len() >= 20);
        // A shorter window foresees this slow wave a little better, not enough to forget what came before.
        let wave = trace(64, |step| 50 + (step as u64 % 8));
        assert_eq!(auto.history(&wave, 0, 64).steps(), 0..64);
        assert_eq!(auto.history(&jump, 0, 1).steps(), 0..1);
    }

    #[test]
    fn windows_end_where_the_future_begins() {
        let trace = trace(30, |step| step as u64);
        assert_eq!(Window::Last(8).history(&trace, 0, 20).steps(), 12..20);
        assert_eq!(Window::Last(99).history(&trace, 0, 20).steps(), 0..20);
        assert_eq!(Window::All.history(&trace, 0, 20).totals()[1], (0..20).sum::<u64>());
    }
}
