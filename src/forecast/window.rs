//! Selection of the past steps to plan on.
//!
//! In: a trace, a layer, the next step. Out: the [`History`] to plan on.
//!
//! [`HistoryWindow::Auto`] tests several lengths on the past. For each of the latest stretches of steps it
//! predicts the shares of the experts from the steps before the stretch. It takes the length with the
//! smallest error. If no length predicted the very latest stretch, it takes that stretch alone. Short windows
//! follow a drift, long ones average the noise out. The best length differs between layers and days.

use super::History;
use crate::trace::Trace;
use std::fmt;

/// Past steps on which a placement is planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HistoryWindow {
    /// All past steps with equal weights.
    All,
    /// The given number of latest steps.
    Last(usize),
    /// All past steps, with weights that halve every given number of steps into the past
    /// ([`History::with_half_life`]).
    HalfLife(usize),
    /// The latest steps, in a number chosen by layer: `ahead` times a power of two, or all.
    Auto {
        /// Steps of a stretch: the range of a forecast, normally the steps between two plans.
        ahead: usize,
    },
}

/// Number of latest stretches on which forecasts are compared.
const STRETCHES_COMPARED: usize = 4;
/// Percentage by which a longer window's error may exceed the smallest one. The error measures only the mean.
/// Placements are also searched on the spread around the mean, and more steps estimate the spread better.
const ERROR_SLACK_PERCENT: u64 = 15;

/// Smallest error that counts as a break: at least a tenth of all tokens went to other experts than
/// predicted.
const MIN_BREAK_ERROR: u64 = (1 << 20) / 5;

impl HistoryWindow {
    /// Returns the history to plan on before step `end`, for one layer (by index).
    pub fn history<'a>(&self, trace: &'a Trace, layer: usize, end: usize) -> History<'a> {
        let last = |steps: usize| History::from_steps(trace, layer, end.saturating_sub(steps.max(1))..end);
        match *self {
            HistoryWindow::All => last(end),
            HistoryWindow::Last(steps) => last(steps),
            HistoryWindow::HalfLife(steps) => History::with_half_life(trace, layer, end, steps),
            HistoryWindow::Auto { ahead } => {
                last(best_length(trace, layer, end, ahead.max(1))).with_past_since(0)
            }
        }
    }
}

impl fmt::Display for HistoryWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HistoryWindow::All => f.write_str("all past steps"),
            HistoryWindow::Last(steps) => write!(f, "the last {steps} steps"),
            HistoryWindow::HalfLife(steps) => write!(f, "all past steps, with a half-life of {steps} steps"),
            HistoryWindow::Auto { .. } => {
                f.write_str("the number of last steps that best predicts the latest steps")
            }
        }
    }
}

/// Returns the longest window whose error on the latest stretches is close to the smallest error.
fn best_length(trace: &Trace, layer: usize, end: usize, ahead: usize) -> usize {
    let mut lengths: Vec<usize> = std::iter::successors(Some(ahead), |&length| length.checked_mul(2))
        .take_while(|&l| l < end)
        .collect();
    lengths.push(end.max(1));
    let stretches: Vec<usize> = (1..=STRETCHES_COMPARED)
        .map_while(|stretch| end.checked_sub(stretch * ahead).filter(|&from| from > 0))
        .collect();
    let after: Vec<Vec<u64>> = stretches
        .iter()
        .map(|&from| expert_shares(&History::from_steps(trace, layer, from..from + ahead)))
        .collect();
    let miss = |length: usize| -> Vec<u64> {
        let missed = |(&from, after): (&usize, &Vec<u64>)| {
            let before = expert_shares(&History::from_steps(trace, layer, from.saturating_sub(length)..from));
            before.iter().zip(after).map(|(b, a)| b.abs_diff(*a)).sum::<u64>()
        };
        stretches.iter().zip(&after).map(missed).collect()
    };
    let misses: Vec<Vec<u64>> = lengths.iter().map(|&length| miss(length)).collect();
    let least: Vec<u64> =
        (0..stretches.len()).map(|at| misses.iter().map(|miss| miss[at]).min().unwrap_or(0)).collect();
    if has_break(&least) {
        return ahead;
    }
    let missed: Vec<(usize, u64)> =
        lengths.into_iter().zip(misses.iter().map(|miss| miss.iter().sum())).collect();
    let least = missed.iter().map(|&(_, miss)| miss).min().unwrap_or(0);
    let near = |&&(_, miss): &&(usize, u64)| miss <= least + least / 100 * ERROR_SLACK_PERCENT;
    missed.iter().rev().find(near).map_or(end.max(1), |&(length, _)| length)
}

