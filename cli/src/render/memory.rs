//! What redundancy costs in memory: one line for people, one object for documents.
//!
//! In: a model, stated or known by the shape of the trace, and redundant slots. Out: [`Memory`].

use super::trace_args::TraceArgs;
use evenkeel::cluster::Cluster;
use evenkeel::model::Model;
use evenkeel::trace::Trace;
use serde_json::{Value, json};

/// The memory of redundant slots in a model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    pub(super) model: Model,
    /// Whether the model was stated, and not found by its shape.
    pub(super) stated: bool,
    /// Redundant slots of all MoE layers and ranks together.
    pub(super) slots: u64,
    pub(super) ranks: usize,
}

impl Memory {
    /// Returns the memory of a cluster's redundant slots in every MoE layer of the model; none where no model is known.
    pub(super) fn of(
        stated: Option<Model>,
        args: &TraceArgs,
        trace: &Trace,
        cluster: &Cluster,
    ) -> Option<Self> {
        let known = || args.known_model(trace, Model::slot_bytes);
        let model = stated.or_else(known)?;
        let redundant = cluster.usable_slots().saturating_sub(trace.experts());
        let slots = redundant as u64 * model.layers as u64;
        Some(Self { model, stated: stated.is_some(), slots, ranks: cluster.ranks() })
    }

    /// Returns the bytes of one rank, on average.
    pub(super) fn per_rank(&self) -> u64 {
        self.model.bytes_per_rank(self.slots, self.ranks)
    }

    /// Returns gigabytes per rank, for a table.
    pub(super) fn cell(&self) -> String {
        format!("{:.2}", self.per_rank() as f64 / 1e9)
    }

    /// Returns one line with how the figure comes about.
    pub(super) fn words(&self) -> String {
        format!(
            "memory for redundancy: {} GB per rank ({} slots of {:.1} MB in all layers, on {} ranks), {}\n",
            self.cell(),
            self.slots,
            self.model.expert_bytes() as f64 / 1e6,
            self.ranks,
            self.whose(),
        )
    }

    /// Returns the model, and how it was found.
    pub(super) fn whose(&self) -> String {
        if self.stated {
            return self.model.to_string();
        }
        format!("as {} ({}; --model states another)", self.model, self.model.shape())
    }

    pub(super) fn document(&self) -> Value {
        json!({
            "model": self.model.to_string(),
            "stated": self.stated,
            "expert_bytes": self.model.expert_bytes(),
            "layers": self.model.layers,
            "redundant_slots": self.slots,
            "redundant_bytes_per_rank": self.per_rank(),
        })
    }
}
