//! The HTTP interface: one file per resource. `/openapi.json` is generated from this code.

mod auth;
mod body;
mod dashboard;
pub(crate) mod error;
mod events;
mod health;
mod loads;
pub(crate) mod memory;
mod metrics;
mod models;
mod page;
mod plan;
mod ranks;
mod rate_limit;
mod replan;
mod slots;

pub(crate) use auth::RequestPeer;

use crate::runtime::service::Service;
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{get, post};
use axum::{Json, Router};
use error::{ApiError, ErrorBody, ErrorResponses};
use rate_limit::RateLimiter;
use slots::RequestSlots;
use std::sync::Arc;
use tokio::sync::watch::Receiver;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

/// The state that handlers share.
#[derive(Debug, Clone)]
pub(crate) struct AppState {
    pub(crate) service: Arc<Service>,
    /// The open event streams.
    pub(crate) streams: RequestSlots,
    /// The waiting plan requests.
    pub(crate) waits: RequestSlots,
    /// Becomes true when the service stops.
    pub(crate) ending: Receiver<bool>,
}

impl AppState {
    pub(crate) fn new(service: Arc<Service>, ending: Receiver<bool>) -> Self {
        Self { service, streams: RequestSlots::for_streams(), waits: RequestSlots::for_waits(), ending }
    }
}

/// The OpenAPI document of the interface.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "evenkeel serve",
        description = "Receives the loads of Mixture-of-Experts layers, plans the replicas of their experts, and serves the plans."
    ),
    paths(
        models::list_models, models::get_model, models::put_model, models::delete_model, loads::post_loads, plan::get_plan,
        events::stream_events, replan::replan_phase, ranks::mark_rank_down, ranks::mark_rank_up,
        dashboard::get_history, dashboard::get_view, health::get_health, health::get_readiness, metrics::get_metrics, get_openapi
    ),
    components(schemas(ErrorBody)),
    security((), ("token" = [])),
    modifiers(&TokenScheme)
)]
pub(crate) struct ApiDocument;

struct TokenScheme;

impl Modify for TokenScheme {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_with(Default::default);
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// Returns the router of all paths.
pub(crate) fn router(app: AppState) -> Router {
    let guarded = (app.service.clone(), Arc::new(RateLimiter::default()));
    Router::new()
        .route("/", get(page::get_page))
        .route("/page/{part}", get(page::get_page_part))
        .route("/v1/models", get(models::list_models))
        .route(
            "/v1/models/{model}",
            get(models::get_model).put(models::put_model).delete(models::delete_model),
        )
        .route("/v1/models/{model}/loads", post(loads::post_loads))
        .route("/v1/models/{model}/plan", get(plan::get_plan))
        .route("/v1/models/{model}/events", get(events::stream_events))
        .route("/v1/models/{model}/replan", post(replan::replan_phase))
        .route("/v1/models/{model}/ranks/{rank}/down", post(ranks::mark_rank_down))
        .route("/v1/models/{model}/ranks/{rank}/up", post(ranks::mark_rank_up))
        .route("/v1/models/{model}/history", get(dashboard::get_history))
        .route("/v1/models/{model}/view", get(dashboard::get_view))
        .route("/healthz", get(health::get_health))
        .route("/readyz", get(health::get_readiness))
        .route("/metrics", get(metrics::get_metrics))
        .route("/openapi.json", get(get_openapi))
        .fallback(async || ApiError::not_found("no such path", "a path of /openapi.json"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed", "a method of /openapi.json")
        })
        .layer(middleware::from_fn_with_state(guarded, auth::guard_request))
        .with_state(app)
}

/// Get this document
#[utoipa::path(get, path = "/openapi.json", tag = "watch", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object), ErrorResponses))]
async fn get_openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(ApiDocument::openapi())
}
