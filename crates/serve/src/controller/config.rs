//! The configured shape of a model, and the options of its decisions.

use super::price::DEFAULT_COPY_SHARE;
use crate::ranges;
use evenkeel::cluster::{Cluster, ClusterError};
use evenkeel::gpu::GpuSpec;
use evenkeel::model::MoeModel;
use evenkeel::place::{self, PlaceError, Policy};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

/// The expert-parallel group of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// The number of ranks.
    #[schema(minimum = 1, maximum = 1024)]
    pub ranks: usize,
    /// The number of redundant slots over all ranks.
    #[serde(default)]
    #[schema(maximum = 65536)]
    pub redundant: usize,
    /// The number of nodes.
    #[serde(default = "default_count")]
    #[schema(minimum = 1, maximum = 1024)]
    pub nodes: usize,
    /// The number of expert groups of the model (for `eplb`).
    #[serde(default = "default_count")]
    #[schema(minimum = 1, maximum = 65536)]
    pub groups: usize,
    /// The name of a model that determines the size of an expert, as in `deepseek-v3` or `deepseek-v3:bf16`.
    /// The default is the known model with the same number of experts and layers, else `deepseek-v3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The GPU that determines the cost of a move. The default is `h100`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// The bandwidth at which a rank receives, in gigabits per second, for the cost of a move. The default is
    /// that of machines with the GPU: inside a node if all ranks fit into one, else between nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub link_gbps: Option<u64>,
}

fn default_count() -> usize {
    1
}

/// The most steps over which the mean imbalance is compared with the drift threshold.
const MAX_DRIFT_STEPS: usize = 256;

/// The fewest steps on which forecasts are compared to choose the window. Fewer are too noisy for the choice.
const MIN_FORECAST_STEPS: u64 = 4;

/// The default horizon in steps: less than three minutes at 10 ms a step.
///
/// Loads of a deployment stay alike for longer. Transfers are bounded by their share of the time, however
/// long the horizon is.
const DEFAULT_HORIZON: u64 = 16_384;

/// The horizon, in steps, of a configuration that states `move_cost` in batches but no horizon.
pub const STATED_PRICE_HORIZON: u64 = 256;

/// The options of decisions.
///
/// All intervals are counted in steps, never in seconds, so that the same steps give the same decisions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControllerConfig {
    /// The placement policy.
    pub policy: String,
    /// The number of steps before the first plan.
    pub first_after: u64,
    /// The number of steps between two decisions.
    pub every: u64,
    /// The fewest steps between two decisions, also after a drift.
    pub min_every: u64,
    /// The rise of the mean imbalance of the last `min_every` steps above the expected one that triggers an
    /// early decision. 0 disables early decisions.
    pub drift: f64,
    /// The most past steps to plan on. Within this limit, the planner uses the window length that best
    /// predicted the latest steps.
    pub window: usize,
    /// The number of latest steps on which the old and the new plan are compared.
    pub judged: usize,
    /// The most moves per layer in one decision.
    pub max_moves: usize,
    /// The most moves in one decision over all layers. 0 means no limit.
    pub move_budget: usize,
    /// The number of steps within which moves have to pay for themselves. The default is
    /// [`STATED_PRICE_HORIZON`] for a configuration that states `move_cost` but no horizon.
    pub horizon: u64,
    /// The cost of a move in perfectly balanced batches of one layer. By default it is the time to receive an
    /// expert's weights over the link, divided by the time of such a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub move_cost: Option<f64>,
    /// The share of the time that transfers over one link may take. 0 means no limit. The default is
    /// [`DEFAULT_COPY_SHARE`](crate::DEFAULT_COPY_SHARE), and no limit if `move_cost` is stated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_share: Option<f64>,
    /// The assumed minimum duration of a step in milliseconds. `copy_share` is a share of this time.
    pub step_ms: f64,
    /// The smallest fall of the mean imbalance that justifies any move.
    pub min_gain: f64,
    /// The lag in steps above which a due decision is skipped.
    pub max_lag: u64,
    /// Makes and records decisions without publishing plans.
    pub dry_run: bool,
}

impl Default for ControllerConfig {
    fn default() -> Self {
        Self {
            policy: "recourse:exact".into(),
            first_after: 8,
            every: 64,
            min_every: 1,
            drift: 0.002,
            window: 256,
            judged: 32,
            max_moves: 16,
            move_budget: 0,
            horizon: DEFAULT_HORIZON,
            move_cost: None,
            copy_share: None,
            step_ms: 10.0,
            min_gain: 0.001,
            max_lag: 512,
            dry_run: false,
        }
    }
}

