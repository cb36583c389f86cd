//! Plans in the dialects of serving stacks, and back.
//!
//! In: a [`Plan`]. Out: the text of the file that a stack reads at its start ([`write()`]), strict about what each reader
//! refuses. Back ([`read`]): the placements of such a file, for whoever has one and wants it judged. One file per dialect.
//!
//! Most dialects know no empty slot. Empty slots get copies that change nothing for the worse: each the lowest expert
//! with the fewest copies that its rank does not hold yet.

mod eplb;
mod sglang;
mod target;
mod trtllm;
mod vllm;
mod vllm_ascend;

pub use target::{Runtime, Target};

use crate::place::{Placement, PlacementError};
use crate::plan::Plan;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A file format for placements.
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
    /// What DeepSeek's `rebalance_experts` returns, as JSON: `phy2log`, `log2phy`, `logcnt`.
    Eplb,
}

impl Dialect {
    /// All dialects, in the order in which `--help` lists them.
    pub const ALL: [Dialect; 5] =
        [Dialect::Sglang, Dialect::TrtLlm, Dialect::Vllm, Dialect::VllmAscend, Dialect::Eplb];

    /// The name that selects it.
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
    /// Are layers counted among those that route tokens only, from 0? Otherwise files name them by their real ids.
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

/// Why a plan cannot be written in a dialect, or a file cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
    /// No dialect has this name.
    #[error("unknown format `{0}`: expected sglang, trtllm, vllm, vllm-ascend or eplb")]
    Dialect(String),
    /// No runtime has this name, or it is not started with these flags.
    #[error(
        "unknown runtime `{0}`: expected evenkeel, sglang, vllm, vllm-ascend or trtllm; sglang:exact and vllm:exact with \
         EVENKEEL_SPLIT=exact; sglang:static, sglang:dynamic, sglang:random, or SGLang's flags, as in \
         sglang:moe-a2a-backend=deepep,ep-dispatch-algorithm=dynamic"
    )]
    Target(String),
    /// The file is none of the dialects.
    #[error("none of the formats sglang, trtllm, vllm, vllm-ascend and eplb: {0}")]
    Unrecognised(String),
    /// A key of the file is missing or holds what it should not.
    #[error("{key}: {reason}")]
    Value {
        /// The key.
        key: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A layer's slots are no placement.
    #[error("layer {layer}: {source}")]
    Placement {
        /// The layer, as the file counts.
        layer: u32,
        /// What is wrong.
        source: PlacementError,
    },
    /// The reader of this dialect would refuse the plan.
    #[error("layer {layer}: {reason}")]
    Refused {
        /// Its real id.
        layer: u32,
        /// What the reader refuses.
        reason: String,
    },
    /// Not JSON; the message has line and column.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The placements of a file, one per layer that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The dialect that was read.
    pub dialect: Dialect,
    /// Logical experts, `E`.
    pub experts: usize,
    /// Layers with their ids in the file: real ids for `sglang`, `trtllm` and `vllm-ascend`, positions among MoE layers for
    /// `vllm` and `eplb`.
    pub layers: Vec<(u32, Placement)>,
}

/// The text of a file in a dialect.
///
/// # Errors
/// [`ExportError::Refused`] where the stack's reader would refuse it.
pub fn write(plan: &Plan, dialect: Dialect) -> Result<String, ExportError> {
    match dialect {
        Dialect::Sglang => Ok(sglang::write(plan)),
        Dialect::TrtLlm => Ok(trtllm::write(plan)),
        Dialect::Vllm => Ok(vllm::write(plan)),
        Dialect::VllmAscend => vllm_ascend::write(plan),
        Dialect::Eplb => Ok(eplb::write(plan)),
    }
}

/// Reads a file in any dialect, found by looking. `ranks` is the number of ranks that its slots divide over; a file that
/// says it itself is held to it.
///
/// # Errors
/// When the text is in none of the dialects, or what it holds is no placement on `ranks` ranks; the message names the key
/// or layer.
pub fn read(text: &str, ranks: usize) -> Result<Imported, ExportError> {
    if text.trim_start().starts_with('{') {
        let value: serde_json::Value = serde_json::from_str(text.lines().next().unwrap_or(text))
            .or_else(|_| serde_json::from_str(text))?;
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
    trtllm::read(text, ranks)
}

/// The slots of a placement, the empty ones filled, `[R * S]`: each with the lowest of the experts with the fewest copies
/// that the rank does not hold yet, or, if it holds all, any.
pub fn filled(placement: &Placement) -> Vec<u32> {
    let (experts, per_rank) = (placement.experts(), placement.slots_per_rank());
    let mut copies: Vec<usize> = (0..experts).map(|expert| placement.copies(expert).len()).collect();
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

/// A row of expert ids.
fn row(value: &serde_json::Value, key: &str) -> Result<Vec<u32>, ExportError> {
    let list = value.as_array().ok_or_else(|| value_error(key, "expected a list of experts"))?;
    list.iter()
        .map(|id| {
            let expert = id.as_u64().and_then(|id| u32::try_from(id).ok());
            expert.ok_or_else(|| value_error(key, format!("{id}: expected an expert, a number from 0")))
        })
        .collect()
}

/// Placements of equally long rows; the experts are those that occur, and each row must have all.
fn placements(dialect: Dialect, rows: Vec<(u32, Vec<u32>)>, ranks: usize) -> Result<Imported, ExportError> {
    let highest = rows.iter().flat_map(|(_, row)| row).max();
    let experts = highest.map_or(0, |&expert| expert as usize + 1);
    let layers = rows
        .into_iter()
        .map(|(layer, row)| {
            let placement = Placement::new(experts, ranks, row.into_iter().map(Some).collect());
            Ok((layer, placement.map_err(|source| ExportError::Placement { layer, source })?))
        })
        .collect::<Result<Vec<_>, ExportError>>()?;
    Ok(Imported { dialect, experts, layers })
}
