//! The steps at which a decision is due.
//!
//! Input is a [`PhaseState`]. Output is the [`Trigger`] of a decision, if one is due: after `every` steps,
//! after a rise of the imbalance, and after a break each time that its steps have doubled. The expected time
//! to the next break is here too.

use super::state::PhaseState;
use crate::wire::decision::{Decision, DecisionOutcome, Trigger};

/// The number of latest steps from which the deviation of the imbalance is estimated.
const DEVIATION_STEPS: usize = 32;

/// The number of steps after a break that alone are planned on. Later, the window is chosen by its forecasts.
const STEPS_AFTER_BREAK: u64 = 8;

impl PhaseState {
    /// Adds the mean imbalance of a step that a plan served.
    pub(super) fn observe_imbalance(&mut self, mean: f64) {
        self.core.rises.observe(mean - self.core.expected);
        self.core.served.push_back(mean);
        while self.core.served.len() > DEVIATION_STEPS {
            self.core.served.pop_front();
        }
    }

    /// Returns the number of steps since a break that has just been noticed. `None` if none has.
    pub(super) fn steps_since_break(&self, trigger: Trigger) -> Option<u64> {
        let since = self.core.live.saturating_sub(self.detect_break(trigger)?);
        (since < STEPS_AFTER_BREAK).then_some(since)
    }

    /// Returns the number of steps within which moves have to pay: `horizon`, or the expected time to the
    /// next break if that is shorter. The evidence is the breaks of all steps, and one break in `horizon`
    /// steps (the mean under a gamma prior: Gelman et al., Bayesian Data Analysis, 3rd edition, 2013, section
    /// 2.6).
    pub(crate) fn expected_horizon(&self) -> u64 {
        let horizon = self.options.horizon;
        horizon.min(horizon.saturating_add(self.core.live) / self.core.breaks.saturating_add(1)).max(1)
    }

    /// Returns the fall of a layer's mean imbalance that a move has to reach if neither a link nor a price is
    /// stated: the standard error of the mean over this many steps. A smaller gain cannot be seen in them.
    pub(super) fn noise_price(&self, steps: usize) -> f64 {
        // Layers vary independently, so a layer varies more than the mean of all.
        let of_layer = self.core.rises.deviation() * (self.core.layers.len() as f64).sqrt();
        of_layer / (steps.max(1) as f64).sqrt()
    }

    /// Returns the number of experts that each rank may receive now, or `None` without a limit. In calm
    /// times, as many as were needed after a break are kept for the next one, but at most half.
    pub(super) fn affordable_transfers(&self, since_break: Option<u64>) -> Option<u64> {
        let all = self.copy_budget.affordable_transfers(&self.core.copies)?;
        let kept = if since_break.is_some() { 0 } else { self.core.break_transfers };
        Some(all.saturating_sub(kept.min(self.copy_budget.most_transfers() / 2)))
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
        // Without early decisions, the pause is always `every`.
        let early = self.options.drift > 0.0;
        let pause = if early { self.core.pause.max(self.options.min_every) } else { self.options.every };
        if since >= pause.min(self.options.every) {
            return Some(Trigger::Interval);
        }
        let drifts = self.options.drift > 0.0
            && since >= self.options.min_every
            && self.core.rises.is_alarmed()
            && self.recent_imbalance() > self.core.expected + self.options.drift;
        drifts.then_some(Trigger::Drift)
    }

    /// Returns the steps from a decision to the next one. They double, because the standard error of a mean
    /// falls by a factor of the square root of 2 when its steps double. After moves in calm times they halve,
    /// because the loads drift.
    pub(super) fn next_pause(&self, decision: &Decision) -> u64 {
        let applied = decision.outcome == DecisionOutcome::Applied;
        let last = self.core.pause.max(1);
        let next = match (decision.trigger, self.steps_since_break(decision.trigger)) {
            (Trigger::First, _) => self.core.live,
            (_, Some(since)) => since,
            _ if applied => (last / 2).max(STEPS_AFTER_BREAK),
            _ => last.saturating_mul(2),
        };
        next.clamp(1, self.options.every)
    }

    /// Returns the number of steps before the break, in steps with tokens, if there was one. A step after it
    /// exceeds the expected imbalance clearly.
    pub(super) fn detect_break(&self, trigger: Trigger) -> Option<u64> {
        let mut expected = self.core.expected;
        let since = self.core.broken_at.map_or(u64::MAX, |at| self.core.live.saturating_sub(at));
        if since < STEPS_AFTER_BREAK {
            // Plans on few steps expect too little, so the steps since the break are the comparison.
            let latest = self.core.served.len().saturating_sub(self.options.drift_steps());
            let first = self.core.served.len().saturating_sub(since as usize);
            expected = self.core.served.range(first.min(latest)..latest).copied().fold(expected, f64::max);
        }
        if trigger == Trigger::Drift && self.core.rises.is_break(self.recent_imbalance() - expected) {
            return Some(self.core.live.saturating_sub(self.options.min_every));
        }
        self.core.broken_at
    }

    /// Returns the mean imbalance of the last `min_every` steps.
    pub(crate) fn recent_imbalance(&self) -> f64 {
        let steps = usize::try_from(self.options.min_every).unwrap_or(1).clamp(1, self.recent.len().max(1));
        let ranks = self.cluster.ranks();
        let sum: f64 = self.recent.iter().rev().take(steps).map(|served| served.imbalance(ranks).0).sum();
        sum / steps as f64
    }
}
