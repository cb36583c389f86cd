//! Probes of the service's health: `/healthz`, `/readyz`.

use super::AppState;
use super::error::{ApiError, ErrorResponses};
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

/// The health of the service.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HealthStatus {
    /// The status, always `ok`.
    pub(crate) status: &'static str,
    /// The version of evenkeel.
    pub(crate) version: &'static str,
    /// The number of models.
    pub(crate) models: usize,
    /// The seconds since the start of the service.
    pub(crate) up_seconds: u64,
}

/// Check that the service is alive
#[utoipa::path(get, path = "/healthz", tag = "watch", security(()), responses((status = 200, body = HealthStatus), ErrorResponses))]
pub(super) async fn get_health(State(app): State<AppState>) -> Json<HealthStatus> {
    Json(HealthStatus {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        models: app.service.models().len(),
        up_seconds: app.service.started.elapsed().as_secs(),
    })
}

/// Check that the service accepts requests; 503 while it is stopping or cannot store anything
#[utoipa::path(get, path = "/readyz", tag = "watch", security(()), responses((status = 200, body = HealthStatus), ErrorResponses))]
pub(super) async fn get_readiness(State(app): State<AppState>) -> Result<Json<HealthStatus>, ApiError> {
    if *app.ending.borrow() {
        return Err(ApiError::retry_later(
            axum::http::StatusCode::SERVICE_UNAVAILABLE,
            "the service is ending",
            5,
        ));
    }
    app.service.context.store.check_health()?;
    Ok(get_health(State(app)).await)
}
