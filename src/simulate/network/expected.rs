//! What traffic to expect where a trace holds counts alone.
//!
//! In: the loads of a batch and where its split serves them. Out: the expected [`Traffic`]. Every source is taken to have the
//! same tokens, `t = T / R` of them, which visit `k` different experts drawn with the batch's own frequencies and otherwise
//! independently of each other: conditional Bernoulli sampling, whose weights follow from the frequencies by the iteration of
//! Chen, Dempster and Liu (*Biometrika* 81, 1994). Of an expert's tokens a copy serves those of its own rank first, then those of
//! its node, as [`Shares`](crate::split::Shares) are made. A token stays away from a set of copies with probability
//! `[z^k] prod (1 + w_e (1 - s_e) z) / [z^k] prod (1 + w_e z)`, `s_e` the share of expert `e`'s tokens that the set serves.

use super::traffic::{Flow, OneCopyPer, Traffic};
use crate::cluster::Cluster;
use crate::place::Placement;

/// Rounds of the iteration for the weights; frequencies are met to a few per mille.
const ROUNDS: usize = 8;

/// Frequencies are kept this far from 1, where weights are infinite.
const CERTAIN: f64 = 1e-6;

/// Where a token comes from, seen from a copy.
const OWN: usize = 0;
const NODE: usize = 1;
const FAR: usize = 2;

/// How the tokens of one batch choose their experts.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Tokens, `T`.
    tokens: f64,
    /// Experts per token; none where tokens do not all visit as many.
    top_k: Option<usize>,
    /// Share of the tokens that visit each expert, `[E]`.
    frequency: Vec<f64>,
    /// `[E]`
    weight: Vec<f64>,
}

impl Choice {
    /// Of tokens that visit `top_k` experts each: as many as the loads need.
    pub fn of(loads: &[u64], top_k: usize) -> Self {
        let total: u64 = loads.iter().sum();
        let tokens = total.div_ceil(top_k.max(1) as u64).max(loads.iter().copied().max().unwrap_or(0));
        let all_alike = tokens * top_k as u64 == total && total > 0;
        let tokens = tokens as f64;
        let share = |load: &u64| if tokens > 0.0 { (*load as f64 / tokens).min(1.0 - CERTAIN) } else { 0.0 };
        let frequency: Vec<f64> = loads.iter().map(share).collect();
        let weight = frequency.iter().map(|p| p / (1.0 - p)).collect();
        let mut choice = Self { tokens, top_k: all_alike.then_some(top_k), frequency, weight };
        if let Some(top_k) = choice.top_k {
            choice.fit(top_k);
        }
        choice
    }

    /// Tokens that there are.
    pub fn tokens(&self) -> f64 {
        self.tokens
    }

    /// Weights whose expert is visited as often as it was.
    fn fit(&mut self, top_k: usize) {
        let experts = self.weight.len();
        let mut left = vec![vec![0.0; top_k + 1]; experts + 1];
        for _ in 0..ROUNDS {
            // Products of the first experts; those of the last are made on the way back.
            left[0][0] = 1.0;
            for e in 0..experts {
                let (before, after) = left.split_at_mut(e + 1);
                after[0].copy_from_slice(&before[e]);
                times(&mut after[0], self.weight[e]);
            }
            let whole = left[experts][top_k];
            if !(whole > 0.0 && whole.is_finite()) {
                self.top_k = None;
                return;
            }
            let mut right = vec![0.0; top_k + 1];
            right[0] = 1.0;
            for e in (0..experts).rev() {
                let weight = self.weight[e];
                let others: f64 = (0..top_k).map(|i| left[e][i] * right[top_k - 1 - i]).sum();
                times(&mut right, weight);
                let visited = weight * others / whole;
                if visited > 0.0 {
                    self.weight[e] = weight * self.frequency[e] / visited;
                }
            }
            // All weights times a constant are the same choice; the mean is kept where sums stay in range.
            let mean = self.weight.iter().sum::<f64>() / (top_k as f64);
            self.weight.iter_mut().for_each(|weight| *weight /= mean.max(f64::MIN_POSITIVE));
        }
    }

    /// The probability that a token visits any of these copies, for three kinds of sources at once: `on` names different experts
    /// and the share of their tokens that is served here.
    fn visits(&self, on: &[(usize, [f64; 3])]) -> [f64; 3] {
        let Some(top_k) = self.top_k else {
            let mut none = [1.0; 3];
            for &(e, shares) in on {
                none.iter_mut()
                    .zip(shares)
                    .for_each(|(none, share)| *none *= 1.0 - self.frequency[e] * share);
            }
            return none.map(|none| 1.0 - none);
        };
        let mut others = vec![0.0; top_k + 1];
        others[0] = 1.0;
        let mut here = on.iter().map(|&(e, _)| e).collect::<Vec<_>>();
        here.sort_unstable();
        for (e, &weight) in self.weight.iter().enumerate() {
            if weight > 0.0 && here.binary_search(&e).is_err() {
                times(&mut others, weight);
            }
        }
        let with = |shares: fn(&[f64; 3], usize) -> f64, class: usize| {
            let mut all = others.clone();
            on.iter().for_each(|(e, s)| times(&mut all, self.weight[*e] * (1.0 - shares(s, class))));
            all[top_k]
        };
        let whole = with(|_, _| 0.0, 0);
        let mut visited = [0.0; 3];
        for (class, visited) in visited.iter_mut().enumerate() {
            *visited =
                if whole > 0.0 { (1.0 - with(|s, c| s[c], class) / whole).clamp(0.0, 1.0) } else { 0.0 };
        }
        visited
    }
}

