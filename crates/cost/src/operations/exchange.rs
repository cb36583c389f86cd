//! Exchange of tokens between expert-parallel ranks, by the kernels of DeepEP.
//!
//! In: an [`ExchangeWork`]. Out: microseconds of one phase. Low-latency kernels send a row per visit of an
//! expert. Normal kernels send a row per rank. [`super::NodeExchange`] has the normal kernels between nodes.

use super::terms::{ParameterMut, gigabyte_us, hit_probability, parameters_mut};
use crate::hardware::Hardware;
use serde::{Deserialize, Serialize};

/// Phase of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ExchangePhase {
    /// Counting and indexing before the tokens are sent, if it is a kernel of its own.
    Prepare,
    /// Tokens go to the experts.
    Dispatch,
    /// Answers go back.
    Combine,
    /// Answers go back in a narrower number format.
    CombineLowPrecision,
}

/// Exchange in which all ranks have the same number of tokens, and experts are drawn evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExchangeWork {
    /// Tokens per rank.
    pub tokens: u64,
    /// Width of a token.
    pub hidden: u64,
    /// Experts per token.
    pub top_k: u64,
    /// Experts of all ranks, with replicas.
    pub experts: u64,
    /// Ranks of all nodes.
    pub ranks: u64,
    /// Nodes.
    pub nodes: u64,
    /// Nodes that a token may visit, if the router limits them (DeepSeek-V3: 4).
    pub node_limit: Option<u64>,
    /// Multiprocessors that a normal kernel uses. DeepEP's default is 20.
    pub multiprocessors: u64,
}

/// Rows that the slowest rank sends or receives, whichever is more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExchangeRows {
    /// Rows to other ranks of the node.
    pub node: f64,
    /// Rows to other nodes.
    pub cross: f64,
}

/// Bytes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowBytes {
    /// Bytes per element of the hidden width, with its share of the scales.
    pub per_hidden: f64,
    /// Bytes of the header.
    pub header: f64,
}

impl RowBytes {
    /// Returns the bytes of a row.
    pub fn bytes(&self, hidden: u64) -> f64 {
        self.per_hidden * hidden as f64 + self.header
    }
}

impl ExchangeWork {
    /// Returns the ranks of a node.
    pub(super) fn node_ranks(&self) -> f64 {
        (self.ranks as f64 / self.nodes.max(1) as f64).max(1.0)
    }

    /// Returns the nodes that a token can visit.
    pub(super) fn visited_nodes(&self) -> f64 {
        let nodes = self.nodes.max(1);
        self.node_limit.map_or(nodes, |limit| limit.clamp(1, nodes)) as f64
    }

    /// Returns the probability that a token visits a part of the experts. The part lies in one node.
    pub(super) fn hit(&self, part: f64) -> f64 {
        let share = self.visited_nodes() / self.nodes.max(1) as f64;
        share * hit_probability(self.experts as f64 * share, part, self.top_k)
    }
}

/// Exchange by low-latency kernels, with a row per visit of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LowLatencyExchange {
    /// Phase of the exchange.
    pub phase: ExchangePhase,
    /// Bytes of a row.
    pub row: RowBytes,
    /// Fixed time.
    pub alpha_us: f64,
    /// Time per expert, for flags and counts.
    pub message_us: f64,
    /// Rate inside a node, gigabytes per second.
    pub node_gb_s: f64,
    /// Time per token on a multiprocessor. A multiprocessor sends the rows of one expert.
    pub token_us: f64,
    /// Time and rate between nodes, if they were measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cross: Option<CrossRate>,
}

/// Fixed time and rate of a rank's link between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossRate {
    /// Fixed time.
    pub alpha_us: f64,
    /// Rate of a rank, gigabytes per second.
    pub gb_s: f64,
}

impl LowLatencyExchange {
    /// Returns the rows of a rank if experts are drawn evenly.
    pub fn even_rows(&self, work: &ExchangeWork) -> ExchangeRows {
        let visits = (work.tokens * work.top_k) as f64;
        let ranks = work.ranks.max(1) as f64;
        let other_ranks = (work.node_ranks() - 1.0) / ranks;
        ExchangeRows { node: visits * other_ranks, cross: visits * (ranks - work.node_ranks()) / ranks }
    }

    /// Returns the time of a phase, microseconds.
    pub fn time_us(&self, work: &ExchangeWork, hardware: &Hardware) -> f64 {
        self.time_of_rows_us(work, self.even_rows(work), hardware)
    }

