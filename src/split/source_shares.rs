//! Assignment of quotas to sources: the tokens of each source rank that each replica serves.
//!
//! In: a split's quotas and every source's counts (all-gathered, the same on every rank). Out: integer shares
//! `[source][replica]` whose totals equal the quotas exactly.
//!
//! A token is served on its own rank if the quotas allow, else in its own node, else anywhere. The three
//! costs form a tree, so the greedy assignment from the cheapest up is an optimal transport. Within a level,
//! replicas and sources are matched in ascending order. Every rank therefore computes the same shares on its
//! own.

use super::{Split, SplitError};
use crate::cluster::Cluster;
use crate::place::Placement;

/// Tokens of each source that each replica serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceShares {
    /// Replicas of expert `e` are `starts[e]..starts[e + 1]`, in ascending order of their slots.
    starts: Vec<usize>,
    /// Experts with one replica, which need no split.
    single: Vec<SingleReplica>,
    /// Experts with several replicas.
    shared: Vec<u32>,
    /// Tokens, `[source][replica]`.
    tokens: Vec<u64>,
    traffic: TokenTraffic,
    /// Unmatched rest of the current expert: tokens per source, quota per replica.
    supply: Vec<u64>,
    demand: Vec<u64>,
    /// Tokens of each single expert.
    sums: Vec<u64>,
}

/// Expert with one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SingleReplica {
    expert: u32,
    /// Index of the replica among all replicas.
    copy: u32,
    slot: u32,
    rank: u32,
}

/// Counts of tokens by the distance between source and host. The unit is (token, expert) pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TokenTraffic {
    /// Served on their own rank.
    pub own_rank: u64,
    /// Served on another rank of their own node.
    pub own_node: u64,
    /// Served on another node.
    pub elsewhere: u64,
}

impl TokenTraffic {
    /// Returns the number of all pairs.
    pub fn pairs(self) -> u64 {
        self.own_rank + self.own_node + self.elsewhere
    }

    /// Returns the sum of two counts.
    #[must_use]
    pub fn plus(self, other: TokenTraffic) -> TokenTraffic {
        TokenTraffic {
            own_rank: self.own_rank + other.own_rank,
            own_node: self.own_node + other.own_node,
            elsewhere: self.elsewhere + other.elsewhere,
        }
    }
}

impl SourceShares {
    /// Creates shares for one placement, all zero.
    pub fn new(placement: &Placement) -> Self {
        let mut shares = Self {
            starts: vec![],
            single: vec![],
            shared: vec![],
            tokens: vec![],
            traffic: TokenTraffic::default(),
            supply: vec![],
            demand: vec![],
            sums: vec![],
        };
        shares.follow(placement);
        shares
    }

    /// Takes the replicas of another placement of the same experts and ranks.
    pub(crate) fn follow(&mut self, placement: &Placement) {
        self.starts.clear();
        self.starts.push(0);
        self.single.clear();
        self.shared.clear();
        let mut copies = 0;
        for expert in 0..placement.experts() {
            match placement.replicas(expert) {
                &[slot] => {
                    let rank = placement.rank_of(slot) as u32;
                    let copy = copies as u32;
                    self.single.push(SingleReplica { expert: expert as u32, copy, slot, rank });
                }
                _ => self.shared.push(expert as u32),
            }
            copies += placement.replicas(expert).len();
            self.starts.push(copies);
        }
        self.tokens.clear();
        self.tokens.resize(placement.ranks() * copies, 0);
        self.sums.resize(self.single.len(), 0);
    }

