//! Requests for a decision: `POST .../replan`.

use super::AppState;
use super::body::{StrictQuery, discard_body};
use super::error::{ApiError, ErrorResponses};
use crate::runtime::mailbox::manual_replan;
use crate::wire::status::ReplanResponse;
use crate::{Phase, PhaseWorker};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

/// The parameters of a re-planning.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplanQuery {
    /// The phase; required if several phases have loads.
    phase: Option<Phase>,
    /// Only show the gain.
    #[serde(default)]
    #[param(default = false)]
    dry_run: bool,
}

/// Decide now
///
/// The decision uses the steps accepted so far and the same rules as a due decision. With `dry_run=true`
/// nothing changes and nothing is recorded. A second request while one is under way is refused (429).
#[utoipa::path(post, path = "/v1/models/{model}/replan", tag = "plan",
    params(("model" = String, Path, description = "the model's name"), ReplanQuery),
    responses((status = 200, body = ReplanResponse), ErrorResponses))]
pub(super) async fn replan_phase(
    State(app): State<AppState>,
    Path(name): Path<String>,
    StrictQuery(query): StrictQuery<ReplanQuery>,
    body: Body,
) -> Result<Json<ReplanResponse>, ApiError> {
    discard_body(body).await;
    let worker = app.find_worker(&name, query.phase)?;
    if worker.state().accepted_steps() == 0 {
        return Err(ApiError::new(StatusCode::CONFLICT, "no step was processed yet", "loads first"));
    }
    if query.dry_run {
        return dry_run(&worker).await;
    }
    let answer = worker.request_decision(manual_replan())?;
    let decision = answer.await.map_err(|_| stopping_error())??;
    let preview = worker.state().preview().cloned();
    Ok(Json(ReplanResponse { decision, preview }))
}

/// Answers with the gain of a re-planning. The computation ends when the client disconnects.
async fn dry_run(worker: &PhaseWorker) -> Result<Json<ReplanResponse>, ApiError> {
    let mut run = worker.dry_run()?;
    let Some(proposal) = run.wait_for_proposal().await? else {
        let error = "the dry run was interrupted: a rank changed, or the service is ending";
        return Err(ApiError::retry_later(StatusCode::SERVICE_UNAVAILABLE, error, 1));
    };
    let (decision, preview) = proposal.into_preview();
    if let Some(preview) = preview.clone() {
        worker.show_preview(preview);
    }
    Ok(Json(ReplanResponse { decision, preview }))
}

/// Returns the error of a request that arrives while the service stops.
pub(super) fn stopping_error() -> ApiError {
    ApiError::retry_later(StatusCode::SERVICE_UNAVAILABLE, "the service is ending", 5)
}
