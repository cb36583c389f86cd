//! `/v1/models`: which models there are, and how they stand.

use super::App;
use super::body::{bytes, content_type};
use super::error::{ApiError, Refusals};
use crate::serve::record::{CopyStatus, Point, now};
use crate::serve::service::{Model, Service};
use crate::serve::sources::SourceState;
use crate::serve::{DecideOptions, Feed, Phase, Shape};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use utoipa::ToSchema;

/// Least seconds without steps after which a feed counts as stopped.
const STOPPED_AFTER: u64 = 10;

/// All models.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// By name.
    pub(crate) models: Vec<ModelState>,
}

/// How a model stands.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ModelState {
    /// Its name.
    pub(crate) name: String,
    /// Its group.
    pub(crate) shape: Shape,
    /// How its plans are decided.
    #[schema(value_type = Object)]
    pub(crate) decide: DecideOptions,
    /// The phases that were fed.
    pub(crate) phases: Vec<PhaseState>,
    /// The sources that its loads are fetched from.
    pub(crate) sources: Vec<SourceState>,
}

/// How a phase of a model stands.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PhaseState {
    /// The phase.
    pub(crate) phase: Phase,
    /// Real layer ids.
    pub(crate) layers: Vec<u32>,
    /// Logical experts per layer.
    pub(crate) experts: usize,
    /// Steps looked at so far.
    pub(crate) accepted: u64,
    /// Id of the last of them.
    pub(crate) step: Option<u64>,
    /// Accepted steps that are still to be looked at.
    pub(crate) behind: u64,
    /// Is a decision being worked out?
    pub(crate) planning: bool,
    /// Version of the plan in force; 0: none yet.
    pub(crate) plan: u64,
    /// Id of the step after which it was decided.
    pub(crate) plan_step: Option<u64>,
    /// Steps until the next decision is due at the latest.
    pub(crate) due_in: u64,
    /// Decisions so far.
    pub(crate) decisions: u64,
    /// Ranks that are gone.
    pub(crate) down: Vec<usize>,
    /// How the latest step was served.
    pub(crate) latest: Option<Point>,
    /// Seconds since 1970 at which steps were last accepted.
    pub(crate) fed_at: Option<u64>,
    /// Seconds since then, by the service's clock.
    pub(crate) quiet_seconds: Option<u64>,
    /// Seconds without steps after which the feed counts as stopped: three times its usual pauses, 10 at least.
    pub(crate) stopped_after_seconds: u64,
    /// The price of copies, and the time that they may take.
    pub(crate) copies: CopyStatus,
    /// Milliseconds between two of the latest steps, by the service's clock; for comparison with `step_ms`, decides nothing.
    pub(crate) observed_step_ms: Option<f64>,
}

impl PhaseState {
    pub(crate) fn of(service: &Service, feed: &Feed) -> Self {
        let fed_at = feed.fed_at();
        let sources = service.sources();
        let dumped = sources
            .iter()
            .filter(|source| source.model == feed.model && source.phase == feed.phase)
            .filter_map(|source| source.dump_seconds);
        let pause = dumped.max().unwrap_or(0);
        let lane = feed.lane();
        let wait = if lane.version() == 0 { lane.options.first_after } else { lane.options.every };
        Self {
            phase: feed.phase,
            layers: lane.layers.clone(),
            experts: lane.experts,
            accepted: lane.accepted(),
            step: lane.last_step,
            behind: feed.behind(),
            planning: feed.planning.load(Ordering::Relaxed),
            // What is handed out: a plan that is about to be stored is not told yet.
            plan: feed.served().map_or(0, |served| served.version),
            plan_step: lane.plan_step,
            due_in: wait.saturating_sub(lane.accepted() - lane.decided),
            decisions: lane.decisions,
            down: lane.down().into_iter().collect(),
            latest: lane.latest().copied(),
            fed_at,
            quiet_seconds: fed_at.map(|at| now().saturating_sub(at)),
            stopped_after_seconds: lane.points.usual_pause().max(pause).saturating_mul(3).max(STOPPED_AFTER),
            copies: lane.copies(),
            observed_step_ms: lane.points.step_ms(),
        }
    }
}

