//! Documents of the service, reduced to the displayed fields.

use crate::client::ServiceClient;
use anyhow::Context as _;
use evenkeel_serve::{Decision, HistoryPoint, ModelSpec, Phase, PlanPreview};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A model and its phases.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ModelStatus {
    pub(super) name: String,
    pub(super) phases: Vec<PhaseState>,
}

/// State of a phase.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct PhaseState {
    pub(super) phase: Phase,
    pub(super) experts: usize,
    pub(super) layers: Vec<u32>,
    pub(super) step: Option<u64>,
    pub(super) lag: u64,
    pub(super) planning: bool,
    pub(super) plan: u64,
    pub(super) plan_step: Option<u64>,
    pub(super) due_in: u64,
    pub(super) decisions: u64,
    pub(super) down: Vec<usize>,
    pub(super) latest: Option<HistoryPoint>,
    #[serde(default)]
    pub(super) quiet_seconds: Option<u64>,
    #[serde(default)]
    pub(super) stopped_after_seconds: u64,
}

impl PhaseState {
    /// Returns the seconds since the last loads, if they have stopped.
    pub(super) fn stopped_seconds(&self) -> Option<u64> {
        self.quiet_seconds.filter(|&quiet| quiet > self.stopped_after_seconds)
    }
}

/// Document of `/view`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ModelView {
    pub(super) model: String,
    pub(super) shape: ModelSpec,
    /// Real ranks, the columns of `heat`.
    pub(super) ranks: Vec<u32>,
    pub(super) state: PhaseState,
    pub(super) heat: Vec<LayerHeat>,
    pub(super) hottest: Vec<HotExpert>,
    pub(super) preview: Option<PlanPreview>,
    pub(super) decisions: Vec<Decision>,
}

/// One layer of the heat map.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct LayerHeat {
    pub(super) layer: u32,
    pub(super) imbalance: f64,
    /// Load over mean, `[R]`.
    pub(super) ranks: Vec<f32>,
}

/// One of the hottest experts.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct HotExpert {
    pub(super) layer: u32,
    pub(super) expert: u32,
    pub(super) over_mean: f64,
    pub(super) ranks: Vec<u32>,
}

/// Document of `/history`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct ModelHistory {
    pub(super) points: Vec<HistoryPoint>,
    pub(super) decisions: Vec<Decision>,
}

/// Reply to a request for a re-planning.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ReplanReply {
    pub(super) decision: Decision,
    pub(super) preview: Option<PlanPreview>,
}

/// All displayed data.
#[derive(Debug, Clone, Default)]
pub(super) struct ServiceState {
    pub(super) models: Vec<ModelStatus>,
    /// View of the chosen phase; `None` before any loads arrive.
    pub(super) view: Option<ModelView>,
    pub(super) history: ModelHistory,
}

/// The displayed model and phase.
pub(super) type PhaseChoice = (String, Phase);

impl ServiceState {
    /// Returns all models and phases that can be displayed.
    pub(super) fn phase_choices(&self) -> Vec<PhaseChoice> {
        let phases_of = |model: &ModelStatus| -> Vec<PhaseChoice> {
            model.phases.iter().map(|state| (model.name.clone(), state.phase)).collect()
        };
        self.models.iter().flat_map(phases_of).collect()
    }

    /// Returns the displayed model and phase.
    pub(super) fn shown_choice(&self) -> Option<PhaseChoice> {
        self.view.as_ref().map(|view| (view.model.clone(), view.state.phase))
    }

    /// Returns the mean imbalance of the latest steps under the current plan, over the busy layers.
    pub(super) fn mean_imbalance(&self) -> Option<f64> {
        let heat = self.view.iter().flat_map(|view| &view.heat);
        let busy: Vec<f64> = heat.map(|line| line.imbalance).filter(|&imbalance| imbalance > 0.0).collect();
        (!busy.is_empty()).then(|| busy.iter().sum::<f64>() / busy.len() as f64)
    }
}

pub(super) fn parse_document<T: DeserializeOwned>(value: Value, path: &str) -> anyhow::Result<T> {
    serde_json::from_value(value).with_context(|| {
        format!("{path} is not as expected: the service may have another version of evenkeel")
    })
}

/// Returns the models of a service.
pub(super) fn fetch_models(client: &ServiceClient) -> anyhow::Result<Vec<ModelStatus>> {
    let mut list = client.get_json("/v1/models")?;
    parse_document(list.get_mut("models").map(Value::take).unwrap_or_default(), "/v1/models")
}

/// Returns the path of a model's resource.
pub(super) fn resource_path((model, phase): &PhaseChoice, rest: &str) -> String {
    format!("/v1/models/{model}{rest}phase={phase}")
}
