//! The use of a link budget, in words and as a document.

use crate::args::replan::MIB;
use evenkeel::plan::{LinkBudget, LinkUse};
use serde_json::{Value, json};

/// Bytes that each rank receives, and the resulting reduction of the peaks.
#[derive(Debug)]
pub(super) struct LinkUsage {
    pub(super) budget: LinkBudget,
    pub(super) used: LinkUse,
}

impl LinkUsage {
    /// Returns the first of the ranks that receive most, and its bytes.
    fn busiest_receiver(&self) -> (usize, u64) {
        let all = self.used.received.iter().copied().enumerate();
        all.reduce(|a, b| if b.1 > a.1 { b } else { a }).unwrap_or((0, 0))
    }

    pub(super) fn to_text(&self) -> String {
        let (rank, bytes) = self.busiest_receiver();
        let (before, after) = (self.used.peaks_before, self.used.peaks_after);
        format!(
            "link budget: {:.1} of {:.1} MiB used by the busiest receiver (rank {rank}), {:.2} MiB per expert; peaks of all \
             batches {before} -> {after} tokens\n",
            as_mib(bytes),
            as_mib(self.budget.bytes),
            as_mib(self.budget.expert_bytes),
        )
    }

    pub(super) fn to_json(&self) -> Value {
        let (rank, bytes) = self.busiest_receiver();
        json!({
            "budget_mib": as_mib(self.budget.bytes),
            "expert_mib": as_mib(self.budget.expert_bytes),
            "busiest_rank": rank,
            "busiest_mib": as_mib(bytes),
            "received_mib": self.used.received.iter().map(|&bytes| as_mib(bytes)).collect::<Vec<_>>(),
            "sum_of_peaks": { "before": self.used.peaks_before, "after": self.used.peaks_after },
        })
    }
}

fn as_mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}
