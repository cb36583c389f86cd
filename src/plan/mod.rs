//! The plan artefact: placements of all layers with their provenance and expected figures.
//!
//! A plan is one JSON document, `"format": "evenkeel.plan/1"`. Reading checks everything that can be checked
//! without the trace. Writing and reading again yields the same plan.

mod build;
mod fixed;
mod layer_stage;
mod link_budget;
mod moe_layers;
mod request;
mod slot_budget;

pub use build::{BatchProvenance, PlanReport};
pub use fixed::FixedPlacement;
pub use layer_stage::LayerChange;
pub use link_budget::{LinkBudget, LinkUse};
pub use request::{ConstraintError, Constraints, PlanRequest, PlanRequestError};

use crate::cluster::{Cluster, ClusterError};
use crate::evaluate::SummaryStats;
use crate::place::{Placement, PlacementError};
use crate::split::SplitMethod;
use crate::trace::MAX_LAYERS;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use thiserror::Error;

/// Name of the only format that this version reads and writes.
pub const PLAN_FORMAT: &str = "evenkeel.plan/1";

/// Placements for all busy layers of a model on one cluster.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// Group for which the plan is made.
    pub cluster: Cluster,
    /// Logical experts per layer, `E`.
    pub experts: usize,
    /// Planned layers, by ascending real id.
    pub layers: Vec<LayerPlan>,
    /// Layers of the model without routed tokens, mostly dense layers. They have no placement. Real ids,
    /// ascending.
    pub idle_layers: Vec<u32>,
    /// Layers that route tokens but have none in the trace, ascending ids. Files for serving stacks contain
    /// them at their position, with the experts in order.
    pub unrecorded_layers: Vec<u32>,
    /// Origin of the plan.
    pub provenance: PlanProvenance,
}

impl Plan {
    /// Creates a plan of layers in the order of their ids, without idle and unrecorded layers.
    pub fn new(cluster: Cluster, experts: usize, layers: Vec<LayerPlan>, provenance: PlanProvenance) -> Self {
        Self { cluster, experts, layers, idle_layers: vec![], unrecorded_layers: vec![], provenance }
    }
}

/// One layer of a [`Plan`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LayerPlan {
    /// Real id of the layer.
    pub layer: u32,
    /// Placement of the layer's experts.
    pub placement: Placement,
    /// Expected mean of peak over mean with the split named in [`PlanProvenance::split`].
    pub imbalance: f64,
    /// Mean of ceil(total / ranks) over mean. No placement can be better on those batches.
    pub bound: f64,
}

impl LayerPlan {
    /// Creates the plan of a layer by its real id, without figures.
    pub fn new(layer: u32, placement: Placement) -> Self {
        Self { layer, placement, imbalance: 0.0, bound: 0.0 }
    }

    /// Sets [`Self::imbalance`](#structfield.imbalance).
    #[must_use]
    pub fn imbalance(mut self, imbalance: f64) -> Self {
        self.imbalance = imbalance;
        self
    }

    /// Sets [`Self::bound`](#structfield.bound).
    #[must_use]
    pub fn bound(mut self, bound: f64) -> Self {
        self.bound = bound;
        self
    }
}

/// Origin of a [`Plan`] and of its figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct PlanProvenance {
    /// Version of evenkeel that created the plan.
    pub version: String,
    /// Name of the placement policy.
    pub policy: String,
    /// Runtime for which the plan is made ([`Target`](crate::export::RuntimeTarget)), if it was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Split to which the expected imbalance refers: that of the target.
    pub split: String,
    /// Seed of everything random in reading and planning.
    pub seed: u64,
    /// Description of how batches were formed.
    pub batches: String,
    /// Number of batches (of one layer each) behind the expected imbalance.
    pub judged: usize,
    /// Expected peak over mean, over all judged batches.
    pub imbalance: SummaryStats,
    /// Expected figures under every split that may run, with EPLB's placement for the same loads as
    /// comparison. Empty in plans of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub figures: Vec<SplitFigure>,
    /// Trace files.
    pub trace: Vec<TraceFile>,
}

impl PlanProvenance {
    /// Creates the origin of a plan of this version of evenkeel, by the names of its policy and split. It
    /// has no figures.
    pub fn new(policy: impl Into<String>, split: SplitMethod) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            policy: policy.into(),
            target: None,
            split: split.to_string(),
            seed: 0,
            batches: String::new(),
            judged: 0,
            imbalance: SummaryStats::default(),
            figures: vec![],
            trace: vec![],
        }
    }
}

/// Imbalance of a plan and of EPLB's placement on the judged batches under one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SplitFigure {
    /// Name of the split method.
    pub split: String,
    /// Peak over mean on the plan's placements.
    pub imbalance: SummaryStats,
    /// Peak over mean on EPLB's placements. `None` if EPLB does not support the shape.
    pub eplb: Option<SummaryStats>,
}

impl SplitFigure {
    /// Creates the figures under a split without those of EPLB.
    pub fn new(split: SplitMethod, imbalance: SummaryStats) -> Self {
        Self { split: split.to_string(), imbalance, eplb: None }
    }
}

/// Trace file from which a plan was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceFile {
    /// Name of the file.
    pub file: String,
    /// Lower-case hex SHA-256 of the file's bytes.
    pub sha256: String,
}

