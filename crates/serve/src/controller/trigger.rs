//! The steps at which a decision is due.
//!
//! Input is a [`PhaseState`]. Output is the [`Trigger`] of a decision, if one is due: after `every` steps,
//! after a rise of the imbalance, and after a break each time that its steps have doubled. The usual excess,
//! from which the price of a move follows, is here too.

use super::state::PhaseState;
use crate::wire::decision::Trigger;

/// The number of latest steps from which the deviation of the imbalance is estimated.
pub(super) const DEVIATION_STEPS: usize = 32;

/// The number of latest steps from which the usual excess is taken.
const EXCESS_STEPS: usize = 64;

impl PhaseState {
    /// Adds the mean imbalance of a step that a plan served, and its bound.
    pub(super) fn observe_imbalance(&mut self, mean: f64, bound: f64) {
        self.core.rises.observe(mean - self.core.expected);
        self.core.excesses.push_back(mean - bound);
        while self.core.excesses.len() > EXCESS_STEPS {
            self.core.excesses.pop_front();
        }
    }

    /// Returns the number of steps with tokens since the last decision.
    pub(crate) fn steps_since_decision(&self) -> u64 {
        self.core.live.saturating_sub(self.core.decided)
    }

    /// Returns the trigger of a decision if one is due.
    pub(crate) fn pending_trigger(&self) -> Option<Trigger> {
        let since = self.steps_since_decision();
        if self.core.version == 0 {
            return (since >= self.options.first_after).then_some(Trigger::First);
        }
        if since >= self.options.every || self.core.broken_at.is_some_and(|at| self.follows_break(at)) {
            return Some(Trigger::Interval);
        }
        let drifts = self.options.drift > 0.0
            && since >= self.options.min_every
            && self.core.rises.is_alarmed()
            && self.recent_imbalance() > self.core.expected + self.options.drift;
        drifts.then_some(Trigger::Drift)
    }

    /// Returns whether the steps since a break are twice those on which the last decision was made. The
    /// standard error of their mean has then fallen by a factor of the square root of 2.
    fn follows_break(&self, broken_at: u64) -> bool {
        let since = self.steps_since_decision();
        since >= self.options.min_every && since >= self.core.decided.saturating_sub(broken_at)
    }

    /// Returns the place of the break, in steps with tokens, if the decision that is due follows one. The
    /// steps since a break all exceed the expected imbalance clearly.
    pub(super) fn detect_break(&self, trigger: Trigger) -> Option<u64> {
        let rise = self.recent_imbalance() - self.core.expected;
        match trigger {
            Trigger::Drift if self.core.rises.is_break(rise) => {
                Some(self.core.live.saturating_sub(self.options.min_every))
            }
            _ => self.core.broken_at.filter(|at| self.core.live.saturating_sub(*at) < self.options.every),
        }
    }

    /// Returns the mean imbalance of the last `min_every` steps.
    pub(crate) fn recent_imbalance(&self) -> f64 {
        let steps = usize::try_from(self.options.min_every).unwrap_or(1).clamp(1, self.recent.len().max(1));
        let ranks = self.cluster.ranks();
        let sum: f64 = self.recent.iter().rev().take(steps).map(|served| served.imbalance(ranks).0).sum();
        sum / steps as f64
    }

    /// Returns the mean excess of the latest steps without their highest quarter. A break that is shorter
    /// than that does not change it. A median would often be zero, because small batches have whole tokens.
    pub(super) fn usual_excess(&self) -> f64 {
        let mut sorted: Vec<f64> = self.core.excesses.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let kept = sorted.len() - sorted.len() / 4;
        sorted[..kept].iter().sum::<f64>() / kept.max(1) as f64
    }

    /// Returns the imbalance of each of the latest steps under the current plan.
    pub(super) fn recent_imbalances(&self) -> Vec<f64> {
        let ranks = self.cluster.ranks();
        // After a restart, only the steps of the window are known.
        let known = DEVIATION_STEPS.min(self.options.retained_steps());
        let latest = self.recent.len().saturating_sub(known);
        self.recent.iter().skip(latest).map(|served| served.imbalance(ranks).0).collect()
    }
}
