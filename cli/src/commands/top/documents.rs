//! Displayed data, as the service sends it.

use crate::client::ServiceClient;
use anyhow::Context as _;
use evenkeel_serve::Phase;
use evenkeel_serve::wire::{ModelStatus, PhaseHistory, PhaseStatus, PhaseView};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Returns the seconds since the last loads of a phase, if they have stopped.
pub(super) fn stopped_seconds(state: &PhaseStatus) -> Option<u64> {
    state.quiet_seconds.filter(|&quiet| quiet > state.stopped_after_seconds)
}

/// All displayed data.
#[derive(Debug, Clone, Default)]
pub(super) struct ServiceState {
    pub(super) models: Vec<ModelStatus>,
    /// View of the chosen phase; `None` before any loads arrive.
    pub(super) view: Option<PhaseView>,
    pub(super) history: PhaseHistory,
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
