//! The documents that the service publishes as JSON: decisions, moves, and points of the history.

use crate::Phase;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The trigger of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The steps suffice for a first plan.
    First,
    /// `every` steps passed since the last decision.
    Interval,
    /// The imbalance exceeds the one that the last decision expected by more than `drift`.
    Drift,
    /// A client asked for the decision.
    Manual,
    /// A rank is down.
    RankDown,
    /// A rank is up again.
    RankUp,
}

/// The outcome of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecisionOutcome {
    /// A new plan is the current one.
    Applied,
    /// The current plan stays.
    Kept,
    /// A new plan was found, but is not published because of a dry run.
    DryRun,
    /// The service lagged too far behind its loads to plan.
    Skipped,
    /// The decision could not be planned or stored. The current plan stays.
    Failed,
}

/// The mean imbalance of all layers on the latest steps, and its bound.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Imbalances {
    /// The imbalance on the plan before the decision.
    pub before: f64,
    /// The imbalance on the considered plan, without moves that do not pay.
    pub after: f64,
    /// The bound of any placement: ceil(total / ranks) in every batch.
    pub bound: f64,
}

/// The gain that follows per expected gain, estimated from earlier decisions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GainEstimate {
    /// The factor on expected gains. 1 means that they come as expected.
    pub ratio: f64,
    /// The standard error of the factor.
    pub error: f64,
    /// The number of earlier candidates that were measured.
    pub trials: usize,
}

/// The corrections of expected gains by earlier ones, of one phase.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct GainStatus {
    /// The correction of decisions in calm times.
    pub calm: GainEstimate,
    /// The correction of decisions that a rise of the imbalance triggered.
    pub after_break: GainEstimate,
}

impl Default for GainEstimate {
    /// Returns the estimate without evidence.
    fn default() -> Self {
        Self { ratio: 1.0, error: 0.5, trials: 0 }
    }
}

/// One decision and its reason, whether or not it changed the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Decision {
    /// The number of the decision. Decisions of a phase are numbered from 1.
    pub number: u64,
    /// The phase.
    pub phase: Phase,
    /// The id of the last step before the decision.
    pub step: Option<u64>,
    /// The number of steps accepted before the decision.
    pub accepted: u64,
    /// The trigger.
    pub trigger: Trigger,
    /// The outcome.
    pub outcome: DecisionOutcome,
    /// The reason, in a sentence.
    pub reason: String,
    /// The version of the current plan after the decision.
    pub plan: u64,
    /// The number of steps on which both plans were compared by exact splits.
    pub judged_steps: usize,
    /// The imbalances of both plans on these steps, and the bound.
    pub imbalance: Imbalances,
    /// The number of experts that ranks newly hold.
    pub moves: usize,
    /// The number of layers with moves.
    pub layers: usize,
    /// The number of moves that the policy proposed and that do not pay for themselves.
    pub rejected_moves: usize,
    /// The bytes of weights to transfer, if the model is known.
    pub bytes: Option<u64>,
    /// The bytes that the busiest receiver gets.
    pub busiest_bytes: Option<u64>,
    /// The expected milliseconds saved over the horizon, corrected by `calibration`.
    pub gain_ms: f64,
    /// The correction of the expected gain by the gains of earlier decisions.
    #[serde(default)]
    pub calibration: GainEstimate,
    /// The milliseconds against which the gain is weighed: those of the busiest receiver of each layer.
    pub cost_ms: f64,
    /// The milliseconds in which the busiest receiver of all layers gets its experts. Ranks receive at the
    /// same time.
    pub copy_ms: f64,
    /// The milliseconds that planning and judging took.
    pub duration_ms: f64,
    /// The seconds since 1970 by the service's clock, for display.
    pub timestamp_unix_s: u64,
}

