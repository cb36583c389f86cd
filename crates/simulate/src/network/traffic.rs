//! Who sends how many rows to whom, by the links that they take.
//!
//! In: where the tokens of a batch are served. Out: a [`Traffic`], the [`Flow`] of every rank out and in, inside its node and
//! between nodes. Rows are those of dispatch; combine sends as many the other way round.

use crate::cluster::Cluster;
use std::fmt;
use std::iter::Sum;
use std::ops::AddAssign;
use std::str::FromStr;

/// How often a token's row is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OneCopyPer {
    /// For every expert that it visits, as DeepEP's low-latency kernels do.
    Visit,
    /// To every rank that serves it, once; what [`exec`](crate::exec) does.
    Rank,
    /// Once to every other node that serves it, where the rank with the source's place in its node forwards it to the others, as
    /// DeepEP's normal kernels do.
    Node,
}

impl fmt::Display for OneCopyPer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            OneCopyPer::Visit => "visit",
            OneCopyPer::Rank => "rank",
            OneCopyPer::Node => "node",
        })
    }
}

impl FromStr for OneCopyPer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Visit, Self::Rank, Self::Node]
            .into_iter()
            .find(|one| one.to_string() == text)
            .ok_or_else(|| "expected visit, rank or node".into())
    }
}

/// What passes a point in one direction. Not whole numbers where they are expectations.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Flow {
    /// Rows of tokens.
    pub rows: f64,
    /// (Token, slot) pairs that they are for, which travel beside them.
    pub visits: f64,
}

impl AddAssign for Flow {
    fn add_assign(&mut self, other: Flow) {
        self.rows += other.rows;
        self.visits += other.visits;
    }
}

impl Flow {
    pub(super) fn times(self, n: usize) -> Flow {
        Flow { rows: self.rows * n as f64, visits: self.visits * n as f64 }
    }

    pub(super) fn minus(self, other: Flow) -> Flow {
        Flow { rows: self.rows - other.rows, visits: self.visits - other.visits }
    }
}

impl Sum for Flow {
    fn sum<I: Iterator<Item = Flow>>(flows: I) -> Flow {
        flows.fold(Flow::default(), |mut sum, flow| {
            sum += flow;
            sum
        })
    }
}

/// What leaves a rank and what comes to it, `[out, in]` each.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RankFlow {
    /// To and from other ranks of its node.
    pub node: [Flow; 2],
    /// To and from other nodes.
    pub cross: [Flow; 2],
}

/// One batch of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Traffic {
    /// By rank, `[R]`.
    pub ranks: Vec<RankFlow>,
    one_copy: OneCopyPer,
    per_node: usize,
    /// Of the token at hand: the ranks that serve it, one entry per visit.
    served: Vec<usize>,
}

impl Traffic {
    /// Nothing yet.
    pub fn new(cluster: &Cluster, one_copy: OneCopyPer) -> Self {
        Self {
            ranks: vec![RankFlow::default(); cluster.ranks()],
            one_copy,
            per_node: cluster.ranks() / cluster.nodes(),
            served: Vec::new(),
        }
    }

    /// Nothing again.
    pub(super) fn clear(&mut self) {
        self.ranks.fill(RankFlow::default());
    }

    /// A flow from one rank to another; on the same rank nothing travels.
    pub(super) fn send(&mut self, from: usize, to: usize, flow: Flow) {
        if from == to {
            return;
        }
        if from / self.per_node == to / self.per_node {
            self.ranks[from].node[0] += flow;
            self.ranks[to].node[1] += flow;
        } else {
            self.ranks[from].cross[0] += flow;
            self.ranks[to].cross[1] += flow;
        }
    }

    /// Adds the tokens of one source rank; `slots` is `[token][top_k]`, -1 for no expert, each on rank `slot / slots_per_rank`.
    pub fn add(&mut self, slots: &[i32], top_k: usize, source: usize, slots_per_rank: usize) {
        for token in slots.chunks(top_k.max(1)) {
            let mut served = std::mem::take(&mut self.served);
            served.clear();
            let some = token.iter().filter_map(|&slot| usize::try_from(slot).ok());
            served.extend(some.map(|slot| slot / slots_per_rank.max(1)));
            served.sort_unstable();
            self.token(source, &served);
            self.served = served;
        }
    }

