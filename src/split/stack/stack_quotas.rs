//! A stack's rule on the counts of a batch. The [module](super) states the assumptions about sources and
//! rows.

use super::StackDispatch;
use super::nearest::{nearest_replica, replica_of_source, stack_replicas};
use crate::place::Placement;
use crate::rng::SeededRng;

/// Highest number of draws per expert. The deviations of more tokens are scaled from these draws.
const MAX_DRAWS: u64 = 1 << 7;

/// Splitter of successive batches by one rule.
#[derive(Debug)]
pub(in crate::split) struct StackQuotas {
    /// Slots of every expert's replicas, and the rule of its split.
    experts: Vec<(Vec<u32>, ReplicaShares)>,
}

impl StackQuotas {
    pub(in crate::split) fn new(placement: &Placement, stack: StackDispatch, nodes: usize) -> Self {
        let ranks = placement.ranks();
        let shares = |expert: usize| {
            let slots = stack_replicas(stack, placement, expert);
            let hosts: Vec<usize> = slots.iter().map(|&slot| placement.rank_of(slot)).collect();
            (slots, ReplicaShares::new(stack, &hosts, expert, (ranks, ranks / nodes)))
        };
        Self { experts: (0..placement.experts()).map(shares).collect() }
    }

    /// Splits one batch. `quotas` are zero before.
    pub(in crate::split) fn split(&self, loads: &[u64], quotas: &mut [u64]) {
        let seed = batch_seed(loads);
        for ((slots, shares), &load) in self.experts.iter().zip(loads) {
            for (&slot, tokens) in slots.iter().zip(shares.split_tokens(load, seed)) {
                quotas[slot as usize] = tokens;
            }
        }
    }
}

/// Shares of the replicas of one expert, counted in equal parts, one per source.
#[derive(Debug, Clone)]
pub(crate) struct ReplicaShares {
    expert: usize,
    /// Parts that go to each replica with certainty.
    certain: Vec<u64>,
    /// Parts that go to any replica, in expectation.
    shared: u64,
    /// Parts whose tokens each go to a random replica.
    random: u64,
    /// Number of sources, if they use TensorRT-LLM's round robin over the replicas.
    round_robins: Option<u64>,
}

impl ReplicaShares {
    /// Creates the shares from the ranks of an expert's replicas in the order of slots. The pair holds the
    /// number of ranks, in all and per node.
    pub(crate) fn new(
        stack: StackDispatch,
        hosts: &[usize],
        expert: usize,
        (ranks, per_node): (usize, usize),
    ) -> Self {
        let round_robins = (stack == StackDispatch::Trtllm).then_some(ranks as u64);
        let mut shares = Self { expert, certain: vec![0; hosts.len()], shared: 0, random: 0, round_robins };
        for source in 0..ranks {
            let at = match stack {
                StackDispatch::SglangStatic | StackDispatch::SglangRandom => {
                    nearest_replica(hosts, source, per_node)
                }
                StackDispatch::VllmAscend => Some(replica_of_source(hosts.len(), source, expert, 1)),
                StackDispatch::SglangDynamic | StackDispatch::Vllm | StackDispatch::Trtllm => None,
            };
            match at {
                Some(at) => shares.certain[at] += 1,
                None if stack == StackDispatch::SglangStatic => shares.shared += 1,
                None => shares.random += 1,
            }
        }
        shares
    }

    /// Returns the tokens of every replica, which add up to `load`. The batch seeds the random draws.
    pub(crate) fn split_tokens(&self, load: u64, seed: u64) -> Vec<u64> {
        let replicas = self.certain.len();
        if replicas == 1 {
            return vec![load];
        }
        if let Some(sources) = self.round_robins {
            return split_round_robin(replicas as u64, sources, load);
        }
        // The unit is one part of one replica.
        let mut weights: Vec<u64> =
            self.certain.iter().map(|&parts| parts * replicas as u64 + self.shared).collect();
        weights.push(self.random * replicas as u64);
        let mut served = apportion_tokens(load, &weights);
        let random = served.pop().unwrap_or(0);
        if random > 0 {
            let drawn = draw_replicas(random, replicas, &mut SeededRng::new(seed, self.expert as u64));
            served.iter_mut().zip(drawn).for_each(|(tokens, more)| *tokens += more);
        }
        served
    }