/// A polynomial times `1 + w z`, cut off at its degree.
fn times(polynomial: &mut [f64], weight: f64) {
    for degree in (1..polynomial.len()).rev() {
        polynomial[degree] += weight * polynomial[degree - 1];
    }
}

/// The share of its expert's tokens that every slot serves, of those from its own rank, the rest of its node, other nodes;
/// `quotas` is `[R * S]`.
fn shares(placement: &Placement, quotas: &[u64], cluster: &Cluster) -> Vec<[f64; 3]> {
    let (ranks, nodes) = (cluster.ranks() as f64, cluster.nodes() as f64);
    let per_node = ranks / nodes;
    let mut shares = vec![[0.0; 3]; quotas.len()];
    let mut left: Vec<(usize, usize, f64)> = Vec::new();
    for expert in 0..placement.experts() {
        let copies = placement.copies(expert);
        let load: u64 = copies.iter().map(|&slot| quotas[slot as usize]).sum();
        if load == 0 {
            continue;
        }
        let each = load as f64 / ranks;
        left.clear();
        let (mut rank, mut supply) = (usize::MAX, 0.0);
        for &slot in copies {
            if placement.rank_of(slot) != rank {
                (rank, supply) = (placement.rank_of(slot), each);
            }
            let (slot, quota) = (slot as usize, quotas[slot as usize] as f64);
            let own = quota.min(supply);
            supply -= own;
            shares[slot][OWN] = own / each;
            left.push((slot, rank, quota - own));
        }
        // Slots of a node follow each other.
        for copies in left.chunk_by_mut(|a, b| cluster.node_of(a.1) == cluster.node_of(b.1)) {
            let own: f64 = copies.iter().map(|&(slot, ..)| shares[slot][OWN] * each).sum();
            let (supply, demand) = (per_node * each - own, copies.iter().map(|copy| copy.2).sum::<f64>());
            let part = if demand > 0.0 { (supply / demand).clamp(0.0, 1.0) } else { 0.0 };
            for (slot, _, left) in copies {
                if per_node > 1.0 {
                    shares[*slot][NODE] = *left * part / ((per_node - 1.0) * each);
                }
                *left *= 1.0 - part;
            }
        }
        for &(slot, _, left) in &left {
            if nodes > 1.0 {
                shares[slot][FAR] = left / ((ranks - per_node) * each);
            }
        }
    }
    shares
}

