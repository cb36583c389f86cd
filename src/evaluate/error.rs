//! Errors of planning, judging and simulating over a trace.

use crate::place::PlaceError;
use crate::planner::PlannerError;
use crate::split::SplitError;
use thiserror::Error;

/// Reasons for which a trace cannot be planned on, judged or simulated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// The trace has too few steps to judge on.
    #[error("the trace has {0} step(s): at least 2 are needed to plan on one part and judge on the rest")]
    TooShort(usize),
    /// The share of steps to plan on is out of range.
    #[error("the share to plan on is {0}: expected more than 0 and less than 1")]
    Share(f64),
    /// No layer routed a token.
    #[error("the trace holds no tokens: all {steps} step(s) of {layers} layer(s) are zero")]
    Empty {
        /// Steps of the trace.
        steps: usize,
        /// Layers of the trace.
        layers: usize,
    },
    /// No requested step routed a token, so nothing can be measured.
    #[error(
        "none of the {steps} step(s) to {purpose} holds a token, steps {first} to {last}: expected another share of \
         steps to plan on (--train-fraction), or a trace without these steps"
    )]
    Idle {
        /// "plan on" or "judge".
        purpose: &'static str,
        /// Number of steps.
        steps: usize,
        /// Label of the first step.
        first: String,
        /// Label of the last step.
        last: String,
    },
    /// A layer with tokens has none in any step that is held in memory.
    #[error("layer {layer}: no held step routes a token; expected more memory for steps (--memory)")]
    NoBatch {
        /// Real id of the layer.
        layer: u32,
    },
    /// A layer could not be placed.
    #[error("layer {layer}: {source}")]
    Place {
        /// Real id of the layer.
        layer: u32,
        /// Cause.
        source: PlaceError,
    },
    /// A batch could not be split.
    #[error("layer {layer}, step {step}: {source}")]
    Split {
        /// Real id of the layer.
        layer: u32,
        /// Label of the step.
        step: String,
        /// Cause.
        source: SplitError,
    },
    /// A prediction lacks a batch.
    #[error(
        "layer {layer}, step {step}: the prediction lacks this batch; expected the trace's experts, layers and steps"
    )]
    Unpredicted {
        /// Real id of the layer.
        layer: u32,
        /// Label of the step.
        step: String,
    },
    /// A batch's tokens could not be redirected.
    #[error("layer {layer}, step {step}: {source}")]
    Redirect {
        /// Real id of the layer.
        layer: u32,
        /// Label of the step.
        step: String,
        /// Cause.
        source: Box<PlannerError>,
    },
    /// A slot did not serve its quota. This is a defect of this program.
    #[error("layer {layer}, step {step}: slot {slot} does not serve its quota")]
    Unmet {
        /// Real id of the layer.
        layer: u32,
        /// Label of the step.
        step: String,
        /// Slot in question.
        slot: usize,
    },
}