/// The stated or assumed cost of transfers, the time that they may take, and the time that they took.
///
/// Time is that of accepted steps, `step_ms` each.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct CopyStatus {
    /// The model whose experts are transferred.
    pub model: String,
    /// The GPU on which a balanced batch runs.
    pub gpu: String,
    /// The bandwidth at which a rank receives, in gigabits per second.
    pub link_gbps: u64,
    /// The keys among `model`, `gpu` and `link_gbps` that are assumed, because the shape does not state them.
    pub assumed: Vec<String>,
    /// The milliseconds of one expert's transfer over the link.
    pub expert_ms: f64,
    /// The stated price of a move. Null means that it follows from the keys above.
    pub move_cost: Option<f64>,
    /// The assumed milliseconds of a step.
    pub step_ms: f64,
    /// The share of the time that transfers may take. Null means no limit.
    pub copy_share: Option<f64>,
    /// The milliseconds of all accepted steps.
    pub passed_ms: f64,
    /// The milliseconds of all transfers after the first plan: those of the busiest receiver of each plan.
    pub spent_ms: f64,
    /// The share of the transfers in the time of all accepted steps.
    pub spent_share: f64,
    /// The milliseconds that transfers may take now. Negative after transfers that could not wait, null
    /// without a limit.
    pub available_ms: Option<f64>,
}

/// Returns a share in percent, with the digits with which it was stated.
pub(crate) fn format_percent(share: f64) -> String {
    format!("{} %", (share * 1e8).round() / 1e6)
}

impl std::fmt::Display for CopyStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let note = |key: &str| if self.assumed.iter().any(|one| one == key) { " (assumed)" } else { "" };
        write!(
            f,
            "a copy takes {:.2} ms: an expert of {}{} over {} Gbit/s{}",
            self.expert_ms,
            self.model,
            note("model"),
            self.link_gbps,
            note("link_gbps")
        )?;
        match self.move_cost {
            Some(cost) => write!(f, "; a move costs {cost} batches, as stated")?,
            None => write!(f, "; batches run on {}{}", self.gpu, note("gpu"))?,
        }
        match self.copy_share {
            Some(share) => {
                write!(
                    f,
                    "; copies may take {} of the time, at {} ms a step",
                    format_percent(share),
                    self.step_ms
                )
            }
            None => write!(f, "; copies may take any time"),
        }
    }
}

/// A move: the weights of one expert copied to a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveRecord {
    /// The real layer id.
    pub layer: u32,
    /// The logical expert.
    pub expert: u32,
    /// A rank that held the expert before. Null if its last replica was lost.
    pub from: Option<u32>,
    /// The rank that newly holds it.
    pub to: u32,
    /// The slot that receives it.
    pub slot: u32,
}

/// Consecutive steps, as one point in the history of the imbalance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HistoryPoint {
    /// The number of steps accepted up to the end of the point.
    pub accepted: u64,
    /// The id of the last step of the point.
    pub step: u64,
    /// The number of steps in the point.
    pub steps: u32,
    /// The mean imbalance over steps and layers, by exact splits on the current plan.
    pub mean: f64,
    /// The imbalance of the worst layer in the worst step.
    pub max: f64,
    /// The mean bound of any placement.
    pub bound: f64,
    /// The version of the current plan at the end of the point.
    pub plan: u64,
    /// The seconds since 1970 at which the last step was processed, for display.
    pub timestamp_unix_s: u64,
}

impl HistoryPoint {
    /// Returns two adjacent points as one. `self` is the earlier one.
    pub(crate) fn merge_with(self, later: HistoryPoint) -> HistoryPoint {
        let (a, b) = (f64::from(self.steps), f64::from(later.steps));
        let mean = |x: f64, y: f64| (a * x + b * y) / (a + b);
        HistoryPoint {
            steps: self.steps + later.steps,
            mean: mean(self.mean, later.mean),
            max: self.max.max(later.max),
            bound: mean(self.bound, later.bound),
            ..later
        }
    }
}
