//! A stack's rule on the counts of a batch: see the [module](super) for what is assumed of sources and rows.

use super::StackDispatch;
use super::nearest::{nearest, of_source, replicas};
use crate::place::Placement;
use crate::trace::dice::Dice;

/// Most draws per expert; the deviations of more tokens are scaled from these.
const DRAWS: u64 = 1 << 7;

/// Quotas of batch after batch by one rule.
#[derive(Debug)]
pub(in crate::split) struct StackQuotas {
    /// The slots of every expert's replicas, and how they share its tokens.
    experts: Vec<(Vec<u32>, ReplicaShares)>,
}

impl StackQuotas {
    pub(in crate::split) fn new(placement: &Placement, stack: StackDispatch, nodes: usize) -> Self {
        let ranks = placement.ranks();
        let shares = |expert: usize| {
            let slots = replicas(stack, placement, expert);
            let hosts: Vec<usize> = slots.iter().map(|&slot| placement.rank_of(slot)).collect();
            (slots, ReplicaShares::new(stack, &hosts, expert, (ranks, ranks / nodes)))
        };
        Self { experts: (0..placement.experts()).map(shares).collect() }
    }

    /// Shares out one batch; `quotas` are zero before.
    pub(in crate::split) fn split(&self, loads: &[u64], quotas: &mut [u64]) {
        let seed = batch_seed(loads);
        for ((slots, shares), &load) in self.experts.iter().zip(loads) {
            for (&slot, tokens) in slots.iter().zip(shares.serve(load, seed)) {
                quotas[slot as usize] = tokens;
            }
        }
    }
}

/// How the replicas of one expert share its tokens. Equal parts, one per source, are counted.
#[derive(Debug, Clone)]
pub(crate) struct ReplicaShares {
    expert: usize,
    /// Parts that go to each replica for certain.
    certain: Vec<u64>,
    /// Parts that go to any of them, in expectation.
    shared: u64,
    /// Parts whose tokens each go to a random one.
    random: u64,
    /// The sources of TensorRT-LLM, which go round the replicas.
    round_robins: Option<u64>,
}

impl ReplicaShares {
    /// Takes the ranks of an expert's replicas in the order of slots, and how many ranks there are, in all and per node.
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
                StackDispatch::SglangStatic | StackDispatch::SglangRandom => nearest(hosts, source, per_node),
                StackDispatch::VllmAscend => Some(of_source(hosts.len(), source, expert, 1)),
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

    /// Returns the tokens of every replica, of `load` in all; chance is seeded by the batch.
    pub(crate) fn serve(&self, load: u64, seed: u64) -> Vec<u64> {
        let replicas = self.certain.len();
        if replicas == 1 {
            return vec![load];
        }
        if let Some(sources) = self.round_robins {
            return round_robins(replicas as u64, sources, load);
        }
        // In units of one part of one replica.
        let mut weights: Vec<u64> =
            self.certain.iter().map(|&parts| parts * replicas as u64 + self.shared).collect();
        weights.push(self.random * replicas as u64);
        let mut served = apportion(load, &weights);
        let random = served.pop().unwrap_or(0);
        if random > 0 {
            let drawn = draw(random, replicas, &mut Dice::new(seed, self.expert as u64));
            served.iter_mut().zip(drawn).for_each(|(tokens, more)| *tokens += more);
        }
        served
    }

    /// Returns each replica's share of the tokens in expectation, as weights.
    pub(crate) fn expected(&self) -> impl Iterator<Item = u64> + '_ {
        self.certain.iter().map(|&parts| parts * self.certain.len() as u64 + self.shared + self.random)
    }
}

/// Shares out one block of TensorRT-LLM on every source: the `j`-th id of source `r` goes to replica
/// `(j + r)` modulo `c`.
fn round_robins(replicas: u64, sources: u64, load: u64) -> Vec<u64> {
    let (each, over) = (load / sources, load % sources);
    let mut served = vec![sources * (each / replicas); replicas as usize];
    let mut next = vec![0; replicas as usize];
    for source in 0..sources {
        for j in 0..each % replicas {
            served[((source + j) % replicas) as usize] += 1;
        }
        next[((source + each) % replicas) as usize] += 1;
    }
    // Some sources have one id more; in expectation all have a part of one.
    served.iter_mut().zip(apportion(over, &next)).for_each(|(tokens, more)| *tokens += more);
    served
}

/// Shares out whole tokens in proportion to weights, which are not all zero: floors, then one more for the
/// largest remainders, the lowest index first on ties.
fn apportion(load: u64, weights: &[u64]) -> Vec<u64> {
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

/// Draws a replica for every token, uniformly, and returns how many tokens each has.
fn draw(tokens: u64, replicas: usize, dice: &mut Dice) -> Vec<u64> {
    let draws = tokens.min(DRAWS);
    let mut drawn = vec![0u64; replicas];
    for _ in 0..draws {
        drawn[dice.below(replicas as u64) as usize] += 1;
    }
    if draws == tokens {
        return drawn;
    }
    // Deviations grow with the square root of the tokens. In units of one token over 2^16 replicas; they add
    // up to zero.
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
        assert_eq!(apportion(7, &[1, 1, 1]), [3, 2, 2]);
        assert_eq!(apportion(3, &[1, 3]), [1, 2]);
        assert_eq!(apportion(u64::MAX, &[1, u64::MAX]), [1, u64::MAX - 1]);
    }

    #[test]
    fn many_tokens_deviate_like_their_root() {
        for tokens in [1_000_000u64, 1 << 40, u64::MAX] {
            let mut squares = 0.0;
            for stream in 0..200 {
                let drawn = draw(tokens, 4, &mut Dice::new(7, stream));
                assert_eq!(drawn.iter().map(|&t| u128::from(t)).sum::<u128>(), u128::from(tokens));
                squares += (drawn[0] as f64 - tokens as f64 / 4.0).powi(2);
            }
            let variance = squares / 200.0 / (tokens as f64 * 3.0 / 16.0);
            assert!((0.7..1.4).contains(&variance), "{tokens}: {variance}");
        }
    }
}
