//! What a model is and how its plans are decided, as configured.

use super::price::DEFAULT_COPY_SHARE;
use crate::cluster::{Cluster, ClusterError};
use crate::gpu::Gpu;
use crate::model::Model;
use crate::place::{self, PlaceError, Policy};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

/// The expert-parallel group of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Ranks.
    #[schema(minimum = 1, maximum = 1024)]
    pub ranks: usize,
    /// Redundant slots in all, not per rank.
    #[serde(default)]
    #[schema(maximum = 65536)]
    pub redundant: usize,
    /// Nodes that the ranks sit in.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 1024)]
    pub nodes: usize,
    /// Expert groups of the model (for `eplb`).
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 65536)]
    pub groups: usize,
    /// What an expert weighs: a model's name, as in `deepseek-v3` or `deepseek-v3:bf16`. Without it the price of
    /// moves is that of the known model with as many experts and layers, or of `deepseek-v3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The GPU, for the price of moves; `h100` is assumed where it is not stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// What a rank receives, in gigabits per second, for the price of moves; 100 is assumed where it is not stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    pub link_gbps: Option<u64>,
}

fn one() -> usize {
    1
}

/// The horizon where a configuration states the price of a move in batches and no horizon.
pub const STATED_PRICE_HORIZON: u64 = 256;

/// How plans are decided.
///
/// Everything is counted in steps, never in seconds: the same steps give the same decisions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecideOptions {
    /// The placement policy.
    pub policy: String,
    /// Steps before the first plan.
    pub first_after: u64,
    /// Steps between two decisions.
    pub every: u64,
    /// Least steps between two decisions, also when loads drift.
    pub min_every: u64,
    /// Decide early when the imbalance of the last `min_every` steps is so much above what the last decision expected; 0: never.
    pub drift: f64,
    /// Most past steps to plan on; of these, as many as would have foreseen the latest best.
    pub window: usize,
    /// Latest steps that before and after are compared on.
    pub judged: usize,
    /// Most moves per layer in one decision.
    pub max_moves: usize,
    /// Most moves in one decision, all layers together; 0: no limit.
    pub move_budget: usize,
    /// Steps that a plan is expected to be used for: what moves have to pay within. A configuration that states `move_cost` and
    /// no horizon has [`STATED_PRICE_HORIZON`].
    pub horizon: u64,
    /// What a move costs, in perfectly balanced batches of one layer. Without it the price is the time to receive an
    /// expert's weights over the link against the time of such a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub move_cost: Option<f64>,
    /// Share of the time that copies may take, all through one link; 0: no limit. Without it the share is
    /// [`DEFAULT_COPY_SHARE`](super::DEFAULT_COPY_SHARE), and there is no limit where `move_cost` is stated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_share: Option<f64>,
    /// Milliseconds that a step is assumed to take at least: what `copy_share` is a share of.
    pub step_ms: f64,
    /// Least fall of the mean imbalance for which anything is moved.
    pub min_gain: f64,
    /// A decision for which the service is more steps behind is passed over.
    pub max_behind: u64,
    /// Decide and record, but never publish.
    pub dry_run: bool,
}

impl Default for DecideOptions {
    fn default() -> Self {
        Self {
            policy: "recourse:exact".into(),
            first_after: 8,
            every: 64,
            min_every: 8,
            drift: 0.05,
            window: 256,
            judged: 32,
            max_moves: 4,
            move_budget: 0,
            horizon: 1024,
            move_cost: None,
            copy_share: None,
            step_ms: 10.0,
            min_gain: 0.002,
            max_behind: 512,
            dry_run: false,
        }
    }
}

/// Why a shape or options cannot be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SpecError {
    /// A key holds what it should not.
    #[error("{key}: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// The cluster cannot be.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The policy cannot be had.
    #[error("policy: {0}")]
    Policy(#[from] PlaceError),
}

impl Shape {
    /// The cluster for so many experts.
    ///
    /// # Errors
    /// When slots do not divide over the ranks; the message names the nearest numbers that do.
    pub fn cluster(&self, experts: usize) -> Result<Cluster, SpecError> {
        Ok(Cluster::new(self.ranks, self.nodes, experts, self.redundant)?)
    }