    /// Returns each replica's expected share of the tokens, as weights.
    pub(crate) fn expected_weights(&self) -> impl Iterator<Item = u64> + '_ {
        self.certain.iter().map(|&parts| parts * self.certain.len() as u64 + self.shared + self.random)
    }
}

/// Splits one block of TensorRT-LLM on every source. The `j`-th id of source `r` goes to replica `(j + r)`
/// modulo `c`.
fn split_round_robin(replicas: u64, sources: u64, load: u64) -> Vec<u64> {
    let (each, over) = (load / sources, load % sources);
    let mut served = vec![sources * (each / replicas); replicas as usize];
    let mut next = vec![0; replicas as usize];
    for source in 0..sources {
        for j in 0..each % replicas {
            served[((source + j) % replicas) as usize] += 1;
        }
        next[((source + each) % replicas) as usize] += 1;
    }
    // Some sources have one more id. In expectation each source has a part of one.
    served.iter_mut().zip(apportion_tokens(over, &next)).for_each(|(tokens, more)| *tokens += more);
    served
}

/// Splits whole tokens in proportion to weights, which are not all zero. Floors come first, then one more for
/// the largest remainders, the lowest index first on ties.
fn apportion_tokens(load: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    let part = |weight: u64| u128::from(load) * u128::from(weight);
    let mut served: Vec<u64> = weights.iter().map(|&weight| (part(weight) / sum) as u64).collect();
    let left = load - served.iter().sum::<u64>();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(part(weights[at]) % sum));
    for &at in &order[..left as usize] {
        served[at] += 1;
    }
    served
}

/// Draws a replica for every token uniformly. Returns the tokens of each replica.
fn draw_replicas(tokens: u64, replicas: usize, dice: &mut SeededRng) -> Vec<u64> {
    let draws = tokens.min(MAX_DRAWS);
    let mut drawn = vec![0u64; replicas];
    for _ in 0..draws {
        drawn[dice.draw_below(replicas as u64) as usize] += 1;
    }
    if draws == tokens {
        return drawn;
    }
    // Deviations grow with the square root of the tokens. The unit is one token over 2^16 replicas. The
    // deviations add up to zero.
    let (tokens, replicas) = (i128::from(tokens), replicas as i128);
    let scale = ((tokens << 32) / i128::from(draws)).isqrt();
    let unit = replicas << 16;
    let exact = |&drawn: &u64| (tokens << 16) + (i128::from(drawn) * replicas - i128::from(draws)) * scale;
    let mut scaled: Vec<u64> = drawn.iter().map(|drawn| (exact(drawn).max(0) / unit) as u64).collect();
    let mut left = tokens - scaled.iter().map(|&tokens| i128::from(tokens)).sum::<i128>();
    for tokens in &mut scaled {
        if left > 0 {
            *tokens += 1;
            left -= 1;
        }
    }
    scaled
}

/// Mixes all counts of a batch into one number.
pub(crate) fn batch_seed(loads: &[u64]) -> u64 {
    loads.iter().fold(0xcbf2_9ce4_8422_2325, |seed: u64, &load| {
        (seed.rotate_left(23) ^ load).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remainders_go_to_the_largest_then_to_the_lowest() {
        assert_eq!(apportion_tokens(7, &[1, 1, 1]), [3, 2, 2]);
        assert_eq!(apportion_tokens(3, &[1, 3]), [1, 2]);
        assert_eq!(apportion_tokens(u64::MAX, &[1, u64::MAX]), [1, u64::MAX - 1]);
    }

    #[test]
    fn many_tokens_deviate_like_their_root() {
        for tokens in [1_000_000u64, 1 << 40, u64::MAX] {
            let mut squares = 0.0;
            for stream in 0..200 {
                let drawn = draw_replicas(tokens, 4, &mut SeededRng::new(7, stream));
                assert_eq!(drawn.iter().map(|&t| u128::from(t)).sum::<u128>(), u128::from(tokens));
                squares += (drawn[0] as f64 - tokens as f64 / 4.0).powi(2);
            }
            let variance = squares / 200.0 / (tokens as f64 * 3.0 / 16.0);
            assert!((0.7..1.4).contains(&variance), "{tokens}: {variance}");
        }
    }
}
