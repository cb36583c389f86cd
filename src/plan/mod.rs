//! The plan artefact: placements of all layers with where they came from and what to expect of them.
//!
//! A plan is one JSON document, `"format": "evenkeel.plan/1"`. Reading checks everything that can be checked
//! without the trace; writing and reading again gives the same plan.

mod budget;
mod given;
mod link;
mod make;
mod past;
mod within;

pub use crate::split::{Horizon, Verdict};
pub use budget::{Level, spend};
pub use given::Given;
pub use link::{LinkBudget, Linked};
pub use make::{Made, Origin};
pub use past::{Changed, Past};

use crate::cluster::{Cluster, ClusterError};
use crate::place::{Placement, PlacementError};
use crate::simulate::Summary;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use thiserror::Error;

/// The only format that this version reads and writes.
pub const FORMAT: &str = "evenkeel.plan/1";

/// Placements for all busy layers of a model on one cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The group that the plan is for.
    pub cluster: Cluster,
    /// Logical experts per layer, `E`.
    pub experts: usize,
    /// The planned layers, by ascending real id.
    pub layers: Vec<LayerPlan>,
    /// Layers of the model without routed tokens (dense layers, mostly), ascending real ids: no placement.
    pub idle_layers: Vec<u32>,
    /// Where the plan came from.
    pub provenance: Provenance,
}

/// One layer of a [`Plan`].
#[derive(Debug, Clone, PartialEq)]
pub struct LayerPlan {
    /// The layer's real id.
    pub layer: u32,
    /// Where its experts live.
    pub placement: Placement,
    /// Mean of peak over mean to expect with the split named in [`Provenance::split`].
    pub imbalance: f64,
    /// Mean of ceil(total / ranks) over mean: no placement can do better on those batches.
    pub bound: f64,
}

/// Where a [`Plan`] came from and what its figures mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Version of evenkeel that made the plan.
    pub version: String,
    /// The placement policy.
    pub policy: String,
    /// The runtime that the plan is for ([`Target`](crate::export::Target)), where it was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The split that the expected imbalance is for: the target's.
    pub split: String,
    /// Seed of everything random in reading and planning.
    pub seed: u64,
    /// How batches were formed, in words.
    pub batches: String,
    /// Batches (of one layer each) behind the expected imbalance.
    pub judged: usize,
    /// Expected peak over mean, over all judged batches.
    pub imbalance: Summary,
    /// The same under every split that may run, with EPLB's placement for the same loads as comparison. Empty in plans of
    /// earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub figures: Vec<SplitFigure>,
    /// The trace files.
    pub trace: Vec<TraceFile>,
}

/// What a plan and EPLB's placement make of the judged batches under one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitFigure {
    /// The split method's name.
    pub split: String,
    /// Peak over mean on the plan's placements.
    pub imbalance: Summary,
    /// Peak over mean on EPLB's; `None` where EPLB cannot serve the shape.
    pub eplb: Option<Summary>,
}

/// A trace file that a plan was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceFile {
    /// The file's name.
    pub file: String,
    /// Lower-case hex SHA-256 of its bytes.
    pub sha256: String,
}

