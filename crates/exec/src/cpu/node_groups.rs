//! Ranks in groups, and sums of what the ranks of a group answer: tokens cross to a group once, and one row comes back.
//!
//! The rank of a group with the same index as the source in its own is its **gateway** there: it takes the source's tokens, hands
//! them on inside its group, and sums the answers (DeepSeek-V3's and DeepEP's way between nodes). Without aggregation all ranks
//! are one group, and there is nothing to hand on.

use crate::cluster::Cluster;
use crate::exec::backend::Aggregate;
use crate::exec::weights::{Dtype, Matrix};

/// How ranks are grouped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Groups {
    /// Groups.
    pub(super) count: usize,
    /// Ranks of each.
    pub(super) size: usize,
}

impl Groups {
    pub(super) fn of(cluster: &Cluster, aggregate: Aggregate) -> Self {
        let count = match aggregate {
            Aggregate::None => 1,
            Aggregate::Node => cluster.nodes(),
        };
        Self { count, size: cluster.ranks() / count }
    }

    /// The group of a rank, and its index there.
    pub(super) fn place(self, rank: usize) -> (usize, usize) {
        (rank / self.size, rank % self.size)
    }

    /// The rank of a group with an index.
    pub(super) fn rank(self, group: usize, index: usize) -> usize {
        group * self.size + index
    }

    /// All groups but one.
    pub(super) fn but(self, group: usize) -> impl Iterator<Item = usize> {
        (0..self.count).filter(move |&other| other != group)
    }
}

/// Adds up rows of several answers.
#[derive(Debug)]
pub(super) struct Sum {
    sum: Vec<f32>,
    row: Vec<f32>,
}

impl Sum {
    pub(super) fn new(hidden: usize) -> Self {
        Self { sum: vec![0.0; hidden], row: vec![0.0; hidden] }
    }

    /// Adds a row of an answer.
    pub(super) fn add(&mut self, answer: &Matrix, row: usize) {
        answer.read(row * self.row.len(), &mut self.row);
        self.sum.iter_mut().zip(&self.row).for_each(|(sum, &x)| *sum += x);
    }

    /// Rounds the sum as it travels, and begins anew.
    pub(super) fn end(&mut self, out: &mut Matrix) {
        out.push(&self.sum);
        self.sum.fill(0.0);
    }
}

/// What comes back to `source` where the answers of every other group are summed there: per rank of its own group and per other
/// group, in the order of ranks, which tokens and their rows. `sent` and `answers` are `[R]`, tokens ascending.
pub(super) fn summed(
    groups: Groups,
    source: usize,
    sent: &[Vec<u32>],
    answers: Vec<Matrix>,
    hidden: usize,
    dtype: Dtype,
) -> (Vec<Vec<u32>>, Vec<Matrix>) {
    let (mut tokens, mut rows) = (Vec::new(), Vec::new());
    let mut sum = Sum::new(hidden);
    let mut answers = answers.into_iter();
    for (group, sent) in sent.chunks(groups.size).enumerate() {
        let answers: Vec<Matrix> = answers.by_ref().take(groups.size).collect();
        if group == groups.place(source).0 {
            tokens.extend_from_slice(sent);
            rows.extend(answers);
            continue;
        }
        let mut all: Vec<u32> = sent.concat();
        all.sort_unstable();
        all.dedup();
        let (mut next, mut of_group) =
            (vec![0; groups.size], Matrix::with_capacity(dtype, all.len() * hidden));
        for token in &all {
            for ((sent, answer), next) in sent.iter().zip(&answers).zip(&mut next) {
                if sent.get(*next) == Some(token) {
                    sum.add(answer, *next);
                    *next += 1;
                }
            }
            sum.end(&mut of_group);
        }
        tokens.push(all);
        rows.push(of_group);
    }
    (tokens, rows)
}
