//! The calibration of expected gains by the gains that followed.
//!
//! Input is, for every decision, the gain that its candidate was expected to have, and the steps that came
//! later. Output is [`GainEstimate`]: the gain per expected gain, with its error.
//!
//! A [`GainTrial`] compares the candidate of a decision with the placement of that time on the steps that
//! follow. It does so whether or not the moves were made, so the evidence does not depend on the decision.
//! Decisions after a noticed break have evidence of their own ([`GainLedger`]): their gains differ from those
//! of calm times.
//!
//! The ratio of the sums of gains is the ratio estimator (Cochran, Sampling Techniques, 3rd edition, 1977,
//! chapter 6). It is combined with a normal prior around 1 (a shrinkage estimate). With few trials, or with
//! trials that contradict each other, the ratio stays near 1.

use super::state::{AcceptedStep, PhaseState};
use crate::wire::decision::{GainEstimate, GainStatus};
use evenkeel::economics::{MoveJudge, MoveVerdict};
use evenkeel::place::{PlaceError, Placement};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The standard deviation of the prior. Gains of recorded traces came to half to three halves of what was
/// expected, as far as they came at all.
const PRIOR_DEVIATION: f64 = 0.5;

/// The number of latest trials that count. Older ones belong to other loads.
const MAX_RECORDS: usize = 16;

/// The most steps of a trial. It bounds the time of its measurement.
const MAX_TRIAL_STEPS: u64 = 64;

/// The most blocks of steps from which the error of a trial is estimated (the method of batch means: Law,
/// Simulation Modeling and Analysis, 5th edition, 2015, chapter 9). Steps within a block may be alike.
const MAX_BLOCKS: usize = 8;

/// The expected and the later gain of one candidate over the same steps, in picoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the suffix is the unit")]
pub(super) struct GainRecord {
    expected_ps: i64,
    realised_ps: i64,
    /// The standard error of `realised_ps`.
    error_ps: i64,
}

/// A candidate of a decision, and the placements that it would replace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct GainTrial {
    /// The number of steps accepted before the decision.
    accepted: u64,
    /// The uncalibrated gain of one step, in picoseconds.
    expected_ps: i64,
    layers: Vec<TrialLayer>,
}

/// One layer of a trial. Placements are expert ids by slot, -1 for an empty slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct TrialLayer {
    /// The index of the layer.
    layer: usize,
    before: Vec<i64>,
    after: Vec<i64>,
}

/// The trials of decisions of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct GainEvidence {
    /// Completed trials, oldest first.
    records: VecDeque<GainRecord>,
    /// The trial under way.
    trial: Option<GainTrial>,
}

/// The trials of a phase.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct GainLedger {
    /// Trials of decisions in calm times.
    calm: GainEvidence,
    /// Trials of decisions that a rise of the imbalance triggered.
    after_break: GainEvidence,
}

/// The result of a trial so far.
#[derive(Debug, Clone, Copy)]
struct TrialResult {
    record: GainRecord,
    /// Flag that is set if all steps of the trial have passed.
    complete: bool,
}

/// A layer's candidate in a decision.
#[derive(Debug)]
pub(super) struct TrialCandidate<'a> {
    pub(super) layer: usize,
    pub(super) before: &'a Placement,
    pub(super) after: &'a Placement,
    pub(super) verdict: MoveVerdict,
}

impl GainLedger {
    /// Returns the evidence for decisions after a break, or for those in calm times.
    pub(super) fn evidence_mut(&mut self, after_break: bool) -> &mut GainEvidence {
        if after_break { &mut self.after_break } else { &mut self.calm }
    }

    /// Returns the estimates by completed trials.
    pub(super) fn status(&self) -> GainStatus {
        let of = |evidence: &GainEvidence| estimate(evidence.records.iter().copied());
        GainStatus { calm: of(&self.calm), after_break: of(&self.after_break) }
    }

    /// Drops the trials under way, because the ranks have changed.
    pub(super) fn drop_trials(&mut self) {
        self.calm.trial = None;
        self.after_break.trial = None;
    }
}

