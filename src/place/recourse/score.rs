//! Score of a placement: one integer from the peaks of all scenarios.

use super::scenarios::ScenarioSet;
use std::fmt;

/// Objective over the scenarios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ScenarioObjective {
    /// Mean imbalance.
    #[default]
    Mean,
    /// Mean of the worst scenarios beyond a level in thousandths (conditional value at risk). 900 is the mean
    /// of the worst tenth.
    Cvar(u16),
    /// Worst imbalance.
    Worst,
}

impl fmt::Display for ScenarioObjective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScenarioObjective::Mean => f.write_str("mean"),
            ScenarioObjective::Cvar(level) => write!(f, "cvar={}", f64::from(*level) / 1000.0),
            ScenarioObjective::Worst => f.write_str("worst"),
        }
    }
}

impl ScenarioObjective {
    /// Reads `mean`, `cvar=LEVEL` with a level of at least 0 and below 1, or `worst`.
    pub(crate) fn from_name(name: &str) -> Option<ScenarioObjective> {
        match name {
            "mean" => Some(ScenarioObjective::Mean),
            "worst" => Some(ScenarioObjective::Worst),
            _ => {
                let level: f64 = name.strip_prefix("cvar=")?.parse().ok()?;
                (0.0..1.0).contains(&level).then_some(ScenarioObjective::Cvar((level * 1000.0) as u16))
            }
        }
    }

    /// Returns the number of scenarios that count, the worst ones, out of `scenarios`.
    fn tail_len(self, scenarios: usize) -> usize {
        match self {
            ScenarioObjective::Mean => scenarios,
            ScenarioObjective::Cvar(level) => (scenarios * (1000 - level.min(999) as usize)).div_ceil(1000),
            ScenarioObjective::Worst => 1,
        }
    }

    /// Returns the number of scenarios that count.
    pub(crate) fn counted_scenarios(self, scenarios: &ScenarioSet) -> usize {
        self.tail_len(scenarios.len())
    }

    /// Returns the score of these peaks, `[B]` or longer, in whole tokens. It is the sum over the scenarios
    /// that count of imbalance times [`IMBALANCE_UNIT`](super::scenarios::IMBALANCE_UNIT). Lower is better.
    pub(crate) fn score(self, scenarios: &ScenarioSet, peaks: &[f32]) -> u64 {
        if self == ScenarioObjective::Mean {
            return weighted_sum(scenarios.float_weights(), peaks);
        }
        let mut each: Vec<u64> = scenario_scores(scenarios, peaks).collect();
        each.sort_unstable_by(|a, b| b.cmp(a));
        each.iter().take(self.tail_len(scenarios.len())).sum()
    }
}

impl ScenarioObjective {
    /// Returns true for each placement that is as good as the best, given its row of scores in the same
    /// scenarios ([`scenario_scores`]). The difference of its mean from the lowest mean has to be within two
    /// standard errors of the differences. If a tail is minimised, the tail has to be the lowest.
    pub(crate) fn within_noise(self, rows: &[Vec<u64>]) -> Vec<bool> {
        let scores: Vec<u64> = rows.iter().map(|row| self.tail_sum(row)).collect();
        let least = scores.iter().copied().min().unwrap_or(0);
        let Some(best) = scores.iter().position(|&score| score == least) else { return vec![] };
        if self != ScenarioObjective::Mean {
            return scores.iter().map(|&score| score == least).collect();
        }
        let near = |row: &Vec<u64>| {
            let (mean, error) = standard_error(row, &rows[best]);
            mean <= 2.0 * error
        };
        rows.iter().map(near).collect()
    }

    /// Returns the sum over the scenarios that count of their contributions to the score
    /// ([`scenario_scores`]).
    pub(crate) fn tail_sum(self, row: &[u64]) -> u64 {
        let mut row = row.to_vec();
        row.sort_unstable_by(|a, b| b.cmp(a));
        row.iter().take(self.tail_len(row.len())).sum()
    }
}

/// Returns the mean difference of two rows of the same scenarios, and its standard error.
pub(crate) fn standard_error(row: &[u64], other: &[u64]) -> (f64, f64) {
    let apart: Vec<f64> = row.iter().zip(other).map(|(&a, &b)| a as f64 - b as f64).collect();
    let n = apart.len().max(2) as f64;
    let mean = apart.iter().sum::<f64>() / n;
    let variance = apart.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

/// Returns the contribution of every scenario to the score of these peaks, `[B]`.
pub(crate) fn scenario_scores<'a>(
    scenarios: &'a ScenarioSet,
    peaks: &'a [f32],
) -> impl Iterator<Item = u64> + 'a {
    scenarios.weights().iter().zip(peaks).map(|(weight, &peak)| weight * peak as u64)
}

/// Returns the sum of products of whole numbers. It is exact in any order, because the total is below 2^53.
pub(crate) fn weighted_sum(factors: &[f64], peaks: &[f32]) -> u64 {
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
        let scenarios = ScenarioSet::new(2, 2, loads.iter().map(Vec::as_slice));
        let mut peaks: Vec<f32> = (0..10u8).map(|b| f32::from(4 + b)).collect();
        peaks.resize(scenarios.padded_len(), 0.0);
        let tokens =
            |objective: ScenarioObjective| objective.score(&scenarios, &peaks) / scenarios.weights()[0];
        assert_eq!(tokens(ScenarioObjective::Mean), (4..14).sum::<u64>());
        assert_eq!(tokens(ScenarioObjective::Cvar(800)), 13 + 12);
        assert_eq!(tokens(ScenarioObjective::Worst), 13);
    }

    #[test]
    fn as_good_is_within_noise() {
        let rows =
            vec![vec![10, 20, 30, 40], vec![11, 19, 31, 40], vec![15, 25, 36, 44], vec![10, 20, 30, 39]];
        assert_eq!(ScenarioObjective::Mean.within_noise(&rows), [true, true, false, true]);
        assert_eq!(ScenarioObjective::Worst.within_noise(&rows), [false, false, false, true]);
        assert!(ScenarioObjective::Mean.within_noise(&[]).is_empty());
    }

    #[test]
    fn names() {
        assert_eq!(ScenarioObjective::from_name("cvar=0.9"), Some(ScenarioObjective::Cvar(900)));
        assert_eq!(ScenarioObjective::Cvar(900).to_string(), "cvar=0.9");
        assert_eq!(ScenarioObjective::from_name("worst"), Some(ScenarioObjective::Worst));
        assert!(
            ScenarioObjective::from_name("cvar=1").is_none()
                && ScenarioObjective::from_name("cvar").is_none()
        );
    }
}
