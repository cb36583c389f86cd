//! Exchange by the kernels of TensorRT-LLM over an NVLink domain of several trays.
//!
//! In: an [`ExchangeWork`]. Out: microseconds of one phase.

use super::exchange::{ExchangePhase, ExchangeRows, ExchangeWork, RowBytes};
use super::terms::{ParameterMut, gigabyte_us, parameters_mut};
use serde::{Deserialize, Serialize};

/// GPUs of a tray.
const TRAY_RANKS: u64 = 4;

/// Way in which sending and counting overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NvlinkSides {
    /// Ranks write into the memory of others. Sending and work per token overlap.
    One,
    /// Ranks send and receive. Sending and work per token add up.
    Two,
}

/// Exchange over NVLink, with a row per rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct NvlinkExchange {
    /// Phase of the exchange.
    pub phase: ExchangePhase,
    /// Way in which sending and counting overlap.
    pub sides: NvlinkSides,
    /// Bytes of a row.
    pub row: RowBytes,
    /// Fixed time.
    pub alpha_us: f64,
    /// Time per rank.
    pub message_us: f64,
    /// Fixed time if the ranks are on several trays.
    pub trays_us: f64,
    /// Rate of a rank's links, gigabytes per second.
    pub gb_s: f64,
    /// Time per token, nanoseconds.
    pub token_ns: f64,
}

impl NvlinkExchange {
    /// Returns the rows of a rank if every token visits as many ranks as it can, and all ranks equally.
    pub fn even_rows(&self, work: &ExchangeWork) -> ExchangeRows {
        let ranks = work.ranks.max(1);
        let per_rank = (work.tokens * work.top_k.min(ranks)).div_ceil(ranks);
        ExchangeRows { node: (per_rank * (ranks - 1)) as f64, cross: 0.0 }
    }

    /// Returns the time of a phase, microseconds.
    pub fn time_us(&self, work: &ExchangeWork) -> f64 {
        self.time_of_rows_us(work, self.even_rows(work))
    }

    /// Returns the time of a phase with these rows on the slowest rank, microseconds.
    pub fn time_of_rows_us(&self, work: &ExchangeWork, rows: ExchangeRows) -> f64 {
        let sent = gigabyte_us(rows.node * self.row.bytes(work.hidden), self.gb_s);
        let counted = work.tokens as f64 * self.token_ns / 1e3;
        let moved = match self.sides {
            NvlinkSides::One => sent.max(counted),
            NvlinkSides::Two => sent + counted,
        };
        let trays = if work.ranks > TRAY_RANKS { self.trays_us } else { 0.0 };
        self.alpha_us + self.message_us * work.ranks as f64 + trays + moved
    }

    pub(crate) fn parameters_mut(&mut self) -> Vec<ParameterMut<'_>> {
        parameters_mut!(self; alpha_us, message_us, trays_us, gb_s, token_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::tests::work_of_deepseek;

    #[test]
    fn one_and_two_sides_by_hand() {
        let mut kernel = NvlinkExchange {
            phase: ExchangePhase::Dispatch,
            sides: NvlinkSides::One,
            row: RowBytes { per_hidden: 1.0, header: 64.0 },
            alpha_us: 10.0,
            message_us: 0.5,
            trays_us: 2.0,
            gb_s: 700.0,
            token_ns: 10.0,
        };
        // 16 ranks: a token visits half of them, so 64 rows go to each of 15.
        let work = work_of_deepseek(16, 1);
        let sent = 64.0 * 15.0 * 7232.0 / 700e3;
        assert!((kernel.time_us(&work) - (10.0 + 8.0 + 2.0 + sent)).abs() < 1e-9);
        kernel.sides = NvlinkSides::Two;
        assert!((kernel.time_us(&work) - (10.0 + 8.0 + 2.0 + sent + 1.28)).abs() < 1e-9);
        // Four ranks of one tray: every token visits every rank.
        let sent = 128.0 * 3.0 * 7232.0 / 700e3;
        assert!((kernel.time_us(&work_of_deepseek(4, 1)) - (10.0 + 2.0 + sent + 1.28)).abs() < 1e-9);
    }
}
