//! How far tokens travel, token by token, before and after traffic is made small.
//!
//! In: token ids, and the placements of a simulation. Out: one [`Locality`] per policy and choice among the splits of least
//! peak. The tokens of a batch belong to the ranks in equal consecutive parts, as requests do that data parallelism deals
//! out. Every batch is redirected to the token, by every source for itself, and the slots must then meet their quotas
//! exactly.

use super::{Config, Outcome, SimulateError};
use crate::place::Placement;
use crate::planner::{Copies, Planner, PlannerError};
use crate::split::{Keep, Traffic};
use crate::trace::TokenTrace;
use rayon::prelude::*;

/// How far the tokens of all judged batches travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locality {
    /// Index into [`Outcome::planned`].
    pub planned: usize,
    /// What came before traffic; `None` where traffic was not looked at.
    pub keep: Option<Keep>,
    /// (Token, expert) pairs by where they are served.
    pub traffic: Traffic,
    /// What is really sent.
    pub copies: Copies,
    /// Sum over the batches of the busiest rank's tokens: the same for every choice on one placement.
    pub peaks: u64,
    /// Batches whose slots met their quotas to the token: all.
    pub batches: usize,
}

/// What is compared, in the order of the rows.
const CHOICES: [Option<Keep>; 3] = [None, Some(Keep::Peak), Some(Keep::Vector)];

/// Redirects every token of the judged steps, for every policy of `outcome`, which is of the same trace.
///
/// # Errors
/// When a split fails, does not hold, or is not met to the token; the last two would be defects of this program.
pub fn locality(
    tokens: &TokenTrace,
    config: &Config,
    outcome: &Outcome,
) -> Result<Vec<Locality>, SimulateError> {
    let mut rows = Vec::new();
    for (planned, policy) in outcome.planned.iter().enumerate() {
        for keep in CHOICES {
            let layers: Vec<Locality> = outcome
                .layers
                .par_iter()
                .zip(&policy.placements)
                .map(|(&layer, placement)| {
                    let empty = Locality {
                        planned,
                        keep,
                        traffic: Traffic::default(),
                        copies: Copies::default(),
                        peaks: 0,
                        batches: 0,
                    };
                    one_layer(tokens, config, layer, placement, empty)
                })
                .collect::<Result<_, _>>()?;
            rows.extend(layers.into_iter().reduce(Locality::plus));
        }
    }
    Ok(rows)
}

fn one_layer(
    tokens: &TokenTrace,
    config: &Config,
    layer: usize,
    placement: &Placement,
    mut sum: Locality,
) -> Result<Locality, SimulateError> {
    let (trace, cluster, top_k) = (tokens.trace(), config.cluster, tokens.top_k());
    let failed = |step: usize| {
        let (layer, step) = (trace.layers()[layer], trace.steps()[step].clone());
        move |source: PlannerError| SimulateError::Redirect { layer, step, source: Box::new(source) }
    };
    let planner = match sum.keep {
        None => Planner::new(placement.clone(), cluster),
        Some(keep) => Planner::local(placement.clone(), cluster, keep),
    };
    let mut planner = planner.map_err(failed(config.judge_on.start))?;
    for step in config.judge_on.clone() {
        let ids = tokens.ids(step, layer);
        let parts = parts(&ids, top_k, cluster.ranks());
        let counts: Vec<u64> = parts.iter().flat_map(|part| count(part, placement.experts())).collect();
        let mut left = planner.split(&counts).map_err(failed(step))?.quotas.clone();
        planner.check(&counts).map_err(failed(step))?;
        sum.peaks += rank_peak(&left, placement.slots_per_rank());
        let traffic = planner.traffic();
        for (source, part) in parts.iter().enumerate() {
            let slots = planner.redirect(part, source).map_err(failed(step))?;
            for &slot in slots.iter().filter(|&&slot| slot >= 0) {
                left[slot as usize] = left[slot as usize].wrapping_sub(1);
            }
            sum.copies.add(&slots, top_k, source, &cluster);
        }
        if let Some(slot) = left.iter().position(|&left| left != 0) {
            return Err(SimulateError::Unmet {
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

impl Locality {
    fn plus(self, other: Locality) -> Locality {
        Locality {
            traffic: self.traffic.plus(other.traffic),
            copies: self.copies.plus(other.copies),
            peaks: self.peaks + other.peaks,
            batches: self.batches + other.batches,
            ..self
        }
    }
}

/// The tokens of each source: equal consecutive parts.
pub(super) fn parts(ids: &[i32], top_k: usize, ranks: usize) -> Vec<&[i32]> {
    let tokens = ids.len() / top_k.max(1);
    let start = |rank: usize| rank * tokens / ranks * top_k;
    (0..ranks).map(|rank| &ids[start(rank)..start(rank + 1)]).collect()
}

pub(super) fn count(ids: &[i32], experts: usize) -> Vec<u64> {
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
