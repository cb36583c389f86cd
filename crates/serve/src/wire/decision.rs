//! What the service tells about itself: decisions, moves, points of its history. Plain data, as JSON shows it.

use super::Phase;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a decision was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// Enough steps for a first plan.
    First,
    /// `every` steps since the last decision.
    Interval,
    /// The imbalance rose by more than `drift` above what the last decision expected.
    Drift,
    /// Somebody asked.
    Asked,
    /// A rank is gone.
    RankDown,
    /// A rank is back.
    RankUp,
}

/// What came of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A new plan is in force.
    Acted,
    /// The plan in force stays.
    Kept,
    /// A new plan would be in force, were this not a dry run.
    DryRun,
    /// The service was too far behind its loads to plan.
    PassedOver,
    /// It could not be planned or stored; the plan in force stays.
    Failed,
}

/// Mean peak over mean load of all layers on the latest steps, the least that any placement could have had included.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Imbalances {
    /// With the plan that was in force.
    pub before: f64,
    /// With the plan that was considered, as far as its moves pay.
    pub after: f64,
    /// What no placement can be below: ceil(total / ranks) in every batch.
    pub bound: f64,
}

/// One decision, acted upon or not, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Decision {
    /// Decisions of this phase are numbered from 1.
    pub number: u64,
    /// The phase.
    pub phase: Phase,
    /// Id of the last step that it looked at.
    pub step: Option<u64>,
    /// How many steps had been accepted by then.
    pub accepted: u64,
    /// Why it was due.
    pub trigger: Trigger,
    /// What came of it.
    pub outcome: Outcome,
    /// Why, in a sentence.
    pub reason: String,
    /// Version of the plan in force afterwards.
    pub plan: u64,
    /// Steps that before and after were compared on, by exact splits.
    pub judged_steps: usize,
    /// Before, after and the bound, on those.
    pub imbalance: Imbalances,
    /// Experts that ranks newly hold.
    pub moves: usize,
    /// Layers in which something moves.
    pub layers: usize,
    /// Moves that the policy proposed and that would not pay.
    pub moves_left_out: usize,
    /// Bytes of weights to copy, where the model is known.
    pub bytes: Option<u64>,
    /// Bytes that the busiest receiver gets.
    pub busiest_bytes: Option<u64>,
    /// Expected gain over the horizon, in perfectly balanced batches of one layer.
    pub gain: f64,
    /// Cost of the moves, in the same unit.
    pub cost: f64,
    /// Milliseconds that the copies take, one after the other over one link.
    #[serde(default)]
    pub copy_ms: f64,
    /// Milliseconds that planning and judging took.
    pub took_ms: f64,
    /// Seconds since 1970 by the service's clock, for display.
    pub at: u64,
}

/// The price of copies, stated or assumed, and the time that they may take and took.
///
/// Time is that of accepted steps, `step_ms` each.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct CopyStatus {
    /// The model whose experts are copied.
    pub model: String,
    /// The GPU that a balanced batch runs on.
    pub gpu: String,
    /// Gigabits per second that a rank receives.
    pub link_gbps: u64,
    /// Which of `model`, `gpu` and `link_gbps` are assumed, as the shape does not state them.
    pub assumed: Vec<String>,
    /// Milliseconds that one expert takes over the link.
    pub expert_ms: f64,
    /// The stated price of a move; null where it follows from the above.
    pub move_cost: Option<f64>,
    /// Milliseconds that a step is assumed to take.
    pub step_ms: f64,
    /// Share of the time that copies may take; null: no limit.
    pub copy_share: Option<f64>,
    /// Milliseconds of all accepted steps.
    pub passed_ms: f64,
    /// Milliseconds of all copies after the first plan, one after the other over one link.
    pub spent_ms: f64,
    /// Their share of the time.
    pub spent_share: f64,
    /// Milliseconds that copies may take now; negative after copies that could not wait, null without a limit.
    pub available_ms: Option<f64>,
}

/// Writes a share in percent, with the digits that it was given with.
pub(super) fn percent(share: f64) -> String {
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
                write!(f, "; copies may take {} of the time, at {} ms a step", percent(share), self.step_ms)
            }
            None => write!(f, "; copies may take any time"),
        }
    }
}

/// One expert copied to a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveRecord {
    /// Real layer id.
    pub layer: u32,
    /// Logical expert.
    pub expert: u32,
    /// A rank that holds it before; none where its last copy was lost.
    pub from: Option<u32>,
    /// The rank that newly holds it.
    pub to: u32,
    /// The slot it goes to.
    pub slot: u32,
}

/// A stretch of steps in the history of the imbalance.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Point {
    /// Steps accepted by its end.
    pub accepted: u64,
    /// Id of its last step.
    pub step: u64,
    /// Steps in it.
    pub steps: u32,
    /// Mean over steps and layers of peak over mean, exact splits on the plan in force.
    pub mean: f64,
    /// The worst layer's in the worst step.
    pub max: f64,
    /// Least mean that any placement could have had.
    pub bound: f64,
    /// Version of the plan in force at its end.
    pub plan: u64,
    /// Seconds since 1970 at which its last step was looked at, for display.
    pub at: u64,
}

impl Point {
    /// Two stretches as one; `self` comes first.
    pub(crate) fn joined(self, later: Point) -> Point {
        let (a, b) = (f64::from(self.steps), f64::from(later.steps));
        let mean = |x: f64, y: f64| (a * x + b * y) / (a + b);
        Point {
            steps: self.steps + later.steps,
            mean: mean(self.mean, later.mean),
            max: self.max.max(later.max),
            bound: mean(self.bound, later.bound),
            ..later
        }
    }
}

/// Seconds since 1970; 0 for a clock set before that.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
