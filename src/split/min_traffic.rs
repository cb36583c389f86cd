//! The exact split that keeps most tokens at home.
//!
//! In: every source's counts. Out: a split of the same least peak, whose tokens cross nodes as seldom as any such split
//! allows, and then ranks: min-cost flow inside the slack, by [`evenkeel_solver::objective::Traffic`].

use super::exact::{slots, take};
use super::{Split, SplitError};
use crate::cluster::Cluster;
use crate::place::Placement;
use evenkeel_solver::objective::{Keep, Traffic, TrafficSplit, verify_traffic};
use evenkeel_solver::{Hosts, Problem};

/// Splits of least traffic on one placement, batch after batch.
#[derive(Debug)]
pub struct Local {
    placement: Placement,
    traffic: Box<Traffic>,
    nodes: Vec<u32>,
    keep: Keep,
    answer: TrafficSplit,
    /// The slot of every (expert, host) pair.
    slot_of: Vec<u32>,
}

impl Local {
    /// Prepares a placement. `keep` says what comes before traffic: the peak alone, or the whole load vector.
    ///
    /// # Errors
    /// When the placement is not for as many ranks as the cluster has.
    pub fn new(placement: Placement, cluster: &Cluster, keep: Keep) -> Result<Self, SplitError> {
        let hosts: Hosts = placement.hosts()?;
        let nodes: Vec<u32> = (0..cluster.ranks()).map(|rank| cluster.node_of(rank) as u32).collect();
        let traffic = Box::new(Traffic::new(Problem::new(hosts), &nodes)?);
        let slot_of = slots(&placement, traffic.problem());
        Ok(Self { placement, traffic, nodes, keep, answer: TrafficSplit::default(), slot_of })
    }

    /// The placement that batches are split on.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Shares out one batch; `counts` is `[source][expert]`, one source per rank.
    ///
    /// # Errors
    /// When the counts are not `[R][E]` or their sum overflows.
    pub fn split(&mut self, counts: &[u64], split: &mut Split) -> Result<(), SplitError> {
        self.traffic.solve_into(counts, self.keep, &mut self.answer)?;
        split.quotas.clear();
        split.quotas.resize(self.placement.slots().len(), 0);
        take(&self.answer.split, &self.slot_of, split);
        Ok(())
    }

    /// Tokens that the last split serves off their own node, and off their own rank (those off their node included).
    pub fn off(&self) -> (u64, u64) {
        (self.answer.off_node, self.answer.off_rank)
    }

    /// Checks the last answer: feasible, of least peak, and by its prices of least traffic.
    ///
    /// # Errors
    /// [`SplitError::Broken`] says what does not hold.
    pub fn check(&self, counts: &[u64]) -> Result<(), SplitError> {
        verify_traffic(self.traffic.problem(), &self.nodes, counts, self.keep, &self.answer)
            .map_err(|e| SplitError::Broken { method: super::Method::Exact, reason: e.to_string() })
    }
}