/// The expected traffic of a batch.
pub(super) fn expect(
    choice: &Choice,
    placement: &Placement,
    quotas: &[u64],
    cluster: &Cluster,
    traffic: &mut Traffic,
) {
    traffic.clear();
    let (ranks, nodes) = (cluster.ranks(), cluster.nodes());
    let per_node = ranks / nodes;
    let each = choice.tokens / ranks as f64;
    let shares = shares(placement, quotas, cluster);
    let flow = |slots: std::ops::Range<usize>| {
        let mut on: Vec<(usize, [f64; 3])> = Vec::with_capacity(slots.len());
        for slot in slots {
            let Some(expert) = placement.slots()[slot] else { continue };
            match on.iter_mut().find(|(e, _)| *e == expert as usize) {
                Some((_, sum)) => sum.iter_mut().zip(shares[slot]).for_each(|(sum, share)| *sum += share),
                None => on.push((expert as usize, shares[slot])),
            }
        }
        let pairs = |class: usize| on.iter().map(|(e, s)| choice.frequency[*e] * s[class]).sum::<f64>();
        let visits = [pairs(OWN), pairs(NODE), pairs(FAR)];
        let rows = if traffic.one_copy() == OneCopyPer::Visit { visits } else { choice.visits(&on) };
        std::array::from_fn::<Flow, 3, _>(|class| Flow {
            rows: each * rows[class],
            visits: each * visits[class],
        })
    };
    let slots = placement.slots_per_rank();
    // From one source of each kind to a rank.
    let to_rank: Vec<[Flow; 3]> = (0..ranks).map(|rank| flow(rank * slots..(rank + 1) * slots)).collect();
    let times = |flow: Flow, n: usize| Flow { rows: flow.rows * n as f64, visits: flow.visits * n as f64 };
    let sum = |flows: &mut dyn Iterator<Item = Flow>| {
        flows.fold(Flow::default(), |mut sum, flow| {
            sum += flow;
            sum
        })
    };
    let in_node: Vec<Flow> =
        to_rank.chunks(per_node).map(|node| sum(&mut node.iter().map(|to| to[NODE]))).collect();
    // From one source to a node and, where every rank is sent to by itself, to its ranks.
    let to_node: Vec<Flow> = match traffic.one_copy() {
        OneCopyPer::Node if nodes > 1 => {
            (0..nodes).map(|n| flow(n * per_node * slots..(n + 1) * per_node * slots)[FAR]).collect()
        }
        _ => to_rank.chunks(per_node).map(|node| sum(&mut node.iter().map(|to| to[FAR]))).collect(),
    };
    let to_all = sum(&mut to_node.iter().copied());
    for (rank, to) in to_rank.iter().enumerate() {
        let node = rank / per_node;
        let flows = &mut traffic.ranks[rank];
        let minus =
            |all: Flow, own: Flow| Flow { rows: all.rows - own.rows, visits: all.visits - own.visits };
        flows.node = [minus(in_node[node], to[NODE]), times(to[NODE], per_node - 1)];
        flows.cross = [minus(to_all, to_node[node]), times(to[FAR], ranks - per_node)];
    }
    if traffic.one_copy() != OneCopyPer::Node {
        return;
    }
    for node in 0..nodes {
        let forwarded = sum(&mut to_rank[node * per_node..(node + 1) * per_node].iter().map(|to| to[FAR]));
        for rank in node * per_node..(node + 1) * per_node {
            let (flows, to) = (&mut traffic.ranks[rank], to_rank[rank][FAR]);
            flows.cross[1] = times(to_node[node], nodes - 1);
            let others = Flow { rows: forwarded.rows - to.rows, visits: forwarded.visits - to.visits };
            flows.node[0] += times(others, nodes - 1);
            flows.node[1] += times(to, (nodes - 1) * (per_node - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_experts_are_drawn_without_replacement() {
        // 8 experts, 3 per token: C(6, 3) / C(8, 3) = 20 / 56 of the tokens miss both of two experts.
        let choice = Choice::of(&[30; 8], 3);
        let visited = choice.visits(&[(1, [1.0; 3]), (5, [1.0, 0.5, 0.0])]);
        assert!((visited[0] - 36.0 / 56.0).abs() < 1e-9);
        // Of expert 5's tokens half: those with 1, and half of those with 5 and not 1 (15 of 56).
        assert!((visited[1] - (21.0 + 7.5) / 56.0).abs() < 1e-9);
        assert!((visited[2] - 3.0 / 8.0).abs() < 1e-9);
    }

    #[test]
    fn tokens_that_visit_different_numbers_are_taken_one_by_one() {
        let choice = Choice::of(&[5, 0, 1, 0], 2);
        assert_eq!((choice.tokens(), choice.top_k), (5.0, None));
        let visited = choice.visits(&[(2, [1.0; 3])]);
        assert!((visited[0] - 0.2).abs() < 1e-9);
        assert_eq!(Choice::of(&[0, 0], 2).tokens(), 0.0);
    }

    proptest! {
        /// Every expert is visited as often as it was counted.
        #[test]
        fn frequencies_are_met(parts in prop::collection::vec(1u64..40, 6..20), top_k in 1usize..5) {
            // As many tokens as make the sum divide, and none that an expert gets twice.
            let sum: u64 = parts.iter().sum();
            let most = *parts.iter().max().unwrap();
            prop_assume!(sum % top_k as u64 == 0 && sum / top_k as u64 > most);
            let choice = Choice::of(&parts, top_k);
            prop_assert!(choice.top_k.is_some());
            for e in 0..parts.len() {
                let visited = choice.visits(&[(e, [1.0; 3])])[0];
                prop_assert!((visited - choice.frequency[e]).abs() < 0.02, "{visited} {}", choice.frequency[e]);
            }
        }

        /// All tokens are served, and those of a rank first by its own copies.
        #[test]
        fn shares_serve_every_token(quotas in prop::collection::vec(0u64..50, 12), nodes in prop::sample::select(vec![1usize, 2, 6])) {
            // 4 experts on 6 ranks x 2 slots: three copies each.
            let slots = (0..12).map(|slot| Some(slot % 4)).collect();
            let placement = Placement::new(4, 6, slots).unwrap();
            let cluster = Cluster::new(6, nodes, 4, 8).unwrap();
            let shares = shares(&placement, &quotas, &cluster);
            for (slot, share) in shares.iter().enumerate() {
                prop_assert!(share.iter().all(|&share| (-1e-9..=1.0 + 1e-9).contains(&share)), "{slot} {share:?}");
            }
            for e in 0..4 {
                let copies = placement.copies(e);
                let load: u64 = copies.iter().map(|&slot| quotas[slot as usize]).sum();
                let each = load as f64 / 6.0;
                for &slot in copies {
                    let s = shares[slot as usize];
                    let per_node = 6 / nodes;
                    let served = each * (s[OWN] + s[NODE] * (per_node - 1) as f64 + s[FAR] * (6 - per_node) as f64);
                    prop_assert!((served - quotas[slot as usize] as f64).abs() < 1e-6);
                }
            }
        }
    }
}
