//! What really travels: a token goes to a rank once, however many of its experts are served there.
//!
//! In: the slots that serve one source's tokens. Out: [`Copies`]. [`Traffic`](crate::split::Traffic) counts (token, expert)
//! pairs, which is all that counts can tell and an upper bound; dispatch kernels send a token once per destination rank,
//! and between nodes once per destination node.

use crate::cluster::Cluster;

/// How often tokens were sent. Units: tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copies {
    /// Tokens that any expert served.
    pub tokens: u64,
    /// (Token, expert) pairs.
    pub pairs: u64,
    /// Copies of tokens on ranks other than their own: one per token and destination rank.
    pub to_ranks: u64,
    /// Copies of tokens on nodes other than their own: one per token and destination node.
    pub to_nodes: u64,
}

impl Copies {
    /// Adds the tokens of one source rank; `slots` is `[token][top_k]`, -1 for no expert.
    pub fn add<Id: Copy + Into<i64>>(
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

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Copies) -> Copies {
        Copies {
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
        // Four ranks of two slots in two nodes; the tokens come from rank 1.
        let cluster = Cluster::new(4, 2, 8, 0).unwrap();
        let mut copies = Copies::default();
        // Slots 0 and 1 are rank 0; 2 is home; 4 and 6 are ranks 2 and 3, both in the other node.
        copies.add(&[0, 1, 2, -1, 4, 6, 7, 2], 4, 1, &cluster);
        assert_eq!(copies, Copies { tokens: 2, pairs: 7, to_ranks: 1 + 2, to_nodes: 1 });
        copies.add(&[-1, -1, -1, -1], 4, 0, &cluster);
        assert_eq!((copies.tokens, copies.pairs), (2, 7));
    }
}