    /// Assigns the quotas of `split` to the sources. `counts` is `[source][expert]`, with one source per
    /// rank. The placement is that of [`SourceShares::new`].
    ///
    /// # Errors
    /// Returns [`SplitError::Shape`] if the counts are not `[R][E]`. Returns [`SplitError::Counts`] if an
    /// expert's counts do not add up to its quotas.
    pub fn assign_quotas(
        &mut self,
        placement: &Placement,
        cluster: &Cluster,
        split: &Split,
        counts: &[u64],
    ) -> Result<(), SplitError> {
        let (ranks, experts) = (placement.ranks(), placement.experts());
        if counts.len() != ranks * experts {
            return Err(SplitError::Shape { given: counts.len(), experts: ranks * experts });
        }
        let per_node = ranks / cluster.nodes();
        self.traffic = TokenTraffic::default();
        self.assign_single_replicas(split, counts, per_node)?;
        for at in 0..self.shared.len() {
            let e = self.shared[at] as usize;
            let slots = placement.replicas(e);
            self.supply.clear();
            self.supply.extend((0..ranks).map(|source| counts[source * experts + e]));
            self.demand.clear();
            self.demand.extend(slots.iter().map(|&slot| split.quotas[slot as usize]));
            if self.supply.iter().sum::<u64>() != self.demand.iter().sum::<u64>() {
                return Err(SplitError::Counts { expert: e });
            }
            for (copy, &slot) in slots.iter().enumerate() {
                let rank = placement.rank_of(slot);
                self.traffic.own_rank += self.serve_sources(e, copy, rank..rank + 1);
            }
            for (copy, &slot) in slots.iter().enumerate() {
                let node = placement.rank_of(slot) / per_node;
                self.traffic.own_node += self.serve_sources(e, copy, node * per_node..(node + 1) * per_node);
            }
            for copy in 0..slots.len() {
                self.traffic.elsewhere += self.serve_sources(e, copy, 0..ranks);
            }
        }
        Ok(())
    }

    /// Assigns all tokens of experts with one replica to it, and clears the shares of the other experts.
    fn assign_single_replicas(
        &mut self,
        split: &Split,
        counts: &[u64],
        per_node: usize,
    ) -> Result<(), SplitError> {
        let (experts, copies) = (self.starts.len() - 1, self.starts[self.starts.len() - 1]);
        let (mut all, mut own_rank, mut within) = (0, 0, 0);
        self.sums.fill(0);
        for (source, (row, shares)) in
            counts.chunks_exact(experts).zip(self.tokens.chunks_exact_mut(copies)).enumerate()
        {
            let node = source / per_node;
            for (one, sum) in self.single.iter().zip(&mut self.sums) {
                let tokens = row[one.expert as usize];
                shares[one.copy as usize] = tokens;
                // A sum that wraps around differs from the quotas, and the check below finds it.
                *sum = sum.saturating_add(tokens);
                all = u64::wrapping_add(all, tokens);
                own_rank = u64::wrapping_add(own_rank, if one.rank as usize == source { tokens } else { 0 });
                let near = one.rank as usize / per_node == node;
                within = u64::wrapping_add(within, if near { tokens } else { 0 });
            }
            for &expert in &self.shared {
                shares[self.starts[expert as usize]..self.starts[expert as usize + 1]].fill(0);
            }
        }
        let wrong = |(one, sum): &(&SingleReplica, &u64)| split.quotas[one.slot as usize] != **sum;
        if let Some((one, _)) = self.single.iter().zip(&self.sums).find(wrong) {
            return Err(SplitError::Counts { expert: one.expert as usize });
        }
        self.traffic = TokenTraffic { own_rank, own_node: within - own_rank, elsewhere: all - within };
        Ok(())
    }

    /// Fills the open quota of a replica from the sources in the range, ascending.
    fn serve_sources(&mut self, expert: usize, copy: usize, sources: std::ops::Range<usize>) -> u64 {
        let copies = self.starts[self.starts.len() - 1];
        let wanted = self.demand[copy];
        for source in sources {
            if self.demand[copy] == 0 {
                break;
            }
            let tokens = self.supply[source].min(self.demand[copy]);
            self.supply[source] -= tokens;
            self.demand[copy] -= tokens;
            self.tokens[source * copies + self.starts[expert] + copy] += tokens;
        }
        wanted - self.demand[copy]
    }

    /// Returns the tokens of `source` that each replica of `expert` serves, in ascending order of slots.
    pub fn replica_tokens(&self, source: usize, expert: usize) -> &[u64] {
        let copies = self.starts[self.starts.len() - 1];
        &self.tokens[source * copies..][self.starts[expert]..self.starts[expert + 1]]
    }

    /// Returns the counts of tokens by distance.
    pub fn traffic(&self) -> TokenTraffic {
        self.traffic
    }
}