impl ModelState {
    fn of(service: &Service, model: &Model) -> Self {
        let options = model.options.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        Self {
            name: model.name.clone(),
            shape: model.shape.clone(),
            decide: options,
            phases: model.feeds().iter().map(|feed| PhaseState::of(service, feed)).collect(),
            sources: service
                .sources()
                .iter()
                .filter(|source| source.model == model.name)
                .map(|source| source.state())
                .collect(),
        }
    }
}

/// List all models
#[utoipa::path(get, path = "/v1/models", tag = "models", responses((status = 200, body = ModelList), Refusals))]
pub(super) async fn list(State(app): State<App>) -> Json<ModelList> {
    let models = app.service.models();
    Json(ModelList { models: models.iter().map(|model| ModelState::of(&app.service, model)).collect() })
}

/// Show how a model stands
#[utoipa::path(get, path = "/v1/models/{model}", tag = "models",
    params(("model" = String, Path, description = "the model's name")),
    responses((status = 200, body = ModelState), Refusals))]
pub(super) async fn show(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<ModelState>, ApiError> {
    Ok(Json(ModelState::of(&app.service, &*app.model(&name)?)))
}

/// Make a model
///
/// The same shape again changes nothing (200); another shape is refused (409). Layers and experts come with the first loads.
#[utoipa::path(put, path = "/v1/models/{model}", tag = "models",
    params(("model" = String, Path, description = "1 to 64 letters, digits, `-`, `_` or `.`")),
    request_body = Shape,
    responses((status = 200, body = ModelState), (status = 201, body = ModelState), Refusals))]
pub(super) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    json_only(&headers)?;
    let body = bytes(&app.service, &headers, body).await?;
    let shape: Shape = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad(error.to_string(), "{\"ranks\": R, \"redundant\": SLOTS, ..}"))?;
    let service = app.service.clone();
    let (model, new) = blocking(move || service.make(&name, &shape)).await??;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(ModelState::of(&app.service, &model))).into_response())
}

/// Refuses bodies that say that they are something else than JSON.
pub(super) fn json_only(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = content_type(headers);
    if given.is_empty() || given == "application/json" {
        return Ok(());
    }
    let error = format!("content type {given}");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error, "application/json"))
}

/// Runs what may wait for the disk beside the requests.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(error.to_string()))
}

impl App {
    /// A model by name.
    pub(super) fn model(&self, name: &str) -> Result<Arc<Model>, ApiError> {
        self.service.model(name).ok_or_else(|| {
            let names: Vec<String> = self.service.models().iter().map(|model| model.name.clone()).collect();
            let there = if names.is_empty() {
                "none is there yet".into()
            } else {
                format!("there are {}", names.join(", "))
            };
            ApiError::not_found(
                format!("no model {name:?}"),
                format!("PUT /v1/models/{{model}} makes one; {there}"),
            )
        })
    }

    /// The feed of a model that is meant: the phase named, or the only one.
    pub(super) fn feed(&self, name: &str, phase: Option<Phase>) -> Result<Arc<Feed>, ApiError> {
        let model = self.model(name)?;
        let feeds = model.feeds();
        let fed: Vec<&str> = feeds.iter().map(|feed| feed.phase.name()).collect();
        match (phase, feeds.as_slice()) {
            (_, []) => Err(ApiError::not_found(
                format!("no loads of {name} yet"),
                "POST /v1/models/{model}/loads first",
            )),
            (None, [only]) => Ok(only.clone()),
            (None, _) => match model.feed(Phase::All) {
                Some(feed) => Ok(feed),
                None => Err(ApiError::bad("which phase?", format!("?phase= with one of {}", fed.join(", ")))),
            },
            (Some(phase), _) => model.feed(phase).ok_or_else(|| {
                ApiError::not_found(
                    format!("no loads of phase {phase} yet"),
                    format!("one of {}", fed.join(", ")),
                )
            }),
        }
    }
}
