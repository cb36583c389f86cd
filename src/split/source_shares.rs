//! From quotas to sources: which source rank's tokens each copy serves.
//!
//! In: a split's quotas and every source's counts (all-gathered, the same on every rank). Out: integer shares
//! `[source][copy]` whose totals equal the quotas exactly. A token is served on its own rank where the quotas allow,
//! else in its own node, else anywhere. Those three costs form a tree, so taking them greedily from the cheapest up is
//! an optimal transport; within a level copies and sources are matched in ascending order, so that every rank computes
//! the same shares for itself.

use super::{Split, SplitError};
use crate::cluster::Cluster;
use crate::place::Placement;

/// How many of each source's tokens each copy serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares {
    /// Copies of expert `e` are `starts[e]..starts[e + 1]`, in ascending order of their slots.
    starts: Vec<usize>,
    /// Experts with one copy: there is nothing to share out.
    single: Vec<Single>,
    /// The others.
    shared: Vec<u32>,
    /// `[source][copy]`
    tokens: Vec<u64>,
    traffic: Traffic,
    /// What is left to match of the expert at hand: tokens per source, quota per copy.
    supply: Vec<u64>,
    demand: Vec<u64>,
    /// Tokens of each single expert.
    sums: Vec<u64>,
}

/// An expert with one copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Single {
    expert: u32,
    /// Its copy, among all copies.
    copy: u32,
    slot: u32,
    rank: u32,
}

/// Where tokens are served, seen from where they come from. Units: (token, expert) pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Served on their own rank.
    pub own_rank: u64,
    /// Served on another rank of their own node.
    pub own_node: u64,
    /// Served on another node.
    pub elsewhere: u64,
}

impl Traffic {
    /// All of them.
    pub fn pairs(self) -> u64 {
        self.own_rank + self.own_node + self.elsewhere
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Traffic) -> Traffic {
        Traffic {
            own_rank: self.own_rank + other.own_rank,
            own_node: self.own_node + other.own_node,
            elsewhere: self.elsewhere + other.elsewhere,
        }
    }
}

impl Shares {
    /// Room for the shares of one placement, all zero.
    pub fn new(placement: &Placement) -> Self {
        let mut starts = Vec::with_capacity(placement.experts() + 1);
        starts.push(0);
        for e in 0..placement.experts() {
            starts.push(starts[e] + placement.copies(e).len());
        }
        let (mut single, mut shared) = (vec![], vec![]);
        for (expert, &copy) in starts[..placement.experts()].iter().enumerate() {
            match placement.copies(expert) {
                &[slot] => {
                    let rank = placement.rank_of(slot) as u32;
                    single.push(Single { expert: expert as u32, copy: copy as u32, slot, rank });
                }
                _ => shared.push(expert as u32),
            }
        }
        let tokens = vec![0; placement.ranks() * starts[placement.experts()]];
        let (traffic, sums) = (Traffic::default(), vec![0; single.len()]);
        Self { starts, single, shared, tokens, traffic, supply: vec![], demand: vec![], sums }
    }

    /// Shares out the quotas of `split` among the sources; `counts` is `[source][expert]`, one source per rank.
    /// The placement is that of [`Shares::new`].
    ///
    /// # Errors
    /// [`SplitError::Shape`] when the counts are not `[R][E]`, [`SplitError::Counts`] when an expert's counts do not
    /// add up to its quotas.
    pub fn fill(
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
        self.traffic = Traffic::default();
        self.fill_single(split, counts, per_node)?;
        for at in 0..self.shared.len() {
            let e = self.shared[at] as usize;
            let slots = placement.copies(e);
            self.supply.clear();
            self.supply.extend((0..ranks).map(|source| counts[source * experts + e]));
            self.demand.clear();
            self.demand.extend(slots.iter().map(|&slot| split.quotas[slot as usize]));
            if self.supply.iter().sum::<u64>() != self.demand.iter().sum::<u64>() {
                return Err(SplitError::Counts { expert: e });
            }
            for (copy, &slot) in slots.iter().enumerate() {
                let rank = placement.rank_of(slot);
                self.traffic.own_rank += self.serve(e, copy, rank..rank + 1);
            }
            for (copy, &slot) in slots.iter().enumerate() {
                let node = placement.rank_of(slot) / per_node;
                self.traffic.own_node += self.serve(e, copy, node * per_node..(node + 1) * per_node);
            }
            for copy in 0..slots.len() {
                self.traffic.elsewhere += self.serve(e, copy, 0..ranks);
            }
        }
        Ok(())
    }

    /// Gives all tokens of the experts with one copy to it, and clears the shares of the others.
    fn fill_single(&mut self, split: &Split, counts: &[u64], per_node: usize) -> Result<(), SplitError> {
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
                // What wraps around is wrong, and found below.
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
        let wrong = |(one, sum): &(&Single, &u64)| split.quotas[one.slot as usize] != **sum;
        if let Some((one, _)) = self.single.iter().zip(&self.sums).find(wrong) {
            return Err(SplitError::Counts { expert: one.expert as usize });
        }
        self.traffic = Traffic { own_rank, own_node: within - own_rank, elsewhere: all - within };
        Ok(())
    }

    /// Gives a copy what its quota still wants from the sources in range, ascending.
    fn serve(&mut self, expert: usize, copy: usize, sources: std::ops::Range<usize>) -> u64 {
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

    /// Tokens of `source` that each copy of `expert` serves, copies in ascending order of their slots.
    pub fn of(&self, source: usize, expert: usize) -> &[u64] {
        let copies = self.starts[self.starts.len() - 1];
        &self.tokens[source * copies..][self.starts[expert]..self.starts[expert + 1]]
    }

    /// Where the tokens are served.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }
}