/// A plan that cannot be read or does not hold together.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The file could not be read.
    #[error("cannot read it: {0}")]
    Io(#[from] std::io::Error),
    /// Not the JSON of a plan; the message has line and column.
    #[error("not a plan: {0}")]
    Json(#[from] serde_json::Error),
    /// Another format or version.
    #[error("\"format\" is {0:?}: expected {FORMAT:?}")]
    Format(String),
    /// The cluster cannot be.
    #[error("\"cluster\": {0}")]
    Cluster(#[from] ClusterError),
    /// A layer's slots are no placement.
    #[error("layer {layer}: {source}")]
    Placement {
        /// Real layer id.
        layer: u32,
        /// What is wrong.
        source: PlacementError,
    },
    /// A key holds what it should not.
    #[error("{key}: {reason}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong and what was expected.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    cluster: ClusterDocument,
    model: ModelDocument,
    provenance: Provenance,
    layers: Vec<LayerDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterDocument {
    ranks: usize,
    nodes: usize,
    slots_per_rank: usize,
    /// Only where slots do not divide over the ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usable_slots: Option<usize>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelDocument {
    experts: usize,
    idle_layers: Vec<u32>,
}

/// `slots[rank][k]`: the expert in the `k`-th slot of a rank, -1 for an empty slot.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerDocument {
    layer: u32,
    imbalance: f64,
    bound: f64,
    slots: Vec<Vec<i64>>,
}

impl Plan {
    /// Reads and checks a plan file.
    ///
    /// # Errors
    /// [`PlanError`] names the key, layer or line that is wrong and what was expected.
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        Self::from_json(&std::fs::read_to_string(path)?)
    }

    /// Does this text say that it is a plan, of whatever version? It may still be wrong.
    pub fn claims(text: &str) -> bool {
        serde_json::from_str::<serde_json::Value>(text).is_ok_and(|value| {
            value
                .get("format")
                .and_then(serde_json::Value::as_str)
                .is_some_and(|f| f.starts_with("evenkeel.plan"))
        })
    }

    /// Reads and checks a plan from its JSON text.
    ///
    /// # Errors
    /// As [`Plan::read`].
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        #[derive(Deserialize)]
        struct FormatOnly {
            format: String,
        }
        let FormatOnly { format } = serde_json::from_str(text)?;
        if format != FORMAT {
            return Err(PlanError::Format(format));
        }
        let document: Document = serde_json::from_str(text)?;
        let (ranks, per_rank) = (document.cluster.ranks, document.cluster.slots_per_rank);
        let experts = document.model.experts;
        let value = |key: &str, reason: String| PlanError::Value { key: key.to_owned(), reason };
        let redundant = ranks
            .checked_mul(per_rank)
            .and_then(|slots| document.cluster.usable_slots.unwrap_or(slots).checked_sub(experts))
            .filter(|_| experts > 0)
            .ok_or_else(|| {
                value("cluster", format!("{ranks} ranks x {per_rank} slots cannot hold {experts} experts"))
            })?;
        let cluster = Cluster::uneven(ranks, document.cluster.nodes, experts, redundant)?;
        if cluster.slots_per_rank() != per_rank {
            let usable = cluster.usable_slots();
            let reason = format!("{usable} usable slots on {ranks} ranks, with {per_rank} slots on each");
            return Err(value("cluster.usable_slots", reason));
        }
        let mut seen = BTreeSet::new();
        let mut layers = Vec::with_capacity(document.layers.len());
        for layer in document.layers {
            let id = layer.layer;
            if seen.last().is_some_and(|&last| last >= id) {
                return Err(value("layers", format!("layer {id} is out of order or there twice")));
            }
            seen.insert(id);
            layers.push(layer.checked(experts, &cluster)?);
        }
        if layers.is_empty() {
            return Err(value("layers", "no layer is planned".into()));
        }
        if let Some(id) = document.model.idle_layers.iter().find(|id| seen.contains(id)) {
            return Err(value("model.idle_layers", format!("layer {id} is planned as well")));
        }
        if !document.model.idle_layers.is_sorted_by(|a, b| a < b) {
            return Err(value("model.idle_layers", "expected ascending layer ids".into()));
        }
        Ok(Self {
            cluster,
            experts,
            layers,
            idle_layers: document.model.idle_layers,
            provenance: document.provenance,
        })
    }

    /// The plan as JSON text, one line per layer.
    ///
    /// # Errors
    /// Only when a figure is not finite.
    pub fn to_json(&self) -> Result<String, PlanError> {
        let cluster = ClusterDocument {
            ranks: self.cluster.ranks(),
            nodes: self.cluster.nodes(),
            slots_per_rank: self.cluster.slots_per_rank(),
            usable_slots: (!self.cluster.is_even()).then(|| self.cluster.usable_slots()),
        };
        let model = ModelDocument { experts: self.experts, idle_layers: self.idle_layers.clone() };
        let mut text = String::from("{\n");
        let _ = writeln!(text, "  \"format\": {},", serde_json::to_string(FORMAT)?);
        let _ = writeln!(text, "  \"cluster\": {},", serde_json::to_string(&cluster)?);
        let _ = writeln!(text, "  \"model\": {},", serde_json::to_string(&model)?);
        let provenance = serde_json::to_string_pretty(&self.provenance)?.replace('\n', "\n  ");
        let _ = writeln!(text, "  \"provenance\": {provenance},");
        text.push_str("  \"layers\": [\n");
        for (at, layer) in self.layers.iter().enumerate() {
            let comma = if at + 1 < self.layers.len() { "," } else { "" };
            let _ = writeln!(text, "    {}{comma}", serde_json::to_string(&LayerDocument::of(layer))?);
        }
        text.push_str("  ]\n}\n");
        Ok(text)
    }
}

impl LayerDocument {
    fn of(layer: &LayerPlan) -> Self {
        let slot = |expert: &Option<u32>| expert.map_or(-1, i64::from);
        Self {
            layer: layer.layer,
            imbalance: layer.imbalance,
            bound: layer.bound,
            slots: layer
                .placement
                .slots()
                .chunks(layer.placement.slots_per_rank())
                .map(|rank| rank.iter().map(slot).collect())
                .collect(),
        }
    }

    fn checked(self, experts: usize, cluster: &Cluster) -> Result<LayerPlan, PlanError> {
        let (layer, ranks, per_rank) = (self.layer, cluster.ranks(), cluster.slots_per_rank());
        let value =
            |key: &str, reason: String| PlanError::Value { key: format!("layer {layer}, {key}"), reason };
        if self.slots.len() != ranks {
            return Err(value("slots", format!("{} ranks, \"cluster\" has {ranks}", self.slots.len())));
        }
        let mut slots = Vec::with_capacity(ranks * per_rank);
        for (rank, on_rank) in self.slots.iter().enumerate() {
            if on_rank.len() != per_rank {
                let reason = format!("rank {rank} has {} slots, \"cluster\" has {per_rank}", on_rank.len());
                return Err(value("slots", reason));
            }
            if let Some(slot) = on_rank.iter().skip(cluster.usable(rank)).position(|&expert| expert != -1) {
                let slot = slot + cluster.usable(rank);
                return Err(value(
                    "slots",
                    format!("rank {rank} has no use of slot {slot}: expected -1 (empty)"),
                ));
            }
            for &expert in on_rank {
                slots.push(match expert {
                    -1 => None,
                    _ => Some(u32::try_from(expert).map_err(|_| {
                        value(
                            "slots",
                            format!("rank {rank} holds {expert}: expected an expert or -1 (empty)"),
                        )
                    })?),
                });
            }
        }
        // A figure of 0 stands for a layer without a judged batch.
        if !(self.bound >= 0.0 && self.imbalance >= self.bound - 1e-9 && self.imbalance.is_finite()) {
            let reason = format!("{} and {}: expected imbalance >= bound >= 0", self.imbalance, self.bound);
            return Err(value("imbalance and bound", reason));
        }
        let placement =
            Placement::new(experts, ranks, slots).map_err(|source| PlanError::Placement { layer, source })?;
        Ok(LayerPlan { layer, placement, imbalance: self.imbalance, bound: self.bound })
    }
}
