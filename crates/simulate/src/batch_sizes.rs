//! Times by batch size: a static plan, copies before every batch, or neither.
//!
//! Input is a simulation with times of experts and copies. Output is one [`BatchSizeRow`] per size. Larger
//! batches are sums of consecutive recorded ones, so that they keep the correlation of the recording.

use super::dynamic::{DynamicOptions, DynamicRow, simulate_dynamic};
use super::{SimulationConfig, SimulationResult};
use evenkeel::cluster::Cluster;
use evenkeel::evaluate::{EvaluateError, Progress};
use evenkeel::split::{CopyAim, DynamicSlots};
use evenkeel::trace::Trace;

/// Most sizes of batches. Each is twice the one before.
const MAX_SIZES: usize = 10;

/// Figures at one size of batches.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BatchSizeRow {
    /// Recorded batches in one.
    pub merged: usize,
    /// Mean tokens of all experts of a layer in a batch: each token counts once per expert that it visits.
    pub tokens: f64,
    /// One row per policy, with times.
    pub rows: Vec<DynamicRow>,
}

/// Judges dynamic slots on batches of growing size, up to half of the judged steps.
///
/// # Errors
/// Fails as [`simulate_dynamic`] does.
pub fn simulate_batch_sizes(
    trace: &Trace,
    config: &SimulationConfig,
    outcome: &SimulationResult,
    options: &DynamicOptions,
    progress: &dyn Progress,
) -> Result<Vec<BatchSizeRow>, EvaluateError> {
    let judged = config.judge_on.len();
    let sizes =
        (0..MAX_SIZES).map(|power| 1usize << power).take_while(|&size| size == 1 || 2 * size <= judged);
    let mut found = vec![];
    for merged in sizes {
        let Some(batches) = merge_steps(trace, config, merged) else { continue };
        let steps = batches.steps().len();
        let tokens: u64 = outcome.layers.iter().flat_map(|&layer| batches.totals(layer)).sum();
        let tokens = tokens as f64 / (steps * outcome.layers.len()).max(1) as f64;
        let judge_all = SimulationConfig::new(config.cluster, config.methods.clone(), 0..steps, 0..steps);
        let slots = at_size(options, tokens, &config.cluster);
        let options = DynamicOptions { slots, ..options.clone() };
        let rows = simulate_dynamic(&batches, &judge_all, outcome, &options, progress)?;
        found.push(BatchSizeRow { merged, tokens, rows });
    }
    Ok(found)
}

/// Returns the slots with an aim whose times are those of batches of this many tokens.
fn at_size(options: &DynamicOptions, tokens: f64, cluster: &Cluster) -> DynamicSlots {
    match (options.slots.aim, &options.times) {
        (CopyAim::Time(_), Some(times)) => {
            options.slots.aim(CopyAim::Time(times.copy_times(tokens as u64, cluster)))
        }
        _ => options.slots,
    }
}

/// Returns the judged steps in sums of `merged` consecutive ones. A shorter rest is left out.
fn merge_steps(trace: &Trace, config: &SimulationConfig, merged: usize) -> Option<Trace> {
    let (experts, layers) = (trace.experts(), trace.layers());
    let starts: Vec<usize> = config.judge_on.clone().step_by(merged).collect();
    let whole = starts.into_iter().filter(|start| start + merged <= config.judge_on.end);
    let (mut labels, mut loads) = (vec![], vec![]);
    for start in whole {
        labels.push(trace.steps().get(start).cloned().unwrap_or_default());
        for layer in 0..layers.len() {
            let mut sums = vec![0u64; experts];
            for step in start..start + merged {
                for (sum, &load) in sums.iter_mut().zip(trace.loads(step, layer)) {
                    *sum = sum.saturating_add(load);
                }
            }
            loads.extend(sums);
        }
    }
    // Sums of a valid trace are a valid trace.
    Trace::from_loads(experts, layers.to_vec(), labels, loads).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::super::{DynamicTimes, Foresight, simulate};
    use super::*;
    use evenkeel::place;
    use evenkeel::split::{CopyTimes, Roofline, SlotMemory, SplitMethod};
    use std::sync::Arc;

    #[test]
    fn copies_pay_from_a_size_on() {
        // One of eight experts is hot, and another one in the next pair of steps.
        let loads = (0..40u64).flat_map(|step| (0..8).map(move |e| if e == step / 2 % 8 { 60 } else { 10 }));
        let steps = (0..40).map(|step| step.to_string()).collect();
        let trace = Trace::from_loads(8, vec![0], steps, loads.collect()).unwrap();
        let cluster = Cluster::new(4, 1, 8, 0).unwrap();
        let config = SimulationConfig::first_part(&trace, cluster, vec![SplitMethod::Exact], 0.4).unwrap();
        let policies = [place::policy("contiguous", 1, &cluster).unwrap()];
        let outcome = simulate(&trace, &config, &policies, &()).unwrap();
        let times = DynamicTimes {
            experts: Arc::new(Roofline { read: 1, token: 10, tile: 1 }),
            start_ps: 0,
            copy_ps: 300,
            hidden_ps: 0,
        };
        // The aim states times of another size, which are replaced.
        let aim = CopyAim::Time(CopyTimes { token: 1, receive: 1, send: 1, hidden: 0, read: 0 });
        let slots = DynamicSlots::new(1, SlotMemory::Shared).aim(aim);
        let options = DynamicOptions { slots, foresight: Foresight::Routed, times: Some(times) };
        let sizes = simulate_batch_sizes(&trace, &config, &outcome, &options, &()).unwrap();
        let merged: Vec<usize> = sizes.iter().map(|size| size.merged).collect();
        assert_eq!(merged, [1, 2, 4, 8]);
        for size in &sizes {
            assert!((size.tokens - 130.0 * size.merged as f64).abs() < 1e-9);
            let times = size.rows[0].times.unwrap();
            assert!(times.experts_ps + times.exposed_ps <= times.static_ps);
        }
        // 25 tokens move for 300 ps at 250 ps, and 50 tokens at 500 ps.
        assert!(sizes[0].rows[0].copies.max < 0.5 && sizes[1].rows[0].copies.mean > 0.5);
    }
}
