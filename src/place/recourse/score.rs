//! What a placement is worth: one integer from the peaks of all scenarios.

use super::scenarios::Scenarios;
use std::fmt;

/// What is minimised over the scenarios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Objective {
    /// The mean imbalance.
    #[default]
    Mean,
    /// The mean of the worst scenarios beyond a level, in thousandths: 900 is the mean of the worst tenth (conditional value
    /// at risk).
    Cvar(u16),
    /// The worst imbalance.
    Worst,
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Objective::Mean => f.write_str("mean"),
            Objective::Cvar(level) => write!(f, "cvar={}", f64::from(*level) / 1000.0),
            Objective::Worst => f.write_str("worst"),
        }
    }
}

impl Objective {
    /// Reads `mean`, `cvar=LEVEL` with a level of at least 0 and below 1, or `worst`.
    pub(crate) fn named(name: &str) -> Option<Objective> {
        match name {
            "mean" => Some(Objective::Mean),
            "worst" => Some(Objective::Worst),
            _ => {
                let level: f64 = name.strip_prefix("cvar=")?.parse().ok()?;
                (0.0..1.0).contains(&level).then_some(Objective::Cvar((level * 1000.0) as u16))
            }
        }
    }

    /// How many scenarios count, of so many: the worst ones.
    fn tail(self, scenarios: usize) -> usize {
        match self {
            Objective::Mean => scenarios,
            Objective::Cvar(level) => (scenarios * (1000 - level.min(999) as usize)).div_ceil(1000),
            Objective::Worst => 1,
        }
    }

    /// How many scenarios count.
    pub(crate) fn counted(self, scenarios: &Scenarios) -> usize {
        self.tail(scenarios.len())
    }

    /// The score of these peaks, `[B]` or longer, in whole tokens: the sum over the scenarios that count of imbalance times
    /// [`UNIT`](super::scenarios::UNIT). Lower is better.
    pub(crate) fn score(self, scenarios: &Scenarios, peaks: &[f32]) -> u64 {
        if self == Objective::Mean {
            return sum(scenarios.factors(), peaks);
        }
        let mut each: Vec<u64> = each(scenarios, peaks).collect();
        each.sort_unstable_by(|a, b| b.cmp(a));
        each.iter().take(self.tail(scenarios.len())).sum()
    }
}

impl Objective {
    /// Which of several placements are as good as the best, given what every one scores in the same scenarios ([`each`]): those
    /// whose mean is within one standard error, of the differences, of the least mean. Where a tail is minimised, those whose
    /// tail is the least.
    pub(crate) fn as_good(self, rows: &[Vec<u64>]) -> Vec<bool> {
        let scores: Vec<u64> = rows.iter().map(|row| self.tail_sum(row)).collect();
        let least = scores.iter().copied().min().unwrap_or(0);
        let Some(best) = scores.iter().position(|&score| score == least) else { return vec![] };
        if self != Objective::Mean {
            return scores.iter().map(|&score| score == least).collect();
        }
        let near = |row: &Vec<u64>| {
            let (mean, error) = standard_error(row, &rows[best]);
            mean <= 2.0 * error
        };
        rows.iter().map(near).collect()
    }

    /// The sum over the scenarios that count, given what each adds to the score ([`each`]).
    pub(crate) fn tail_sum(self, row: &[u64]) -> u64 {
        let mut row = row.to_vec();
        row.sort_unstable_by(|a, b| b.cmp(a));
        row.iter().take(self.tail(row.len())).sum()
    }
}

/// The mean difference of two rows of the same scenarios, and its standard error.
pub(crate) fn standard_error(row: &[u64], other: &[u64]) -> (f64, f64) {
    let apart: Vec<f64> = row.iter().zip(other).map(|(&a, &b)| a as f64 - b as f64).collect();
    let n = apart.len().max(2) as f64;
    let mean = apart.iter().sum::<f64>() / n;
    let variance = apart.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

/// What every scenario adds to the score of these peaks, `[B]`.
pub(crate) fn each<'a>(scenarios: &'a Scenarios, peaks: &'a [f32]) -> impl Iterator<Item = u64> + 'a {
    scenarios.weights().iter().zip(peaks).map(|(weight, &peak)| weight * peak as u64)
}

/// The sum of products of whole numbers below 2^53 in all: exact, in whatever order.
pub(crate) fn sum(factors: &[f64], peaks: &[f32]) -> u64 {
    let mut lanes = [0.0f64; 8];
    for (factors, peaks) in factors.chunks_exact(8).zip(peaks.chunks_exact(8)) {
        for lane in 0..8 {
            lanes[lane] += factors[lane] * f64::from(peaks[lane]);
        }
    }
    lanes.iter().sum::<f64>() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_count_the_worst() {
        let loads: Vec<Vec<u64>> = (0..10).map(|_| vec![4, 4]).collect();
        let scenarios = Scenarios::new(2, 2, loads.iter().map(Vec::as_slice));
        let mut peaks: Vec<f32> = (0..10u8).map(|b| f32::from(4 + b)).collect();
        peaks.resize(scenarios.padded(), 0.0);
        let tokens = |objective: Objective| objective.score(&scenarios, &peaks) / scenarios.weights()[0];
        assert_eq!(tokens(Objective::Mean), (4..14).sum::<u64>());
        assert_eq!(tokens(Objective::Cvar(800)), 13 + 12);
        assert_eq!(tokens(Objective::Worst), 13);
    }

    #[test]
    fn as_good_is_within_noise() {
        let rows =
            vec![vec![10, 20, 30, 40], vec![11, 19, 31, 40], vec![15, 25, 36, 44], vec![10, 20, 30, 39]];
        assert_eq!(Objective::Mean.as_good(&rows), [true, true, false, true]);
        assert_eq!(Objective::Worst.as_good(&rows), [false, false, false, true]);
        assert!(Objective::Mean.as_good(&[]).is_empty());
    }

    #[test]
    fn names() {
        assert_eq!(Objective::named("cvar=0.9"), Some(Objective::Cvar(900)));
        assert_eq!(Objective::Cvar(900).to_string(), "cvar=0.9");
        assert_eq!(Objective::named("worst"), Some(Objective::Worst));
        assert!(Objective::named("cvar=1").is_none() && Objective::named("cvar").is_none());
    }
}
