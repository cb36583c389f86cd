//! The two answers to a post of loads: a receipt, or the reason why nothing of it was accepted.

use crate::store::error::StateStoreError;
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

/// The receipt of a post.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ToSchema)]
#[non_exhaustive]
pub struct Receipt {
    /// The number of new steps, which are durable now.
    pub accepted: u64,
    /// The number of repetitions: known steps with the same counts.
    pub repeated: u64,
    /// The lag: accepted steps that are not processed yet.
    pub lag: u64,
    /// The number of the run of the last step. The first run of a phase has number 1.
    pub run: u32,
}

/// Error of a refused post. Nothing of a refused post is accepted.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The layers or experts differ from those of earlier posts.
    #[error("{found}")]
    Shape {
        /// The posted layers and experts.
        found: String,
        /// The layers and experts of this phase.
        expected: String,
    },
    /// The step number is known with other counts.
    #[error("step {0} was posted before with other counts")]
    DifferentCounts(u64),
    /// The step number is no longer remembered, so its counts cannot be compared.
    #[error("step {step} is older than the remembered steps")]
    Forgotten {
        /// The step.
        step: u64,
        /// The highest step number of its run.
        highest: u64,
    },
    /// The step number is too far above the highest one.
    #[error("step {step} is {} numbers after step {highest}", step - highest)]
    Jump {
        /// The step.
        step: u64,
        /// The highest step number of its run.
        highest: u64,
    },
    /// The run ended when another one began.
    #[error("run {run} has ended: run {current} began after it")]
    Ended {
        /// The run of the post.
        run: String,
        /// The current run.
        current: String,
    },
    /// The same step is being stored now.
    #[error("step {0} is being stored")]
    Storing(u64),
    /// Too many steps wait to be processed.
    #[error("{steps} accepted steps are not processed yet")]
    TooFarBehind {
        /// The number of waiting steps.
        steps: u64,
    },
    /// The model was deleted.
    #[error("the model was deleted")]
    Deleted,
    /// The post could not be stored.
    #[error(transparent)]
    Store(StateStoreError),
}