    /// Returns the time of a phase with these rows on the slowest rank, microseconds.
    pub fn time_of_rows_us(&self, work: &ExchangeWork, rows: ExchangeRows, hardware: &Hardware) -> f64 {
        let row = self.row.bytes(work.hidden);
        let experts = work.experts.max(1);
        let rounds = experts.div_ceil(hardware.multiprocessors.max(1));
        let senders = experts.div_ceil(rounds) as f64;
        let sending = work.tokens as f64 * self.token_us / senders;
        let messages = self.message_us * experts as f64;
        let node = self.alpha_us + messages + gigabyte_us(rows.node * row, self.node_gb_s).max(sending);
        match self.cross {
            Some(cross) if work.nodes > 1 => {
                node.max(cross.alpha_us + messages + gigabyte_us(rows.cross * row, cross.gb_s))
            }
            _ => node,
        }
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        let mut parameters = parameters_mut!(self; alpha_us, message_us, node_gb_s, token_us);
        if let Some(cross) = &mut self.cross {
            parameters.extend([("cross_alpha_us", &mut cross.alpha_us), ("cross_gb_s", &mut cross.gb_s)]);
        }
        parameters
    }
}

/// Exchange by normal kernels inside a node, with a row per rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NormalExchange {
    /// Phase of the exchange.
    pub phase: ExchangePhase,
    /// Bytes of a row.
    pub row: RowBytes,
    /// Fixed time.
    pub alpha_us: f64,
    /// Rate of a rank's links, gigabytes per second.
    pub node_gb_s: f64,
    /// Rate of one multiprocessor, gigabytes per second, if tables state their number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node_gb_s_per_sm: Option<f64>,
    /// Further bytes per row.
    pub row_bytes: f64,
    /// Further bytes per token.
    pub token_bytes: f64,
}

impl NormalExchange {
    /// Returns the rows of a rank if experts are drawn evenly.
    pub fn even_rows(&self, work: &ExchangeWork) -> ExchangeRows {
        let ranks = work.ranks.max(1) as f64;
        let hit = hit_probability(work.experts as f64, work.experts as f64 / ranks, work.top_k);
        ExchangeRows { node: work.tokens as f64 * (ranks - 1.0) * hit, cross: 0.0 }
    }

    /// Returns the time of a phase, microseconds.
    pub fn time_us(&self, work: &ExchangeWork) -> f64 {
        self.time_of_rows_us(work, self.even_rows(work))
    }

    /// Returns the time of a phase with these rows on the slowest rank, microseconds.
    pub fn time_of_rows_us(&self, work: &ExchangeWork, rows: ExchangeRows) -> f64 {
        let rate = match self.node_gb_s_per_sm {
            Some(per_sm) => {
                let copied = per_sm * work.multiprocessors.max(1) as f64;
                1.0 / (1.0 / self.node_gb_s + 1.0 / copied)
            }
            None => self.node_gb_s,
        };
        let row = self.row.bytes(work.hidden) + self.row_bytes;
        self.alpha_us + gigabyte_us(rows.node * row + work.tokens as f64 * self.token_bytes, rate)
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        let mut parameters = parameters_mut!(self; alpha_us, node_gb_s, row_bytes, token_bytes);
        parameters.extend(self.node_gb_s_per_sm.as_mut().map(|rate| ("node_gb_s_per_sm", rate)));
        parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::tests::{hardware, work_of_deepseek};

    #[test]
    fn a_row_per_visit_by_hand() {
        let mut kernel = LowLatencyExchange {
            phase: ExchangePhase::Dispatch,
            row: RowBytes { per_hidden: 2.0, header: 0.0 },
            alpha_us: 10.0,
            message_us: 0.02,
            node_gb_s: 200.0,
            token_us: 0.0,
            cross: None,
        };
        // 128 x 8 visits, 7 of 8 to other ranks: 896 rows of 14336 bytes at 200 GB/s.
        let work = work_of_deepseek(8, 1);
        assert!((kernel.time_us(&work, &hardware()) - (10.0 + 5.12 + 64.225_28)).abs() < 1e-9);
        // 132 multiprocessors send in 2 rounds of 128 experts.
        kernel.token_us = 100.0;
        assert!((kernel.time_us(&work, &hardware()) - (10.0 + 5.12 + 100.0)).abs() < 1e-9);
        kernel.cross = Some(CrossRate { alpha_us: 20.0, gb_s: 50.0 });
        // 16 ranks on 2 nodes: 512 rows to the other node.
        let both = kernel.time_us(&work_of_deepseek(16, 2), &hardware());
        assert!((both - (20.0 + 5.12 + 512.0 * 14_336.0 / 50e3)).abs() < 1e-9);
    }

    #[test]
    fn a_row_per_rank_by_hand() {
        let kernel = NormalExchange {
            phase: ExchangePhase::Combine,
            row: RowBytes { per_hidden: 2.0, header: 0.0 },
            alpha_us: 30.0,
            node_gb_s: 300.0,
            node_gb_s_per_sm: Some(15.0),
            row_bytes: 664.0,
            token_bytes: 1000.0,
        };
        // One expert per token: 1/8 of the tokens visit each of 7 other ranks. Both rates give 150 GB/s.
        let work = ExchangeWork { top_k: 1, ..work_of_deepseek(8, 1) };
        assert!((kernel.even_rows(&work).node - 112.0).abs() < 1e-9);
        let bytes = 112.0 * 15_000.0 + 128.0 * 1000.0;
        assert!((kernel.time_us(&work) - (30.0 + bytes / 150e3)).abs() < 1e-9);
    }
}