impl GainEvidence {
    /// Begins a trial unless one is under way. `steps` is the number of steps of the expected gains.
    pub(super) fn begin_trial(&mut self, accepted: u64, steps: u64, candidates: &[TrialCandidate<'_>]) {
        if self.trial.is_some() || candidates.is_empty() {
            return;
        }
        let ids = |placement: &Placement| placement.slot_ids().collect();
        let gain: i128 = candidates.iter().map(|one| i128::from(one.verdict.gain_ps)).sum();
        let expected_ps = i64::try_from(gain / i128::from(steps.max(1))).unwrap_or(i64::MAX);
        let layers = candidates.iter().map(|one| TrialLayer {
            layer: one.layer,
            before: ids(one.before),
            after: ids(one.after),
        });
        self.trial = (expected_ps > 0).then(|| GainTrial { accepted, expected_ps, layers: layers.collect() });
    }

    /// Adds the result of a completed trial.
    fn complete_trial(&mut self, record: GainRecord) {
        self.trial = None;
        self.records.push_back(record);
        while self.records.len() > MAX_RECORDS {
            self.records.pop_front();
        }
    }
}

impl PhaseState {
    /// Returns the evidence with all completed trials, and the estimate for the next decision. The estimate
    /// also counts the trials under way.
    ///
    /// # Errors
    /// Fails if a batch cannot be split.
    pub(super) fn calibrate_gains(
        &self,
        after_break: bool,
    ) -> Result<(GainLedger, GainEstimate), PlaceError> {
        let mut ledger = self.core.gains.clone();
        let mut found = GainEstimate::default();
        for kind in [false, true] {
            let evidence = ledger.evidence_mut(kind);
            let partial = match &evidence.trial {
                Some(trial) => self.measure_trial(trial)?,
                None => None,
            };
            if kind == after_break {
                found = estimate(evidence.records.iter().copied().chain(partial.map(|one| one.record)));
            }
            if let Some(TrialResult { record, complete: true }) = partial {
                evidence.complete_trial(record);
            }
        }
        Ok((ledger, found))
    }

