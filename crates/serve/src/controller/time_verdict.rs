//! The answer to "is balancing worth it?", in time of the experts over the latest steps.
//!
//! Input is a [`PhaseState`]. Output is a [`TimeVerdict`]. The slowest rank counts in every layer: under the
//! current plan, and with the experts in order. A rank's rows are spread over its slots.

use super::state::{DISPLAYED_STEPS, PhaseState};
use crate::wire::status::TimeVerdict;
use evenkeel::gpu::DATA_SHEET_ERROR;
use evenkeel::split::CostModel;

/// Times of one step, summed over its layers, in milliseconds.
#[derive(Debug, Clone, Copy, Default)]
struct StepTimes {
    nothing: f64,
    plan: f64,
}

impl PhaseState {
    /// Returns the verdict over the latest steps.
    pub(crate) fn time_verdict(&self) -> TimeVerdict {
        let copies = self.copy_status();
        let missing: Vec<&str> =
            ["model", "gpu"].into_iter().filter(|key| copies.assumed.iter().any(|one| one == key)).collect();
        if !missing.is_empty() {
            let keys = missing.join(" and ");
            return TimeVerdict::of_text(format!(
                "Worth it? Times are not known: state {keys} of this model in the configuration."
            ));
        }
        if self.plan_version() == 0 {
            return TimeVerdict::of_text("Worth it? There is no plan yet.".into());
        }
        let price = &self.copy_budget.price;
        let (Some(kernel), Some(rank_times)) = (price.measured(), price.measured_times(&self.cluster)) else {
            let (model, gpu) = (&copies.model, &copies.gpu);
            return TimeVerdict::of_text(format!("Worth it? No kernel of {model} is measured on {gpu}."));
        };
        let times = self.step_times(&rank_times);
        let error = kernel.entry.median_error().unwrap_or(DATA_SHEET_ERROR);
        let gain = 1.0 - times.plan / times.nothing.max(f64::MIN_POSITIVE);
        let figures = format!(
            "the experts of these layers take {:.2} ms per step instead of {:.2} ms with the experts in order",
            times.plan, times.nothing
        );
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let text = if times.nothing <= 0.0 {
            "Worth it? The latest steps have no tokens.".to_owned()
        } else if gain > error {
            format!("Worth it: {figures}, {} less (error of the times: {}).", percent(gain), percent(error))
        } else {
            format!("Not worth it: {figures}, within the error of the times ({}).", percent(error))
        };
        TimeVerdict {
            text,
            gain: Some(gain),
            error: Some(error),
            plan_ms: Some(times.plan),
            nothing_ms: Some(times.nothing),
        }
    }

    /// Returns the mean times of the latest steps.
    fn step_times(&self, kernel: &dyn CostModel) -> StepTimes {
        let (layers, experts, ranks) = (self.layers().len(), self.experts(), self.cluster.ranks());
        let ms = |loads: &[u64], slots: usize| {
            let of_rank = |&load: &u64| kernel.rank_ps(&spread(load, slots), 1);
            loads.iter().map(of_rank).max().unwrap_or(0) as f64 / 1e9
        };
        let (slots, own) = (self.cluster.slots_per_rank(), experts.div_ceil(ranks.max(1)));
        let latest = self.recent.iter().rev().zip(self.window.iter().rev()).take(DISPLAYED_STEPS);
        let mut sum = StepTimes::default();
        let mut steps = 0.0f64;
        for (served, seen) in latest {
            for layer in 0..layers {
                let planned = served.rank_loads.get(layer * ranks..(layer + 1) * ranks).unwrap_or_default();
                let counts = seen.step.counts.get(layer * experts..(layer + 1) * experts).unwrap_or_default();
                let mut in_order = vec![0u64; ranks];
                for (expert, &count) in counts.iter().enumerate() {
                    in_order[expert * ranks / experts.max(1)] += u64::from(count);
                }
                sum.plan += ms(planned, slots);
                sum.nothing += ms(&in_order, own);
            }
            steps += 1.0;
        }
        let steps = steps.max(1.0);
        StepTimes { nothing: sum.nothing / steps, plan: sum.plan / steps }
    }
}

/// Spreads rows evenly over slots.
fn spread(rows: u64, slots: usize) -> Vec<u64> {
    let count = slots.max(1) as u64;
    (0..count).map(|at| rows / count + u64::from(at < rows % count)).collect()
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn rows_are_spread_without_loss() {
        assert_eq!(spread(10, 4), [3, 3, 2, 2]);
        assert_eq!(spread(1, 3), [1, 0, 0]);
        assert_eq!(spread(5, 0), [5]);
    }
}
