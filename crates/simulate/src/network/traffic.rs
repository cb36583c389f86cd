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

/// The traffic through a point in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DuplexFlow {
    /// The outgoing traffic.
    pub sent: TrafficFlow,
    /// The incoming traffic.
    pub received: TrafficFlow,
}

impl AddAssign for DuplexFlow {
    fn add_assign(&mut self, other: DuplexFlow) {
        self.sent += other.sent;
        self.received += other.received;
    }
}

/// The traffic of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RankFlow {
    /// The traffic with other ranks of its node.
    pub node: DuplexFlow,
    /// The traffic with other nodes.
    pub cross: DuplexFlow,
}

/// Numbers of rows by the links that they use.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LinkRows {
    /// The rows between ranks of one node.
    pub in_node: f64,
    /// The rows between nodes.
    pub cross: f64,
}

impl AddAssign for LinkRows {
    fn add_assign(&mut self, other: LinkRows) {
        self.in_node += other.in_node;
        self.cross += other.cross;
    }
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
            self.ranks[from].node.sent += flow;
            self.ranks[to].node.received += flow;
        } else {
            self.ranks[from].cross.sent += flow;
            self.ranks[to].cross.received += flow;
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

    /// Returns the rows that leave all ranks.
    pub fn total_rows(&self) -> LinkRows {
        let mut sum = LinkRows::default();
        for rank in &self.ranks {
            sum += LinkRows { in_node: rank.node.sent.rows, cross: rank.cross.sent.rows };
        }
        sum
    }

    /// Returns the traffic of every rank if all ranks had the mean.
    pub(super) fn mean_flow(&self) -> RankFlow {
        let n = self.ranks.len() as f64;
        let mut mean = RankFlow::default();
        for rank in &self.ranks {
            mean.node += rank.node;
            mean.cross += rank.cross;
        }
        let divide_flow = |flow: TrafficFlow| TrafficFlow { rows: flow.rows / n, visits: flow.visits / n };
        let divide = |flow: DuplexFlow| DuplexFlow {
            sent: divide_flow(flow.sent),
            received: divide_flow(flow.received),
        };
        RankFlow { node: divide(mean.node), cross: divide(mean.cross) }
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
        let rows = |in_node, cross| LinkRows { in_node, cross };
        assert_eq!(one_token(RowAggregation::Visit, &slots).total_rows(), rows(1.0, 3.0));
        assert_eq!(one_token(RowAggregation::Rank, &slots).total_rows(), rows(1.0, 2.0));
        // One row goes to the gateway, rank 4, which serves none of it. Two rows leave from there.
        let by_node = one_token(RowAggregation::Node, &slots);
        assert_eq!(by_node.total_rows(), rows(3.0, 1.0));
        assert_eq!(by_node.ranks[4].cross.received, TrafficFlow { rows: 1.0, visits: 3.0 });
        assert_eq!(by_node.ranks[4].node.sent, TrafficFlow { rows: 2.0, visits: 3.0 });
        assert_eq!(by_node.ranks[5].node.received, TrafficFlow { rows: 1.0, visits: 2.0 });
        assert_eq!(by_node.ranks[1].node.sent.rows, 1.0);
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
                let ins: f64 = traffic.ranks.iter().map(|rank| rank.node.received.rows + rank.cross.received.rows).sum();
                let total = traffic.total_rows();
                prop_assert_eq!(ins, total.in_node + total.cross);
                Ok(total)
            };
            let [visit, rank, node] = [rows(RowAggregation::Visit)?, rows(RowAggregation::Rank)?, rows(RowAggregation::Node)?];
            prop_assert!(node.cross <= rank.cross && rank.cross <= visit.cross && rank.in_node <= visit.in_node);
            // The rows that aggregation saves between nodes are forwarded inside, at most one row each.
            prop_assert!(node.in_node + node.cross <= rank.in_node + rank.cross + node.cross);
            prop_assert!(nodes > 1 || (visit.cross == 0.0 && node == rank));
            prop_assert!(nodes < 12 || (visit.in_node == 0.0 && node == rank));
        }
    }
}
