//! The documents that show a service: its models, the phases of each, their history, and the plan that was
//! last considered.
//!
//! The service writes them, `evenkeel top` reads them.

use super::decision::{
    CopyStatus, Decision, DecisionOutcome, GainStatus, HistoryPoint, Imbalances, MoveRecord,
};
use super::phase::Phase;
use crate::{ControllerConfig, ModelSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// All models.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ModelList {
    /// The models, sorted by name.
    pub models: Vec<ModelStatus>,
}

/// The state of a model.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ModelStatus {
    /// The model's name.
    pub name: String,
    /// The shape of its expert-parallel group.
    pub shape: ModelSpec,
    /// The options of its decisions.
    #[schema(value_type = Object)]
    pub decide: ControllerConfig,
    /// The phases with loads.
    pub phases: Vec<PhaseStatus>,
    /// The sources that fetch its loads.
    pub sources: Vec<SourceStatus>,
}

/// The state of a phase of a model.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PhaseStatus {
    /// The phase.
    pub phase: Phase,
    /// Real layer ids.
    pub layers: Vec<u32>,
    /// The number of logical experts per layer.
    pub experts: usize,
    /// The number of processed steps.
    pub accepted: u64,
    /// The number of the last processed step.
    pub step: Option<u64>,
    /// The current run of the posts. Null before any step.
    pub run: Option<RunStatus>,
    /// The lag: accepted steps that are not processed yet.
    pub lag: u64,
    /// Flag that is set while a decision is being computed.
    pub planning: bool,
    /// The version of the current plan; 0 before the first one.
    pub plan: u64,
    /// The id of the step after which the plan was decided.
    pub plan_step: Option<u64>,
    /// The number of steps after which the next decision is due at the latest.
    pub due_in: u64,
    /// The number of decisions so far.
    pub decisions: u64,
    /// The ranks that are down.
    pub down: Vec<usize>,
    /// The imbalance of the latest step.
    pub latest: Option<HistoryPoint>,
    /// The seconds since 1970 at which steps were last accepted.
    pub last_step_unix_s: Option<u64>,
    /// The seconds since then, by the service's clock.
    pub quiet_seconds: Option<u64>,
    /// The seconds without steps after which the loads count as stopped: three times their usual pause, at
    /// least 10.
    pub stopped_after_seconds: u64,
    /// The cost of transfers, and the time that they may take.
    pub copies: CopyStatus,
    /// The corrections of expected gains by the gains of earlier decisions.
    #[serde(default)]
    pub gains: GainStatus,
    /// The milliseconds between two of the latest steps, by the service's clock. They serve only for
    /// comparison with `step_ms`.
    pub observed_step_ms: Option<f64>,
}

/// A run: the time from one start of the engine to the next.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RunStatus {
    /// The number of the run. Runs of a phase are numbered from 1.
    pub number: u32,
    /// The poster's id of the run. Null if its posts have no id.
    pub id: Option<String>,
    /// The step with which the run began.
    pub first: u64,
}

/// The state of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SourceStatus {
    /// The phase that receives the loads.
    pub phase: Phase,
    /// The file or folder that is read.
    pub path: String,
    /// The SGLang server from which dumps are requested.
    pub sglang: Option<String>,
    /// Flag that is set while nothing fails.
    pub up: bool,
    /// The current error; null if there is none.
    pub error: Option<String>,
    /// The seconds since 1970 at which the error began.
    pub since_unix_s: Option<u64>,
    /// The number of failed looks and requests so far.
    pub errors: u64,
    /// The number of lines of a growing file that could not be parsed and were skipped.
    pub skipped_lines: u64,
    /// The last skipped line: its number and error.
    pub last_skipped: Option<String>,
}

/// The past of a phase.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct PhaseHistory {
    /// The imbalance, oldest first. Older points cover more steps. A change of `plan` marks a new current
    /// plan.
    pub points: Vec<HistoryPoint>,
    /// The decisions, oldest first.
    pub decisions: Vec<Decision>,
}

/// The state of a phase, with everything that the page shows.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PhaseView {
    /// The model's name.
    pub model: String,
    /// The shape of its expert-parallel group.
    pub shape: ModelSpec,
    /// Real ranks, indexed by their numbers in the plan: the columns of `heat`.
    pub ranks: Vec<u32>,
    /// The state of the phase.
    pub state: PhaseStatus,
    /// The time that the current plan saves in the latest steps.
    pub verdict: TimeVerdict,
    /// The number of latest steps that `heat` and `hottest` cover.
    pub steps: usize,
    /// The rank loads of each layer under the current plan.
    pub heat: Vec<HeatLayer>,
    /// The experts with the highest loads, hottest first.
    pub hottest: Vec<HotExpert>,
    /// The plan that was last considered. Its moves are made if its outcome is `applied`.
    pub preview: Option<PlanPreview>,
    /// The latest decisions, oldest first.
    pub decisions: Vec<Decision>,
}

/// The answer to "is balancing worth it?", in time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TimeVerdict {
    /// The answer, or the missing keys of the configuration.
    pub text: String,
    /// The share of the experts' time that the plan saves. Null if times are not known.
    pub gain: Option<f64>,
    /// The relative error of the times.
    pub error: Option<f64>,
    /// The milliseconds of the experts of all posted layers per step, under the current plan.
    pub plan_ms: Option<f64>,
    /// The same with the experts in order and without replicas.
    pub nothing_ms: Option<f64>,
}

impl TimeVerdict {
    /// Creates a verdict without figures.
    pub(crate) fn of_text(text: String) -> Self {
        Self { text, gain: None, error: None, plan_ms: None, nothing_ms: None }
    }
}

/// The rank loads of one layer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HeatLayer {
    /// The real layer id.
    pub layer: u32,
    /// The mean imbalance.
    pub imbalance: f64,
    /// The load of each rank over the mean, `[R]`. 1.0 is perfect.
    pub ranks: Vec<f32>,
}

/// An expert with a high load.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HotExpert {
    /// The real layer id.
    pub layer: u32,
    /// The logical expert.
    pub expert: u32,
    /// The tokens of the latest steps.
    pub tokens: u64,
    /// The tokens over those of an average expert of the layer.
    pub over_mean: f64,
    /// The number of replicas in the current plan.
    pub replicas: usize,
    /// The real ranks that hold the expert.
    pub ranks: Vec<u32>,
}

/// A decision and the plan that it considered.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ReplanResponse {
    /// The decision.
    pub decision: Decision,
    /// The considered plan, move by move.
    pub preview: Option<PlanPreview>,
}

/// A plan that was considered, compared with the current one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanPreview {
    /// The number of the decision that considered it.
    pub decision: u64,
    /// The outcome of that decision.
    pub outcome: DecisionOutcome,
    /// The mean imbalance of all layers.
    pub imbalance: Imbalances,
    /// The moves from the current plan to this one.
    pub moves: Vec<MoveRecord>,
    /// The figures of each layer.
    pub layers: Vec<LayerPreview>,
}

/// One layer of a plan that was considered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LayerPreview {
    /// The real layer id.
    pub layer: u32,
    /// The imbalance of the latest steps on the current placement.
    pub before: f64,
    /// The imbalance of the latest steps on the considered placement.
    pub after: f64,
    /// The bound.
    pub bound: f64,
    /// The number of moves in this layer.
    pub moves: usize,
    /// The mean load of each rank over the latest steps, divided by the mean over ranks, on the current
    /// placement, `[R]`.
    pub ranks_before: Vec<f32>,
    /// The same on the considered placement, `[R]`.
    pub ranks_after: Vec<f32>,
}
