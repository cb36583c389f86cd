//! Posted loads: token counts of one or several steps of one phase.
//!
//! Input is a JSON body ([`super::loads_json`]) or the binary form ([`super::binary`]). Output is checked
//! [`Loads`]: the layers ascend, every layer and expert has a count, and step ids are unique.

use crate::Phase;
use evenkeel::trace::{MAX_EXPERTS, MAX_LAYERS};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::sync::Arc;
use thiserror::Error;
use utoipa::ToSchema;

/// The most steps in one post.
pub const MAX_POSTED_STEPS: usize = 4096;

/// The token counts of consecutive steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loads {
    /// The phase of the steps.
    pub phase: Phase,
    /// Real layer ids, ascending, `[L]`.
    pub layers: Vec<u32>,
    /// The number of logical experts per layer, `E`.
    pub experts: usize,
    /// The steps, in order.
    pub steps: Vec<StepLoads>,
}

/// One step: a batch of every layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepLoads {
    /// The poster's number of the step. A second post of the same number changes nothing.
    pub id: u64,
    /// The token counts, `[L][E]`.
    pub counts: Arc<[u32]>,
}

impl StepLoads {
    /// Returns whether no expert of any layer drew a token.
    pub fn is_idle(&self) -> bool {
        self.counts.iter().all(|&count| count == 0)
    }
}

/// Error of invalid loads.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{at}: {found}, expected {expected}")]
#[non_exhaustive]
pub struct LoadsError {
    /// The key or byte offset of the error.
    pub at: String,
    /// The actual value.
    pub found: String,
    /// The expected value.
    pub expected: String,
}

impl LoadsError {
    /// Returns an error at a place.
    pub fn new(at: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { at: at.into(), found: found.into(), expected: expected.into() }
    }
}

/// The JSON body of posted loads.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadsBody {
    /// The phase of the steps. `all` means that phases are not distinguished.
    #[serde(default)]
    pub phase: Phase,
    /// The real layer ids of the rows of `counts`, ascending. The default is 0, 1, 2, ..
    #[serde(default, skip_serializing_if = "Option::is_none")]
    // A 32-bit format in OpenAPI means signed numbers. The reader itself refuses ids from 2^32.
    #[schema(min_items = 1, max_items = 4096, value_type = Option<Vec<u64>>)]
    pub layers: Option<Vec<u32>>,
    /// The steps, in order.
    #[schema(min_items = 1, max_items = 4096)]
    pub steps: Vec<StepBody>,
}

/// One step of a [`LoadsBody`].
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StepBody {
    /// The poster's number of the step; below 2^63.
    #[schema(maximum = 9_223_372_036_854_775_807_u64)]
    pub step: u64,
    /// The token counts of each expert of each layer, `[layer][expert]`, below 2^32 each.
    #[schema(min_items = 1, max_items = 4096, value_type = Vec<Vec<u64>>)]
    pub counts: Vec<Vec<u32>>,
}

impl Loads {
    /// Returns the JSON body that parses to these loads.
    pub fn to_body(&self) -> LoadsBody {
        let rows = |step: &StepLoads| step.counts.chunks(self.experts.max(1)).map(<[u32]>::to_vec).collect();
        LoadsBody {
            phase: self.phase,
            layers: Some(self.layers.clone()),
            steps: self.steps.iter().map(|s| StepBody { step: s.id, counts: rows(s) }).collect(),
        }
    }

    /// Checks the conditions that hold for both forms.
    ///
    /// # Errors
    /// [`LoadsError`] names the violated condition.
    pub fn validate(self) -> Result<Self, LoadsError> {
        let err = |at: &str, found: String, expected: String| Err(LoadsError::new(at, found, expected));
        if !(1..=MAX_EXPERTS).contains(&self.experts) {
            return err("experts", self.experts.to_string(), format!("1 to {MAX_EXPERTS}"));
        }
        if !(1..=MAX_LAYERS).contains(&self.layers.len()) || !self.layers.is_sorted_by(|a, b| a < b) {
            return err("layers", format!("{:?}", self.layers), format!("1 to {MAX_LAYERS} ascending ids"));
        }
        if self.layers.last().is_some_and(|&last| last as usize >= MAX_LAYERS) {
            return err("layers", format!("{:?}", self.layers.last()), format!("ids below {MAX_LAYERS}"));
        }
        if !(1..=MAX_POSTED_STEPS).contains(&self.steps.len()) {
            return err("steps", format!("{} steps", self.steps.len()), format!("1 to {MAX_POSTED_STEPS}"));
        }
        let mut ids = BTreeSet::new();
        for step in &self.steps {
            if step.id > i64::MAX as u64 {
                return err("step", step.id.to_string(), "a number below 2^63".into());
            }
            if !ids.insert(step.id) {
                return err("steps", format!("step {} twice", step.id), "every step once".into());
            }
        }
        Ok(self)
    }
}

/// Returns the digest that distinguishes two steps of the same shape: the first half of the SHA-256 of their
/// counts.
pub fn counts_digest(counts: &[u32]) -> [u8; 16] {
    let mut hash = Sha256::new();
    let mut bytes = Vec::with_capacity(4 * 4096);
    for part in counts.chunks(4096) {
        bytes.clear();
        part.iter().for_each(|count| bytes.extend_from_slice(&count.to_le_bytes()));
        hash.update(&bytes);
    }
    let mut half = [0; 16];
    half.copy_from_slice(&hash.finalize()[..16]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_and_refused_by_key() {
        let loads = Loads::from_json(br#"{"steps": [{"step": 7, "counts": [[1, 2], [3, 4]]}]}"#).unwrap();
        assert_eq!(
            (loads.experts, loads.layers.as_slice(), &*loads.steps[0].counts),
            (2, &[0, 1][..], &[1, 2, 3, 4][..])
        );
        let again = Loads::from_json(&serde_json::to_vec(&loads.to_body()).unwrap()).unwrap();
        assert_eq!(again, loads);
        for (body, part) in [
            ("{", "line 1"),
            (r#"{"steps": []}"#, "no step"),
            (r#"{"steps": [{"step": 1, "counts": []}]}"#, "experts"),
            (
                r#"{"steps": [{"step": 1, "counts": [[1], [1, 2]]}]}"#,
                "steps[0].counts[1]: 2 experts, expected 1",
            ),
            (r#"{"steps": [{"step": 1, "counts": [[-1]]}]}"#, "line 1"),
            (r#"{"layers": [3, 1], "steps": [{"step": 1, "counts": [[1], [1]]}]}"#, "ascending"),
            (r#"{"steps": [{"step": 1, "counts": [[1]]}, {"step": 1, "counts": [[1]]}]}"#, "step 1 twice"),
            (r#"{"phase": "both", "steps": []}"#, "unknown variant"),
        ] {
            let message = Loads::from_json(body.as_bytes()).unwrap_err().to_string();
            assert!(message.contains(part), "{body}: {message}");
        }
    }
}
