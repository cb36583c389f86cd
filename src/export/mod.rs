//! Plans in the dialects of serving stacks, and back.
//!
//! In: a [`Plan`]. Out: the text of the file that a stack reads at its start ([`write()`]). The text avoids
//! everything that the stack's reader refuses. [`read`] returns the placements of such a file, so that they
//! can be judged. Each dialect has one file.
//!
//! Most dialects have no empty slots. An empty slot therefore gets a replica that makes nothing worse. It is
//! the lowest of the experts with the fewest replicas that the rank does not hold yet.

mod eplb;
mod sglang;
mod strict_json;
mod target;
mod trtllm;
mod vllm;
mod vllm_ascend;

pub use target::{Runtime, RuntimeTarget};

use crate::place::{Placement, PlacementError};
use crate::plan::Plan;
use crate::trace::MAX_LAYERS;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// File format of placements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// SGLang's `--init-expert-location` JSON.
    Sglang,
    /// TensorRT-LLM's `moe_load_balancer` YAML.
    TrtLlm,
    /// vLLM's `eplb_initial_mapping` JSON line.
    Vllm,
    /// vllm-ascend's expert map JSON.
    VllmAscend,
    /// Result of DeepSeek's `rebalance_experts` as JSON: `phy2log`, `log2phy`, `logcnt`.
    Eplb,
}

impl Dialect {
    /// All dialects, in the order of `--help`.
    pub const ALL: [Dialect; 5] =
        [Dialect::Sglang, Dialect::TrtLlm, Dialect::Vllm, Dialect::VllmAscend, Dialect::Eplb];

    /// Returns the name that selects the dialect.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Sglang => "sglang",
            Dialect::TrtLlm => "trtllm",
            Dialect::Vllm => "vllm",
            Dialect::VllmAscend => "vllm-ascend",
            Dialect::Eplb => "eplb",
        }
    }
}

impl Dialect {
    /// Returns true if files number only the layers that route tokens, from 0. Otherwise they contain the
    /// real layer ids.
    pub fn counts_moe_layers_only(self) -> bool {
        matches!(self, Dialect::Vllm | Dialect::Eplb)
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dialect {
    type Err = ExportError;

    fn from_str(name: &str) -> Result<Self, ExportError> {
        Dialect::ALL
            .into_iter()
            .find(|dialect| dialect.name() == name)
            .ok_or_else(|| ExportError::Dialect(name.to_owned()))
    }
}

/// Reasons for which a plan cannot be written in a dialect, or a file cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The name is no known dialect.
    #[error("unknown format `{0}`: expected sglang, trtllm, vllm, vllm-ascend or eplb")]
    Dialect(String),
    /// The name is no known runtime, or its flags are not supported.
    #[error(
        "unknown runtime `{0}`: expected evenkeel, sglang, vllm, vllm-ascend or trtllm; sglang:exact and vllm:exact with \
         EVENKEEL_SPLIT=exact; sglang:static, sglang:dynamic, sglang:random, or SGLang's flags, as in \
         sglang:moe-a2a-backend=deepep,ep-dispatch-algorithm=dynamic"
    )]
    Target(String),
    /// The file is in none of the dialects.
    #[error("none of the formats sglang, trtllm, vllm, vllm-ascend and eplb: {0}")]
    Unrecognised(String),
    /// A key of the file is missing or its value is invalid.
    #[error("{key}: {reason}")]
    Value {
        /// Key in question.
        key: String,
        /// Fault, and the expected value.
        reason: String,
    },
    /// The slots of a layer are no placement.
    #[error("layer {layer}: {source}")]
    Placement {
        /// Layer in the numbering of the file.
        layer: u32,
        /// Cause.
        source: PlacementError,
    },
    /// The text is no JSON, and this build reads no YAML.
    #[cfg(not(feature = "yaml"))]
    #[error("not JSON, and this build is without the feature `yaml`, which reads the maps of TensorRT-LLM")]
    YamlNotBuilt,
    /// The text is not YAML, or has wrong keys or types. The message has line and column.
    #[error("not the YAML of moe_load_balancer: {0}")]
    Yaml(String),
    /// A layer between the MoE layers is neither planned nor known to be dense. Files that count MoE layers
    /// would be wrong.
    #[error(
        "layer {0} is neither planned nor known to be dense, and {1} counts MoE layers: --moe-layers (moe_layers in \
         Python) names the layers that route tokens"
    )]
    UnknownLayer(u32, Dialect),
    /// All layers together have more slots than [`MAX_PLAN_SLOTS`].
    #[error("{layers} layers x {slots} slots: expected {MAX_PLAN_SLOTS} at most, all layers together")]
    Size {
        /// Number of rows of the file.
        layers: usize,
        /// Number of slots per row.
        slots: usize,
    },
    /// The reader of this dialect would refuse the plan.
    #[error("layer {layer}: {reason}")]
    Refused {
        /// Real id of the layer.
        layer: u32,
        /// Fault that the reader refuses.
        reason: String,
    },
    /// The text is not JSON. The message has line and column.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Placements of a file, one per layer of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportedPlan {
    /// Dialect of the file.
    pub dialect: Dialect,
    /// Number of logical experts, `E`.
    pub experts: usize,
    /// Layers in the order of their ids in the file.
    pub layers: Vec<ImportedLayer>,
}

