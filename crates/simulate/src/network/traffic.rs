//! The rows that ranks send to each other, by the links that they use.
//!
//! Input is the hosts of a batch's tokens. Output is a [`RowTraffic`]: the [`TrafficFlow`] of every rank out
//! and in, inside its node and between nodes. Rows are those of dispatch. Combine sends equally many in the
//! opposite direction.

use evenkeel::cluster::Cluster;
use std::fmt;
use std::iter::Sum;
use std::ops::AddAssign;
use std::str::FromStr;
use thiserror::Error;

/// The number of times that a token's row is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowAggregation {
    /// One row for every expert that the token visits, as in DeepEP's low-latency kernels.
    Visit,
    /// One row for every rank that serves the token, as in the executor.
    Rank,
    /// One row for every other node that serves the token, as in DeepEP's normal kernels. The rank with the
    /// source's position in that node forwards it to the others.
    Node,
}

impl fmt::Display for RowAggregation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            RowAggregation::Visit => "visit",
            RowAggregation::Rank => "rank",
            RowAggregation::Node => "node",
        })
    }
}

/// Error of an unknown name of a [`RowAggregation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected visit, rank or node")]
#[non_exhaustive]
pub struct UnknownRowAggregation;

impl FromStr for RowAggregation {
    type Err = UnknownRowAggregation;

    fn from_str(text: &str) -> Result<Self, UnknownRowAggregation> {
        [Self::Visit, Self::Rank, Self::Node]
            .into_iter()
            .find(|one| one.to_string() == text)
            .ok_or(UnknownRowAggregation)
    }
}

/// The traffic through a point in one direction. Expected values are not whole numbers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TrafficFlow {
    /// The rows of tokens.
    pub rows: f64,
    /// The (token, slot) pairs of these rows, which accompany them.
    pub visits: f64,
}

impl AddAssign for TrafficFlow {
    fn add_assign(&mut self, other: TrafficFlow) {
        self.rows += other.rows;
        self.visits += other.visits;
    }
}

impl TrafficFlow {
    pub(super) fn scale_by(self, n: usize) -> TrafficFlow {
        TrafficFlow { rows: self.rows * n as f64, visits: self.visits * n as f64 }
    }

    pub(super) fn subtract_flow(self, other: TrafficFlow) -> TrafficFlow {
        TrafficFlow { rows: self.rows - other.rows, visits: self.visits - other.visits }
    }
}

impl Sum for TrafficFlow {
    fn sum<I: Iterator<Item = TrafficFlow>>(flows: I) -> TrafficFlow {
        flows.fold(TrafficFlow::default(), |mut sum, flow| {
            sum += flow;
            sum
        })
    }
}

/// The traffic out of a rank and into it, each `[out, in]`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RankFlow {
    /// The traffic with other ranks of its node.
    pub node: [TrafficFlow; 2],
    /// The traffic with other nodes.
    pub cross: [TrafficFlow; 2],
}

/// The traffic of one batch of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct RowTraffic {
    /// The flows by rank, `[R]`.
    pub ranks: Vec<RankFlow>,
    one_copy: RowAggregation,
    per_node: usize,
    /// The ranks that serve the current token, one entry per visit.
    served: Vec<usize>,
}

impl RowTraffic {
    /// Returns empty traffic.
    pub fn new(cluster: &Cluster, one_copy: RowAggregation) -> Self {
        Self {
            ranks: vec![RankFlow::default(); cluster.ranks()],
            one_copy,
            per_node: cluster.ranks() / cluster.nodes(),
            served: Vec::new(),
        }
    }

    /// Resets all flows to zero.
    pub(super) fn clear(&mut self) {
        self.ranks.fill(RankFlow::default());
    }

