//! The answer to "is balancing worth it?", in time.
//!
//! Input is a simulation, its predicted step times, and the error of these times. Output is a [`Verdict`]:
//! the fastest row, compared with the contiguous placement under the even split, which needs no plan and no
//! replica. A row that is faster by less than the error of the times is not worth it.

use super::SimulationResult;
use super::network::{StepPrediction, exchanges_counts};
use evenkeel::split::SplitMethod;

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
    /// The fastest row of EPLB, and its split.
    eplb: Option<usize>,
}

/// The time to split one batch of one layer by its counts, from counting to redirected tokens, in
/// microseconds.
pub const PLANNING_US: f64 = 20.0;

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

    /// Returns the verdict in one or two sentences.
    pub fn to_sentences(&self) -> String {
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let (best, nothing) = (&self.rows[self.best], &self.rows[self.nothing]);
        let error = percent(self.setting.error);
        let mut text = if self.is_worth_it() {
            format!(
                "Worth it: {} takes {} ms per step in the MoE layers instead of {} ms, {} less (error of the times: {error}).",
                self.best_name,
                format_ms(best.step_ms),
                format_ms(nothing.step_ms),
                percent(self.gain()),
            )
        } else {
            let reason = if self.setting.is_read_bound {
                format!(
                    " With {:.1} tokens per expert, reading weights decides.",
                    self.setting.tokens_per_expert
                )
            } else {
                String::new()
            };
            let found = if self.best == self.nothing {
                "no plan is faster than the contiguous placement with the even split".to_owned()
            } else {
                format!(
                    "the fastest plan saves {}, within the error of the times ({error})",
                    percent(self.gain())
                )
            };
            format!(
                "Not worth it: {found}, {} ms per step in the MoE layers.{reason}",
                format_ms(nothing.step_ms)
            )
        };
        if let Some(eplb) = self.eplb.filter(|&eplb| eplb != self.best) {
            let row = &self.rows[eplb];
            let change = if row.gain >= 0.0 {
                format!("{} less", percent(row.gain))
            } else {
                format!("{} more", percent(-row.gain))
            };
            text += &format!(
                " EPLB with the {} split takes {} ms, {change}.",
                row.method,
                format_ms(row.step_ms)
            );
        }
        text
    }
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
