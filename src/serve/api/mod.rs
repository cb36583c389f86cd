//! The HTTP interface: one file per resource. `/openapi.json` is made from the code below.

mod act;
mod body;
pub(crate) mod error;
mod events;
mod guard;
mod loads;
mod models;
mod page;
mod plan;
mod view;
mod watch;

pub(crate) use guard::{Peer, Rates};

use super::service::Service;
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{get, post};
use axum::{Json, Router};
use error::{ApiError, ErrorBody, Refusals};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch as tell};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

/// What handlers work on.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) service: Arc<Service>,
    /// Event streams and waiting requests that may still begin.
    pub(crate) streams: Arc<Semaphore>,
    /// Turns true when the service is ending.
    pub(crate) ending: tell::Receiver<bool>,
}

impl App {
    /// Room for a request that stays open.
    fn stream(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.streams.clone().try_acquire_owned().map_err(|_| {
            let error = "too many open streams and waiting requests (limits.streams)";
            ApiError::later(StatusCode::SERVICE_UNAVAILABLE, error, 5)
        })
    }
}

/// The document of the interface.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "evenkeel serve",
        description = "Fed the loads of Mixture-of-Experts layers, it decides where copies of experts should live, and serves the plans."
    ),
    paths(
        models::list, models::show, models::put, loads::post, plan::get, events::get, act::replan, act::down, act::up,
        view::history, view::view, watch::healthz, watch::readyz, watch::metrics, openapi
    ),
    components(schemas(ErrorBody)),
    security((), ("token" = [])),
    modifiers(&Token)
)]
pub(crate) struct Document;

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_with(Default::default);
        components.add_security_scheme("token", SecurityScheme::Http(bearer));
    }
}

/// The routes.
pub(crate) fn router(app: App) -> Router {
    let guarded = (app.service.clone(), Arc::new(Rates::default()));
    Router::new()
        .route("/", get(page::page))
        .route("/page/{part}", get(page::part))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model}", get(models::show).put(models::put))
        .route("/v1/models/{model}/loads", post(loads::post))
        .route("/v1/models/{model}/plan", get(plan::get))
        .route("/v1/models/{model}/events", get(events::get))
        .route("/v1/models/{model}/replan", post(act::replan))
        .route("/v1/models/{model}/ranks/{rank}/down", post(act::down))
        .route("/v1/models/{model}/ranks/{rank}/up", post(act::up))
        .route("/v1/models/{model}/history", get(view::history))
        .route("/v1/models/{model}/view", get(view::view))
        .route("/healthz", get(watch::healthz))
        .route("/readyz", get(watch::readyz))
        .route("/metrics", get(watch::metrics))
        .route("/openapi.json", get(openapi))
        .fallback(async || ApiError::not_found("no such path", "a path of /openapi.json"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "not with this method", "a method of /openapi.json")
        })
        .layer(middleware::from_fn_with_state(guarded, guard::guard))
        .with_state(app)
}

/// This document
#[utoipa::path(get, path = "/openapi.json", tag = "watch", security(()),
    responses((status = 200, description = "OpenAPI 3.1", body = Object), Refusals))]
async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
