//! Exact split with the least traffic.
//!
//! In: the counts of every source. Out: a split of the lowest peak. Among all such splits, the fewest tokens
//! cross nodes, and then the fewest cross ranks. The method is min-cost flow inside the slack, by
//! [`evenkeel_solver::objective::TrafficSplitter`].

use super::exact::{copy_to_slots, slots_of_hosts};
use super::{Split, SplitError};
use crate::cluster::Cluster;
use crate::place::Placement;
use evenkeel_solver::objective::{PrimaryObjective, TrafficSplit, TrafficSplitter, verify_traffic};
use evenkeel_solver::{Hosts, Problem};

/// Tokens that a split serves away from their source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CrossingTokens {
    /// Tokens that are served off their own node.
    pub off_node: u64,
    /// Tokens that are served off their own rank, including those off their node.
    pub off_rank: u64,
}

/// Engine of [`SplitterBuilder::least_traffic`](super::SplitterBuilder::least_traffic).
#[derive(Debug)]
pub(super) struct LeastTrafficEngine {
    traffic: Box<TrafficSplitter>,
    nodes: Vec<u32>,
    keep: PrimaryObjective,
    answer: TrafficSplit,
    /// Slot of every (expert, host) pair.
    slot_of: Vec<u32>,
}

impl LeastTrafficEngine {
    pub(super) fn new(
        placement: &Placement,
        cluster: &Cluster,
        keep: PrimaryObjective,
    ) -> Result<Self, SplitError> {
        let hosts: Hosts = placement.hosts()?;
        let nodes: Vec<u32> = (0..cluster.ranks()).map(|rank| cluster.node_of(rank) as u32).collect();
        let traffic = Box::new(TrafficSplitter::new(Problem::new(hosts), &nodes)?);
        let slot_of = slots_of_hosts(placement, traffic.problem());
        Ok(Self { traffic, nodes, keep, answer: TrafficSplit::default(), slot_of })
    }

    /// Splits one batch. `counts` is `[source][expert]`. All quotas of `split` are zero before.
    pub(super) fn split(&mut self, counts: &[u64], split: &mut Split) -> Result<(), SplitError> {
        self.traffic.solve_into(counts, self.keep, &mut self.answer)?;
        copy_to_slots(&self.answer.split, &self.slot_of, split);
        let (off_node, off_rank) = (self.answer.off_node, self.answer.off_rank);
        split.crossing = Some(CrossingTokens { off_node, off_rank });
        Ok(())
    }

    /// Checks that the last result is feasible and has the lowest peak. Its prices must prove the least
    /// traffic.
    pub(super) fn check(&self, counts: &[u64]) -> Result<(), String> {
        verify_traffic(self.traffic.problem(), &self.nodes, counts, self.keep, &self.answer)
            .map_err(|e| e.to_string())
    }
}