/// Returns true if the latest stretch differs from everything before it. The best forecast's error must
/// exceed twice the median error of the earlier stretches. `least` holds the best forecast's errors, latest
/// first.
fn has_break(least: &[u64]) -> bool {
    let [latest, before @ ..] = least else { return false };
    let mut before = before.to_vec();
    before.sort_unstable();
    let usual = before.get(before.len() / 2).copied().unwrap_or(u64::MAX);
    *latest > usual.saturating_mul(2).max(MIN_BREAK_ERROR)
}

/// Returns each expert's share of the tokens, in units of 2⁻²⁰. All shares are zero if there are no tokens.
fn expert_shares(history: &History<'_>) -> Vec<u64> {
    let total: u128 = history.totals().iter().map(|&tokens| u128::from(tokens)).sum();
    history.totals().iter().map(|&tokens| ((u128::from(tokens) << 20) / total.max(1)) as u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a trace of two experts in which expert 1 receives `of(step)` of 100 tokens.
    fn trace(steps: usize, of: impl Fn(usize) -> u64) -> Trace {
        let loads = (0..steps).flat_map(|step| [100 - of(step), of(step)]).collect();
        Trace::from_loads(2, vec![0], (0..steps).map(|s| s.to_string()).collect(), loads).unwrap()
    }

    #[test]
    fn a_half_life_halves() {
        let trace = trace(21, |step| 10 * u64::from(step == 0) + 30 * u64::from(step == 20));
        let faded = History::with_half_life(&trace, 0, 21, 5);
        // Step 20 counts 256. Step 0 is four half-lives old and counts 16.
        assert_eq!(faded.totals()[1], 30 * 256 + 10 * 16);
        assert_eq!(faded.steps(), 1..21);
        assert_eq!(History::with_half_life(&trace, 0, 1, 1000).totals(), [90 * 256, 10 * 256]);
        assert_eq!(HistoryWindow::HalfLife(5).history(&trace, 0, 21).totals(), faded.totals());
    }

    #[test]
    fn a_step_is_followed_and_noise_is_averaged() {
        let auto = HistoryWindow::Auto { ahead: 5 };
        let jump = trace(60, |step| if step < 40 { 10 } else { 90 });
        // A window with only the steps after the jump predicts the last stretches best.
        assert_eq!(auto.history(&jump, 0, 60).steps(), 55..60);
        // The same holds when one stretch has followed the jump. The steps before the jump are still known.
        assert_eq!(auto.history(&jump, 0, 45).steps(), 40..45);
        assert_eq!(auto.history(&jump, 0, 45).earlier_batches().len(), 40);
        assert_eq!(HistoryWindow::Last(5).history(&jump, 0, 45).earlier_batches().len(), 0);
        let noise = trace(60, |step| 30 + (step * step * 7919 % 41) as u64);
        assert!(auto.history(&noise, 0, 60).steps().len() >= 20);
        // A shorter window predicts this slow wave slightly better, but not by enough to forget the earlier
        // steps.
        let wave = trace(64, |step| 50 + (step as u64 % 8));
        assert_eq!(auto.history(&wave, 0, 64).steps(), 0..64);
        assert_eq!(auto.history(&jump, 0, 1).steps(), 0..1);
    }

    #[test]
    fn windows_end_where_the_future_begins() {
        let trace = trace(30, |step| step as u64);
        assert_eq!(HistoryWindow::Last(8).history(&trace, 0, 20).steps(), 12..20);
        assert_eq!(HistoryWindow::Last(99).history(&trace, 0, 20).steps(), 0..20);
        assert_eq!(HistoryWindow::All.history(&trace, 0, 20).totals()[1], (0..20).sum::<u64>());
    }
}
