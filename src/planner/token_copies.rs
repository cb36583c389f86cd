//! Number of tokens that really travel. A token goes to a rank once, even if several of its experts are
//! served there.
//!
//! In: the slots that serve one source's tokens. Out: [`TokenCopies`].
//! [`TokenTraffic`](crate::split::TokenTraffic) counts (token, expert) pairs, which is an upper bound and all
//! that counts can show. Dispatch kernels send a token once per destination rank, and between nodes once per
//! destination node.

use crate::cluster::Cluster;

/// Counts of sent tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TokenCopies {
    /// Tokens that at least one expert served.
    pub tokens: u64,
    /// (Token, expert) pairs.
    pub pairs: u64,
    /// Copies of tokens on other ranks than their own: one per token and destination rank.
    pub to_ranks: u64,
    /// Copies of tokens on other nodes than their own: one per token and destination node.
    pub to_nodes: u64,
}

impl TokenCopies {
    /// Adds the tokens of one source rank. `slots` is `[token][top_k]`, with -1 for no expert.
    pub fn add_source<Id: Copy + Into<i64>>(
        &mut self,
        slots: &[Id],
        top_k: usize,
        source: usize,
        cluster: &Cluster,
    ) {
        let per_node = cluster.ranks() / cluster.nodes();
        let mut ranks = Vec::with_capacity(top_k);
        for token in slots.chunks(top_k.max(1)) {
            ranks.clear();
            let served = token.iter().filter_map(|&slot| usize::try_from(slot.into()).ok());
            ranks.extend(served.map(|slot| slot / cluster.slots_per_rank()));
            self.tokens += u64::from(!ranks.is_empty());
            self.pairs += ranks.len() as u64;
            ranks.sort_unstable();
            ranks.dedup();
            self.to_ranks += ranks.iter().filter(|&&rank| rank != source).count() as u64;
            // Ranks ascend, and so do their nodes.
            for rank in &mut ranks {
                *rank /= per_node;
            }
            ranks.dedup();
            self.to_nodes += ranks.iter().filter(|&&node| node != source / per_node).count() as u64;
        }
    }

    /// Returns the sum of two counts.
    #[must_use]
    pub fn plus(self, other: TokenCopies) -> TokenCopies {
        TokenCopies {
            tokens: self.tokens + other.tokens,
            pairs: self.pairs + other.pairs,
            to_ranks: self.to_ranks + other.to_ranks,
            to_nodes: self.to_nodes + other.to_nodes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_travels_once_per_rank_and_once_per_node() {
        // Four ranks with two slots each in two nodes. The tokens come from rank 1.
        let cluster = Cluster::new(4, 2, 8, 0).unwrap();
        let mut copies = TokenCopies::default();
        // Slots 0 and 1 are on rank 0, and slot 2 is on the source. Slots 4 and 6 are on ranks 2 and 3 in the
        // other node.
        copies.add_source(&[0, 1, 2, -1, 4, 6, 7, 2], 4, 1, &cluster);
        assert_eq!(copies, TokenCopies { tokens: 2, pairs: 7, to_ranks: 1 + 2, to_nodes: 1 });
        copies.add_source(&[-1, -1, -1, -1], 4, 0, &cluster);
        assert_eq!((copies.tokens, copies.pairs), (2, 7));
    }
}
