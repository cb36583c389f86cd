//! What a link budget was spent on: in words and as a document.

use super::past_args::MIB;
use evenkeel::plan::{LinkBudget, Linked};
use serde_json::{Value, json};

/// What each rank receives, and what that saves.
#[derive(Debug)]
pub(super) struct Links {
    budget: LinkBudget,
    /// Bytes, by rank.
    received: Vec<u64>,
    /// Sum of exact peaks, in tokens: before and after.
    peaks: [u64; 2],
}

impl Links {
    pub(super) fn of(linked: &Linked, budget: LinkBudget) -> Self {
        Self { budget, received: linked.received.clone(), peaks: linked.peaks }
    }

    /// The first of the ranks that receive most, and its bytes.
    fn busiest(&self) -> (usize, u64) {
        let all = self.received.iter().copied().enumerate();
        all.reduce(|a, b| if b.1 > a.1 { b } else { a }).unwrap_or((0, 0))
    }

    pub(super) fn words(&self) -> String {
        let (rank, bytes) = self.busiest();
        let [before, after] = self.peaks;
        format!(
            "link budget: {:.1} of {:.1} MiB used by the busiest receiver (rank {rank}), {:.2} MiB per expert; peaks of all \
             batches {before} -> {after} tokens\n",
            mib(bytes),
            mib(self.budget.bytes),
            mib(self.budget.expert_bytes),
        )
    }

    pub(super) fn document(&self) -> Value {
        let (rank, bytes) = self.busiest();
        json!({
            "budget_mib": mib(self.budget.bytes),
            "expert_mib": mib(self.budget.expert_bytes),
            "busiest_rank": rank,
            "busiest_mib": mib(bytes),
            "received_mib": self.received.iter().map(|&bytes| mib(bytes)).collect::<Vec<_>>(),
            "sum_of_peaks": { "before": self.peaks[0], "after": self.peaks[1] },
        })
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}