    /// Adds one token, served by these ranks (ascending, one entry per visit).
    fn token(&mut self, source: usize, served: &[usize]) {
        let per_node = self.per_node;
        match self.one_copy {
            OneCopyPer::Visit => {
                served.iter().for_each(|&to| self.send(source, to, Flow { rows: 1.0, visits: 1.0 }));
            }
            OneCopyPer::Rank => {
                for visits in served.chunk_by(|a, b| a == b) {
                    self.send(source, visits[0], Flow { rows: 1.0, visits: visits.len() as f64 });
                }
            }
            OneCopyPer::Node => {
                for on_node in served.chunk_by(|a, b| a / per_node == b / per_node) {
                    let gateway = on_node[0] / per_node * per_node + source % per_node;
                    self.send(source, gateway, Flow { rows: 1.0, visits: on_node.len() as f64 });
                    for visits in on_node.chunk_by(|a, b| a == b) {
                        self.send(gateway, visits[0], Flow { rows: 1.0, visits: visits.len() as f64 });
                    }
                }
            }
        }
    }

    /// Rows that leave all ranks, inside nodes and between nodes.
    pub fn rows(&self) -> [f64; 2] {
        self.ranks
            .iter()
            .fold([0.0; 2], |sum, rank| [sum[0] + rank.node[0].rows, sum[1] + rank.cross[0].rows])
    }

    /// What every rank of a group would carry if all carried alike.
    pub(super) fn mean(&self) -> RankFlow {
        let n = self.ranks.len() as f64;
        let mut mean = RankFlow::default();
        for rank in &self.ranks {
            for (sum, flow) in mean.node.iter_mut().zip(rank.node) {
                *sum += flow;
            }
            for (sum, flow) in mean.cross.iter_mut().zip(rank.cross) {
                *sum += flow;
            }
        }
        for flow in mean.node.iter_mut().chain(&mut mean.cross) {
            *flow = Flow { rows: flow.rows / n, visits: flow.visits / n };
        }
        mean
    }

    /// Ranks of a node.
    pub(super) fn per_node(&self) -> usize {
        self.per_node
    }

    pub(super) fn one_copy(&self) -> OneCopyPer {
        self.one_copy
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "exact numbers")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Six ranks in two nodes of three, one slot each.
    fn one_token(one_copy: OneCopyPer, slots: &[i32]) -> Traffic {
        let mut traffic = Traffic::new(&Cluster::new(6, 2, 6, 0).unwrap(), one_copy);
        traffic.add(slots, slots.len(), 1, 1);
        traffic
    }

    #[test]
    fn a_token_by_hand() {
        // From rank 1: to itself, to rank 0 of its node, to ranks 3 and 5 of the other (5 twice).
        let slots = [1, 0, 3, 5, 5, -1];
        assert_eq!(one_token(OneCopyPer::Visit, &slots).rows(), [1.0, 3.0]);
        assert_eq!(one_token(OneCopyPer::Rank, &slots).rows(), [1.0, 2.0]);
        // One row to the gateway, rank 4, which serves nothing of it, and from there two.
        let by_node = one_token(OneCopyPer::Node, &slots);
        assert_eq!(by_node.rows(), [3.0, 1.0]);
        assert_eq!(by_node.ranks[4].cross[1], Flow { rows: 1.0, visits: 3.0 });
        assert_eq!(by_node.ranks[4].node[0], Flow { rows: 2.0, visits: 3.0 });
        assert_eq!(by_node.ranks[5].node[1], Flow { rows: 1.0, visits: 2.0 });
        assert_eq!(by_node.ranks[1].node[0].rows, 1.0);
    }

    proptest! {
        #[test]
        fn fewer_copies_are_never_more_rows(
            tokens in prop::collection::vec(prop::collection::vec(0i32..24, 4), 1..20),
            nodes in prop::sample::select(vec![1usize, 2, 3, 6, 12]),
        ) {
            let cluster = Cluster::new(12, nodes, 24, 0).unwrap();
            let slots = tokens.concat();
            let rows = |one_copy| {
                let mut traffic = Traffic::new(&cluster, one_copy);
                for source in 0..12 {
                    traffic.add(&slots, 4, source, 2);
                }
                let ins: f64 = traffic.ranks.iter().map(|rank| rank.node[1].rows + rank.cross[1].rows).sum();
                prop_assert_eq!(ins, traffic.rows().iter().sum::<f64>());
                Ok(traffic.rows())
            };
            let [visit, rank, node] = [rows(OneCopyPer::Visit)?, rows(OneCopyPer::Rank)?, rows(OneCopyPer::Node)?];
            prop_assert!(node[1] <= rank[1] && rank[1] <= visit[1] && rank[0] <= visit[0]);
            // What aggregation saves between nodes is forwarded inside, one row each at most.
            prop_assert!(node[0] + node[1] <= rank[0] + rank[1] + node[1]);
            prop_assert!(nodes > 1 || (visit[1] == 0.0 && node == rank));
            prop_assert!(nodes < 12 || (visit[0] == 0.0 && node == rank));
        }
    }
}