    /// Adds a flow from one rank to another. Flows within one rank do not count.
    pub(super) fn add_flow(&mut self, from: usize, to: usize, flow: TrafficFlow) {
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

    /// Adds the tokens of one source rank. `slots` is `[token][top_k]` with -1 for no expert. Slot `slot`
    /// belongs to rank `slot / slots_per_rank`.
    pub fn add_source(&mut self, slots: &[i32], top_k: usize, source: usize, slots_per_rank: usize) {
        for token in slots.chunks(top_k.max(1)) {
            let mut served = std::mem::take(&mut self.served);
            served.clear();
            let some = token.iter().filter_map(|&slot| usize::try_from(slot).ok());
            served.extend(some.map(|slot| slot / slots_per_rank.max(1)));
            served.sort_unstable();
            self.add_token(source, &served);
            self.served = served;
        }
    }

    /// Adds one token that these ranks serve (ascending, one entry per visit).
    fn add_token(&mut self, source: usize, served: &[usize]) {
        let per_node = self.per_node;
        match self.one_copy {
            RowAggregation::Visit => {
                served
                    .iter()
                    .for_each(|&to| self.add_flow(source, to, TrafficFlow { rows: 1.0, visits: 1.0 }));
            }
            RowAggregation::Rank => {
                for visits in served.chunk_by(|a, b| a == b) {
                    self.add_flow(source, visits[0], TrafficFlow { rows: 1.0, visits: visits.len() as f64 });
                }
            }
            RowAggregation::Node => {
                for on_node in served.chunk_by(|a, b| a / per_node == b / per_node) {
                    let gateway = on_node[0] / per_node * per_node + source % per_node;
                    self.add_flow(source, gateway, TrafficFlow { rows: 1.0, visits: on_node.len() as f64 });
                    for visits in on_node.chunk_by(|a, b| a == b) {
                        self.add_flow(
                            gateway,
                            visits[0],
                            TrafficFlow { rows: 1.0, visits: visits.len() as f64 },
                        );
                    }
                }
            }
        }
    }

    /// Returns the rows that leave all ranks, inside nodes and between nodes.
    pub fn total_rows(&self) -> [f64; 2] {
        self.ranks
            .iter()
            .fold([0.0; 2], |sum, rank| [sum[0] + rank.node[0].rows, sum[1] + rank.cross[0].rows])
    }

    /// Returns the traffic of every rank if all ranks had the mean.
    pub(super) fn mean_flow(&self) -> RankFlow {
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
            *flow = TrafficFlow { rows: flow.rows / n, visits: flow.visits / n };
        }
        mean
    }

    /// Returns the number of ranks per node.
    pub(super) fn ranks_per_node(&self) -> usize {
        self.per_node
    }

    pub(super) fn one_copy(&self) -> RowAggregation {
        self.one_copy
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "exact numbers")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns the traffic of one token on six ranks in two nodes of three, one slot each.
    fn one_token(one_copy: RowAggregation, slots: &[i32]) -> RowTraffic {
        let mut traffic = RowTraffic::new(&Cluster::new(6, 2, 6, 0).unwrap(), one_copy);
        traffic.add_source(slots, slots.len(), 1, 1);
        traffic
    }

    #[test]
    fn a_token_by_hand() {
        // From rank 1: to itself, to rank 0 of its node, to ranks 3 and 5 of the other (5 twice).
        let slots = [1, 0, 3, 5, 5, -1];
        assert_eq!(one_token(RowAggregation::Visit, &slots).total_rows(), [1.0, 3.0]);
        assert_eq!(one_token(RowAggregation::Rank, &slots).total_rows(), [1.0, 2.0]);
        // One row goes to the gateway, rank 4, which serves none of it. Two rows leave from there.
        let by_node = one_token(RowAggregation::Node, &slots);
        assert_eq!(by_node.total_rows(), [3.0, 1.0]);
        assert_eq!(by_node.ranks[4].cross[1], TrafficFlow { rows: 1.0, visits: 3.0 });
        assert_eq!(by_node.ranks[4].node[0], TrafficFlow { rows: 2.0, visits: 3.0 });
        assert_eq!(by_node.ranks[5].node[1], TrafficFlow { rows: 1.0, visits: 2.0 });
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
                let mut traffic = RowTraffic::new(&cluster, one_copy);
                for source in 0..12 {
                    traffic.add_source(&slots, 4, source, 2);
                }
                let ins: f64 = traffic.ranks.iter().map(|rank| rank.node[1].rows + rank.cross[1].rows).sum();
                prop_assert_eq!(ins, traffic.total_rows().iter().sum::<f64>());
                Ok(traffic.total_rows())
            };
            let [visit, rank, node] = [rows(RowAggregation::Visit)?, rows(RowAggregation::Rank)?, rows(RowAggregation::Node)?];
            prop_assert!(node[1] <= rank[1] && rank[1] <= visit[1] && rank[0] <= visit[0]);
            // The rows that aggregation saves between nodes are forwarded inside, at most one row each.
            prop_assert!(node[0] + node[1] <= rank[0] + rank[1] + node[1]);
            prop_assert!(nodes > 1 || (visit[1] == 0.0 && node == rank));
            prop_assert!(nodes < 12 || (visit[0] == 0.0 && node == rank));
        }
    }
}
