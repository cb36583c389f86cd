//! The data of the page: `/history` has the imbalance over time and every decision, `/view` the current
//! state.

use super::AppState;
use super::body::StrictQuery;
use super::error::{ApiError, ErrorResponses};
use super::models::phase_status;
use crate::wire::decision::Decision;
use crate::wire::status::{PhaseHistory, PhaseView};
use crate::{Phase, PhaseWorker};
use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use std::sync::PoisonError;
use utoipa::IntoParams;

/// The number of decisions in a view. The history has all of them.
const MAX_VIEW_DECISIONS: usize = 16;

/// The choice of a phase.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PhaseQuery {
    /// The phase; required if several phases have loads.
    phase: Option<Phase>,
}

/// Show the past: imbalance and decisions
#[utoipa::path(get, path = "/v1/models/{model}/history", tag = "view",
    params(("model" = String, Path, description = "the model's name"), PhaseQuery),
    responses((status = 200, body = PhaseHistory), ErrorResponses))]
pub(super) async fn get_history(
    State(app): State<AppState>,
    Path(name): Path<String>,
    StrictQuery(query): StrictQuery<PhaseQuery>,
) -> Result<Json<PhaseHistory>, ApiError> {
    let worker = app.find_worker(&name, query.phase)?;
    let points = worker.state().points().to_vec();
    Ok(Json(PhaseHistory { points, decisions: latest_decisions(&worker, usize::MAX) }))
}

/// Show the current state in one reply
#[utoipa::path(get, path = "/v1/models/{model}/view", tag = "view",
    params(("model" = String, Path, description = "the model's name"), PhaseQuery),
    responses((status = 200, body = PhaseView), ErrorResponses))]
pub(super) async fn get_view(
    State(app): State<AppState>,
    Path(name): Path<String>,
    StrictQuery(query): StrictQuery<PhaseQuery>,
) -> Result<Json<PhaseView>, ApiError> {
    let worker = app.find_worker(&name, query.phase)?;
    let status = phase_status(&app.service, &worker);
    let state = worker.state();
    Ok(Json(PhaseView {
        model: name,
        shape: state.shape().clone(),
        ranks: state.active_ranks(),
        state: status,
        verdict: state.time_verdict(),
        steps: state.displayed_steps(),
        heat: state.heatmap_layers(),
        hottest: state.hottest_experts(),
        preview: state.preview().cloned(),
        decisions: latest_decisions(&worker, MAX_VIEW_DECISIONS),
    }))
}

fn latest_decisions(worker: &PhaseWorker, most: usize) -> Vec<Decision> {
    let all = worker.decisions.read().unwrap_or_else(PoisonError::into_inner);
    all.iter().skip(all.len().saturating_sub(most)).cloned().collect()
}
