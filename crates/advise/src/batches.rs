//! Batches of any size from the batches of a trace.
//!
//! In: a [`Trace`] and a number of tokens. Out: loads per expert of batches of that size. Recorded batches
//! are joined until they hold enough tokens, and the rest is a random part of one more batch. Smaller batches
//! are random parts of recorded ones. Joined batches keep what recorded ones have in common, and parts add
//! the noise of few tokens.

use evenkeel::rng::SeededRng;
use evenkeel::trace::Trace;

/// Batches of a trace, for a few of its layers.
#[derive(Debug, Clone)]
pub(crate) struct BatchPool<'a> {
    trace: &'a Trace,
    top_k: u64,
    seed: u64,
}

/// Number of batches that are drawn from a trace that holds sums over batches.
pub const DRAWN_BATCHES: usize = 64;

/// Tokens of a step above which it is a sum over batches.
const MAX_STEP_TOKENS: u64 = 1 << 20;

/// Returns true if the steps of a trace are sums over many batches, so that batches have to be drawn.
pub fn holds_sums(trace: &Trace, top_k: usize) -> bool {
    let steps = trace.steps().len() as u64;
    let visits = (0..trace.layers().len()).map(|layer| trace.totals(layer).iter().sum::<u64>()).max();
    let tokens = visits.unwrap_or(0) / (top_k as u64).max(1);
    trace.resampling().is_none() && (trace.holds_totals() || tokens > MAX_STEP_TOKENS * steps.max(1))
}

/// Part of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum TracePart {
    /// The first half of the steps, on which placements are planned.
    First,
    /// The second half, on which they are judged.
    Second,
}

impl<'a> BatchPool<'a> {
    /// Creates a pool. Tokens visit `top_k` experts.
    pub(crate) fn new(trace: &'a Trace, top_k: usize, seed: u64) -> Self {
        Self { trace, top_k: top_k.max(1) as u64, seed }
    }

    /// Returns the loads of `count` batches of `tokens` tokens in one layer (by index), `[count][E]`. A layer
    /// without tokens in the part of the trace has empty batches.
    pub(crate) fn batches(&self, layer: usize, part: TracePart, tokens: u64, count: usize) -> Vec<Vec<u64>> {
        let steps = self.trace.steps().len();
        let half = steps / 2;
        let range = match part {
            _ if steps < 2 => 0..steps,
            TracePart::First => 0..half,
            TracePart::Second => half..steps,
        };
        let mut pool: Vec<(usize, u64)> = range
            .map(|step| (step, self.trace.loads(step, layer).iter().sum::<u64>()))
            .filter(|&(_, visits)| visits > 0)
            .collect();
        let visits = tokens.saturating_mul(self.top_k);
        let stream = 2 * layer as u64 + u64::from(part == TracePart::Second);
        let mut dice = SeededRng::new(self.seed ^ visits, stream);
        let mut next = 0;
        (0..count)
            .map(|_| {
                let mut loads = vec![0u64; self.trace.experts()];
                if pool.is_empty() {
                    return loads;
                }
                let mut missing = visits;
                // A batch larger than the pool has every batch of the pool several times.
                let all: u64 = pool.iter().map(|&(_, visits)| visits).sum();
                let rounds = missing / all.max(1);
                if rounds > 0 {
                    for &(step, _) in &pool {
                        add(&mut loads, self.trace.loads(step, layer), rounds);
                    }
                    missing -= rounds * all;
                }
                while missing > 0 {
                    if next == 0 {
                        dice.shuffle(&mut pool);
                    }
                    let (step, visits) = pool[next];
                    next = (next + 1) % pool.len();
                    let from = self.trace.loads(step, layer);
                    if visits <= missing {
                        add(&mut loads, from, 1);
                        missing -= visits;
                    } else {
                        draw_part(&mut loads, from, visits, missing, &mut dice);
                        missing = 0;
                    }
                }
                loads
            })
            .collect()
    }
}

