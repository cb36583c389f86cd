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

/// Splitter of successive batches with least traffic, on one placement.
#[derive(Debug)]
pub struct MinTrafficSplitter {
    placement: Placement,
    traffic: Box<TrafficSplitter>,
    nodes: Vec<u32>,
    keep: PrimaryObjective,
    answer: TrafficSplit,
    /// Slot of every (expert, host) pair.
    slot_of: Vec<u32>,
}

impl MinTrafficSplitter {
    /// Prepares a placement. `keep` selects the objective before traffic: the peak alone, or the whole load
    /// vector.
    ///
    /// # Errors
    /// Fails if placement and cluster differ in their number of ranks.
    pub fn new(placement: Placement, cluster: &Cluster, keep: PrimaryObjective) -> Result<Self, SplitError> {
        let hosts: Hosts = placement.hosts()?;
        let nodes: Vec<u32> = (0..cluster.ranks()).map(|rank| cluster.node_of(rank) as u32).collect();
        let traffic = Box::new(TrafficSplitter::new(Problem::new(hosts), &nodes)?);
        let slot_of = slots_of_hosts(&placement, traffic.problem());
        Ok(Self { placement, traffic, nodes, keep, answer: TrafficSplit::default(), slot_of })
    }

    /// Returns the placement on which batches are split.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Splits one batch. `counts` is `[source][expert]`, with one source per rank.
    ///
    /// # Errors
    /// Fails if the counts are not `[R][E]`, or if their sum overflows.
    pub fn split(&mut self, counts: &[u64], split: &mut Split) -> Result<(), SplitError> {
        self.traffic.solve_into(counts, self.keep, &mut self.answer)?;
        split.quotas.clear();
        split.quotas.resize(self.placement.slots().len(), 0);
        copy_to_slots(&self.answer.split, &self.slot_of, split);
        Ok(())
    }

    /// Returns the tokens that the last split serves off their own node, and those off their own rank. The
    /// second number includes the first.
    pub fn crossing_tokens(&self) -> (u64, u64) {
        (self.answer.off_node, self.answer.off_rank)
    }

    /// Checks that the last result is feasible and has the lowest peak. Its prices must prove the least
    /// traffic.
    ///
    /// # Errors
    /// Returns [`SplitError::Broken`] with the violated property.
    pub fn check(&self, counts: &[u64]) -> Result<(), SplitError> {
        verify_traffic(self.traffic.problem(), &self.nodes, counts, self.keep, &self.answer)
            .map_err(|e| SplitError::Broken { method: super::SplitMethod::Exact, reason: e.to_string() })
    }
}