/// Error of an invalid shape or of invalid options.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A key has an invalid value.
    #[error("{key}: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// The actual and the expected value.
        reason: String,
    },
    /// The cluster is invalid.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The policy is unknown or does not fit.
    #[error("policy: {0}")]
    Policy(#[from] PlaceError),
}

/// Checks the numbers of a table against their ranges.
fn check_table(ranges: &[(&'static str, f64, f64)], table: &impl Serialize) -> Result<(), SpecError> {
    let table = serde_json::to_value(table).unwrap_or_default();
    ranges::check_ranges(ranges, &table).map_err(|(key, reason)| SpecError::Value { key, reason })
}

impl ModelSpec {
    /// Returns the cluster of this shape with `experts` experts.
    ///
    /// # Errors
    /// Fails if the slots do not divide evenly over the ranks. The message names the nearest numbers that do.
    pub fn cluster(&self, experts: usize) -> Result<Cluster, SpecError> {
        Ok(Cluster::new(self.ranks, self.nodes, experts, self.redundant)?)
    }

    /// Checks all keys that do not depend on the number of experts.
    ///
    /// # Errors
    /// [`SpecError`] names the key.
    pub fn check(&self) -> Result<(), SpecError> {
        check_table(ranges::SHAPE, self)?;
        Cluster::with_uneven_slots(self.ranks, self.nodes, 1, self.redundant)?;
        self.parsed_model()?;
        self.parsed_gpu()?;
        Ok(())
    }

    /// Returns the stated model.
    ///
    /// # Errors
    /// Fails if the model is unknown.
    pub fn parsed_model(&self) -> Result<Option<MoeModel>, SpecError> {
        let parsed = self.model.as_deref().map(str::parse).transpose();
        parsed.map_err(|e: evenkeel::model::UnknownModel| SpecError::Value {
            key: "model",
            reason: e.to_string(),
        })
    }

    /// Returns the stated GPU.
    ///
    /// # Errors
    /// Fails if the GPU is unknown.
    pub fn parsed_gpu(&self) -> Result<Option<GpuSpec>, SpecError> {
        let parsed = self.gpu.as_deref().map(str::parse).transpose();
        parsed.map_err(|e: evenkeel::gpu::UnknownGpu| SpecError::Value { key: "gpu", reason: e.to_string() })
    }
}

impl ControllerConfig {
    /// Checks the values of all keys.
    ///
    /// # Errors
    /// [`SpecError`] names the key.
    pub fn check(&self) -> Result<(), SpecError> {
        check_table(ranges::DECIDE, self)?;
        let any = Cluster::new(2, 1, 2, 0)?;
        // A topology may not fit these two ranks, so only an unknown name is an error here.
        match place::policy(&self.policy, 1, &any) {
            Err(error @ PlaceError::UnknownPolicy(_)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Returns the policy for a cluster.
    ///
    /// # Errors
    /// Fails if the policy is unknown, or its topology does not fit.
    pub fn build_policy(&self, groups: usize, cluster: &Cluster) -> Result<Box<dyn Policy>, SpecError> {
        Ok(place::policy(&self.policy, groups, cluster)?)
    }

    /// Returns the share of the time that transfers may take, or `None` without a limit.
    pub fn copy_share_limit(&self) -> Option<f64> {
        let share = match (self.copy_share, self.move_cost) {
            (Some(share), _) => share,
            (None, Some(_)) => 0.0,
            (None, None) => DEFAULT_COPY_SHARE,
        };
        (share > 0.0).then_some(share)
    }

    /// Returns the number of steps for which a plan has to hold at least: those until the next decision.
    pub fn forecast_steps(&self) -> usize {
        let steps = if self.drift > 0.0 {
            self.min_every.max(MIN_FORECAST_STEPS).min(self.every)
        } else {
            self.every
        };
        usize::try_from(steps).unwrap_or(usize::MAX).min(64)
    }

    /// Returns the number of past steps that a phase has to keep.
    pub fn retained_steps(&self) -> usize {
        self.window.max(self.judged).max(self.drift_steps())
    }

    /// Returns the number of latest steps whose mean imbalance is compared with the drift threshold.
    pub(super) fn drift_steps(&self) -> usize {
        usize::try_from(self.min_every).unwrap_or(MAX_DRIFT_STEPS).min(MAX_DRIFT_STEPS)
    }
}