fn add(loads: &mut [u64], from: &[u64], times: u64) {
    for (load, &more) in loads.iter_mut().zip(from) {
        *load += times * more;
    }
}

/// Highest number of visits that are drawn one by one.
const MAX_DRAWS: u64 = 2_048;

/// Adds a random part of a batch: `count` of its `visits`, drawn without replacement. Many visits are drawn
/// by the normal approximation of their distribution.
fn draw_part(loads: &mut [u64], from: &[u64], visits: u64, count: u64, dice: &mut SeededRng) {
    if count > MAX_DRAWS {
        return draw_many(loads, from, (visits, count), dice);
    }
    let mut left: Vec<u64> = from.to_vec();
    let mut all = visits;
    for _ in 0..count {
        let mut at = dice.draw_below(all);
        let drawn = left.iter().position(|&visits| {
            let found = at < visits;
            at = at.saturating_sub(visits);
            found
        });
        if let Some(expert) = drawn {
            left[expert] -= 1;
            loads[expert] += 1;
        }
        all -= 1;
    }
}

/// Adds a random part by the normal approximation of the multivariate hypergeometric distribution. The sum is
/// exact: what rounding misses goes to the experts in order, within what they have.
fn draw_many(loads: &mut [u64], from: &[u64], (visits, count): (u64, u64), dice: &mut SeededRng) {
    let share = count as f64 / visits as f64;
    let draw = |&all: &u64, normal: f64| {
        let deviation = (all as f64 * share * (1.0 - share)).sqrt();
        ((all as f64 * share + deviation * normal).round().max(0.0) as u64).min(all)
    };
    let mut parts: Vec<u64> = from.iter().map(|all| draw(all, dice.draw_normal())).collect();
    // The factor keeps the sum close to the target, so that the correction below is small.
    let drawn: u64 = parts.iter().sum();
    let factor = count as f64 / drawn.max(1) as f64;
    for (part, &all) in parts.iter_mut().zip(from) {
        *part = ((*part as f64 * factor).round() as u64).min(all);
    }
    let mut sum: u64 = parts.iter().sum();
    while sum != count {
        for (part, &all) in parts.iter_mut().zip(from) {
            if sum < count && *part < all {
                *part += 1;
                sum += 1;
            } else if sum > count && *part > 0 {
                *part -= 1;
                sum -= 1;
            }
        }
    }
    for (load, part) in loads.iter_mut().zip(parts) {
        *load += part;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let loads = (0..8).flat_map(|step| [40 + step, 20, 30 - step, 10]).collect();
        Trace::from_loads(4, vec![3], (0..8).map(|step| step.to_string()).collect(), loads).unwrap()
    }

    #[test]
    fn batches_have_the_requested_size() {
        let trace = trace();
        let pool = BatchPool::new(&trace, 2, 5);
        for tokens in [1, 7, 50, 51, 160, 1_000, 20_000] {
            for loads in pool.batches(0, TracePart::Second, tokens, 5) {
                assert_eq!(loads.iter().sum::<u64>(), 2 * tokens);
            }
        }
    }

    #[test]
    fn batches_repeat_and_parts_differ() {
        let trace = trace();
        let pool = BatchPool::new(&trace, 2, 5);
        let batches = |part| pool.batches(0, part, 30, 4);
        assert_eq!(batches(TracePart::First), batches(TracePart::First));
        assert_ne!(batches(TracePart::First), batches(TracePart::Second));
        // Large batches have the shares of the trace.
        let large = &pool.batches(0, TracePart::First, 100_000, 1)[0];
        assert!(large[0].abs_diff(83_000) < 1_500, "{large:?}");
    }

    #[test]
    fn an_empty_layer_has_empty_batches() {
        let trace = Trace::from_loads(2, vec![0], vec!["0".into()], vec![0, 0]).unwrap();
        assert_eq!(BatchPool::new(&trace, 1, 0).batches(0, TracePart::First, 9, 1), [[0, 0]]);
    }
}
