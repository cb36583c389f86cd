//! The answer to "is balancing worth it?", in time.
//!
//! Input is a simulation, its predicted step times, and the error of these times. Output is a [`Verdict`]:
//! the fastest row, compared with the contiguous placement under the even split, which needs no plan and no
//! replica. A row that is faster by less than the error of the times is not worth it.

use super::SimulationResult;
use super::network::{StepPrediction, exchanges_counts};
use evenkeel::split::{PLANNING_US, SplitMethod};

/// The assumptions behind predicted times that a verdict states.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct VerdictSetting {
    /// The relative error of the times, for example 0.05.
    pub error: f64,
    /// Mean tokens of an expert in a batch.
    pub tokens_per_expert: f64,
    /// True if twice the tokens take hardly more time, because reading the weights decides.
    pub is_read_bound: bool,
}

/// The times of one policy with one split, in relation to doing nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct TimedRow {
    /// The index into [`SimulationResult::planned`].
    pub planned: usize,
    /// The split method.
    pub method: SplitMethod,
    /// Milliseconds per step, over the MoE layers of the model.
    pub step_ms: f64,
    /// The share of the step that doing nothing takes longer; negative if the row is slower.
    pub gain: f64,
    /// The share of the step that is exposed communication.
    pub communication_share: f64,
    /// The share of the step that equal loads of all ranks would save.
    pub imbalance_share: f64,
}

/// The answer, with the times of all rows.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Verdict {
    /// The rows, in the order of the simulation.
    pub rows: Vec<TimedRow>,
    /// The index of the row that does nothing.
    pub nothing: usize,
    /// The index of the fastest row. Rows that come first win ties.
    pub best: usize,
    /// The assumptions.
    pub setting: VerdictSetting,
    /// The name of the fastest row, `POLICY with the SPLIT split`.
    best_name: String,
    /// The index of EPLB's fastest row.
    eplb: Option<usize>,
}

impl Verdict {
    /// Judges predicted steps of `layers` layers. Returns `None` if no row is the contiguous placement under
    /// the even split, or if it takes no time.
    pub fn from_predictions(
        outcome: &SimulationResult,
        predictions: &[StepPrediction],
        layers: usize,
        setting: VerdictSetting,
    ) -> Option<Self> {
        let policy = |row: &StepPrediction| outcome.planned[row.planned].policy.as_str();
        let is_nothing =
            |row: &StepPrediction| policy(row) == "contiguous" && row.method == SplitMethod::Even;
        let nothing = predictions.iter().position(is_nothing)?;
        let step_ms = |row: &StepPrediction| {
            let placements = &outcome.planned[row.planned].placements;
            let planned =
                placements.iter().filter(|placement| exchanges_counts(placement, row.method)).count();
            let planned_share = planned as f64 / placements.len().max(1) as f64;
            (row.step_us.mean + PLANNING_US * planned_share * layers as f64) / 1e3
        };
        let base = step_ms(&predictions[nothing]);
        if !(base > 0.0 && base.is_finite()) {
            return None;
        }
        let timed = |row: &StepPrediction| TimedRow {
            planned: row.planned,
            method: row.method,
            step_ms: step_ms(row),
            gain: 1.0 - step_ms(row) / base,
            communication_share: row.communication_share(),
            imbalance_share: row.imbalance_share(),
        };
        let rows: Vec<TimedRow> = predictions.iter().map(timed).collect();
        let fastest = |rows: &mut dyn Iterator<Item = usize>, all: &[TimedRow]| {
            rows.reduce(|best, at| if all[at].step_ms < all[best].step_ms { at } else { best })
        };
        let best = fastest(&mut (0..rows.len()), &rows)?;
        let is_eplb = |at: &usize| policy(&predictions[*at]).starts_with("eplb");
        let eplb = fastest(&mut (0..rows.len()).filter(is_eplb), &rows);
        let best_name = format!("{} with the {} split", policy(&predictions[best]), rows[best].method);
        Some(Self { rows, nothing, best, setting, best_name, eplb })
    }

    /// Returns the share of the time of the MoE layers that the fastest row saves.
    pub fn gain(&self) -> f64 {
        self.rows[self.best].gain
    }

