//! Changes of ranks: `POST .../ranks/{rank}/down` and `/up`.

use super::AppState;
use super::body::discard_body;
use super::error::{ApiError, ErrorResponses};
use super::replan::stopping_error;
use crate::controller::propose::PhaseCommand;
use crate::wire::decision::Decision;
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

/// The decisions of all phases.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RankChangeResponse {
    /// One decision per phase with loads.
    pub(crate) decisions: Vec<Decision>,
}

/// Plan without a rank
///
/// The remaining ranks keep their experts. Experts whose last replica is lost are placed first. The plan
/// numbers the remaining ranks without gaps; its header `evenkeel-ranks` maps these numbers to ranks.
#[utoipa::path(post, path = "/v1/models/{model}/ranks/{rank}/down", tag = "ranks",
    params(("model" = String, Path, description = "the model's name"), ("rank" = usize, Path, description = "the rank that is gone")),
    responses((status = 200, body = RankChangeResponse), ErrorResponses))]
pub(super) async fn mark_rank_down(
    State(app): State<AppState>,
    Path((name, rank)): Path<(String, String)>,
    body: Body,
) -> Result<Json<RankChangeResponse>, ApiError> {
    discard_body(body).await;
    change_rank(&app, &name, &rank, PhaseCommand::Down).await
}

/// Plan with a rank that is up again
#[utoipa::path(post, path = "/v1/models/{model}/ranks/{rank}/up", tag = "ranks",
    params(("model" = String, Path, description = "the model's name"), ("rank" = usize, Path, description = "the rank that is back")),
    responses((status = 200, body = RankChangeResponse), ErrorResponses))]
pub(super) async fn mark_rank_up(
    State(app): State<AppState>,
    Path((name, rank)): Path<(String, String)>,
    body: Body,
) -> Result<Json<RankChangeResponse>, ApiError> {
    discard_body(body).await;
    change_rank(&app, &name, &rank, PhaseCommand::Up).await
}

async fn change_rank(
    app: &AppState,
    name: &str,
    rank: &str,
    command: fn(usize) -> PhaseCommand,
) -> Result<Json<RankChangeResponse>, ApiError> {
    let model = app.find_model(name)?;
    let last = model.shape.ranks.saturating_sub(1);
    let number = rank.parse::<usize>().ok().filter(|&rank| rank <= last);
    let number =
        number.ok_or_else(|| ApiError::not_found(format!("no rank {rank:?}"), format!("0 to {last}")))?;
    let workers = model.workers();
    if workers.is_empty() {
        return Err(ApiError::not_found(
            format!("no loads of {name} yet"),
            "POST /v1/models/{model}/loads first",
        ));
    }
    let answers: Vec<_> = workers.iter().map(|worker| worker.request_decision(command(number))).collect();
    let mut decisions = Vec::new();
    for answer in answers {
        decisions.push(answer?.await.map_err(|_| stopping_error())??);
    }
    Ok(Json(RankChangeResponse { decisions }))
}
