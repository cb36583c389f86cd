//! Exchange between nodes by the normal kernels of DeepEP.
//!
//! In: an [`ExchangeWork`] of several nodes. Out: microseconds of one phase. A token sends one row to every
//! node that it visits. A rank there forwards the row inside its node.

use super::exchange::{CrossRate, ExchangePhase, ExchangeRows, ExchangeWork, RowBytes};
use super::terms::{ParameterMut, gigabyte_us, parameters_mut};
use serde::{Deserialize, Serialize};

/// Largest number of nodes to which the full model was fitted.
const FEW_NODES: u64 = 4;

/// Exchange by normal kernels between nodes, with a row per node.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NodeExchange {
    /// Phase of the exchange.
    pub phase: ExchangePhase,
    /// Bytes of a row.
    pub row: RowBytes,
    /// Fixed time for two nodes.
    pub cross_alpha_us: f64,
    /// Growth of the fixed time per further node, as a share.
    pub cross_alpha_per_node: f64,
    /// Rate of a rank between nodes, gigabytes per second.
    pub cross_gb_s: f64,
    /// Rate at which a rank forwards inside its node, gigabytes per second.
    pub forward_gb_s: f64,
    /// Rate of one multiprocessor over all rows, gigabytes per second.
    pub gb_s_per_sm: f64,
    /// Time and rate for more than four nodes, as measured with eight.
    pub wide: CrossRate,
}

impl NodeExchange {
    /// Returns the rows of a rank if experts are drawn evenly. `node` counts the forwarded rows.
    pub fn even_rows(&self, work: &ExchangeWork) -> ExchangeRows {
        let (ranks, nodes) = (work.ranks.max(1) as f64, work.nodes.max(1) as f64);
        let (experts, tokens) = (work.experts as f64, work.tokens as f64);
        let group = work.node_ranks();
        ExchangeRows {
            node: tokens * ranks * work.hit(experts / ranks) * (group - 1.0) / group,
            cross: tokens * (nodes - 1.0) * work.hit(experts / nodes),
        }
    }

    /// Returns the time of a phase, microseconds.
    pub fn time_us(&self, work: &ExchangeWork) -> f64 {
        self.time_of_rows_us(work, self.even_rows(work))
    }

    /// Returns the time of a phase with these rows on the slowest rank, microseconds.
    pub fn time_of_rows_us(&self, work: &ExchangeWork, rows: ExchangeRows) -> f64 {
        let row = self.row.bytes(work.hidden);
        let (node, cross) = (rows.node * row, rows.cross * row);
        if work.nodes > FEW_NODES {
            return self.wide.alpha_us + gigabyte_us(cross, self.wide.gb_s);
        }
        let further = work.nodes.saturating_sub(2) as f64;
        let copied = gigabyte_us(node + cross, self.gb_s_per_sm * work.multiprocessors.max(1) as f64);
        let sent = gigabyte_us(node, self.forward_gb_s).max(gigabyte_us(cross, self.cross_gb_s));
        self.cross_alpha_us * (1.0 + self.cross_alpha_per_node * further) + sent.max(copied)
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        let mut parameters = parameters_mut!(
            self; cross_alpha_us, cross_alpha_per_node, cross_gb_s, forward_gb_s, gb_s_per_sm
        );
        parameters.extend([("wide_alpha_us", &mut self.wide.alpha_us), ("wide_gb_s", &mut self.wide.gb_s)]);
        parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::tests::work_of_deepseek;

    #[test]
    fn a_row_per_node_by_hand() {
        let kernel = NodeExchange {
            phase: ExchangePhase::Combine,
            row: RowBytes { per_hidden: 2.0, header: 0.0 },
            cross_alpha_us: 60.0,
            cross_alpha_per_node: 0.25,
            cross_gb_s: 50.0,
            forward_gb_s: 200.0,
            gb_s_per_sm: 10.0,
            wide: CrossRate { alpha_us: 120.0, gb_s: 15.0 },
        };
        // One expert per token, four nodes: 3/4 of 128 tokens leave, and 7/8 of 128 are forwarded.
        let work = ExchangeWork { top_k: 1, ..work_of_deepseek(32, 4) };
        let rows = kernel.even_rows(&work);
        assert!((rows.node - 112.0).abs() < 1e-9 && (rows.cross - 96.0).abs() < 1e-9, "{rows:?}");
        let cross = 96.0 * 14_336.0 / 50e3;
        assert!((kernel.time_us(&work) - (90.0 + cross)).abs() < 1e-9);
        // Eight nodes, of which a token visits four: half of 7/8 if it has one expert.
        let limited =
            ExchangeWork { node_limit: Some(4), ..ExchangeWork { top_k: 1, ..work_of_deepseek(64, 8) } };
        let rows = kernel.even_rows(&limited);
        assert!((rows.cross - 128.0 * 7.0 / 8.0).abs() < 1e-9, "{rows:?}");
        assert!((kernel.time_us(&limited) - (120.0 + 112.0 * 14_336.0 / 15e3)).abs() < 1e-9);
    }
}
