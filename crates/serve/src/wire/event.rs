//! The events of a model, which listeners receive as server-sent events.

use super::decision::{Decision, HistoryPoint, Trigger};
use crate::Phase;
use serde::Serialize;
use utoipa::ToSchema;

/// An event of a model. The JSON of the variant is the data of a server-sent event of that name.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum ModelEvent {
    /// `loads`: steps were processed.
    Loads(LoadsEvent),
    /// `planning`: a decision is being computed.
    Planning(PlanningEvent),
    /// `decision`: a decision was made.
    Decision(Box<Decision>),
    /// `plan`: another plan became the current one.
    Plan(PlanEvent),
    /// `run`: the posting engine was restarted.
    Run(RunEvent),
}

/// The steps that were processed since the last `loads` event.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct LoadsEvent {
    /// The phase.
    pub(crate) phase: Phase,
    /// The imbalance of the last of these steps.
    pub(crate) point: HistoryPoint,
    /// The lag: accepted steps that are not processed yet.
    pub(crate) lag: u64,
}

/// The beginning of a decision's computation.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct PlanningEvent {
    /// The phase.
    pub(crate) phase: Phase,
    /// The trigger of the decision.
    pub(crate) trigger: Trigger,
}

/// A new current plan.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct PlanEvent {
    /// The phase.
    pub(crate) phase: Phase,
    /// The version of the plan.
    pub(crate) version: u64,
    /// The step after which the plan was decided.
    pub(crate) step: Option<u64>,
    /// The ETag of the plan in `evenkeel` format.
    pub(crate) etag: String,
}

/// The beginning of a run. Its step numbers are independent of those of the previous run.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct RunEvent {
    /// The phase.
    pub(crate) phase: Phase,
    /// The number of the run. Runs of a phase are numbered from 1.
    pub(crate) run: u32,
    /// The poster's id of the run. Null if its posts have no id.
    pub(crate) id: Option<String>,
    /// The first step of the run.
    pub(crate) step: u64,
    /// The place of that step in the order of acceptance.
    pub(crate) accepted: u64,
    /// The evidence for the new run.
    pub(crate) reason: String,
}

impl ModelEvent {
    /// Returns the event's name in a stream.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            ModelEvent::Loads(_) => "loads",
            ModelEvent::Planning(_) => "planning",
            ModelEvent::Run(_) => "run",
            ModelEvent::Decision(_) => "decision",
            ModelEvent::Plan(_) => "plan",
        }
    }
}