    /// Returns whether the fastest row saves more than the error of the times.
    pub fn is_worth_it(&self) -> bool {
        self.best != self.nothing && self.gain() > self.setting.error
    }

    /// Returns the verdict, and EPLB's times if another row is the fastest.
    pub fn to_sentences(&self) -> String {
        let verdict = self.to_sentence();
        self.eplb_sentence().map_or(verdict.clone(), |eplb| format!("{verdict} {eplb}"))
    }

    /// Returns the verdict, with the reason if it is not worth it.
    pub fn to_sentence(&self) -> String {
        let (best, nothing) = (&self.rows[self.best], &self.rows[self.nothing]);
        let (gain, error) = (format_share(self.gain()), format_share(self.setting.error));
        let before = format_ms(nothing.step_ms);
        if self.is_worth_it() {
            return format!(
                "Worth it: {} takes {} ms per step in the MoE layers instead of {before} ms, {gain} less (error of the \
                 times: {error}).",
                self.best_name,
                format_ms(best.step_ms),
            );
        }
        let found = if self.best == self.nothing {
            "no plan is faster than the contiguous placement with the even split".to_owned()
        } else {
            format!("the fastest plan saves {gain}, within the error of the times ({error})")
        };
        let reason = if self.setting.is_read_bound {
            format!(" With {:.1} tokens per expert, reading weights decides.", self.setting.tokens_per_expert)
        } else {
            String::new()
        };
        format!("Not worth it: {found}, {before} ms per step in the MoE layers.{reason}")
    }

    /// Returns the time of EPLB's fastest row, unless it is the fastest of all.
    pub fn eplb_sentence(&self) -> Option<String> {
        let row = &self.rows[self.eplb.filter(|&eplb| eplb != self.best)?];
        let change = if row.gain >= 0.0 { "less" } else { "more" };
        let (split, ms, share) = (row.method, format_ms(row.step_ms), format_share(row.gain.abs()));
        Some(format!("EPLB with the {split} split takes {ms} ms, {share} {change}."))
    }
}

fn format_share(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// Formats milliseconds with about three digits.
pub fn format_ms(ms: f64) -> String {
    let digits = match ms {
        v if v < 1.0 => 3,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{ms:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the verdict on rows that take these milliseconds. The first one does nothing, the second is
    /// EPLB's.
    fn verdict(ms: [f64; 3], setting: VerdictSetting) -> Verdict {
        let row = |(planned, &step_ms): (usize, &f64)| TimedRow {
            planned,
            method: SplitMethod::Even,
            step_ms,
            gain: 1.0 - step_ms / ms[0],
            communication_share: 0.0,
            imbalance_share: 0.0,
        };
        let best = (0..3).reduce(|best, at| if ms[at] < ms[best] { at } else { best }).unwrap_or(0);
        let best_name = format!("{} with the even split", ["contiguous", "eplb", "recourse"][best]);
        let rows = ms.iter().enumerate().map(row).collect();
        Verdict { rows, nothing: 0, best, setting, best_name, eplb: Some(1) }
    }

    #[test]
    fn a_gain_above_the_error_is_worth_it() {
        let setting = VerdictSetting { error: 0.04, ..VerdictSetting::default() };
        let found = verdict([100.0, 70.0, 64.6], setting);
        assert!(found.is_worth_it());
        assert_eq!(
            found.to_sentences(),
            "Worth it: recourse with the even split takes 64.6 ms per step in the MoE layers instead of 100 ms, 35 % less \
             (error of the times: 4 %). EPLB with the even split takes 70.0 ms, 30 % less."
        );
    }

    #[test]
    fn a_gain_within_the_error_is_not() {
        let setting = VerdictSetting { error: 0.04, tokens_per_expert: 8.0, is_read_bound: true };
        let within = verdict([10.0, 11.0, 9.7], setting);
        assert!(!within.is_worth_it());
        assert_eq!(
            within.to_sentences(),
            "Not worth it: the fastest plan saves 3 %, within the error of the times (4 %), 10.0 ms per step in the MoE layers. \
             With 8.0 tokens per expert, reading weights decides. EPLB with the even split takes 11.0 ms, 10 % more."
        );
        let slower = verdict([10.0, 11.0, 12.0], setting);
        assert!(
            slower.to_sentence().starts_with("Not worth it: no plan is faster than the contiguous placement")
        );
    }
}
