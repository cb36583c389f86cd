//! The distances that tokens travel, token by token, before and after the reduction of traffic.
//!
//! Input is token ids and the placements of a simulation. Output is one [`TrafficLocality`] per policy and
//! choice among the splits of lowest peak. The ranks own equal consecutive parts of a batch's tokens, as with
//! requests under data parallelism. Every source redirects its part of a batch independently. The slots must
//! then meet their quotas exactly.

use super::{SimulationConfig, SimulationResult};
use evenkeel::evaluate::EvaluateError;
use evenkeel::place::Placement;
use evenkeel::planner::{Planner, PlannerError, TokenCopies};
use evenkeel::split::{PrimaryObjective, TokenTraffic};
use evenkeel::trace::TokenTrace;
use rayon::prelude::*;

/// The traffic of the tokens of all judged batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrafficLocality {
    /// The index into [`SimulationResult::planned`].
    pub planned: usize,
    /// The objective that precedes traffic, or `None` if traffic is not considered.
    pub keep: Option<PrimaryObjective>,
    /// (Token, expert) pairs by the distance to their host.
    pub traffic: TokenTraffic,
    /// The rows that are actually sent.
    pub copies: TokenCopies,
    /// The sum over the batches of the busiest rank's tokens. It is equal for all choices on one placement.
    pub peaks: u64,
    /// The number of batches whose slots met their quotas exactly: all.
    pub batches: usize,
}

/// The compared choices, in the order of the rows.
const KEEP_CHOICES: [Option<PrimaryObjective>; 3] =
    [None, Some(PrimaryObjective::Peak), Some(PrimaryObjective::Vector)];

/// Redirects every token of the judged steps for every policy of `outcome`, which has to come from the same
/// trace.
///
/// # Errors
/// Fails if a split fails, is invalid, or is not met exactly. The last two would be defects of this program.
pub fn measure_locality(
    tokens: &TokenTrace,
    config: &SimulationConfig,
    outcome: &SimulationResult,
) -> Result<Vec<TrafficLocality>, EvaluateError> {
    let mut rows = Vec::new();
    for (planned, policy) in outcome.planned.iter().enumerate() {
        for keep in KEEP_CHOICES {
            let layers: Vec<TrafficLocality> = outcome
                .layers
                .par_iter()
                .zip(&policy.placements)
                .map(|(&layer, placement)| {
                    let empty = TrafficLocality {
                        planned,
                        keep,
                        traffic: TokenTraffic::default(),
                        copies: TokenCopies::default(),
                        peaks: 0,
                        batches: 0,
                    };
                    redirect_layer(tokens, config, layer, placement, empty)
                })
                .collect::<Result<_, _>>()?;
            rows.extend(layers.into_iter().reduce(TrafficLocality::merge_layers));
        }
    }
    Ok(rows)
}

fn redirect_layer(
    tokens: &TokenTrace,
    config: &SimulationConfig,
    layer: usize,
    placement: &Placement,
    mut sum: TrafficLocality,
) -> Result<TrafficLocality, EvaluateError> {
    let (trace, cluster, top_k) = (tokens.trace(), config.cluster, tokens.top_k());
    let failed = |step: usize| {
        let (layer, step) = (trace.layers()[layer], trace.steps()[step].clone());
        move |source: PlannerError| EvaluateError::Redirect { layer, step, source: Box::new(source) }
    };
    let planner = match sum.keep {
        None => Planner::new(placement.clone(), cluster),
        Some(keep) => Planner::with_min_traffic(placement.clone(), cluster, keep),
    };
    let mut planner = planner.map_err(failed(config.judge_on.start))?;
    for step in config.judge_on.clone() {
        let ids = tokens.expert_ids(step, layer);
        let parts = split_by_source(&ids, top_k, cluster.ranks());
        let counts: Vec<u64> =
            parts.iter().flat_map(|part| count_experts(part, placement.experts())).collect();
        let mut left = planner.split(&counts).map_err(failed(step))?.quotas.clone();
        planner.check(&counts).map_err(failed(step))?;
        sum.peaks += rank_peak(&left, placement.slots_per_rank());
        let traffic = planner.traffic();
        for (source, part) in parts.iter().enumerate() {
            let slots = planner.redirect(part, source).map_err(failed(step))?;
            for &slot in slots.iter().filter(|&&slot| slot >= 0) {
                left[slot as usize] = left[slot as usize].wrapping_sub(1);
            }
            sum.copies.add_source(&slots, top_k, source, &cluster);
        }
        if let Some(slot) = left.iter().position(|&left| left != 0) {
            return Err(EvaluateError::Unmet {
                layer: trace.layers()[layer],
                step: trace.steps()[step].clone(),
                slot,
            });
        }
        sum.traffic = sum.traffic.plus(traffic);
        sum.batches += 1;
    }
    Ok(sum)
}

impl TrafficLocality {
    fn merge_layers(self, other: TrafficLocality) -> TrafficLocality {
        TrafficLocality {
            traffic: self.traffic.plus(other.traffic),
            copies: self.copies.plus(other.copies),
            peaks: self.peaks + other.peaks,
            batches: self.batches + other.batches,
            ..self
        }
    }
}

/// Returns the tokens of each source: equal consecutive parts.
pub(super) fn split_by_source(ids: &[i32], top_k: usize, ranks: usize) -> Vec<&[i32]> {
    let tokens = ids.len() / top_k.max(1);
    let start = |rank: usize| rank * tokens / ranks * top_k;
    (0..ranks).map(|rank| &ids[start(rank)..start(rank + 1)]).collect()
}

pub(super) fn count_experts(ids: &[i32], experts: usize) -> Vec<u64> {
    let mut counts = vec![0; experts];
    for &id in ids {
        if let Some(count) = usize::try_from(id).ok().and_then(|expert| counts.get_mut(expert)) {
            *count += 1;
        }
    }
    counts
}

fn rank_peak(quotas: &[u64], slots_per_rank: usize) -> u64 {
    quotas.chunks(slots_per_rank).map(|rank| rank.iter().sum()).max().unwrap_or(0)
}
