//! What the service tells: as much of its documents as is shown.

use super::super::client::Client;
use anyhow::Context as _;
use evenkeel::serve::{Decision, Next, Phase, Point, Shape};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A model, and the phases it is fed.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) phases: Vec<State>,
}

/// How a phase stands.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) experts: usize,
    pub(super) layers: Vec<u32>,
    pub(super) step: Option<u64>,
    pub(super) behind: u64,
    pub(super) planning: bool,
    pub(super) plan: u64,
    pub(super) plan_step: Option<u64>,
    pub(super) due_in: u64,
    pub(super) decisions: u64,
    pub(super) down: Vec<usize>,
    pub(super) latest: Option<Point>,
    #[serde(default)]
    pub(super) quiet_seconds: Option<u64>,
    #[serde(default)]
    pub(super) stopped_after_seconds: u64,
}

impl State {
    /// Seconds since loads came, where they have stopped.
    pub(super) fn stopped(&self) -> Option<u64> {
        self.quiet_seconds.filter(|&quiet| quiet > self.stopped_after_seconds)
    }
}

/// `/view`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct View {
    pub(super) model: String,
    pub(super) shape: Shape,
    /// Real ranks, the columns of `heat`.
    pub(super) ranks: Vec<u32>,
    pub(super) state: State,
    pub(super) heat: Vec<Line>,
    pub(super) hottest: Vec<Hot>,
    pub(super) next: Option<Next>,
    pub(super) decisions: Vec<Decision>,
}

/// One layer of the heat map.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Line {
    pub(super) layer: u32,
    pub(super) imbalance: f64,
    /// Load over mean, `[R]`.
    pub(super) ranks: Vec<f32>,
}

/// One of the hottest experts.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Hot {
    pub(super) layer: u32,
    pub(super) expert: u32,
    pub(super) over_mean: f64,
    pub(super) ranks: Vec<u32>,
}

/// `/history`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct History {
    pub(super) points: Vec<Point>,
    pub(super) decisions: Vec<Decision>,
}

/// What asking for a plan is answered with.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Replanned {
    pub(super) decision: Decision,
    pub(super) next: Option<Next>,
}

/// Everything that is shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) models: Vec<Model>,
    /// None while nothing is fed.
    pub(super) view: Option<View>,
    pub(super) history: History,
}

/// Which model and phase is looked at.
pub(super) type Choice = (String, Phase);

impl Seen {
    /// All that can be looked at.
    pub(super) fn choices(&self) -> Vec<Choice> {
        let of = |model: &Model| -> Vec<Choice> {
            model.phases.iter().map(|state| (model.name.clone(), state.phase)).collect()
        };
        self.models.iter().flat_map(of).collect()
    }

    /// What is looked at.
    pub(super) fn choice(&self) -> Option<Choice> {
        self.view.as_ref().map(|view| (view.model.clone(), view.state.phase))
    }

    /// Mean imbalance of the latest steps by the plan in force, over the busy layers.
    pub(super) fn imbalance(&self) -> Option<f64> {
        let heat = self.view.iter().flat_map(|view| &view.heat);
        let busy: Vec<f64> = heat.map(|line| line.imbalance).filter(|&imbalance| imbalance > 0.0).collect();
        (!busy.is_empty()).then(|| busy.iter().sum::<f64>() / busy.len() as f64)
    }
}

pub(super) fn read<T: DeserializeOwned>(value: Value, what: &str) -> anyhow::Result<T> {
    serde_json::from_value(value)
        .with_context(|| format!("{what} is not as expected: is it another version of evenkeel?"))
}

/// The models of a service.
pub(super) fn models(client: &Client) -> anyhow::Result<Vec<Model>> {
    read(client.get("/v1/models")?["models"].take(), "/v1/models")
}

/// Path of a model's resource.
pub(super) fn path((model, phase): &Choice, rest: &str) -> String {
    format!("/v1/models/{model}{rest}phase={phase}")
}