/// One layer of an [`ImportedPlan`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportedLayer {
    /// Id in the file. `sglang`, `trtllm` and `vllm-ascend` have real ids, `vllm` and `eplb` have positions
    /// among MoE layers.
    pub layer: u32,
    /// Placement of the layer.
    pub placement: Placement,
}

/// Highest number of slots of all layers of a file together.
pub const MAX_PLAN_SLOTS: usize = 1 << 22;

/// Returns the text of a file in a dialect. It contains all layers that route tokens. Layers without tokens
/// in the trace have their experts in order.
///
/// # Errors
/// Returns [`ExportError::Refused`] if the stack's reader would refuse the file. Returns
/// [`ExportError::UnknownLayer`] if a layer may be missing.
pub fn write(plan: &Plan, dialect: Dialect) -> Result<String, ExportError> {
    let layers = match dialect {
        Dialect::Sglang => sglang::layer_count(plan) as usize,
        _ => plan.layers.len() + plan.unrecorded_layers.len(),
    };
    let slots = plan.cluster.slots();
    if layers.checked_mul(slots).is_none_or(|all| all > MAX_PLAN_SLOTS) {
        return Err(ExportError::Size { layers, slots });
    }
    if dialect != Dialect::Sglang
        && let Some(layer) = plan.unknown_layer()
    {
        return Err(ExportError::UnknownLayer(layer, dialect));
    }
    match dialect {
        Dialect::Sglang => Ok(sglang::write(plan)),
        Dialect::TrtLlm => Ok(trtllm::write(plan)),
        Dialect::Vllm => Ok(vllm::write(plan)),
        Dialect::VllmAscend => vllm_ascend::write(plan),
        Dialect::Eplb => Ok(eplb::write(plan)),
    }
}

/// Reads a file and detects its dialect. `ranks` is the number of ranks over which its slots divide. If the
/// file states that number itself, both must agree.
///
/// # Errors
/// Fails if the text is in none of the dialects, or if a layer is no placement on `ranks` ranks. The message
/// names the key or layer.
pub fn read(text: &str, ranks: usize) -> Result<ImportedPlan, ExportError> {
    if text.trim_start().starts_with('{') {
        let value = strict_json::read(text)?;
        let has = |key: &str| value.get(key).is_some();
        return match () {
            () if has("physical_to_logical_map") => sglang::read(&value, ranks),
            () if has("record_type") => vllm::read(&value, ranks),
            () if has("moe_layer_count") => vllm_ascend::read(&value, ranks),
            () if has("phy2log") => eplb::read(&value, ranks),
            () => {
                let keys = value.as_object().map(|o| o.keys().cloned().collect::<Vec<_>>().join(", "));
                Err(ExportError::Unrecognised(format!("the keys are {}", keys.unwrap_or_default())))
            }
        };
    }
    #[cfg(feature = "yaml")]
    return trtllm::read(text, ranks);
    #[cfg(not(feature = "yaml"))]
    Err(ExportError::YamlNotBuilt)
}