/// Reasons for which a plan cannot be read or is inconsistent.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The file could not be read.
    #[error("cannot read the file: {0}")]
    Io(#[from] std::io::Error),
    /// The text is not the JSON of a plan. The message has line and column.
    #[error("not a plan: {0}")]
    Json(#[from] serde_json::Error),
    /// The file has another format or version.
    #[error("\"format\" is {0:?}: expected {PLAN_FORMAT:?}")]
    Format(String),
    /// The cluster cannot exist.
    #[error("\"cluster\": {0}")]
    Cluster(#[from] ClusterError),
    /// The slots of a layer are no placement.
    #[error("layer {layer}: {source}")]
    Placement {
        /// Real id of the layer.
        layer: u32,
        /// Cause.
        source: PlacementError,
    },
    /// The value of a key is invalid.
    #[error("{key}: {reason}")]
    Value {
        /// Key in question.
        key: String,
        /// Fault, and the expected value.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanDocument {
    format: String,
    cluster: ClusterDocument,
    model: ModelDocument,
    provenance: PlanProvenance,
    layers: Vec<LayerDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterDocument {
    ranks: usize,
    nodes: usize,
    slots_per_rank: usize,
    /// Number of usable slots, present only if slots do not divide over the ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usable_slots: Option<usize>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelDocument {
    experts: usize,
    idle_layers: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    unrecorded_layers: Vec<u32>,
}

/// Layer in a plan file. `slots[rank][k]` is the expert in the `k`-th slot of a rank, or -1 for an empty
/// slot.
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
    /// Returns [`PlanError`] with the invalid key, layer or line, and the expected value.
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        Self::from_json(&std::fs::read_to_string(path)?)
    }

    /// Returns true if the text declares a plan of any version. It may still be invalid.
    pub fn is_plan_document(text: &str) -> bool {
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
    /// Fails as [`Plan::read`] does.
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        #[derive(Deserialize)]
        struct FormatOnly {
            format: String,
        }
        let FormatOnly { format } = serde_json::from_str(text)?;
        if format != PLAN_FORMAT {
            return Err(PlanError::Format(format));
        }
        let document: PlanDocument = serde_json::from_str(text)?;
        let (ranks, per_rank) = (document.cluster.ranks, document.cluster.slots_per_rank);
        let experts = document.model.experts;
        let value = |key: &str, reason: String| PlanError::Value { key: key.to_owned(), reason };
        let check_id = |key: &str, id: u32| match id as usize {
            0..MAX_LAYERS => Ok(()),
            _ => Err(value(key, format!("layer {id}: expected ids below {MAX_LAYERS}"))),
        };
        let redundant = ranks
            .checked_mul(per_rank)
            .and_then(|slots| document.cluster.usable_slots.unwrap_or(slots).checked_sub(experts))
            .filter(|_| experts > 0)
            .ok_or_else(|| {
                value("cluster", format!("{ranks} ranks x {per_rank} slots cannot hold {experts} experts"))
            })?;
        let cluster = Cluster::with_uneven_slots(ranks, document.cluster.nodes, experts, redundant)?;
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
                return Err(value("layers", format!("layer {id} is out of order or repeated")));
            }
            seen.insert(id);
            check_id("layers", id)?;
            layers.push(layer.into_layer_plan(experts, &cluster)?);
        }
        if layers.is_empty() {
            return Err(value("layers", "no layer is planned".into()));
        }
        let others = [
            ("model.idle_layers", &document.model.idle_layers),
            ("model.unrecorded_layers", &document.model.unrecorded_layers),
        ];
        for (key, ids) in others {
            if !ids.is_sorted_by(|a, b| a < b) {
                return Err(value(key, "expected ascending layer ids".into()));
            }
            for &id in ids {
                check_id(key, id)?;
                if !seen.insert(id) {
                    return Err(value(key, format!("layer {id} is also planned or in another list")));
                }
            }
        }
        Ok(Self {
            cluster,
            experts,
            layers,
            idle_layers: document.model.idle_layers,
            unrecorded_layers: document.model.unrecorded_layers,
            provenance: document.provenance,
        })
    }

    /// Returns the plan as JSON text, one line per layer.
    ///
    /// # Errors
    /// Fails only if a figure is not finite.
    pub fn to_json(&self) -> Result<String, PlanError> {
        let cluster = ClusterDocument {
            ranks: self.cluster.ranks(),
            nodes: self.cluster.nodes(),
            slots_per_rank: self.cluster.slots_per_rank(),
            usable_slots: (!self.cluster.is_even()).then(|| self.cluster.usable_slots()),
        };
        let model = ModelDocument {
            experts: self.experts,
            idle_layers: self.idle_layers.clone(),
            unrecorded_layers: self.unrecorded_layers.clone(),
        };
        let mut text = String::from("{\n");
        let _ = writeln!(text, "  \"format\": {},", serde_json::to_string(PLAN_FORMAT)?);
        let _ = writeln!(text, "  \"cluster\": {},", serde_json::to_string(&cluster)?);
        let _ = writeln!(text, "  \"model\": {},", serde_json::to_string(&model)?);
        let provenance = serde_json::to_string_pretty(&self.provenance)?.replace('\n', "\n  ");
        let _ = writeln!(text, "  \"provenance\": {provenance},");
        text.push_str("  \"layers\": [\n");
        for (at, layer) in self.layers.iter().enumerate() {
            let comma = if at + 1 < self.layers.len() { "," } else { "" };
            let _ =
                writeln!(text, "    {}{comma}", serde_json::to_string(&LayerDocument::from_layer(layer))?);
        }
        text.push_str("  ]\n}\n");
        Ok(text)
    }
}

impl LayerDocument {
    fn from_layer(layer: &LayerPlan) -> Self {
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

    fn into_layer_plan(self, experts: usize, cluster: &Cluster) -> Result<LayerPlan, PlanError> {
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
            if let Some(slot) = on_rank.iter().skip(cluster.slots_of(rank)).position(|&expert| expert != -1) {
                let slot = slot + cluster.slots_of(rank);
                return Err(value(
                    "slots",
                    format!("rank {rank} cannot use slot {slot}: expected -1 (empty)"),
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