    /// Returns the result of a trial on the steps since its decision, or `None` before the first of them.
    fn measure_trial(&self, trial: &GainTrial) -> Result<Option<TrialResult>, PlaceError> {
        let span = self.options.every.min(self.options.horizon).clamp(1, MAX_TRIAL_STEPS) as usize;
        let width = self.core.experts;
        let later: Vec<&AcceptedStep> =
            self.window.iter().filter(|seen| seen.accepted > trial.accepted).take(span).collect();
        if later.is_empty() {
            return Ok(None);
        }
        let blocks: Vec<&[&AcceptedStep]> = later.chunks(later.len().div_ceil(MAX_BLOCKS)).collect();
        let saved = trial.layers.par_iter().map(|one| {
            let [before, after] =
                [&one.before, &one.after].map(|ids| Placement::from_ids(width, self.cluster.ranks(), ids));
            let (before, after) = (before?, after?);
            let of_block = |block: &&[&AcceptedStep]| {
                let loads = |seen: &&AcceptedStep| -> Vec<u64> {
                    let counts = seen.step.counts.get(one.layer * width..(one.layer + 1) * width);
                    counts.unwrap_or_default().iter().map(|&count| u64::from(count)).collect()
                };
                let batches: Vec<Vec<u64>> = block.iter().map(loads).collect();
                let batches: Vec<&[u64]> = batches.iter().map(Vec::as_slice).collect();
                let economics = self.copy_budget.layer_economics(1, &batches, &self.cluster);
                let judge = MoveJudge::new(&economics, &self.cluster, batches, &[]);
                let time = |placement: &Placement| -> Result<i64, PlaceError> {
                    Ok(i64::try_from(judge.figures(placement)?.time_ps).unwrap_or(i64::MAX))
                };
                Ok(time(&before)?.saturating_sub(time(&after)?))
            };
            blocks.iter().map(of_block).collect::<Result<Vec<i64>, PlaceError>>()
        });
        let saved: Vec<Vec<i64>> = saved.collect::<Result<_, PlaceError>>()?;
        let of_block = |at: usize| saved.iter().fold(0i64, |sum, layer| sum.saturating_add(layer[at]));
        let saved: Vec<i64> = (0..blocks.len()).map(of_block).collect();
        let expected_ps = trial.expected_ps.saturating_mul(later.len() as i64);
        let record = GainRecord {
            expected_ps,
            realised_ps: saved.iter().fold(0, |sum, &block| sum.saturating_add(block)),
            error_ps: standard_error(&saved).unwrap_or(expected_ps as f64) as i64,
        };
        Ok(Some(TrialResult { record, complete: later.len() >= span }))
    }
}

/// Returns the standard error of the sum of blocks, or `None` for a single block.
fn standard_error(blocks: &[i64]) -> Option<f64> {
    let count = blocks.len() as f64;
    let mean = blocks.iter().map(|&block| block as f64).sum::<f64>() / count;
    let squares: f64 = blocks.iter().map(|&block| (block as f64 - mean) * (block as f64 - mean)).sum();
    (blocks.len() > 1).then(|| (squares * count / (count - 1.0)).sqrt())
}

/// Returns the gain per expected gain, shrunk towards 1 by the uncertainty of the evidence.
fn estimate(records: impl Iterator<Item = GainRecord>) -> GainEstimate {
    let records: Vec<GainRecord> = records.collect();
    let pairs: Vec<(f64, f64)> =
        records.iter().map(|one| (one.expected_ps as f64, one.realised_ps as f64)).collect();
    let trials = pairs.len() as f64;
    let expected: f64 = pairs.iter().map(|pair| pair.0).sum();
    let prior = PRIOR_DEVIATION * PRIOR_DEVIATION;
    if expected <= 0.0 {
        return GainEstimate::default();
    }
    let ratio = pairs.iter().map(|pair| pair.1).sum::<f64>() / expected;
    let mean = expected / trials;
    let residuals: f64 = pairs.iter().map(|(x, y)| (y - ratio * x) * (y - ratio * x)).sum();
    // The prior counts as one more trial, so that few trials are not taken as exact.
    let of_trial = (prior + residuals / (mean * mean)) / trials;
    // Trials whose steps vary more than their gain show little.
    let noise: f64 = records.iter().map(|one| one.error_ps as f64 * one.error_ps as f64).sum();
    let variance = of_trial / trials + noise / (expected * expected);
    let combined = (variance + prior * ratio) / (variance + prior);
    GainEstimate {
        ratio: combined.clamp(0.0, 2.0),
        error: (variance * prior / (variance + prior)).sqrt(),
        trials: pairs.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate_with_error(pairs: &[(i64, i64)], error_ps: i64) -> GainEstimate {
        let record = |&(expected_ps, realised_ps)| GainRecord { expected_ps, realised_ps, error_ps };
        estimate(pairs.iter().map(record))
    }

    fn estimate_of(pairs: &[(i64, i64)]) -> GainEstimate {
        estimate_with_error(pairs, 0)
    }

    #[test]
    fn without_evidence_the_prior_stands() {
        assert_eq!(estimate_of(&[]), GainEstimate { ratio: 1.0, error: 0.5, trials: 0 });
        assert_eq!(estimate_of(&[(0, 50)]).trials, 0);
    }

    #[test]
    fn one_trial_counts_half_and_many_count_almost_alone() {
        assert!((estimate_of(&[(100, 0)]).ratio - 0.5).abs() < 1e-12);
        let many = estimate_of(&[(100, 0); 16]);
        assert!(many.ratio < 0.01 && many.error < 0.1, "{many:?}");
        assert!((estimate_of(&[(100, 100); 16]).ratio - 1.0).abs() < 1e-12);
    }

    #[test]
    fn contradictions_widen_the_error() {
        let (alike, unlike) = (estimate_of(&[(100, 40); 8]), estimate_of(&[(100, 340), (100, -260)]));
        assert!((alike.ratio - 0.4).abs() < 0.05, "{alike:?}");
        assert!(unlike.error > 2.0 * alike.error && unlike.ratio > 0.8, "{unlike:?}");
    }

    #[test]
    fn a_tiny_gain_within_the_noise_shows_nothing() {
        let noisy = estimate_with_error(&[(10, -400)], 1000);
        assert!((noisy.ratio - 1.0).abs() < 0.02, "{noisy:?}");
        assert_eq!(standard_error(&[5]), None);
        assert_eq!(standard_error(&[4, 4, 4]), Some(0.0));
        // Two blocks of 0 and 10 have a standard deviation of 7.07, and their sum one of 10.
        assert!(standard_error(&[0, 10]).is_some_and(|error| (error - 10.0).abs() < 1e-9));
    }

    #[test]
    fn later_gains_pull_the_ratio_their_way() {
        let ratios: Vec<f64> =
            (-5..15).map(|gain| estimate_of(&[(10, 10), (20, 2 * gain), (5, 4)]).ratio).collect();
        assert!(ratios.is_sorted(), "{ratios:?}");
        assert!(ratios.iter().all(|ratio| (0.0..=2.0).contains(ratio)));
    }
}
