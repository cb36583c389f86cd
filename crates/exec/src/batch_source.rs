//! Where a run's batches come from.
//!
//! In: ids of single tokens, or counts, or nothing. Out: how many tokens a step has and, where it was recorded, which experts
//! they visit. A batch's tokens belong to the ranks in equal consecutive parts.

use super::random::Stream;
use crate::trace::{TokenTrace, Trace};

/// The batches of a run.
#[derive(Debug, Clone)]
pub enum Feed {
    /// Every token's experts, as recorded.
    Tokens(TokenTrace),
    /// Tokens per expert, as recorded; which token made which choice is not, and is dealt out by the seed.
    Counts {
        /// The counts.
        trace: Trace,
        /// Experts that a token visits.
        top_k: usize,
        /// Seed of the dealing.
        seed: u64,
    },
    /// Tokens of our own making; a router chooses.
    Made {
        /// Tokens of all ranks in a step.
        tokens: usize,
    },
}

impl Feed {
    /// What was recorded, if anything was.
    pub fn trace(&self) -> Option<&Trace> {
        match self {
            Feed::Tokens(tokens) => Some(tokens.trace()),
            Feed::Counts { trace, .. } => Some(trace),
            Feed::Made { .. } => None,
        }
    }

    /// Experts per token, where it was recorded.
    pub fn top_k(&self) -> Option<usize> {
        match self {
            Feed::Tokens(tokens) => Some(tokens.top_k()),
            Feed::Counts { top_k, .. } => Some(*top_k),
            Feed::Made { .. } => None,
        }
    }

    /// Tokens of a step; `layers` are those that run (by index).
    pub fn tokens(&self, step: usize, layers: &[usize]) -> usize {
        match self {
            Feed::Tokens(tokens) => {
                layers.first().map_or(0, |&layer| tokens.ids(step, layer).len() / tokens.top_k().max(1))
            }
            Feed::Counts { trace, top_k, .. } => {
                layers.iter().map(|&layer| least(trace.loads(step, layer), *top_k)).max().unwrap_or(0)
            }
            Feed::Made { tokens } => *tokens,
        }
    }

    /// The experts of a step's `tokens` tokens in a layer (by index), `[token][k]`, -1 for none; nothing where a router
    /// chooses.
    pub fn ids(&self, step: usize, layer: usize, tokens: usize) -> Option<Vec<i32>> {
        match self {
            Feed::Tokens(recorded) => Some(recorded.ids(step, layer)),
            Feed::Counts { trace, top_k, seed } => {
                let random = Stream::new(*seed, &[step as u64, layer as u64]);
                Some(deal(trace.loads(step, layer), *top_k, tokens, random))
            }
            Feed::Made { .. } => None,
        }
    }
}

/// The fewest tokens that can make these counts, with `top_k` different experts each.
fn least(loads: &[u64], top_k: usize) -> usize {
    let (sum, most) = (loads.iter().sum::<u64>(), loads.iter().copied().max().unwrap_or(0));
    sum.div_ceil(top_k.max(1) as u64).max(most) as usize
}

/// Tokens whose choices add up to `loads`, in random order, `[token][k]`; no token visits an expert twice.
///
/// The choices are laid out expert after expert and dealt round the tokens: no run is longer than a round.
fn deal(loads: &[u64], top_k: usize, tokens: usize, mut random: Stream) -> Vec<i32> {
    let mut order: Vec<usize> = (0..tokens).collect();
    for at in (1..tokens).rev() {
        order.swap(at, (random.bits() % (at as u64 + 1)) as usize);
    }
    let mut ids = vec![-1; tokens * top_k];
    let choices = loads.iter().enumerate().flat_map(|(e, &load)| (0..load).map(move |_| e as i32));
    for (at, expert) in choices.enumerate() {
        ids[order[at % tokens] * top_k + at / tokens] = expert;
    }
    ids
}

/// Choices of `tokens` tokens, `top_k` each, that load every expert alike, in the order of `experts`, `[token][k]`.
pub fn balanced(tokens: usize, top_k: usize, experts: &[u32]) -> Vec<i32> {
    (0..tokens * top_k).map(|at| experts[at % experts.len()] as i32).collect()
}

/// The parts of `rows` (tokens times `width`) that belong to each rank: equal and consecutive.
pub fn parts<T: Clone>(rows: &[T], width: usize, ranks: usize) -> Vec<Vec<T>> {
    let tokens = rows.len() / width.max(1);
    let start = |rank: usize| rank * tokens / ranks * width;
    (0..ranks).map(|rank| rows[start(rank)..start(rank + 1)].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn dealt_tokens_add_up_to_their_counts(loads in prop::collection::vec(0u64..20, 1..9), top_k in 1usize..4, more in 0usize..3) {
            let tokens = least(&loads, top_k) + more;
            let ids = deal(&loads, top_k, tokens, Stream::new(1, &[]));
            let mut counts = vec![0; loads.len()];
            for token in ids.chunks(top_k) {
                let mut visited: Vec<i32> = token.iter().copied().filter(|&id| id >= 0).collect();
                visited.iter().for_each(|&id| counts[id as usize] += 1);
                visited.sort_unstable();
                visited.dedup();
                prop_assert_eq!(visited.len(), token.iter().filter(|&&id| id >= 0).count());
            }
            prop_assert_eq!(counts, loads);
        }
    }

    #[test]
    fn parts_are_all_of_it() {
        let rows: Vec<u8> = (0..14).collect();
        assert_eq!(parts(&rows, 2, 3), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9, 10, 11, 12, 13]]);
        assert_eq!(balanced(3, 2, &[2, 0, 1]), [2, 0, 1, 2, 0, 1]);
    }
}
