//! Batches of a run.
//!
//! Input: recorded expert ids per token, or counts, or nothing. Output: the number of tokens of a step and,
//! if recorded, the experts that they visit. The tokens of a batch belong to the ranks in equal
//! consecutive parts.

use super::random::RandomStream;
use evenkeel::trace::{TokenTrace, Trace};

/// The source of the batches of a run.
#[derive(Debug, Clone)]
pub enum BatchSource {
    /// Recorded experts of every token.
    Tokens(TokenTrace),
    /// Recorded tokens per expert. The choices of single tokens are unknown, and are assigned at random by
    /// the seed.
    Counts {
        /// The counts.
        trace: Trace,
        /// Experts that a token visits.
        top_k: usize,
        /// Seed of this assignment.
        seed: u64,
    },
    /// Synthetic tokens, for which a router chooses.
    Synthetic {
        /// Tokens of all ranks in a step.
        tokens: usize,
    },
}

impl BatchSource {
    /// Returns the recorded loads, if any.
    pub fn trace(&self) -> Option<&Trace> {
        match self {
            BatchSource::Tokens(tokens) => Some(tokens.trace()),
            BatchSource::Counts { trace, .. } => Some(trace),
            BatchSource::Synthetic { .. } => None,
        }
    }

    /// Returns the recorded number of experts per token, if any.
    pub fn top_k(&self) -> Option<usize> {
        match self {
            BatchSource::Tokens(tokens) => Some(tokens.top_k()),
            BatchSource::Counts { top_k, .. } => Some(*top_k),
            BatchSource::Synthetic { .. } => None,
        }
    }

    /// Returns the number of tokens of a step. `layers` are the indices of the layers that run.
    pub fn token_count(&self, step: usize, layers: &[usize]) -> usize {
        match self {
            BatchSource::Tokens(tokens) => layers
                .first()
                .map_or(0, |&layer| tokens.expert_ids(step, layer).len() / tokens.top_k().max(1)),
            BatchSource::Counts { trace, top_k, .. } => {
                layers.iter().map(|&layer| min_tokens(trace.loads(step, layer), *top_k)).max().unwrap_or(0)
            }
            BatchSource::Synthetic { tokens } => *tokens,
        }
    }

    /// Returns the experts of a step's `tokens` tokens in a layer (by index), `[token][k]`, -1 for none.
    /// Returns `None` if a router chooses.
    pub fn expert_ids(&self, step: usize, layer: usize, tokens: usize) -> Option<Vec<i32>> {
        match self {
            BatchSource::Tokens(recorded) => Some(recorded.expert_ids(step, layer)),
            BatchSource::Counts { trace, top_k, seed } => {
                let random = RandomStream::new(*seed, &[step as u64, layer as u64]);
                Some(deal_choices(trace.loads(step, layer), *top_k, tokens, random))
            }
            BatchSource::Synthetic { .. } => None,
        }
    }
}

/// Returns the smallest number of tokens that can produce these counts, with `top_k` different experts each.
fn min_tokens(loads: &[u64], top_k: usize) -> usize {
    let (sum, most) = (loads.iter().sum::<u64>(), loads.iter().copied().max().unwrap_or(0));
    sum.div_ceil(top_k.max(1) as u64).max(most) as usize
}

/// Assigns the choices in `loads` to tokens in random order, `[token][k]`. No token visits an expert
/// twice.
///
/// The choices are listed expert by expert and dealt to the tokens in turn. No expert has more choices than
/// there are tokens, so no token gets an expert twice.
fn deal_choices(loads: &[u64], top_k: usize, tokens: usize, mut random: RandomStream) -> Vec<i32> {
    let mut order: Vec<usize> = (0..tokens).collect();
    for at in (1..tokens).rev() {
        order.swap(at, (random.next_bits() % (at as u64 + 1)) as usize);
    }
    let mut ids = vec![-1; tokens * top_k];
    let choices = loads.iter().enumerate().flat_map(|(e, &load)| (0..load).map(move |_| e as i32));
    for (at, expert) in choices.enumerate() {
        ids[order[at % tokens] * top_k + at / tokens] = expert;
    }
    ids
}

/// Returns the choices of `tokens` tokens, `top_k` each, that load every expert equally, in the order of
/// `experts`, `[token][k]`.
pub fn balanced_ids(tokens: usize, top_k: usize, experts: &[u32]) -> Vec<i32> {
    (0..tokens * top_k).map(|at| experts[at % experts.len()] as i32).collect()
}

/// Returns the equal, consecutive parts of `rows` (tokens times `width`) that belong to each rank.
pub fn split_rows<T: Clone>(rows: &[T], width: usize, ranks: usize) -> Vec<Vec<T>> {
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
            let tokens = min_tokens(&loads, top_k) + more;
            let ids = deal_choices(&loads, top_k, tokens, RandomStream::new(1, &[]));
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
        assert_eq!(split_rows(&rows, 2, 3), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9, 10, 11, 12, 13]]);
        assert_eq!(balanced_ids(3, 2, &[2, 0, 1]), [2, 0, 1, 2, 0, 1]);
    }
}
