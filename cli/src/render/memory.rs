//! Memory cost of redundancy: one line for people, one object for documents.
//!
//! In: redundant slots and a model, stated or recognised by the shape of the trace. Out:
//! [`RedundancyMemory`].

use crate::args::trace::TraceArgs;
use evenkeel::cluster::Cluster;
use evenkeel::model::MoeModel;
use evenkeel::trace::Trace;
use serde_json::{Value, json};

/// The memory of redundant slots in a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RedundancyMemory {
    pub(crate) model: MoeModel,
    /// True if the model was stated, false if it was recognised by its shape.
    pub(crate) stated: bool,
    /// Redundant slots of all MoE layers and ranks together.
    pub(crate) slots: u64,
    pub(crate) ranks: usize,
}

impl RedundancyMemory {
    /// Returns the memory of a cluster's redundant slots in every MoE layer of the model; `None` if no model
    /// is known.
    pub(crate) fn for_cluster(
        stated: Option<MoeModel>,
        args: &TraceArgs,
        trace: &Trace,
        cluster: &Cluster,
    ) -> Option<Self> {
        let matching = || args.known_model(trace, MoeModel::slot_bytes);
        let model = stated.or_else(matching)?;
        let redundant = cluster.usable_slots().saturating_sub(trace.experts());
        let slots = redundant as u64 * model.layers as u64;
        Some(Self { model, stated: stated.is_some(), slots, ranks: cluster.ranks() })
    }

    /// Returns the bytes of one rank, on average.
    fn bytes_per_rank(&self) -> u64 {
        self.model.bytes_per_rank(self.slots, self.ranks)
    }

    /// Returns gigabytes per rank, for a table.
    pub(crate) fn table_cell(&self) -> String {
        format!("{:.2}", self.bytes_per_rank() as f64 / 1e9)
    }

    /// Returns one line with the derivation of the figure.
    pub(crate) fn render_text(&self) -> String {
        format!(
            "memory for redundancy: {} GB per rank ({} slots of {:.1} MB in all layers, on {} ranks), {}\n",
            self.table_cell(),
            self.slots,
            self.model.expert_bytes() as f64 / 1e6,
            self.ranks,
            self.model_source(),
        )
    }

    /// Returns the model and the way in which it was found.
    pub(crate) fn model_source(&self) -> String {
        if self.stated {
            return self.model.to_string();
        }
        format!("as {} ({}; --model states another)", self.model, self.model.shape_text())
    }

    pub(crate) fn render_json(&self) -> Value {
        json!({
            "model": self.model.to_string(),
            "stated": self.stated,
            "expert_bytes": self.model.expert_bytes(),
            "layers": self.model.layers,
            "redundant_slots": self.slots,
            "redundant_bytes_per_rank": self.bytes_per_rank(),
        })
    }
}