    /// Holds everything that can be checked without the number of experts.
    ///
    /// # Errors
    /// [`SpecError`] names the key.
    pub fn check(&self) -> Result<(), SpecError> {
        let value = |key, reason: String| Err(SpecError::Value { key, reason });
        Cluster::uneven(self.ranks, self.nodes, 1, self.redundant)?;
        if self.groups == 0 {
            return value("groups", "0, expected 1 at least".into());
        }
        if self.link_gbps == Some(0) {
            return value("link_gbps", "0, expected 1 at least".into());
        }
        self.parsed_model()?;
        self.parsed_gpu()?;
        Ok(())
    }

    /// The model that was named.
    ///
    /// # Errors
    /// When it is unknown.
    pub fn parsed_model(&self) -> Result<Option<Model>, SpecError> {
        let parsed = self.model.as_deref().map(str::parse).transpose();
        parsed
            .map_err(|e: crate::model::UnknownModel| SpecError::Value { key: "model", reason: e.to_string() })
    }

    /// The GPU that was named.
    ///
    /// # Errors
    /// When it is unknown.
    pub fn parsed_gpu(&self) -> Result<Option<Gpu>, SpecError> {
        let parsed = self.gpu.as_deref().map(str::parse).transpose();
        parsed.map_err(|e: crate::gpu::UnknownGpu| SpecError::Value { key: "gpu", reason: e.to_string() })
    }
}

impl DecideOptions {
    /// Holds the options to what they may be.
    ///
    /// # Errors
    /// [`SpecError`] names the key.
    pub fn check(&self) -> Result<(), SpecError> {
        let value = |key, reason: &str| Err(SpecError::Value { key, reason: reason.to_owned() });
        let positive = [
            ("first_after", self.first_after),
            ("every", self.every),
            ("min_every", self.min_every),
            ("window", self.window as u64),
            ("judged", self.judged as u64),
            ("horizon", self.horizon),
        ];
        if let Some((key, _)) = positive.into_iter().find(|&(_, number)| number == 0) {
            return value(key, "0, expected 1 at least");
        }
        if self.window > 65_536 {
            return value("window", "expected at most 65536 steps");
        }
        let move_cost = self.move_cost.unwrap_or_default();
        for (key, number) in [("drift", self.drift), ("move_cost", move_cost), ("min_gain", self.min_gain)] {
            if !(0.0..=1e6).contains(&number) {
                return value(key, "expected a number from 0 to 1000000");
            }
        }
        if !(0.0..=1.0).contains(&self.copy_share.unwrap_or_default()) {
            return value("copy_share", "expected a number from 0 to 1");
        }
        if !(0.001..=3_600_000.0).contains(&self.step_ms) {
            return value("step_ms", "expected 0.001 to 3600000 milliseconds");
        }
        let any = Cluster::new(2, 1, 2, 0)?;
        // Topologies may not fit these two ranks: only unknown names are told here.
        match place::policy(&self.policy, 1, &any) {
            Err(error @ PlaceError::UnknownPolicy(_)) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The policy for a cluster.
    ///
    /// # Errors
    /// When it is unknown, or its topology does not fit.
    pub fn policy(&self, groups: usize, cluster: &Cluster) -> Result<Box<dyn Policy>, SpecError> {
        Ok(place::policy(&self.policy, groups, cluster)?)
    }

    /// Returns the share of the time that copies may take; none where there is no limit.
    pub fn share_of_copies(&self) -> Option<f64> {
        let share = match (self.copy_share, self.move_cost) {
            (Some(share), _) => share,
            (None, Some(_)) => 0.0,
            (None, None) => DEFAULT_COPY_SHARE,
        };
        (share > 0.0).then_some(share)
    }

    /// Steps ahead that are foreseen at least: those until the next decision.
    pub fn ahead(&self) -> usize {
        let steps = if self.drift > 0.0 { self.min_every.min(self.every) } else { self.every };
        usize::try_from(steps).unwrap_or(usize::MAX).min(64)
    }

    /// Past steps that have to be kept.
    pub fn kept(&self) -> usize {
        self.window.max(self.judged).max(usize::try_from(self.min_every).unwrap_or(usize::MAX).min(65_536))
    }
}
