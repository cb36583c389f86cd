//! `/v1/models`: the models and their states.

use super::AppState;
use super::auth::RequestPeer;
use super::body::{JSON_TYPE, content_type, receive_body};
use super::error::{ApiError, ErrorResponses};
use crate::runtime::service::{ServedModel, Service};
use crate::runtime::unix_seconds;
use crate::wire::status::{ModelList, ModelStatus, PhaseStatus, RunStatus};
use crate::{ModelSpec, Phase, PhaseWorker};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The most bytes of memory per byte of a shape.
const SHAPE_COST: usize = 4;
/// The fewest seconds without steps after which the loads of a phase count as stopped.
const MIN_STOPPED_SECONDS: u64 = 10;

/// Returns the state of a worker's phase.
pub(crate) fn phase_status(service: &Service, worker: &PhaseWorker) -> PhaseStatus {
    let last_step_unix_s = worker.last_step_unix_s();
    let sources = service.sources();
    let dumped = sources
        .iter()
        .filter(|source| source.model == worker.model && source.phase == worker.phase)
        .filter_map(|source| source.dump_seconds);
    let pause = dumped.max().unwrap_or(0);
    let state = worker.state();
    let options = state.options();
    let wait = if state.plan_version() == 0 { options.first_after } else { options.every };
    PhaseStatus {
        phase: worker.phase,
        layers: state.layers().to_vec(),
        experts: state.experts(),
        accepted: state.accepted_steps(),
        step: state.last_step(),
        run: worker.current_run().map(|run| RunStatus { number: run.number, id: run.id, first: run.first }),
        lag: worker.lag(),
        planning: worker.planning.load(Ordering::Relaxed),
        // The published plan counts: one that is still being stored does not.
        plan: worker.published_plan().map_or(0, |served| served.version),
        plan_step: state.plan_step(),
        due_in: wait.saturating_sub(state.steps_since_decision()),
        decisions: state.decision_count(),
        down: state.down_ranks().into_iter().collect(),
        latest: state.latest_point().copied(),
        last_step_unix_s,
        quiet_seconds: last_step_unix_s.map(|at| unix_seconds().saturating_sub(at)),
        stopped_after_seconds: state.usual_pause().max(pause).saturating_mul(3).max(MIN_STOPPED_SECONDS),
        copies: state.copy_status(),
        gains: state.gain_status(),
        observed_step_ms: state.observed_step_ms(),
    }
}

/// Returns the state of a model.
fn model_status(service: &Service, model: &ServedModel) -> ModelStatus {
    let options = model.options.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    ModelStatus {
        name: model.name.clone(),
        shape: model.shape.clone(),
        decide: options,
        phases: model.workers().iter().map(|worker| phase_status(service, worker)).collect(),
        sources: service
            .sources()
            .iter()
            .filter(|source| source.model == model.name)
            .map(|source| source.state())
            .collect(),
    }
}

/// List all models
#[utoipa::path(get, path = "/v1/models", tag = "models", responses((status = 200, body = ModelList), ErrorResponses))]
pub(super) async fn list_models(State(app): State<AppState>) -> Json<ModelList> {
    let models = app.service.models();
    Json(ModelList { models: models.iter().map(|model| model_status(&app.service, model)).collect() })
}

/// Show the state of a model
#[utoipa::path(get, path = "/v1/models/{model}", tag = "models",
    params(("model" = String, Path, description = "the model's name")),
    responses((status = 200, body = ModelStatus), ErrorResponses))]
pub(super) async fn get_model(
    State(app): State<AppState>,
    Path(name): Path<String>,
) -> Result<Json<ModelStatus>, ApiError> {
    Ok(Json(model_status(&app.service, &*app.find_model(&name)?)))
}

/// Create a model
///
/// The same shape again changes nothing (200). Another shape replaces the model as long as no step was
/// accepted (201), and is refused afterwards (409). The first loads determine layers and experts.
#[utoipa::path(put, path = "/v1/models/{model}", tag = "models",
    params(("model" = String, Path, description = "1 to 64 letters, digits, `-`, `_` or `.`")),
    request_body = ModelSpec,
    responses((status = 200, body = ModelStatus), (status = 201, body = ModelStatus), ErrorResponses))]
pub(super) async fn put_model(
    State(app): State<AppState>,
    Path(name): Path<String>,
    peer: Option<Extension<RequestPeer>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    content_type(&headers, &[JSON_TYPE])?;
    let body = receive_body(&app.service, peer.as_deref(), &headers, body, SHAPE_COST).await?;
    let shape: ModelSpec = serde_json::from_slice(&body.bytes).map_err(|error| {
        ApiError::bad_request(error.to_string(), "{\"ranks\": R, \"redundant\": SLOTS, ..}")
    })?;
    let service = app.service.clone();
    let (model, new) = run_blocking(move || service.create_model(&name, &shape)).await??;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(model_status(&app.service, &model))).into_response())
}

/// Delete a model
///
/// Its steps, decisions and plans are deleted with it. A model that the configuration names is created again
/// at once, empty.
#[utoipa::path(delete, path = "/v1/models/{model}", tag = "models",
    params(("model" = String, Path, description = "the model's name")),
    responses((status = 204, description = "deleted"), ErrorResponses))]
pub(super) async fn delete_model(
    State(app): State<AppState>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    app.find_model(&name)?;
    let service = app.service.clone();
    run_blocking(move || service.delete_model(&name)).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Runs work that may wait for the disk outside the request threads.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal_error(error.to_string()))
}

impl AppState {
    /// Returns a model by name.
    pub(super) fn find_model(&self, name: &str) -> Result<Arc<ServedModel>, ApiError> {
        self.service.model(name).ok_or_else(|| {
            let names: Vec<String> = self.service.models().iter().map(|model| model.name.clone()).collect();
            let there = if names.is_empty() {
                "no model exists yet".into()
            } else {
                format!("existing models: {}", names.join(", "))
            };
            ApiError::not_found(
                format!("no model {name:?}"),
                format!("PUT /v1/models/{{model}} creates one; {there}"),
            )
        })
    }

    /// Returns the worker of the stated phase, or the only worker of the model.
    pub(super) fn find_worker(&self, name: &str, phase: Option<Phase>) -> Result<Arc<PhaseWorker>, ApiError> {
        let model = self.find_model(name)?;
        let workers = model.workers();
        let names: Vec<&str> = workers.iter().map(|worker| worker.phase.name()).collect();
        match (phase, workers.as_slice()) {
            (_, []) => Err(ApiError::not_found(
                format!("no loads of {name} yet"),
                "POST /v1/models/{model}/loads first",
            )),
            (None, [only]) => Ok(only.clone()),
            (None, _) => match model.worker(Phase::All) {
                Some(worker) => Ok(worker),
                None => Err(ApiError::bad_request(
                    "no phase, although several phases have loads",
                    format!("?phase= with one of {}", names.join(", ")),
                )),
            },
            (Some(phase), _) => model.worker(phase).ok_or_else(|| {
                ApiError::not_found(
                    format!("no loads of phase {phase} yet"),
                    format!("one of {}", names.join(", ")),
                )
            }),
        }
    }
}
