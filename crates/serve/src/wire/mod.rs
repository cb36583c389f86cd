//! The documents that cross HTTP: posted loads, receipts, decisions, events and states.
//!
//! - Input: request bodies in JSON (`loads_json`) or in the [`binary`] form.
//! - Output: checked [`Loads`], and the documents of replies and events.

pub mod binary;
pub(crate) mod decision;
pub(crate) mod event;
pub(crate) mod loads;
pub(crate) mod loads_json;
pub(crate) mod phase;
pub(crate) mod receipt;
pub(crate) mod status;

pub use decision::{
    CopyStatus, Decision, DecisionOutcome, GainEstimate, GainStatus, HistoryPoint, Imbalances, MoveRecord,
    Trigger,
};
pub use loads::{Loads, LoadsBody, LoadsError, MAX_POSTED_STEPS, StepBody, StepLoads, counts_digest};
pub use phase::{Phase, UnknownPhase};
pub use receipt::{Receipt, Refusal};
pub use status::{
    HeatLayer, HotExpert, LayerPreview, ModelList, ModelStatus, PhaseHistory, PhaseStatus, PhaseView,
    PlanPreview, ReplanResponse, RunStatus, SourceStatus,
};