/// Returns the slots of a placement with the empty ones filled, `[R * S]`. Each gets the lowest of the
/// experts with the fewest replicas that the rank does not hold yet. If the rank holds all experts, it gets
/// any.
pub fn fill_empty_slots(placement: &Placement) -> Vec<u32> {
    let (experts, per_rank) = (placement.experts(), placement.slots_per_rank());
    let mut copies: Vec<usize> = (0..experts).map(|expert| placement.replicas(expert).len()).collect();
    let mut slots: Vec<Option<u32>> = placement.slots().to_vec();
    for rank in slots.chunks_mut(per_rank) {
        for at in 0..per_rank {
            if rank[at].is_some() {
                continue;
            }
            let held = |expert: u32| rank.contains(&Some(expert));
            let best =
                (0..experts as u32).min_by_key(|&expert| (held(expert), copies[expert as usize], expert));
            if let Some(expert) = best {
                copies[expert as usize] += 1;
                rank[at] = Some(expert);
            }
        }
    }
    slots.into_iter().flatten().collect()
}

fn value_error(key: impl Into<String>, reason: impl Into<String>) -> ExportError {
    ExportError::Value { key: key.into(), reason: reason.into() }
}

/// Returns the slots of every layer that routes tokens, by real id. A layer without tokens in the trace has
/// its experts in order.
fn moe_rows(plan: &Plan) -> Vec<(u32, Vec<u32>)> {
    let planned = plan.layers.iter().map(|layer| (layer.layer, fill_empty_slots(&layer.placement)));
    let unrecorded = plan.unrecorded_layers.iter().map(|&id| (id, experts_in_order(plan)));
    let mut rows: Vec<(u32, Vec<u32>)> = planned.chain(unrecorded).collect();
    rows.sort_unstable_by_key(|row| row.0);
    rows
}

/// Returns the experts in order, repeated to fill all slots.
fn experts_in_order(plan: &Plan) -> Vec<u32> {
    (0..plan.cluster.slots()).map(|slot| (slot % plan.experts) as u32).collect()
}

/// Checks that the key `name` of a file has the number that follows from the rest of the file.
fn check_number(value: &serde_json::Value, name: &str, expected: usize) -> Result<(), ExportError> {
    match value[name].as_u64() {
        Some(found) if found == expected as u64 => Ok(()),
        _ => Err(value_error(name, format!("{}: expected {expected}", value[name]))),
    }
}

/// Reads a row of expert ids.
fn parse_row(value: &serde_json::Value, key: &str) -> Result<Vec<u32>, ExportError> {
    let list = value.as_array().ok_or_else(|| value_error(key, "expected a list of experts"))?;
    list.iter()
        .map(|id| {
            let expert = id.as_u64().and_then(|id| u32::try_from(id).ok());
            expert.ok_or_else(|| value_error(key, format!("{id}: expected an expert, a number from 0")))
        })
        .collect()
}

/// Creates placements from rows of equal length. The experts are those that occur, and each row must contain
/// all of them.
fn placements_from_rows(
    dialect: Dialect,
    rows: Vec<(u32, Vec<u32>)>,
    ranks: usize,
) -> Result<ImportedPlan, ExportError> {
    let Some((first, width)) = rows.first().map(|(layer, row)| (*layer, row.len())) else {
        return Err(value_error("layers", "none: expected one at least"));
    };
    if let Some((layer, row)) = rows.iter().find(|(_, row)| row.len() != width) {
        let reason = format!("{} slots, where layer {first} has {width}", row.len());
        return Err(value_error(format!("layer {layer}"), reason));
    }
    if let Some((layer, _)) = rows.iter().find(|(layer, _)| *layer as usize >= MAX_LAYERS) {
        return Err(value_error(format!("layer {layer}"), format!("expected ids below {MAX_LAYERS}")));
    }
    if rows.len().checked_mul(width).is_none_or(|all| all > MAX_PLAN_SLOTS) {
        return Err(ExportError::Size { layers: rows.len(), slots: width });
    }
    let highest = rows.iter().flat_map(|(_, row)| row).max();
    let experts = highest.map_or(0, |&expert| expert as usize + 1);
    let layers = rows
        .into_iter()
        .map(|(layer, row)| {
            let placement = Placement::new(experts, ranks, row.into_iter().map(Some).collect());
            let placement = placement.map_err(|source| ExportError::Placement { layer, source })?;
            Ok(ImportedLayer { layer, placement })
        })
        .collect::<Result<Vec<_>, ExportError>>()?;
    Ok(ImportedPlan { dialect, experts, layers })
}
