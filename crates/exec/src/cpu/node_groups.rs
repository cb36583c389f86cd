//! Groups of ranks, and sums of the answers of a group: tokens cross to a group once, and one row comes back.
//!
//! The **gateway** of a source in another group is the rank there with the same index as the source in its
//! own group. It receives the source's tokens, forwards them within its group, and sums the answers (the
//! method of DeepSeek-V3 and DeepEP between nodes). Without aggregation all ranks form one group, and nothing
//! is forwarded.

use crate::backend::Aggregate;
use crate::weights::Matrix;
use evenkeel::cluster::Cluster;

/// The partition of the ranks into groups.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeGroups {
    /// Number of groups.
    pub(super) count: usize,
    /// Ranks per group.
    pub(super) size: usize,
}

impl NodeGroups {
    pub(super) fn from_cluster(cluster: &Cluster, aggregate: Aggregate) -> Self {
        let count = match aggregate {
            Aggregate::None => 1,
            Aggregate::Node => cluster.nodes(),
        };
        Self { count, size: cluster.ranks() / count }
    }

    /// Returns the group of a rank, and its index there.
    pub(super) fn position_of(self, rank: usize) -> (usize, usize) {
        (rank / self.size, rank % self.size)
    }

    /// Returns the rank with an index in a group.
    pub(super) fn rank_at(self, group: usize, index: usize) -> usize {
        group * self.size + index
    }

    /// Returns all groups except one.
    pub(super) fn other_groups(self, group: usize) -> impl Iterator<Item = usize> {
        (0..self.count).filter(move |&other| other != group)
    }
}

/// An accumulator for rows of several answers.
#[derive(Debug)]
pub(super) struct AnswerSum {
    sum: Vec<f32>,
    row: Vec<f32>,
}

impl AnswerSum {
    pub(super) fn new(hidden: usize) -> Self {
        Self { sum: vec![0.0; hidden], row: vec![0.0; hidden] }
    }

    /// Adds a row of an answer.
    pub(super) fn add_answer(&mut self, answer: &Matrix, row: usize) {
        answer.read(row * self.row.len(), &mut self.row);
        self.sum.iter_mut().zip(&self.row).for_each(|(sum, &x)| *sum += x);
    }

    /// Appends the sum to `out`, rounded to its type, and resets it.
    pub(super) fn flush_into(&mut self, out: &mut Matrix) {
        out.push(&self.sum);
        self.sum.fill(0.0);
    }
}
