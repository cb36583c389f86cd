//! What happens, as it happens: to whoever listens.

use super::Phase;
use super::record::{Decision, Point, Trigger};
use serde::Serialize;
use utoipa::ToSchema;

/// Something that happened to a model. The JSON of the variant is the data of a server-sent event of that name.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Event {
    /// `loads`: steps were looked at.
    Loads(LoadsEvent),
    /// `planning`: a decision is being worked out.
    Planning(PlanningEvent),
    /// `decision`: a decision was made.
    Decision(Box<Decision>),
    /// `plan`: another plan is in force.
    Plan(PlanEvent),
}

/// Steps that were looked at since the last such event.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct LoadsEvent {
    /// The phase.
    pub(crate) phase: Phase,
    /// How the last of them was served.
    pub(crate) point: Point,
    /// Accepted steps that are still to be looked at.
    pub(crate) behind: u64,
}

/// A decision is being worked out.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct PlanningEvent {
    /// The phase.
    pub(crate) phase: Phase,
    /// Why.
    pub(crate) trigger: Trigger,
}

/// Another plan is in force.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct PlanEvent {
    /// The phase.
    pub(crate) phase: Phase,
    /// Its version.
    pub(crate) version: u64,
    /// The step after which it was decided.
    pub(crate) step: Option<u64>,
    /// Its ETag in `evenkeel` format.
    pub(crate) etag: String,
}

impl Event {
    /// The event's name in a stream.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Event::Loads(_) => "loads",
            Event::Planning(_) => "planning",
            Event::Decision(_) => "decision",
            Event::Plan(_) => "plan",
        }
    }
}
